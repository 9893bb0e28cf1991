"""The pool picks available instances, and counts requests in flight."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import Client

from tests.proxy.clients import picked
from tests.support.objects import hold_locks
from wsgigate.discovery import Instance
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.rules.balance import LeastLatency
from wsgigate.rules.outlier import OutlierRules
from wsgigate.testing import FakeClock
from wsgigate.testing.backend import Backend, reply

URLS = [f"http://127.0.0.1:{port}" for port in (3001, 3002, 3003)]


def pool(*urls: str, **options: Any) -> Pool:
    return Pool("users", [Instance(url) for url in urls or URLS], **options)


def test_a_forked_worker_counts_its_own_requests(
    in_child: Callable[[Callable[[], bool]], bool],
) -> None:
    """What its parent had under way stayed so in the child, and its lock locked."""
    users = pool(URLS[0], instance_limit=1)
    held = users.pick()
    assert held is not None
    assert users.pick() is None

    def takes_one() -> bool:
        lease = users.pick()
        return lease is not None and users.in_flight() == {URLS[0]: 1}

    with hold_locks(users):
        assert in_child(takes_one)
    assert users.in_flight() == {URLS[0]: 1}
    held.release()


def test_every_instance_gets_requests() -> None:
    assert picked(pool()) == set(URLS)


def test_an_unhealthy_instance_gets_no_requests_until_it_recovers() -> None:
    users = pool()
    users.mark(URLS[0], False)
    assert picked(users) == set(URLS[1:])
    assert [instance.url for instance in users.available()] == URLS[1:]
    users.mark(URLS[0], True)
    assert picked(users) == set(URLS)


def test_when_most_are_unhealthy_health_is_ignored() -> None:
    """O10: it is more likely that the checks are wrong, or that the rest would drown."""
    users = pool()
    users.mark(URLS[0], False)
    users.mark(URLS[1], False)
    assert picked(users) == set(URLS)
    strict = pool(panic=0.0)
    for url in URLS[:2]:
        strict.mark(url, False)
    assert picked(strict) == {URLS[2]}


def test_a_drained_instance_gets_no_requests() -> None:
    users = Pool("users", [Instance(URLS[0], weight=0), Instance(URLS[1])])
    assert picked(users) == {URLS[1]}


def test_a_pool_without_instances_picks_none() -> None:
    assert Pool("users", []).pick() is None
    assert Pool("users", [Instance(URLS[0], weight=0)]).pick() is None
    strict = pool(URLS[0], panic=0.0)
    strict.mark(URLS[0], False)
    assert strict.pick() is None


def test_the_less_busy_instance_is_picked() -> None:
    users = pool(*URLS[:2])
    leases = [users.pick() for _ in range(10)]
    assert users.in_flight() == {URLS[0]: 5, URLS[1]: 5}
    for lease in leases:
        assert lease is not None
        lease.release()
        lease.release()  # once more does nothing
    assert users.in_flight() == {URLS[0]: 0, URLS[1]: 0}


def test_requests_in_flight_are_counted_across_threads() -> None:
    users = pool()

    def work() -> None:
        for _ in range(500):
            lease = users.pick()
            assert lease is not None
            lease.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(users.in_flight().values()) == {0}


def test_a_verdict_for_an_unknown_url_is_ignored() -> None:
    users = pool()
    users.mark("http://10.0.0.1:1", False)
    assert len(users.available()) == 3


def test_duplicate_instances_and_an_invalid_panic_share_are_rejected() -> None:
    with pytest.raises(ValueError, match="twice"):
        pool(URLS[0], URLS[0] + "/")
    with pytest.raises(ValueError, match="panic"):
        pool(panic=1.5)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:3001", "http://"),
        ("file:///etc/passwd", "http://"),
        ("http://user:secret@a.test", "credentials"),
        ("http://a.test/base", "add_prefix"),
        ("http://a.test?x", "add_prefix"),
        ("http://", "host"),
        ("http://a b", "host"),
        ("http://a.test:0", "port"),
        ("http://a.test:99999", "port"),
        ("http://a.test:x", "port"),
        ("http://[::g]", "host|IPv6|address"),
    ],
)
def test_an_instance_url_has_an_address_only(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Instance(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "normal", "authority"),
    [
        ("http://A.test", "http://a.test", "a.test"),
        ("http://a.test:80/", "http://a.test", "a.test"),
        ("https://a.test:443", "https://a.test", "a.test"),
        ("http://[::1]:3001", "http://[::1]:3001", "[::1]:3001"),
        ("http://10.0.0.1:8000", "http://10.0.0.1:8000", "10.0.0.1:8000"),
    ],
)
def test_the_url_of_an_instance_is_normalized(url: str, normal: str, authority: str) -> None:
    instance = Instance(url)
    assert (instance.url, instance.authority) == (normal, authority)


def turns(from_pool: Pool, times: int, key: str | None = None) -> list[str]:
    """Return who took so many requests, one after the other, by the last digit of the port."""
    urls = []
    for _ in range(times):
        lease = from_pool.pick(key)
        assert lease is not None
        urls.append(lease.instance.url[-1])
        lease.release()
    return urls


def test_round_robin_picks_instances_in_order() -> None:
    users = pool(balance="round-robin", random=lambda: 0.0)
    assert "".join(turns(users, 7)) == "1231231"
    users.mark(URLS[2], False)
    assert "".join(turns(users, 4)) in ("1212", "2121")


def test_requests_are_shared_by_weight() -> None:
    weighted = [Instance(url, weight) for url, weight in zip(URLS, (5, 1, 0), strict=True)]
    smooth = Pool("users", weighted, balance="weighted", random=lambda: 0.0)
    assert "".join(turns(smooth, 6)).count("1") == 5
    chance = random.Random(1).random
    counted = Counter(turns(Pool("users", weighted, balance="random", random=chance), 600))
    assert 450 < counted["1"] < 550
    assert counted["3"] == 0


def test_the_same_key_goes_to_the_same_instance() -> None:
    users = pool(balance="consistent-hash")
    keys = [f"key-{n}" for n in range(60)]
    first = [turns(users, 1, key) for key in keys]
    assert first == [turns(pool(balance="consistent-hash"), 1, key) for key in keys]
    assert {place for [place] in first} == {"1", "2", "3"}


def test_instances_that_failed_the_request_are_picked_last() -> None:
    users = pool()
    lease = users.pick()
    assert lease is not None
    for _ in range(30):
        other = users.pick(avoid=[lease.member])
        assert other is not None
        assert other.instance != lease.instance
    alone = pool(URLS[0])
    first = alone.pick()
    assert first is not None
    assert alone.pick(avoid=[first.member]) is not None


def test_an_instance_starts_slowly_after_it_recovers() -> None:
    clock = FakeClock()
    users = pool(
        *URLS[:2],
        balance="weighted",
        slow_start=100.0,
        panic=0.0,
        clock=clock,
        random=lambda: 0.0,
    )
    assert Counter(turns(users, 100)) == {"1": 50, "2": 50}
    users.mark(URLS[0], False)
    users.mark(URLS[0], True)
    shares = []
    for _ in range(4):
        shares.append(Counter(turns(users, 110))["1"])
        clock.advance(33.4)
    assert shares[0] == 10
    assert shares == sorted(shares)
    assert 50 <= shares[3] <= 60


def test_a_tier_gets_the_share_that_the_previous_tier_lost() -> None:
    tiers = [Instance(url, tier=at // 2) for at, url in enumerate([*URLS, "http://127.0.0.1:3004"])]
    users = Pool("users", tiers, random=random.Random(4).random)
    assert picked(users) == {URLS[0], URLS[1]}
    users.mark(URLS[0], False)
    counts = Counter(turns(users, 2_000))
    assert counts["1"] == 0
    assert 1_300 < counts["2"] < 1_500  # 1.4 times the half of it that is well
    assert counts["3"] + counts["4"] == 2_000 - counts["2"]
    users.mark(URLS[1], False)
    assert set(turns(users, 100)) == {"3", "4"}
    users.mark(URLS[0], True)
    users.mark(URLS[1], True)
    assert set(turns(users, 100)) == {"1", "2"}


def test_a_standby_tier_gets_the_retries_of_the_first() -> None:
    users = Pool("users", [Instance(URLS[0]), Instance(URLS[1], tier=1)])
    first = users.pick()
    assert first is not None
    assert first.instance.url == URLS[0]
    second = users.pick(avoid=[first.member])
    assert second is not None
    assert second.instance.url == URLS[1]
    third = users.pick(avoid=[first.member, second.member])
    assert third is not None
    assert third.instance.url == URLS[0]


def test_requests_go_to_the_next_tier_when_the_first_is_unreachable() -> None:
    with Backend() as one, Backend(reply(b"spare")) as spare:
        rules = OutlierRules(consecutive_failures=2, most_ejected=1.0)
        tiers = [Instance(one.url), Instance(spare.url, tier=3)]
        client = Client(Forwarder(Pool("users", tiers, outlier=rules)))
        assert client.get("/").data == b"ok"
        one.answers = [reply(b"", status="500 No")]
        assert [client.get("/").status_code for _ in range(4)] == [500, 500, 200, 200]
        assert len(spare.requests) == 2


def test_an_invalid_tier_is_rejected() -> None:
    for tier in (-1, 16):
        with pytest.raises(ValueError, match="tier must be 0 to 15"):
            Instance(URLS[0], tier=tier)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"balance": "best"}, "balance is one of two-choices"),
        ({"balance": "sticky"}, "balance is one of two-choices"),
        ({"slow_start": -1}, "slow_start"),
    ],
)
def test_an_invalid_policy_is_rejected(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        pool(**options)


def test_a_latency_policy_gets_the_response_times(backend: Backend) -> None:
    told: list[tuple[bool, bool]] = []

    class Listener(LeastLatency[Any]):
        def answered(self, member: Any, seconds: float, now: float, failed: bool = False) -> None:
            told.append((0 <= seconds < 60, failed))
            super().answered(member, seconds, now, failed)

    backend.answers = [reply(b"ok"), reply(b"", status="500 No"), lambda *_: False]
    users = Pool("users", [Instance(backend.url)], balance=Listener)
    client = Client(Forwarder(users))
    assert [client.get("/").status_code for _ in range(3)] == [200, 500, 502]
    assert told == [(True, False), (True, True), (True, True)]


def test_a_forwarder_picks_by_the_key_of_the_request(backend: Backend) -> None:
    asked: list[str | None] = []

    def key(environ: dict[str, Any]) -> str | None:
        asked.append(environ.get("HTTP_X_TENANT"))
        return asked[-1]

    for balance in ("consistent-hash", lambda chance: LeastLatency(chance)):
        users = Pool("users", [Instance(backend.url)], balance=balance, key=key)
        Client(Forwarder(users)).get("/", headers={"X-Tenant": "a"})
    assert asked == ["a", "a"]


# -- zones -----------------------------------------------------------------------------------------


def in_zones(zone: str, **options: Any) -> Pool:
    """Return a pool of two instances in zone a and two in zone b."""
    urls = {"http://a1": "a", "http://a2": "a", "http://b1": "b", "http://b2": "b"}
    return Pool("svc", [Instance(url, zone=its) for url, its in urls.items()], zone=zone, **options)


def asked(pool: Pool, times: int = 400, **how: Any) -> set[str]:
    found = set()
    for _ in range(times):
        lease = pool.pick(**how)
        assert lease is not None
        found.add(lease.instance.url.removeprefix("http://"))
        lease.release()
    return found


@pytest.mark.parametrize("balance", ["two-choices", "round-robin", "weighted", "consistent-hash"])
def test_requests_go_to_the_own_zone_while_it_has_capacity(balance: str) -> None:
    pool = in_zones("a", balance=balance)
    keys = {"key": "k"} if balance == "consistent-hash" else {}
    assert asked(pool, **keys) <= {"a1", "a2"}
    pool.mark("http://a1", False)
    pool.mark("http://a2", False)
    assert asked(pool, **keys) <= {"b1", "b2"}
    pool.mark("http://a1", True)
    pool.mark("http://a2", True)
    assert asked(pool, **keys) <= {"a1", "a2"}
    assert asked(in_zones("")) == {"a1", "a2", "b1", "b2"}


def test_a_full_zone_overflows_to_others() -> None:
    pool = in_zones("a", instance_limit=1, balance="round-robin")
    held = [pool.pick() for _ in range(4)]
    urls = [lease.instance.url.removeprefix("http://") for lease in held if lease is not None]
    assert sorted(urls[:2]) == ["a1", "a2"]
    assert sorted(urls[2:]) == ["b1", "b2"]
    assert pool.pick() is None


def test_a_retry_stays_in_the_zone_if_it_has_another_instance() -> None:
    pool = in_zones("a")
    first = pool.pick()
    assert first is not None
    assert len(asked(pool, avoid=[first.member]) | {first.instance.url[-2:]}) == 2
    second = pool.pick(avoid=[first.member])
    assert second is not None
    assert asked(pool, avoid=[first.member, second.member]) <= {"b1", "b2"}


def test_a_changed_zone_moves_the_requests() -> None:
    pool = in_zones("a")
    pool.renew([Instance("http://a1", zone="b"), Instance("http://b1", zone="a")])
    assert asked(pool) == {"b1"}
