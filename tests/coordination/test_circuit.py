"""Workers that share a circuit: what one of them finds, all of them know."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.logs import silence
from wsgigate.coordination.circuit import Circuit, Permit, Rejection
from wsgigate.rules.circuit import CircuitRules, Outcome, State
from wsgigate.store import StoreError
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock

RULES = CircuitRules(consecutive_failures=3, open_for=5, probes=2, probe_timeout=10, jitter=0)


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=lambda: clock() + 86_400 * 365)  # not the workers' own clock


_silent = silence("wsgigate.circuits")


def worker(clock: FakeClock, store: object = None, rules: CircuitRules = RULES) -> Circuit:
    return Circuit("orders", rules, store=store, clock=clock, random=lambda: 0.0)  # type: ignore[arg-type]


def admitted(circuit: Circuit) -> Permit:
    permit = circuit.admit()
    assert isinstance(permit, Permit)
    return permit


def waits(circuit: Circuit) -> float:
    answer = circuit.admit()
    assert isinstance(answer, Rejection)
    return answer.retry_after


def call(circuit: Circuit, outcome: Outcome = Outcome.OK) -> None:
    admitted(circuit).done(outcome)


def break_it(circuit: Circuit) -> None:
    for _ in range(3):
        call(circuit, Outcome.FAILED)


def test_one_worker_by_itself_opens_probes_and_closes(clock: FakeClock) -> None:
    circuit = worker(clock)
    break_it(circuit)
    assert waits(circuit) == 5
    clock.advance(4)
    assert waits(circuit) == 1
    clock.advance(1)
    first, second = admitted(circuit), admitted(circuit)
    assert waits(circuit) == 1
    first.done(Outcome.OK)
    assert circuit.status().state is State.HALF_OPEN
    second.done(Outcome.OK)
    assert circuit.status().state is State.CLOSED
    call(circuit)


def test_the_others_know_within_the_interval(clock: FakeClock, store: MemoryStore) -> None:
    one, other = worker(clock, store), worker(clock, store)
    call(other)
    break_it(one)
    call(other)  # it has read the verdict just now
    clock.advance(0.5)
    assert waits(other) == 4.5
    assert waits(worker(clock, store)) == 4.5, "a worker that is new knows at once"


def test_no_worker_asks_the_store_for_each_call(clock: FakeClock) -> None:
    asked = []

    class Counting(MemoryStore):
        def get(self, key: str) -> tuple[bytes | None, float]:
            asked.append(key)
            return super().get(key)

    circuit = worker(clock, Counting())
    for _ in range(100):
        call(circuit)
    assert asked == ["circuit/orders"]
    break_it(circuit)
    asked.clear()
    for _ in range(100):
        waits(circuit)
    assert asked == []
    clock.advance(0.5)
    waits(circuit)
    assert asked == ["circuit/orders"]


def test_all_workers_together_make_no_more_probes_than_the_rules_say(
    clock: FakeClock, store: MemoryStore
) -> None:
    workers = [worker(clock, store) for _ in range(8)]
    for circuit in workers:
        call(circuit)
    break_it(workers[0])
    clock.advance(5)
    answers = [circuit.admit() for circuit in workers for _ in range(4)]
    permits = [answer for answer in answers if isinstance(answer, Permit)]
    assert len(permits) == 2
    for permit in permits:
        permit.done(Outcome.OK)
    clock.advance(0.5)
    for circuit in workers:
        call(circuit)


def test_the_probes_of_two_workers_count_together(clock: FakeClock, store: MemoryStore) -> None:
    one, other = worker(clock, store), worker(clock, store)
    break_it(one)
    clock.advance(5)
    first, second = admitted(one), admitted(other)
    first.done(Outcome.OK)
    second.done(Outcome.OK)
    assert other.status().state is State.CLOSED
    clock.advance(0.5)
    assert one.status().state is State.CLOSED


def test_a_worker_that_dies_while_it_probes_holds_nobody_up(
    clock: FakeClock, store: MemoryStore
) -> None:
    dying, other = worker(clock, store), worker(clock, store)
    break_it(dying)
    clock.advance(5)
    late = [admitted(dying), admitted(dying)]
    clock.advance(9)
    assert waits(other) == 1
    clock.advance(1)
    call(other)
    late[0].done(Outcome.FAILED)  # it was only stopped: what it has to say is out of date
    call(other)
    assert other.status().state is State.CLOSED


def test_a_failed_probe_opens_it_for_all(clock: FakeClock, store: MemoryStore) -> None:
    one, other = worker(clock, store), worker(clock, store)
    break_it(one)
    clock.advance(5)
    ours, theirs = admitted(one), admitted(other)
    theirs.done(Outcome.UNREACHABLE)
    ours.done(Outcome.OK)
    assert waits(other) == 10
    clock.advance(0.5)
    assert waits(one) == 9.5


def test_calls_from_before_tell_nothing(clock: FakeClock) -> None:
    circuit = worker(clock)
    early = [admitted(circuit) for _ in range(9)]
    break_it(circuit)
    early[0].done(Outcome.FAILED)
    clock.advance(5)
    call(circuit)
    for permit in early:
        permit.done(Outcome.FAILED)
    call(circuit)
    assert circuit.status().state is State.CLOSED


def test_the_end_of_a_call_counts_once(clock: FakeClock) -> None:
    circuit = worker(clock)
    permit = admitted(circuit)
    for _ in range(9):
        permit.done(Outcome.FAILED)
    assert circuit.status().failures == 1


@pytest.mark.parametrize("outcome", [Outcome.IGNORED, Outcome.REFUSED, Outcome.OK])
def test_what_is_no_failure_never_opens_it(clock: FakeClock, outcome: Outcome) -> None:
    circuit = worker(clock)
    for _ in range(200):
        call(circuit, outcome)
    assert circuit.status().state is State.CLOSED


def test_slow_calls_open_it(clock: FakeClock) -> None:
    rules = CircuitRules(slow_after=1, slow_rate=0.5, minimum_calls=4)
    circuit = worker(clock, rules=rules)
    for _ in range(4):
        permit = admitted(circuit)
        clock.advance(1.5)
        permit.done(Outcome.OK)
    assert circuit.status().state is State.OPEN


def test_what_the_client_takes_is_not_slow(clock: FakeClock) -> None:
    circuit = worker(clock, rules=CircuitRules(slow_after=1, minimum_calls=4))
    for _ in range(8):
        permit = admitted(circuit)
        clock.advance(9)
        permit.done(Outcome.OK, took=0.1)
    assert circuit.status().state is State.CLOSED


def test_a_reset_closes_it_for_all(clock: FakeClock, store: MemoryStore) -> None:
    one, other = worker(clock, store), worker(clock, store)
    break_it(one)
    clock.advance(0.5)
    assert other.reset() is True
    call(other)
    clock.advance(0.5)
    call(one)
    assert one.status()[:2] == (State.CLOSED, 0)


def test_how_it_stands(clock: FakeClock) -> None:
    circuit = worker(clock)
    assert circuit.status()[:8] == (State.CLOSED, 0, 0, None, None, None, "", 0)
    call(circuit)
    break_it(circuit)
    clock.advance(2)
    since = clock() - 2
    opened = (State.OPEN, 3, 1, 2.0, since, since + 5, "3 failures in a row", 1, clock())
    assert circuit.status() == opened
    circuit.reset()
    reset = "reset by the operator"
    assert circuit.status()[:8] == (State.CLOSED, 0, 1, None, clock(), None, reset, 2)


def test_every_worker_knows_since_when_and_why(clock: FakeClock, store: MemoryStore) -> None:
    one, other = worker(clock, store), worker(clock, store)
    for _ in range(3):
        permit = one.admit()
        assert isinstance(permit, Permit)
        permit.done(Outcome.FAILED, why="Request timeout")
    clock.advance(1)
    why = "3 failures in a row, the last: Request timeout"
    at = clock() + 86_400 * 365
    assert other.status() == (State.OPEN, 0, 0, None, at - 1, at + 4, why, 1, at)
    clock.advance(4)
    permit = other.admit()
    assert isinstance(permit, Permit)
    clock.advance(1)
    assert one.status()[4:7] == (at + 4, at + 14, "open time is over")
    permit.done(Outcome.FAILED, why="status 503")
    assert other.status()[4:7] == (at + 5, at + 15, "a probe failed: status 503")


# -- the store fails -------------------------------------------------------------------------------


class Flaky(MemoryStore):
    """A store that is down while it is told to be."""

    down = False
    asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.down:
            raise StoreError("the store is down")

    def get(self, key: str) -> tuple[bytes | None, float]:
        self._ask()
        return super().get(key)

    def update(self, key, change):  # type: ignore[no-untyped-def]
        self._ask()
        return super().update(key, change)


def test_without_the_store_each_worker_decides_by_itself(clock: FakeClock) -> None:
    one, other = worker(clock, BrokenStore()), worker(clock, BrokenStore())
    break_it(one)
    assert waits(one) == 5
    call(other)
    clock.advance(5)
    call(one)
    call(one)
    assert one.status().state is State.CLOSED
    assert one.store_errors > 0
    assert one.reset() is False


def test_a_store_that_is_down_is_asked_once_in_an_interval(clock: FakeClock) -> None:
    store = Flaky(clock=clock)
    store.down = True
    circuit = worker(clock, store)
    break_it(circuit)
    for _ in range(100):
        waits(circuit)
    assert store.asked == 1


def test_what_was_found_meanwhile_is_shared_when_the_store_is_back(clock: FakeClock) -> None:
    store = Flaky(clock=clock)
    one, other = worker(clock, store), worker(clock, store)
    call(one)
    call(other)
    store.down = True
    clock.advance(1)
    break_it(one)
    store.down = False
    clock.advance(1)
    assert waits(one) == 4
    clock.advance(0.5)
    assert waits(other) == 3.5


def test_a_store_that_lost_everything_closes_nothing(clock: FakeClock, store: MemoryStore) -> None:
    circuit = worker(clock, store)
    break_it(circuit)
    assert store.swap("circuit/orders", store.get("circuit/orders")[0], None, 1)
    clock.advance(1)
    assert waits(circuit) == 4
    clock.advance(4)
    call(circuit)
    call(circuit)
    assert circuit.status().state is State.CLOSED


def test_a_store_whose_clock_is_set_back_keeps_nobody_out(clock: FakeClock) -> None:
    hours = [100]
    store = MemoryStore(clock=lambda: clock() + 3600 * hours[0])
    circuit = worker(clock, store)
    break_it(circuit)
    hours[0] = 1
    clock.advance(0.5)
    assert waits(circuit) <= RULES.longest
    assert waits(worker(clock, store)) <= RULES.longest
    clock.advance(RULES.longest)
    call(circuit)


def test_bytes_of_somebody_else_harm_nobody(clock: FakeClock, store: MemoryStore) -> None:
    assert store.swap("circuit/orders", None, b"garbage", 60)
    circuit = worker(clock, store)
    call(circuit)
    break_it(circuit)
    assert waits(circuit) == 5
    assert waits(worker(clock, store)) == 5


def test_its_log_says_what_happened_and_not_once_a_call(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("wsgigate.circuits").disabled = False
    circuit = worker(clock, BrokenStore())
    with caplog.at_level("INFO", "wsgigate.circuits"):
        break_it(circuit)
        for _ in range(10):
            waits(circuit)
            clock.advance(0.1)
    assert [record.getMessage() for record in caplog.records] == [
        "Circuit 'orders' is not shared with other workers: the store is down",
        "Circuit 'orders' opened for 5.0 s: 3 failures in a row",
    ]


def test_its_log_has_every_step_both_ways_and_why_and_each_once_of_all_workers(
    clock: FakeClock, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("wsgigate.circuits").disabled = False
    one, other = worker(clock, store), worker(clock, store)
    with caplog.at_level("INFO", "wsgigate.circuits"):
        break_it(one)
        clock.advance(5)
        for _ in range(2):
            call(other)
            call(one)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "Circuit 'orders' opened for 5.0 s: 3 failures in a row"),
        ("INFO", "Circuit 'orders' is half-open, probes pass: open time is over"),
        ("WARNING", "Circuit 'orders' closed: all probes passed"),
    ]


def test_its_log_tells_that_the_store_answers_again(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("wsgigate.circuits").disabled = False
    store = Flaky()
    circuit = worker(clock, store)
    with caplog.at_level("INFO", "wsgigate.circuits"):
        for store.down in (True, True, False, False):
            clock.advance(1)
            circuit.admit()
    assert [record.getMessage() for record in caplog.records] == [
        "Circuit 'orders' is not shared with other workers: the store is down",
        "Circuit 'orders' is shared with other workers again, after 2 s",
    ]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 101])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a circuit's name is 1 to 100 characters of one line"):
        Circuit(name)


@pytest.mark.parametrize("seconds", [0, -1, 61])
def test_an_interval_out_of_range_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="sync_interval is more than 0 s, at most 60"):
        Circuit("a", sync_interval=seconds)


# -- another thread is faster ----------------------------------------------------------------------


class Overtaken(MemoryStore):
    """A store whose answers are on their way while another thread of the worker does something."""

    meanwhile: list[Callable[[], object]]

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.meanwhile = []

    def get(self, key: str) -> tuple[bytes | None, float]:
        found = super().get(key)
        if self.meanwhile:
            self.meanwhile.pop()()
        return found

    def update(self, key, change):  # type: ignore[no-untyped-def]
        result = super().update(key, change)
        if self.meanwhile:
            self.meanwhile.pop()()
        return result


def test_what_was_read_before_a_change_does_not_undo_it(clock: FakeClock) -> None:
    store = Overtaken(clock)
    circuit = worker(clock, store)
    circuit.reset()
    clock.advance(0.5)
    permits = [admitted(circuit) for _ in range(3)]
    clock.advance(0.5)
    store.meanwhile = [lambda: [permit.done(Outcome.FAILED) for permit in permits]]
    circuit.admit()
    assert circuit.status().state is State.OPEN
    assert waits(circuit) == 5


def test_a_change_that_comes_late_does_not_undo_the_one_after_it(clock: FakeClock) -> None:
    store = Overtaken(clock)
    circuit = worker(clock, store)
    break_it(circuit)
    clock.advance(5)
    circuit.status()
    store.meanwhile = [circuit.reset]
    circuit.admit()
    assert circuit.status().state is State.CLOSED


def test_what_ends_after_a_change_does_not_count_for_what_is_now(clock: FakeClock) -> None:
    circuit = worker(clock)
    old = [admitted(circuit) for _ in range(4)]
    break_it(circuit)
    circuit.reset()
    for permit in old[:3]:
        permit.done(Outcome.FAILED)
    old[3].done(Outcome.OK)
    assert circuit.status()[:4] == (State.CLOSED, 0, 0, None)
    call(circuit, Outcome.FAILED)
    call(circuit, Outcome.FAILED)
    assert circuit.status().state is State.CLOSED
    call(circuit, Outcome.FAILED)
    assert circuit.status().state is State.OPEN


class Late:
    """A lock that is had only when another thread has done something."""

    def __init__(self, lock: Any, meanwhile: Callable[[], object]) -> None:
        self._lock, self._meanwhile = lock, [meanwhile]

    def __enter__(self) -> None:
        if self._meanwhile:
            self._meanwhile.pop()()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_what_ends_while_another_thread_changes_it_does_not_count(clock: FakeClock) -> None:
    circuit = worker(clock)
    permit = admitted(circuit)
    shared = circuit._shared
    shared.lock = Late(shared.lock, lambda: (break_it(circuit), circuit.reset()))  # type: ignore[assignment]
    permit.done(Outcome.FAILED)
    assert circuit.status()[:4] == (State.CLOSED, 0, 0, None)


def test_what_opened_it_is_not_counted_again_when_it_is_closed(clock: FakeClock) -> None:
    rules = CircuitRules(minimum_calls=4, open_for=1, probes=1, jitter=0)
    circuit = worker(clock, rules=rules)
    for _ in range(4):
        call(circuit, Outcome.FAILED)
    clock.advance(1)
    call(circuit)
    call(circuit, Outcome.FAILED)
    assert circuit.status().state is State.CLOSED


# -- threads and processes -------------------------------------------------------------------------


def test_threads_of_one_worker_share_the_probes(clock: FakeClock, store: MemoryStore) -> None:
    for round_ in range(30):
        circuit = Circuit(f"orders {round_}", RULES, store=store, clock=clock, random=lambda: 0.0)
        break_it(circuit)
        clock.advance(5)
        answers: list[Permit | Rejection] = []
        gate = threading.Barrier(6)

        def ask(
            circuit: Circuit = circuit,
            answers: list[Permit | Rejection] = answers,
            gate: threading.Barrier = gate,
        ) -> None:
            gate.wait()
            answers.append(circuit.admit())

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(isinstance(answer, Permit) for answer in answers) == 2


PROBING = """
import json, sys, threading
from wsgigate.coordination.circuit import Circuit, Permit
from wsgigate.rules.circuit import CircuitRules
from wsgigate.store.lmdb import LmdbStore

store = LmdbStore(sys.argv[1])
rules = CircuitRules(open_for=0.001, probes=5, probe_timeout=3600, jitter=0)
circuit = Circuit("orders", rules, store=store)
circuit.status()
print("ready", flush=True)
sys.stdin.readline()
permits = []
def ask():
    for _ in range(50):
        answer = circuit.admit()
        if isinstance(answer, Permit):
            permits.append(answer)
threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(len(permits)), flush=True)
"""


def test_processes_with_many_threads_probe_no_more_than_the_rules_say(tmp_path: Path) -> None:
    from wsgigate.store.lmdb import LmdbStore

    store = LmdbStore(tmp_path / "store")
    rules = CircuitRules(open_for=0.001, probes=5, probe_timeout=3600, jitter=0)
    opened = Circuit("orders", rules, store=store)
    for _ in range(5):
        call(opened, Outcome.UNREACHABLE)
    store.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROBING, str(tmp_path / "store")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        made = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sum(made) == 5
