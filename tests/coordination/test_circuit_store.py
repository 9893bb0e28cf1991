"""A circuit while its store fails or loses its values, and what it logs."""

from __future__ import annotations

import logging
from typing import TypeVar

import pytest

from tests.coordination.circuits import RULES, break_it, call, waits, worker
from tests.support.logs import silence
from wsgigate.coordination.circuit import Circuit
from wsgigate.rules.circuit import State
from wsgigate.store import Change, StoreError
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock

R = TypeVar("R")

_silent = silence("wsgigate.circuits")


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=lambda: clock() + 86_400 * 365)  # not the workers' own clock


class Flaky(MemoryStore):
    """A store that fails while *down* is set."""

    down = False
    asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.down:
            raise StoreError("the store is down")

    def get(self, key: str) -> tuple[bytes | None, float]:
        self._ask()
        return super().get(key)

    def update(self, key: str, change: Change[R]) -> R:
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


def test_a_failing_store_is_read_once_per_interval(clock: FakeClock) -> None:
    store = Flaky(clock=clock)
    store.down = True
    circuit = worker(clock, store)
    break_it(circuit)
    for _ in range(100):
        waits(circuit)
    assert store.asked == 1


def test_a_verdict_made_during_an_outage_is_shared_afterwards(clock: FakeClock) -> None:
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


def test_a_circuit_stays_open_when_the_store_loses_its_data(
    clock: FakeClock, store: MemoryStore
) -> None:
    circuit = worker(clock, store)
    break_it(circuit)
    assert store.swap("circuit/orders", store.get("circuit/orders")[0], None, 1)
    clock.advance(1)
    assert waits(circuit) == 4
    clock.advance(4)
    call(circuit)
    call(circuit)
    assert circuit.status().state is State.CLOSED


def test_a_store_clock_that_is_set_back_does_not_keep_a_circuit_open(clock: FakeClock) -> None:
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


def test_a_foreign_value_in_the_store_counts_as_a_closed_circuit(
    clock: FakeClock, store: MemoryStore
) -> None:
    assert store.swap("circuit/orders", None, b"garbage", 60)
    circuit = worker(clock, store)
    call(circuit)
    break_it(circuit)
    assert waits(circuit) == 5
    assert waits(worker(clock, store)) == 5


def test_changes_are_logged_and_calls_are_not(
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


def test_each_change_of_state_is_logged_once_by_all_workers_with_its_reason(
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


def test_the_recovery_of_the_store_is_logged(
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
def test_an_invalid_name_raises(name: str) -> None:
    with pytest.raises(ValueError, match="a circuit's name is 1 to 100 characters of one line"):
        Circuit(name)


@pytest.mark.parametrize("seconds", [0, -1, 61])
def test_an_interval_out_of_range_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="sync_interval is more than 0 s, at most 60"):
        Circuit("a", sync_interval=seconds)
