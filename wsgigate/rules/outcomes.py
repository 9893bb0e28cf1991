"""What the status of an answer tells of the service that gave it."""

from __future__ import annotations

from collections.abc import Collection

from wsgigate.rules.circuit import Outcome

__all__ = ["FAILURES", "check_failures", "outcome_of"]

FAILURES = (500, 502, 503, 504)
"""The statuses that are failures unless said otherwise."""

_NOTHING = frozenset((408, 429, 499))  # too slow, too many, gone: of the client, all of them


def check_failures(statuses: Collection[int]) -> frozenset[int]:
    """Return *statuses* as a set.

    :raises ValueError: One of them can not be a failure: 4xx are the client's.
    """
    for status in statuses:
        if type(status) is not int or not 500 <= status <= 599:
            raise ValueError(f"statuses are 500 to 599: others are no failures, got {status!r}")
    return frozenset(statuses)


def outcome_of(status: int, failures: Collection[int] = FAILURES) -> Outcome:
    """Return what an answer with *status* tells.

    :param failures: The statuses that are failures.
    """
    if status < 400:
        return Outcome.OK
    if status in failures:
        return Outcome.FAILED
    if status in _NOTHING:
        return Outcome.IGNORED
    return Outcome.REFUSED if status < 500 else Outcome.OK
