"""Health checks among workers: one leads and probes for all, within a bounded number of slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.discovery.conftest import DOWN, FakePool
from wsgigate.discovery import Instance
from wsgigate.discovery.health import HealthChecker
from wsgigate.discovery.health_results import ThreadProber
from wsgigate.rules.health import HealthCheck

if TYPE_CHECKING:
    from .conftest import Fleet


def test_when_the_leader_dies_another_worker_continues_its_schedule(fleet: Fleet) -> None:
    first, second = fleet.worker(), fleet.worker()
    fleet.run(5)
    fleet.run(4.5, [second])
    assert len(fleet.network.asked) == 1  # the lease of the dead still lives
    fleet.run(3, [second])
    assert len(fleet.network.asked) == 2  # ten seconds after the first, not at once
    assert second.checker.status("shop")["healthy"] is True
    assert first.pools["shop"].marks == second.pools["shop"].marks


def test_a_leader_renews_its_lease(fleet: Fleet) -> None:
    first, second = fleet.worker(), fleet.worker()
    fleet.run(30)
    assert (first.checker.leading, second.checker.leading) == (True, False)


def test_a_former_leader_does_not_overwrite_the_result_of_its_successor(fleet: Fleet) -> None:
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


def test_a_result_from_before_a_change_of_leader_is_dropped_even_if_the_worker_leads_again(
    fleet: Fleet,
) -> None:
    first, second = fleet.worker(), fleet.worker()
    first.hold = True
    fleet.run(1)
    fleet.network.outcomes["http://a"] = DOWN
    fleet.run(9, [second])
    fleet.network.outcomes.clear()
    found = dict(fleet.store.items("health/shop"))
    leader, _ = fleet.store.get("health/leader")
    assert fleet.store.swap("health/leader", leader, None, 1.0)
    first.checker.step()
    assert first.checker.leading
    first.let_go()
    assert dict(fleet.store.items("health/shop")) == found


def test_a_former_leader_does_not_write_before_its_successor_has_a_result(fleet: Fleet) -> None:
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


def test_a_thousand_dead_hosts_delay_no_check_of_the_others(fleet: Fleet) -> None:
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
    assert worker.checker.step() <= fleet.clock.now
    assert len(worker.pending) == 12


def test_a_thousand_dead_hosts_delay_no_first_check(fleet: Fleet) -> None:
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
    large, small = FakePool("http://a"), FakePool("http://small")
    large.instances = tuple(Instance(f"http://dead{number}") for number in range(1000))
    checker = HealthChecker(
        {"large": large, "small": small},
        {"large": HealthCheck("/"), "small": HealthCheck("/")},
        fleet.store,
        ThreadProber(fleet.network, spawn=worker.spawn),
        most=4,
        clock=fleet.clock,
        random=lambda: 0.0,
    )
    checker.step()
    assert sorted(fleet.network.asked) == ["http://dead0", "http://dead1", "http://small"]
