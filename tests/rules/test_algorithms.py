"""Every algorithm counts exactly, as a slow and obvious model of it does."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.rules.algorithms import (
    ALGORITHMS,
    CalendarWindow,
    FixedWindow,
    SlidingWindow,
    TokenBucket,
)
from wsgigate.rules.quota import Quota, Verdict

EITHER = [TokenBucket, FixedWindow]


def play(algorithm, events):
    """Take at each ``(now, cost)`` in turn; return the verdicts."""
    state, verdicts = None, []
    for now, cost in events:
        state, ttl, verdict = algorithm.take(state, now, cost)
        assert ttl >= verdict.reset_after
        verdicts.append(verdict)
    return verdicts


# now, cost -> allowed, remaining, reset_after, retry_after
BUCKET = [
    ((1000.0, 1), (True, 3, 2.5, 0.0)),
    ((1000.0, 1), (True, 2, 5.0, 0.0)),
    ((1000.0, 2), (True, 0, 10.0, 2.5)),
    ((1000.0, 1), (False, 0, 10.0, 2.5)),
    ((1002.0, 1), (False, 0, 8.0, 0.5)),
    ((1002.5, 1), (True, 0, 10.0, 2.5)),
    ((1005.0, 3), (False, 1, 7.5, 5.0)),
    ((1005.0, 0), (True, 1, 7.5, 0.0)),
    ((1010.0, 3), (True, 0, 10.0, 2.5)),
    ((2000.0, 4), (True, 0, 10.0, 2.5)),
    ((3000.0, 0), (True, 4, 0.0, 0.0)),
]
WINDOW = [
    ((1000.0, 1), (True, 3, 10.0, 0.0)),
    ((1009.0, 2), (True, 1, 1.0, 0.0)),
    ((1009.0, 2), (False, 1, 1.0, 1.0)),
    ((1009.0, 1), (True, 0, 1.0, 1.0)),
    ((1009.5, 1), (False, 0, 0.5, 0.5)),
    ((1009.5, 0), (True, 0, 0.5, 0.5)),
    ((1010.0, 4), (True, 0, 10.0, 10.0)),
    ((1019.9375, 1), (False, 0, 0.0625, 0.0625)),
    ((1030.0, 0), (True, 4, 0.0, 0.0)),
]


@pytest.mark.parametrize(("kind", "table"), [(TokenBucket, BUCKET), (FixedWindow, WINDOW)])
def test_the_verdicts_of_a_story(kind, table):
    verdicts = play(kind(Quota(4, 10)), [event for event, _ in table])
    expected = [
        Verdict(allowed, 4, remaining, pytest.approx(reset), pytest.approx(retry))
        for _, (allowed, remaining, reset, retry) in table
    ]
    assert verdicts == expected


def reference_bucket(limit, period, events):
    """Fill a bucket in exact steps of one nanosecond divided by the limit."""
    tokens, before, allowed = limit * period * 10**9, None, []
    for now, cost in events:
        if before is not None:
            tokens = min(limit * period * 10**9, tokens + (now - before) * limit)
        before = now
        allowed.append(tokens >= cost * period * 10**9)
        if allowed[-1]:
            tokens -= cost * period * 10**9
    return allowed


def reference_window(limit, period, events):
    start, count, allowed = None, 0, []
    for now, cost in events:
        if start is None or now >= start + period * 10**9:
            start, count = None, 0
        allowed.append(count + cost <= limit)
        if allowed[-1] and cost:
            start, count = now if start is None else start, count + cost
    return allowed


@st.composite
def stories(draw):
    limit = draw(st.integers(1, 30))
    period = draw(st.integers(1, 20))
    # steps of 1/1_000_000 s, which a float holds exactly, so that the model may count in integers
    steps = st.integers(0, period * 1_000_000 * 2) | st.integers(0, 40) | st.just(0)
    events, now = [], 10**6 * 1_000_000
    for step, cost in draw(
        st.lists(st.tuples(steps, st.integers(0, min(limit, 3))), min_size=1, max_size=80)
    ):
        now += step
        events.append((now, cost))
    return limit, period, events


@pytest.mark.parametrize(
    ("kind", "reference"), [(TokenBucket, reference_bucket), (FixedWindow, reference_window)]
)
@given(stories())
def test_whatever_happens_it_decides_as_a_slow_model_does(kind, reference, story):
    limit, period, events = story
    verdicts = play(kind(Quota(limit, period)), [(tick / 1_000_000, cost) for tick, cost in events])
    exact = [(tick * 1000, cost) for tick, cost in events]
    assert [verdict.allowed for verdict in verdicts] == reference(limit, period, exact)


@pytest.mark.parametrize("kind", EITHER)
@given(stories())
def test_what_a_verdict_promises_comes_true(kind, story):
    limit, period, events = story
    algorithm = kind(Quota(limit, period))
    state = None
    for tick, cost in events:
        now = tick / 1_000_000
        state, _, verdict = algorithm.take(state, now, cost)
        assert verdict.limit == limit
        assert 0 <= verdict.remaining <= limit
        assert 0 <= verdict.retry_after <= period + 1e-6
        assert 0 <= verdict.reset_after <= period + 1e-6
        assert algorithm.take(state, now, verdict.remaining)[2].allowed
        if verdict.remaining < limit:
            assert not algorithm.take(state, now, verdict.remaining + 1)[2].allowed
        wanted = 1 if verdict.allowed else cost
        later = now + verdict.retry_after + 1e-6
        assert algorithm.take(state, later, wanted)[2].allowed
        if verdict.retry_after > 0.001:
            sooner = now + verdict.retry_after - 0.001
            assert not algorithm.take(state, sooner, wanted)[2].allowed
        assert algorithm.take(state, now + verdict.reset_after + 1e-6, limit)[2].allowed


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("now", [0.0, 1_000_000.0, 1_764_000_000.123])
@pytest.mark.parametrize("quota", [Quota(3, 7), Quota(100_000, 1), Quota(97, 86400)])
def test_a_burst_passes_to_the_last_and_not_one_more(kind, now, quota):
    algorithm = kind(quota)
    state, passed = None, 0
    while True:
        state, _, verdict = algorithm.take(state, now)
        if not verdict.allowed:
            break
        passed += 1
        assert verdict.remaining == quota.limit - passed
    assert passed == quota.limit


@pytest.mark.parametrize("kind", EITHER)
def test_a_refusal_changes_nothing_so_nothing_has_to_be_written(kind):
    algorithm = kind(Quota(1, 10))
    state, _, _ = algorithm.take(None, 1000.0)
    again, _, verdict = algorithm.take(state, 1001.0)
    assert not verdict.allowed
    assert again is state
    assert algorithm.take(None, 1000.0, 0)[0] is None


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("back", [0.001, 5.0, 60.0, 86400.0 * 3650])
def test_a_clock_set_back_locks_nobody_out_for_longer_than_a_period(kind, back):
    algorithm = kind(Quota(2, 10))
    state, now = None, 1e9
    for _ in range(2):
        state, _, _ = algorithm.take(state, now)
    now -= back
    state, _, verdict = algorithm.take(state, now)
    assert not verdict.allowed, "and it is no way to a new quota either"
    assert verdict.retry_after <= 10
    for _ in range(9):  # its asking again and again does not put the end off
        now += 1
        state, _, verdict = algorithm.take(state, now)
    now += 1.001
    assert algorithm.take(state, now)[2].allowed


@pytest.mark.parametrize("kind", EITHER)
def test_a_clock_set_forward_is_no_worse_than_waiting(kind):
    algorithm = kind(Quota(2, 10))
    state, _, _ = algorithm.take(None, 1000.0)
    verdict = algorithm.take(state, 1e9)[2]
    assert (verdict.allowed, verdict.remaining) == (True, 1)


GARBAGE = [
    b"",
    b"x",
    b"100",
    bytes(17),
    b"\xff" * 17,
    b"f" + struct.pack(">qQ", -1, 1),
    b"f" + struct.pack(">qQ", 2**62, 2**63),
    b"f" + struct.pack(">qQ", 10**9, 3),
    b"b" * 16,
    b"b" * 400,
]


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("state", GARBAGE)
def test_bytes_of_somebody_else_count_as_none(kind, state):
    new, _, verdict = kind(Quota(2, 10)).take(state, 1000.0)
    assert verdict[:3] == (True, 2, 1)
    assert kind(Quota(2, 10)).take(new, 1000.0)[2].remaining == 0


@pytest.mark.parametrize("kind", EITHER)
@given(
    st.binary(max_size=20)
    | st.builds(bytes.__add__, st.sampled_from([b"b", b"f"]), st.binary(min_size=16, max_size=16))
)
def test_no_bytes_at_all_lock_a_caller_out_for_longer_than_a_period(kind, state):
    algorithm = kind(Quota(2, 10))
    state, _, verdict = algorithm.take(state, 1000.0)
    assert verdict.retry_after <= 10
    assert algorithm.take(state, 1010.001)[2].allowed


def test_the_state_of_one_algorithm_is_nothing_to_the_other():
    bucket, window = TokenBucket(Quota(2, 10)), FixedWindow(Quota(2, 10))
    assert window.take(bucket.take(None, 1000.0)[0], 1000.0)[2].remaining == 1
    assert bucket.take(window.take(None, 1000.0)[0], 1000.0)[2].remaining == 1


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("cost", [-1, 5, 10**9])
def test_a_cost_that_could_never_be_paid_is_refused_in_words(kind, cost):
    with pytest.raises(ValueError, match=f"a request may cost 0 to 4, .* not {cost}"):
        kind(Quota(4, 10)).take(None, 1000.0, cost)


def test_the_algorithms_go_by_the_names_of_the_settings():
    assert {
        "token-bucket": TokenBucket,
        "fixed-window": FixedWindow,
        "sliding-window": SlidingWindow,
        "calendar": CalendarWindow,
    } == ALGORITHMS
