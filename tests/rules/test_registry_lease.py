"""Leases and self-preservation, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.rules.registry import (
    Evictions,
    LeaseRules,
    Registered,
    Status,
    evictions,
    is_preserving,
    silent_since,
    was_away,
)

RULES = LeaseRules()
NOBODY = Evictions()


def entry(name: str, heard: float, service: str = "users") -> Registered:
    return Registered(service, name, "10.0.0.5", 80).heard(heard)


@pytest.mark.parametrize(
    ("status", "silence", "healthy"),
    [
        (Status.UP, 0, True),
        (Status.UP, 30, True),
        (Status.UP, 30.1, False),
        (Status.UP, -5, True),  # the clock was set back
        (Status.STARTING, 0, False),
        (Status.DRAINING, 0, False),
        (Status.DOWN, 0, False),
    ],
)
def test_an_instance_is_healthy_while_it_is_up_and_sends_heartbeats(
    status: Status, silence: float, healthy: bool
) -> None:
    known = replace(entry("a", 1000.0), status=status)
    assert known.healthy(1000.0 + silence, RULES) is healthy


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"heartbeat": 0}, "heartbeat"),
        ({"heartbeat": 3601}, "heartbeat"),
        ({"heartbeat": float("nan")}, "heartbeat"),
        ({"unhealthy_after": 10}, "unhealthy_after"),
        ({"unhealthy_after": 86_401, "remove_after": 86_402}, "unhealthy_after"),
        ({"remove_after": 29}, "remove_after"),
        ({"remove_after": 86_401}, "remove_after"),
        ({"preserve": 1.1}, "preserve"),
        ({"preserve": -0.1}, "preserve"),
    ],
)
def test_contradicting_rules_are_rejected(settings: dict[str, float], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        LeaseRules(**settings)


@pytest.mark.parametrize(
    ("heard", "away", "since"),
    [
        (100, [], 100),
        (100, [(200, 260)], 160),  # all of it
        (220, [(200, 260)], 260),  # what is left of it
        (300, [(200, 260)], 300),  # it was before
        (100, [(200, 260), (300, 310)], 170),
        (270, [(200, 260), (300, 310)], 280),
    ],
)
def test_absences_of_the_registry_do_not_count_as_silence(
    heard: float, away: list[tuple[float, float]], since: float
) -> None:
    assert silent_since(heard, away) == since


def test_only_expired_leases_are_evicted() -> None:
    entries = [
        entry("a", 0),
        entry("b", 10),
        entry("c", 80),
        *(entry(f"{n}", 90) for n in range(9)),
    ]
    assert evictions(entries, 90, RULES, NOBODY) == ((), NOBODY)
    assert evictions(entries, 90.1, RULES, NOBODY)[0] == (entries[0],)


@pytest.mark.parametrize(
    ("silent", "count", "preserving"),
    [(1, 1, False), (1, 3, False), (2, 3, True), (15, 100, False), (16, 100, True), (0, 0, False)],
)
def test_self_preservation_starts_above_the_share(
    silent: int, count: int, preserving: bool
) -> None:
    assert is_preserving(silent, count, RULES) is preserving


def gone(entries: list[Registered], minutes: int, rules: LeaseRules = RULES) -> list[list[str]]:
    """Return who goes in each minute from 91 s on, asked every second."""
    left, state, told = list(entries), NOBODY, []
    for minute in range(minutes):
        names: list[str] = []
        for second in range(60):
            now = 91.0 + 60 * minute + second
            out, state = evictions(left, now, rules, state)
            names += [f"{each.service}/{each.instance_id}" for each in out]
            left = [each for each in left if each not in out]
        told.append(names)
    return told


def test_self_preservation_evicts_a_share_each_minute() -> None:
    entries = [entry(f"{n:03}", 0) for n in range(100)]
    counts = [len(names) for names in gone(entries, 4)]
    assert counts == [15, 12, 10, 9]  # 15 % of those that were there when the minute began


def test_evictions_of_the_minute_reduce_the_room() -> None:
    """15 of 100 may go in a minute: ten went, so five more go of those that follow."""
    first = [entry(f"a{n}", 0) for n in range(10)]
    later = [entry(f"b{n}", 9) for n in range(10)]
    alive = [entry(f"c{n}", 1e9) for n in range(80)]
    out, state = evictions([*first, *later, *alive], 91, RULES, NOBODY)
    assert (set(out), state) == (set(first), Evictions(91, 10))
    out, state = evictions([*later, *alive], 100, RULES, state)
    assert (out, state) == (tuple(later[:5]), Evictions(91, 15))
    left = later[5:]
    assert evictions([*left, *alive], 150.9, RULES, state) == ((), state)
    # a new minute, in which five of 85 are too few for it to be the network's fault
    assert evictions([*left, *alive], 151, RULES, state) == (tuple(left), Evictions(151, 5))


def test_the_minute_is_shorter_with_shorter_leases() -> None:
    rules = LeaseRules(1.0, 2.0, 20.0)
    state = Evictions(100.0, 3)
    assert [rules.recent(state, now) for now in (99.9, 100.0, 119.9, 120.0)] == [0, 3, 3, 0]
    assert [RULES.recent(state, now) for now in (159.9, 160.0)] == [3, 0]


def test_one_of_a_few_instances_can_always_be_evicted() -> None:
    alive = [entry(name, 1e9) for name in "bc"]
    assert gone([entry("a", 0), *alive], 1) == [["users/a"]]
    assert gone([entry("a", 0)], 1) == [["users/a"]]
    assert gone([entry("a", 0), entry("b", 0), entry("c", 1e9)], 2) == [["users/a"], ["users/b"]]


def test_evictions_are_spread_over_services() -> None:
    entries = [
        *(entry(f"{n}", 0, "large") for n in range(10)),
        *(entry(f"{n}", 0, "small") for n in range(2)),
        entry("0", 0, "single"),
    ]
    rules = LeaseRules(preserve=0.5)
    first, second = gone(entries, 2, rules)
    assert first == [
        *("large/0", "large/1", "large/2", "large/3", "large/4", "small/0"),
    ]
    assert second[-1] != "single/0"


def test_all_expired_instances_are_evicted_without_self_preservation() -> None:
    entries = [entry(f"{n}", 0) for n in range(50)]
    assert len(gone(entries, 1, LeaseRules(preserve=1))[0]) == 50


def test_the_minute_restarts_when_the_clock_is_set_back() -> None:
    entries = [entry(f"{n:03}", 0) for n in range(100)]
    out, state = evictions(entries, 1000.0, RULES, Evictions(5000.0, 15))
    assert len(out) == 15
    assert state == Evictions(1000.0, 15)


@given(
    st.lists(st.tuples(st.floats(0, 500), st.sampled_from("abc")), max_size=40),
    st.floats(0, 0.9),
)
def test_no_minute_exceeds_its_share_and_no_lease_ends_early(
    heard: list[tuple[float, str]], preserve: float
) -> None:
    rules = LeaseRules(preserve=preserve)
    left = [entry(f"{n}", moment, service) for n, (moment, service) in enumerate(heard)]
    state = NOBODY
    for now in range(0, 800, 7):
        out, new = evictions(left, now, rules, state)
        assert all(now - each.silent_since > rules.remove_after for each in out)
        silent = sum(now - each.silent_since > rules.unhealthy_after for each in left)
        if is_preserving(silent, len(left), rules):
            assert len(out) <= max(1, preserve * (len(left) + state.gone))
        state, left = new, [each for each in left if each not in out]


@pytest.mark.parametrize(
    ("heartbeat", "gap", "steady", "away"),
    [
        (10, 1.1, False, False),  # two rounds as they should be
        (10, 3.0, False, False),
        (10, 3.1, False, True),  # a restart, an outage of the store, another leader
        (10, 8.0, False, True),
        (10, 8.0, True, False),  # a long round of the same worker, which heard heartbeats
        (10, 10.0, True, False),
        (10, 10.1, True, True),  # the machine slept, or its clock was set
        (1, 1.5, False, False),
        (1, 1.6, False, True),  # where leases are short, a short outage is as bad
        (1, 1.6, True, False),
        (3600, 3.1, False, True),
        (10, -50.0, False, False),
    ],
)
def test_the_gaps_that_count_as_an_absence(
    heartbeat: float, gap: float, steady: bool, away: bool
) -> None:
    rules = LeaseRules(heartbeat, 3 * heartbeat, 9 * heartbeat)
    assert was_away(gap, rules, steady=steady) is away
