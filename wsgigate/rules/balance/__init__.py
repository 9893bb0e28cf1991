"""Which of several instances takes the next request.

A policy is one class with the methods of :class:`Policy`, and one line in :data:`POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wsgigate.rules.balance.hashing import ConsistentHash
from wsgigate.rules.balance.pairs import LeastLatency, Random, TwoChoices
from wsgigate.rules.balance.policy import Member, Policy
from wsgigate.rules.balance.turns import RoundRobin, SmoothWeighted

__all__ = ["POLICIES", "Member", "Policy", "policy_of"]

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
