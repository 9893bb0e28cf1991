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
    """

    __slots__ = ("_calls", "_failed", "_part", "_parts", "_slow", "_tick", "counts")

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
        self.counts = Counts(0, 0, 0)

    def add(self, now: float, failed: bool, slow: bool = False) -> Counts:
        """Count a call that ended at *now*; return all that are counted, this one among them."""
        at = self._moved_to(now)
        calls, failures, slows = self.counts
        self._calls[at] += 1
        calls += 1
        if failed:
            self._failed[at] += 1
            failures += 1
        if slow:
            self._slow[at] += 1
            slows += 1
        self.counts = counts = Counts(calls, failures, slows)
        return counts

    def at(self, now: float) -> Counts:
        """Return what is still counted at *now*."""
        self._moved_to(now)
        return self.counts

    def _moved_to(self, now: float) -> int:
        """Forget what is too old by *now*; return where calls of *now* are counted."""
        tick = int(now // self._part)
        parts = self._parts
        if tick != self._tick:
            gone = tick - self._tick
            if 0 < gone < parts and self._tick >= 0:
                for old in range(self._tick + 1, tick + 1):
                    at = old % parts
                    self._calls[at] = self._failed[at] = self._slow[at] = 0
                self.counts = Counts(sum(self._calls), sum(self._failed), sum(self._slow))
            else:
                self.clear()
            self._tick = tick
        return tick % parts
