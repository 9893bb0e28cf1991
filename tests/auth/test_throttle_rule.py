"""The rule that throttles wrong tokens of an address, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.auth.throttle import Guesses, GuessRules

RULES = GuessRules(most=3, window=60.0)


def guessed(*guesses: tuple[float, str]) -> Guesses:
    state = Guesses()
    for at, mark in guesses:
        state = state.after(mark.encode() * 4, at, RULES)
    return state


@pytest.mark.parametrize(
    ("guesses", "now", "wait"),
    [
        ([], 0, 0),
        ([(0, "a"), (1, "b")], 2, 0),
        ([(0, "a"), (1, "b"), (2, "c")], 2, 58),
        ([(0, "a"), (1, "b"), (2, "c")], 60, 0),  # the oldest one no longer counts
        ([(0, "a"), (1, "a"), (2, "a"), (3, "a")], 3, 0),  # one token, however often
        ([(0, "a"), (1, "b"), (2, "c"), (3, "d"), (59, "e")], 59, 1),  # not counted meanwhile
        ([(0, "a"), (1, "b"), (2, "c"), (60, "d")], 60, 1),
        ([(100, "a"), (100, "b"), (100, "c")], 50, 0),  # the clock was set back
        # four services behind one address go on with tokens that were replaced: once they are all
        # known, nobody waits for them any more
        ([(at, mark) for at in range(0, 240, 10) for mark in "abcd"], 240, 0),
        ([(at, chr(97 + at // 10)) for at in range(0, 240, 10)], 235, 5),  # a guesser goes on
    ],
)
def test_distinct_wrong_tokens_are_counted_for_a_while(
    guesses: list[tuple[float, str]], now: float, wait: float
) -> None:
    assert guessed(*guesses).wait(now, RULES) == wait


def test_the_state_is_bytes_of_a_bounded_length() -> None:
    state = guessed(*((20.0 * n, chr(48 + n)) for n in range(70)))
    assert len(state.entries) == 64
    assert Guesses.from_bytes(state.to_bytes()) == state
    assert Guesses.from_bytes(None) == Guesses.from_bytes(b"rubbish") == Guesses()


def test_an_unchanged_state_is_the_same_object() -> None:
    state = guessed((0, "a"), (1, "b"))
    assert state.after(b"aaaa", 2, RULES) is state


@pytest.mark.parametrize("setting", [{"most": 0}, {"most": 65}, {"window": 0}, {"window": 1e9}])
def test_an_invalid_setting_raises(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        GuessRules(**setting)
