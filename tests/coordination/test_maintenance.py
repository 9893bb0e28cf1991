"""The maintenance switch, shared by all workers of a store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from wsgigate import MaintenanceSwitch
from wsgigate.coordination.maintenance import Notice
from wsgigate.store import StoreError
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock


class Failing(MemoryStore):
    fails = False

    def get(self, key: str) -> tuple[bytes | None, float]:
        if self.fails:
            raise StoreError("the store is down")
        return super().get(key)

    def update(self, key: str, change: Any) -> Any:
        if self.fails:
            raise StoreError("the store is down")
        return super().update(key, change)


def test_other_workers_see_a_change_at_their_next_read(clock: FakeClock) -> None:
    store = MemoryStore(clock=FakeClock(5000))
    one, other = (MaintenanceSwitch(store, staleness=0.5, clock=clock) for _ in range(2))
    assert other.notice(["gateway"]) is None
    assert one.notice(["gateway"]) is None
    one.on("gateway", message="Soon.")
    assert one.notice(["gateway"]) == (Notice(5000, None, "Soon."), 0)
    clock.advance(0.49)
    assert other.notice(["gateway"]) is None
    clock.advance(0.01)
    assert other.notice(["gateway"]) == (Notice(5000, None, "Soon."), 0)
    one.off("gateway")
    assert one.notice(["gateway"]) is None
    clock.advance(0.5)
    assert other.notice(["gateway"]) is None


def test_a_switch_applies_at_once_though_a_read_began_before_it(clock: FakeClock) -> None:
    """Another thread of the worker has read the old value, and is slow to note it."""

    class Slow(MemoryStore):
        def get(self, key: str) -> tuple[bytes | None, float]:
            found = super().get(key)
            if turns:
                turns.pop()()
            return found

    turns: list[Callable[[], None]] = []
    switch = MaintenanceSwitch(Slow(clock=clock), clock=clock)
    for change, out in (
        (lambda: switch.on("gateway"), True),
        (lambda: switch.off("gateway"), False),
    ):
        clock.advance(1)
        turns.append(change)
        switch.notice(["gateway"])
        assert (switch.notice(["gateway"]) is not None) is out


def test_maintenance_ends_by_the_clock_of_the_store(clock: FakeClock) -> None:
    stores = FakeClock(5000)
    switch = MaintenanceSwitch(MemoryStore(clock=stores), clock=clock)
    switch.on("service:orders", lasts=60)
    found = switch.notice(["service:orders"])
    assert found is not None
    assert found[1] == 60
    for moved in (stores, clock):
        moved.advance(59)
    assert switch.notice(["service:orders"]) is not None
    assert switch.status() == {"service:orders": Notice(5000, 5060, "")}
    for moved in (stores, clock):
        moved.advance(1)
    assert switch.notice(["service:orders"]) is None
    assert switch.status() == {}


def test_the_store_is_read_at_most_once_within_staleness(clock: FakeClock) -> None:
    reads: list[str] = []

    class Counting(MemoryStore):
        def get(self, key: str) -> tuple[bytes | None, float]:
            reads.append(key)
            return super().get(key)

    switch = MaintenanceSwitch(Counting(), name="shop", staleness=0.5, clock=clock)
    for _ in range(100):
        switch.notice(["gateway"])
    assert reads == ["maintenance/shop"]


def test_a_notice_does_not_apply_to_gateways_of_another_name(clock: FakeClock) -> None:
    store = MemoryStore()
    one, other = (MaintenanceSwitch(store, name=name, clock=clock) for name in ("a", "b"))
    one.on("gateway")
    assert other.notice(["gateway"]) is None


def test_while_the_store_fails_the_last_notices_apply(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = Failing()
    switch = MaintenanceSwitch(store, clock=clock)
    switch.on("gateway")
    assert switch.notice(["gateway"]) is not None
    store.fails = True
    with caplog.at_level(logging.ERROR, "wsgigate.maintenance"):
        for _ in range(3):
            clock.advance(1)
            assert switch.notice(["gateway"]) is not None
    assert switch.store_errors == 3
    assert caplog.text.count("cannot be read") == 1
    store.fails = False
    clock.advance(1)
    switch.look()
    assert caplog.messages[-1] == "Maintenance notices can be read again, after 3 s"
    store.fails = True
    with pytest.raises(StoreError):
        switch.off("gateway")
    with pytest.raises(StoreError):
        switch.status()


def test_without_any_read_all_scopes_are_in_service(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    switch = MaintenanceSwitch(BrokenStore(), clock=clock)
    assert switch.notice(["gateway"]) is None
    assert switch.store_errors == 1


def test_one_worker_logs_when_a_scope_goes_out_of_service_and_returns(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(clock=clock)
    one = MaintenanceSwitch(store, clock=clock)
    other = MaintenanceSwitch(store, clock=clock, may_log=lambda: False)
    operator = MaintenanceSwitch(store, clock=clock)  # the command line's, in another process
    with caplog.at_level(logging.INFO, "wsgigate.maintenance"):
        operator.on("gateway", lasts=60, message="Back at noon.")
        operator.on("service:orders")
        for worker in (one, other, one, other):
            worker.look()
        clock.advance(61)
        one.look()
        operator.off("service:orders")
        clock.advance(1)
        one.look()
    assert sorted(caplog.messages[:2]) == [
        "gateway is out of service for maintenance for 60 s: Back at noon.",
        "service:orders is out of service for maintenance",
    ]
    assert caplog.messages[2:] == [
        "gateway is back in service",
        "service:orders is back in service",
    ]


def test_invalid_settings_raise() -> None:
    with pytest.raises(ValueError, match="staleness: 0 to 1 second"):
        MaintenanceSwitch("memory:", staleness=2)
    with pytest.raises(ValueError, match="store: a store or the URL of one, not None"):
        MaintenanceSwitch(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scope: "):
        MaintenanceSwitch("memory:").on("orders")
