"""Quotas (a number of requests per period), and verdicts (the decision about one request)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import NamedTuple

from wsgigate.rules.arguments import explained

__all__ = [
    "CALENDAR",
    "LONGEST",
    "Quota",
    "Verdict",
    "tightest",
    "verdict_of",
]


def tightest(verdicts: Sequence[tuple[bool, int, int, float, float]]) -> int:
    """Return the index of the most restrictive of *verdicts*.

    Of those that rejected the request, the one with the longest wait; if none did, the one with the
    least remaining, and of several such the one that is reset last.
    """
    return min(range(len(verdicts)), key=lambda place: _slack(verdicts[place]))


def _slack(verdict: tuple[bool, int, int, float, float]) -> tuple[bool, float, float]:
    allowed, _, remaining, reset_after, retry_after = verdict
    return (True, remaining, -reset_after) if allowed else (False, -retry_after, -reset_after)


_UNITS = {
    1: ("s", "sec", "secs", "second", "seconds"),
    60: ("m", "min", "mins", "minute", "minutes"),
    3600: ("h", "hr", "hrs", "hour", "hours"),
    86400: ("d", "day", "days"),
    604800: ("w", "week", "weeks"),
}

_SECONDS = {name: seconds for seconds, names in _UNITS.items() for name in names}

_WRITTEN = re.compile(
    r"(?P<limit>[0-9][0-9_]*)\s*(?:requests?\s*)?(?:/|\bper\b)\s*"
    r"(?:(?P<count>[0-9][0-9_]*(?:\.[0-9]+)?)?|(?P<calendar>calendar\s))\s*(?P<unit>[a-z]+)",
    re.IGNORECASE | re.ASCII,
)

CALENDAR = {
    "hour": 3600.0,
    "day": 86400.0,
    "week": 7 * 86400.0,
    "month": 31 * 86400.0,
    "year": 366 * 86400.0,
}
"""The calendar spans of quotas, and the length of the longest one of each in seconds."""

LONGEST = 3660 * 86400.0

LARGEST = 1_000_000_000

_NAME = re.compile(r"[A-Za-z0-9._:~-]{0,64}")

_BETWEEN = re.compile(r"[;,|\n]")


@explained
@dataclass(frozen=True)
class Quota:
    """*limit* requests per *period* seconds, or per hour, day, week, month or year of the calendar.

    :param limit: The number of requests, 1 to 1,000,000,000.
    :param period: Seconds, a millisecond to ten years; rounded to whole microseconds. Not allowed
        with *calendar*, which sets it to the length of its longest span.
    :param calendar: ``"hour"``, ``"day"``, ``"week"`` (from Monday), ``"month"`` or ``"year"``: the
        limit applies to each calendar span, in UTC.
    :param name: The name of this quota, where a limit has several.
    :raises ValueError: An argument is invalid; the message names it.
    """

    limit: int
    period: float = 0.0
    _: KW_ONLY
    calendar: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.limit, int) or isinstance(self.limit, bool):
            raise ValueError(f"a quota's limit is a whole number, not {self.limit!r}")
        if not 1 <= self.limit <= LARGEST:
            raise ValueError(f"a quota's limit is 1 to {LARGEST:_}, not {self.limit}")
        if not isinstance(self.period, int | float) or isinstance(self.period, bool):
            raise ValueError(f"a quota's period is a number of seconds, not {self.period!r}")
        if self.calendar is not None:
            if self.calendar not in CALENDAR:
                raise ValueError(
                    f"a quota's calendar is one of {', '.join(CALENDAR)}, not {self.calendar!r}"
                )
            if self.period not in (0.0, CALENDAR[self.calendar]):
                raise ValueError("a quota has a period or a span of the calendar, not both")
            object.__setattr__(self, "period", CALENDAR[self.calendar])
        if not 0.001 <= self.period <= LONGEST:
            raise ValueError(f"a quota's period is 0.001 s to ten years, not {self.period:g} s")
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"a quota's name is up to 64 letters, digits and any of ._:~-, not {self.name!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Quota:
        """Return the quota that *text* describes.

        ``100 per 15 minutes``, ``100/15m``, ``10/s``; ``1000 per calendar month``.

        :raises ValueError: It is not a quota; the message gives the reason.
        """
        found = _WRITTEN.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f'a quota is written "100 per 15 minutes" or "100/15m", not {text!r}')
        unit = found["unit"].lower()
        calendar = unit if found["calendar"] else None
        if calendar and calendar not in CALENDAR:
            raise ValueError(
                f"the quota {text!r} is for a calendar {unit!r}, "
                f"which is not one of {', '.join(CALENDAR)}"
            )
        if not calendar and unit not in _SECONDS:
            hint = ""
            if unit in ("month", "months", "year", "years"):
                hint = (
                    f', as its length varies: write "per calendar {unit.removesuffix("s")}" '
                    "for those of the calendar, or count days"
                )
            raise ValueError(
                f"the quota {text!r} counts in {found['unit']!r}, "
                f"which is not one of s, m, h, d, w or their names{hint}"
            )
        try:
            limit, count = int(found["limit"]), float(found["count"] or 1)
        except ValueError:
            raise ValueError(f"the quota {text!r} has a number that cannot be read") from None
        try:
            if calendar:
                return cls(limit, calendar=calendar)
            return cls(limit, count * _SECONDS[unit])
        except ValueError as error:
            raise ValueError(f"the quota {text!r} cannot be had: {error}") from None

    @classmethod
    def parse_all(cls, text: str) -> tuple[Quota, ...]:
        """Return the quotas in *text*, separated by ``;``, ``,`` or ``|``: ``10/h; 100/d``.

        Flask-Limiter uses the same notation.

        :raises ValueError: One of them is not a quota; the message gives the reason.
        """
        parts = _BETWEEN.split(text) if isinstance(text, str) else [text]
        written = [part for part in parts if not isinstance(part, str) or part.strip()]
        return tuple(cls.parse(part) for part in written or [text])

    @property
    def micros(self) -> int:
        """The period in microseconds, in which all algorithms count time."""
        return round(self.period * 1_000_000)

    def check_cost(self, cost: int) -> None:
        """Check that *cost* is a whole number from 0 to the limit.

        :raises ValueError: It is not.
        """
        if cost.__class__ is not int or not 0 <= cost <= self.limit:
            raise ValueError(
                f"a request may cost 0 to {self.limit}, which is the limit, not {cost!r}"
            )

    def __str__(self) -> str:
        if self.calendar:
            return f"{self.limit} per calendar {self.calendar}"
        seconds = next((unit for unit in reversed(_UNITS) if self.period % unit == 0), 1)
        name, count = _UNITS[seconds][-1], self.period / seconds
        if count == 1:
            return f"{self.limit} per {name.removesuffix('s')}"
        return f"{self.limit} per {int(count) if count.is_integer() else count!r} {name}"


class Verdict(NamedTuple):
    """The decision about one request, and the state of its caller's quota after it."""

    allowed: bool
    limit: int
    remaining: int
    """The number of requests that would be allowed now."""
    reset_after: float
    """Seconds until the whole quota is available again."""
    retry_after: float
    """Seconds until the next request is allowed; 0 while some remain.

    After a rejection: seconds until the rejected request would be allowed.
    """


verdict_of: Callable[[tuple[bool, int, int, float, float]], Verdict] = partial(
    tuple.__new__, Verdict
)
"""Makes a verdict from its five values in order, without the Python call of ``Verdict()``."""
