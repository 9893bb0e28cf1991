"""Fallbacks: whether a failed response is replaced, and whether another app may serve it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from wsgigate.rules.arguments import Method, OneOf, Range, checked
from wsgigate.rules.retry import SAFE

__all__ = ["REASONS", "FallbackRules", "may_ask_another", "reason_of"]

_REASONS = {
    "Address not allowed": "refused",
    "All instances drained": "no-instance",
    "Certificate verification failed": "refused",
    "Circuit breaker open": "circuit-open",
    "Connection refused": "refused",
    "Host not found": "refused",
    "Host unreachable": "refused",
    "Invalid response": "broken",
    "Maintenance": "maintenance",
    "No instance available": "no-instance",
    "Request timeout": "timeout",
    "TLS failed": "broken",
    "Too many connections": "busy",
    "Too many requests in flight": "busy",
}

REASONS = frozenset(_REASONS.values()) | {"answered", "raised", "other"}
"""Why a request failed: ``answered`` means that the service itself responded with the status,
``raised`` that an app raised an exception; ``other`` is any failure without a name here."""

_UNSENT = frozenset(("busy", "circuit-open", "maintenance", "no-instance", "refused"))
"""The reasons for which no part of the request has reached the service."""


def reason_of(failure: str | None, raised: bool = False) -> str:
    """Return the reason for *failure*: one of :data:`REASONS`.

    :param failure: The ``error`` of the problem document; None without one.
    :param raised: Whether the app raised an exception.
    """
    if raised:
        return "raised"
    return "answered" if not failure else _REASONS.get(failure, "other")


@checked
@dataclass(frozen=True)
class FallbackRules:
    """When a response is replaced by the fallback.

    :param statuses: The response statuses that count as failures, each 500 to 599. An app that
        raises an exception counts as 500.
    :param reasons: The reasons of failure that trigger the fallback.
    :param methods: The methods of requests that can get the fallback.
    :raises ValueError: An argument is invalid; the message names it.
    """

    statuses: Annotated[Collection[Annotated[int, Range(500, 599)]], Range(1)] = (502, 503, 504)
    reasons: Annotated[Collection[Annotated[str, OneOf(tuple(sorted(REASONS)))]], Range(1)] = tuple(
        sorted(REASONS)
    )
    methods: Annotated[Collection[Method], Range(1)] = ("GET", "HEAD", "OPTIONS")

    def __post_init__(self) -> None:
        if not self.statuses or not all(500 <= status <= 599 for status in self.statuses):
            raise ValueError(f"statuses: some from 500 to 599, not {sorted(self.statuses)}")
        unknown = sorted(set(self.reasons) - REASONS)
        if unknown or not self.reasons:
            known = ", ".join(sorted(REASONS))
            raise ValueError(f"reasons: some of {known}, not {', '.join(unknown) or 'none'}")
        if isinstance(self.methods, str) or not self.methods:
            raise ValueError("methods: a list of methods")
        for method in self.methods:
            if not method.isalpha() or method != method.upper():
                raise ValueError(f"methods: {method!r} is not a method in capitals")
        for name in ("statuses", "reasons", "methods"):
            object.__setattr__(self, name, frozenset(getattr(self, name)))

    def replaces(self, status: int, reason: str) -> bool:
        """Return whether a response with *status*, for that *reason*, is replaced."""
        return status in self.statuses and reason in self.reasons


def may_ask_another(method: str, reason: str, *, keyed: bool, body_lost: bool) -> bool:
    """Return whether a fallback app may serve the failed request.

    An unsafe request may have been processed, unless no part of it was sent; a fallback app could
    process it a second time. (A PUT or DELETE that was retried may have been processed, too, but
    these are idempotent.)

    :param reason: Why it failed.
    :param keyed: Whether it has an ``Idempotency-Key``: an earlier attempt may have sent it.
    :param body_lost: Whether too much of its body was read for it to be sent again.
    """
    if body_lost:
        return False
    return method in SAFE or (reason in _UNSENT and not keyed)
