"""Which of several instances takes the next request.

A policy is one class with the methods of :class:`Policy`, and one line in :data:`POLICIES`.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from itertools import accumulate
from math import ceil, exp, log
from typing import Any, Generic, Protocol, TypeVar

__all__ = [
    "ConsistentHash",
    "LeastLatency",
    "M",
    "Member",
    "POLICIES",
    "Pairs",
    "Policy",
    "Random",
    "RoundRobin",
    "SmoothWeighted",
    "TwoChoices",
    "others",
    "policy_of",
]


# What a way to balance is given and what it is asked for.


class Member(Protocol):
    """An instance as a policy sees it.

    :ivar name: Tells it from others, in every worker the same: its URL.
    :ivar weight: Its share relative to the others, above 0; read when the members are renewed.
    :ivar in_flight: Requests that it has under way, as this worker sees it; read for each pick.
    """

    name: str
    weight: float
    in_flight: int


M = TypeVar("M", bound=Member)


class Policy(Protocol[M]):
    """Picks who takes the next request.

    Made with one argument, which gives numbers in [0, 1). It belongs to all threads of a worker,
    and whoever calls it holds a lock.

    :ivar timed: Whether it wants to know the time, and how long answers took.
    """

    timed: bool

    def renew(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        """Take note of who may be picked from now on.

        :param members: At least one, in a stable order; no name twice.
        :param draining: Those that only go on with what they have begun.
        """

    def pick(self, key: str | None = None, avoid: Collection[M] = (), now: float = 0.0) -> M:
        """Return who takes the next request.

        :param key: Tells requests that belong together, for a policy that cares.
        :param avoid: Those that have failed this request already. They are picked only when there
            are no others.
        :param now: The time in seconds, for a policy that is *timed*.
        """

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Take note that an answer began, for a policy that is *timed*.

        :param seconds: How long that took: not until its end, which may be the client's doing.
        """


def others(members: Sequence[M], avoid: Collection[M]) -> Sequence[M]:
    """Return *members* without those to *avoid*, or all of them when there are no others."""
    return [member for member in members if member not in avoid] or members


# Two instances drawn at random, and the better one of them.
#
# Drawing two and taking the less loaded one is nearly as even as comparing all, and never sends
# every worker to the same instance at once (Mitzenmacher 2001, "The power of two choices").


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


# The same instance for the same key, as long as it can be.

_BITS = (1 << 64) - 1

_SCALE = float(1 << 53)


class ConsistentHash(Generic[M]):
    """The instance that a request's key falls to; one with too much to do passes it on.

    Each instance has a score for each key, and the highest wins (rendezvous hashing, Thaler and
    Ravishankar 1998; weighted as by Schindelhauer and Schomaker 2005). So when an instance comes or
    goes, only keys that fall to it move, in every worker the same way. No instance has more than
    *bound* times its share of what is under way (Mirrokni et al. 2016, "Consistent hashing with
    bounded loads"): what one key asks too often goes to the next instance in its order.

    A request without a key goes to the less busy of two.

    :param bound: What an instance may have under way, as a multiple of its share; above 1.
    """

    timed = False

    def __init__(self, random: Callable[[], float], *, bound: float = 1.25) -> None:
        if not 1 < bound <= 1000:
            raise ValueError(f"bound is above 1 and at most 1000, got {bound!r}")
        self._bound = bound
        self._free: TwoChoices[M] = TwoChoices(random)
        self._members: Sequence[M] = ()
        self._seeds: list[int] = []
        self._weighted = False
        self._total = 0.0

    def renew(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        self._free.renew(members)
        self._members = members
        self._seeds = [_hashed(member.name) for member in members]
        self._weighted = len({member.weight for member in members}) > 1
        self._total = sum(member.weight for member in members)

    def pick(self, key: str | None = None, avoid: Collection[M] = (), now: float = 0.0) -> M:
        members = self._members
        if key is None:
            return self._free.pick(avoid=avoid)
        if len(members) == 1:
            return members[0]
        ranks = self._ranks(_hashed(key))
        # What there would be with this request, as every instance's share of it.
        share = self._bound * (sum([m.in_flight for m in members]) + 1) / self._total
        for _, at in ranks:
            member = members[at]
            if member not in avoid and member.in_flight + 1 <= ceil(share * member.weight):
                return member
        left = [members[at] for _, at in ranks if members[at] not in avoid]
        return left[0] if left else members[ranks[0][1]]

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Do nothing."""

    def _ranks(self, key: int) -> list[tuple[float, int]]:
        """Return the score and the place of each member, the highest first."""
        if not self._weighted:
            scores = [(float(_mixed(key ^ seed)), at) for at, seed in enumerate(self._seeds)]
        else:
            scores = [
                (
                    -self._members[at].weight
                    / log(((_mixed(key ^ seed) >> 11) + 1) / (_SCALE + 1)),
                    at,
                )
                for at, seed in enumerate(self._seeds)
            ]
        scores.sort(reverse=True)
        return scores


def _hashed(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _mixed(bits: int) -> int:
    """Return *bits* mixed well: the finalizer of SplitMix64 (Steele et al. 2014)."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _BITS
    return bits ^ (bits >> 31)


# One after the other.

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


POLICIES: dict[str, Callable[..., Policy[Any]]] = {
    "two-choices": TwoChoices,
    "round-robin": RoundRobin,
    "weighted": SmoothWeighted,
    "random": Random,
    "least-latency": LeastLatency,
    "consistent-hash": ConsistentHash,
}
"""The policies by the names that settings use: each is made with ``random`` and its options."""


def policy_of(
    balance: str | Callable[[Callable[[], float]], Policy[Any]], random: Callable[[], float]
) -> Policy[Any]:
    """Return the policy called *balance*, or what *balance* makes.

    :param random: Gives numbers in [0, 1).
    :raises ValueError: There is none of that name.
    """
    if not isinstance(balance, str):
        return balance(random)
    if balance not in POLICIES:
        raise ValueError(f"balance is one of {', '.join(POLICIES)}, got {balance!r}")
    return POLICIES[balance](random)
