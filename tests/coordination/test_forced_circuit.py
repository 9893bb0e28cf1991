"""A circuit that an operator forces open or closed, in several workers."""

from __future__ import annotations

import pytest

from tests.coordination.circuits import admitted, break_it, call, waits, worker
from wsgigate.rules.circuit import Outcome, State
from wsgigate.store import StoreError
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=lambda: clock() + 86_400 * 365)  # not the workers' own clock


def test_all_workers_reject_calls_while_it_is_forced_open(
    clock: FakeClock, store: MemoryStore
) -> None:
    one, other = worker(clock, store), worker(clock, store)
    call(one)
    assert other.force("open", lasts=600) == (True, True)
    clock.advance(0.5)
    assert waits(one) == pytest.approx(60)
    status = one.status()
    assert (status.state, status.forced, status.why) == (
        State.OPEN,
        True,
        "forced open by the operator",
    )
    assert status.until is not None
    assert status.until - status.moment == pytest.approx(599.5)


def test_a_worker_that_starts_later_knows_of_it(clock: FakeClock, store: MemoryStore) -> None:
    worker(clock, store).force("open")
    clock.advance(86_400.0 * 30)
    assert waits(worker(clock, store)) == 60
    assert worker(clock, store).status(fresh=True).until is None


def test_forced_closed_it_counts_failures_and_stays_closed(
    clock: FakeClock, store: MemoryStore
) -> None:
    one, other = worker(clock, store), worker(clock, store)
    break_it(one)
    clock.advance(0.5)
    other.force("closed", lasts=60)
    clock.advance(0.5)
    for _ in range(5):
        call(one, Outcome.FAILED)
    status = one.status()
    assert (status.state, status.failures, status.forced) == (State.CLOSED, 8, True)
    clock.advance(60)
    status = one.status()
    assert (status.forced, status.until) == (False, None)
    assert status.why == "forced closed by the operator, which is over"
    call(one, Outcome.FAILED)
    assert one.status().state is State.OPEN


def test_failures_of_a_circuit_that_is_forced_closed_use_no_store(clock: FakeClock) -> None:
    class Counted(MemoryStore):
        changes = 0

        def update(self, key, change):  # type: ignore[no-untyped-def]
            self.changes += 1
            return super().update(key, change)

    store = Counted(clock=lambda: clock() + 86_400)
    circuit = worker(clock, store)
    circuit.force("closed")
    before = store.changes
    for _ in range(9):
        call(circuit, Outcome.FAILED)
    assert store.changes == before


def test_a_released_circuit_is_probed_and_earlier_calls_do_not_count(
    clock: FakeClock, store: MemoryStore
) -> None:
    one = worker(clock, store)
    before = admitted(one)
    one.force("open")
    assert one.force("auto") == (True, True)
    assert one.status().state is State.HALF_OPEN
    before.done(Outcome.FAILED)
    assert one.status().state is State.HALF_OPEN
    call(one)
    call(one)
    assert one.status().state is State.CLOSED


def test_a_reset_releases_it(clock: FakeClock, store: MemoryStore) -> None:
    one, other = worker(clock, store), worker(clock, store)
    one.force("open")
    clock.advance(0.5)
    assert other.reset()
    clock.advance(0.5)
    call(one)
    assert not one.status().forced


def test_it_is_changed_only_if_it_has_the_generation_that_is_expected(
    clock: FakeClock, store: MemoryStore
) -> None:
    one, other = worker(clock, store), worker(clock, store)
    generation = one.status().generation
    assert other.force("open", generation=generation).changed
    assert one.force("closed", generation=generation) == (False, True)
    assert one.status(fresh=True).state is State.OPEN


class Failing(MemoryStore):
    broken = False

    def get(self, key):  # type: ignore[no-untyped-def]
        if self.broken:
            raise StoreError("out of order")
        return super().get(key)

    def update(self, key, change):  # type: ignore[no-untyped-def]
        if self.broken:
            raise StoreError("out of order")
        return super().update(key, change)


def test_it_survives_an_outage_and_is_shared_afterwards(clock: FakeClock) -> None:
    store = Failing(clock=lambda: clock() + 86_400)
    one, other = worker(clock, store), worker(clock, store)
    one.force("open")
    store.broken = True
    clock.advance(100)
    assert waits(one) == 60
    assert other.force("closed") == (True, False)
    store.broken = False
    clock.advance(0.5)
    assert waits(one) == 60
    other.status(fresh=True)
    assert (other.status().state, other.status().forced) == (State.OPEN, True)


@pytest.mark.parametrize(
    ("state", "lasts", "error"),
    [
        ("half-open", None, "state: one of open, closed, auto, not 'half-open'"),
        ("open", 0, "for: with open or closed, more than 0 seconds"),
        ("closed", 1e12, "at most 10 years"),
        ("auto", 60, "for: with open or closed"),
    ],
)
def test_invalid_arguments_are_named(
    clock: FakeClock, state: str, lasts: float | None, error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        worker(clock).force(state, lasts=lasts)


def test_each_change_is_logged_once_with_how_long_it_lasts(
    clock: FakeClock, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = worker(clock, store), worker(clock, store)
    with caplog.at_level("INFO", logger="wsgigate.circuits"):
        one.force("open", lasts=600)
        clock.advance(0.5)
        waits(other)
        other.force("closed")
        clock.advance(0.5)
        call(one)
        one.force("auto")
    assert caplog.messages == [
        "Circuit 'orders' is forced open by the operator for 600 s",
        "Circuit 'orders' is forced closed by the operator until it is released",
        "Circuit 'orders' closed: released by the operator",
    ]
