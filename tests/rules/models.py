"""Slow models of the algorithms, obviously right: each keeps every request that passed.

Moments are whole microseconds. A moment that is later than the present one counts as the present.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction

from wsgigate.rules.algorithms import (
    Algorithm,
    CalendarWindow,
    FixedWindow,
    SlidingWindow,
    TokenBucket,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Model:
    """Every request that passed and still counts, as ``(moment, cost)``."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.limit = algorithm.quota.limit
        self.period = round(algorithm.quota.period * 1_000_000)
        self.passed: list[tuple[int, int]] = []

    def take(self, now: int, cost: int) -> bool:
        """Return whether a request of *cost* passes at *now*."""
        self.passed = [(min(moment, now), cost) for moment, cost in self.passed]
        if self.used(now) + cost > self.limit:
            return False
        if cost:
            self.passed = [*self.counted(now), (now, cost)]
        return True

    def used(self, now: int) -> Fraction | int:
        """Return how much of the limit is used up."""
        return sum(cost for _, cost in self.counted(now))

    def counted(self, now: int) -> list[tuple[int, int]]:
        """Return those that passed and count at *now*."""
        return self.passed


class BucketModel(Model):
    """Pours out what passed, and fills it up evenly in between; in ticks of the algorithm."""

    def used(self, now: int) -> Fraction:
        tick = self.algorithm.tick  # type: ignore[attr-defined]
        ticks = -(-self.period // tick)
        used, before = Fraction(0), None
        for moment, cost in [*self.passed, (now, 0)]:
            if before is not None:
                gone = moment // tick - before // tick
                used = max(Fraction(0), used - Fraction(gone * self.limit, ticks))
            used, before = used + cost, moment
        return used


class FixedModel(Model):
    """Counts until a period after the first that counts."""

    def counted(self, now: int) -> list[tuple[int, int]]:
        return self.passed if self.passed and now < self.passed[0][0] + self.period else []


class SlidingModel(Model):
    """Counts what is at most so many slots old."""

    def counted(self, now: int) -> list[tuple[int, int]]:
        slot = -(-self.period // self.algorithm.SLOTS)  # type: ignore[attr-defined]
        least = now // slot - self.algorithm.SLOTS  # type: ignore[attr-defined]
        return [(moment, cost) for moment, cost in self.passed if moment // slot >= least]


class CalendarModel(Model):
    """Asks another calendar which span a moment is in."""

    def counted(self, now: int) -> list[tuple[int, int]]:
        calendar = self.algorithm.quota.calendar
        span = named(calendar, now)
        return [(at, cost) for at, cost in self.passed if named(calendar, at) == span]


def named(calendar: str, moment: int) -> object:
    """Name the span of *calendar* that *moment* is in."""
    date = EPOCH + timedelta(microseconds=moment)
    return {
        "hour": date.strftime("%Y-%m-%d %H"),
        "day": date.strftime("%Y-%m-%d"),
        "week": date.isocalendar()[:2],
        "month": date.strftime("%Y-%m"),
        "year": date.strftime("%Y"),
    }[calendar]


MODELS: dict[type[Algorithm], type[Model]] = {
    TokenBucket: BucketModel,
    FixedWindow: FixedModel,
    SlidingWindow: SlidingModel,
    CalendarWindow: CalendarModel,
}
