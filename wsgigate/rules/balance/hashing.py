"""The same instance for the same key, as long as it can be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from math import ceil, log
from typing import Generic

from wsgigate.rules.balance.pairs import TwoChoices
from wsgigate.rules.balance.policy import M

__all__ = ["ConsistentHash"]

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
