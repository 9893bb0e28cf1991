"""The watch of a source: updates of the pool, errors, logs and cached instances."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from tests.support.stores import Fickle
from tests.support.threads import started
from tests.support.waiting import until
from wsgigate.client.destinations import CombinedDestinations, Destinations
from wsgigate.coordination.leader import LogLeader
from wsgigate.discovery import Instance
from wsgigate.discovery.sources import Found, SourceError
from wsgigate.discovery.sources.file import Static
from wsgigate.discovery.watcher import InstanceCache, Watch, Watcher
from wsgigate.proxy.pool import Pool
from wsgigate.store import Store
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock

A, B, C = (f"http://10.0.0.{number}:8000" for number in (1, 2, 3))
NEVER = threading.Event()


def made(*urls: str) -> tuple[Instance, ...]:
    return tuple(Instance(url) for url in urls)


class Told:
    """A source that says what it is told to."""

    name = "told"

    def __init__(self, *urls: str) -> None:
        self.says: Any = Found(made(*urls), 7.0)
        self.closed = 0
        self.finds = 0

    def find(self, stopping: threading.Event) -> Found:
        self.finds += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def source() -> Told:
    return Told(A, B)


@pytest.fixture
def pool() -> Pool:
    return Pool("users", [])


@pytest.fixture
def watch(pool: Pool, source: Told, clock: FakeClock) -> Watch:
    return Watch(pool, source, clock=clock, random=lambda: 1.0)


def urls(pool: Pool) -> list[str]:
    return [instance.url for instance in pool.instances]


def test_the_pool_has_the_instances_of_the_source(watch: Watch, pool: Pool, source: Told) -> None:
    assert watch.step(NEVER) == 7.0
    assert urls(pool) == [A, B]
    source.says = Found(made(B, C), 9.0)
    assert watch.step(NEVER) == 9.0
    assert urls(pool) == [B, C]


def test_removed_instances_are_forgotten_once(source: Told, pool: Pool) -> None:
    gone: list[str] = []
    watch = Watch(pool, source, forget=gone.append)
    watch.step(NEVER)
    source.says = Found(made(B, C), 0.0)
    watch.step(NEVER)
    watch.step(NEVER)
    assert gone == [A]


def test_a_failing_source_leaves_the_pool_unchanged(
    watch: Watch, pool: Pool, source: Told, clock: FakeClock
) -> None:
    watch.step(NEVER)
    source.says = SourceError("the connection was refused")
    assert [watch.step(NEVER) for _ in range(4)] == [0.5, 1.0, 2.0, 4.0]
    assert urls(pool) == [A, B]
    clock.advance(100)
    assert watch.status() == {
        "source": "told",
        "instances": 2,
        "age": 100.0,
        "error": "the connection was refused",
    }
    source.says = Found(made(A), 1.0)
    watch.step(NEVER)
    assert watch.status() == {"source": "told", "instances": 1, "age": 0.0}
    source.says = SourceError("again")
    assert watch.step(NEVER) == 0.5  # from the beginning


def test_an_unexpected_exception_of_a_source_does_not_end_the_watch(
    watch: Watch, pool: Pool, source: Told, caplog: pytest.LogCaptureFixture
) -> None:
    watch.step(NEVER)
    source.says = ZeroDivisionError()
    assert watch.step(NEVER) == 0.5
    assert urls(pool) == [A, B]
    assert watch.status()["error"] == "it failed"
    assert "ZeroDivisionError" in caplog.text


def test_a_source_may_set_the_pause_after_an_error(watch: Watch, source: Told) -> None:
    source.says = SourceError("half of a file", again_in=0.25)
    assert [watch.step(NEVER) for _ in range(3)] == [0.25] * 3


def test_no_age_is_reported_for_a_source_that_never_answered(watch: Watch, source: Told) -> None:
    source.says = SourceError("no")
    watch.step(NEVER)
    assert watch.status() == {"source": "told", "instances": 0, "age": None, "error": "no"}


def test_an_empty_answer_empties_the_pool_only_when_it_lasts(
    watch: Watch, pool: Pool, source: Told, clock: FakeClock
) -> None:
    watch.step(NEVER)
    source.says = Found((), 50.0)
    assert watch.step(NEVER) == 1.0  # it is looked into
    assert source.closed == 1
    assert urls(pool) == [A, B]
    assert "not confirmed yet" in watch.status()["error"]
    clock.advance(30)
    assert watch.step(NEVER) == 50.0
    assert urls(pool) == []
    assert "error" not in watch.status()


def test_an_empty_answer_that_is_certain_empties_it_at_once(
    watch: Watch, pool: Pool, source: Told
) -> None:
    watch.step(NEVER)
    source.says = Found((), 1.0, certain=True)
    watch.step(NEVER)
    assert urls(pool) == []


def test_an_answer_with_an_error_keeps_the_age(
    watch: Watch, pool: Pool, source: Told, clock: FakeClock
) -> None:
    watch.step(NEVER)
    clock.advance(10)
    source.says = Found(made(C), 1.0, trouble="no name server has an answer")
    watch.step(NEVER)
    assert urls(pool) == [C]
    assert watch.status()["age"] == 10.0
    assert watch.status()["error"] == "no name server has an answer"


def test_instances_at_forbidden_addresses_are_omitted(
    pool: Pool, source: Told, caplog: pytest.LogCaptureFixture
) -> None:
    source.says = Found(
        made(
            A,
            "http://169.254.169.254",
            "http://[::ffff:169.254.169.254]:80",
            "http://93.184.216.34",
            "http://metadata.internal",  # a name is looked at when it is connected to
            "http+unix://%2Frun%2Fdocker.sock",
        ),
        1.0,
    )
    watch = Watch(pool, source, check=Destinations().check)
    watch.step(NEVER)
    assert urls(pool) == [A, "http://metadata.internal"]
    assert watch.status()["refused"] == 4
    assert "169.254.169.254" in caplog.text


def test_the_port_that_a_url_does_not_name_is_checked_too(pool: Pool) -> None:
    asked: list[tuple[IPv4Address | IPv6Address, int]] = []
    source = Told("http://10.0.0.1", "https://10.0.0.1", "http://10.0.0.1:81")
    watch = Watch(pool, source, check=lambda *place: asked.append(place))
    watch.step(NEVER)
    assert [port for _, port in asked] == [80, 443, 81]


def test_the_same_error_is_logged_once_a_minute(
    watch: Watch, source: Told, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    source.says = SourceError("no")
    for _ in range(3):
        watch.step(NEVER)
    clock.advance(61)
    watch.step(NEVER)
    assert [record.getMessage() for record in caplog.records] == [
        "The instances of 'users' stay unchanged: no"
    ] * 2


def test_added_and_removed_instances_are_logged(
    watch: Watch, source: Told, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    watch.step(NEVER)
    source.says = Found(made(B, C), 0.0)
    watch.step(NEVER)
    source.says = Found((), 0.0, certain=True)
    watch.step(NEVER)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    a, b, c = (instance.address for instance in made(A, B, C))
    assert told == [
        ("INFO", f"Instances of 'users': 2 added: {a}, {b}; there are 2 now"),
        ("INFO", f"Instances of 'users': 1 added: {c}; 1 removed: {a}; there are 2 now"),
        ("WARNING", f"Instances of 'users': 2 removed: {b}, {c}; there are 0 now"),
    ]


def test_the_recovery_of_a_source_is_logged(
    watch: Watch, source: Told, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    watch.step(NEVER)
    before, source.says = source.says, SourceError("no\n[INFO] all is well")
    watch.step(NEVER)
    clock.advance(12)
    watch.step(NEVER)
    source.says = before
    watch.step(NEVER)
    watch.step(NEVER)
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == [
        "The instances of 'users' stay unchanged: no\\n[INFO] all is well",
        "The source of 'users' is available again after 12 s",
    ]


def test_one_worker_of_a_machine_logs_events_that_all_observe(
    source: Told, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    speakers = [LogLeader(store), LogLeader(store)]
    watches = [Watch(Pool("users", ()), source, may_log=each.may_log) for each in speakers]
    for watch in watches:
        watch.step(NEVER)
    source.says = Found(made(B), 0.0)
    for watch in reversed(watches):
        watch.step(NEVER)
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        f"Instances of 'users': 2 added: {', '.join(each.address for each in made(A, B))}",
        f"Instances of 'users': 1 removed: {made(A)[0].address}",
    ]
    speakers[0].stop()
    assert speakers[1].may_log()


def test_a_service_whose_instances_flap_does_not_flood_the_log(
    watch: Watch, source: Told, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for number in range(200):
        source.says = Found(made(A, B) if number % 2 else made(A), 0.0)
        watch.step(NEVER)
        clock.advance(0.1)
    assert len(caplog.records) < 20
    source.says = Found(made(A, B, C), 0.0)
    watch.step(NEVER)
    for _ in range(3):
        clock.advance(7)
        watch.step(NEVER)
    assert "there are 3 now" in caplog.records[-1].getMessage()


@pytest.fixture(params=["memory", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened: Store = MemoryStore() if request.param == "memory" else LmdbStore(tmp_path / "db")
    yield opened
    opened.close()


def test_a_worker_started_while_the_source_fails_uses_cached_instances(
    store: Store, source: Told, clock: FakeClock
) -> None:
    Watch(Pool("users", []), source, kept=InstanceCache(store, "i/users", "told")).step(NEVER)
    source.says = SourceError("no")
    late = Pool("users", [])
    watch = Watch(late, source, kept=InstanceCache(store, "i/users", "told"), clock=clock)
    watch.recall()
    watch.step(NEVER)
    assert urls(late) == [A, B]
    assert watch.status()["age"] is not None
    other = Pool("users", [])
    Watch(other, source, kept=InstanceCache(store, "i/users", "dns:users:80")).recall()
    assert urls(other) == []  # that was said by another source


def test_a_worker_started_while_store_and_source_fail_reads_the_cache_later(
    source: Told, clock: FakeClock
) -> None:
    store = Fickle(MemoryStore())
    Watch(Pool("users", []), source, kept=InstanceCache(store, "i/users", "told")).step(NEVER)
    source.says = SourceError("no")
    store.broken = True
    late = Pool("users", [])
    watch = Watch(late, source, kept=InstanceCache(store, "i/users", "told"), clock=clock)
    watch.recall()
    watch.step(NEVER)
    assert urls(late) == []
    store.broken = False
    watch.step(NEVER)
    assert urls(late) == [A, B]


def test_weights_and_tiers_are_cached(store: Store) -> None:
    kept = InstanceCache(store, "i/users", "told")
    assert kept.recall() is None
    instances = (Instance(A, 3), Instance(B, 0, 2))
    kept.keep(instances)
    recalled = kept.recall()
    assert recalled is not None
    assert recalled.instances == instances
    assert 0 <= recalled.age < 60


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b'["told", 1]', b'["told",1,[["ftp://a",1]]]', b"\xff"]
)
def test_a_damaged_cache_entry_is_ignored(raw: bytes) -> None:
    store = MemoryStore()
    store.swap("i/users", None, raw, 60)
    assert InstanceCache(store, "i/users", "told").recall() is None


def test_a_list_too_long_for_the_store_is_not_cached(store: Store) -> None:
    kept = InstanceCache(store, "i/users", "told")
    kept.keep([Instance(f"http://10.0.{n // 250}.{n % 250}:8000") for n in range(5000)])
    assert kept.recall() is None


def test_cached_instances_at_forbidden_addresses_are_omitted() -> None:
    store = MemoryStore()
    kept = InstanceCache(store, "i/users", "told")
    kept.keep(made(A, "http://169.254.169.254"))
    pool = Pool("users", [])
    Watch(pool, Told(), check=Destinations().check, kept=kept).recall()
    assert urls(pool) == [A]


def test_a_failing_store_leaves_the_pool_unchanged(
    pool: Pool, source: Told, caplog: pytest.LogCaptureFixture
) -> None:
    store = Fickle(MemoryStore())
    store.broken = True
    watch = Watch(pool, source, kept=InstanceCache(store, "i/users", "told"))
    watch.recall()
    watch.step(NEVER)
    assert urls(pool) == [A, B]
    assert "cannot be read" in caplog.text
    assert "cannot be written" in caplog.text


def test_an_unchanged_list_is_cached_once_a_minute(
    pool: Pool, source: Told, clock: FakeClock
) -> None:
    class Counting(InstanceCache):
        times = 0

        def keep(self, instances: Any, networks: Any = None) -> None:
            self.times += 1

    kept = Counting(MemoryStore(), "i/users", "told")
    watch = Watch(pool, source, kept=kept, clock=clock)
    for _ in range(10):
        watch.step(NEVER)
        clock.advance(10)
    assert kept.times == 2


class Waiting(Told):
    """A source that waits, once it has answered, until it is told to stop."""

    def find(self, stopping: threading.Event) -> Found:
        if self.finds:
            stopping.wait()
        return super().find(stopping)

    def close(self) -> None:
        super().close()
        self.finds = 0


def test_start_waits_for_the_first_answer() -> None:
    pools = [Pool(name, []) for name in ("users", "orders")]
    sources = [Waiting(A), Waiting(B)]
    watcher = Watcher([Watch(*pair) for pair in zip(pools, sources, strict=True)])
    watcher.start(wait=10.0)
    watcher.start()
    assert [urls(pool) for pool in pools] == [[A], [B]]
    assert watcher.status()["orders"]["instances"] == 1
    watcher.stop(30)
    assert [source.closed for source in sources] == [1, 1]
    until(lambda: not _threads())
    watcher.start(wait=10.0)  # and again
    watcher.stop(30)
    assert [source.closed for source in sources] == [2, 2]
    until(lambda: not _threads())


def test_start_waits_for_a_bounded_time() -> None:
    source = Waiting()
    source.finds = 1
    watcher = Watcher([Watch(Pool("users", []), source)])
    watcher.start(wait=0.01)
    watcher.stop(30)
    assert source.closed == 1


def test_a_forked_worker_has_threads_of_its_own() -> None:
    pool = Pool("users", [])
    watcher = Watcher([Watch(pool, Static([A]))])
    watcher.start(wait=10.0)
    pid = os.fork()
    if pid == 0:
        watcher.start(wait=10.0)
        alive = len(_threads())
        watcher.stop(30)
        os._exit(alive)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert len(_threads()) == 1
    watcher.stop(30)


def _threads() -> list[threading.Thread]:
    return started("wsgigate-discovery")


def test_the_allowed_networks_of_a_source_apply_at_once_and_after_a_restart() -> None:
    store, pool = MemoryStore(), Pool("users", [])
    source, vouched = Told(A, "http://10.9.0.1:8000"), CombinedDestinations(Destinations())
    source.says = source.says._replace(networks=("10.0.0.0/24",))
    kept = InstanceCache(store, "i/users", "told")
    Watch(pool, source, check=vouched.check, narrow=vouched.narrow, kept=kept).step(NEVER)
    assert pool.instances == made(A)
    late, again = Pool("users", []), CombinedDestinations(Destinations())
    Watch(late, source, check=again.check, narrow=again.narrow, kept=kept).recall()
    assert again.networks == ("10.0.0.0/24",)
    with pytest.raises(ValueError, match="outside of the allowed networks"):
        again.check(IPv4Address("127.0.0.1"), 80)  # what a name may resolve to by now


def test_zones_are_cached(store: Store) -> None:
    kept = InstanceCache(store, "i/users", "told")
    kept.keep([Instance(A, zone="eu-1a"), Instance(B)])
    recalled = kept.recall()
    assert recalled is not None
    assert [each.zone for each in recalled.instances] == ["eu-1a", ""]
