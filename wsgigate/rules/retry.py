"""Retries, deadlines and hedging of requests: when an attempt is repeated, and for how long.

One rule holds for all: a request that may have been processed is repeated only if it is idempotent.
RFC 9110 section 9.2.2 lists the idempotent methods; other requests are repeated only if no part of
them was sent.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Annotated, NamedTuple

from wsgigate.rules.arguments import Bytes, Fraction, OneOf, Pattern, Range, Seconds, checked
from wsgigate.rules.circuit import CallWindow

__all__ = [
    "IDEMPOTENT",
    "SAFE",
    "Attempt",
    "Deadline",
    "Decision",
    "Delays",
    "HedgeRules",
    "RetryBudget",
    "RetryRules",
    "backoff",
    "deadline",
    "decide",
    "hedgeable",
    "read_timeout",
    "try_time",
    "write_timeout",
]


# The retry budget. Without one, retries double the load of a service that is slow because it is
# overloaded.


class RetryBudget:
    """Limits retries to a share of the requests of the last seconds.

    A retry is allowed while retries are at most *share* of the requests within *period*, or while
    there were fewer than *floor* in the last second: so few do no harm, and a service with little
    traffic has retries, too. The two are not added: with more traffic only the share counts.

    All threads of a worker share it; the caller holds a lock.

    :param share: The maximum ratio of retries to requests, over the last ten seconds.
    :param floor: Retries per second that are allowed regardless of the ratio.
    :param period: Seconds over which the ratio is computed.
    :raises ValueError: An argument is invalid; the message names it.
    """

    __slots__ = ("_floor", "_recent", "_requests", "_share")

    def __init__(
        self,
        share: Fraction = 0.2,
        floor: Annotated[float, Range(0, 10_000)] = 3.0,
        period: float = 10.0,
    ) -> None:
        for name, value, most in (("share", share, 1), ("floor", floor, 10_000)):
            if type(value) not in (int, float) or not 0 <= value <= most:
                raise ValueError(f"{name} is a number from 0 to {most}, got {value!r}")
        if type(period) not in (int, float) or not 0 < period < math.inf:
            raise ValueError(f"period is a number of seconds above 0, got {period!r}")
        self._share = share
        # A floor below 1 allows one retry within 1 / floor seconds.
        self._floor = max(1.0, floor) if floor else 0.0
        self._requests = CallWindow(period)
        self._recent = CallWindow(max(1.0, 1.0 / floor) if floor else 1.0)

    def request(self, now: float) -> None:
        """Count a request; its retries are counted by :meth:`withdraw`."""
        self._requests.add(now, False)

    def withdraw(self, now: float) -> bool:
        """Take one retry out of the budget; return whether it is allowed."""
        requests, retries, _ = self._requests.at(now)
        requests -= retries  # retries are counted as calls of the same window
        if retries + 1 > self._share * requests and self._recent.at(now).calls + 1 > self._floor:
            return False
        self._requests.add(now, True)
        self._recent.add(now, False)
        return True


# Deadlines.

_SECONDS = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(s|ms)?", re.ASCII)


class Deadline(NamedTuple):
    """When a request must have its response, including retries and their waits.

    :ivar until: The moment.
    :ivar shortened: Whether the client's ``X-Request-Timeout`` set it. Exceeding that is not a
        failure of the service: otherwise any client could open circuits for all others.
    """

    until: float
    shortened: bool = False


def deadline(now: float, timeout: float, asked: float | None = None) -> Deadline:
    """Return the deadline of a request that arrived at *now*.

    :param timeout: The configured timeout in seconds.
    :param asked: The client's timeout in seconds; it can only shorten the configured one.
    """
    if asked is not None and asked < timeout:
        return Deadline(now + asked, True)
    return Deadline(now + timeout)


def try_time(deadline: Deadline, now: float, per_try: float | None = None) -> float:
    """Return the timeout in seconds of an attempt that begins at *now*; 0 after the deadline.

    :param per_try: The most seconds of one attempt.
    """
    left = max(0.0, deadline.until - now)
    return left if per_try is None else min(left, per_try)


def read_timeout(text: str) -> float | None:
    """Return the seconds of an ``X-Request-Timeout``: ``2``, ``2s``, ``0.25`` or ``250ms``.

    :returns: ``None`` when it is malformed or 0: it is then ignored.
    """
    found = _SECONDS.fullmatch(text.strip(" \t"))
    if found is None:
        return None
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1)
    return seconds or None


def write_timeout(deadline: Deadline, now: float) -> str:
    """Return the remaining time as ``X-Request-Timeout`` for the instance, rounded down to 1 ms.

    An instance can then stop working on a request that the client no longer waits for.
    """
    thousandths = max(1, int((deadline.until - now) * 1000))
    return f"{thousandths / 1000:.3f}"


# Hedging: a second attempt in parallel with a slow first one.

SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
"""The methods that only read (RFC 9110 9.2.1); TRACE is never forwarded."""

_QUANTILE = re.compile(r"p([1-9][0-9](?:\.[0-9])?)", re.ASCII)

_LONGEST_HEDGE = 60.0

_MOST_HEDGES = 5
_PERCENTILE = Pattern(_QUANTILE.pattern, 'a share of the answers such as "p95"')


@checked
@dataclass(frozen=True, kw_only=True, slots=True)
class HedgeRules:
    """When an additional attempt starts in parallel with the first one, and how many do.

    :param after: The time without a response after which an additional attempt starts, in seconds;
        or a percentile such as ``"p95"``: the time within which 95 % of recent responses began.
    :param most: The maximum number of additional attempts; each starts after that time again.
    :raises ValueError: An argument is invalid; the message names it.
    """

    after: Seconds | Annotated[str, _PERCENTILE] = "p95"
    most: Annotated[int, Range(1, _MOST_HEDGES)] = 1

    def __post_init__(self) -> None:
        after = self.after
        if isinstance(after, str):
            if not _QUANTILE.fullmatch(after):
                raise ValueError(f'after: is seconds, or "p10" to "p99.9", got {after!r}')
        elif isinstance(after, bool) or not 0 < after <= _LONGEST_HEDGE:
            raise ValueError(f"after: is more than nothing and at most a minute, got {after!r}")
        if type(self.most) is not int or not 1 <= self.most <= _MOST_HEDGES:
            raise ValueError(f"most: is 1 to {_MOST_HEDGES}, got {self.most!r}")

    @property
    def quantile(self) -> float | None:
        """The percentile as a share; ``None`` where *after* is a number of seconds."""
        if not isinstance(self.after, str):
            return None
        return float(self.after[1:]) / 100


def hedgeable(method: str, has_body: bool) -> bool:
    """Return whether two instances may serve a request at once: a safe method without a body."""
    return method in SAFE and not has_body


class Delays:
    """A quantile of the times that recent responses of a service took to begin.

    All threads of a worker share it; the caller holds a lock.

    :param quantile: The quantile, 0 to 1.
    :param least: The number of responses below which there is no result.
    :param most: The number of responses that are kept.
    """

    def __init__(self, quantile: float, *, least: int = 100, most: int = 1000) -> None:
        self._quantile = quantile
        self._least = least
        self._most = most
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        """Add a response that began after *seconds*, or had not begun by then."""
        self._recent.append(seconds)
        insort(self._sorted, seconds)
        if len(self._recent) > self._most:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def after(self) -> float | None:
        """Return the quantile in seconds; ``None`` with fewer than *least* responses."""
        count = len(self._sorted)
        if count < self._least:
            return None
        return self._sorted[min(count - 1, ceil(self._quantile * count) - 1)]


IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")
"""The idempotent methods (RFC 9110 section 9.2.2); TRACE is never forwarded."""

_MOST_ATTEMPTS = 10

_LONGEST = 3_600.0

_LARGEST = 16 * 1024 * 1024


@checked
@dataclass(frozen=True, kw_only=True, slots=True)
class RetryRules:
    """When and how often a failed request is retried.

    :param attempts: The number of attempts in all, including the first; 1 disables retries.
    :param backoff: Upper bound of the random delay before the first retry, in seconds; doubled with
        each retry.
    :param backoff_at_most: The maximum bound of the random delay, in seconds. Default: ten times
        *backoff*.
    :param methods: The methods that are retried although they may have been processed, out of
        GET, HEAD, OPTIONS, PUT and DELETE.
    :param statuses: The statuses that count as failures, each 500 to 599.
    :param idempotency_key: Whether the service honors ``Idempotency-Key``, so that a request of any
        method that has one can be retried. A client can send one to any service, so only the
        operator can decide this.
    :param retry_after_at_most: The longest ``Retry-After`` that the gateway waits for, in seconds;
        a longer one is left to the client.
    :param per_try_timeout: The time limit for each attempt, until its response begins, in seconds.
        Default: the remaining time of the request.
    :param buffer: The maximum size of a request body that is kept to be sent again, in bytes.
    :raises ValueError: An argument is invalid; the message names it.
    """

    attempts: Annotated[int, Range(1, 10)] = 2
    backoff: Annotated[Seconds, Range(0)] = 0.025
    backoff_at_most: Annotated[Seconds, Range(0)] | None = None
    methods: tuple[Annotated[str, OneOf(IDEMPOTENT)], ...] = IDEMPOTENT
    statuses: tuple[Annotated[int, Range(500, 599)], ...] = (502, 503, 504)
    idempotency_key: bool = False
    retry_after_at_most: Annotated[Seconds, Range(0)] = 1.0
    per_try_timeout: Seconds | None = None
    buffer: Bytes = 65_536

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
    """The facts about a request after an attempt has failed.

    :ivar method: The request's method.
    :ivar number: The number of the attempt, from 1.
    :ivar sent: Whether any part of the request may have reached an instance.
    :ivar replayable: Whether the body can be sent again from its beginning; True without a body.
    :ivar left: Seconds until the deadline of the request.
    :ivar status: The status of the response; ``None`` without a complete head.
    :ivar received: Whether any part of a response arrived.
    :ivar retry_after: The seconds of its ``Retry-After``; ``None`` without one.
    :ivar keyed: Whether the request has an ``Idempotency-Key``.
    :ivar client_failed: Whether the client left, or its body was truncated.
    :ivar begun: Whether any part of a response was sent to the client.
    :ivar connect_left: Seconds left of the time in which all connections of the request together
        must be open. Within it an attempt that sent nothing is retried outside the budget.
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
    connect_left: float = math.inf


class Decision(NamedTuple):
    """Whether the request is retried.

    :ivar again: True for another attempt.
    :ivar wait: Seconds until it starts.
    :ivar why: The reason for no further attempt, for the log.
    """

    again: bool
    wait: float = 0.0
    why: str = ""


def backoff(number: int, rules: RetryRules, chance: float) -> float:
    """Return the seconds to wait after attempt *number*: full jitter over a doubling range.

    The wait is drawn from the whole range, so that clients that failed together do not retry
    together (AWS Architecture Blog, "Exponential backoff and jitter").

    :param number: The number of the attempt, from 1.
    :param chance: A number in [0, 1).
    """
    most = 10 * rules.backoff if rules.backoff_at_most is None else rules.backoff_at_most
    return float(min(most, rules.backoff * 2.0 ** (number - 1)) * chance)


def decide(
    attempt: Attempt, rules: RetryRules, chance: float, budget: Callable[[], bool]
) -> Decision:
    """Return whether the request is retried.

    :param chance: A number in [0, 1).
    :param budget: Takes one retry out of the budget of all requests; called last, and only if all
        other conditions allow a retry. An attempt that sent nothing needs none, as it has added no
        load to the service.
    """
    why = _against(attempt, rules)
    if why:
        return Decision(False, why=why)
    wait = max(backoff(attempt.number, rules, chance), attempt.retry_after or 0.0)
    if wait >= attempt.left:
        return Decision(False, why="no time is left")
    sent_nothing = not (attempt.sent or attempt.received)
    if not (sent_nothing and attempt.connect_left > 0) and not budget():
        return Decision(False, why="the retry budget is used up")
    return Decision(True, wait)


def _against(attempt: Attempt, rules: RetryRules) -> str:
    """Return the reason against another attempt; empty if there is none."""
    if attempt.begun:
        return "the client has the beginning of a response"
    if attempt.client_failed:
        return "the client failed"
    if attempt.number >= rules.attempts:
        return "there are no attempts left"
    if attempt.status is not None and attempt.status not in rules.statuses:
        return "the status is not retried"
    if attempt.received and attempt.status is None:
        return "the response is broken"
    if (attempt.sent or attempt.received) and not (
        attempt.method in rules.methods or (attempt.keyed and rules.idempotency_key)
    ):
        return "it may have been processed"
    if not attempt.replayable:
        return "the body cannot be sent again"
    if (attempt.retry_after or 0.0) > rules.retry_after_at_most:
        return "Retry-After is too long"
    return ""
