"""Two instances drawn at random, and the less busy of them."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from wsgigate.rules.balance import two_choices
from wsgigate.testing import Script


@pytest.mark.parametrize(
    ("weights", "in_flight", "chances", "chosen"),
    [
        ((1,), (9,), (), 0),
        ((1, 1), (0, 0), (0.0, 0.0), 0),
        ((1, 1), (5, 4), (0.0, 0.0), 1),
        ((1, 1, 1), (1, 9, 0), (0.4, 0.0), 0),
        ((1, 1, 1), (1, 9, 0), (0.0, 0.9), 2),
        ((4, 1), (3, 0), (0.0, 0.0), 0),  # 4/4 is as busy as 1/1
        ((4, 1), (4, 0), (0.0, 0.0), 1),
    ],
)
def test_the_less_busy_of_two_is_chosen(
    weights: tuple[int, ...], in_flight: tuple[int, ...], chances: tuple[float, ...], chosen: int
) -> None:
    assert two_choices(weights, in_flight, Script(chances)) == chosen


def test_idle_instances_share_by_weight() -> None:
    chance = random.Random(7).random
    drawn = Counter(two_choices((1, 1, 1, 1), (0, 0, 0, 0), chance) for _ in range(8_000))
    assert all(1_800 < drawn[at] < 2_200 for at in range(4))
