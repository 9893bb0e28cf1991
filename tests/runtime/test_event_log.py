"""Events are logged by kind: the first at once, a flood of them as counts, and its end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from wsgigate.runtime.logs import EventLog
from wsgigate.testing import FakeClock


class Told:
    """An EventLog with a clock, whose timer is called by hand."""

    def __init__(self, most: int = 256) -> None:
        self.clock = FakeClock()
        self.lines: list[tuple[object, ...]] = []
        self.due: list[tuple[float, Callable[[], object]]] = []
        self.log = EventLog(
            lambda event, held: self.lines.append((event, held)),
            lambda event, total, lasted: self.lines.append(("over", event, total, lasted)),
            most=most,
            clock=self.clock,
            later=lambda seconds, call: self.due.append((seconds, call)),
        )

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        due, self.due = self.due, []
        for _, call in due:
            call()


@pytest.fixture
def told() -> Told:
    return Told()


def test_the_first_event_of_each_kind_is_written_at_once(told: Told) -> None:
    assert [told.log.add(kind, f"event {kind}") for kind in "aabb"] == [True, False, True, False]
    assert told.lines == [("event a", 0), ("event b", 0)]


def test_events_that_go_on_are_written_once_a_minute_with_a_count(told: Told) -> None:
    for number in range(4):
        told.log.add("a", number)
    told.wait(30)
    told.log.add("a", 4)
    told.wait(31)
    assert told.lines == [(0, 0), (4, 3)]
    told.log.add("a", 5)
    told.wait(60)
    assert told.lines == [(0, 0), (4, 3), ("over", 5, 6, 61.0)]


def test_the_end_of_a_flood_is_written_with_its_total(told: Told) -> None:
    for number in range(1000):
        told.log.add("a", number)
    told.clock.advance(10)
    told.log.add("a", 1000)
    told.wait(60)
    assert told.lines == [(0, 0), ("over", 1000, 1001, 10.0)]
    told.wait(60)
    assert len(told.lines) == 2
    told.log.add("a", 1)
    assert told.lines[-1] == (1, 0)


def test_a_single_event_has_no_second_record(told: Told) -> None:
    told.log.add("a", 1)
    told.wait(60)
    assert told.lines == [(1, 0)]
    assert not told.due


def test_an_event_after_a_minute_has_the_count_of_those_held_back(told: Told) -> None:
    told.log.add("a", 1)
    told.log.add("a", 2)
    told.clock.advance(60)
    told.log.add("a", 3)
    assert told.lines == [(1, 0), (3, 1)]


def test_kinds_beyond_the_bound_are_one() -> None:
    told = Told(most=2)
    for number in range(100):
        told.log.add(number, number)
    assert told.lines == [(0, 0), (1, 0), (2, 0)]
    told.wait(60)
    assert told.lines[-1] == ("over", 99, 98, 0.0)
    told.log.add(5, 5)
    assert told.lines[-1] == (5, 0)


def test_one_timer_at_a_time(told: Told) -> None:
    for number in range(100):
        told.log.add(number, number)
        told.log.add(number, number)
    assert [seconds for seconds, _ in told.due] == [60.0]


def test_a_forked_child_begins_anew(told: Told) -> None:
    told.log.add("a", 1)
    told.log.after_fork()
    assert told.log.add("a", 2)


def test_what_is_held_back_is_written_when_the_log_is_closed(told: Told) -> None:
    for number in range(5):
        told.log.add("a", number)
    told.log.add("b", "once")
    told.log.close()
    told.log.close()
    assert told.lines == [(0, 0), ("once", 0), (4, 3)]


AT_THE_END = """
from wsgigate.runtime.logs import EventLog

def show(*what):
    print(*what, flush=True)

log = EventLog(show, show)
for number in range(5):
    log.add("a", number)
"""


def test_what_is_held_back_at_the_end_of_a_process_is_written() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.splitlines(), done.stderr) == (["0 0", "4 3"], "")
