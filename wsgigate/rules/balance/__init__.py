"""Which of several instances takes the next request.

A policy is one class with the methods of :class:`Policy`, and one line in :data:`POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from wsgigate.rules.balance.hashing import ConsistentHash
from wsgigate.rules.balance.pairs import LeastLatency, Random, TwoChoices
from wsgigate.rules.balance.policy import Member, Policy
from wsgigate.rules.balance.turns import RoundRobin, SmoothWeighted

__all__ = ["POLICIES", "Member", "Policy", "policy_of", "two_choices"]

POLICIES: dict[str, Callable[..., Policy[Any]]] = {
    "two-choices": TwoChoices,
    "round-robin": RoundRobin,
    "weighted": SmoothWeighted,
    "random": Random,
    "least-latency": LeastLatency,
    "consistent-hash": ConsistentHash,
}
"""The policies by the names that settings use: each is made with ``random`` and its options."""


def policy_of(
    balance: str | Callable[[Callable[[], float]], Policy[Any]], random: Callable[[], float]
) -> Policy[Any]:
    """Return the policy called *balance*, or what *balance* makes.

    :param random: Gives numbers in [0, 1).
    :raises ValueError: There is none of that name.
    """
    if not isinstance(balance, str):
        return balance(random)
    if balance not in POLICIES:
        raise ValueError(f"balance is one of {', '.join(POLICIES)}, got {balance!r}")
    return POLICIES[balance](random)


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
