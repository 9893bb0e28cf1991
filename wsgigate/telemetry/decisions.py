"""Counts the decisions of middlewares of which there are several kinds: limits, and shaping."""

from __future__ import annotations

from wsgigate.telemetry.metrics import Counter

__all__ = ["SHAPING", "LimitDecisions"]

SHAPING = Counter(
    "wsgigate_shaping",
    "Requests that were split (value: the app), served by a fallback, or got a fault.",
    ("kind", "value"),
)

DECISIONS = Counter(
    "wsgigate_limiter_decisions",
    "Decisions of limiters by the name of the limiter: allowed, rejected, observed (it would have "
    "been rejected), exempt, or store_failed.",
    ("policy", "decision"),
)


class LimitDecisions:
    """Counts the decisions of one policy.

    :param policy: The name of the policy.
    """

    __slots__ = ("_policy", "allowed")

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self.allowed = DECISIONS.labels(policy, "allowed")

    def count(self, decision: str) -> None:
        """Count a decision other than ``allowed``, which is the usual one."""
        DECISIONS.labels(self._policy, decision).add()
