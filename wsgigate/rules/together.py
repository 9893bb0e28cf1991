"""Several quotas of one caller, decided about at once: all allow a request, or none counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from wsgigate.rules.quota import Verdict

if TYPE_CHECKING:
    from wsgigate.rules.algorithms import Algorithm

__all__ = ["Together", "tag_of", "tightest"]


class Together:
    """Several quotas, whose states are one value: a request passes if all of them allow it.

    If one refuses, none is charged; each verdict tells what that quota alone would have said.

    The value is the letter ``t`` and then per quota that has a state: 4 bytes that tell the quota
    and the algorithm (CRC-32 of their names and numbers), 2 bytes with the length of its state, and
    the state. So the counts of one quota survive when another is added, changed or removed.

    :param algorithms: What to count with; no two of the same kind for the same quota.
    :raises ValueError: There is none, or two are the same.
    """

    def __init__(self, algorithms: Sequence[Algorithm]) -> None:
        if not algorithms:
            raise ValueError("there has to be at least one quota")
        self.algorithms = tuple(algorithms)
        self._takes = tuple(one.take for one in self.algorithms)
        self._tags = tuple(tag_of(one) for one in self.algorithms)
        self._order = {tag: place for place, tag in enumerate(self._tags)}
        for place, tag in enumerate(self._tags):
            if tag in self._tags[:place]:
                raise ValueError(f"two of the quotas are the same: {self.algorithms[place].quota}")

    def take(
        self, old: bytes | None, now: float, cost: int = 1
    ) -> tuple[bytes | None, float, tuple[Verdict, ...]]:
        """Decide about a request of *cost* at *now* against all quotas.

        :param now: Seconds since 1970.
        :param cost: How many requests it counts as, for each of the quotas; 0 only looks.
        :returns: The new state (*old* itself if it stays as it is), how many seconds it is needed,
            and each quota's verdict, in the order of the algorithms.
        :raises ValueError: *cost* is no whole number, negative, or more than one of the limits.
        """
        if cost != 1 or cost.__class__ is not int:
            for one in self.algorithms:
                one.quota.check_cost(cost)
        states = self._read(old) if old is not None else [None] * len(self._takes)
        results = [take(state, now, cost) for take, state in zip(self._takes, states, strict=True)]
        if cost and not all(verdict.allowed for _, _, verdict in results):
            results = [
                take(state, now, 0) if result[2].allowed else result
                for take, state, result in zip(self._takes, states, results, strict=True)
            ]
        ttl, changed = 0.0, False
        for (new, needed, _), state in zip(results, states, strict=True):
            if new is not state:
                changed = True
            if needed > ttl:
                ttl = needed
        if changed:
            old = self._written([new for new, _, _ in results])
        return old, ttl, tuple([verdict for _, _, verdict in results])

    def _read(self, old: bytes) -> list[bytes | None]:
        states: list[bytes | None] = [None] * len(self._tags)
        if old[:1] != b"t":
            return states
        place, size = 1, len(old)
        while place + 6 <= size:
            end = place + 6 + int.from_bytes(old[place + 4 : place + 6], "big")
            if end > size:
                break  # it was cut short; what came before it holds
            which = self._order.get(old[place : place + 4])
            if which is not None:
                states[which] = old[place + 6 : end]
            place = end
        return states

    def _written(self, states: list[bytes | None]) -> bytes:
        parts = [b"t"]
        for tag, state in zip(self._tags, states, strict=True):
            if state is not None:
                parts += (tag, len(state).to_bytes(2, "big"), state)
        return b"".join(parts)


def tightest(verdicts: Sequence[tuple[bool, int, int, float, float]]) -> int:
    """Return which of *verdicts* tells the caller most: the one that it has to wait for longest.

    Of those that refused, the one that refuses for the longest time; if none did, the one of which
    the least remains, and of several such the one that lasts longest.
    """
    return min(range(len(verdicts)), key=lambda place: _slack(verdicts[place]))


def _slack(verdict: tuple[bool, int, int, float, float]) -> tuple[bool, float, float]:
    allowed, _, remaining, reset_after, retry_after = verdict
    return (True, remaining, -reset_after) if allowed else (False, -retry_after, -reset_after)


def tag_of(algorithm: Algorithm) -> bytes:
    """Return the 4 bytes by which the state of *algorithm* is found among others."""
    quota = algorithm.quota
    told = f"{algorithm.name}/{quota.limit}/{quota.micros}/{quota.calendar or ''}"
    return crc32(told.encode()).to_bytes(4, "big")
