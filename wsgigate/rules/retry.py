"""Whether a request is made once more after an attempt has failed.

One rule for all: nothing is repeated that may have been processed, unless doing it twice is the
same as doing it once. RFC 9110 9.2.2 says which methods are so; what was sent decides for others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from wsgigate.rules.arguments import checked
from wsgigate.rules.dates import unix_time

__all__ = [
    "IDEMPOTENT",
    "Attempt",
    "Decision",
    "RetryRules",
    "backoff",
    "decide",
    "read_retry_after",
]

IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")
"""The methods that mean the same when done twice (RFC 9110 9.2.2). TRACE is never forwarded."""

_MOST_ATTEMPTS = 10
_LONGEST = 3_600.0
_LARGEST = 16 * 1024 * 1024


@checked
@dataclass(frozen=True, kw_only=True, slots=True)
class RetryRules:
    """How often and after what a request is made once more.

    :param attempts: How many there are in all, the first one among them; 1 for no retries.
    :param backoff: Seconds that the wait before the first retry is drawn from; doubled each time.
    :param backoff_at_most: The most it is drawn from; ten times *backoff* unless said.
    :param methods: The methods that are repeated although they may have been processed, out of
        GET, HEAD, OPTIONS, PUT and DELETE.
    :param statuses: The statuses that are no answer but a failure, each 500 to 599.
    :param idempotency_key: Whether the service keeps to the ``Idempotency-Key`` of a request, so
        that any method that has one can be repeated. A client can send one to any service, so this
        is for the operator to know.
    :param retry_after_at_most: Seconds that a ``Retry-After`` is waited for; one that is longer is
        for the client to keep.
    :param per_try_timeout: Seconds until one attempt is given up; ``None`` for the time that there
        is in all.
    :param buffer: Bytes of a request's body that are kept to be sent again.
    :raises ValueError: A setting is out of its range; says which.
    """

    attempts: int = 2
    backoff: float = 0.025
    backoff_at_most: float | None = None
    methods: tuple[str, ...] = IDEMPOTENT
    statuses: tuple[int, ...] = (502, 503, 504)
    idempotency_key: bool = False
    retry_after_at_most: float = 1.0
    per_try_timeout: float | None = None
    buffer: int = 65_536

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or not 1 <= self.attempts <= _MOST_ATTEMPTS:
            raise ValueError(f"attempts is 1 to {_MOST_ATTEMPTS}, got {self.attempts!r}")
        for name in ("backoff", "backoff_at_most", "retry_after_at_most", "per_try_timeout"):
            seconds = getattr(self, name)
            least = name == "per_try_timeout"
            if seconds is None and name in ("backoff_at_most", "per_try_timeout"):
                continue
            if (
                type(seconds) not in (int, float)
                or not 0 <= seconds <= _LONGEST
                or (least and not seconds)
            ):
                raise ValueError(f"{name} is a number of seconds up to an hour, got {seconds!r}")
        if self.backoff_at_most is not None and self.backoff_at_most < self.backoff:
            raise ValueError(
                f"backoff_at_most is not less than backoff: {self.backoff_at_most!r}"
                f" < {self.backoff!r}"
            )
        for method in self.methods:
            if method not in IDEMPOTENT:
                raise ValueError(f"methods are out of {', '.join(IDEMPOTENT)}, got {method!r}")
        for status in self.statuses:
            if type(status) is not int or not 500 <= status <= 599:
                raise ValueError(f"statuses are 500 to 599, got {status!r}")
        if type(self.buffer) is not int or not 0 <= self.buffer <= _LARGEST:
            raise ValueError(f"buffer is 0 to {_LARGEST} bytes, got {self.buffer!r}")


class Attempt(NamedTuple):
    """What is known of a request when an attempt has failed.

    :ivar method: The request's method.
    :ivar number: Which attempt it was, from 1.
    :ivar sent: Whether anything of the request may have reached an instance.
    :ivar replayable: Whether the body can be sent again from its beginning; so can none.
    :ivar left: Seconds until the whole request must have been answered.
    :ivar status: The status that came, ``None`` when no whole head did.
    :ivar received: Whether anything of a response came.
    :ivar retry_after: The seconds of its ``Retry-After``, ``None`` without one.
    :ivar keyed: Whether the request has an ``Idempotency-Key``.
    :ivar client_failed: Whether it is the client that left, or whose body broke off.
    :ivar begun: Whether the client has got anything of a response.
    """

    method: str
    number: int
    sent: bool
    replayable: bool
    left: float
    status: int | None = None
    received: bool = False
    retry_after: float | None = None
    keyed: bool = False
    client_failed: bool = False
    begun: bool = False


class Decision(NamedTuple):
    """Whether there is another attempt.

    :ivar again: Whether there is.
    :ivar wait: Seconds until it.
    :ivar why: Why there is none, in words for the log.
    """

    again: bool
    wait: float = 0.0
    why: str = ""


def backoff(number: int, rules: RetryRules, chance: float) -> float:
    """Return the seconds to wait after attempt *number*: full jitter over a doubling range.

    Drawn from all of the range, so that clients that failed together do not come back together
    (AWS Architecture Blog, "Exponential backoff and jitter").

    :param number: Counts the attempts from 1.
    :param chance: A number in [0, 1).
    """
    most = 10 * rules.backoff if rules.backoff_at_most is None else rules.backoff_at_most
    return float(min(most, rules.backoff * 2.0 ** (number - 1)) * chance)


def decide(
    attempt: Attempt, rules: RetryRules, chance: float, budget: Callable[[], bool]
) -> Decision:
    """Return whether the request is made once more.

    :param chance: A number in [0, 1).
    :param budget: Takes one retry out of what there is for all requests; asked last, and only when
        everything else is for it.
    """
    why = _against(attempt, rules)
    if why:
        return Decision(False, why=why)
    wait = max(backoff(attempt.number, rules, chance), attempt.retry_after or 0.0)
    if wait >= attempt.left:
        return Decision(False, why="no time is left")
    if not budget():
        return Decision(False, why="the retry budget is used up")
    return Decision(True, wait)


def _against(attempt: Attempt, rules: RetryRules) -> str:
    """Return what speaks against another attempt, nothing if nothing does."""
    if attempt.begun:
        return "the client has the beginning of a response"
    if attempt.client_failed:
        return "it is the client that failed"
    if attempt.number >= rules.attempts:
        return "there are no attempts left"
    if attempt.status is not None and attempt.status not in rules.statuses:
        return "it is answered"
    if attempt.received and attempt.status is None:
        return "the response is broken"
    if (attempt.sent or attempt.received) and not (
        attempt.method in rules.methods or (attempt.keyed and rules.idempotency_key)
    ):
        return "it may have been processed"
    if not attempt.replayable:
        return "the body can not be sent again"
    if (attempt.retry_after or 0.0) > rules.retry_after_at_most:
        return "the service asks to come back later"
    return ""


def read_retry_after(text: str, now: float) -> float | None:
    """Return the seconds that a ``Retry-After`` field means (RFC 9110 10.2.3), never less than 0.

    :param now: The Unix time.
    :returns: ``None`` when it is malformed.
    """
    text = text.strip(" \t")
    if text.isascii() and text.isdigit():
        return float(text) if len(text) <= 15 else math.inf
    moment = unix_time(text)
    return None if moment is None else max(0.0, moment - now)
