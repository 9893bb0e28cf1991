"""The shares of tiers and zones, and the pick within each."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.rules.balance import (
    InstanceState,
    LeastLatency,
    Level,
    RoundRobin,
    Tiers,
    TwoChoices,
    available,
    policy_of,
    tier_of,
    zoned,
)

WELL, ILL, DRAINED = InstanceState(), InstanceState(well=False), InstanceState(weight=0)
SPARE, ILL_SPARE = InstanceState(tier=1), InstanceState(well=False, tier=1)
LAST = InstanceState(tier=7)


def one(*places: int, panic: bool = False, tier: int = 0) -> tuple[Level, ...]:
    return (Level(tier, 1.0, places, panic),)


@pytest.mark.parametrize(
    ("standings", "panic", "found"),
    [
        ((), 0.5, ()),
        ((WELL, WELL), 0.5, one(0, 1)),
        ((WELL, ILL), 0.5, one(0)),
        ((WELL, ILL, ILL), 0.5, one(0, 1, 2, panic=True)),
        ((WELL, ILL, ILL), 0.3, one(0)),
        ((WELL, ILL, ILL), 0, one(0)),
        ((ILL, ILL), 0.5, one(0, 1, panic=True)),
        ((ILL, ILL), 0, ()),
        ((WELL, ILL), 1, one(0, 1, panic=True)),
        ((WELL, WELL, WELL, ILL), 1, one(0, 1, 2, 3, panic=True)),
        ((DRAINED, WELL), 0.5, one(1)),
        ((DRAINED, ILL), 0.5, one(1, panic=True)),
        ((DRAINED, DRAINED), 0.5, ()),
        ((WELL, DRAINED, DRAINED), 1, one(0)),
        # another tier stands by, and takes all when nobody before it is well
        ((WELL, SPARE), 0.5, (*one(0), Level(1, 0.0, (1,)))),
        ((ILL, SPARE), 0.5, one(1, tier=1)),
        ((DRAINED, SPARE), 0.5, one(1, tier=1)),
        ((ILL, ILL_SPARE, LAST), 0.5, one(2, tier=7)),
        # nobody at all is well: the first tier as a whole, or nobody
        ((ILL, ILL_SPARE, ILL_SPARE), 0.5, one(0, panic=True)),
        ((ILL, ILL_SPARE), 0, ()),
        # what others can take is no reason for panic
        ((WELL, ILL, ILL, ILL, SPARE), 0.5, (Level(0, 0.35, (0,)), Level(1, 0.65, (4,)))),
        # what nobody can take is shared in proportion, in panic where there are too few
        (
            (WELL, ILL, ILL, ILL, SPARE, ILL_SPARE, ILL_SPARE, ILL_SPARE),
            0.5,
            (Level(0, 0.5, (0, 1, 2, 3), True), Level(1, 0.5, (4, 5, 6, 7), True)),
        ),
        (
            (WELL, ILL, ILL, ILL, SPARE, ILL_SPARE, ILL_SPARE, ILL_SPARE),
            0,
            (Level(0, 0.5, (0,)), Level(1, 0.5, (4,))),
        ),
        ((WELL, ILL, ILL, ILL, ILL_SPARE), 0.5, one(0, 1, 2, 3, panic=True)),
    ],
)
def test_each_tier_gets_its_share_of_the_requests(
    standings: tuple[InstanceState, ...], panic: float, found: tuple[Level, ...]
) -> None:
    levels = available(standings, panic)
    assert [level._replace(share=0) for level in levels] == [f._replace(share=0) for f in found]
    assert [level.share for level in levels] == pytest.approx([level.share for level in found])


@pytest.mark.parametrize(
    ("well", "spares", "first", "second"),
    [
        # Envoy's own table for a factor of 1.4: who is well of a hundred in each of two tiers
        (100, 100, 1.0, 0.0),
        (72, 100, 1.0, 0.0),
        (71, 100, 0.994, 0.006),
        (50, 100, 0.70, 0.30),
        (25, 100, 0.35, 0.65),
        (25, 25, 0.5, 0.5),
        (0, 100, 0.0, 1.0),
        (50, 0, 1.0, 0.0),
    ],
)
def test_a_tier_takes_1_4_times_its_healthy_share_and_the_next_one_the_rest(
    well: int, spares: int, first: float, second: float
) -> None:
    standings = [InstanceState(at < well) for at in range(100)]
    standings += [InstanceState(at < spares, tier=1) for at in range(100)]
    shares = {level.tier: level.share for level in available(standings, 0)}
    assert shares.get(0, 0) == pytest.approx(first)
    assert shares.get(1, 0) == pytest.approx(second)


@given(
    st.lists(
        st.builds(
            InstanceState,
            well=st.booleans(),
            weight=st.sampled_from([0.0, 1.0, 2.0]),
            tier=st.integers(0, 3),
        ),
        max_size=12,
    ),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_shares_add_up_to_one_and_no_disabled_instance_has_one(
    standings: list[InstanceState], panic: float
) -> None:
    levels = available(standings, panic)
    open_ = [standing for standing in standings if standing.weight]
    someone = any(standing.well for standing in open_)
    assert bool(levels) == bool(open_ and (someone or panic))
    if levels:
        assert sum(level.share for level in levels) == pytest.approx(1)
    assert [level.tier for level in levels] == sorted({level.tier for level in levels})
    for level in levels:
        assert 0 <= level.share <= 1
        assert level.places
        for place in level.places:
            assert standings[place].tier == level.tier
            assert standings[place].weight > 0
            assert standings[place].well or level.panic
        assert not (level.panic and panic == 0)


# -- picking in them -------------------------------------------------------------------------------


@dataclass(eq=False)
class Server:
    name: str
    weight: float = 1.0
    in_flight: int = 0


A, B, C, D = (Server(f"http://10.0.0.{n}") for n in range(4))


def tiers(kind: Any = TwoChoices, seed: int = 3) -> Tiers[Server]:
    chance = random.Random(seed).random
    return Tiers(chance, lambda: kind(chance))


def picked(policy: Tiers[Server], times: int = 2_000, **options: Any) -> Counter[str]:
    told = {"key": None, "avoid": (), "now": 0.0} | options
    return Counter(policy.pick(told["key"], told["avoid"], told["now"]).name for _ in range(times))


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((1.0, 0.0), (1.0, 0.0)),
        ((0.7, 0.3), (0.7, 0.3)),
        ((0.35, 0.65), (0.35, 0.65)),
        ((0.0, 1.0), (0.0, 1.0)),
        ((1.0, 3.0), (0.25, 0.75)),
    ],
)
def test_requests_are_spread_by_the_shares(
    shares: tuple[float, float], expected: tuple[float, float]
) -> None:
    policy = tiers()
    policy.set_members([(0, shares[0], [A, B]), (1, shares[1], [C])])
    counts = picked(policy, 4_000)
    assert (counts[A.name] + counts[B.name]) / 4_000 == pytest.approx(expected[0], abs=0.03)
    assert counts[C.name] / 4_000 == pytest.approx(expected[1], abs=0.03)


def test_one_key_stays_in_one_tier() -> None:
    policy = tiers()
    policy.set_members([(0, 0.5, [A]), (1, 0.5, [B])])
    homes = {key: set(picked(policy, 20, key=key)) for key in map(str, range(200))}
    assert all(len(home) == 1 for home in homes.values())
    assert 70 < sum(home == {A.name} for home in homes.values()) < 130


def test_a_request_that_failed_on_all_of_a_tier_goes_to_the_standby_tier() -> None:
    policy = tiers()
    policy.set_members([(0, 1.0, [A, B]), (1, 0.0, [C]), (2, 0.0, [D])])
    assert set(picked(policy, 50, avoid=[A])) == {B.name}
    assert set(picked(policy, 50, avoid=[A, B])) == {C.name}
    assert set(picked(policy, 50, avoid=[A, B, C])) == {D.name}
    assert set(picked(policy, 50, avoid=[A, B, C, D])) == {A.name, B.name}


def test_a_retry_stays_in_its_tier() -> None:
    policy: Tiers[Server] = Tiers(lambda: 0.5, lambda: RoundRobin(lambda: 0.0))
    policy.set_members([(0, 0.5, [A]), (1, 0.5, [C, D])])  # of two halves, a half is the second
    assert policy.pick(None, (), 0.0) is C
    assert policy.pick(None, [C], 0.0) is D
    assert policy.pick(None, [A, C, D], 0.0) in (C, D)


def test_a_draining_instance_keeps_its_measured_latency() -> None:
    policy = tiers(LeastLatency)
    policy.set_members([(0, 1.0, [A, B])])
    policy.answered(A, 9.0, 100.0)
    policy.answered(B, 1.0, 100.0)
    policy.set_members([(0, 1.0, [B])], [A])
    policy.set_members([(0, 1.0, [A, B])])
    assert set(picked(policy, 50, now=100.0)) == {B.name}


def test_each_tier_keeps_its_position_in_round_robin() -> None:
    policy: Tiers[Server] = Tiers(lambda: 0.0, lambda: RoundRobin(lambda: 0.0))
    policy.set_members([(0, 1.0, [A, B, C])])
    assert policy.pick(None, (), 0.0) is A
    policy.set_members([(1, 1.0, [D])])
    assert policy.pick(None, (), 0.0) is D
    policy.set_members([(0, 1.0, [A, B, C]), (1, 0.0, [D])])
    assert policy.pick(None, (), 0.0) is B


def test_each_tier_measures_its_own_latencies() -> None:
    policy = tiers(LeastLatency)
    policy.set_members([(0, 0.5, [A, B]), (1, 0.5, [C, D])])
    assert policy.timed
    policy.answered(A, 9.0, 100.0)
    policy.answered(B, 0.1, 100.0)
    policy.answered(C, 0.1, 100.0)
    policy.answered(D, 9.0, 100.0)
    policy.answered(Server("http://gone"), 9.0, 100.0)
    assert set(picked(policy, 100, now=100.0)) == {B.name, C.name}


def test_an_unknown_policy_raises() -> None:
    with pytest.raises(ValueError, match="balance is one of two-choices"):
        policy_of("best", random.random)


# -- zones -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "instances", "shares"),
    [
        # An instance is its zone and its tier, with a "!" when it is not well.
        ("a", "a0 a0 b0 b0", {"a": 1.0}),
        ("b", "a0 a0 b0 b0", {"b": 1.0}),
        ("", "a0 a0 b0 b0", {"a": 0.5, "b": 0.5}),  # the gateway is in none
        ("c", "a0 a0 b0 b0", {"a": 0.5, "b": 0.5}),  # none is nearby
        ("a", "a0 -0 -0", {"a": 1.0}),  # what says no zone is not nearby
        ("a", "-0 -0", {"-": 1.0}),
        ("a", "a0! a0! b0 b0", {"b": 1.0}),
        ("a", "a0 a0! b0 b0", {"a": 0.7, "b": 0.3}),
        ("a", "a0 a0 a0 a0! b0 b0", {"a": 1.0}),  # three of four can take it
        ("a", "a0 b0 c0", {"a": 1.0}),
        ("a", "a0! b0 c0", {"b": 0.5, "c": 0.5}),
        ("a", "b0 a1", {"b": 1.0}),  # another tier is none's turn before
        ("a", "a0! b0! a1 b1", {"a": 1.0}),
        ("a", "a0! b0! a1! b1", {"b": 1.0}),
        ("a", "a0! b0 a1 b1", {"b": 1.0}),
    ],
)
def test_the_own_zone_comes_first_and_other_zones_take_the_rest(
    own: str, instances: str, shares: dict[str, float]
) -> None:
    made = [
        (each[0].strip("-"), int(each[1]), not each.endswith("!")) for each in instances.split()
    ]
    standings = [InstanceState(well, 1, zoned(tier, zone, own)) for zone, tier, well in made]
    found: dict[str, float] = {}
    for level in available(standings):
        for place in level.places:
            zone = made[place][0] or "-"
            found[zone] = found.get(zone, 0) + level.share / len(level.places)
    assert {zone: share for zone, share in found.items() if share} == pytest.approx(shares)


@pytest.mark.parametrize("own", ["", "a"])
@pytest.mark.parametrize("zone", ["", "a", "b"])
def test_a_level_belongs_to_its_tier(own: str, zone: str) -> None:
    for tier in range(16):
        assert tier_of(zoned(tier, zone, own), own) == tier
