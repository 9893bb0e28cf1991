"""Which instances take requests: the first tier that is well enough, or what is done instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Available", "Standing", "available", "slow_start"]


class Standing(NamedTuple):
    """How an instance stands.

    :ivar well: Whether its health checks pass, as far as there are any, and it is not ejected.
    :ivar weight: Its share; 0 for one that is draining.
    :ivar tier: Whose turn it is: 0 first, the others when those before fail.
    """

    well: bool = True
    weight: float = 1.0
    tier: int = 0


class Available(NamedTuple):
    """Who takes requests, by place.

    :ivar panic: Whether that is all there are, well or not.
    """

    places: tuple[int, ...]
    panic: bool


def available(standings: Sequence[Standing], panic: float = 0.5) -> Available:
    """Return who takes requests.

    That is who is well of the first tier in which at least a share of *panic* is. When there is no
    such tier, all of the first one take them: it is more likely then that the checks are wrong, or
    that the few left would drown, than that most of a service is gone. Those that drain never do.

    :param panic: A share between 0 and 1.
    """
    tiers = sorted({standing.tier for standing in standings if standing.weight > 0})
    for tier in tiers:
        open_, well = _of(standings, tier)
        if well and len(well) >= panic * len(open_):
            return Available(well, False)
    if not tiers:
        return Available((), False)
    if panic == 0:  # nobody is well, and to ignore that was not asked for
        return Available((), False)
    return Available(_of(standings, tiers[0])[0], True)


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
