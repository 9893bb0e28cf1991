"""Whether a request is made once more after an attempt has failed.

One rule for all: nothing is repeated that may have been processed, unless doing it twice is the
same as doing it once. RFC 9110 9.2.2 says which methods are so; what was sent decides for others.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from wsgigate.rules.arguments import checked
from wsgigate.rules.dates import unix_time
from wsgigate.rules.window import Window

__all__ = [
    "Attempt",
    "Deadline",
    "Decision",
    "Delays",
    "HedgeRules",
    "IDEMPOTENT",
    "RetryBudget",
    "RetryRules",
    "SAFE",
    "backoff",
    "deadline",
    "decide",
    "hedgeable",
    "read_retry_after",
    "read_timeout",
    "try_time",
    "write_timeout",
]


# How many retries there may be: a share of all requests, so that they never make things worse.
#
# Without a budget, a service that is slow because it has too much to do gets twice as much to do.


class RetryBudget:
    """What retries may be made of all requests of the last seconds.

    A retry is allowed while retries are at most *share* of the requests of the last ten seconds, or
    while there were fewer than *floor* in the last second: so few harm nobody, and a service with
    little traffic has retries too. Not the sum of both: ten times the traffic is never more than
    its share.

    It belongs to all threads of a worker, and whoever calls it holds a lock.

    :param share: Retries per request, 0 to 1.
    :param floor: Retries per second that are allowed whatever the share says.
    :param period: Seconds that the share is taken over.
    :raises ValueError: A setting is out of its range; says which.
    """

    __slots__ = ("_floor", "_recent", "_requests", "_share")

    def __init__(self, share: float = 0.2, floor: float = 3.0, period: float = 10.0) -> None:
        for name, value, most in (("share", share, 1), ("floor", floor, 10_000)):
            if type(value) not in (int, float) or not 0 <= value <= most:
                raise ValueError(f"{name} is a number from 0 to {most}, got {value!r}")
        if type(period) not in (int, float) or not 0 < period < math.inf:
            raise ValueError(f"period is a number of seconds above 0, got {period!r}")
        self._share = share
        # Fewer than one a second is one in several seconds.
        self._floor = max(1.0, floor) if floor else 0.0
        self._requests = Window(period)
        self._recent = Window(max(1.0, 1.0 / floor) if floor else 1.0)

    def request(self, now: float) -> None:
        """Take note of a request, not of its retries."""
        self._requests.add(now, False)

    def take(self, now: float) -> bool:
        """Take one retry out of the budget; return whether there was one left."""
        requests, retries, _ = self._requests.at(now)
        requests -= retries  # those are counted in the same window
        if retries + 1 > self._share * requests and self._recent.at(now).calls + 1 > self._floor:
            return False
        self._requests.add(now, True)
        self._recent.add(now, False)
        return True


# Until when a request must have been answered, and how long each part of it may take.

_SECONDS = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(s|ms)?", re.ASCII)


class Deadline(NamedTuple):
    """Until when a request must have been answered, its retries and their waits included.

    :ivar until: The moment.
    :ivar shortened: Whether it is the client who wants it so soon. To be late for that tells
        nothing of the service: it is no failure, or any client could open circuits for all.
    """

    until: float
    shortened: bool = False


def deadline(now: float, timeout: float, asked: float | None = None) -> Deadline:
    """Return until when a request that came at *now* must have been answered.

    :param timeout: Seconds that there are.
    :param asked: Seconds that the client wants to wait; it can only shorten.
    """
    if asked is not None and asked < timeout:
        return Deadline(now + asked, True)
    return Deadline(now + timeout)


def try_time(deadline: Deadline, now: float, per_try: float | None = None) -> float:
    """Return the seconds that an attempt has which begins at *now*, 0 when there are none left.

    :param per_try: The most that one attempt may take.
    """
    left = max(0.0, deadline.until - now)
    return left if per_try is None else min(left, per_try)


def read_timeout(text: str) -> float | None:
    """Return the seconds that ``X-Request-Timeout`` means: ``2``, ``2s``, ``0.25`` or ``250ms``.

    :returns: ``None`` for what is malformed, or no time at all: then the client has said nothing.
    """
    found = _SECONDS.fullmatch(text.strip(" \t"))
    if found is None:
        return None
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1)
    return seconds or None


def write_timeout(deadline: Deadline, now: float) -> str:
    """Return what is left as ``X-Request-Timeout`` says it to the next one: rounded down to 1 ms.

    So that nobody behind us goes on working on what nobody waits for any more.
    """
    thousandths = max(1, int((deadline.until - now) * 1000))
    return f"{thousandths / 1000:.3f}"


# When a request that is slow to be answered is made once more beside itself.

SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
"""The methods that only read (RFC 9110 9.2.1); TRACE is never forwarded."""

_QUANTILE = re.compile(r"p([1-9][0-9](?:\.[0-9])?)", re.ASCII)

_LONGEST_HEDGE = 60.0

_MOST_HEDGES = 5


@checked
@dataclass(frozen=True, kw_only=True, slots=True)
class HedgeRules:
    """When there is another try before the first one has ended, and how many.

    :param after: Seconds without an answer after which there is; or as ``"p95"`` says, the time
        within which so many percent of the answers began lately.
    :param most: How many there are beside the first one, 1 to 5: each after as long again.
    :raises ValueError: A setting is out of its range; says which.
    """

    after: float | str = "p95"
    most: int = 1

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
        """The share of answers that begin in time, ``None`` where the time is a fixed one."""
        if not isinstance(self.after, str):
            return None
        return float(self.after[1:]) / 100


def hedgeable(method: str, has_body: bool) -> bool:
    """Return whether a request may be with two instances at once: it only reads, all of it."""
    return method in SAFE and not has_body


class Delays:
    """How long the answers of a service took to begin lately, as a quantile of them.

    It belongs to all threads of a worker, and whoever calls it holds a lock.

    :param quantile: Which one, 0 to 1.
    :param least: How many there must be before it says anything.
    :param most: How many are remembered.
    """

    def __init__(self, quantile: float, *, least: int = 100, most: int = 1000) -> None:
        self._quantile = quantile
        self._least = least
        self._most = most
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        """Take note that an answer began after *seconds*, or had not by then."""
        self._recent.append(seconds)
        insort(self._sorted, seconds)
        if len(self._recent) > self._most:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def after(self) -> float | None:
        """Return the seconds within which a share of *quantile* began; ``None`` of too few."""
        count = len(self._sorted)
        if count < self._least:
            return None
        return self._sorted[min(count - 1, ceil(self._quantile * count) - 1)]


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
