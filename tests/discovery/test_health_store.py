"""Health checks while the store fails, or has lost or damaged its results."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.support.objects import texts_kept
from wsgigate.discovery import Instance
from wsgigate.rules.health import CheckResult
from wsgigate.units import iso_time

if TYPE_CHECKING:
    from .conftest import Fleet


DOWN = CheckResult(False, error="Connection refused")


NOT_CHECKED = {"healthy": False, "error": "Not checked yet"}


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


def test_the_worker_that_led_notices_a_failing_instance_when_the_store_fails(fleet: Fleet) -> None:
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


def test_a_worker_that_starts_while_the_store_fails_checks_for_itself(fleet: Fleet) -> None:
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
    known = texts_kept(worker.checker, but=[worker.store])
    assert {text for text in known if text.startswith("health/shop/")} == {
        "health/shop/http://b",
        "health/shop/http://c",
    }
    fleet.store.broken = False
    fleet.run(2)  # its moments were those of the wall clock, which is years ahead of this store's
    assert worker.pools["shop"].marks["http://b"] is False
    checked = worker.checker.status("shop")["instances"]["http://b"]["lastCheck"]
    assert iso_time(fleet.clock.now - 10) <= checked <= iso_time(fleet.clock.now)


def test_a_newer_result_of_a_worker_replaces_an_older_one_in_the_store(
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
    assert sum(worker.checker.leading for worker in workers) == 1
    assert not any(worker.checker.alone for worker in workers)
    fleet.network.outcomes.clear()
    fleet.run(25)
    for worker in (*workers, late):
        assert worker.pools["shop"].marks == {"http://a": True, "http://b": True}


def test_a_newer_result_of_another_worker_is_used_when_the_store_recovers(fleet: Fleet) -> None:
    here, there = fleet.worker(), fleet.worker()
    fleet.run(5)
    fleet.network.outcomes["http://a"] = DOWN
    fleet.store.broken = True
    fleet.run(40, [here])  # a machine that is cut off from the store, and from the instance
    assert here.pools["shop"].marks == {"http://a": False}
    fleet.network.outcomes.clear()
    fleet.store.broken = False
    fleet.run(12, [there])
    fleet.run(1.5, [here, there])
    assert here.pools["shop"].marks == there.pools["shop"].marks == {"http://a": True}
    fleet.run(20, [here])  # it leads, and has forgotten what it found while it was cut off
    fleet.run(1.5, [there])
    assert here.pools["shop"].marks == there.pools["shop"].marks == {"http://a": True}


def test_known_results_are_written_to_a_store_that_has_lost_all_data(fleet: Fleet) -> None:
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


def test_a_store_that_fails_repeatedly_does_not_fill_the_log(
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


def test_a_probe_that_raises_is_logged_once_and_affects_no_other_instance(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.worker("http://a", "http://b")
    fleet.network.broken = {"http://a"}
    fleet.run(50)
    assert fleet.network.asked == ["http://b"] * 5
    assert [record.getMessage() for record in caplog.records] == ["A health check failed"]


def test_an_invalid_result_in_the_store_is_overwritten(fleet: Fleet) -> None:
    worker = fleet.worker()
    fleet.run(5)
    raw = dict(fleet.store.items("health/shop"))["health/shop/http://a"]
    assert fleet.store.swap("health/shop/http://a", raw, b"\xff garbage", 1000)
    fleet.store.swap("health/stray", None, b"whatever", 1000)
    fleet.run(2)
    assert worker.checker.status("shop")["healthy"] is True  # as last known
    fleet.run(10)
    assert dict(fleet.store.items("health/shop"))["health/shop/http://a"] != b"\xff garbage"


def test_a_result_that_is_missing_from_the_store_stays_as_last_known(fleet: Fleet) -> None:
    worker = fleet.worker()
    fleet.network.outcomes["http://a"] = DOWN
    fleet.run(5)
    fleet.clock.now += 1000
    fleet.network.outcomes.clear()
    fleet.run(2)
    assert worker.checker.status("shop")["error"] == "Recovering"
    assert worker.pools["shop"].marks == {"http://a": False}


def test_gateways_with_different_prefixes_share_a_store_without_conflict(fleet: Fleet) -> None:
    fleet.worker("http://a", prefix="north/health/")
    fleet.worker("http://b", prefix="south/health/")
    fleet.run(5)
    assert sorted(fleet.network.asked) == ["http://a", "http://b"]
