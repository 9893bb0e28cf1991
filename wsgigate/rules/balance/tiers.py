"""Several tiers of instances, each balanced by itself: the later ones help out the earlier ones."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Generic

from wsgigate.rules.balance.policy import M, Policy

__all__ = ["Tiers"]


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
