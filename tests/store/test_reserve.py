"""A full store still accepts the values that keep the gateway correct."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.objects import part
from wsgigate import Limiter
from wsgigate.coordination.circuit import Circuit, Permit, Rejection
from wsgigate.coordination.denylist import DenyList, identity
from wsgigate.coordination.maintenance import MaintenanceSwitch
from wsgigate.coordination.spent import SpentOnce
from wsgigate.discovery import Instance
from wsgigate.discovery.health import HealthChecker
from wsgigate.discovery.health_results import ThreadProber
from wsgigate.registry import Registry
from wsgigate.rules.circuit import CircuitRules, Outcome
from wsgigate.rules.health import CheckResult, Health, HealthCheck
from wsgigate.rules.registry import Registered
from wsgigate.store import COUNTERS, VITAL, Store, StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.lmdb_environment import RETRY_EVERY, Environment
from wsgigate.store.memory import MemoryStore
from wsgigate.store.open import Namespaced, OpenedStore

MEGABYTE = 1024 * 1024


def hello(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]


class Pool:
    def __init__(self, *urls):
        self.instances = tuple(Instance(url) for url in urls)
        self.marks = {}

    def mark(self, url, healthy):
        self.marks[url] = healthy


class Fleet:
    """Workers that check one instance, over one store."""

    def __init__(self, store, clock):
        self.clock = clock
        self.outcome = CheckResult(True, 200, "1.00ms")
        self.pools = [Pool("http://a"), Pool("http://a")]
        self.checkers = [
            HealthChecker(
                {"shop": pool},
                {"shop": HealthCheck("/")},
                store,
                ThreadProber(lambda *_: self.outcome, spawn=lambda work: work()),
                clock=clock,
                random=lambda: 0.5,
            )
            for pool in self.pools
        ]

    def run(self, seconds):
        for _ in range(round(seconds * 2)):
            self.clock.advance(0.5)
            for checker in self.checkers:
                checker.step()

    @property
    def marks(self):
        return [pool.marks for pool in self.pools]


@pytest.fixture(params=["memory", "lmdb"])
def store(request, folder, clock):
    if request.param == "memory":
        made: Store = MemoryStore(max_items=2000, clock=clock)
    else:
        made = LmdbStore(folder, map_size=MEGABYTE, clock=clock)
    yield made
    made.close()


def attack(store, most=30_000):
    """Have one client make up keys of a limiter until the store is full and beyond."""
    limiter = Limiter(
        hello, "100 per day", key="header:X-Api-Key", algorithm="fixed-window", store=store
    )
    client, refused = Client(limiter), 0
    for number in range(most):
        client.get("/", headers={"X-Api-Key": f"made-up-{number}"})
        if limiter.store_errors:
            refused += 1
            if refused == 100:
                break
    return limiter


def test_vital_values_have_room_in_a_full_store(store, clock):
    fleet = Fleet(store, clock)
    fleet.run(2)
    denied = DenyList(store, staleness=0)
    registry = Registry(store)
    switch = MaintenanceSwitch(store)
    attack(store)

    fleet.outcome = CheckResult(False, error="Unexpected content, and fifty bytes more than before")
    fleet.run(40)
    assert fleet.marks == [{"http://a": False}] * 2
    assert not any(checker.alone for checker in fleet.checkers)
    attack(store, 2000)
    fleet.outcome = CheckResult(True, 200, "1.00ms")
    fleet.run(25)
    assert fleet.marks == [{"http://a": True}] * 2

    denied.deny_jti("stolen", clock() + 60)
    assert denied.why_denied(identity(b"signed", {"jti": "stolen"}))

    for number in range(100):
        one = Registered("users", f"users-{number}", "10.0.0.1", 8000 + number)
        registry.register(one)
    assert len(registry.discover("users").instances) == 100

    switch.on("gateway", message="x" * 100)
    assert "gateway" in switch.status()


def flood(store):
    with suppress(StoreError):
        for number in range(6000):
            store.swap(f"limit/made-up/{number}", None, bytes(200), 3600)


@pytest.mark.parametrize("namespace", ["shop", "limit", "concurrency"])
def test_values_in_a_namespace_have_the_rank_of_their_kind(store, clock, namespace):
    opened = OpenedStore(store, namespace=namespace)
    once = SpentOnce(Namespaced(opened), "nonce")
    denied = DenyList(store, staleness=0, namespace=namespace)
    denied.deny_jti("stolen", clock() + 60)
    assert once.spend("before", seconds=60)
    flood(store)
    assert all(once.spend(str(number), seconds=60) for number in range(100))
    denied.deny_jti("another", clock() + 60)
    flood(store)
    assert not any(once.spend(value, seconds=60) for value in ("before", *map(str, range(100))))
    for jti in ("stolen", "another"):
        assert denied.why_denied(identity(b"signed", {"jti": jti}))


def test_counters_of_credentials_in_a_namespace_are_evicted(folder, clock):
    store = LmdbStore(folder, map_size=MEGABYTE, clock=clock)
    named = Namespaced(OpenedStore(store, namespace="shop"))
    fill(named, "limit/tokens/basic/")
    assert fill(store, "deny/", 1000) > 500, "for all of them counters went"
    store.close()


def test_a_circuit_opens_for_all_workers_in_a_full_store(store, clock):
    rules = CircuitRules(consecutive_failures=3)
    one, other = (Circuit("users", rules, store=store, clock=clock) for _ in range(2))
    attack(store)
    for _ in range(3):
        permit = one.admit()
        assert isinstance(permit, Permit)
        permit.done(Outcome.FAILED)
    clock.advance(2)
    assert isinstance(other.admit(), Rejection)


def fill(store, name, size=200):
    for number in range(100_000):
        try:
            store.swap(f"{name}{number}", None, bytes(size), 3600)
        except StoreError:
            return number
    raise AssertionError("it is never full")


def rewrite_for_ever(store, prefix):
    for number in itertools.count():
        store.update(f"{prefix}{number}", lambda old, now: (os.urandom(1000), 3600, None))


@pytest.mark.parametrize("prefix", VITAL)
def test_vital_values_use_the_reserve_of_a_full_store(folder, clock, prefix):
    store = LmdbStore(folder, map_size=MEGABYTE, clock=clock)
    counters = fill(store, "limit/made-up/")
    most = fill(store, prefix, 1000)
    assert most > 500, "for all of them counters went"
    assert len(list(store.items("limit/"))) < counters / 10
    assert len(list(store.items(prefix))) == most
    with pytest.raises(StoreError, match="full of values"):
        store.swap("limit/one-more", None, b"", 3600)
    assert (folder / "data.mdb").stat().st_size < 6 * MEGABYTE
    store.close()


def test_only_counters_are_evicted_for_vital_values(folder, clock):
    store = LmdbStore(folder, map_size=MEGABYTE, clock=clock)
    own = fill(store, "own/", 1000)
    vital = fill(store, "health/", 1000)
    assert vital >= 20, "it has room of its own"
    assert len(list(store.items("own/"))) == own
    clock.advance(RETRY_EVERY)
    assert store.swap("own/0", bytes(1000), None, 0)
    store.close()


def test_counters_of_requests_are_evicted_before_slots_in_flight(folder, clock):
    store = LmdbStore(folder, map_size=MEGABYTE, clock=clock)
    for number in range(100):
        store.swap(f"concurrency/{number}", None, bytes(100), 3600)
    fill(store, "limit/")
    for number in range(300):
        assert store.swap(f"registry/i/{number}", None, bytes(1000), 3600)
    assert len(list(store.items("concurrency/"))) == 100
    assert store.usage()["used"] < MEGABYTE * 9 / 8
    store.close()


def test_each_vital_value_costs_a_full_store_one_lookup(folder, clock):
    store = LmdbStore(folder, map_size=MEGABYTE, clock=clock)
    fill(store, "own/")
    fill(store, "deny/")
    sweeps = []
    environment: Any = part(Environment, store)
    environment.sweep = lambda txn, now, looked: sweeps.append(looked)
    for number in range(500):
        with pytest.raises(StoreError, match="full of values"):
            store.swap(f"deny/more/{number}", None, bytes(100), 3600)
    assert len(sweeps) <= 2
    store.close()


def test_a_reader_that_holds_all_pages_causes_an_error_and_no_endless_loop(folder, clock, pinned):
    store = LmdbStore(folder, map_size=MEGABYTE, clock=clock)
    fill(store, "limit/")
    reader = pinned()
    with pytest.raises(StoreError, match="full of values"):
        rewrite_for_ever(store, "health/")
    reader.kill()
    reader.wait()
    clock.advance(RETRY_EVERY)
    assert store.swap("health/last", None, b"x", 3600)
    store.close()


def test_the_memory_store_evicts_counters_first(clock):
    store = MemoryStore(max_items=100, clock=clock)
    for number in range(50):
        store.swap(f"health/{number}", None, b"", 5)  # nearer to their end than any counter
    for number in range(1000):
        store.swap(f"limit/{number}", None, b"", 3600)
    assert len(list(store.items("health/"))) == 50
    assert len(list(store.items("limit/"))) == 50
    for number in range(200):
        store.swap(f"registry/{number}", None, b"", 3600)
    assert list(store.items("limit/")) == []
    assert len(list(store.items(""))) == 100


def test_no_prefix_is_both_a_counter_and_vital():
    for one in COUNTERS:
        assert not any(one.startswith(other) or other.startswith(one) for other in VITAL)


@pytest.mark.parametrize(
    "outcome",
    [
        CheckResult(True, 200, "1.53ms"),
        CheckResult(True, 204, "12345.67ms"),
        CheckResult(False, error="Connection refused"),
        CheckResult(False, 503, "0.1ms", "Status 503"),
        CheckResult(False, 200, "x" * 40, "e" * 60),
    ],
)
def test_stored_results_have_one_length(outcome):
    health = Health(outcome.ok, 1795452955.698561, 1000, 1795452955.698561, outcome)
    raw = health.to_bytes()
    assert len(raw) == 256
    assert Health.from_bytes(raw) == health
