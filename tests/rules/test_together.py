"""Several quotas at once: all of them allow a request, or none of them counts it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rules.models import MODELS
from wsgigate.rules.algorithms import (
    CalendarWindow,
    CombinedAlgorithm,
    FixedWindow,
    SlidingWindow,
    TokenBucket,
    tag_of,
    tightest,
)
from wsgigate.rules.quota import Quota, Verdict

NOW = 1_764_547_200.0
# how long it takes to draw a story says something of the machine, and nothing of the algorithms
SECOND = FixedWindow(Quota(2, 1))
MINUTE = SlidingWindow(Quota(3, 60))
MONTH = CalendarWindow(Quota(4, calendar="month"))


def test_if_one_quota_rejects_none_is_charged():
    together = CombinedAlgorithm([SECOND, MINUTE, MONTH])
    state, ttl, verdicts = together.take(None, NOW)
    assert [verdict[:3] for verdict in verdicts] == [(True, 2, 1), (True, 3, 2), (True, 4, 3)]
    assert ttl > 31 * 86400
    state, _, verdicts = together.take(state, NOW)
    refused, _, verdicts = together.take(state, NOW)
    assert refused is state, "nothing has to be written"
    assert [verdict[:3] for verdict in verdicts] == [(False, 2, 0), (True, 3, 1), (True, 4, 2)]
    assert verdicts[0].retry_after == 1.0
    state, _, verdicts = together.take(state, NOW + 1)
    assert [verdict[:3] for verdict in verdicts] == [(True, 2, 1), (True, 3, 0), (True, 4, 1)]
    state, _, verdicts = together.take(state, NOW + 1)
    assert [verdict.allowed for verdict in verdicts] == [True, False, True]
    state, _, verdicts = together.take(state, NOW + 1, 0)
    assert [verdict.remaining for verdict in verdicts] == [1, 0, 1]


@st.composite
def sets(draw):
    kinds = draw(st.permutations([TokenBucket, FixedWindow, SlidingWindow, CalendarWindow]))
    algorithms = []
    for kind in kinds[: draw(st.integers(1, 4))]:
        limit = draw(st.integers(3, 12))
        if kind is CalendarWindow:
            algorithms.append(kind(Quota(limit, calendar=draw(st.sampled_from(["hour", "day"])))))
        else:
            algorithms.append(kind(Quota(limit, draw(st.sampled_from([1, 60, 3600])))))
    steps = st.integers(0, 90_000_000) | st.integers(0, 1_000_000) | st.just(0)
    moves = draw(st.lists(st.tuples(steps, st.integers(0, 3)), max_size=60))
    return algorithms, moves


@given(sets())
def test_several_quotas_decide_as_their_models_do(drawn):
    algorithms, moves = drawn
    together, now, state = CombinedAlgorithm(algorithms), int(NOW * 1_000_000), None
    models = [MODELS[type(algorithm)](algorithm) for algorithm in algorithms]
    for step, cost in moves:
        now += step
        state, ttl, verdicts = together.take(state, now / 1_000_000, cost)
        rooms = [model.used(now) + cost <= model.limit for model in models]
        assert [verdict.allowed for verdict in verdicts] == [
            room or all(rooms) or cost == 0 for room in rooms
        ]
        if all(rooms):
            assert all(model.take(now, cost) for model in models)
        for verdict, model in zip(verdicts, models, strict=True):
            assert verdict.remaining == int(model.limit - model.used(now))
            assert ttl > verdict.reset_after
        wait = max(verdict.retry_after for verdict in verdicts)
        if not all(rooms):
            again = together.take(state, now / 1_000_000 + wait, cost)[2]
            assert all(verdict.allowed for verdict in again)
            early = (now + round(wait * 1_000_000) - 1) / 1_000_000
            assert not all(verdict.allowed for verdict in together.take(state, early, cost)[2])


def test_the_state_has_the_states_of_all_quotas_and_a_few_bytes():
    together = CombinedAlgorithm([SECOND, MINUTE, MONTH])
    state = together.take(None, NOW)[0]
    assert state == b"t" + b"".join(
        tag + len(own).to_bytes(2, "big") + own  # type: ignore[operator]
        for tag, own in ((tag_of(one), one.take(None, NOW)[0]) for one in (SECOND, MINUTE, MONTH))
    )
    assert len(state) == 1 + 3 * 6 + 17 + 71 + 17


def test_the_counts_of_a_quota_outlive_changes_of_the_others():
    state = CombinedAlgorithm([SECOND, MINUTE]).take(None, NOW)[0]
    more = CombinedAlgorithm([MONTH, MINUTE, FixedWindow(Quota(5, 1))])
    state, _, verdicts = more.take(state, NOW)
    assert [verdict.remaining for verdict in verdicts] == [3, 1, 4]
    fewer = CombinedAlgorithm([MINUTE])
    assert fewer.take(state, NOW)[2][0].remaining == 0
    named = CombinedAlgorithm([SlidingWindow(Quota(3, 60, name="renamed"))])
    assert named.take(state, NOW)[2][0].remaining == 0


def test_a_value_cut_short_holds_as_far_as_it_goes():
    together = CombinedAlgorithm([SECOND, MINUTE, MONTH])
    state = together.take(None, NOW)[0]
    whole = [1, 2, 3]  # what remains of each, after the first
    seen = set()
    for end in range(len(state) + 1):
        remaining = [verdict.remaining for verdict in together.take(state[:end], NOW, 0)[2]]
        full = sum(left == limit for left, limit in zip(remaining, (2, 3, 4), strict=True))
        assert remaining == whole[: 3 - full] + [2, 3, 4][3 - full :]
        seen.add(full)
    assert seen == {0, 1, 2, 3}


@given(st.binary(max_size=120) | st.binary(max_size=120).map(lambda rest: b"t" + rest))
def test_foreign_bytes_count_as_none(state):
    verdicts = CombinedAlgorithm([SECOND, MINUTE, MONTH]).take(state, NOW)[2]
    assert [verdict.remaining for verdict in verdicts] == [1, 2, 3]


@given(st.data())
def test_no_change_of_its_bytes_locks_a_caller_out_for_longer_than_a_period(data):
    together = CombinedAlgorithm([SECOND, MINUTE, TokenBucket(Quota(2, 10))])
    state = bytearray(together.take(None, NOW)[0])
    for place in data.draw(st.lists(st.integers(0, len(state) - 1), max_size=8)):
        state[place] = data.draw(st.integers(0, 255))
    new, _, verdicts = together.take(bytes(state), NOW, 2)
    wait = max(verdict.retry_after for verdict in verdicts)
    assert wait <= 62
    assert all(verdict.allowed for verdict in together.take(new, NOW + wait)[2])


def test_a_clock_set_back_is_written_though_the_request_is_refused():
    together = CombinedAlgorithm([FixedWindow(Quota(1, 10)), MINUTE])
    state = together.take(None, NOW)[0]
    back, _, verdicts = together.take(state, NOW - 5)
    assert back is not state
    assert [verdict.allowed for verdict in verdicts] == [False, True]
    assert together.take(back, NOW + 5)[2][0].allowed
    assert not together.take(state, NOW + 5)[2][0].allowed


@pytest.mark.parametrize("cost", [-1, 3, 1.0, None])
def test_a_cost_above_any_of_the_limits_could_never_pass(cost):
    with pytest.raises(ValueError, match=f"may cost 0 to [23], .* not {cost!r}"):
        CombinedAlgorithm([MINUTE, SECOND]).take(None, NOW, cost)


def test_no_quotas_and_equal_quotas_are_rejected():
    with pytest.raises(ValueError, match="at least one quota"):
        CombinedAlgorithm([])
    with pytest.raises(ValueError, match="two of the quotas are the same: 2 per second"):
        CombinedAlgorithm([SECOND, MINUTE, FixedWindow(Quota(2, 1, name="other"))])


def test_the_tightest_quota_rejects_for_longest_or_has_least_left():
    free = Verdict(True, 10, 9, 1.0, 0.0)
    low = Verdict(True, 100, 5, 1.0, 0.0)
    long = Verdict(True, 5, 5, 60.0, 0.0)
    no = Verdict(False, 2, 0, 5.0, 5.0)
    never = Verdict(False, 9, 3, 7.0, 7.0)
    assert tightest([free]) == 0
    assert tightest([free, low]) == 1
    assert tightest([low, long, free]) == 1
    assert tightest([long, low]) == 0
    assert tightest([low, no, long]) == 1
    assert tightest([no, never]) == 1
    assert tightest([never, no]) == 0
