"""The reasons to open a circuit, call by call."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.rules.circuit import CallCounts, CallWindow, CircuitRules, Outcome, Tally

LETTERS = {
    "+": (Outcome.OK, False),
    "-": (Outcome.FAILED, False),
    "x": (Outcome.UNREACHABLE, False),
    "4": (Outcome.REFUSED, False),
    "?": (Outcome.IGNORED, False),
    "s": (Outcome.OK, True),
    "S": (Outcome.FAILED, True),
}
OFF = {"connect_failures": None, "failure_rate": None}

# settings, calls at one a second ("." is a second without), whether the last one opens the circuit
TABLE = [
    ({**OFF, "consecutive_failures": 3}, "---", True),
    ({**OFF, "consecutive_failures": 3}, "--+--", False),
    ({**OFF, "consecutive_failures": 3}, "--+---", True),
    ({**OFF, "consecutive_failures": 3}, "--4?-", True),
    ({**OFF, "consecutive_failures": 3}, "--......................-", True),
    ({**OFF, "consecutive_failures": 3}, "-xx", True),
    ({**OFF, "consecutive_failures": 3}, "444444444444", False),
    ({**OFF, "consecutive_failures": 3}, "????????????", False),
    ({**OFF, "consecutive_failures": 1}, "-", True),
    ({"failure_rate": None}, "xxxx", False),
    ({"failure_rate": None}, "xxxxx", True),
    ({"failure_rate": None}, "xxxx-x", False),
    ({"failure_rate": None}, "xxxx+x", False),
    ({"failure_rate": None}, "xx4x?xx", True),
    ({"failure_rate": 0.5, "minimum_calls": 4}, "---", False),
    ({"failure_rate": 0.5, "minimum_calls": 4}, "+-+-", True),
    ({"failure_rate": 0.5, "minimum_calls": 4}, "+-++-", False),
    ({"failure_rate": 0.5, "minimum_calls": 4}, "+-++--", True),
    ({"failure_rate": 0.5, "minimum_calls": 4}, "44444-?-4-", False),
    ({"failure_rate": 0.5, "minimum_calls": 4}, "--..........--", False),
    ({"failure_rate": 0.5, "minimum_calls": 4}, "++++..........----", True),
    ({"failure_rate": 1.0, "minimum_calls": 4}, "----", True),
    ({"failure_rate": 1.0, "minimum_calls": 4}, "+----", False),
    ({**OFF, "slow_after": 1, "minimum_calls": 4}, "ssss", True),
    ({**OFF, "slow_after": 1, "minimum_calls": 4}, "sss", False),
    ({**OFF, "slow_after": 1, "minimum_calls": 4}, "sss+s", False),
    ({**OFF, "slow_after": 1, "slow_rate": 0.5, "minimum_calls": 4}, "+s+s", True),
    ({**OFF, "slow_after": 1, "slow_rate": 0.5, "minimum_calls": 4}, "+s+S", True),
    ({**OFF, "slow_after": 1, "slow_rate": 0.5, "minimum_calls": 4}, "s+s+", False),
]


@pytest.mark.parametrize(("settings", "calls", "opens"), TABLE)
def test_the_last_call_of_each_sequence_opens_the_circuit_or_not(
    settings: dict[str, Any], calls: str, opens: bool
) -> None:
    tally = Tally(CircuitRules(**settings))
    now, opened = 100.0, []
    for letter in calls:
        now += 1
        if letter != ".":
            outcome, slow = LETTERS[letter]
            opened.append(tally.add(outcome, now, slow=slow))
    assert bool(opened[-1]) is opens
    assert not any(opened[:-1])


def test_the_defaults_are_those_that_are_documented() -> None:
    tally = Tally(CircuitRules())
    assert not any(tally.add(Outcome.FAILED, 100.0 + at * 0.1) for at in range(19))
    assert tally.add(Outcome.FAILED, 102.0)


def test_the_counts_outlive_a_change_of_state() -> None:
    tally = Tally(CircuitRules(consecutive_failures=2))
    tally.add(Outcome.OK, 1.0)
    tally.add(Outcome.FAILED, 2.0)
    assert tally.add(Outcome.FAILED, 3.0)
    tally.clear()
    assert (tally.failures, tally.successes, tally.last_failure) == (2, 1, 3.0)
    assert not tally.add(Outcome.FAILED, 4.0), "the count to two begins anew"
    tally.add(Outcome.OK, 5.0)
    assert (tally.failures, tally.successes, tally.last_failure) == (0, 2, 4.0)
    tally.add(Outcome.FAILED, 6.0)
    tally.forget()
    assert (tally.failures, tally.last_failure) == (0, None)


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 4, 16, 63, 64, 300]), st.booleans(), st.booleans()),
        max_size=60,
    )
)
def test_a_window_counts_as_a_list_of_all_calls_would(
    calls: list[tuple[int, bool, bool]],
) -> None:
    window, kept, tick = CallWindow(8.0, parts=8), [], 1000  # a tick is an eighth of a second
    for ticks, failed, slow in calls:
        tick += ticks
        now = tick / 8
        kept.append((math.floor(now), failed, slow))
        recent = [call for call in kept if call[0] > math.floor(now) - 8]
        wanted = CallCounts(len(recent), sum(c[1] for c in recent), sum(c[2] for c in recent))
        window.add(now, failed, slow)
        assert window.at(now) == wanted
    assert window.at(tick / 8 + 8) == CallCounts(0, 0, 0)


def test_a_clock_that_goes_back_empties_the_window() -> None:
    window = CallWindow(10.0)
    window.add(100.0, True)
    window.add(50.0, False)
    assert window.at(50.0) == CallCounts(1, 0, 0)
