"""Instances with a longer lease than the rules'."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.discovery.conftest import Clock
from wsgigate.registry import Registry
from wsgigate.rules.registry import Evictions, LeaseRules, Registered, evictions
from wsgigate.store.memory import MemoryStore

RULES = LeaseRules(heartbeat=10, unhealthy_after=30, remove_after=90, preserve=1.0)

ENTRY = Registered("users", "a", "10.0.0.5", 80)


@pytest.mark.parametrize(
    ("lease", "unhealthy_after", "remove_after"),
    [(None, 30, 90), (5.0, 30, 90), (30.0, 30, 90), (90.0, 90, 150), (3600.0, 3600, 3660)],
)
def test_a_lease_is_never_shorter_than_the_rules(
    lease: float | None, unhealthy_after: float, remove_after: float
) -> None:
    entry = replace(ENTRY, lease=lease).heard(1000.0)
    assert entry.healthy(1000.0 + unhealthy_after, RULES)
    assert not entry.healthy(1000.1 + unhealthy_after, RULES)
    assert evictions([entry], 1000.0 + remove_after, RULES, Evictions())[0] == ()
    assert evictions([entry], 1000.1 + remove_after, RULES, Evictions())[0] == (entry,)


def test_a_lease_is_kept_in_the_store() -> None:
    for lease in (None, 90.0):
        entry = replace(ENTRY, lease=lease)
        assert Registered.from_bytes(entry.to_bytes()) == entry


def test_an_instance_is_silent_after_its_own_lease() -> None:
    rules = LeaseRules(preserve=0.5)
    entries = [
        replace(ENTRY, instance_id=f"{n}", lease=lease).heard(0.0)
        for n, lease in enumerate([None, 600.0, 600.0, 600.0])
    ]
    assert evictions(entries, 100.0, rules, Evictions())[0] == (entries[0],)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_registry_evicts_each_instance_after_its_own_lease(clock: Clock) -> None:
    registry = Registry(MemoryStore(clock=clock), rules=RULES)
    registry.register(replace(ENTRY, instance_id="short"))
    registry.register(replace(ENTRY, instance_id="long", lease=90.0))
    there: dict[float, list[tuple[str, bool]]] = {}
    for _ in range(160):
        clock.now += 1
        registry.expiry.step()
        listing = registry.discover("users")
        there[clock.now - 1_000_000.0] = [
            (entry.instance_id, entry.healthy(listing.now, RULES)) for entry in listing.instances
        ]
    assert there[30] == [("long", True), ("short", True)]
    assert there[31] == [("long", True), ("short", False)]
    assert there[90] == [("long", True), ("short", False)]
    assert there[91] == [("long", False)]
    assert there[150] == [("long", False)]
    assert there[151] == []


def test_a_heartbeat_in_time_changes_no_version(clock: Clock) -> None:
    registry = Registry(MemoryStore(clock=clock), rules=RULES)
    registry.register(replace(ENTRY, lease=90.0))
    version = registry.version("users")
    clock.now += 60
    assert registry.heartbeat("users", "a") is not None
    assert registry.version("users") == version
    clock.now += 60
    registry.register(replace(ENTRY, lease=90.0))
    assert registry.version("users") == version
    clock.now += 91
    assert registry.heartbeat("users", "a") is not None
    assert registry.version("users") != version
