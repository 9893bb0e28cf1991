"""The rules for renewing a list of instances, as tables."""

from __future__ import annotations

import pytest

from wsgigate.discovery.watcher import EmptyGuard, pause


@pytest.mark.parametrize(
    "steps",
    [
        # seconds, known, found, certain, believed
        [(0, True, True, False, True)],
        [(0, True, False, True, True)],  # somebody wants it so
        [(0, False, False, False, True)],  # there is nothing to lose
        [(0, True, False, False, False), (29.9, True, False, False, False)],
        [(0, True, False, False, False), (30, True, False, False, True)],
        # a good answer meanwhile, and it begins anew
        [
            (0, True, False, False, False),
            (20, True, True, False, True),
            (31, True, False, False, False),
        ],
        [(0, True, False, False, False), (1, True, False, True, True)],
    ],
)
def test_an_empty_answer_is_accepted_when_it_is_certain_or_lasts(
    steps: list[tuple[float, bool, bool, bool, bool]],
) -> None:
    emptiness = EmptyGuard(30.0)
    for now, known, found, certain, believed in steps:
        assert emptiness.accepts(known=known, found=found, certain=certain, now=now) is believed


@pytest.mark.parametrize(
    ("failures", "chance", "seconds"),
    [
        (1, 0.0, 0.25),
        (1, 1.0, 0.5),
        (2, 1.0, 1.0),
        (5, 1.0, 8.0),
        (7, 1.0, 30.0),
        (9999, 0.0, 15.0),
    ],
)
def test_pauses_double_and_are_shortened_at_random_by_up_to_half(
    failures: int, chance: float, seconds: float
) -> None:
    assert pause(failures, chance) == seconds
