"""A clock and random numbers that a test controls."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["FakeClock", "Script"]


class FakeClock:
    """A clock that advances only by :meth:`advance`: pass it wherever a ``clock`` is accepted.

    :param start: The first time that it returns, in seconds.
    """

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Advance the clock by *seconds*; a negative number sets it back, as operators do."""
        self.now += seconds


class Script:
    """Scripted random numbers: pass it wherever a ``random`` is accepted.

    :param values: The numbers that the calls return, one after the other.
    """

    def __init__(self, values: Iterable[float]) -> None:
        self._values = list(values)
        self._next = 0

    def __call__(self) -> float:
        """Return the next value.

        :raises AssertionError: All values have been returned.
        """
        if not self.left:
            raise AssertionError(f"a random number was requested after all {len(self._values)}")
        self._next += 1
        return self._values[self._next - 1]

    @property
    def left(self) -> int:
        """The number of values that have not been returned yet."""
        return len(self._values) - self._next
