"""Instances that an operator drains, ejects or weighs: who gets the requests."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import Client

from tests.proxy.clients import picked
from wsgigate.coordination.overrides import ACTIVE, DRAINED, EJECTED, Override
from wsgigate.discovery import Instance
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.sticky import Stickiness
from wsgigate.rules.balance import POLICIES
from wsgigate.rules.circuit import Outcome
from wsgigate.rules.outlier import OutlierRules
from wsgigate.testing import FakeClock

A, B, C = URLS = [f"http://10.0.0.{host}:8000" for host in (1, 2, 3)]


def pool(*urls: str, **options: Any) -> Pool:
    options.setdefault("random", random.Random(4).random)
    return Pool("users", [Instance(url) for url in urls or URLS], **options)


def decided(**states: str | int) -> dict[str, Override]:
    urls = {"a": A, "b": B, "c": C}
    return {
        urls[name]: Override(ACTIVE, each) if isinstance(each, int) else Override(each)
        for name, each in states.items()
    }


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("state", [DRAINED, EJECTED])
def test_with_each_policy_it_gets_no_new_request(policy: str, state: str) -> None:
    users = pool(balance=policy, key=lambda environ: "k")
    assert picked(users) <= set(URLS)
    users.override(decided(a=state))
    picks = [users.pick(key) for key in map(str, range(100))]
    assert {lease.instance.url for lease in picks if lease} == {B, C}
    users.override({})
    picks = [users.pick(key) for key in map(str, range(100))]
    assert A in {lease.instance.url for lease in picks if lease}


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "round-robin"])
def test_another_weight_changes_its_share(policy: str) -> None:
    users = pool(A, B, balance=policy)
    users.override(decided(a=9))
    counts: Counter[str] = Counter()
    for key in map(str, range(1000)):
        lease = users.pick(key)
        assert lease is not None
        counts[lease.instance.url] += 1
    assert counts[A] > 3 * counts[B] > 0
    assert users.shares() == {A: 9, B: 1}


def test_only_the_keys_of_a_drained_instance_move_with_consistent_hash() -> None:
    keys = [str(number) for number in range(300)]

    def homes(users: Pool) -> dict[str, str]:
        found = {}
        for key in keys:
            lease = users.pick(key)
            assert lease is not None
            found[key] = lease.instance.url
            lease.release()
        return found

    users = pool(balance="consistent-hash")
    before = homes(users)
    users.override(decided(a=DRAINED))
    during = homes(users)
    assert {key for key in keys if before[key] != during[key]} == {
        key for key in keys if before[key] == A
    }
    users.override({})
    assert homes(users) == before


@pytest.mark.parametrize("panic", [0.0, 0.5, 1.0])
def test_panic_does_not_override_an_operator(panic: float) -> None:
    users = pool(panic=panic)
    users.override(decided(a=DRAINED, b=EJECTED))
    users.mark(C, False)
    picks = [users.pick() for _ in range(20)]
    assert {lease and lease.instance.url for lease in picks} == ({C} if panic else {None})
    users.override(decided(a=DRAINED, b=EJECTED, c=DRAINED))
    assert users.pick() is None
    assert users.available() == ()


def test_health_checks_go_on_and_count_when_it_is_active_again() -> None:
    users = pool()
    users.override(decided(a=DRAINED))
    users.mark(A, False)
    users.override({})
    assert picked(users) == {B, C}
    users.mark(A, True)
    assert picked(users) == set(URLS)


def test_it_holds_for_an_instance_that_leaves_and_comes_back() -> None:
    users = pool()
    users.override(decided(a=DRAINED))
    users.renew([Instance(B)])
    users.renew([Instance(A, weight=5), Instance(B)])
    assert picked(users) == {B}


def test_it_holds_for_an_instance_that_is_not_known_yet() -> None:
    users = pool(B)
    users.override(decided(a=EJECTED))
    users.renew([Instance(A), Instance(B)])
    assert picked(users) == {B}


def test_a_drained_standby_tier_gets_nothing() -> None:
    users = Pool("users", [Instance(A), Instance(B, tier=1), Instance(C, tier=1)])
    users.override(decided(b=DRAINED))
    users.mark(A, False)
    assert picked(users) == {C}
    users.override(decided(a=DRAINED))
    assert picked(users) == {B, C}


@pytest.mark.parametrize("keep_draining", [False, True])
@pytest.mark.parametrize(("state", "stays"), [(DRAINED, True), (EJECTED, False)])
def test_sticky_clients_stay_with_a_drained_instance_and_leave_an_ejected_one(
    keep_draining: bool, state: str, stays: bool
) -> None:
    sticky = Stickiness("users", b"0123456789abcdef", keep_draining=keep_draining)
    users = pool(sticky=sticky)
    users.override(decided(a=state))
    lease = users.pick(sticky_id=sticky.id_of(A))
    assert lease is not None
    assert (lease.instance.url == A) is stays
    users.override(decided(a=state, b=state, c=state))
    assert (users.pick(sticky_id=sticky.id_of(A)) is not None) is stays
    users.mark(A, False)
    assert users.pick(sticky_id=sticky.id_of(A)) is None  # it cannot serve them


def test_requests_in_flight_finish() -> None:
    users = pool(A)
    lease = users.pick()
    assert lease is not None
    users.override(decided(a=EJECTED))
    assert users.in_flight() == {A: 1}
    lease.answered(Outcome.OK, 0.1, 200)
    lease.release()
    assert users.in_flight() == {A: 0}


def test_it_starts_slowly_when_it_is_active_again() -> None:
    clock = FakeClock()
    users = pool(A, B, slow_start=100.0, clock=clock, balance="weighted")
    users.override(decided(a=DRAINED))
    clock.advance(1000)
    users.override({})

    def share() -> float:
        found = Counter(
            lease.instance.url for lease in (users.pick() for _ in range(200)) if lease is not None
        )
        return found[A] / 200

    assert share() < 0.2
    clock.advance(100)
    assert share() == pytest.approx(0.5, abs=0.05)


def test_active_ends_the_automatic_ejection_of_this_worker() -> None:
    users = pool(A, B, outlier=OutlierRules(consecutive_failures=1))
    lease = users.pick()
    assert lease is not None
    lease.answered(Outcome.FAILED, 0.1, 500)
    lease.release()
    gone = lease.instance.url
    assert picked(users) == {A, B} - {gone}
    users.override({}, [gone, "http://unknown:1"])
    assert picked(users) == {A, B}
    assert users.ejections() == {}


@pytest.mark.parametrize(
    ("states", "error"),
    [
        ({"a": DRAINED, "b": EJECTED, "c": DRAINED}, "All instances drained"),
        ({"a": DRAINED, "b": EJECTED}, "No instance available"),
    ],
)
def test_the_response_says_that_all_are_drained(states: dict[str, str], error: str) -> None:
    users = pool(panic=0.0)
    users.override(decided(**states))
    users.mark(C, False)
    response = Client(Forwarder(users)).get("/")
    assert response.status_code == 503
    assert response.json is not None
    assert response.json["error"] == error


def test_a_forked_worker_keeps_the_overrides(
    in_child: Callable[[Callable[[], bool]], bool],
) -> None:
    users = pool(A, B)
    users.override(decided(a=DRAINED))
    assert in_child(lambda: picked(users) == {B})
