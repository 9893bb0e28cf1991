"""Load balancing: which of several instances gets the next request.

A policy is one class with the methods of :class:`BalancePolicy`, and one line in :data:`POLICIES`.
Priority tiers and zones decide which instances a policy is given: later tiers take over as earlier
ones fail.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from itertools import accumulate
from math import ceil, exp, log
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

__all__ = [
    "POLICIES",
    "BalancePolicy",
    "Candidate",
    "ConsistentHash",
    "InstanceState",
    "LeastLatency",
    "M",
    "Pairs",
    "Random",
    "RoundRobin",
    "SmoothWeighted",
    "Tiers",
    "TwoChoices",
    "available",
    "policy_of",
    "slow_start",
    "tier_of",
    "zoned",
]


# The interface of a policy.


class Candidate(Protocol):
    """An instance as a policy sees it.

    :ivar name: Its URL, which identifies it in every worker.
    :ivar weight: Its share relative to the others, above 0; read by
        :meth:`BalancePolicy.set_members`.
    :ivar in_flight: Its requests in flight from this worker; read for each pick.
    """

    name: str
    weight: float
    in_flight: int


M = TypeVar("M", bound=Candidate)


class BalancePolicy(Protocol[M]):
    """Picks the instance for the next request.

    Its constructor takes a function that returns random numbers in [0, 1). All threads of a worker
    share it; the caller holds a lock.

    :ivar timed: Whether it needs the time, and the response times.
    """

    timed: bool

    def set_members(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
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

    def set_members(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        self._pairs = Pairs(self._random, members)

    def pick(self, key: str | None = None, avoid: Collection[M] = (), now: float = 0.0) -> M:
        pairs = self._pairs
        return (Pairs(self._random, others(pairs.members, avoid)) if avoid else pairs).one()

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Do nothing."""


class TwoChoices(Random[M]):
    """Picks the one of two random instances with fewer requests in flight per weight."""

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

    def set_members(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
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

    def set_members(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
        self._free.set_members(members)
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

    def set_members(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
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

    def set_members(self, members: Sequence[M], draining: Sequence[M] = ()) -> None:
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


POLICIES: dict[str, Callable[..., BalancePolicy[Any]]] = {
    "two-choices": TwoChoices,
    "round-robin": RoundRobin,
    "weighted": SmoothWeighted,
    "random": Random,
    "least-latency": LeastLatency,
    "consistent-hash": ConsistentHash,
}
"""The policies by their names in settings; each is called with ``random`` and its options."""


def policy_of(
    balance: str | Callable[[Callable[[], float]], BalancePolicy[Any]], random: Callable[[], float]
) -> BalancePolicy[Any]:
    """Return the policy named *balance*, or the one that the callable *balance* returns.

    :param random: Returns numbers in [0, 1).
    :raises ValueError: There is no policy of that name.
    """
    if not isinstance(balance, str):
        return balance(random)
    if balance not in POLICIES:
        raise ValueError(f"balance is one of {', '.join(POLICIES)}, got {balance!r}")
    return POLICIES[balance](random)


# Tiers and zones: the share of requests of each tier, and the instances that get them.

OVERPROVISIONED = 1.4
"""The assumed spare capacity of a tier: it takes all its requests while 1 / 1.4 = 71 % of it are
healthy."""


class InstanceState(NamedTuple):
    """The state of an instance.

    :ivar well: Whether its health checks pass, if there are any, and it is not ejected.
    :ivar weight: Its share; 0 for one that is draining.
    :ivar tier: Its tier: 0 first; the others get requests as those before them fail.
    """

    well: bool = True
    weight: float = 1.0
    tier: int = 0


class Level(NamedTuple):
    """A tier with instances that can get requests.

    :ivar tier: Its number.
    :ivar share: Its share of the requests; 0 for one on standby.
    :ivar places: The indexes of its instances that get requests.
    :ivar panic: Whether these are all of its instances, healthy or not.
    """

    tier: int
    share: float
    places: tuple[int, ...]
    panic: bool = False


def zoned(tier: int, zone: str, own: str) -> int:
    """Return the tier of an instance with zones taken into account.

    Each tier becomes two: its instances in the gateway's zone first, then all others. So the remote
    ones get what the local ones cannot take, by the rule for tiers: with two of ten local ones
    gone nothing, with half of them gone 30 %, with all of them gone everything. A lower tier gets
    requests only after all zones of the one above it.

    :param zone: The instance's zone; empty where unknown, which counts as remote.
    :param own: The gateway's zone; empty where zones do not count.
    """
    return 2 * tier + (zone != own) if own else tier


def tier_of(level: int, own: str) -> int:
    """Return the tier from which :func:`zoned` computed *level*."""
    return level // 2 if own else level


def available(states: Sequence[InstanceState], panic: float = 0.5) -> tuple[Level, ...]:
    """Return the tiers that get requests, the first one first; none if there are no instances.

    As with Envoy's priority levels, a tier takes 1.4 times its share of healthy instances, and
    leaves the rest to the next one: with all of ten healthy, or eight, the first one takes
    everything, with five of them 70 %. If all tiers together cannot take everything, their shares
    grow in proportion.

    In that case a tier with less than the share *panic* of healthy instances uses all of its
    instances: it is more likely that the checks are wrong, or that the few left would be
    overloaded, than that most of a service has failed. The same holds for the first tier when no
    instance at all is healthy. While other tiers can take the rest, this does not apply. Draining
    instances never get requests.

    :param panic: A share from 0 to 1; with 0, unhealthy instances are never used.
    """
    tiers = sorted({state.tier for state in states if state.weight > 0})
    sides = [_of(states, tier) for tier in tiers]
    healths = [min(1.0, OVERPROVISIONED * len(well) / len(open_)) for open_, well in sides]
    total = min(1.0, sum(healths))
    if not total:
        return (Level(tiers[0], 1.0, sides[0][0], True),) if tiers and panic else ()
    levels = []
    left = 1.0
    for tier, (open_, well), health in zip(tiers, sides, healths, strict=True):
        if not well:
            continue
        share = min(left, health / total)
        left = max(0.0, left - share)
        alone = total < 1 or len(tiers) == 1  # no other tier takes the rest
        drowns = alone and len(well) < panic * len(open_)
        levels.append(Level(tier, share, open_ if drowns else well, drowns))
    return tuple(levels)


def _of(states: Sequence[InstanceState], tier: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the indexes of the instances of *tier* that do not drain, and of its healthy ones."""
    open_ = tuple(at for at, state in enumerate(states) if state.tier == tier and state.weight > 0)
    return open_, tuple(at for at in open_ if states[at].well)


def slow_start(
    weight: float, age: float, window: float, *, aggression: float = 1.0, least: float = 0.1
) -> float:
    """Return the weight of an instance that has been healthy for *age* seconds.

    It grows from the share *least* of its weight to the whole weight, so that an instance that has
    just started, with cold caches, is not overloaded (Envoy's slow start).

    :param window: Seconds of growth; 0 for none.
    :param aggression: 1 grows linearly, more grows faster at first.
    """
    if age >= window or window <= 0:
        return weight
    return weight * max(least, float((max(0.0, age) / window) ** (1 / aggression)))


class Tiers(Generic[M]):
    """Draws a tier by its share of the requests, and picks an instance by the tier's policy.

    Requests of one key go to one tier while the shares are the same, as with Envoy. A request that
    all instances of its tier have failed goes to the first tier with another instance, including
    tiers on standby.

    :param random: Returns numbers in [0, 1).
    :param make: Returns the policy for a tier.
    :ivar timed: Whether these policies need the time, and the response times.
    """

    def __init__(self, random: Callable[[], float], make: Callable[[], BalancePolicy[M]]) -> None:
        self._random = random
        self._make = make
        self._policies = {0: make()}
        self._homes: dict[str, BalancePolicy[M]] = {}
        self._levels: list[tuple[BalancePolicy[M], Sequence[M]]] = []
        self._sums: list[float] = []
        self.timed = self._policies[0].timed
        self.pick: Callable[[str | None, Collection[M], float], M] = self._pick

    def set_members(
        self, levels: Sequence[tuple[int, float, Sequence[M]]], draining: Sequence[M] = ()
    ) -> None:
        """Set the instances that may be picked from now on.

        :param levels: At least one: its number, its share of the requests, and its instances.
        :param draining: Instances that only finish their requests in flight.
        """
        known, self._policies = self._policies, {}
        self._levels, self._homes = [], {}
        for tier, _, members in levels:
            self._policies[tier] = policy = known.get(tier) or self._make()
            policy.set_members(members, draining)
            self._levels.append((policy, members))
            self._homes |= dict.fromkeys([member.name for member in members], policy)
        for tier, policy in known.items():  # a tier that recovers continues with its old policy
            self._policies.setdefault(tier, policy)
        self._sums = list(accumulate(share for _, share, _ in levels))
        alone = len(levels) == 1
        self.pick = self._levels[0][0].pick if alone else self._pick  # the usual case costs nothing

    def _pick(self, key: str | None, avoid: Collection[M], now: float) -> M:
        chance = self._random() if key is None else _chance(key)
        levels = self._levels
        at = min(bisect(self._sums, chance * self._sums[-1]), len(levels) - 1)  # sums are rounded
        if avoid:
            order = [levels[at], *levels]
            policy = next((p for p, members in order if _any_left(members, avoid)), levels[at][0])
        else:
            policy = levels[at][0]
        return policy.pick(key, avoid, now)

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Record the response time of *member* in its tier's policy."""
        policy = self._homes.get(member.name)
        if policy is not None:
            policy.answered(member, seconds, now, failed)


def _any_left(members: Sequence[M], avoid: Collection[M]) -> bool:
    return any(member not in avoid for member in members)


def _chance(key: str) -> float:
    """Return a number in [0, 1) that is the same for *key* in every worker."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6, person=b"tier").digest()
    return int.from_bytes(digest, "big") / (1 << 48)
