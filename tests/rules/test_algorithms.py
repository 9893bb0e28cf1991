"""Every algorithm counts exactly, as a slow and obvious model of it does."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.rules.models import MODELS
from wsgigate.rules.algorithms import (
    ALGORITHMS,
    CalendarWindow,
    FixedWindow,
    SlidingWindow,
    TokenBucket,
    algorithm_for,
)
from wsgigate.rules.quota import LARGEST, LONGEST, Quota, Verdict

# how long it takes to draw a story says something of the machine, and nothing of the algorithm
KINDS = [TokenBucket, FixedWindow, SlidingWindow, CalendarWindow]
TODAY = 1_764_547_200_000_000  # in microseconds: 2025-12-01, a Monday


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
# slots of a second: 4 in 30 s
SLIDING = [
    ((3000.25, 1), (True, 3, 30.75, 0.0)),
    ((3010.0, 2), (True, 1, 31.0, 0.0)),
    ((3010.5, 2), (False, 1, 30.5, 20.5)),
    ((3020.0, 1), (True, 0, 31.0, 11.0)),
    ((3030.999999, 1), (False, 0, 20.000001, 0.000001)),
    ((3031.0, 0), (True, 1, 20.0, 0.0)),
    ((3031.0, 1), (True, 0, 31.0, 10.0)),
    ((3031.0, 3), (False, 0, 31.0, 20.0)),
    ((3031.0, 4), (False, 0, 31.0, 31.0)),
    ((3041.0, 2), (True, 0, 31.0, 10.0)),
    ((3072.0, 0), (True, 4, 0.0, 0.0)),
    ((4000.5, 4), (True, 0, 30.5, 30.5)),
    ((4030.5, 1), (False, 0, 0.5, 0.5)),
    ((4031.0, 1), (True, 3, 31.0, 0.0)),
]
MONTH = [
    ((1_767_225_598.0, 1), (True, 3, 2.0, 0.0)),  # the last two seconds of 2025
    ((1_767_225_599.5, 3), (True, 0, 0.5, 0.5)),
    ((1_767_225_599.75, 1), (False, 0, 0.25, 0.25)),
    ((1_767_225_600.0, 4), (True, 0, 31 * 86400.0, 31 * 86400.0)),
    ((1_769_903_999.999999, 1), (False, 0, 0.000001, 0.000001)),
    ((1_769_904_000.0, 1), (True, 3, 28 * 86400.0, 0.0)),
    ((1_772_323_200.0, 0), (True, 4, 0.0, 0.0)),
]


@pytest.mark.parametrize(
    ("algorithm", "table"),
    [
        (TokenBucket(Quota(4, 10)), BUCKET),
        (FixedWindow(Quota(4, 10)), WINDOW),
        (SlidingWindow(Quota(4, 30)), SLIDING),
        (CalendarWindow(Quota(4, calendar="month")), MONTH),
    ],
    ids=sorted(ALGORITHMS, key=list(ALGORITHMS).index),
)
def test_each_sequence_of_requests_has_its_verdicts(algorithm, table):
    verdicts = play(algorithm, [event for event, _ in table])
    expected = [
        Verdict(allowed, 4, remaining, reset, retry)
        for _, (allowed, remaining, reset, retry) in table
    ]
    assert verdicts == expected


def quota_of(kind, limit, period):
    """Return a quota that *kind* can count, of about *period* seconds."""
    if kind is not CalendarWindow:
        return Quota(limit, period)
    return Quota(limit, calendar=("hour", "day", "week", "month", "year")[int(period) % 5])


@st.composite
def stories(draw, back=False):
    """Draw a limit, a period, and by how many millionths of it time goes on for each cost."""
    limit = draw(st.integers(1, 30) | st.sampled_from([70_000, 10**8, LARGEST]))
    period = draw(st.integers(1, 20) | st.sampled_from([0.001, 1 / 3, 86400.0, LONGEST]))
    unit = 1_000_000
    steps = st.integers(0, 2 * unit) | st.integers(0, unit // 25) | st.integers(0, 5) | st.just(0)
    if back:
        steps |= st.integers(-2 * unit, -1)
    least = max(1, limit // 30)
    costs = st.just(1) | st.just(least) | st.integers(0, min(limit, 3 * least))
    moves = draw(st.lists(st.tuples(steps, costs), min_size=1, max_size=60))
    return limit, period, moves


def events_of(algorithm, moves):
    """Return the moments, in microseconds, and the costs."""
    now, events = TODAY, []
    for step, cost in moves:
        now = max(0, now + int(step * algorithm.quota.period))
        events.append((now, cost))
    return events


@pytest.mark.parametrize("kind", KINDS)
@given(stories())
def test_each_algorithm_decides_as_its_model_does(kind, story):
    limit, period, moves = story
    algorithm = kind(quota_of(kind, limit, period))
    events = events_of(algorithm, moves)
    model = MODELS[kind](algorithm)
    expected = [model.take(now, cost) for now, cost in events]
    verdicts = play(algorithm, [(now / 1_000_000, cost) for now, cost in events])
    assert [verdict.allowed for verdict in verdicts] == expected


@pytest.mark.parametrize("kind", [FixedWindow, SlidingWindow, CalendarWindow])
@given(stories(back=True))
def test_a_clock_set_back_makes_of_later_moments_the_present_one(kind, story):
    limit, period, moves = story
    algorithm = kind(quota_of(kind, limit, period))
    model, state = MODELS[kind](algorithm), None
    for now, cost in events_of(algorithm, moves):
        state, _, verdict = algorithm.take(state, now / 1_000_000, cost)
        assert verdict.allowed is model.take(now, cost)


@given(stories(back=True))
def test_a_clock_set_back_never_fills_a_bucket(story):
    limit, period, moves = story
    algorithm = TokenBucket(Quota(limit, period))
    state, used, before, passed = None, 0, None, 0
    token = algorithm.token
    for now, cost in events_of(algorithm, moves):
        at = now // algorithm.tick
        state, _, verdict = algorithm.take(state, now / 1_000_000, cost)
        # whatever the clock did: what has passed is at most a full bucket and what flowed in
        passed += max(0, at - before) * limit if before is not None else 0
        before = at
        used += cost * token if verdict.allowed else 0
        assert used <= limit * token + passed


@pytest.mark.parametrize("kind", [TokenBucket, SlidingWindow])
@given(stories())
def test_no_span_of_time_admits_more_than_the_algorithm_allows(kind, story):
    limit, period, moves = story
    algorithm = kind(Quota(limit, period))
    events = events_of(algorithm, moves)
    micros = algorithm.quota.micros
    verdicts = play(algorithm, [(now / 1_000_000, cost) for now, cost in events])
    passed = [event for event, verdict in zip(events, verdicts, strict=True) if verdict.allowed]
    for first, (start, _) in enumerate(passed):
        total = 0
        for now, cost in passed[first:]:
            total += cost
            span = now - start
            if kind is SlidingWindow:
                assert span >= micros or total <= limit
            else:
                assert total * micros <= limit * (micros + span + algorithm.tick)


@pytest.mark.parametrize("kind", KINDS)
@given(stories(back=True))
@example((LARGEST, LONGEST, [(0, LARGEST), (3, 1), (0, LARGEST)]))
def test_retry_after_and_reset_are_exact_to_the_microsecond(kind, story):
    limit, period, moves = story
    algorithm = kind(quota_of(kind, limit, period))
    longest = algorithm.quota.period * (1 + 2 / 30) + algorithm.quota.period % 1

    def allows(moment, cost):
        return algorithm.take(state, moment / 1_000_000, cost)[2].allowed

    state = None
    for now, cost in events_of(algorithm, moves):
        state, ttl, verdict = algorithm.take(state, now / 1_000_000, cost)
        assert verdict.limit == limit
        assert 0 <= verdict.remaining <= limit
        assert 0 <= verdict.retry_after <= verdict.reset_after <= longest
        assert ttl > verdict.reset_after
        assert allows(now, verdict.remaining)
        if verdict.remaining < limit:
            assert not allows(now, verdict.remaining + 1)
        wanted = 1 if verdict.allowed else cost
        assert (verdict.retry_after > 0) is not allows(now, wanted)
        if verdict.retry_after:
            there = now + round(verdict.retry_after * 1_000_000)
            assert allows(there, wanted)
            assert not allows(there - 1, wanted)
            assert algorithm.take(state, now / 1_000_000 + verdict.retry_after, wanted)[2].allowed
        there = now + round(verdict.reset_after * 1_000_000)
        assert allows(there, limit)
        assert verdict.reset_after == 0 or not allows(there - 1, limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("now", [0.0, 1_000_000.0, 1_764_000_000.123])
@pytest.mark.parametrize("quota", [(3, 7), (20_000, 1), (97, 86400)])
def test_a_burst_passes_to_the_last_and_not_one_more(kind, now, quota):
    algorithm = kind(quota_of(kind, *quota))
    state, passed = None, 0
    while True:
        state, _, verdict = algorithm.take(state, now)
        if not verdict.allowed:
            break
        passed += 1
        assert verdict.remaining == algorithm.quota.limit - passed
    assert passed == algorithm.quota.limit


@pytest.mark.parametrize("limit", [1, 7, 65_535, 65_536, 94_906_265, 94_906_266, LARGEST])
@pytest.mark.parametrize("period", [0.001, 1, 900, 86400 * 30, LONGEST])
def test_every_number_is_one_that_a_double_holds(limit, period):
    quota = Quota(limit, period)
    now = 4_000_000_000.0  # in the year 2096
    bucket, sliding = TokenBucket(quota), SlidingWindow(quota)
    _, since, lacked = struct.unpack(">cqQ", bucket.take(None, now, limit)[0])
    assert max(since, lacked, limit * bucket.token) < 2**53
    assert bucket.tick in [10**n for n in range(9)]
    counts = struct.unpack_from(">q", sliding.take(None, now, limit)[0], 1)
    assert max(counts) < 2**53
    assert len(sliding.take(None, now, limit)[0]) == 9 + 31 * (2 if limit < 65_536 else 4)


def test_ticks_are_microseconds_unless_the_numbers_are_huge():
    assert TokenBucket(Quota(1_000_000, 3600)).tick == 1
    assert TokenBucket(Quota(LARGEST, 1)).tick == 1
    assert TokenBucket(Quota(LARGEST, LONGEST)).tick == 100_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_changes_nothing_so_nothing_has_to_be_written(kind):
    algorithm = kind(quota_of(kind, 1, 10))
    state, _, _ = algorithm.take(None, 1000.0)
    again, _, verdict = algorithm.take(state, 1001.0)
    assert not verdict.allowed
    assert again is state
    assert algorithm.take(state, 1001.0, 0)[0] is state
    assert algorithm.take(None, 1000.0, 0)[0] is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("back", [0.001, 5.0, 60.0, 86400.0 * 3650])
def test_a_clock_set_back_blocks_a_caller_for_at_most_a_period(kind, back):
    algorithm = kind(quota_of(kind, 2, 10))
    longest = algorithm.quota.period * (31 / 30 if kind is SlidingWindow else 1)
    state, now = None, 1e9
    for _ in range(2):
        state, _, _ = algorithm.take(state, now)
    now -= back
    state, _, verdict = algorithm.take(state, now)
    assert not verdict.allowed, "and it is no way to a new quota either"
    assert verdict.retry_after <= longest
    end = now + verdict.retry_after
    for _ in range(4):  # its asking again and again does not put the end off
        now += verdict.retry_after / 5
        state, _, later = algorithm.take(state, now)
        assert not later.allowed
        assert now + later.retry_after == pytest.approx(end, abs=1e-5)
    assert algorithm.take(state, end + 0.001)[2].allowed


@pytest.mark.parametrize("kind", KINDS)
def test_a_clock_set_forward_is_no_worse_than_waiting(kind):
    algorithm = kind(quota_of(kind, 2, 10))
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
    b"b" + struct.pack(">qQ", 10**9, 20_000_001),
    b"b" + b"\xff" * 16,
    b"c" + struct.pack(">qQ", 2**62, 3),
    b"c" + struct.pack(">qQ", -(2**63), 1),
    b"s" + struct.pack(">q31H", 3000, 3, *[0] * 30),
    b"s" + struct.pack(">q31H", -(2**63), 2, *[0] * 30),
    b"s" + b"\xff" * 70,
    b"b" * 16,
    b"b" * 400,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", GARBAGE)
def test_foreign_bytes_count_as_none(kind, state):
    algorithm = kind(quota_of(kind, 2, 10))
    new, _, verdict = algorithm.take(state, 1000.0)
    assert verdict[:3] == (True, 2, 1)
    assert algorithm.take(new, 1000.0)[2].remaining == 0


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.binary(max_size=80)
    | st.builds(bytes.__add__, st.sampled_from([b"b", b"f", b"c"]), st.binary(min_size=16))
    | st.builds(bytes.__add__, st.just(b"s"), st.binary(min_size=70, max_size=70))
    | st.builds(
        lambda n, c: b"s" + struct.pack(">q31H", n, *c),
        st.integers(-(2**63), 2**63 - 1),
        st.lists(st.integers(0, 1), min_size=31, max_size=31),
    )
)
def test_no_stored_bytes_reject_a_caller_for_longer_than_a_period(kind, state):
    algorithm = kind(quota_of(kind, 20, 10))
    state, _, verdict = algorithm.take(state, 1000.0, 20)
    assert verdict.retry_after <= algorithm.quota.period * 31 / 30 + 1e-5
    assert algorithm.take(state, 1000.0 + verdict.retry_after, 1)[2].remaining < 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_the_state_of_one_algorithm_is_nothing_to_another(kind, other):
    state, _, _ = kind(quota_of(kind, 2, 10)).take(None, 1000.0)
    assert other(quota_of(other, 2, 10)).take(state, 1000.0)[2].remaining == (kind is not other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cost", [-1, 5, 10**9, 1.0, 0.5, True, "1", None])
def test_a_cost_above_the_limit_raises(kind, cost):
    with pytest.raises(ValueError, match=f"a request may cost 0 to 4, .* not {cost!r}"):
        kind(quota_of(kind, 4, 10)).take(None, 1000.0, cost)


def test_the_algorithms_go_by_the_names_of_the_settings():
    assert {
        "token-bucket": TokenBucket,
        "fixed-window": FixedWindow,
        "sliding-window": SlidingWindow,
        "calendar": CalendarWindow,
    } == ALGORITHMS


def test_a_quota_is_counted_by_what_can_count_it():
    month = Quota(5, calendar="month")
    assert isinstance(algorithm_for(Quota(5, 60)), TokenBucket)
    assert isinstance(algorithm_for(Quota(5, 60), "sliding-window"), SlidingWindow)
    assert isinstance(algorithm_for(month), CalendarWindow)
    assert algorithm_for(month, "calendar").quota is month
    for name in ("token-bucket", "fixed-window", "sliding-window"):
        with pytest.raises(ValueError, match=f'month is counted by the .* "calendar", .* {name!r}'):
            algorithm_for(month, name)
    with pytest.raises(ValueError, match=r"calendar. counts .* not '5 per minute'"):
        algorithm_for(Quota(5, 60), "calendar")
    with pytest.raises(ValueError, match=r"algorithm is one of token-bucket, .* not 'leaky'"):
        algorithm_for(Quota(5, 60), "leaky")
