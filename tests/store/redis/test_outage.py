"""The rules of an outage: when calls fail at once, and when a probe is admitted."""

import pytest

from wsgigate.store.redis_servers import Outage


def test_all_calls_are_admitted_without_failures():
    outage = Outage()
    for now in range(5):
        assert outage.admit(now)
        assert not outage.succeeded()
    assert outage.failures == 0


def play(outage, events):
    """Apply each ``(now, what)`` in turn; return what each answered."""
    told = []
    for now, what in events:
        if what == "ask":
            told.append(outage.admit(now))
        elif what == "ok":
            told.append(outage.succeeded())
        else:
            told.append(outage.failed(now, what))
    return told


def test_the_third_failure_in_a_row_begins_a_pause():
    outage = Outage(tolerated=3, first=0.5, longest=5.0)
    events = [(0, "ask"), (0, 0.0), (1, "ask"), (1, 0.0), (2, "ask"), (2, 0.0)]
    assert play(outage, events) == [True, False, True, False, True, True]
    assert outage.paused
    assert outage.since == 0
    assert play(outage, [(2.49, "ask"), (2.5, "ask"), (2.5, "ask")]) == [False, True, False]


def test_failures_between_successes_do_not_add_up():
    outage = Outage(tolerated=3)
    for now in range(10):
        assert play(outage, [(now, 0.0), (now, 0.0), (now, "ok")]) == [False, False, False]
    assert outage.admit(10)


def paused(**settings):
    outage = Outage(tolerated=1, **settings)
    outage.failed(0.0, 0.0)
    return outage


@pytest.mark.parametrize(
    ("chances", "rests"),
    [
        ([0.0] * 6, [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]),
        ([0.999999] * 6, [0.25, 0.5, 1.0, 2.0, 2.5, 2.5]),
        ([0.5] * 3, [0.375, 0.75, 1.5]),
    ],
)
def test_pauses_double_up_to_the_longest_and_are_shortened_at_random(chances, rests):
    outage, now, found = Outage(tolerated=1, first=0.5, longest=5.0), 100.0, []
    for chance in chances:
        outage.failed(now, chance)
        found.append(outage.until - now)
        now = outage.until
        assert outage.admit(now)
    assert found == pytest.approx(rests, abs=1e-4)


def test_one_probe_at_a_time():
    outage = paused(first=1.0)
    assert [outage.admit(1.0) for _ in range(4)] == [True, False, False, False]


def test_a_lost_probe_does_not_block_others_for_ever():
    outage = paused(first=1.0, longest=5.0)
    assert outage.admit(1.0)
    assert not outage.admit(5.9)
    assert outage.admit(6.0)


def test_calls_in_flight_when_the_pause_begins_do_not_extend_it():
    outage = paused(first=1.0)
    for now in (0.1, 0.2, 0.9):
        assert not outage.failed(now, 0.0)
    assert outage.until == 1.0
    assert outage.failures == 1


def test_a_success_ends_the_pause_for_all_calls():
    outage = paused(first=1.0)
    assert outage.admit(1.0)
    assert outage.succeeded()
    assert [outage.admit(1.0) for _ in range(3)] == [True] * 3
    assert outage.failed(2.0, 0.0)
    assert outage.until == 3.0, "and the next rest is a first one again"
    assert outage.since == 2.0


@pytest.mark.parametrize(
    "settings", [{"tolerated": 0}, {"first": 0.0}, {"first": 2.0, "longest": 1.0}]
)
def test_invalid_settings_are_rejected(settings):
    with pytest.raises(ValueError, match=r"1 or more|pauses: "):
        Outage(**settings)
