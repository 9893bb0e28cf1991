"""Several tiers of instances, each balanced by itself: the later ones help out the earlier ones."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Generic, NamedTuple

from wsgigate.rules.balance import M, Policy

__all__ = [
    "Level",
    "OVERPROVISIONED",
    "Standing",
    "Tiers",
    "available",
    "slow_start",
    "tier_of",
    "zoned",
]


# Which instances take requests, tier by tier, and which share of them each tier takes.

OVERPROVISIONED = 1.4
"""How much more than its share a tier is taken to bear: it does with 1 / 1.4 = 71 % of it well."""


class Standing(NamedTuple):
    """How an instance stands.

    :ivar well: Whether its health checks pass, as far as there are any, and it is not ejected.
    :ivar weight: Its share; 0 for one that is draining.
    :ivar tier: Whose turn it is: 0 first, the others as far as those before fail.
    """

    well: bool = True
    weight: float = 1.0
    tier: int = 0


class Level(NamedTuple):
    """A tier in which somebody can take requests.

    :ivar tier: Its number.
    :ivar share: Which share of the requests it takes; 0 for one that only stands by.
    :ivar places: Who takes them.
    :ivar panic: Whether that is all there are, well or not.
    """

    tier: int
    share: float
    places: tuple[int, ...]
    panic: bool = False


def zoned(tier: int, zone: str, own: str) -> int:
    """Return the tier in which an instance stands once zones count.

    Each tier becomes two: its instances in the gateway's own zone first, then all others. So those
    far away get what those nearby cannot take, by the same rule by which a tier helps out another:
    with two of ten nearby gone nothing, with half of them gone 30 %, with all of them gone
    everything. A lower tier is never asked before all zones of the one above it.

    :param zone: The instance's; empty where it is not known, which is not the gateway's own.
    :param own: The gateway's; empty where zones do not count.
    """
    return 2 * tier + (zone != own) if own else tier


def tier_of(level: int, own: str) -> int:
    """Return the tier that :func:`zoned` made *level* of."""
    return level // 2 if own else level


def available(standings: Sequence[Standing], panic: float = 0.5) -> tuple[Level, ...]:
    """Return who takes requests, the first tier first; nobody when nobody may.

    As Envoy's priority levels do, a tier takes as much as 1.4 times its share of well instances
    says, and leaves the rest to the next one: with all of ten well, or eight, the first one takes
    everything, with five of them 70 %. When all tiers together can not take everything, what they
    take grows in proportion.

    A tier in which less than a share of *panic* is well is used as a whole then: it is more likely
    that the checks are wrong, or that the few left would drown, than that most of a service is
    gone. So is the first one when nobody is well at all. As long as other tiers can take what one
    leaves, that one is not. Those that drain never take anything.

    :param panic: A share between 0 and 1; with 0, those that are not well are never used.
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
        alone = total < 1 or len(tiers) == 1  # nobody else takes what it leaves
        drowns = alone and len(well) < panic * len(open_)
        levels.append(Level(tier, share, open_ if drowns else well, drowns))
    return tuple(levels)


def _of(standings: Sequence[Standing], tier: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return who is in *tier* and not draining, and who of them is well."""
    open_ = tuple(
        at for at, standing in enumerate(standings) if standing.tier == tier and standing.weight > 0
    )
    return open_, tuple(at for at in open_ if standings[at].well)


def slow_start(
    weight: float, age: float, window: float, *, aggression: float = 1.0, least: float = 0.1
) -> float:
    """Return the weight of an instance that has been well for *age* seconds.

    It grows from *least* of its weight to all of it, so that one that has just begun, with cold
    caches, does not get all at once what it will bear later (Envoy's slow start).

    :param window: Seconds that it grows for; 0 for none.
    :param aggression: 1 grows evenly, more grows faster at first.
    """
    if age >= window or window <= 0:
        return weight
    return weight * max(least, float((max(0.0, age) / window) ** (1 / aggression)))


class Tiers(Generic[M]):
    """Draws a tier by its share of the requests, and has its own policy pick in it.

    Requests of one key fall to one tier while the shares are the same, as with Envoy. A request
    that everybody of its tier has failed goes to the first one that has somebody else, those that
    only stand by among them.

    :param random: Gives numbers in [0, 1).
    :param make: Makes the policy of a tier.
    :ivar timed: Whether these policies want to know the time, and how long answers took.
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
        """Take note of who may be picked from now on.

        :param levels: At least one: its number, its share of the requests, and who is in it.
        :param draining: Those that only go on with what they have begun.
        """
        known, self._policies = self._policies, {}
        self._levels, self._homes = [], {}
        for tier, _, members in levels:
            self._policies[tier] = policy = known.get(tier) or self._make()
            policy.renew(members, draining)
            self._levels.append((policy, members))
            self._homes |= dict.fromkeys([member.name for member in members], policy)
        for tier, policy in known.items():  # an ill tier goes on where it was when it is back
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
        """Tell the policy of *member*'s tier how long its answer took."""
        policy = self._homes.get(member.name)
        if policy is not None:
            policy.answered(member, seconds, now, failed)


def _others(members: Sequence[M], avoid: Collection[M]) -> bool:
    return any(member not in avoid for member in members)


def _chance(key: str) -> float:
    """Return a number in [0, 1) that is always the same for *key*, in every worker."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=6, person=b"tier").digest()
    return int.from_bytes(digest, "big") / (1 << 48)
