"""Balancing policies: tables, statistics over fixed seeds, and invariants."""

from __future__ import annotations

import random
from collections import Counter
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rules.members import Server, chi_square, made, picked, servers
from wsgigate.rules.balance import (
    POLICIES,
    ConsistentHash,
    Pairs,
    Random,
    RoundRobin,
    SmoothWeighted,
    TwoChoices,
    slow_start,
)
from wsgigate.testing import Script

# -- what every policy owes ------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_one_member_is_always_picked(name: str) -> None:
    policy, [only] = made(name), servers(1)
    policy.set_members([only])
    assert policy.pick() is only
    assert policy.pick("key", now=5.0) is only
    assert policy.pick(avoid=[only]) is only


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 5)])
@pytest.mark.parametrize("key", [None, "key"])
def test_members_to_avoid_are_picked_only_if_there_are_no_others(
    name: str, weights: tuple[float, ...], key: str | None
) -> None:
    policy, members = made(name), servers(3, *weights)
    policy.set_members(members)
    for _ in range(200):
        assert policy.pick(key, avoid=members[:2]) is members[2]
        assert policy.pick(key, avoid=members[1:2]) is not members[1]
        assert policy.pick(key, avoid=members) in members


@pytest.mark.parametrize("name", POLICIES)
def test_idle_members_that_are_equal_share_equally(name: str) -> None:
    policy, members = made(name), servers(4)
    policy.set_members(members)
    assert chi_square(picked(policy, 10_000), members) < 11.3  # of 3 degrees, in 99 % of cases


@pytest.mark.parametrize("name", ["random", "weighted"])
def test_members_are_picked_in_proportion_to_their_weights(name: str) -> None:
    policy, members = made(name), servers(3, 1, 2, 5)
    policy.set_members(members)
    assert chi_square(picked(policy, 8_000), members) < 9.2


@pytest.mark.parametrize("name", POLICIES)
def test_only_current_members_are_picked(name: str) -> None:
    for seed in range(60):
        chance = random.Random(seed)
        everybody = servers(6)
        policy = made(name, seed)
        for _ in range(5):
            there = chance.sample(everybody, chance.randint(1, 6))
            for member in there:
                member.weight = chance.choice([0.25, 1.0, 3.0])
                member.in_flight = chance.randint(0, 9)
            policy.set_members(there)
            for key in (None, "a", "b", everybody[0].name):
                avoid = chance.sample(everybody, chance.randint(0, 6))
                member = policy.pick(key, avoid=avoid, now=100.0)
                assert member in there
                assert member not in avoid or all(each in avoid for each in there)
                policy.answered(member, 0.1, 100.0)


# -- two choices and random ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "in_flight", "chances", "chosen"),
    [
        ((1, 1), (0, 0), (0.0,), 0),
        ((1, 1), (0, 0), (0.99,), 1),
        ((1, 1), (5, 4), (0.0,), 1),
        ((1, 1), (4, 5), (0.99,), 0),
        ((1, 1, 1), (1, 9, 0), (0.0,), 0),  # of six pairs the first: 0 and 1
        ((1, 1, 1), (1, 9, 0), (0.2,), 2),  # 0 and 2
        ((1, 1, 1), (1, 9, 0), (0.4,), 0),  # 1 and 0
        ((1, 1, 1), (9, 1, 5), (0.99,), 1),  # 2 and 1
        ((4, 1), (3, 0), (0.0, 0.0), 0),  # 4/4 is as busy as 1/1
        ((4, 1), (4, 0), (0.0, 0.0), 1),
        ((1, 2, 3), (0, 0, 0), (0.5, 0.0), 2),  # 2 is drawn, then 0 out of 1 and 2
        ((1, 2, 3), (5, 5, 9), (0.5, 0.9), 1),
        ((1, 2, 3), (0, 9, 9), (0.2, 0.1), 0),
    ],
)
def test_the_less_busy_of_two_is_picked(
    weights: tuple[float, ...], in_flight: tuple[int, ...], chances: Any, chosen: int
) -> None:
    members = servers(len(weights), *weights)
    for member, count in zip(members, in_flight, strict=True):
        member.in_flight = count
    script = Script(chances)
    policy: TwoChoices[Server] = TwoChoices(script)
    policy.set_members(members)
    assert policy.pick() is members[chosen]
    assert script.left == 0


@pytest.mark.parametrize(
    ("weights", "chances", "drawn"),
    [
        ((1, 2, 1), (0.0, 0.5), (0, 1)),  # half of what is left behind the first
        ((0.1, 0.2), (0.0, 1 - 1e-16), (0, 1)),  # beyond all sums, as they are rounded
        ((0.1, 0.1, 0.2), (0.3, 1 - 1e-16), (1, 2)),
        ((0.1, 0.2, 0.1), (0.5, 0.5), (1, 2)),  # the first once more, as they are rounded
        ((0.1, 0.2), (0.5, 1 - 2e-16), (1, 0)),
    ],
)
def test_two_draws_by_weight_are_never_the_same(
    weights: tuple[float, ...], chances: tuple[float, ...], drawn: tuple[int, int]
) -> None:
    members = servers(len(weights), *weights)
    pairs = Pairs(Script(chances), members)
    assert pairs.two() == tuple(members[at] for at in drawn)


def test_two_draws_are_never_the_same_and_all_pairs_are_as_likely() -> None:
    draws = Pairs(random.Random(1).random, servers(3))
    pairs = Counter(tuple(m.name[-6] for m in draws.two()) for _ in range(6_000))
    assert len(pairs) == 6
    assert all(850 < count < 1_150 for count in pairs.values())


@pytest.mark.parametrize("weights", [(), (1, 2, 3, 4, 5)])
def test_under_load_two_choices_are_far_more_even_than_chance(weights: tuple[float, ...]) -> None:
    def spread(kind: Any) -> float:
        members = servers(5, *weights)
        policy = kind(random.Random(3).random)
        policy.set_members(members)
        for _ in range(1_000):  # nothing ever ends
            policy.pick().in_flight += 1
        shares = [member.in_flight / member.weight for member in members]
        return max(shares) - min(shares)

    assert spread(TwoChoices) * 4 < spread(Random)


# -- turns -----------------------------------------------------------------------------------------


def test_round_robin_is_one_after_the_other() -> None:
    policy: RoundRobin[Server] = RoundRobin(lambda: 0.0)
    members = servers(3)
    policy.set_members(members)
    assert [policy.pick() for _ in range(7)] == [*members, *members, members[0]]


@pytest.mark.parametrize("kind", [RoundRobin, SmoothWeighted])
def test_workers_begin_with_different_members(kind: Any) -> None:
    members = servers(4)
    first: Counter[str] = Counter()
    for seed in range(2_000):
        policy = kind(random.Random(seed).random)
        policy.set_members(members)
        first[policy.pick().name] += 1
    assert chi_square(first, members) < 11.3


@pytest.mark.parametrize(
    ("turns", "after", "next_one"),
    [
        (2, "abcd", "c"),
        (2, "acd", "c"),
        (2, "bd", "d"),
        (2, "ad", "d"),
        (1, "bcd", "b"),
        (1, "cd", "c"),
        (4, "abcde", "e"),
        (3, "xyz", "x"),
        (1, "bxy", "x"),
    ],
)
def test_round_robin_goes_on_when_members_come_and_go(
    turns: int, after: str, next_one: str
) -> None:
    everybody = {name: Server(name) for name in "abcdexyz"}
    policy: RoundRobin[Server] = RoundRobin(lambda: 0.0)
    policy.set_members([everybody[name] for name in "abcd"])
    for _ in range(turns):
        policy.pick()
    policy.set_members([everybody[name] for name in after])
    assert policy.pick().name == next_one


def test_a_retry_does_not_skip_a_member_for_the_next_request() -> None:
    policy: RoundRobin[Server] = RoundRobin(lambda: 0.0)
    a, b, c = members = servers(3)
    policy.set_members(members)
    assert policy.pick() is a
    assert policy.pick(avoid=[b]) is c
    assert [policy.pick() for _ in range(3)] == [b, c, a]
    assert policy.pick(avoid=[a]) is b
    assert policy.pick() is c


@pytest.mark.parametrize(
    ("weights", "turns"),
    [((5, 1, 1), "aabacaa"), ((1, 1, 1), "abc"), ((2, 1), "aba"), ((3, 2), "ababa")],
)
def test_smooth_weighted_round_robin_has_the_order_of_nginx(
    weights: tuple[float, ...], turns: str
) -> None:
    policy: SmoothWeighted[Server] = SmoothWeighted(lambda: 0.0)
    policy.set_members([Server(name, weight) for name, weight in zip("abc", weights, strict=False)])
    assert "".join(policy.pick().name for _ in range(3 * len(turns))) == 3 * turns


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 200), st.floats(0, 0.999)
)
def test_smooth_weighted_round_robin_stays_close_to_the_weights(
    weights: list[int], turns: int, chance: float
) -> None:
    policy: SmoothWeighted[Server] = SmoothWeighted(lambda: chance)
    members = servers(len(weights), *weights)
    policy.set_members(members)
    counts = picked(policy, turns)
    for member in members:
        share = turns * member.weight / sum(weights)
        assert abs(counts[member.name] - share) <= 2 * len(weights)


# -- hashing ---------------------------------------------------------------------------------------


def owners(members: list[Server], keys: int = 3_000) -> dict[str, str]:
    policy: ConsistentHash[Server] = ConsistentHash(random.Random(1).random)
    policy.set_members(members)
    return {key: policy.pick(key).name for key in map(str, range(keys))}


def test_a_key_has_the_same_member_whatever_the_order_of_members() -> None:
    members = servers(5)
    assert owners(members) == owners(members[::-1])


def test_the_member_of_a_key_never_changes_between_versions() -> None:
    found = owners(servers(3), 6)
    assert "".join(name.rpartition(".")[2][0] for name in found.values()) == "000111"


@pytest.mark.parametrize("weights", [(), (1, 1, 2, 4)])
def test_keys_are_spread_by_weight(weights: tuple[float, ...]) -> None:
    members = servers(4, *weights)
    assert chi_square(Counter(owners(members, 8_000).values()), members) < 16.3  # 99.9 %


@pytest.mark.parametrize("weights", [(), (1, 2, 3, 1, 2)])
def test_when_a_member_is_removed_only_its_keys_move(weights: tuple[float, ...]) -> None:
    members = servers(5, *weights)
    before, after = owners(members), owners(members[:2] + members[3:])
    moved = [key for key in before if before[key] != after[key]]
    assert set(moved) == {key for key in before if before[key] == members[2].name}
    share = members[2].weight / sum(member.weight for member in members)
    assert len(moved) < 1.15 * share * len(before)


def test_when_a_weight_grows_keys_move_only_to_that_member() -> None:
    before = owners(servers(4, 1, 1, 1, 2))
    after = owners(servers(4, 1, 1, 1, 3))
    gained = servers(4)[3].name
    assert {after[key] for key in before if before[key] != after[key]} == {gained}


@given(
    st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=2, max_size=6),
    st.floats(1.05, 3),
    st.lists(st.sampled_from(["hot", "hot", "hot", "a", "b", "c"]), max_size=150),
)
def test_no_member_exceeds_its_bound_whatever_the_keys(
    weights: list[float], bound: float, keys: list[str]
) -> None:
    members = servers(len(weights), *weights)
    policy: ConsistentHash[Server] = ConsistentHash(random.Random(1).random, bound=bound)
    policy.set_members(members)
    for under_way, key in enumerate(keys, 1):
        member = policy.pick(key)
        member.in_flight += 1
        assert member.in_flight <= ceil(bound * under_way * member.weight / sum(weights))


def test_a_hot_key_moves_to_the_next_member_and_returns() -> None:
    policy: ConsistentHash[Server] = ConsistentHash(random.Random(1).random)
    members = servers(4)
    policy.set_members(members)
    home = policy.pick("hot")
    home.in_flight = 10
    away = policy.pick("hot")
    assert away is not home
    assert away is policy.pick("hot")
    home.in_flight = 0
    assert policy.pick("hot") is home


def ranked(policy: ConsistentHash[Server], members: list[Server]) -> list[Server]:
    """Return who takes the key ``hot``, one after the other as each is avoided."""
    order: list[Server] = []
    while len(order) < len(members):
        order.append(policy.pick("hot", avoid=order))
    return order


def test_the_bound_includes_the_present_request() -> None:
    policy: ConsistentHash[Server] = ConsistentHash(random.Random(1).random, bound=1.25)
    members = servers(2)
    policy.set_members(members)
    home, _ = ranked(policy, members)
    home.in_flight = 1
    assert policy.pick("hot") is home  # 2 is 1.25 times its share of 2, rounded up
    home.in_flight = 2
    assert policy.pick("hot") is not home


def test_if_all_members_are_at_their_bound_the_first_is_picked() -> None:
    policy: ConsistentHash[Server] = ConsistentHash(random.Random(1).random)
    members = servers(3)
    policy.set_members(members)
    first, second, third = ranked(policy, members)
    assert policy.pick("hot", avoid=members) is first
    second.in_flight = third.in_flight = 10
    assert policy.pick("hot", avoid=[first]) is second


@pytest.mark.parametrize("bound", [1, 0, -1, float("nan"), 1001])
def test_a_bound_out_of_range_raises(bound: float) -> None:
    with pytest.raises(ValueError, match="bound is above 1 and at most 1000"):
        ConsistentHash(random.random, bound=bound)


@pytest.mark.parametrize(
    ("age", "window", "aggression", "weight"),
    [
        (0, 30, 1, 0.4),
        (1, 30, 1, 0.4),
        (15, 30, 1, 2.0),
        (30, 30, 1, 4.0),
        (99, 30, 1, 4.0),
        (7.5, 30, 2, 2.0),
        (0, 0, 1, 4.0),
        (-5, 30, 1, 0.4),
        (-5, 30, 2, 0.4),
    ],
)
def test_a_member_in_slow_start_has_a_smaller_weight(
    age: float, window: float, aggression: float, weight: float
) -> None:
    assert slow_start(4.0, age, window, aggression=aggression) == pytest.approx(weight)
