"""Load balancing policies: which of several instances gets the next request.

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
    "POLICIES",
    "ConsistentHash",
    "LeastLatency",
    "M",
    "Member",
    "Pairs",
    "Policy",
    "Random",
    "RoundRobin",
    "SmoothWeighted",
    "TwoChoices",
    "others",
    "policy_of",
]


# The interface of a policy.


class Member(Protocol):
    """An instance as a policy sees it.

    :ivar name: Its URL, which identifies it in every worker.
    :ivar weight: Its share relative to the others, above 0; read by :meth:`Policy.renew`.
    :ivar in_flight: Its requests in flight from this worker; read for each pick.
    """

    name: str
    weight: float
    in_flight: int


M = TypeVar("M", bound=Member)


class Policy(Protocol[M]):
    """Picks the instance for the next request.

    Its constructor takes a function that returns random numbers in [0, 1). All threads of a worker
    share it; the caller holds a lock.

    :ivar timed: Whether it needs the time, and the response times.
    """

    timed: bool

    def renew(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        """Set the instances that may be picked from now on.

        :param members: At least one, in a stable order; no name twice.
        :param draining: Instances that only finish their requests in flight.
        """

    def pick(self, key: str | None = None, avoid: Collection[M] = (), now: float = 0.0) -> M:
        """Return the instance for the next request.

        :param key: The affinity key of the request, for a policy that uses one.
        :param avoid: Instances that have failed this request already; picked only if there are no
            others.
        :param now: The time in seconds, for a policy that is *timed*.
        """

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Record that a response began, for a policy that is *timed*.

        :param seconds: The time until it began; the time until its end may depend on the client.
        """


def others(members: Sequence[M], avoid: Collection[M]) -> Sequence[M]:
    """Return *members* without those to *avoid*, or all of them when there are no others."""
    return [member for member in members if member not in avoid] or members


# Random policies. Drawing two instances and taking the less loaded one is nearly as even as
# comparing all, and never sends every worker to the same instance at once (Mitzenmacher 2001, "The
# power of two choices").


class Pairs(Generic[M]):
    """Draws one member, or two different ones, at random by weight.

    :param random: Returns numbers in [0, 1).
    """

    __slots__ = ("count", "equal", "members", "random", "sums", "total")

    def __init__(self, random: Callable[[], float], members: Sequence[M]) -> None:
        self.random = random
        self.members = members
        self.count = len(members)
        weights = [member.weight for member in members]
        self.sums = list(accumulate(weights))
        self.equal = len(set(weights)) == 1  # then an index is drawn without a search
        self.total = sum(weights)

    def one(self) -> M:
        """Return one member."""
        if self.equal:
            return self.members[int(self.random() * self.count)]
        return self.members[self._at(self.random() * self.total)]

    def two(self) -> tuple[M, M]:
        """Return two different members, in random order; there must be at least two."""
        members, count = self.members, self.count
        if self.equal:
            first, second = divmod(int(self.random() * (count * (count - 1))), count - 1)
            return members[first], members[second + 1 if second >= first else second]
        first = self._at(self.random() * self.total)
        before, weight = self.sums[first] - members[first].weight, members[first].weight
        mark = self.random() * (self.total - weight)
        second = self._at(mark if mark < before else mark + weight)
        if second == first:  # by rounding of the sums
            second = first + 1 if first + 1 < count else first - 1
        return members[first], members[second]

    def _at(self, mark: float) -> int:
        return min(bisect(self.sums, mark), self.count - 1)


class Random(Generic[M]):
    """Picks at random, by weight."""

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
    """Picks the one of two random instances with fewer requests in flight per weight."""

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
    """Picks the one of two random instances with the lower expected latency, by peak EWMA.

    The average rises at once and falls slowly, so the first slow response of an instance counts
    (Finagle's ``PeakEwma``). Failures are often fast, so each counts as a slow response: otherwise
    a broken instance would attract all requests. Not for services whose responses begin when an
    event occurs (long polling).

    :param decay: Seconds after which a response counts for about a third (1/e).
    """

    timed = True
    PENALTY = 1e6
    """The cost per request in flight of an instance without any response yet."""
    FAILURE = 1.0
    """The least seconds that a failure counts as."""

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
        """Return the expected cost of another request to *member*."""
        known = self._costs.get(member.name)
        if known is None:
            return self.PENALTY * member.in_flight / member.weight
        cost, at = known
        if now > at:
            cost *= exp((at - now) / self._decay)  # so that a slow instance is tried again
        return cost * (member.in_flight + 1) / member.weight

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Record the response time of *member*."""
        if failed:
            seconds = max(seconds, self.FAILURE)
        known = self._costs.get(member.name)
        if known is not None and known[0] > seconds:
            cost, at = known
            kept = exp(min(0.0, at - now) / self._decay)
            seconds = cost * kept + seconds * (1 - kept)
        self._costs[member.name] = (seconds, now)


# Affinity: the same instance for the same key, as far as possible.

_BITS = (1 << 64) - 1

_SCALE = float(1 << 53)


class ConsistentHash(Generic[M]):
    """Picks the instance by a hash of the request's key, with a bound on its load.

    Each instance has a score for each key, and the highest wins (rendezvous hashing, Thaler and
    Ravishankar 1998; weighted as by Schindelhauer and Schomaker 2005). So when an instance comes or
    goes, only its keys move, in every worker the same way. No instance has more than *bound* times
    its share of the requests in flight (Mirrokni et al. 2016, "Consistent hashing with bounded
    loads"): further requests of a key go to the instance with the next lower score.

    A request without a key goes to the less loaded of two random instances.

    :param bound: The most requests in flight of an instance, as a multiple of its share; above 1.
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
        # The requests in flight per weight, including this one, times the bound.
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
        """Return the score and the index of each member, the highest score first."""
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


# Round robin.

_WARM_UP = 100
"""The most turns that a worker skips at its start, so that workers are not in step."""


class RoundRobin(Generic[M]):
    """Picks one after the other, regardless of weight; each worker starts at a random one.

    When members change it continues after the one that was picked last.
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
            if picked is not members[at]:  # out of turn: the next turn stays the same
                return picked
        self._next = at + 1 if at + 1 < count else 0
        return members[at]

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Do nothing."""


class SmoothWeighted(Generic[M]):
    """Picks one after the other in proportion to weight, without long runs of the same instance.

    In each turn every member gains its weight; the one with the most is picked, and loses the sum
    of all weights (nginx's smooth weighted round-robin). Weights 5, 1 and 1 give ``a a b a c a a``.
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
"""The policies by their names in settings; each is called with ``random`` and its options."""


def policy_of(
    balance: str | Callable[[Callable[[], float]], Policy[Any]], random: Callable[[], float]
) -> Policy[Any]:
    """Return the policy named *balance*, or the one that the callable *balance* returns.

    :param random: Returns numbers in [0, 1).
    :raises ValueError: There is no policy of that name.
    """
    if not isinstance(balance, str):
        return balance(random)
    if balance not in POLICIES:
        raise ValueError(f"balance is one of {', '.join(POLICIES)}, got {balance!r}")
    return POLICIES[balance](random)
