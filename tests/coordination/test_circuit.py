"""Workers that share the verdict of a circuit."""

from __future__ import annotations

import pytest

from tests.coordination.circuits import admitted, break_it, call, waits, worker
from tests.support.logs import silence
from wsgigate.coordination.circuit import Permit
from wsgigate.rules.circuit import CircuitRules, Outcome, State
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock

_silent = silence("wsgigate.circuits")


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=lambda: clock() + 86_400 * 365)  # not the workers' own clock


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


def test_other_workers_notice_an_open_circuit_within_the_interval(
    clock: FakeClock, store: MemoryStore
) -> None:
    one, other = worker(clock, store), worker(clock, store)
    call(other)
    break_it(one)
    call(other)  # it has read the verdict just now
    clock.advance(0.5)
    assert waits(other) == 4.5
    assert waits(worker(clock, store)) == 4.5, "a worker that is new knows at once"


def test_a_call_through_a_closed_circuit_does_not_read_the_store(clock: FakeClock) -> None:
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


def test_all_workers_together_send_at_most_the_configured_probes(
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


def test_probes_of_a_worker_that_died_time_out(clock: FakeClock, store: MemoryStore) -> None:
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


def test_calls_that_began_in_an_earlier_state_do_not_count(clock: FakeClock) -> None:
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
def test_ignored_outcomes_never_open_a_circuit(clock: FakeClock, outcome: Outcome) -> None:
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


def test_time_that_the_client_takes_is_not_slow(clock: FakeClock) -> None:
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


def test_status_reports_state_counts_and_the_reason(clock: FakeClock) -> None:
    circuit = worker(clock)
    assert circuit.status()[:8] == (State.CLOSED, 0, 0, None, None, None, "", 0)
    call(circuit)
    break_it(circuit)
    clock.advance(2)
    since = clock() - 2
    opened = (State.OPEN, 3, 1, 2.0, since, since + 5, "3 failures in a row", 1, clock(), False)
    assert circuit.status()[:10] == opened
    circuit.reset()
    reset = "reset by the operator"
    assert circuit.status()[:8] == (State.CLOSED, 0, 1, None, clock(), None, reset, 2)


def test_every_worker_reports_the_reason_and_time_of_the_last_change(
    clock: FakeClock, store: MemoryStore
) -> None:
    one, other = worker(clock, store), worker(clock, store)
    for _ in range(3):
        permit = one.admit()
        assert isinstance(permit, Permit)
        permit.done(Outcome.FAILED, why="Request timeout")
    clock.advance(1)
    why = "3 failures in a row, the last: Request timeout"
    at = clock() + 86_400 * 365
    assert other.status()[:9] == (State.OPEN, 0, 0, None, at - 1, at + 4, why, 1, at)
    clock.advance(4)
    permit = other.admit()
    assert isinstance(permit, Permit)
    clock.advance(1)
    assert one.status()[4:7] == (at + 4, at + 14, "open time is over")
    permit.done(Outcome.FAILED, why="status 503")
    assert other.status()[4:7] == (at + 5, at + 15, "a probe failed: status 503")
