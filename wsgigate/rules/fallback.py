"""Whether a failed request is answered by somebody else, and by whom that may be."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from wsgigate.rules.arguments import checked

__all__ = ["REASONS", "SAFE", "FallbackRules", "may_ask_another", "reason_of"]

SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
"""Methods that change nothing (RFC 9110 section 9.2.1), of those that are passed on."""

_REASONS = {
    "Address not allowed": "refused",
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
"""Why a request failed: ``answered`` is that the service itself said so, ``raised`` that an app
raised an exception; ``other`` are all that have no name."""

_UNSENT = frozenset(("busy", "circuit-open", "maintenance", "no-instance", "refused"))
"""The reasons that say that nothing of the request has reached the service."""


def reason_of(failure: str | None, raised: bool = False) -> str:
    """Return the reason that goes by the words *failure*.

    :param failure: The ``error`` of the problem, None when nobody told of one.
    :param raised: Whether the app raised an exception.
    """
    if raised:
        return "raised"
    return "answered" if not failure else _REASONS.get(failure, "other")


@checked
@dataclass(frozen=True)
class FallbackRules:
    """When an answer is replaced by another one.

    :param statuses: The statuses that are replaced, each 500 to 599. An app that raises an
        exception counts as 500.
    :param reasons: The reasons for which they are: any of :data:`REASONS`.
    :param methods: The methods of requests that get another answer.
    :raises ValueError: One of them is not of its form; says which.
    """

    statuses: Collection[int] = (502, 503, 504)
    reasons: Collection[str] = tuple(sorted(REASONS))
    methods: Collection[str] = ("GET", "HEAD", "OPTIONS")

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
        """Return whether an answer of *status*, for that *reason*, is replaced."""
        return status in self.statuses and reason in self.reasons


def may_ask_another(method: str, reason: str, *, keyed: bool, body_lost: bool) -> bool:
    """Return whether somebody else may be asked to do what a request wants.

    A request that changes something may have been processed, unless nothing of it was sent; the one
    who is asked next could do it a second time. (A PUT or DELETE that was tried several times may
    have been, but to do it twice is the same as once.)

    :param reason: Why it failed.
    :param keyed: Whether it has an ``Idempotency-Key``: it may have been sent by an earlier try.
    :param body_lost: Whether so much of its body has been read that it can not be read again.
    """
    if body_lost:
        return False
    return method in SAFE or (reason in _UNSENT and not keyed)
