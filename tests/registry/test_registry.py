"""The registry over a store that several workers share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.discovery.conftest import Clock
from tests.support.stores import Fickle, WrappedStore
from wsgigate.client.destinations import Destinations
from wsgigate.registry import Invalid, InvalidAddress, Listing, Registry, RegistryFull
from wsgigate.registry.storage import Index, RegistryKeys, ServiceIndex, Total
from wsgigate.rules.registry import LeaseRules, Registered, Status
from wsgigate.store import Change, R, Store, StoreError, update
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore

ONE = Registered("users", "u-1", "10.0.0.1", 3001)
TWO = Registered("users", "u-2", "10.0.0.2", 3001)
OTHER = Registered("orders", "o-1", "10.0.0.3", 3002)


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Whole(Fickle):
    """A store that decides and writes in one step."""

    def update(self, key: str, change: Change[R]) -> R:
        self.before("update", key)
        return update(self.store, key, change)


@pytest.fixture(params=["memory", "lmdb", "only swaps"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Fickle]:
    if request.param == "lmdb":
        kept = LmdbStore(tmp_path / "store", map_size=4 << 20, clock=clock)
        yield Whole(kept)
        kept.close()
    else:
        kind = Whole if request.param == "memory" else Fickle
        yield kind(MemoryStore(clock=clock))


@pytest.fixture
def registry(store: Fickle) -> Registry:
    return Registry(store)


def ids(listing: Listing) -> list[str]:
    return [entry.instance_id for entry in listing.instances]


def test_an_instance_is_discovered_by_other_workers(store: Fickle, clock: Clock) -> None:
    here, there = Registry(store), Registry(store)
    assert there.discover("users") == Listing((), 0, clock.now)
    kept = here.register(TWO)
    assert kept == replace(TWO, registered_at=clock.now, last_heartbeat=clock.now)
    here.register(ONE)
    here.register(OTHER)
    found = there.discover("users")
    assert ids(found) == ["u-1", "u-2"]  # in the order of their ids
    assert found.instances[1] == kept
    assert (found.now, found.age, found.preserving) == (clock.now, 0.0, False)
    assert {name: len(each) for name, each in there.services().items()} == {"orders": 1, "users": 2}
    assert there.names() == ("orders", "users")


def test_a_deregistered_instance_is_removed_for_all_workers(store: Fickle) -> None:
    here, there = Registry(store), Registry(store)
    here.register(ONE)
    here.register(TWO)
    assert ids(there.discover("users")) == ["u-1", "u-2"]
    assert here.deregister("users", "u-1")
    assert not there.deregister("users", "u-1")
    assert ids(there.discover("users")) == ["u-2"]
    assert there.deregister("users", "u-2")
    assert ids(here.discover("users")) == []
    assert here.services() == {}
    assert here.names() == ()


def test_a_heartbeat_renews_and_changes_no_version(registry: Registry, clock: Clock) -> None:
    registry.register(ONE)
    before = registry.version("users"), registry.version()
    clock.now += 29
    kept = registry.heartbeat("users", "u-1")
    assert kept is not None
    assert (kept.last_heartbeat, kept.registered_at) == (clock.now, clock.now - 29)
    assert (registry.version("users"), registry.version()) == before
    clock.now += 29
    [entry] = registry.discover("users", only_healthy=True).instances
    assert entry.last_heartbeat == clock.now - 29


def test_a_heartbeat_of_an_unknown_instance_registers_nothing(registry: Registry) -> None:  # H11
    assert registry.heartbeat("users", "u-1") is None
    registry.register(ONE)
    assert registry.heartbeat("users", "u-2") is None
    assert registry.heartbeat("orders", "u-1") is None
    assert ids(registry.discover("users")) == ["u-1"]


def test_a_heartbeat_is_one_write_of_few_bytes(clock: Clock) -> None:
    store = Counting(MemoryStore(clock=clock))
    registry = Registry(store)
    registry.register(ONE)
    store.calls.clear()
    registry.heartbeat("users", "u-1")
    assert store.calls == ["update registry/i/users/u-1"]


def test_discovery_is_one_read_while_nothing_changes(clock: Clock) -> None:
    store = Counting(MemoryStore(clock=clock))
    registry = Registry(store)
    for entry in (ONE, TWO):
        registry.register(entry)
    registry.discover("users")
    store.calls.clear()
    for _ in range(3):
        registry.discover("users", only_healthy=True)
    assert store.calls == ["get registry/s/users"] * 3


class Counting(WrappedStore):
    """A store that records its calls."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.calls: list[str] = []

    def before(self, call: str, key: str) -> None:
        self.calls.append(f"{call} {key}")

    def update(self, key: str, change: Change[R]) -> R:
        self.before("update", key)
        return update(self.store, key, change)


@pytest.mark.parametrize(
    "change", ["register", "replace", "deregister", "status", "heard of again"]
)
def test_each_change_of_a_listing_changes_its_version(
    store: Fickle, clock: Clock, change: str
) -> None:
    here, there = Registry(store), Registry(store)
    here.register(ONE)
    here.register(OTHER)
    before, all_before = there.version("users"), there.version()
    other = there.version("orders")
    if change == "register":
        here.register(TWO)
    elif change == "replace":
        here.register(replace(ONE, weight=5))
    elif change == "deregister":
        here.deregister("users", "u-1")
    elif change == "status":
        here.heartbeat("users", "u-1", Status.DRAINING)
    else:
        clock.now += 31
        here.heartbeat("users", "u-1")
    assert there.version("users") != before
    assert there.version() != all_before
    assert there.version("orders") == other
    assert there.discover("users").version == there.version("users")


def test_a_version_never_returns(registry: Registry, clock: Clock) -> None:
    seen: list[int] = []
    for _ in range(3):
        registry.register(ONE)
        seen.append(registry.version("users"))
        registry.deregister("users", "u-1")
        seen.append(registry.version("users"))
        clock.now += 3600  # by then its version is forgotten
        assert registry.version("users") == 0
    assert len(set(seen)) == 6
    clock.now -= 10_000
    registry.register(ONE)
    version = registry.version("users")
    clock.now -= 10_000  # set back
    registry.register(replace(ONE, weight=2))
    assert registry.version("users") > version


def test_registering_the_same_again_is_a_heartbeat(registry: Registry, clock: Clock) -> None:
    first = registry.register(ONE)
    version = registry.version("users")
    clock.now += 5
    again = registry.register(ONE)
    assert (again.registered_at, again.last_heartbeat) == (first.registered_at, clock.now)
    assert registry.version("users") == version
    replaced = registry.register(replace(ONE, host="10.0.0.9"))
    assert replaced.registered_at == clock.now
    assert registry.version("users") != version
    assert [each.host for each in registry.discover("users").instances] == ["10.0.0.9"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["a", "b", "c", "d"]),
        ({"only_healthy": True}, ["a", "b"]),
        ({"status": Status.DRAINING}, ["c"]),
        ({"status": Status.DRAINING, "only_healthy": True}, []),
        ({"tags": ["blue"]}, ["a", "b"]),
        ({"tags": ["blue", "canary"]}, ["b"]),
        ({"zone": "eu"}, ["a", "c"]),
        ({"version": "2"}, ["b"]),
        ({"metadata": {"team": "x"}}, ["a", "d"]),
        ({"metadata": {"team": "x", "size": "3"}}, ["d"]),
        ({"metadata": {"size": 3}}, ["d"]),
        ({"metadata": {"spare": "true"}}, ["b"]),
        ({"metadata": {"nothing": "None"}}, []),
        ({"metadata": {"deep": "{}"}}, []),
    ],
)
def test_discover_applies_the_filters(
    registry: Registry, clock: Clock, wanted: dict[str, object], found: list[str]
) -> None:
    all_ = [
        replace(ONE, tags=("blue",), zone="eu", metadata={"team": "x", "deep": {}}),
        replace(ONE, tags=("canary", "blue"), version="2", metadata={"spare": True}),
        replace(ONE, zone="eu", status=Status.DRAINING, metadata={"team": "y"}),
        replace(ONE, metadata={"team": "x", "size": 3}),
    ]
    registry.register(replace(all_.pop(), instance_id="d"))
    clock.now += 31  # it has been silent for too long
    for name, entry in zip("abc", all_, strict=True):
        registry.register(replace(entry, instance_id=name))
    assert ids(registry.discover("users", **wanted)) == found


def test_the_bounds_hold_over_all_workers(store: Fickle) -> None:  # H13
    bounds: dict[str, Any] = {"most_services": 3, "most_instances": 5, "most_of_one": 2}
    workers = [Registry(store, **bounds), Registry(store, **bounds)]
    kept: list[str] = []
    for n in range(200):
        entry = replace(ONE, service=f"s{n % 20}", instance_id=f"i{n}")
        try:
            workers[n % 2].register(entry)
        except RegistryFull:
            continue
        kept.append(f"{entry.service}/{entry.instance_id}")
    assert kept == ["s0/i0", "s1/i1", "s2/i2", "s0/i20", "s1/i21"]
    found = workers[0].services()
    assert [f"{name}/{each.instance_id}" for name in found for each in found[name]] == sorted(kept)
    assert sorted(workers[0].names()) == ["s0", "s1", "s2"]
    workers[0].register(replace(ONE, service="s0", instance_id="i0", weight=3))  # not one more
    workers[1].deregister("s0", "i0")
    workers[0].register(replace(ONE, service="s0", instance_id="new"))
    with pytest.raises(RegistryFull, match="5 instances in all"):
        workers[1].register(replace(ONE, service="s2", instance_id="new"))
    with pytest.raises(RegistryFull, match="3 services"):
        workers[1].register(replace(ONE, service="s4", instance_id="new"))


def test_a_rejected_registration_writes_nothing(store: Fickle) -> None:
    registry = Registry(store, most_of_one=1)
    registry.register(ONE)
    before = sorted(store.items(""))
    with pytest.raises(RegistryFull, match="1 instances"):
        registry.register(TWO)
    for wrong in (replace(TWO, host="169.254.169.254"), replace(TWO, host="nowhere.invalid")):
        with pytest.raises(InvalidAddress) as refused:
            registry.register(wrong)
        assert refused.value.field == "host"
    after = sorted(store.items(""))
    assert [key for key, _ in after] == [key for key, _ in before]
    assert registry.discover("users").version == registry.version("users")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (replace(ONE, service="../x"), "serviceName"),
        (replace(ONE, instance_id="a/b"), "instanceId"),
        (replace(ONE, host="127.1"), "host"),
    ],
)
def test_a_malformed_name_never_becomes_a_key(
    registry: Registry, wrong: Registered, field: str
) -> None:
    with pytest.raises(Invalid) as found:
        registry.register(wrong)
    assert found.value.field == field
    assert not registry.deregister(wrong.service, wrong.instance_id)
    assert registry.heartbeat(wrong.service, wrong.instance_id) is None
    assert registry.discover("../x").instances == ()
    assert registry.version("a/b") == 0
    assert registry.wait("a/b", 5, 9.0) == 0


def test_a_registration_beyond_a_bound_leaves_no_service_name(store: Fickle) -> None:
    registry = Registry(store, most_instances=1)
    registry.register(ONE)
    with pytest.raises(RegistryFull, match="1 instances in all"):
        registry.register(OTHER)
    assert registry.names() == ("users",)


def test_an_instance_that_registers_during_its_removal_stays_listed(store: Fickle) -> None:
    registry = Registry(store)
    registry.register(ONE)
    index = Index(store, RegistryKeys("registry/"), 1000, 500, 20_000)
    index.remove("users", "u-1")  # as if its entry had been gone a moment ago
    assert ids(registry.discover("users")) == ["u-1"]
    assert registry.names() == ("users",)
    assert index.total().instances == 1


def test_a_host_name_that_resolves_to_a_forbidden_address_later_is_rejected(store: Fickle) -> None:
    addresses = ["10.0.0.5"]
    lookup = lambda host, port, **_: [(0, 0, 0, "", (each, port)) for each in addresses]  # noqa: E731
    registry = Registry(store, destinations=Destinations(lookup=lookup))
    named = replace(ONE, host="users.internal")
    registry.register(named)
    addresses[:] = ["169.254.169.254"]
    with pytest.raises(InvalidAddress):
        registry.register(named)


def test_cached_listings_are_returned_with_their_age_during_a_store_outage(store: Fickle) -> None:
    monotonic = Clock()
    registry = Registry(store, clock=monotonic)
    registry.register(ONE)
    registry.discover("users")
    registry.names()
    store.broken = True
    monotonic.now += 7
    found = registry.discover("users", only_healthy=True)
    assert ids(found) == ["u-1"]
    assert found.age == 7.0
    assert list(registry.services()) == ["users"]
    with pytest.raises(StoreError):
        registry.discover("orders")
    for change in (
        lambda: registry.register(ONE),
        lambda: registry.heartbeat("users", "u-1"),
        lambda: registry.deregister("users", "u-1"),
    ):
        with pytest.raises(StoreError):
            change()
    store.broken = False
    assert registry.discover("users").age == 0.0


def test_a_damaged_entry_is_omitted(registry: Registry, store: Fickle) -> None:
    registry.register(ONE)
    registry.register(TWO)
    raw, _ = store.get("registry/i/users/u-1")
    store.swap("registry/i/users/u-1", raw, b"rubbish", 60)
    registry.heartbeat("users", "u-2", Status.STARTING)
    assert ids(registry.discover("users")) == ["u-2"]
    assert registry.heartbeat("users", "u-1") is None


def test_unknown_services_are_not_cached(store: Fickle) -> None:
    registry = Registry(store, most_services=3)
    for n in range(3):
        registry.register(replace(ONE, service=f"s{n}"))
    for n in range(100):
        registry.discover(f"s{n}")
    assert set(registry.known()) == {"s0", "s1", "s2"}


class Then(Fickle):
    """A store that calls a function just after one of the writes."""

    def __init__(self, store: Store, number: int, what: Callable[[], object]) -> None:
        super().__init__(store)
        self._left, self._what = number, what

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        done = super().swap(key, old, new, ttl)
        self._left -= 1
        if self._left == 0:
            self._what()
        return done


@pytest.mark.parametrize("number", range(1, 12))
@pytest.mark.parametrize("leaving", [True, False], ids=["leaves", "comes"])
def test_concurrent_changes_of_an_instance_leave_a_consistent_index(
    store: Fickle, number: int, leaving: bool
) -> None:
    """Between any two writes of one process another one deregisters or registers it."""
    there = Registry(store)

    def meanwhile() -> None:
        if leaving:
            there.deregister("users", "u-1")
        else:
            there.register(ONE)

    here = Registry(Then(store, number, meanwhile))
    if leaving:
        here.register(ONE)
    else:
        there.register(ONE)
        here.deregister("users", "u-1")
    known = store.get("registry/i/users/u-1")[0] is not None
    assert there.names() == (("users",) if known else ())
    assert ServiceIndex.read(store.get("registry/s/users")[0]).ids == (("u-1",) if known else ())
    assert Total.read(store.get("registry/all")[0]).instances == (1 if known else 0)
    fresh = Registry(store)
    assert ids(fresh.discover("users")) == (["u-1"] if known else [])


def test_a_concurrent_registration_and_removal_leaves_a_consistent_index(store: Fickle) -> None:
    here, there = Registry(store), Registry(store)  # H20

    def come_and_go(registry: Registry) -> None:
        for _ in range(60):
            registry.register(ONE)
            registry.deregister("users", "u-1")

    threads = [threading.Thread(target=come_and_go, args=(each,)) for each in (here, there)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert here.discover("users").instances == ()
    assert [key for key, _ in store.items("registry/i/")] == []
    assert here.names() == ()
    here.register(ONE)
    assert ids(there.discover("users")) == ["u-1"]


@pytest.mark.parametrize(
    "bounds", [{"most_services": 0}, {"most_instances": 0}, {"most_of_one": 501}]
)
def test_bounds_beyond_the_limits_of_a_store_are_rejected(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bounds))):
        Registry(MemoryStore(), **bounds)


def test_the_longest_names_of_all_fit_into_the_store(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store", map_size=16 << 20)
    registry = Registry(store)
    for n in range(500):
        registry.register(replace(ONE, service="s" * 63, instance_id=f"{n:03}".rjust(128, "i")))
    assert len(registry.discover("s" * 63).instances) == 500
    store.close()


def test_two_registries_in_one_store_are_separate(store: Fickle) -> None:
    one, two = Registry(store, prefix="a/"), Registry(store, prefix="b/", rules=LeaseRules())
    one.register(ONE)
    assert two.services() == {}
    assert two.version() == 0
