"""The ways to count requests against a quota.

The state of a caller is a few bytes that a store keeps between decisions. All that is counted and
timed in them is a whole number, below 2**53 so that a store whose only numbers are doubles can
decide alike: nothing is lost to rounding, and so never one too many passes.

Bytes that the algorithm did not write itself count as none. A moment in them that is later than now
counts as now: a clock that is set back is no way to a new quota, and it locks nobody out for longer
than the quota's period (:class:`SlidingWindow`: and one slot). A clock that is set forward is as if
that time had passed.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from wsgigate.rules.calendar import CalendarWindow
from wsgigate.rules.quota import Quota, Verdict
from wsgigate.rules.together import Together, tightest
from wsgigate.rules.windows import FixedWindow, SlidingWindow, TokenBucket

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "CalendarWindow",
    "FixedWindow",
    "SlidingWindow",
    "Together",
    "TokenBucket",
    "algorithm_for",
    "tightest",
]


class Algorithm(Protocol):
    """A way to count requests against a quota."""

    name: ClassVar[str]
    """What settings and stores call it."""

    @property
    def quota(self) -> Quota:
        """What is counted against."""

    def __init__(self, quota: Quota) -> None: ...

    def take(
        self, old: bytes | None, now: float, cost: int = 1
    ) -> tuple[bytes | None, float, Verdict]:
        """Decide about a request of *cost* at *now*, given the caller's state *old*.

        :param now: Seconds since 1970; counted in whole microseconds, halves up.
        :param cost: How many requests it counts as; 0 only looks.
        :returns: The new state (*old* itself if it stays as it is), how many seconds it is needed,
            and the verdict.
        :raises ValueError: *cost* is no whole number, negative, or more than the limit, so that it
            could never pass.
        """


ALGORITHMS: dict[str, type[Algorithm]] = {
    kind.name: kind for kind in (TokenBucket, FixedWindow, SlidingWindow, CalendarWindow)
}
"""The algorithms by the names that settings use."""


def algorithm_for(quota: Quota, name: str | None = None) -> Algorithm:
    """Return the algorithm *name* for *quota*; a span of the calendar can only be counted as such.

    :param name: One of :data:`ALGORITHMS`; unless said, the one that is usual for such a quota.
    :raises ValueError: There is no such algorithm, or it cannot count that quota.
    """
    if name is None:
        name = "calendar" if quota.calendar else "token-bucket"
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm is one of {', '.join(ALGORITHMS)}, not {name!r}")
    return ALGORITHMS[name](quota)
