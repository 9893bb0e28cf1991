"""The four algorithms: calendar window, token bucket, fixed window, sliding window.

Theory of operation: see :mod:`wsgigate.rules.algorithms`. Each docstring here gives the layout of
the state, which other implementations (the Lua scripts of the Redis store) must share bit by bit.

===============  =============================================================================
token bucket     Exact: at most *limit* in a burst, then a steady rate. The default.
fixed window     Up to twice the limit around the end of a window; the window begins with the
                 caller's first request.
sliding window   At most *limit* in any span of one period, at 31 counts of state; a request
                 counts for one period to one period and one slot.
calendar         For limits "per calendar month": all callers' windows end at the same moment.
===============  =============================================================================

In each ``take``, time is counted in whole microseconds since 1970. *old* itself is returned when
nothing was consumed, so that the store need not write. Every time to live has a millisecond added:
no state may expire before its time because of rounding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar

from wsgigate.rules.quota import Quota, Verdict, verdict_of

__all__ = ["CalendarWindow", "FixedWindow", "SlidingWindow", "TokenBucket", "span"]


# The calendar: hours, days, weeks, months and years in UTC.

HOUR, DAY = 3600, 86400


class CalendarWindow:
    """Counts requests per hour, day, week, month or year of the calendar, in UTC.

    A week begins on Monday (ISO 8601). Around the end of a span up to twice the limit may pass in a
    short time, and the quotas of all callers are reset at the same moment.

    The state is 17 bytes, ``>cqQ``: the letter ``c``, the second since 1970 at which the span
    began, and the number of requests counted in it. A count of an earlier span is 0 now; a count of
    a later span (the clock was set back) counts for the present one.

    :param quota: A calendar quota.
    """

    name: ClassVar[str] = "calendar"
    _STATE = struct.Struct(">cqQ")

    def __init__(self, quota: Quota) -> None:
        if not quota.calendar:
            raise ValueError(f'"calendar" counts "N per calendar month", not {str(quota)!r}')
        self.quota = quota
        self._limit = quota.limit
        self._find = _SPANS[quota.calendar]
        self._span = (0, 0)  # cached: most requests fall into the span of the last one

    def take(
        self, old: bytes | None, now: float, cost: int = 1
    ) -> tuple[bytes | None, float, Verdict]:
        limit = self._limit
        if cost != 1 or cost.__class__ is not int:
            self.quota.check_cost(cost)
        moment = int(now * 1_000_000 + 0.5)
        start, end = self._span
        if not start * 1_000_000 <= moment < end * 1_000_000:
            start, end = self._span = self._find(moment // 1_000_000)
        count, state = 0, old
        if old is not None and len(old) == 17:
            tag, began, counted = self._STATE.unpack(old)
            if tag == b"c" and began >= start and counted <= limit:
                count = counted
                if began > start:  # the clock was set back
                    state = None
        allowed = count + cost <= limit
        if allowed and cost:
            count += cost
            state = None
        if state is None and count:
            state = self._STATE.pack(b"c", start, count)
        reset_after = (end * 1_000_000 - moment) / 1_000_000 if count else 0.0
        waits = not allowed or count == limit
        return (
            state,
            reset_after + 0.001,
            verdict_of((allowed, limit, limit - count, reset_after, reset_after if waits else 0.0)),
        )


def span(calendar: str, second: int) -> tuple[int, int]:
    """Return the first second of the *calendar* span around *second*, and that of the next span.

    :param calendar: One of :data:`wsgigate.rules.quota.CALENDAR`.
    :param second: Seconds since 1970 in UTC, as POSIX counts them: every day has 86,400.
    """
    return _SPANS[calendar](second)


def _hour(second: int) -> tuple[int, int]:
    start = second - second % HOUR
    return start, start + HOUR


def _day(second: int) -> tuple[int, int]:
    start = second - second % DAY
    return start, start + DAY


def _week(second: int) -> tuple[int, int]:
    start = second - (second + 3 * DAY) % (7 * DAY)  # 1970 began on a Thursday
    return start, start + 7 * DAY


def _month(second: int) -> tuple[int, int]:
    year, month = _year_and_month(second // DAY)
    following = (year, month + 1) if month < 12 else (year + 1, 1)
    return _days_until(year, month) * DAY, _days_until(*following) * DAY


def _year(second: int) -> tuple[int, int]:
    year, _ = _year_and_month(second // DAY)
    return _days_until(year, 1) * DAY, _days_until(year + 1, 1) * DAY


_SPANS: dict[str, Callable[[int], tuple[int, int]]] = {
    "hour": _hour,
    "day": _day,
    "week": _week,
    "month": _month,
    "year": _year,
}


# Whole numbers only, and no calendar library, so that a store's script can do the same. Years are
# taken to begin in March: a leap day is then the last day of the year.
# (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil, civil_from_days)
def _days_until(year: int, month: int) -> int:
    """Return the number of days from 1970-01-01 to the first day of *month* in *year*."""
    year -= month <= 2
    era, year = divmod(year, 400)
    day = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5
    return era * 146_097 + year * 365 + year // 4 - year // 100 + day - 719_468


def _year_and_month(days: int) -> tuple[int, int]:
    """Return the year and the month, 1 to 12, of the day that is *days* after 1970-01-01."""
    era, day = divmod(days + 719_468, 146_097)
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    month = (5 * (day - (365 * year + year // 4 - year // 100)) + 2) // 153
    return year + era * 400 + (month >= 10), month + 3 if month < 10 else month - 9


_EXACT = 1 << 53
"""Doubles represent all whole numbers up to this one exactly."""


class TokenBucket:
    """A bucket of *limit* tokens that refills evenly, by the generic cell rate algorithm.

    In any span of time at most *limit* requests pass, plus the tokens refilled during it. Time is
    counted in ticks of one microsecond, or of a power of ten more where limit times period would
    exceed 2**53. In one tick *limit* units flow in, and a token has as many units as the period has
    ticks: both are whole numbers.
    (ITU-T I.371, I.356; the continuous-state leaky bucket.)

    The state is 17 bytes, ``>cqQ``: the letter ``b``, the tick of the last request that passed, and
    the units that the bucket lacked after it. At tick *t* it lacks ``max(0, lacked - (t - tick) *
    limit)``; a request of *cost* passes if with ``cost * token`` more it lacks no more than ``limit
    * token``.

    :param quota: The number of tokens, and the seconds in which an empty bucket fills.
    """

    name: ClassVar[str] = "token-bucket"
    _STATE = struct.Struct(">cqQ")

    def __init__(self, quota: Quota) -> None:
        _no_calendar(quota, self.name)
        self.quota = quota
        self.tick = 1
        """Microseconds per tick: the least power of ten that keeps all numbers exact."""
        while -(-quota.micros // self.tick) * quota.limit >= _EXACT:
            self.tick *= 10
        token = -(-quota.micros // self.tick)
        self.token = token
        """Units of one token."""
        self._numbers = (quota.limit, token, self.tick, token * quota.limit)

    def take(
        self, old: bytes | None, now: float, cost: int = 1
    ) -> tuple[bytes | None, float, Verdict]:
        limit, token, tick, bucket = self._numbers
        if cost != 1 or cost.__class__ is not int:
            self.quota.check_cost(cost)
        moment = int(now * 1_000_000 + 0.5)
        time = moment // tick
        lacks, state = 0, old
        if old is not None and len(old) == 17:
            tag, since, lacked = self._STATE.unpack(old)
            if tag == b"b" and lacked <= bucket:
                if since > time:  # the clock was set back
                    lacks, state = lacked, None
                else:
                    lacks = lacked - (time - since) * limit
                    if lacks < 0:
                        lacks = 0
        room = bucket - lacks
        asked = cost * token
        allowed = room >= asked
        if allowed and cost:
            lacks += asked
            room -= asked
            state = None
        if state is None and lacks:
            state = self._STATE.pack(b"b", time, lacks)
        missing = (token if allowed else asked) - room
        early = moment - time * tick
        reset_after = (-(-lacks // limit) * tick - early) / 1_000_000 if lacks else 0.0
        return (
            state,
            reset_after + 0.001,  # a millisecond more: rounding must not expire the state early
            verdict_of(
                (
                    allowed,
                    limit,
                    room // token,
                    reset_after,
                    (-(-missing // limit) * tick - early) / 1_000_000 if missing > 0 else 0.0,
                )
            ),
        )


class FixedWindow:
    """Counts requests in windows that begin with a caller's first request and last one period.

    Around the end of a window up to twice the limit may pass in a short time.

    The state is 17 bytes, ``>cqQ``: the letter ``f``, the microsecond at which the window began,
    and the number of requests counted in it. The window ends one period after that microsecond.

    :param quota: The number of requests per window, and its length.
    """

    name: ClassVar[str] = "fixed-window"
    _STATE = struct.Struct(">cqQ")

    def __init__(self, quota: Quota) -> None:
        _no_calendar(quota, self.name)
        self.quota = quota
        self._limit = quota.limit
        self._period = quota.micros

    def take(
        self, old: bytes | None, now: float, cost: int = 1
    ) -> tuple[bytes | None, float, Verdict]:
        limit = self._limit
        if cost != 1 or cost.__class__ is not int:
            self.quota.check_cost(cost)
        moment = int(now * 1_000_000 + 0.5)
        start, count, state = moment, 0, old
        if old is not None and len(old) == 17:
            tag, began, counted = self._STATE.unpack(old)
            if tag == b"f" and counted <= limit and began + self._period > moment:
                count = counted
                if began > moment:  # the clock was set back
                    state = None
                else:
                    start = began
        allowed = count + cost <= limit
        if allowed and cost:
            count += cost
            state = None
        if state is None and count:
            state = self._STATE.pack(b"f", start, count)
        reset_after = (start + self._period - moment) / 1_000_000 if count else 0.0
        waits = not allowed or count == limit
        return (
            state,
            reset_after + 0.001,
            verdict_of((allowed, limit, limit - count, reset_after, reset_after if waits else 0.0)),
        )


class SlidingWindow:
    """Allows at most *limit* requests in any span of one period, wherever it begins.

    Time is cut into slots, :data:`SLOTS` per period. A request passes if it and all requests
    counted in its slot and in the :data:`SLOTS` slots before it are at most *limit*. These slots
    span at least one period, so the guarantee is exact, without an estimate; a request counts for
    at least one period and at most one period and one slot.

    A slot has the period's microseconds divided by :data:`SLOTS`, rounded up; slot *n* begins at
    microsecond *n* times that, since 1970.

    The state is 9 bytes and ``SLOTS + 1`` counts, ``>cq31H``, or ``>cq31I`` for a limit above
    65,535: the letter ``s``, the newest slot with a count, and the counts from the oldest slot,
    ``SLOTS`` before it, to the newest. Counts of slots later than the present one (the clock was
    set back) are added to the present one.

    :param quota: The number of requests, and the period.
    """

    name: ClassVar[str] = "sliding-window"
    SLOTS: ClassVar[int] = 30
    _HEAD = struct.Struct(">cq")

    def __init__(self, quota: Quota) -> None:
        _no_calendar(quota, self.name)
        self.quota = quota
        self.slot = -(-quota.micros // self.SLOTS)
        """Microseconds per slot."""
        self._limit = quota.limit
        self._width = 2 if quota.limit <= 0xFFFF else 4
        self._counts = struct.Struct(f">{self.SLOTS + 1}{'H' if self._width == 2 else 'I'}")
        self._size = self._HEAD.size + self._counts.size

    def take(
        self, old: bytes | None, now: float, cost: int = 1
    ) -> tuple[bytes | None, float, Verdict]:
        limit, slot, last, width = self._limit, self.slot, self.SLOTS, self._width
        if cost != 1 or cost.__class__ is not int:
            self.quota.check_cost(cost)
        moment = int(now * 1_000_000 + 0.5)
        present = moment // slot
        # The counts that are still in the window, from the oldest slot on: as numbers (counts) and
        # as packed bytes (kept). The bytes are reused where possible, because packing all counts
        # again takes longer than everything else here.
        counts: tuple[int, ...] = ()
        kept, total, state = b"", 0, old
        if old is not None and len(old) == self._size:
            tag, newest = self._HEAD.unpack_from(old)
            passed = present - newest
            if tag == b"s" and passed <= last:
                counts = self._counts.unpack_from(old, 9)
                total = sum(counts)
                if total > limit:
                    counts, total = (), 0
                elif passed < 0:  # the clock was set back
                    counts, state = _set_back(counts, -passed), None
                    kept = self._counts.pack(*counts)
                else:
                    kept = old[9 + passed * width :]
                    if passed:
                        counts = counts[passed:]
                        total = sum(counts)
        allowed = total + cost <= limit
        if allowed and cost:
            total += cost
            empty = self._size - 9 - len(kept)
            if empty:
                kept += bytes(empty - width) + cost.to_bytes(width, "big")
            else:
                kept = kept[:-width] + (counts[last] + cost).to_bytes(width, "big")
            state = None
        reset_after = retry_after = 0.0
        if total:
            if state is None:
                state = self._HEAD.pack(b"s", present) + kept
            leaving = last
            if not (allowed and cost):
                leaving = len(counts) - 1
                while not counts[leaving]:
                    leaving -= 1
            reset_after = ((present + leaving + 1) * slot - moment) / 1_000_000
            missing = total + (1 if allowed else cost) - limit
            if missing > 0:
                leaving = last
                for place, count in enumerate(counts):
                    missing -= count
                    if missing <= 0:
                        leaving = place
                        break
                retry_after = ((present + leaving + 1) * slot - moment) / 1_000_000
        return (
            state,
            reset_after + 0.001,
            verdict_of((allowed, limit, limit - total, reset_after, retry_after)),
        )


def _set_back(counts: tuple[int, ...], slots: int) -> tuple[int, ...]:
    """Return *counts* as seen *slots* slots earlier; later counts are added to the newest slot."""
    kept = max(0, len(counts) - 1 - slots)
    return (0,) * (len(counts) - 1 - kept) + counts[:kept] + (sum(counts[kept:]),)


def _no_calendar(quota: Quota, name: str) -> None:
    if quota.calendar:
        raise ValueError(f'{quota} is counted by the algorithm "calendar", not by {name!r}')
