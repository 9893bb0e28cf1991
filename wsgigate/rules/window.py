"""Counts the calls of the last seconds in time slots, without a list of calls."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Counts", "Window"]


class Counts(NamedTuple):
    """The number of calls, and of the failed and the slow ones among them."""

    calls: int
    failed: int
    slow: int


class Window:
    """Counts the calls of the last *length* seconds.

    Time is cut into parts, and a part is dropped as a whole: the window covers between *length*
    less one part and *length* seconds. A clock that goes back empties the window.

    :param length: Seconds.
    :param parts: The number of parts.
    :ivar calls: The number of calls, as of the last change.
    :ivar failed: The failed ones among them.
    :ivar slow: The slow ones among them.
    """

    __slots__ = (
        "_calls",
        "_failed",
        "_part",
        "_parts",
        "_slow",
        "_tick",
        "calls",
        "failed",
        "slow",
    )

    def __init__(self, length: float, parts: int = 10) -> None:
        self._part = length / parts
        self._parts = parts
        self.clear()

    def clear(self) -> None:
        """Reset all counts."""
        self._tick = -1
        self._calls = [0] * self._parts
        self._failed = [0] * self._parts
        self._slow = [0] * self._parts
        self.calls = self.failed = self.slow = 0

    def add(self, now: float, failed: bool, slow: bool = False) -> None:
        """Count a call that ended at *now*."""
        tick = int(now // self._part)
        if tick != self._tick:
            self._move_to(tick)
        at = tick % self._parts
        self._calls[at] += 1
        self.calls += 1
        if failed:
            self._failed[at] += 1
            self.failed += 1
        if slow:
            self._slow[at] += 1
            self.slow += 1

    def at(self, now: float) -> Counts:
        """Return the counts at *now*."""
        tick = int(now // self._part)
        if tick != self._tick:
            self._move_to(tick)
        return Counts(self.calls, self.failed, self.slow)

    def _move_to(self, tick: int) -> None:
        """Drop the parts that are older than the window at *tick*."""
        gone = tick - self._tick
        if 0 < gone < self._parts and self._tick >= 0:
            for old in range(self._tick + 1, tick + 1):
                at = old % self._parts
                self._calls[at] = self._failed[at] = self._slow[at] = 0
            self.calls, self.failed, self.slow = map(sum, (self._calls, self._failed, self._slow))
        else:
            self.clear()
        self._tick = tick
