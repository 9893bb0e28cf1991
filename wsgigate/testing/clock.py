"""Time and chance that a test decides about."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["FakeClock", "Script"]


class FakeClock:
    """A clock that stands still until it is told to go on: pass it wherever a ``clock`` is taken.

    :param start: The first time it tells, in seconds.
    """

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Go on by *seconds*; a negative number sets the clock back, as operators do."""
        self.now += seconds


class Script:
    """Chance that was agreed upon: pass it wherever a ``random`` is taken.

    :param values: What the calls return, one after the other.
    """

    def __init__(self, values: Iterable[float]) -> None:
        self._values = list(values)
        self._next = 0

    def __call__(self) -> float:
        """Return the next value; one call more than there are values is an AssertionError."""
        if not self.left:
            raise AssertionError(f"chance was asked for after all {len(self._values)} values")
        self._next += 1
        return self._values[self._next - 1]

    @property
    def left(self) -> int:
        """How many values have not been asked for."""
        return len(self._values) - self._next
