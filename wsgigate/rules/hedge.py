"""When a request that is slow to be answered is made once more beside itself."""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from math import ceil

from wsgigate.rules.arguments import checked

__all__ = ["SAFE", "Delays", "HedgeRules", "hedgeable"]

SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
"""The methods that only read (RFC 9110 9.2.1); TRACE is never forwarded."""

_QUANTILE = re.compile(r"p([1-9][0-9](?:\.[0-9])?)", re.ASCII)
_LONGEST = 60.0
_MOST = 5


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
        elif isinstance(after, bool) or not 0 < after <= _LONGEST:
            raise ValueError(f"after: is more than nothing and at most a minute, got {after!r}")
        if type(self.most) is not int or not 1 <= self.most <= _MOST:
            raise ValueError(f"most: is 1 to {_MOST}, got {self.most!r}")

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
