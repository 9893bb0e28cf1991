"""The balancing policy by latency: a table, its decay, and shares over fixed seeds."""

from __future__ import annotations

import random
from collections import Counter
from math import exp

import pytest

from tests.rules.members import Server, servers
from wsgigate.rules.balance import (
    LeastLatency,
)
from wsgigate.testing import Script


def latency(*chances: float) -> tuple[LeastLatency[Server], list[Server]]:
    policy: LeastLatency[Server] = LeastLatency(Script(chances) if chances else (lambda: 0.0))
    members = servers(2)
    policy.set_members(members)
    return policy, members


def test_a_slower_response_counts_at_once_and_a_faster_one_slowly() -> None:
    policy, (a, _) = latency()
    policy.answered(a, 0.1, 100.0)
    assert policy.load(a, 100.0) == pytest.approx(0.1)
    policy.answered(a, 2.0, 100.0)
    assert policy.load(a, 100.0) == pytest.approx(2.0)
    policy.answered(a, 0.1, 110.0)
    assert policy.load(a, 110.0) == pytest.approx(2 * exp(-1) + 0.1 * (1 - exp(-1)))


def test_a_slow_member_is_picked_again_when_its_latency_has_decayed() -> None:
    policy, (a, b) = latency()
    policy.answered(a, 8.0, 100.0)
    policy.answered(b, 0.1, 100.0)
    assert policy.pick(now=101.0) is b
    policy.answered(b, 0.1, 160.0)
    assert policy.pick(now=160.0) is a


def test_least_latency_counts_requests_in_flight() -> None:
    policy, (a, b) = latency()
    policy.answered(a, 0.1, 100.0)
    policy.answered(b, 0.35, 100.0)
    a.in_flight = 2
    assert policy.pick(now=100.0) is a
    a.in_flight = 3
    assert policy.pick(now=100.0) is b
    a.weight = 2
    assert policy.pick(now=100.0) is a


def test_a_member_without_a_measured_latency_gets_one_request_at_a_time() -> None:
    policy, (a, b) = latency()
    policy.answered(b, 0.5, 100.0)
    assert policy.pick(now=100.0) is a
    a.in_flight, b.in_flight = 1, 50
    assert policy.pick(now=100.0) is b
    a.weight = 4
    assert policy.load(a, 100.0) == LeastLatency.PENALTY / 4


def test_quick_failures_attract_no_requests() -> None:
    policy, (a, b) = latency()
    policy.answered(a, 0.001, 100.0, failed=True)
    policy.answered(b, 0.5, 100.0)
    assert policy.pick(now=100.0) is b
    policy.answered(b, 7.0, 100.0, failed=True)  # and those that come late no more than others
    assert policy.load(b, 100.0) == 7.0


@pytest.mark.parametrize("decay", [0, -1, float("inf"), float("nan")])
def test_a_decay_that_is_not_above_zero_raises(decay: float) -> None:
    with pytest.raises(ValueError, match="decay is a number of seconds above 0"):
        LeastLatency(random.random, decay=decay)


def test_the_latency_of_a_removed_member_is_forgotten() -> None:
    policy, (a, b) = latency()
    policy.answered(a, 9.0, 100.0)
    policy.set_members([b])
    policy.set_members([a, b])
    assert policy.load(a, 100.0) == 0
    policy.answered(a, 9.0, 100.0)
    policy.set_members([b], draining=[a])
    assert policy.load(a, 100.0) == pytest.approx(9.0)


def test_a_clock_set_back_is_no_failure() -> None:
    policy, (a, _) = latency()
    policy.answered(a, 1.0, 100.0)
    policy.answered(a, 0.5, 50.0)
    assert policy.load(a, 20.0) == pytest.approx(1.0)


def test_faster_members_get_more_requests() -> None:
    policy: LeastLatency[Server] = LeastLatency(random.Random(5).random)
    fast, middling, slow = members = servers(3)
    policy.set_members(members)
    takes = {fast.name: 0.01, middling.name: 0.03, slow.name: 0.3}
    counts: Counter[str] = Counter()
    under_way: list[tuple[float, Server]] = []
    for step in range(4_000):
        now = 1000 + step * 0.005
        for entry in [entry for entry in under_way if entry[0] <= now]:
            under_way.remove(entry)
            entry[1].in_flight -= 1
            policy.answered(entry[1], takes[entry[1].name], now)
        member = policy.pick(now=now)
        member.in_flight += 1
        counts[member.name] += 1
        under_way.append((now + takes[member.name], member))
    assert counts[fast.name] > counts[middling.name] > counts[slow.name]
    assert counts[slow.name] < 400
