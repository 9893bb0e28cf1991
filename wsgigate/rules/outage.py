"""When to ask a server again that fails: at once a few times, then after rests that grow."""

from __future__ import annotations

__all__ = ["Outage"]


class Outage:
    """What is known of one server's failures, and whether it is worth asking it.

    After *tolerated* failures in a row it is left to rest: nobody asks. When the rest is over one
    caller is let through as a probe, while all others still get their refusal at once. A probe that
    fails makes the next rest twice as long; any success ends the outage. Calls must not overlap.

    :param tolerated: How many failures in a row are borne before the first rest.
    :param first: Seconds of the first rest.
    :param longest: Seconds of the longest one; also how long a probe may stay away before another
        is let through.
    :raises ValueError: *tolerated* is below 1, or the rests are not ``0 < first <= longest``.
    """

    def __init__(self, *, tolerated: int = 3, first: float = 0.5, longest: float = 5.0) -> None:
        if tolerated < 1:
            raise ValueError(f"tolerated is 1 or more, not {tolerated}")
        if not 0 < first <= longest:
            raise ValueError(f"rests are 0 < first <= longest, not {first:g} and {longest:g}")
        self.failures = 0
        """How many calls have failed in a row; 0 while all is well."""
        self.since = 0.0
        """When the first of them failed."""
        self.until = 0.0
        """When the rest ends; means nothing unless :attr:`resting`."""
        self._tolerated = tolerated
        self._first = first
        self._longest = longest
        self._rest = first
        self._probing = False

    @property
    def resting(self) -> bool:
        """Whether nobody may ask but a probe."""
        return self.failures >= self._tolerated

    def admit(self, now: float) -> bool:
        """Return whether a caller may ask at *now*: anybody when all is well, else one probe."""
        if not self.resting:
            return True
        if now < self.until:
            return False
        self.until = now + self._longest  # a probe that is never heard of must not bar all others
        self._probing = True
        return True

    def failed(self, now: float, chance: float) -> bool:
        """Take note that a call failed; return whether a rest began with it, the first in a row.

        :param chance: In [0, 1): shortens the rest by up to half, so that not all who share the
            server come back at the same moment.
        """
        if self.resting and not self._probing:
            return False  # it was under way when the rest began, and tells nothing new
        if not self.failures:
            self.since = now
        before = self.resting
        self.failures += 1
        if not self.resting:
            return False
        self._rest = min(2 * self._rest, self._longest) if before else self._first
        self._probing = False
        self.until = now + self._rest * (1 - chance / 2)
        return not before

    def succeeded(self) -> bool:
        """Take note that a call was answered; return whether that ended a rest."""
        rested = self.resting
        self.failures = 0
        self._probing = False
        return rested
