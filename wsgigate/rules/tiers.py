"""Priority tiers and zones of instances: later tiers take over as earlier ones fail."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Generic, NamedTuple

from wsgigate.rules.balance import M, Policy

__all__ = [
    "OVERPROVISIONED",
    "Level",
    "Standing",
    "Tiers",
    "available",
    "slow_start",
    "tier_of",
    "zoned",
]


# The share of requests of each tier, and the instances that get them.

OVERPROVISIONED = 1.4
"""The assumed spare capacity of a tier: it takes all its requests while 1 / 1.4 = 71 % of it are
healthy."""


class Standing(NamedTuple):
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


def available(standings: Sequence[Standing], panic: float = 0.5) -> tuple[Level, ...]:
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
    tiers = sorted({standing.tier for standing in standings if standing.weight > 0})
    sides = [_of(standings, tier) for tier in tiers]
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


def _of(standings: Sequence[Standing], tier: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the indexes of the instances of *tier* that do not drain, and of its healthy ones."""
    open_ = tuple(
        at for at, standing in enumerate(standings) if standing.tier == tier and standing.weight > 0
    )
    return open_, tuple(at for at in open_ if standings[at].well)


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

    def __init__(self, random: Callable[[], float], make: Callable[[], Policy[M]]) -> None:
        self._random = random
        self._make = make
        self._policies = {0: make()}
        self._homes: dict[str, Policy[M]] = {}
        self._levels: list[tuple[Policy[M], Sequence[M]]] = []
        self._sums: list[float] = []
        self.timed = self._policies[0].timed
        self.pick: Callable[[str | None, Collection[M], float], M] = self._pick

    def renew(
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
            policy.renew(members, draining)
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
            policy = next((p for p, members in order if _others(members, avoid)), levels[at][0])
        else:
            policy = levels[at][0]
        return policy.pick(key, avoid, now)

    def answered(self, member: M, seconds: float, now: float, failed: bool = False) -> None:
        """Record the response time of *member* in its tier's policy."""
        policy = self._homes.get(member.name)
        if policy is not None:
            policy.answered(member, seconds, now, failed)


def _others(members: Sequence[M], avoid: Collection[M]) -> bool:
    return any(member not in avoid for member in members)


def _chance(key: str) -> float:
    """Return a number in [0, 1) that is the same for *key* in every worker."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6, person=b"tier").digest()
    return int.from_bytes(digest, "big") / (1 << 48)
