"""One after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Generic

from wsgigate.rules.balance.policy import M, others

__all__ = ["RoundRobin", "SmoothWeighted"]

_WARM_UP = 100
"""From up to so many turns on does a worker begin, so that workers do not march in step."""


class RoundRobin(Generic[M]):
    """One after the other, whatever they weigh. Every worker begins with another one.

    When members come and go it goes on behind the one that was picked last.
    """

    timed = False

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._members: Sequence[M] = ()
        self._next = 0

    def renew(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        before, self._members = self._members, members
        if not before:
            self._next = int(self._random() * len(members))
            return
        places = {member.name: at for at, member in enumerate(members)}
        for back in range(1, len(before) + 1):
            place = places.get(before[self._next - back].name)
            if place is not None:
                self._next = (place + 1) % len(members)
                return
        self._next = 0

    def pick(self, key: str | None = None, avoid: Collection[M] = (), now: float = 0.0) -> M:
        members, at = self._members, self._next
        count = len(members)
        if avoid:
            turns = [*members[at:], *members[:at]]
            picked = others(turns, avoid)[0]
            if picked is not members[at]:  # it is nobody's turn: who comes next comes next
                return picked
        self._next = at + 1 if at + 1 < count else 0
        return members[at]

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Do nothing."""


class SmoothWeighted(Generic[M]):
    """One after the other, as often as each weighs, those of great weight not in a row.

    Each turn everybody gains its weight, and whoever has most pays all that was gained (nginx's
    smooth weighted round-robin): 5, 1 and 1 are picked as ``a a b a c a a``.
    """

    timed = False

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._members: Sequence[M] = ()
        self._gained: list[float] = []
        self._weights: list[float] = []
        self._total = 0.0

    def renew(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        begins = not self._members
        known = {
            member.name: gained for member, gained in zip(self._members, self._gained, strict=True)
        }
        self._members = members
        self._weights = [member.weight for member in members]
        self._total = sum(self._weights)
        self._gained = [known.get(member.name, 0.0) for member in members]
        if begins:
            for _ in range(int(self._random() * _WARM_UP)):
                self._turn(range(len(members)))

    def pick(self, key: str | None = None, avoid: Collection[M] = (), now: float = 0.0) -> M:
        members = self._members
        if avoid:
            names = {member.name for member in others(members, avoid)}
            return members[self._turn([at for at, m in enumerate(members) if m.name in names])]
        return members[self._turn(range(len(members)))]

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Do nothing."""

    def _turn(self, places: Sequence[int]) -> int:
        gained, weights = self._gained, self._weights
        total = 0.0
        best = places[0]
        for at in places:
            total += weights[at]
            gained[at] += weights[at]
            if gained[at] > gained[best]:
                best = at
        gained[best] -= total
        return best
