"""Replacing the list of a pool in use: kept instances keep their state, removed ones lose it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from tests.proxy.clients import picked
from wsgigate.discovery import Instance
from wsgigate.proxy.pool import InstanceLease, Pool
from wsgigate.rules.balance import POLICIES
from wsgigate.rules.circuit import Outcome
from wsgigate.rules.outlier import OutlierRules
from wsgigate.testing import FakeClock

URLS = [f"http://127.0.0.1:{port}" for port in (3001, 3002, 3003)]
NEW = "http://127.0.0.1:3004"


def made(urls: Sequence[str]) -> list[Instance]:
    return [Instance(url) for url in urls]


def pool(*urls: str, **options: Any) -> Pool:
    return Pool("users", made(urls or URLS), **options)


def lease_of(users: Pool, url: str) -> InstanceLease:
    """Return a lease of the instance at *url*, as if all others had failed the request."""
    others: list[InstanceLease] = []
    while True:
        lease = users.pick(avoid=[each.member for each in others], only_others=True)
        assert lease is not None
        if lease.instance.url == url:
            break
        others.append(lease)
    for other in others:
        other.release()
    return lease


def end(lease: InstanceLease, outcome: Outcome = Outcome.FAILED) -> None:
    lease.answered(outcome, 0.1, 200 if outcome is Outcome.OK else 500)
    lease.release()


def weights(users: Pool) -> dict[str, float]:
    leases = {instance.url: lease_of(users, instance.url) for instance in users.available()}
    for lease in leases.values():
        lease.release()
    return {url: lease.member.weight for url, lease in leases.items()}


def test_added_instances_get_requests_and_removed_ones_none() -> None:
    users = pool()
    gone = users.renew(made([URLS[1], NEW]))
    assert [instance.url for instance in gone] == [URLS[0], URLS[2]]
    assert [instance.url for instance in users.instances] == [URLS[1], NEW]
    assert [instance.url for instance in users.available()] == [URLS[1], NEW]
    assert picked(users) == {URLS[1], NEW}
    assert users.renew(made([URLS[1], NEW])) == ()


def test_all_instances_can_be_removed_and_added_again() -> None:
    users = pool(slow_start=60.0)
    users.renew([])
    assert users.pick() is None
    users.renew(made(URLS))
    assert picked(users) == set(URLS)
    assert weights(users) == dict.fromkeys(URLS, 1)  # there is nobody to spare them


def test_a_list_with_a_duplicate_is_rejected_and_changes_nothing() -> None:
    users = pool()
    with pytest.raises(ValueError, match="twice"):
        users.renew(made([NEW, NEW + "/"]))
    assert picked(users) == set(URLS)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_uses_the_new_list(policy: str) -> None:
    users = pool(balance=policy)
    picked(users)
    users.renew(made([URLS[2], NEW]))
    assert picked(users, 300) == {URLS[2], NEW}
    users.renew(made([NEW]))
    assert picked(users) == {NEW}


def test_kept_instances_keep_their_requests_in_flight() -> None:
    users = pool(*URLS[:2])
    held = [lease_of(users, URLS[0]), lease_of(users, URLS[1])]
    users.renew(made([URLS[1], NEW]))
    assert users.in_flight() == {URLS[1]: 1, NEW: 0}
    assert lease_of(users, NEW).instance.url == NEW
    for lease in held:
        lease.release()
    assert users.in_flight() == {URLS[1]: 0, NEW: 1}


def test_an_old_lease_does_not_affect_an_instance_added_again() -> None:
    rules = OutlierRules(consecutive_failures=2)
    users = pool(outlier=rules, balance="least-latency")
    held = [lease_of(users, URLS[0]) for _ in range(3)]
    users.renew(made(URLS[1:]))
    users.renew(made(URLS))
    assert users.in_flight()[URLS[0]] == 0
    users.answered(held[0].member, 9.0, failed=True)
    for lease in held:
        end(lease)
    for url in URLS[1:]:
        lease = lease_of(users, url)
        users.answered(lease.member, 0.1, failed=False)
        lease.release()
    assert URLS[0] in picked(users)  # nothing is known of it, so it is tried
    assert users.in_flight() == dict.fromkeys(URLS, 0)
    assert users.ejected() == []


def test_the_weight_is_replaced_and_the_rest_is_kept() -> None:
    users = pool(*URLS[:2])
    held = lease_of(users, URLS[0])
    assert users.renew([Instance(URLS[0], weight=0), Instance(URLS[1], weight=7)]) == ()
    assert picked(users) == {URLS[1]}
    assert users.in_flight()[URLS[0]] == 1
    held.release()
    assert weights(users)[URLS[1]] == 7


def test_kept_instances_keep_health_and_ejection() -> None:
    clock = FakeClock()
    rules = OutlierRules(consecutive_failures=1, eject_for=30.0)
    users = pool(outlier=rules, clock=clock, panic=0.0)
    users.mark(URLS[0], False)
    end(lease_of(users, URLS[1]))
    users.renew(made([*URLS, NEW]))
    assert [instance.url for instance in users.available()] == [URLS[2], NEW]
    assert users.ejected() == [URLS[1]]
    assert picked(users) == {URLS[2], NEW}
    clock.advance(31.0)
    assert picked(users) == {URLS[1], URLS[2], NEW}


def test_an_instance_added_again_has_no_health_or_ejection() -> None:
    users = pool(outlier=OutlierRules(consecutive_failures=1), panic=0.0)
    users.mark(URLS[0], False)
    end(lease_of(users, URLS[1]))
    users.renew(made(URLS[2:]))
    assert users.ejected() == []
    users.renew(made(URLS))
    assert picked(users) == set(URLS)


def test_kept_instances_keep_their_latency() -> None:
    users = pool(balance="least-latency")
    for url, seconds in zip(URLS, (0.1, 5.0, 0.2), strict=True):
        lease = lease_of(users, url)
        users.answered(lease.member, seconds, failed=False)
        lease.release()
    users.renew(made([URLS[0], URLS[1]]))
    assert picked(users) == {URLS[0]}  # the other is known to be slow


def test_draining_instances_keep_their_latency() -> None:
    users = pool(*URLS[:2], balance="least-latency")
    for url, seconds in zip(URLS[:2], (0.1, 5.0), strict=True):
        lease = lease_of(users, url)
        users.answered(lease.member, seconds, failed=False)
        lease.release()
    users.renew([Instance(URLS[0]), Instance(URLS[1], 0)])
    users.renew(made(URLS[:2]))
    assert picked(users) == {URLS[0]}


def test_new_instances_start_slowly_and_kept_ones_do_not() -> None:
    clock = FakeClock()
    users = pool(*URLS[:2], slow_start=10.0, clock=clock)
    users.renew(made([*URLS[:2], NEW]))
    assert weights(users) == {URLS[0]: 1, URLS[1]: 1, NEW: 0.1}
    clock.advance(5.0)
    users.renew(made([URLS[1], NEW]))
    assert weights(users) == {URLS[1]: 1, NEW: 0.5}
    clock.advance(6.0)
    picked(users)
    assert weights(users) == {URLS[1]: 1, NEW: 1}


def test_a_consistent_hash_moves_only_the_keys_of_changed_instances() -> None:
    users = pool(balance="consistent-hash")

    def places() -> dict[str, str]:
        found = {}
        for key in map(str, range(400)):
            lease = users.pick(key)
            assert lease is not None
            found[key] = lease.instance.url
            lease.release()
        return found

    before = places()
    users.renew(made([*URLS, NEW]))
    grown = places()
    moved = {key for key in before if before[key] != grown[key]}
    assert {grown[key] for key in moved} == {NEW}
    assert 40 < len(moved) < 180  # a quarter of them
    users.renew(made([URLS[0], URLS[2], NEW]))
    shrunk = places()
    assert all(shrunk[key] == grown[key] for key in grown if grown[key] != URLS[1])
    assert Counter(shrunk.values()).keys() == {URLS[0], URLS[2], NEW}


def test_replacing_the_list_during_requests_keeps_the_counts_right() -> None:
    """Whatever comes between, what is counted is right in the end."""
    chance = random.Random(7)
    users = pool(outlier=OutlierRules(consecutive_failures=3), balance="least-latency")
    held: list[InstanceLease] = []
    for _ in range(3000):
        step = chance.randrange(4)
        if step == 0:
            count = chance.randrange(5)
            users.renew(made(chance.sample([*URLS, NEW], count)))
        elif step == 1:
            lease = users.pick()
            if lease is not None:
                held.append(lease)
        elif held:
            lease = held.pop(chance.randrange(len(held)))
            users.answered(lease.member, 0.1, failed=False)
            end(lease, chance.choice([Outcome.OK, Outcome.FAILED]))
    users.renew(made([*URLS, NEW]))
    for lease in held:
        lease.release()
    assert set(users.in_flight().values()) == {0}
