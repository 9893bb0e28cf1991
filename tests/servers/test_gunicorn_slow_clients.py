"""Which slow clients lose the thread that waits for them, for requests that wait for a thread."""

from __future__ import annotations

import pytest

from tests.servers.gate import Gate
from wsgigate.servers.gunicorn_threads import SlowClients


def select(
    rule: SlowClients[str], waited: dict[str, float], *, most: int = 9, now: float = 100.0
) -> list[str]:
    """Return the clients to cut, where each has been silent for so many seconds at *now*."""
    waits = {client: (now - seconds, 0) for client, seconds in waited.items()}
    return rule.select(waits, most, now)


@pytest.mark.parametrize(
    ("waited", "most", "cut"),
    [
        ({"a": 1.0, "b": 4.0, "c": 2.0, "d": 3.0}, 3, ["b", "d", "c"]),
        ({"a": 0.1, "b": 0.2, "c": 0.29, "d": 0.0}, 4, []),
        ({"a": 0.31, "b": 0.29}, 2, ["a"]),
        ({}, 0, []),
    ],
)
def test_those_that_are_silent_for_longest_are_cut_first(
    waited: dict[str, float], most: int, cut: list[str]
) -> None:
    rule: SlowClients[str] = SlowClients()
    assert select(rule, {}, now=99.0) == []  # a request waits since then
    assert select(rule, waited, most=most) == cut


def test_those_that_come_in_their_place_have_less_time_until_no_request_waits() -> None:
    rule: SlowClients[str] = SlowClients()
    select(rule, {}, now=99.0)
    assert select(rule, {"a": 0.2, "b": 0.2}) == []
    assert select(rule, {"c": 1.0, "b": 0.2}) == ["c"]
    assert select(rule, {"d": 0.2, "e": 0.1}) == ["d"]
    rule.relax(104.0)
    assert select(rule, {}, now=104.0) == []
    assert select(rule, {"f": 0.2}, now=104.1) == ["f"]
    rule.relax(110.0)
    select(rule, {}, now=110.0)
    assert select(rule, {"g": 0.2}, now=110.2) == []
    assert select(rule, {"g": 0.4}, now=110.4) == ["g"]


def test_a_client_that_reads_slowly_is_not_silent() -> None:
    rule: SlowClients[str] = SlowClients()
    cut = []
    for step in range(20):
        waits = {"reads": (99.9, step), "silent": (99.9, 0)}
        cut += rule.select(waits, 2, 100.0 + step / 10)
    assert set(cut) == {"silent"}


def test_none_is_cut_for_a_request_that_has_just_come() -> None:
    rule: SlowClients[str] = SlowClients()
    waits = {"a": (91.0, 0), "b": (91.0, 0)}
    assert [rule.select(waits, 1, now) for now in (100.0, 100.2, 100.4)] == [[], [], ["a"]]


def test_the_worker_cuts_only_where_no_thread_is_free_and_a_request_waits(gate: Gate) -> None:
    class Waits:
        ended = False

        def cut(self) -> None:
            self.ended = True

        def progress(self) -> int:
            return 0

    worker, connection = gate.worker, Waits()
    worker.waits = {connection: 90.0, Waits(): 99.9}  # type: ignore[dict-item]
    for busy, ready in ((3, True), (4, False), (4, True)):
        worker.at_work = set(range(busy))
        worker.idle.any_ready = lambda ready=ready: ready  # type: ignore[method-assign]
        for now in (100.0, 100.4):
            assert not connection.ended
            worker.expire(now)
    assert connection.ended
    assert gate.log.lines == ["1 connections cut: all threads wait for slow clients"]


def test_output_that_is_owed_is_no_request_that_waits(gate: Gate) -> None:
    gate.connect()
    [connection] = gate.worker.idle
    connection.flushing = True
    gate.worker.idle.add(connection, writable=True)
    assert not gate.worker.idle.any_ready()
    connection.flushing = False
    assert gate.worker.idle.any_ready()
