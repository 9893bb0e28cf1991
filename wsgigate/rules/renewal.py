"""What becomes of a list of instances when its source says something new, or nothing."""

from __future__ import annotations

__all__ = ["Emptiness", "pause"]

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


class Emptiness:
    """Whether to believe that nobody is left.

    An empty answer is more often a source that has just begun, or lost its memory, than a service
    all of whose instances are gone: and to go on with them costs nothing, as who is gone refuses
    connections. So it is believed at once only if the source is certain, else when it is all that
    was heard for a while. Who never knew anybody has nothing to lose and believes it at once.

    :param hold: Seconds for which the instances known before are kept.
    """

    def __init__(self, hold: float) -> None:
        self._hold = hold
        self._since: float | None = None

    def believe(self, *, known: bool, found: bool, certain: bool, now: float) -> bool:
        """Return whether an answer replaces what is known.

        :param known: Whether any instance is known.
        :param found: Whether the answer has any.
        :param certain: Whether the source is certain of it.
        :param now: Seconds of a clock that never steps back.
        """
        if found or certain or not known:
            self._since = None
            return True
        if self._since is None:
            self._since = now
        return now - self._since >= self._hold


def pause(failures: int, chance: float) -> float:
    """Return the seconds until a source is asked again that failed *failures* times in a row.

    They double up to half a minute, and half of them is chance: when a source comes back, not all
    ask it at once.

    :param failures: 1 or more.
    :param chance: A number in [0, 1).
    """
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 10))
    return longest * (0.5 + 0.5 * chance)
