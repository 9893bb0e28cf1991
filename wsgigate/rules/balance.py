"""Which of several instances takes the next request: loads and chance in, an index out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

__all__ = ["two_choices"]


def two_choices(
    weights: Sequence[int], in_flight: Sequence[int], chance: Callable[[], float]
) -> int:
    """Return the index of the better of two instances drawn at random.

    Drawing two and taking the less loaded one is nearly as even as comparing all, and never sends
    every worker to the same instance at once (Mitzenmacher 2001, "The power of two choices").

    :param weights: Each instance's share, at least 1.
    :param in_flight: Requests each has under way, as this worker sees it.
    :param chance: Gives numbers in [0, 1).
    """
    if len(weights) == 1:
        return 0
    first = _draw(weights, chance())
    others = [0 if at == first else weight for at, weight in enumerate(weights)]
    second = _draw(others, chance())
    ahead = (in_flight[first] + 1) / weights[first] <= (in_flight[second] + 1) / weights[second]
    return first if ahead else second


def _draw(weights: Sequence[int], chance: float) -> int:
    sums = list(accumulate(weights))
    mark = chance * sums[-1]
    return next(at for at, below in enumerate(sums) if mark < below)
