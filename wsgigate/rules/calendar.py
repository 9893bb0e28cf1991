"""Requests counted per hour, day, week, month or year of the calendar.

See :mod:`wsgigate.rules.algorithms` for what holds of each algorithm.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar

from wsgigate.rules.quota import Quota, Verdict, verdict_of

__all__ = ["CalendarWindow", "span"]

HOUR, DAY = 3600, 86400


class CalendarWindow:
    """A count for each hour, day, week, month or year of the calendar, in UTC.

    A week begins on Monday (ISO 8601). Around the end of a span up to twice the limit may pass in a
    short time, and all callers have their quota again at the same moment.

    The state is 17 bytes, ``>cqQ``: the letter ``c``, the second since 1970 at which the span
    began, and how many passed in it. The count holds for that very span; one of a later span than
    the present one (the clock was set back) counts for the present one.

    :param quota: How many requests, and which spans of the calendar.
    """

    name: ClassVar[str] = "calendar"
    _STATE = struct.Struct(">cqQ")

    def __init__(self, quota: Quota) -> None:
        if not quota.calendar:
            raise ValueError(f'"calendar" counts "N per calendar month", not {str(quota)!r}')
        self.quota = quota
        self._limit = quota.limit
        self._find = _SPANS[quota.calendar]
        self._span = (0, 0)  # of the last request: most are of the same

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
    """Return the first second of the *calendar* span that *second* is in, and that of the next.

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

# Whole numbers only, and no library's calendar, so that a store's script can do the same. Years are
# taken to begin in March: the day that is sometimes there is then the last one.
# (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil, civil_from_days)


def _days_until(year: int, month: int) -> int:
    """Return how many days there are from 1970 to the first day of *month* in *year*."""
    year -= month <= 2
    era, year = divmod(year, 400)
    day = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5
    return era * 146_097 + year * 365 + year // 4 - year // 100 + day - 719_468


def _year_and_month(days: int) -> tuple[int, int]:
    """Return the year and the month, 1 to 12, of the day that is *days* after the first of 1970."""
    era, day = divmod(days + 719_468, 146_097)
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    month = (5 * (day - (365 * year + year // 4 - year // 100)) + 2) // 153
    return year + era * 400 + (month >= 10), month + 3 if month < 10 else month - 9
