"""Health checks among workers: one asks, all know, and whoever asks may die or be late."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from wsgigate.discovery import Instance
from wsgigate.discovery.health import HealthChecker
from wsgigate.discovery.health_results import ThreadProber
from wsgigate.proxy.health_probe import Prober
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.backend import Backend, reply

if TYPE_CHECKING:
    from .conftest import Fleet

DOWN = CheckResult(False, error="Connection refused")
NOT_CHECKED = {"healthy": False, "error": "Not checked yet"}


class Marks:
    """A pool that tells when it is marked."""

    def __init__(self, url: str = "http://a") -> None:
        self.instances = (Instance(url),)
        self.marks: dict[str, bool] = {}
        self.marked = threading.Event()

    def mark(self, url: str, healthy: bool) -> None:
        self.marks[url] = healthy
        self.marked.set()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "health" in thread.name]


def test_nothing_is_known_asked_or_started_before_the_first_round(fleet: Fleet) -> None:
    checker = fleet.worker().checker
    assert fleet.network.asked == []
    assert list(fleet.store.items("")) == []
    assert threads() == []
    assert checker.status("shop") == NOT_CHECKED
    assert checker.all() == {}


def test_the_first_check_is_soon_and_decides_at_once(fleet: Fleet) -> None:
    worker = fleet.worker("http://a", "http://b")
    fleet.network.outcomes["http://b"] = DOWN
    fleet.run(3)
    assert sorted(fleet.network.asked) == ["http://a", "http://b"]
    assert worker.pools["shop"].marks == {"http://a": True, "http://b": False}


def test_the_status_is_told_for_people_and_programs(fleet: Fleet) -> None:
    checker = fleet.worker().checker
    fleet.run(1)
    told = {
        "healthy": True,
        "lastCheck": "1970-01-12T13:46:41.000Z",
        "responseTime": "1.00ms",
        "status": 200,
    }
    assert checker.status("shop") == told
    assert checker.all() == {"shop": told}
    assert checker.status("no such service") == {"healthy": True, "status": "No health check"}


def test_asking_for_the_status_does_not_read_the_store(fleet: Fleet) -> None:
    checker = fleet.worker().checker
    fleet.run(3)
    fleet.store.broken = True
    assert checker.status("shop")["healthy"] is True
    assert list(checker.all()) == ["shop"]


def test_of_several_workers_one_checks_and_all_mark_their_pools(fleet: Fleet) -> None:
    workers = [fleet.worker() for _ in range(8)]
    fleet.network.outcomes["http://a"] = DOWN
    fleet.run(5)
    assert fleet.network.asked == ["http://a"]
    assert [worker.pools["shop"].marks for worker in workers] == [{"http://a": False}] * 8
    assert [worker.checker.status("shop")["error"] for worker in workers] == [DOWN.error] * 8


def test_an_instance_is_not_asked_more_often_than_configured(fleet: Fleet) -> None:
    for _ in range(8):
        fleet.worker("http://a", "http://b")
    fleet.run(101)
    assert sorted(fleet.network.asked) == ["http://a"] * 11 + ["http://b"] * 11


def test_an_instance_changes_after_several_checks_in_a_row(fleet: Fleet) -> None:
    worker = fleet.worker()
    fleet.run(5)
    fleet.network.outcomes["http://a"] = DOWN
    fleet.run(20)
    assert worker.checker.status("shop") | {"lastCheck": ""} == {
        "healthy": True,
        "lastCheck": "",
        "responseTime": "N/A",
        "error": "Connection refused",
        "status": "N/A",
    }
    fleet.run(10)
    assert worker.pools["shop"].marks == {"http://a": False}
    fleet.network.outcomes.clear()
    fleet.run(10)
    assert worker.checker.status("shop")["error"] == "Recovering"
    fleet.run(10)
    assert worker.pools["shop"].marks == {"http://a": True}


def test_a_change_of_health_is_logged_once_with_its_reason(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.worker()
    fleet.worker()
    fleet.network.outcomes["http://a"] = DOWN
    with caplog.at_level(logging.INFO, "wsgigate.health"):
        fleet.run(35)
        fleet.network.outcomes.clear()
        fleet.run(35)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "This worker checks the health of instances for all"),
        ("WARNING", "a of 'shop' is unhealthy: Connection refused"),
        ("INFO", "a of 'shop' is healthy again, after 50 s"),
    ]


def test_when_the_leader_dies_another_goes_on_where_it_was(fleet: Fleet) -> None:
    first, second = fleet.worker(), fleet.worker()
    fleet.run(5)
    fleet.run(4.5, [second])
    assert len(fleet.network.asked) == 1  # the lease of the dead still lives
    fleet.run(3, [second])
    assert len(fleet.network.asked) == 2  # ten seconds after the first, not at once
    assert second.checker.status("shop")["healthy"] is True
    assert first.pools["shop"].marks == second.pools["shop"].marks


def test_who_leads_goes_on_leading(fleet: Fleet) -> None:
    first, second = fleet.worker(), fleet.worker()
    fleet.run(30)
    assert (first.checker._leading, second.checker._leading) == (True, False)


def test_a_stopped_leader_does_not_write_over_what_its_successor_found(fleet: Fleet) -> None:
    first, second = fleet.worker(), fleet.worker()
    first.hold = True
    fleet.run(1)
    assert len(first.pending) == 1
    fleet.network.outcomes["http://a"] = DOWN
    fleet.run(10, [second])  # the first one is stopped in the middle of its check
    assert second.checker.status("shop")["healthy"] is False
    found = dict(fleet.store.items("health/shop"))
    fleet.network.outcomes.clear()
    first.let_go()
    assert dict(fleet.store.items("health/shop")) == found


def test_nor_when_it_leads_again_by_the_time_its_check_ends(fleet: Fleet) -> None:
    first, second = fleet.worker(), fleet.worker()
    first.hold = True
    fleet.run(1)
    fleet.network.outcomes["http://a"] = DOWN
    fleet.run(9, [second])
    fleet.network.outcomes.clear()
    found = dict(fleet.store.items("health/shop"))
    second.checker._lease.release()
    first.checker._lead_at = fleet.clock.now
    first.checker.step()
    assert first.checker._leading
    first.let_go()
    assert dict(fleet.store.items("health/shop")) == found


def test_nor_does_it_write_before_its_successor_has(fleet: Fleet) -> None:
    first, second = fleet.worker(), fleet.worker()
    first.hold = second.hold = True
    fleet.run(1)
    fleet.run(10, [second])
    first.let_go()
    assert list(fleet.store.items("health/shop")) == []
    second.let_go()
    assert len(list(fleet.store.items("health/shop"))) == 1


def test_a_check_that_hangs_is_not_started_twice_and_counts_as_failed(fleet: Fleet) -> None:
    worker = fleet.worker("http://a", "http://b")
    fleet.run(5)
    worker.hold = True
    fleet.run(10)
    assert len(worker.pending) == 2
    hanging = next(work for work in worker.pending if "http://a" in repr(work))
    for work in worker.pending:
        if work is not hanging:
            work()
    worker.hold = False
    fleet.run(32)
    assert worker.pools["shop"].marks == {"http://a": False, "http://b": True}
    assert fleet.network.asked.count("http://a") == 1
    assert worker.checker.status("shop")["instances"]["http://a"]["error"] == "Timeout"
    hanging()  # too late: it is not taken for a good check, and another may start
    assert worker.checker.status("shop")["instances"]["http://a"]["error"] == "Timeout"
    fleet.run(25)
    assert worker.pools["shop"].marks == {"http://a": True, "http://b": True}


def test_a_thousand_dead_hosts_keep_nobody_from_being_checked(fleet: Fleet) -> None:
    urls = [f"http://dead{number}" for number in range(1000)]
    worker = fleet.worker("http://a", most=16)
    fleet.run(2)
    pool = worker.pools["shop"]
    pool.instances = (*pool.instances, *(Instance(url) for url in urls))
    fleet.network.outcomes = dict.fromkeys(urls, DOWN)
    worker.hold = True
    checks_of_a = 0
    for _ in range(100):
        fleet.run(0.5)
        assert len(worker.pending) <= 13
        alive = [work for work in worker.pending if "'http://a'" in repr(work)]
        for work in alive:
            worker.pending.remove(work)
            work()
        checks_of_a += len(alive)
    assert checks_of_a == 5
    assert worker.checker._next_at <= fleet.clock.now
    assert len(worker.pending) == 12


def test_nor_those_that_are_new(fleet: Fleet) -> None:
    urls = [f"http://dead{number}" for number in range(200)]
    worker = fleet.worker(*urls, most=16)
    fleet.network.outcomes = dict.fromkeys(urls, DOWN)
    fleet.run(15)  # all of them are known
    assert set(fleet.network.asked) == set(urls)
    worker.hold = True
    fleet.run(15)
    assert len(worker.pending) == 8
    pool = worker.pools["shop"]
    pool.instances = (*pool.instances, Instance("http://new"))
    fleet.run(2.5)
    assert [work for work in worker.pending if "'http://new'" in repr(work)]


def test_a_small_service_does_not_queue_behind_a_large_one(fleet: Fleet) -> None:
    worker = fleet.worker(most=4)
    large, small = Marks(), Marks("http://small")
    large.instances = tuple(Instance(f"http://dead{number}") for number in range(1000))  # type: ignore[assignment]
    checker = HealthChecker(
        {"large": large, "small": small},
        {"large": HealthCheck("/"), "small": HealthCheck("/")},
        fleet.store,
        ThreadProber(fleet.network, spawn=worker._spawn),
        most=4,
        clock=fleet.clock,
        random=lambda: 0.0,
    )
    checker.step()
    assert sorted(fleet.network.asked) == ["http://dead0", "http://dead1", "http://small"]


def test_instances_may_come_and_go(fleet: Fleet) -> None:
    worker, other = fleet.worker("http://a"), fleet.worker("http://a")
    fleet.run(5)
    for each in (worker, other):
        each.pools["shop"].instances = (Instance("http://b"),)
    assert worker.checker.status("shop") == NOT_CHECKED
    fleet.run(3)
    assert fleet.network.asked == ["http://a", "http://b"]
    assert worker.checker.status("shop")["healthy"] is True
    assert list(worker.checker._results._known) == ["health/shop/http://b"]
    assert list(worker.checker._schedule._next) == ["health/shop/http://b"]
    for each in (worker, other):
        each.pools["shop"].instances = ()
    fleet.run(3)
    assert worker.checker._results._known == {}
    assert other.checker.status("shop") == {"healthy": False, "error": "No instances"}


def test_while_the_store_fails_each_worker_checks_for_itself(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    workers = [fleet.worker("http://a", "http://b") for _ in range(3)]
    fleet.run(5)
    fleet.store.broken = True
    fleet.network.outcomes["http://b"] = DOWN
    fleet.network.asked.clear()
    fleet.run(35)
    for worker in workers:
        worker.checker.refresh()
        assert worker.pools["shop"].marks == {"http://a": True, "http://b": False}
        told = worker.checker.status("shop")["instances"]["http://b"]
        assert (told["error"], told["lastCheck"]) == (
            "Connection refused",
            "1970-01-12T13:47:11.000Z",
        )
    # three checks in 35 seconds, as ever: an outage of the store is no burst of probes
    assert sorted(fleet.network.asked) == ["http://a"] * 9 + ["http://b"] * 9
    fleet.network.outcomes.clear()
    fleet.run(80)
    assert [worker.pools["shop"].marks["http://b"] for worker in workers] == [True] * 3
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    alone = "Store unavailable: this worker checks health for itself until it recovers: "
    assert [each for each in told if each.startswith(alone)] == [alone + "the disk is full"] * 6


def test_an_instance_dies_at_the_moment_the_store_does_under_whoever_led(fleet: Fleet) -> None:
    leader, other = fleet.worker(), fleet.worker()
    leader.hold = True
    fleet.run(1)
    assert len(leader.pending) == 1
    fleet.store.broken = True
    fleet.network.outcomes["http://a"] = DOWN
    leader.let_go()  # its first check ends without a store to write to
    assert leader.pools["shop"].marks == {"http://a": False}
    leader.hold = False
    fleet.run(5)
    assert other.pools["shop"].marks == {"http://a": False}


def test_a_worker_that_starts_while_the_store_fails_checks(fleet: Fleet) -> None:
    fleet.store.broken = True
    fleet.network.outcomes["http://b"] = DOWN
    worker = fleet.worker("http://a", "http://b")
    worker.checker.refresh()
    fleet.run(2)
    assert worker.pools["shop"].marks == {"http://a": True, "http://b": False}
    pool = worker.pools["shop"]
    pool.instances = (Instance("http://b"), Instance("http://c"))
    fleet.run(3)
    assert worker.pools["shop"].marks["http://c"] is True
    assert set(worker.checker._results._known) == {"health/shop/http://b", "health/shop/http://c"}
    fleet.store.broken = False
    fleet.run(2)  # its moments were those of the wall clock, which is years ahead of this store's
    assert worker.pools["shop"].marks["http://b"] is False
    checked = worker.checker._results.healths("shop")["http://b"]
    assert checked is not None
    assert fleet.clock.now - 10 <= checked.checked <= fleet.clock.now


def test_an_old_verdict_in_the_store_does_not_outlive_what_was_found_meanwhile(
    fleet: Fleet,
) -> None:
    workers = [fleet.worker("http://a", "http://b") for _ in range(3)]
    fleet.run(5)  # the store says: both are well
    fleet.store.broken = True
    fleet.network.outcomes["http://b"] = DOWN
    fleet.run(40)
    fleet.store.broken = False
    fleet.network.asked.clear()
    late = fleet.worker("http://a", "http://b")
    fleet.run(1)
    for _ in range(60):
        fleet.run(0.5)
        for worker in (*workers, late):
            assert worker.pools["shop"].marks == {"http://a": True, "http://b": False}
    # one worker checks for all again
    assert 3 <= fleet.network.asked.count("http://a") <= 4
    assert sum(worker.checker._leading for worker in workers) == 1
    assert not any(worker.checker.alone for worker in workers)
    fleet.network.outcomes.clear()
    fleet.run(25)
    for worker in (*workers, late):
        assert worker.pools["shop"].marks == {"http://a": True, "http://b": True}


def test_what_another_found_later_is_believed_when_the_store_is_back(fleet: Fleet) -> None:
    here, there = fleet.worker(), fleet.worker()
    fleet.run(5)
    fleet.network.outcomes["http://a"] = DOWN
    fleet.store.broken = True
    fleet.run(40, [here])  # a machine that is cut off from the store, and from the instance
    assert here.pools["shop"].marks == {"http://a": False}
    fleet.network.outcomes.clear()
    fleet.store.broken = False
    there.checker._lead_at = there.checker._read_at = 0.0
    fleet.run(12, [there])
    fleet.run(1.5, [here, there])
    assert here.pools["shop"].marks == there.pools["shop"].marks == {"http://a": True}
    assert here.checker._results._own == {}


def test_a_store_that_has_lost_everything_gets_what_is_known(fleet: Fleet) -> None:
    first, second = fleet.worker(), fleet.worker()
    fleet.network.outcomes["http://a"] = DOWN
    fleet.run(5)
    fleet.store.broken = True
    fleet.run(15)
    for key, value in list(fleet.store.store.items("")):
        fleet.store.store.swap(key, value, None, 0)
    fleet.store.broken = False
    fleet.run(1.5)
    late = fleet.worker()
    late.checker.refresh()
    assert late.pools["shop"].marks == {"http://a": False}
    for worker in (first, second):
        assert worker.pools["shop"].marks == {"http://a": False}


def test_a_store_that_fails_now_and_then_does_not_fill_the_log(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.worker()
    fleet.run(2)
    with caplog.at_level(logging.WARNING, "wsgigate.health"):
        for _ in range(20):
            fleet.store.broken = True
            fleet.run(1)
            fleet.store.broken = False
            fleet.run(1.5)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "Store unavailable",
        "Store available again",
    ]


def test_a_result_that_cannot_be_stored_counts_here_and_is_shared_later(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    worker, other = fleet.worker(), fleet.worker()
    worker.hold = True
    fleet.run(1)
    fleet.store.broken = True
    worker.let_go()
    assert worker.pools["shop"].marks == {"http://a": True}
    assert [record.getMessage() for record in caplog.records] == [
        "A health result could not be written to the store: the disk is full"
    ]
    fleet.store.broken = False
    fleet.run(2.5)
    assert other.pools["shop"].marks == {"http://a": True}
    assert len(fleet.network.asked) == 1


def test_a_probe_that_raises_is_told_once_and_harms_nobody(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    worker = fleet.worker("http://a", "http://b")
    sound = fleet.network

    def probe(instance: Instance, check: HealthCheck) -> CheckResult:
        if instance.url == "http://a":
            raise RuntimeError("a bug")
        return sound(instance, check)

    worker.checker._prober = ThreadProber(probe, spawn=worker._spawn)
    fleet.run(50)
    assert fleet.network.asked == ["http://b"] * 5
    assert [record.getMessage() for record in caplog.records] == ["A health check failed"]


def test_garbage_in_the_store_is_written_over(fleet: Fleet) -> None:
    worker = fleet.worker()
    fleet.run(5)
    raw = dict(fleet.store.items("health/shop"))["health/shop/http://a"]
    assert fleet.store.swap("health/shop/http://a", raw, b"\xff garbage", 1000)
    fleet.store.swap("health/stray", None, b"whatever", 1000)
    fleet.run(2)
    assert worker.checker.status("shop")["healthy"] is True  # as last known
    fleet.run(10)
    assert dict(fleet.store.items("health/shop"))["health/shop/http://a"] != b"\xff garbage"


def test_a_result_that_has_vanished_from_the_store_stays_as_last_known(fleet: Fleet) -> None:
    worker = fleet.worker()
    fleet.network.outcomes["http://a"] = DOWN
    fleet.run(5)
    fleet.clock.now += 1000
    fleet.network.outcomes.clear()
    fleet.run(2)
    assert worker.checker.status("shop")["error"] == "Recovering"
    assert worker.pools["shop"].marks == {"http://a": False}


def test_refresh_reads_the_results_without_a_round(fleet: Fleet) -> None:
    fleet.worker()
    fleet.run(5)
    late = fleet.worker()
    late.checker.refresh()
    assert late.checker.status("shop")["healthy"] is True
    assert late.pools["shop"].marks == {"http://a": True}
    assert len(fleet.network.asked) == 1


def test_two_gateways_over_one_store_keep_apart_by_prefix(fleet: Fleet) -> None:
    fleet.worker("http://a", prefix="north/health/")
    fleet.worker("http://b", prefix="south/health/")
    fleet.run(5)
    assert sorted(fleet.network.asked) == ["http://a", "http://b"]


def test_a_name_too_long_for_a_key_is_checked_all_the_same(fleet: Fleet) -> None:
    worker = fleet.worker()
    name = "a service/ü" * 60
    checker = HealthChecker(
        {name: worker.pools["shop"]},
        {name: HealthCheck("/")},
        fleet.store,
        ThreadProber(fleet.network, spawn=lambda work: work()),
        clock=fleet.clock,
        random=lambda: 0.0,
    )
    checker.step()
    assert checker.status(name)["healthy"] is True


def test_a_check_for_a_service_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="'shop'"):
        HealthChecker({}, {"shop": HealthCheck("/")}, MemoryStore(), Prober())
    with pytest.raises(ValueError, match="most"):
        HealthChecker({}, {}, MemoryStore(), Prober(), most=3)


@pytest.fixture
def running(backend: Backend) -> Iterator[tuple[HealthChecker, Marks, MemoryStore]]:
    """Yield a checker of *backend* in the real time, its pool and its store; stop it after."""
    pool, store = Marks(backend.url), MemoryStore()
    checker = HealthChecker(
        {"shop": pool}, {"shop": HealthCheck("/")}, store, Prober(), random=lambda: 0.0
    )
    yield checker, pool, store
    checker.stop()


def test_the_thread_checks_real_servers_until_it_is_stopped(
    running: tuple[HealthChecker, Marks, MemoryStore], backend: Backend
) -> None:
    checker, pool, store = running
    backend.answers = [reply(status="500 Broken")]
    checker.start()
    checker.start()
    assert threads().count("wsgigate-health") == 1
    assert pool.marked.wait(10)
    assert pool.marks == {backend.url: False}
    assert checker.status("shop")["error"] == "Status 500"
    assert store.get("health/leader")[0] is not None
    checker.stop()
    assert "wsgigate-health" not in threads()
    assert store.get("health/leader")[0] is None
    assert len(backend.requests) == 1


def test_it_can_be_started_again(
    running: tuple[HealthChecker, Marks, MemoryStore], backend: Backend
) -> None:
    checker, pool, _ = running
    checker.start()
    checker.stop()
    checker.stop()
    checker.start()
    assert pool.marked.wait(10)
    assert pool.marks == {backend.url: True}


def test_stopping_does_not_wait_for_a_check_that_hangs() -> None:
    asked, release = threading.Event(), threading.Event()

    def hang(instance: Instance, check: HealthCheck) -> CheckResult:
        asked.set()
        release.wait(10)
        return DOWN

    pool = Marks()
    checker = HealthChecker(
        {"shop": pool},
        {"shop": HealthCheck("/")},
        MemoryStore(),
        ThreadProber(hang),
        random=lambda: 0.0,
    )
    checker.start()
    assert asked.wait(10)
    checker.stop()
    assert "wsgigate-health" not in threads()
    release.set()
    for thread in threading.enumerate():
        if thread.name == "wsgigate-health-check":
            thread.join(10)
    assert pool.marks == {}


def test_a_round_that_fails_is_logged_and_the_next_one_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Flawed(Marks):
        rounds = 0

        @property  # type: ignore[override]
        def instances(self) -> tuple[Instance, ...]:  # type: ignore[override]
            self.rounds += 1
            if self.rounds == 1:
                raise RuntimeError("a bug")
            return (Instance("http://a"),)

        @instances.setter
        def instances(self, value: Any) -> None:
            pass

    pool = Flawed()
    checker = HealthChecker(
        {"shop": pool},
        {"shop": HealthCheck("/")},
        MemoryStore(),
        ThreadProber(lambda instance, check: DOWN),
        random=lambda: 0.0,
    )
    checker.start()
    assert pool.marked.wait(10)
    checker.stop()
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "A round of health checks failed"
    ]


def test_without_checks_there_is_no_thread() -> None:
    checker = HealthChecker({"shop": Marks()}, {}, MemoryStore(), Prober())
    checker.start()
    assert threads() == []
    checker.stop()


FORKING = """
import os, sys, threading
from wsgigate.discovery import Instance
from wsgigate.discovery.health_results import ThreadProber
from wsgigate.discovery.health import HealthChecker
from wsgigate.rules.health import HealthCheck, CheckResult
from wsgigate.store.lmdb import LmdbStore

class Pool:
    instances = (Instance("http://a"),)
    marked = threading.Event()
    def mark(self, url, healthy):
        self.marked.set()

def names():
    return sorted(t.name for t in threading.enumerate() if t.name == "wsgigate-health")

pool = Pool()
checker = HealthChecker(
    {"shop": pool}, {"shop": HealthCheck("/")}, LmdbStore(sys.argv[1], map_size=1 << 20),
    ThreadProber(lambda instance, check: CheckResult(True, 200)), random=lambda: 0.0,
)
checker.start()
assert pool.marked.wait(10)
owner = checker._lease.owner
child = os.fork()
if child == 0:
    pool.marked.clear()
    assert names() == [], names()
    checker.start()
    assert names() == ["wsgigate-health"]
    assert pool.marked.wait(10)
    assert checker._lease.owner != owner
    checker.stop()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert names() == ["wsgigate-health"]
checker.stop()
print("done")
"""


def test_a_forked_worker_starts_a_thread_of_its_own_under_a_name_of_its_own(
    tmp_path: Any,
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORKING, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("done\n", 0), ended.stderr
