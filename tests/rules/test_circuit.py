"""The circuit: when it opens, which probes pass and when it closes, as tables."""

from __future__ import annotations

import math
import struct
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.rules.circuit import (
    TRANSITIONS,
    CircuitRules,
    CircuitVerdict,
    Event,
    Outcome,
    State,
    acquire,
    force,
    is_forced,
    move,
    pack,
    record_probe,
    trip,
    unpack,
)

CLOSED, OPEN, HALF_OPEN = State
RULES = CircuitRules(open_for=5, open_at_most=30, jitter=0, probes=2, probe_timeout=10)

# now, what happens, state after, seconds to wait (of "acquire") or None, generation
STORIES: dict[str, list[tuple[float, str, State, float | None, int]]] = {
    "it opens, lets two probes pass, and closes": [
        (100, "acquire", CLOSED, 0, 0),
        (100, "trip 0", OPEN, None, 1),
        (101, "acquire", OPEN, 4, 1),
        (104.5, "acquire", OPEN, 0.5, 1),
        (105, "acquire", HALF_OPEN, 0, 2),
        (105, "acquire", HALF_OPEN, 0, 2),
        (105, "acquire", HALF_OPEN, 1, 2),
        (106, "ok 2", HALF_OPEN, None, 2),
        (106, "acquire", HALF_OPEN, 1, 2),
        (107, "ok 2", CLOSED, None, 3),
        (107, "acquire", CLOSED, 0, 3),
    ],
    "a failed probe opens it for twice as long, each time, up to the most": [
        (0, "trip 0", OPEN, None, 1),
        (5, "acquire", HALF_OPEN, 0, 2),
        (5, "failed 2", OPEN, None, 3),
        (5, "acquire", OPEN, 10, 3),
        (15, "acquire", HALF_OPEN, 0, 4),
        (15, "unreachable 4", OPEN, None, 5),
        (15, "acquire", OPEN, 20, 5),
        (35, "acquire", HALF_OPEN, 0, 6),
        (35, "slow 6", OPEN, None, 7),
        (35, "acquire", OPEN, 30, 7),
        (65, "acquire", HALF_OPEN, 0, 8),
        (65, "failed 8", OPEN, None, 9),
        (65, "acquire", OPEN, 30, 9),
    ],
    "one that opens again soon after it was closed stays open for longer": [
        (0, "trip 0", OPEN, None, 1),
        (5, "acquire", HALF_OPEN, 0, 2),
        (5, "acquire", HALF_OPEN, 0, 2),
        (5, "ok 2", HALF_OPEN, None, 2),
        (5, "ok 2", CLOSED, None, 3),
        (34.9, "trip 3", OPEN, None, 4),
        (34.9, "acquire", OPEN, 10, 4),
    ],
    "and one that has held for a while is open for as long as at first": [
        (0, "trip 0", OPEN, None, 1),
        (5, "acquire", HALF_OPEN, 0, 2),
        (5, "acquire", HALF_OPEN, 0, 2),
        (5, "ok 2", HALF_OPEN, None, 2),
        (5, "ok 2", CLOSED, None, 3),
        (35, "trip 3", OPEN, None, 4),
        (35, "acquire", OPEN, 5, 4),
    ],
    "a probe that nothing is heard of is given up, and another one is made": [
        (0, "trip 0", OPEN, None, 1),
        (5, "acquire", HALF_OPEN, 0, 2),
        (6, "acquire", HALF_OPEN, 0, 2),
        (7, "ok 2", HALF_OPEN, None, 2),
        (15.5, "acquire", HALF_OPEN, 0.5, 2),
        (16, "acquire", HALF_OPEN, 0, 3),
        (16, "failed 2", HALF_OPEN, None, 3),
        (16, "ok 2", HALF_OPEN, None, 3),
        (16, "acquire", HALF_OPEN, 0, 3),
        (17, "ok 3", HALF_OPEN, None, 3),
        (17, "ok 3", CLOSED, None, 4),
    ],
    "calls that were let pass before tell nothing": [
        (0, "trip 0", OPEN, None, 1),
        (1, "failed 0", OPEN, None, 1),
        (1, "ok 0", OPEN, None, 1),
        (1, "trip 0", OPEN, None, 1),
        (5, "acquire", HALF_OPEN, 0, 2),
        (5, "ok 0", HALF_OPEN, None, 2),
        (5, "failed 0", HALF_OPEN, None, 2),
        (5, "acquire", HALF_OPEN, 0, 2),
        (5, "ok 2", HALF_OPEN, None, 2),
        (5, "ok 2", CLOSED, None, 3),
        (5, "trip 0", CLOSED, None, 3),
        (5, "failed 2", CLOSED, None, 3),
    ],
    "a client that leaves gives its probe back, and one that is refused has passed": [
        (0, "trip 0", OPEN, None, 1),
        (5, "acquire", HALF_OPEN, 0, 2),
        (5, "acquire", HALF_OPEN, 0, 2),
        (5, "acquire", HALF_OPEN, 1, 2),
        (5, "ignored 2", HALF_OPEN, None, 2),
        (5, "acquire", HALF_OPEN, 0, 2),
        (5, "acquire", HALF_OPEN, 1, 2),
        (5, "refused 2", HALF_OPEN, None, 2),
        (5, "refused 2", CLOSED, None, 3),
    ],
    "an operator closes it at once, and nothing is held against it": [
        (0, "trip 0", OPEN, None, 1),
        (1, "reset", CLOSED, None, 2),
        (1, "acquire", CLOSED, 0, 2),
        (2, "trip 2", OPEN, None, 3),
        (2, "acquire", OPEN, 5, 3),
        (7, "acquire", HALF_OPEN, 0, 4),
        (7, "reset", CLOSED, None, 5),
        (7, "failed 4", CLOSED, None, 5),
    ],
    "forced open it rejects all calls, and probes decide when the time is over": [
        (100, "force-open 20", OPEN, None, 1),
        (110, "acquire", OPEN, 10, 1),
        (110, "ok 0", OPEN, None, 1),
        (120, "acquire", HALF_OPEN, 0, 2),
        (120, "failed 2", OPEN, None, 3),
        (121, "acquire", OPEN, 4, 3),
    ],
    "forced open without an end it is asked again each minute, until it is released": [
        (100, "force-open", OPEN, None, 1),
        (1e9, "acquire", OPEN, 60, 1),
        (1e9, "force-auto", HALF_OPEN, None, 2),
        (1e9, "acquire", HALF_OPEN, 0, 2),
        (1e9, "acquire", HALF_OPEN, 0, 2),
        (1e9, "ok 2", HALF_OPEN, None, 2),
        (1e9, "ok 2", CLOSED, None, 3),
    ],
    "forced closed no failure opens it, until the time is over": [
        (100, "trip 0", OPEN, None, 1),
        (101, "force-closed 60", CLOSED, None, 2),
        (101, "acquire", CLOSED, 0, 2),
        (102, "trip 2", CLOSED, None, 2),
        (160.9, "trip 2", CLOSED, None, 2),
        (161, "trip 2", OPEN, None, 3),
        (161, "acquire", OPEN, 5, 3),
    ],
    "forced while half-open, the probes in flight do not count": [
        (0, "trip 0", OPEN, None, 1),
        (5, "acquire", HALF_OPEN, 0, 2),
        (5, "acquire", HALF_OPEN, 0, 2),
        (6, "force-open 60", OPEN, None, 3),
        (6, "ok 2", OPEN, None, 3),
        (6, "failed 2", OPEN, None, 3),
        (7, "force-closed 60", CLOSED, None, 4),
        (7, "failed 2", CLOSED, None, 4),
        (8, "force-auto", CLOSED, None, 5),
        (8, "trip 4", CLOSED, None, 5),
        (8, "trip 5", OPEN, None, 6),
    ],
    "forced again it has the new time, and a reset releases it": [
        (0, "force-open 10", OPEN, None, 1),
        (5, "force-open 10", OPEN, None, 2),
        (10, "acquire", OPEN, 5, 2),
        (11, "reset", CLOSED, None, 3),
        (11, "trip 3", OPEN, None, 4),
    ],
    "the release of a circuit that is not forced changes nothing": [
        (0, "force-auto", CLOSED, None, 0),
        (0, "trip 0", OPEN, None, 1),
        (1, "force-auto", OPEN, None, 1),
        (2, "force-closed 5", CLOSED, None, 2),
        (7, "force-auto", CLOSED, None, 2),
    ],
}


def play(
    verdict: CircuitVerdict, now: float, what: str, rules: CircuitRules
) -> tuple[CircuitVerdict, Any]:
    word, _, generation = what.partition(" ")
    if word == "acquire":
        return acquire(verdict, now, rules)
    if word == "trip":
        return trip(verdict, int(generation), now, rules), None
    if word == "reset":
        return move(verdict, Event.RESET, now, rules), None
    if word.startswith("force-"):
        lasts = float(generation) if generation else None
        return force(verdict, word.removeprefix("force-"), now, rules, lasts), None
    slow = word == "slow"
    outcome = Outcome.OK if slow else Outcome(word)
    return record_probe(verdict, int(generation), outcome, now, rules, slow=slow), None


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_each_sequence_of_events_leads_to_its_states(
    story: list[tuple[float, str, State, float | None, int]],
) -> None:
    verdict = CircuitVerdict()
    for row in story:
        now, what, state, wait, generation = row
        verdict, waited = play(verdict, now, what, RULES)
        assert (verdict.state, verdict.generation) == (state, generation), row
        assert waited == (None if wait is None else pytest.approx(wait)), row
        assert unpack(pack(verdict), now, RULES) == verdict


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_no_transition_outside_of_the_table_happens(state: State, event: Event) -> None:
    verdict = CircuitVerdict(state, 7, 1000.0, 1)
    if (state, event) in TRANSITIONS:
        moved = move(verdict, event, 1000.0, RULES)
        assert (moved.state, moved.generation) == (TRANSITIONS[state, event], 8)
        assert (moved.taken, moved.passed) == (0, 0)
    else:
        with pytest.raises(ValueError, match=f"{state.name} has no transition {event.name}"):
            move(verdict, event, 1000.0, RULES)


@pytest.mark.parametrize(
    ("trips", "chance", "seconds"),
    [(1, 0, 5), (2, 0, 10), (4, 0, 40), (5, 0, 60), (10**6, 0, 60), (1, 0.5, 4.5), (9, 1, 48)],
)
def test_the_open_time_doubles_up_to_the_most_and_chance_only_shortens_it(
    trips: int, chance: float, seconds: float
) -> None:
    assert CircuitRules().open_time(trips, chance) == pytest.approx(seconds)


def test_the_longest_open_time_defaults_to_a_minute_or_open_for() -> None:
    assert CircuitRules(open_for=5).longest == 60
    assert CircuitRules(open_for=300).longest == 300
    assert CircuitRules(open_for=5, open_at_most=20).longest == 20


# -- a slow model of it: a list of all that ever happened, looked through each time ---------------


class Model:
    """The same circuit, from its history: for each request the moment and the generation."""

    def __init__(self, rules: CircuitRules) -> None:
        self.rules = rules
        self.generation = 0
        self.state = CLOSED
        self.since = 0.0
        self.lengths: list[float] = []
        self.closed_at = -math.inf
        self.probes: list[str] = []
        self.probed = 0.0

    def enter(self, state: State, now: float) -> None:
        self.state, self.since, self.probes = state, now, []
        self.generation += 1

    def open(self, now: float, again: bool) -> None:
        length = self.rules.open_for
        if again and self.lengths:
            length = min(self.rules.longest, self.lengths[-1] * 2)
        self.lengths.append(length)
        self.enter(OPEN, now)

    def acquire(self, now: float) -> bool:
        if self.state is CLOSED:
            return True
        if self.state is OPEN:
            if now - self.since < self.lengths[-1]:
                return False
            self.enter(HALF_OPEN, now)
        elif now - self.probed >= self.rules.probe_timeout:
            self.enter(HALF_OPEN, now)
        elif len(self.probes) - self.probes.count("given back") >= self.rules.probes:
            return False
        self.probes.append("under way")
        self.probed = now
        return True

    def trip(self, generation: int, now: float) -> None:
        if self.state is CLOSED and generation == self.generation:
            self.open(now, again=now - self.closed_at < self.rules.longest)

    def record_probe(self, generation: int, outcome: str, now: float) -> None:
        if self.state is not HALF_OPEN or generation != self.generation:
            return
        if outcome in ("failed", "unreachable"):
            self.open(now, again=True)
            return
        self.probes[self.probes.index("under way")] = (
            "given back" if outcome == "ignored" else "passed"
        )
        if self.probes.count("passed") == self.rules.probes:
            self.enter(CLOSED, now)
            self.closed_at = now


WORDS = ["acquire", "acquire", "acquire", "trip", "ok", "ok", "ok", "refused", "ignored", "failed"]


@given(
    st.builds(
        lambda open_for, most, probes, timeout: CircuitRules(
            open_for=open_for,
            open_at_most=open_for * most,
            probes=probes,
            probe_timeout=timeout,
            jitter=0,
        ),
        st.sampled_from([1.0, 4.0]),
        st.sampled_from([1, 3, 8]),
        st.integers(1, 4),
        st.sampled_from([2.0, 16.0]),
    ),
    st.lists(
        st.tuples(
            st.sampled_from(WORDS), st.sampled_from([0, 0, 0, 0.5, 1, 4, 40]), st.floats(0, 1)
        ),
        max_size=120,
    ),
)
def test_a_circuit_decides_as_its_model_does(
    rules: CircuitRules, story: list[tuple[str, float, float]]
) -> None:
    verdict, model, now = CircuitVerdict(), Model(rules), 1024.0
    under_way: list[int] = []  # the generations of the calls that were let pass
    for word, seconds, which in story:
        now += seconds
        if word == "acquire":
            before = verdict
            verdict, wait = acquire(verdict, now, rules)
            assert (wait == 0) == model.acquire(now)
            assert wait <= rules.longest
            if wait == 0:
                under_way.append(verdict.generation)
            else:
                assert verdict is before, "a refusal is no reason to write anything"
        elif under_way:
            generation = under_way.pop(min(int(which * len(under_way)), len(under_way) - 1))
            if word == "trip":
                verdict = trip(verdict, generation, now, rules)
                model.trip(generation, now)
            else:
                verdict = record_probe(verdict, generation, Outcome(word), now, rules)
                model.record_probe(generation, word, now)
        assert (verdict.state, verdict.generation) == (model.state, model.generation)
        assert 0 <= verdict.passed <= verdict.taken <= rules.probes
        assert unpack(pack(verdict), now, rules) == verdict


# -- what is shared --------------------------------------------------------------------------------


@given(
    st.binary(max_size=40)
    | st.builds(bytes.__add__, st.just(b"c"), st.binary(min_size=23, max_size=23))
)
def test_no_stored_bytes_keep_a_circuit_open_for_longer_than_the_rules_allow(raw: bytes) -> None:
    now = 1000.0
    verdict = unpack(raw, now, RULES)
    assert acquire(verdict, now + 30.001, RULES)[1] == 0


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"c" * 23,
        struct.pack(">cBQdHHH", b"x", 1, 1, 2000.0, 1, 0, 0),
        struct.pack(">cBQdHHH", b"c", 3, 1, 2000.0, 1, 0, 0),
        struct.pack(">cBQdHHH", b"c", 1, 1, math.nan, 1, 0, 0),
        struct.pack(">cBQdHHH", b"c", 1, 1, math.inf, 1, 0, 0),
    ],
)
def test_foreign_bytes_are_a_closed_circuit(raw: bytes | None) -> None:
    assert unpack(raw, 1000.0, RULES) == CircuitVerdict()


@pytest.mark.parametrize("back", [10.0, 3600.0, 1e9])
def test_a_clock_set_back_keeps_it_open_for_no_longer_than_the_most(back: float) -> None:
    raw = pack(trip(CircuitVerdict(), 0, 2e9, RULES))
    verdict = unpack(raw, 2e9 - back, RULES)
    assert verdict.state is OPEN
    assert acquire(verdict, 2e9 - back, RULES)[1] <= 30


def test_a_clock_set_forward_is_no_worse_than_waiting() -> None:
    assert acquire(trip(CircuitVerdict(), 0, 1000.0, RULES), 1e9, RULES)[1] == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"consecutive_failures": 0}, "consecutive_failures is a whole number from 1 to 1000000"),
        ({"consecutive_failures": True}, "consecutive_failures is a whole number"),
        ({"connect_failures": 1.5}, "connect_failures is a whole number"),
        ({"minimum_calls": None}, "minimum_calls is a whole number"),
        ({"probes": 0}, "probes is a whole number from 1 to 1000"),
        ({"probes": 1001}, "probes is a whole number from 1 to 1000"),
        ({"failure_rate": 0}, "failure_rate is a share above 0 and at most 1, got 0"),
        ({"failure_rate": 1.1}, "failure_rate is a share"),
        ({"failure_rate": math.nan}, "failure_rate is a share"),
        ({"slow_rate": "1"}, "slow_rate is a share"),
        ({"slow_after": 0}, "slow_after is more than 0 s and at most a day"),
        ({"window": math.inf}, "window is more than 0 s"),
        ({"open_for": 86401}, "open_for is more than 0 s and at most a day"),
        ({"open_for": 10, "open_at_most": 5}, "open_at_most is not less than open_for: 5 < 10"),
        ({"probe_timeout": -1}, "probe_timeout is more than 0 s"),
        ({"jitter": 1.5}, "jitter is a share between 0 and 1"),
    ],
)
def test_settings_out_of_range_raise(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CircuitRules(**settings)


@pytest.mark.parametrize(
    ("lasts", "read_at", "left"),
    [(60, 1000, 60), (60, 1040, 20), (60, 400, 60), (None, 1000, math.inf), (None, 1, math.inf)],
)
def test_a_forced_circuit_has_its_own_time_whatever_the_clock_did(
    lasts: float | None, read_at: float, left: float
) -> None:
    raw = pack(force(CircuitVerdict(), "open", 1000.0, RULES, lasts))
    verdict = unpack(raw, read_at, RULES)
    assert is_forced(verdict, read_at)
    assert verdict.until - read_at == left or (left == math.inf and verdict.until > 1e15)


def test_an_earlier_release_takes_a_forced_circuit_for_a_closed_one() -> None:
    raw = pack(force(CircuitVerdict(), "open", 1000.0, RULES))
    assert raw[1] >= len(State)
