"""Health checks: what the status shows, how often an instance is checked, and which services."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.discovery.conftest import Worker
from tests.support.objects import texts_kept
from tests.support.threads import started
from wsgigate.discovery import Instance
from wsgigate.discovery.health import HealthChecker
from wsgigate.discovery.health_results import ThreadProber
from wsgigate.proxy.health_probe import Prober
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.store.memory import MemoryStore

if TYPE_CHECKING:
    from .conftest import Fleet


DOWN = CheckResult(False, error="Connection refused")


NOT_CHECKED = {"healthy": False, "error": "Not checked yet"}


def threads() -> list[str]:
    return [thread.name for thread in started("health")]


def test_before_the_first_round_no_status_is_known_and_no_probe_is_sent(fleet: Fleet) -> None:
    checker = fleet.worker().checker
    assert fleet.network.asked == []
    assert list(fleet.store.items("")) == []
    assert threads() == []
    assert checker.status("shop") == NOT_CHECKED
    assert checker.all() == {}


def test_the_first_check_is_soon_and_its_result_is_the_verdict(fleet: Fleet) -> None:
    worker = fleet.worker("http://a", "http://b")
    fleet.network.outcomes["http://b"] = DOWN
    fleet.run(3)
    assert sorted(fleet.network.asked) == ["http://a", "http://b"]
    assert worker.pools["shop"].marks == {"http://a": True, "http://b": False}


def test_the_status_of_a_service_has_the_verdict_the_time_and_the_status_code(fleet: Fleet) -> None:
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


def test_the_status_is_returned_without_reading_the_store(fleet: Fleet) -> None:
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


def test_an_instance_is_not_probed_more_often_than_configured(fleet: Fleet) -> None:
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
        ("INFO", "This worker checks the health of instances for all workers"),
        ("WARNING", "a of 'shop' is unhealthy: Connection refused"),
        ("INFO", "a of 'shop' is healthy again, after 50 s"),
    ]


def keys_kept(worker: Worker) -> set[str]:
    """Return the keys in the store of the instances that the checker of *worker* knows."""
    texts = texts_kept(worker.checker, but=[worker.store])
    return {text for text in texts if text.startswith("health/shop/")}


def test_added_instances_are_checked_and_removed_ones_are_forgotten(fleet: Fleet) -> None:
    worker, other = fleet.worker("http://a"), fleet.worker("http://a")
    fleet.run(5)
    for each in (worker, other):
        each.pools["shop"].instances = (Instance("http://b"),)
    assert worker.checker.status("shop") == NOT_CHECKED
    fleet.run(3)
    assert fleet.network.asked == ["http://a", "http://b"]
    assert worker.checker.status("shop")["healthy"] is True
    assert keys_kept(worker) == {"health/shop/http://b"}
    for each in (worker, other):
        each.pools["shop"].instances = ()
    fleet.run(3)
    assert keys_kept(worker) == set()
    assert other.checker.status("shop") == {"healthy": False, "error": "No instances"}


def test_refresh_reads_the_results_without_a_round(fleet: Fleet) -> None:
    fleet.worker()
    fleet.run(5)
    late = fleet.worker()
    late.checker.refresh()
    assert late.checker.status("shop")["healthy"] is True
    assert late.pools["shop"].marks == {"http://a": True}
    assert len(fleet.network.asked) == 1


def test_an_instance_whose_name_is_too_long_for_a_key_is_checked(fleet: Fleet) -> None:
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


def test_a_check_for_an_unknown_service_is_an_error() -> None:
    with pytest.raises(ValueError, match="'shop'"):
        HealthChecker({}, {"shop": HealthCheck("/")}, MemoryStore(), Prober())
    with pytest.raises(ValueError, match="most"):
        HealthChecker({}, {}, MemoryStore(), Prober(), most=3)
