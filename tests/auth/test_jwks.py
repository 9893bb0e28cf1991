"""Fetched keys: one worker fetches for all, and a request with a known key waits for none."""

from __future__ import annotations

import pytest

from tests.auth.jwks_fleet import NEW, OLD, Clock, Fleet, names
from tests.support.logs import silence
from wsgigate.auth.jwks import KeysUnavailable
from wsgigate.store import StoreError
from wsgigate.store.memory import MemoryStore

quiet = silence("wsgigate.jwks")


def test_one_worker_fetches_for_all():
    fleet = Fleet(4)
    fleet.step()
    assert fleet.endpoint.fetches == 1
    assert fleet.names() == [names(OLD)] * 4
    for _ in range(59):
        fleet.clock.now += 10
        fleet.step()
    assert fleet.endpoint.fetches == 1
    fleet.clock.now += 10
    fleet.step()
    assert fleet.endpoint.fetches == 2


def test_keys_that_stay_the_same_are_the_same_set():
    """Tokens that were verified stay verified."""
    fleet = Fleet(2)
    fleet.step()
    before = [worker.current for worker in fleet.workers]
    fleet.clock.now += 600
    fleet.step()
    fleet.step()
    assert fleet.endpoint.fetches == 2
    assert [worker.current for worker in fleet.workers] == before


def test_a_new_key_reaches_every_worker_and_an_old_one_leaves_when_confirmed():
    fleet = Fleet(2)
    fleet.step()
    fleet.endpoint.keys = (NEW,)
    fleet.clock.now += 600
    fleet.step()
    assert fleet.names() == [names(OLD, NEW)] * 2
    fleet.clock.now += 30
    fleet.step()
    assert fleet.names() == [names(NEW)] * 2


def test_a_key_that_is_used_right_after_a_regular_attempt_is_found_at_once():
    fleet = Fleet(2)
    fleet.step()
    fleet.endpoint.keys = (OLD, NEW)
    fleet.clock.now += 1
    worker = fleet.workers[1]
    with pytest.raises(KeysUnavailable, match="an unknown key"):
        worker.newer(worker.current)
    worker.step()
    fleet.step()
    assert fleet.endpoint.fetches == 2
    assert fleet.names() == [names(OLD, NEW)] * 2


def test_an_unknown_key_id_brings_the_next_attempt_forward_to_the_end_of_the_cooldown():
    fleet = Fleet(2)
    fleet.step()
    worker = fleet.workers[1]
    with pytest.raises(KeysUnavailable):
        worker.newer(worker.current)
    worker.step()
    assert fleet.endpoint.fetches == 2
    fleet.endpoint.keys = (OLD, NEW)
    fleet.clock.now += 29
    assert worker.newer(worker.current) is None, "the issuer has just listed its keys"
    fleet.step()
    assert fleet.endpoint.fetches == 2
    fleet.clock.now += 1
    fleet.step()
    fleet.step()
    assert fleet.endpoint.fetches == 3
    assert fleet.names() == [names(OLD, NEW)] * 2


def test_a_flood_of_unknown_key_ids_fetches_twice_a_minute():
    """Security J05: 10,000 tokens, each with a key id of its own, in ten minutes."""
    fleet = Fleet(2)
    fleet.step()
    for number in range(10_000):
        fleet.clock.now += 0.06
        worker = fleet.workers[number % 2]
        try:
            assert worker.newer(worker.current) is None
        except KeysUnavailable:
            worker.step()
    assert 18 <= fleet.endpoint.fetches <= 21


def test_a_flood_during_an_outage_fetches_twice_a_minute_and_keeps_the_keys():
    fleet = Fleet(2)
    fleet.step()
    fleet.endpoint.failure = "it answered 500"
    fleet.clock.now += 600
    fleet.step()
    fetches = fleet.endpoint.fetches
    for number in range(10_000):
        fleet.clock.now += 0.06
        worker = fleet.workers[number % 2]
        with pytest.raises(KeysUnavailable, match=r"an unknown key, and .* 500"):
            worker.newer(worker.current)
        worker.step()
    assert fleet.endpoint.fetches - fetches <= 20
    assert fleet.names() == [names(OLD)] * 2


def test_an_outage_of_a_day_keeps_the_keys_and_no_longer():
    """Security J27."""
    fleet = Fleet(2)
    fleet.step()
    fleet.endpoint.failure = "the connection was refused"
    for _ in range(24 * 60 - 1):
        fleet.clock.now += 60
        fleet.step()
    assert fleet.names() == [names(OLD)] * 2
    late = fleet.worker()
    late.step()
    assert sorted(late.current.names) == names(OLD), "a worker that starts during the outage"
    fleet.clock.now += 60
    fleet.step()
    assert fleet.names() == [None, None]
    fleet.endpoint.failure = ""
    fleet.clock.now += 60
    fleet.step()
    fleet.step()
    assert fleet.names() == [names(OLD)] * 2


def test_a_start_during_an_outage_recovers_by_itself():
    fleet = Fleet(2)
    fleet.endpoint.failure = "the connection was refused"
    fleet.step()
    worker = fleet.workers[1]
    with pytest.raises(KeysUnavailable, match="not available: the connection was refused") as found:
        worker.newer(None)
    assert found.value.again_in == 5
    assert fleet.endpoint.fetches == 1
    fleet.endpoint.failure = ""
    fleet.clock.now += 1
    fleet.step()
    fleet.step()
    assert fleet.names() == [names(OLD)] * 2
    assert worker.newer(None) is worker.current


def test_a_worker_that_was_suspended_during_its_attempt_overwrites_nothing_newer():
    fleet = Fleet(2)
    slow, other = fleet.workers

    def suspended():
        fleet.endpoint.during = lambda: None
        fleet.clock.now += 25
        fleet.endpoint.keys = (NEW,)
        other.step()
        fleet.endpoint.keys = (OLD,)

    fleet.endpoint.during = suspended
    slow.step()
    assert fleet.endpoint.fetches == 2
    slow.step()
    assert fleet.names() == [names(NEW)] * 2


def asked_for_a_new_key():
    """Return a fleet of which one worker has just fetched NEW, and the other only knows of that."""
    fleet = Fleet(2)
    asker, other = fleet.workers
    fleet.step()
    fleet.clock.now += 1
    with pytest.raises(KeysUnavailable):
        asker.newer(asker.current)
    fleet.endpoint.keys = (OLD, NEW)
    fleet.endpoint.during = other.step
    asker.step()
    assert fleet.names() == [names(OLD, NEW), names(OLD)]
    return fleet, other


def test_a_token_of_a_new_key_is_not_invalid_while_the_keys_are_being_replaced():
    fleet, worker = asked_for_a_new_key()
    old, found = worker.current, []

    def request():
        try:
            found.append(worker.newer(old))
        except KeysUnavailable:
            found.append("try again")

    fleet.clock.meanwhile = request
    worker.step()
    fleet.clock.meanwhile = None
    request()
    assert None not in found
    assert found[0] == "try again"
    assert found[-1] is worker.current
    assert fleet.names()[1] == names(OLD, NEW)


def test_keys_that_are_replaced_during_the_look_for_newer_ones_are_found():
    fleet, worker = asked_for_a_new_key()
    fleet.clock.meanwhile = worker.step
    found = worker.newer(worker.current)
    fleet.clock.meanwhile = None
    assert found is not None
    assert sorted(found.names) == names(OLD, NEW)


def test_only_one_attempt_is_in_flight():
    fleet = Fleet(2)
    other = fleet.workers[1]
    fleet.endpoint.during = lambda: [other.step() for _ in range(5)]
    fleet.workers[0].step()
    assert fleet.endpoint.fetches == 1
    other.step()
    assert fleet.names() == [names(OLD)] * 2


def test_the_attempt_of_a_worker_that_died_is_repeated_by_another():
    fleet = Fleet(2)

    def dies():
        raise SystemExit

    fleet.endpoint.during = dies
    with pytest.raises(SystemExit):
        fleet.workers[0].step()
    fleet.endpoint.during = lambda: None
    fleet.workers[1].step()
    assert fleet.endpoint.fetches == 1
    fleet.clock.now += 20
    fleet.workers[1].step()
    assert fleet.endpoint.fetches == 2
    assert fleet.workers[1].current is not None


class BrokenStore(MemoryStore):
    broken = False

    def get(self, key):
        if self.broken:
            raise StoreError("the store is down")
        return super().get(key)

    def swap(self, key, old, new, ttl):
        if self.broken:
            raise StoreError("the store is down")
        return super().swap(key, old, new, ttl)


def test_without_its_store_each_worker_fetches_for_itself(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("wsgigate.auth.jwks.wall", clock)
    fleet = Fleet(2, store=BrokenStore(clock=clock))
    fleet.clock.now = clock.now
    fleet.step()
    fleet.store.broken = True
    fleet.endpoint.keys = (OLD, NEW)
    clock.now += 600
    fleet.clock.now += 600
    for _ in range(5):
        fleet.step()
    assert fleet.endpoint.fetches == 3
    assert fleet.names() == [names(OLD, NEW)] * 2
    fleet.store.broken = False
    clock.now += 10
    fleet.clock.now += 10
    for _ in range(3):
        fleet.step()
    assert fleet.endpoint.fetches == 4, "one of them fetches again for both"
    assert fleet.names() == [names(OLD, NEW)] * 2


def test_a_clock_set_back_does_not_stop_the_attempts():
    fleet = Fleet(1)
    fleet.step()
    fleet.clock.now -= 86_400
    fleet.step()
    assert fleet.endpoint.fetches == 2


def test_a_set_that_is_too_large_for_the_store_changes_nothing():
    fleet = Fleet(1)
    fleet.step()
    fleet.endpoint.keys = (NEW,) * 2000
    fleet.clock.now += 600
    fleet.step()
    assert fleet.names() == [names(OLD)]
    assert fleet.workers[0].status()["error"] == "its keys are too large"


def test_the_status_has_the_age_of_the_keys_and_the_last_error():
    fleet = Fleet(2)
    assert fleet.workers[0].status() == {"keys": 0, "age": None}
    fleet.step()
    fleet.clock.now += 600
    fleet.endpoint.failure = "it answered 500"
    fleet.step()
    fleet.step()
    for worker in fleet.workers:
        assert worker.status() == {"keys": 1, "age": 600.0, "error": "it answered 500"}


def test_an_unexpected_error_is_a_failure_like_others():
    fleet = Fleet(1)

    def fails():
        raise ZeroDivisionError

    fleet.endpoint.during = fails
    fleet.step()
    assert fleet.workers[0].status()["error"] == "an unexpected error"
    fleet.endpoint.during = lambda: None
    fleet.clock.now += 1
    fleet.step()
    assert fleet.names() == [names(OLD)]


def test_a_store_that_has_lost_its_values_gets_them_back_from_a_worker():
    fleet = Fleet(2)
    fleet.step()
    fleet.endpoint.failure = "the connection was refused"
    for key, value in list(fleet.store.items("")):
        fleet.store.swap(key, value, None, 0.0)
    fleet.clock.now += 10
    fleet.step()
    assert fleet.names() == [names(OLD)] * 2
    late = fleet.worker()
    late.step()
    assert sorted(late.current.names) == names(OLD)
    assert late.status()["age"] == 10
