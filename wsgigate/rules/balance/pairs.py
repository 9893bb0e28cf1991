"""Two instances drawn at random, and the better one of them.

Drawing two and taking the less loaded one is nearly as even as comparing all, and never sends every
worker to the same instance at once (Mitzenmacher 2001, "The power of two choices").
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from math import exp
from typing import Generic

from wsgigate.rules.balance.policy import M, others

__all__ = ["LeastLatency", "Pairs", "Random", "TwoChoices"]


class Pairs(Generic[M]):
    """Draws members by their weights, one or two different ones.

    :param random: Gives numbers in [0, 1).
    """

    __slots__ = ("count", "equal", "members", "random", "sums", "total")

    def __init__(self, random: Callable[[], float], members: Sequence[M]) -> None:
        self.random = random
        self.members = members
        self.count = len(members)
        weights = [member.weight for member in members]
        self.sums = list(accumulate(weights))
        self.equal = len(set(weights)) == 1  # then a place is drawn without looking for it
        self.total = sum(weights)

    def one(self) -> M:
        """Return one of them."""
        if self.equal:
            return self.members[int(self.random() * self.count)]
        return self.members[self._at(self.random() * self.total)]

    def two(self) -> tuple[M, M]:
        """Return two different ones of at least two, in an order that is chance too."""
        members, count = self.members, self.count
        if self.equal:
            first, second = divmod(int(self.random() * (count * (count - 1))), count - 1)
            return members[first], members[second + 1 if second >= first else second]
        first = self._at(self.random() * self.total)
        before, weight = self.sums[first] - members[first].weight, members[first].weight
        mark = self.random() * (self.total - weight)
        second = self._at(mark if mark < before else mark + weight)
        if second == first:  # the sums are rounded
            second = first + 1 if first + 1 < count else first - 1
        return members[first], members[second]

    def _at(self, mark: float) -> int:
        return min(bisect(self.sums, mark), self.count - 1)


class Random(Generic[M]):
    """Whoever chance picks, by weight."""

    timed = False

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random

    def renew(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        self._pairs = Pairs(self._random, members)

    def pick(self, key: str | None = None, avoid: Collection[M] = (), now: float = 0.0) -> M:
        pairs = self._pairs
        return (Pairs(self._random, others(pairs.members, avoid)) if avoid else pairs).one()

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Do nothing."""


class TwoChoices(Generic[M]):
    """The one of two random ones that has fewer requests under way for its weight."""

    timed = False

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random

    def renew(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        self._pairs = Pairs(self._random, members)

    def pick(self, key: str | None = None, avoid: Collection[M] = (), now: float = 0.0) -> M:
        pairs = self._pairs
        if avoid:
            pairs = Pairs(self._random, others(pairs.members, avoid))
        if pairs.count == 1:
            return pairs.members[0]
        one, other = pairs.two()
        if pairs.equal:
            return one if one.in_flight <= other.in_flight else other
        ahead = (one.in_flight + 1) * other.weight <= (other.in_flight + 1) * one.weight
        return one if ahead else other

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Do nothing."""


class LeastLatency(Generic[M]):
    """The one of two random ones that is likely to answer sooner, by peak EWMA.

    What an answer costs is remembered at once when it grows, and forgotten slowly when it shrinks:
    an instance that becomes slow is noticed by its first slow answer (Finagle's ``PeakEwma``).
    Failures often come fast, so one counts as a slow answer: else a broken instance would draw all
    requests. Not for services whose answers begin when there is something to tell (long polling).

    :param decay: Seconds after which an answer counts for a third of itself.
    """

    timed = True
    PENALTY = 1e6
    """What the next request to an instance costs that has not answered its first one yet."""
    FAILURE = 1.0
    """Seconds that a failure counts for, at least."""

    def __init__(self, random: Callable[[], float], *, decay: float = 10.0) -> None:
        if not 0 < decay < float("inf"):
            raise ValueError(f"decay is a number of seconds above 0, got {decay!r}")
        self._random = random
        self._decay = decay
        self._costs: dict[str, tuple[float, float]] = {}

    def renew(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        self._pairs = Pairs(self._random, members)
        known = {member.name for member in (*members, *draining)}
        self._costs = {name: cost for name, cost in self._costs.items() if name in known}

    def pick(self, key: str | None = None, avoid: Collection[M] = (), now: float = 0.0) -> M:
        pairs = self._pairs
        if avoid:
            pairs = Pairs(self._random, others(pairs.members, avoid))
        if pairs.count == 1:
            return pairs.members[0]
        one, other = pairs.two()
        return one if self.load(one, now) <= self.load(other, now) else other

    def load(self, member: M, now: float) -> float:
        """Return what one more request to *member* is likely to cost."""
        known = self._costs.get(member.name)
        if known is None:
            return self.PENALTY * member.in_flight / member.weight
        cost, at = known
        if now > at:
            cost *= exp((at - now) / self._decay)  # so that a slow one is tried again some day
        return cost * (member.in_flight + 1) / member.weight

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Take note of what an answer of *member* cost."""
        if failed:
            seconds = max(seconds, self.FAILURE)
        known = self._costs.get(member.name)
        if known is not None and known[0] > seconds:
            cost, at = known
            kept = exp(min(0.0, at - now) / self._decay)
            seconds = cost * kept + seconds * (1 - kept)
        self._costs[member.name] = (seconds, now)
