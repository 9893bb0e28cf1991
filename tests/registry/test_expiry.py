"""Lease expiry: one worker evicts for all, and absences of the registry do not count."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.discovery.conftest import Clock
from tests.support.stores import Fickle, WrappedStore
from tests.support.threads import started
from tests.support.waiting import until
from wsgigate.registry import Registry
from wsgigate.registry.storage import Index, Total
from wsgigate.rules.registry import LeaseRules, Registered, Status
from wsgigate.store import Store, StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore

ONE = Registered("users", "u-1", "10.0.0.1", 3001)


class Worker:
    """A registry as if in a process of its own, whose rounds are driven by hand."""

    def __init__(self, store: Fickle, rules: LeaseRules, clock: Clock) -> None:
        self.registry = Registry(store, rules=rules, clock=clock)
        self.sweeper = self.registry.expiry


class Fleet:
    """Workers over one store and one clock."""

    def __init__(self, store: Fickle, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.rules = LeaseRules()
        self.workers: list[Worker] = []

    def worker(self) -> Worker:
        self.workers.append(Worker(self.store, self.rules, self.clock))
        return self.workers[-1]

    def run(self, seconds: int, *alive: str, workers: list[Worker] | None = None) -> None:
        """Let *seconds* pass, with a round of each worker every second and the heartbeats of
        *alive* every ten."""
        for _ in range(seconds):
            self.clock.now += 1
            for worker in self.workers if workers is None else workers:
                worker.sweeper.step()
            if self.clock.now % 10 == 0:
                self.beat(*alive)

    def beat(self, *alive: str) -> None:
        for name in alive:
            service, _, instance_id = name.partition("/")
            self.workers[0].registry.heartbeat(service, instance_id)

    def seen(self, service: str = "users") -> dict[str, bool]:
        """Return the instances, each with whether it is healthy."""
        registry = self.workers[-1].registry
        found = registry.discover(service)
        return {
            each.instance_id: each.healthy(found.now, registry.rules) for each in found.instances
        }


@pytest.fixture(params=["memory", "lmdb"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    clock = Clock()
    if request.param == "memory":
        yield Fleet(Fickle(MemoryStore(clock=clock)), clock)
        return
    store = LmdbStore(tmp_path / "store", map_size=4 << 20, clock=clock)
    yield Fleet(Fickle(store), clock)
    store.close()


def registered(registry: Registry, *names: str) -> None:
    for name in names:
        service, _, instance_id = name.partition("/")
        registry.register(replace(ONE, service=service, instance_id=instance_id))


def test_a_silent_instance_becomes_unhealthy_and_is_then_evicted(fleet: Fleet) -> None:
    here, there = fleet.worker(), fleet.worker()
    registered(here.registry, "users/a", "users/b", "users/c")
    others = ("users/a", "users/b")
    fleet.run(30, *others)
    assert fleet.seen() == {"a": True, "b": True, "c": True}
    before = there.registry.version("users")
    fleet.run(2, *others)
    assert fleet.seen() == {"a": True, "b": True, "c": False}
    unhealthy = there.registry.version("users")
    assert unhealthy != before  # whoever waits hears of it
    fleet.run(57, *others)
    assert fleet.seen() == {"a": True, "b": True, "c": False}
    assert there.registry.version("users") == unhealthy
    fleet.run(3, *others)
    assert fleet.seen() == {"a": True, "b": True}
    assert there.registry.version("users") != unhealthy
    assert there.registry.heartbeat("users", "c") is None


def test_a_heartbeat_makes_an_unhealthy_instance_healthy(fleet: Fleet) -> None:
    registry = fleet.worker().registry
    registered(registry, "users/a", "users/b")
    fleet.run(40, "users/a")
    assert fleet.seen() == {"a": True, "b": False}
    version = registry.version("users")
    registry.heartbeat("users", "b")
    assert fleet.seen() == {"a": True, "b": True}
    assert registry.version("users") != version


def test_entries_are_read_rarely_while_all_send_heartbeats(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = fleet.worker()
    registered(worker.registry, "users/a", "users/b")
    read: list[float] = []
    names = Index.names
    monkeypatch.setattr(Index, "names", lambda self: (read.append(fleet.clock.now), names(self))[1])
    fleet.run(300, "users/a", "users/b")
    assert len(read) <= 300 / 15


def test_self_preservation_keeps_most_instances_when_most_are_silent(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    registry = fleet.worker().registry  # H22
    registered(registry, *(f"users/{n:02}" for n in range(40)))
    with caplog.at_level(logging.WARNING, "wsgigate.registry"):
        fleet.run(88)
    assert len(fleet.seen()) == 40
    assert registry.discover("users").preserving
    told = [record.message for record in caplog.records]
    assert told[0] == "00 of users is unhealthy: no heartbeat for 31 s"
    assert told[20:] == [
        "20 more instances are unhealthy: no heartbeat",
        "Self-preservation active: 40 of 40 instances are silent, most of them are kept",
    ]
    fleet.run(30)
    assert len(fleet.seen()) == 34  # 15 % a minute
    alive = [f"users/{name}" for name in fleet.seen()]
    fleet.run(70, *alive)
    assert len(fleet.seen()) == 34
    assert all(fleet.seen().values())
    assert not registry.discover("users").preserving


def test_instances_that_fail_one_by_one_are_evicted(fleet: Fleet) -> None:  # H24
    registry = fleet.worker().registry
    registered(registry, *(f"users/{n}" for n in range(10)))
    fleet.run(5)
    for n in range(10):
        assert registry.deregister("users", f"{n}")
    fleet.run(5)
    assert fleet.seen() == {}
    assert not registry.discover("users").preserving


def test_another_worker_takes_over_from_a_dead_leader(fleet: Fleet) -> None:
    leader, other = fleet.worker(), fleet.worker()
    registered(leader.registry, "users/a", "users/b")
    fleet.run(10, "users/a", "users/b")
    assert leader.sweeper.leading
    assert not other.sweeper.leading
    fleet.run(100, "users/a", workers=[other])
    assert other.sweeper.leading
    assert fleet.seen() == {"a": True}


def test_a_leader_that_was_suspended_stops_leading(fleet: Fleet) -> None:
    leader, other = fleet.worker(), fleet.worker()
    registered(leader.registry, "users/a")
    fleet.run(3, "users/a")
    fleet.run(20, "users/a", workers=[other])
    leader.sweeper.step()
    assert not leader.sweeper.leading
    fleet.run(2, "users/a")
    assert other.sweeper.leading


class Meanwhile(Fickle):
    """A store in which other processes do something just before a write to one key, once.

    :ivar what: That, by key.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.what: dict[str, Callable[[], object]] = {}

    def before(self, call: str, key: str) -> None:
        if call == "swap" and key in self.what:
            self.what.pop(key)()
        super().before(call, key)


def test_a_heartbeat_during_the_eviction_keeps_the_instance(fleet: Fleet) -> None:
    fleet.store = meanwhile = Meanwhile(fleet.store)
    registry = fleet.worker().registry
    registered(registry, "users/a", "users/b")
    fleet.run(90, "users/a")

    def heartbeat() -> None:
        assert registry.heartbeat("users", "b") is not None

    meanwhile.what["registry/i/users/b"] = heartbeat
    version = registry.version("users")
    fleet.run(1)
    assert not meanwhile.what
    assert fleet.seen() == {"a": True, "b": True}
    fleet.run(20, "users/a", "users/b")
    assert fleet.seen() == {"a": True, "b": True}
    assert registry.version("users") != version  # that it is healthy again


def test_a_leader_stops_after_another_worker_has_led(fleet: Fleet) -> None:
    """It was suspended in the middle of a round for longer than its lease."""
    fleet.store = meanwhile = Meanwhile(fleet.store)
    leader, other = fleet.worker(), fleet.worker()
    registered(leader.registry, "users/a", "users/b")
    fleet.run(3, "users/a", "users/b")
    meanwhile.what["registry/swept"] = lambda: fleet.run(10, "users/a", "users/b", workers=[other])
    leader.sweeper.step()
    assert not meanwhile.what
    assert not leader.sweeper.leading
    assert other.sweeper.leading
    fleet.run(2, "users/a", "users/b")
    assert not leader.sweeper.leading


def test_evictions_of_the_current_minute_count_as_silent(fleet: Fleet) -> None:
    """15 % of 40 is 6: three go, then three of seven; the others stay until the minute ends."""
    registry = fleet.worker().registry
    alive = [f"users/{n:02}" for n in range(30)]
    first = [f"users/{n}" for n in (50, 51, 52)]
    later = [f"users/{n}" for n in range(60, 67)]
    registered(registry, *alive, *first, *later)
    fleet.run(20, *alive, *later)  # the first have been silent since 0, the others since 20
    fleet.run(72, *alive)
    assert len(fleet.seen()) == 37
    assert registry.discover("users").preserving
    fleet.run(20, *alive)
    assert len(fleet.seen()) == 34
    assert registry.discover("users").preserving
    fleet.run(37, *alive)
    assert len(fleet.seen()) == 34
    fleet.run(4, *alive)
    assert len(fleet.seen()) == 30  # of 34 four are few enough, in the next minute
    assert not registry.discover("users").preserving


@pytest.mark.parametrize("away", [60, 3600, 7 * 86_400])
def test_silence_does_not_count_while_the_registry_was_away(fleet: Fleet, away: int) -> None:
    registry = fleet.worker().registry  # all are killed, the machine sleeps, or the clock is set
    registered(registry, "users/a", "users/b", "users/dead")
    fleet.run(50, "users/a", "users/b")
    assert fleet.seen() == {"a": True, "b": True, "dead": False}
    version = registry.version("users")
    fleet.clock.now += away
    assert fleet.seen() == {"a": True, "b": True, "dead": False}  # before anybody looks after them
    fleet.workers.clear()
    registry = fleet.worker().registry
    assert fleet.seen() == {"a": True, "b": True, "dead": False}
    fleet.run(1)
    assert fleet.seen() == {"a": True, "b": True, "dead": False}
    assert registry.version("users") >= version
    fleet.run(12, "users/a")
    fleet.run(20, "users/a")
    assert fleet.seen() == {"a": True, "b": False, "dead": False}
    fleet.run(200, "users/a")
    assert fleet.seen() == {"a": True}


def test_an_instance_expires_although_the_clock_was_set_back(fleet: Fleet) -> None:  # H21
    registry = fleet.worker().registry
    registered(registry, "users/a", "users/b", "users/c")
    fleet.run(10, "users/a", "users/b", "users/c")
    fleet.clock.now -= 50_000
    fleet.run(5)
    assert fleet.seen() == {"a": True, "b": True, "c": True}
    fleet.run(100, "users/a", "users/b")
    assert fleet.seen() == {"a": True, "b": True}


def test_draining_instances_that_fall_silent_are_evicted(fleet: Fleet) -> None:
    registry = fleet.worker().registry
    registered(registry, "users/a", "users/b")
    registry.heartbeat("users", "b", Status.DRAINING)
    fleet.run(95, "users/a")
    assert fleet.seen() == {"a": True}


@pytest.mark.parametrize("step", range(1, 7))
def test_a_sweep_repairs_what_a_killed_process_left(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Register one, and let the process be killed before its write number *step*."""
    registry = fleet.worker().registry
    registered(registry, "users/a")
    fleet.run(2, "users/a")

    class Killed(BaseException):
        pass

    dying = Registry(Dying(fleet.store, step, Killed))
    try:
        dying.register(replace(ONE, service="orders", instance_id="o-1"))
        complete = True
    except Killed:
        complete = False
    fleet.workers.clear()
    registry = fleet.worker().registry
    fleet.clock.now += 6  # the lease of who led
    fleet.run(40, "users/a", "orders/o-1")
    known = {
        name: [each.instance_id for each in found] for name, found in registry.services().items()
    }
    there = registry.heartbeat("orders", "o-1") is not None
    assert known == {"users": ["a"], **({"orders": ["o-1"]} if there else {})}
    assert there or not complete
    assert Total.read(fleet.store.get("registry/all")[0]).instances == (2 if there else 1)
    registered(registry, "orders/o-1")
    assert [each.instance_id for each in registry.discover("orders").instances] == ["o-1"]


def test_a_new_leader_lists_entries_missing_from_the_index(fleet: Fleet) -> None:
    registry = fleet.worker().registry
    registered(registry, "users/a")
    lost = replace(ONE, service="orders", instance_id="o-1").heard(fleet.clock.now)
    fleet.store.swap("registry/i/orders/o-1", None, lost.to_bytes(), 60)
    assert fleet.seen("orders") == {}
    fleet.run(1)
    assert fleet.seen("orders") == {"o-1": True}
    assert registry.names() == ("orders", "users")


class Dying(WrappedStore):
    """A store whose process is killed before a certain write."""

    def __init__(self, store: Store, step: int, killed: type[BaseException]) -> None:
        super().__init__(store)
        self.left, self.killed = step, killed

    def before(self, call: str, key: str) -> None:
        self.left -= call == "swap"
        if self.left <= 0 and call == "swap":  # reads change nothing, and metrics read any registry
            raise self.killed


def test_no_lease_ends_while_the_store_fails(fleet: Fleet) -> None:
    worker = fleet.worker()
    registered(worker.registry, "users/a")
    fleet.run(5)
    fleet.store.broken = True
    with pytest.raises(StoreError):
        worker.sweeper.step()
    fleet.clock.now += 300
    fleet.store.broken = False
    fleet.run(3)
    assert fleet.seen() == {"a": True}  # nobody could have been heard of


def test_each_process_runs_a_thread_for_lease_expiry(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store", map_size=4 << 20)
    registry = Registry(store, rules=LeaseRules(0.05, 0.1, 0.2))
    registry.register(ONE)
    version = registry.version("users")
    registry.start()
    registry.start()  # it runs already
    try:
        for _ in range(12):
            if registry.discover("users").instances:
                version = registry.wait("users", version, 5)
        assert not registry.discover("users").instances
    finally:
        registry.stop()
    until(lambda: not started("wsgigate-registry"))
    registry.stop()
    store.close()


def test_one_worker_logs_registrations_and_evictions(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = fleet.worker().registry, fleet.worker().registry
    with caplog.at_level(logging.INFO, "wsgigate.registry"):
        registered(one, "users/a", "users/b")
        registered(other, "users/a")  # the same once more is no news
        fleet.run(35, "users/b")
        other.heartbeat("users", "a")
        other.heartbeat("users", "a", Status.DRAINING)
        fleet.run(100, "users/b")
        one.deregister("users", "b")
        other.deregister("users", "b")
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [(level, text.partition(" at ")[0]) for level, text in told] == [
        ("INFO", "a of users registered"),
        ("INFO", "b of users registered"),
        ("INFO", "This worker expires the leases of the registry for all workers"),
        ("WARNING", "a of users is unhealthy: no heartbeat for 31 s"),
        ("INFO", "a of users sends heartbeats again, after 35 s of silence"),
        ("INFO", "a of users is now DRAINING"),
        ("WARNING", "a of users is unhealthy: no heartbeat for 31 s"),
        ("WARNING", "a of users is removed: no heartbeat for 91 s"),
        ("INFO", "b of users deregistered"),
    ]


@pytest.mark.parametrize("away", [2, 5, 8, 10])
@pytest.mark.parametrize("leader", ["the same", "restarted", "another"])
def test_a_short_outage_does_not_count_as_silence(fleet: Fleet, away: int, leader: str) -> None:
    fleet.rules = LeaseRules(heartbeat=1, unhealthy_after=2, remove_after=4, preserve=1)
    registry = fleet.worker().registry
    registered(registry, "users/a", "users/b", "users/c")
    if leader == "another":
        fleet.workers[0].sweeper.step()
        fleet.worker()
    for _ in range(6):
        fleet.clock.now += 0.5
        fleet.beat("users/a", "users/b", "users/c")
        for worker in fleet.workers:
            worker.sweeper.step()
    before = fleet.clock.now
    fleet.clock.now += away  # nobody is there to be sent a heartbeat
    if leader == "restarted":
        fleet.workers.clear()
        fleet.worker()
    elif leader == "another":
        del fleet.workers[0]  # the same one was stopped, and continues
    assert fleet.seen() == {"a": True, "b": True, "c": True}, "before the first round"
    [worker] = fleet.workers
    while not worker.sweeper.leading or fleet.clock.now < before + away + 1:
        worker.sweeper.step()  # it leads once the lease of the old one is over
        assert fleet.seen() == {"a": True, "b": True, "c": True}
        fleet.clock.now += 0.5
    for _ in range(20):
        fleet.beat("users/a")
        fleet.clock.now += 0.5
        worker.sweeper.step()
    assert fleet.seen() == {"a": True}, "a silent instance is removed all the same"


def test_a_slow_round_does_not_count_as_an_absence(fleet: Fleet) -> None:
    registry = fleet.worker().registry
    registered(registry, "users/a", "users/b")
    for _ in range(40):  # of 5 s each, in which heartbeats come
        fleet.clock.now += 5
        fleet.beat("users/a")
        fleet.workers[0].sweeper.step()
    assert fleet.seen() == {"a": True}
