"""Who of several takes a request, each by its share; the same for the same key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import log

__all__ = ["Split"]

_SCALE = float(1 << 53)


class Split:
    """Divides requests by weight.

    Requests with a key go where the key falls to, on every worker and every machine alike, by
    weighted rendezvous hashing (Schindelhauer and Schomaker 2005). When the weights change only as
    many keys move as have to: whoever is with the new version at 5 % is so at 50 %, too.

    :param weights: The names and their shares relative to each other; one of weight 0 gets none.
    :param salt: Tells this split from others, in which other keys are to be among the few.
    :raises ValueError: Two have the same name, a weight is negative, or all are 0.
    """

    def __init__(self, weights: Sequence[tuple[str, float]], salt: str = "") -> None:
        self.names = tuple(name for name, _ in weights)
        if len(set(self.names)) < len(self.names):
            raise ValueError("two of them have the same name")
        if any(not 0 <= weight < float("inf") for _, weight in weights):
            raise ValueError("a weight is 0 or more")
        self._weights = tuple((name, float(weight)) for name, weight in weights if weight)
        if not self._weights:
            raise ValueError("one of them has a weight above 0")
        self._total = sum(weight for _, weight in self._weights)
        self._seeds = tuple(
            (name, weight, f"{salt}\0{name}\0".encode()) for name, weight in self._weights
        )

    def choose(self, key: str | None, chance: Callable[[], float]) -> str:
        """Return the name of who takes the request.

        :param key: What tells requests that belong together; ``None`` lets chance decide.
        :param chance: Gives a number in [0, 1).
        """
        if key is None:
            return self._by_chance(chance())
        told = key.encode("utf-8", "surrogatepass")
        return max(self._seeds, key=lambda one: _score(one[2] + told, one[1]))[0]

    def _by_chance(self, number: float) -> str:
        left = number * self._total
        for name, weight in self._weights:
            left -= weight
            if left < 0:
                return name
        return self._weights[-1][0]


def _score(data: bytes, weight: float) -> float:
    drawn = int.from_bytes(blake2b(data, digest_size=8).digest(), "big") >> 11
    return -weight / log((drawn + 0.5) / _SCALE)
