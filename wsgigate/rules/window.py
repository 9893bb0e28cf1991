"""Calls of the last seconds, counted in parts: old ones are forgotten without a list of them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Counts", "Window"]


class Counts(NamedTuple):
    """How many calls there were, and how many of them went wrong or took long."""

    calls: int
    failed: int
    slow: int


class Window:
    """How calls of the last *length* seconds went.

    Time is cut into parts; a part is forgotten as a whole. So what is counted is between
    *length* less one part and *length* old. A clock that goes back empties the window.

    :param length: Seconds.
    :param parts: How many parts there are.
    :ivar calls: What is counted, as of the last call.
    :ivar failed: How many of these have failed.
    :ivar slow: How many of them took long.
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
        """Forget everything."""
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
        """Return what is still counted at *now*."""
        tick = int(now // self._part)
        if tick != self._tick:
            self._move_to(tick)
        return Counts(self.calls, self.failed, self.slow)

    def _move_to(self, tick: int) -> None:
        """Forget what is too old by then."""
        gone = tick - self._tick
        if 0 < gone < self._parts and self._tick >= 0:
            for old in range(self._tick + 1, tick + 1):
                at = old % self._parts
                self._calls[at] = self._failed[at] = self._slow[at] = 0
            self.calls, self.failed, self.slow = map(sum, (self._calls, self._failed, self._slow))
        else:
            self.clear()
        self._tick = tick
