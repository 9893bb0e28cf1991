"""Rate limiting algorithms, and several quotas of one limit decided together.

Theory of operation
-------------------

- The state of a caller is a few bytes that a store keeps between decisions. :meth:`Algorithm.take`
  is pure: it returns the new state, and the store applies it in one atomic update. A read and a
  separate write would admit two requests on one remaining slot.
- All counts and times in the state are whole numbers below 2**53, so that a store whose only
  numbers are doubles (Lua in Redis) computes the same result. Nothing is lost to rounding, so no
  request above the limit is ever admitted. Floating-point times would break that.
- Bytes in another format count as an empty state, so that an algorithm can be changed in place.
- Clocks are not trusted to be monotonic. A time in the state that is later than now counts as now:
  a clock that is set back neither grants a new quota nor blocks a caller for longer than the
  quota's period (:class:`SlidingWindow`: and one slot). A clock that is set forward has the same
  effect as that time passing.
- The time to live that ``take`` returns is never shorter than the state is needed: an expired state
  would be a new quota.
- Of several quotas (:class:`CombinedAlgorithm`) either all count a request or none does: their
  states are one value in the store, changed by one update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeAlias
from zlib import crc32

from wsgigate.rules.quota import Quota, Verdict, tightest
from wsgigate.rules.windows import CalendarWindow, FixedWindow, SlidingWindow, TokenBucket

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "CalendarWindow",
    "CombinedAlgorithm",
    "FixedWindow",
    "LimitPolicy",
    "QuotaSpec",
    "SlidingWindow",
    "TokenBucket",
    "algorithm_for",
    "tag_of",
    "tightest",
]


class Algorithm(Protocol):
    """A rate limiting algorithm for one quota."""

    name: ClassVar[str]
    """Its name in settings and stores."""

    @property
    def quota(self) -> Quota:
        """The quota."""

    def __init__(self, quota: Quota) -> None: ...

    def take(
        self, old: bytes | None, now: float, cost: int = 1
    ) -> tuple[bytes | None, float, Verdict]:
        """QuotaChange about a request of *cost* at *now*, given the caller's state *old*.

        :param now: Seconds since 1970; counted in whole microseconds, halves up.
        :param cost: Quota units consumed; 0 checks without consuming.
        :returns: The new state (*old* itself if unchanged), the seconds for which the store must
            keep it, and the verdict.
        :raises ValueError: *cost* is not a whole number from 0 to the limit.
        """


ALGORITHMS: dict[str, type[Algorithm]] = {
    kind.name: kind for kind in (TokenBucket, FixedWindow, SlidingWindow, CalendarWindow)
}
"""The algorithms by the names that settings use."""


def algorithm_for(quota: Quota, name: str | None = None) -> Algorithm:
    """Return the algorithm *name* for *quota*.

    :param name: One of :data:`ALGORITHMS`. Default: ``token-bucket``; ``calendar`` for a calendar
        quota, which no other algorithm can count.
    :raises ValueError: There is no such algorithm, or it cannot count that quota.
    """
    if name is None:
        name = "calendar" if quota.calendar else "token-bucket"
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm is one of {', '.join(ALGORITHMS)}, not {name!r}")
    return ALGORITHMS[name](quota)


# Several quotas of one caller.


class CombinedAlgorithm:
    """Several quotas whose states are one value: a request is allowed if all of them allow it.

    If one rejects it, none is charged; each verdict is the one of that quota alone.

    The value is the letter ``t`` and then for each quota that has a state: 4 bytes that identify
    the quota and the algorithm (CRC-32 of their names and numbers), 2 bytes with the length of its
    state, and the state. So the counts of one quota survive when another is added, changed or
    removed.

    :param algorithms: One per quota; no two of the same kind for the same quota.
    :raises ValueError: There is none, or two are the same.
    """

    def __init__(self, algorithms: Sequence[Algorithm]) -> None:
        if not algorithms:
            raise ValueError("at least one quota is required")
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
        """QuotaChange about a request of *cost* at *now* against all quotas.

        :param now: Seconds since 1970.
        :param cost: Units consumed of each quota; 0 checks without consuming.
        :returns: The new state (*old* itself if unchanged), the seconds for which the store must
            keep it, and each quota's verdict, in the order of the algorithms.
        :raises ValueError: *cost* is not a whole number from 0 to the lowest limit.
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
                break  # truncated: the states before this one are valid
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


def tag_of(algorithm: Algorithm) -> bytes:
    """Return the 4 bytes that identify the state of *algorithm* among others."""
    quota = algorithm.quota
    text = f"{algorithm.name}/{quota.limit}/{quota.micros}/{quota.calendar or ''}"
    return crc32(text.encode()).to_bytes(4, "big")


# The policy of a limit: its quotas, their algorithms, and the key of their state in the store.

QuotaSpec: TypeAlias = Quota | str | Sequence[Quota | str]
"""A quota, or several that must all allow a request; as a text, ``"10/h; 100/d"``."""

Verdicts: TypeAlias = tuple[Verdict, ...]

QuotaChange: TypeAlias = Callable[
    [bytes | None, float], tuple[bytes | None, float, tuple[Verdicts, float]]
]
"""A function for the store's update; its result is each quota's verdict, and the store's time."""


class LimitPolicy:
    """The quotas of one limit, all of which must allow a request.

    :param quotas: One or several, as :class:`Quota` or as text.
    :param algorithm: The algorithm for those that are not calendar quotas.
    :param name: The name of the limit. Of several quotas, one without a name is named after the
        limit and its period: ``default-15m``, ``default-month``.
    :param cost: Quota units that a request consumes by default.
    :raises ValueError: A quota is malformed, two have one name, or *cost* is more than a limit.
    """

    __slots__ = ("_together", "algorithms", "change", "most", "names", "place", "quotas")

    def __init__(self, quotas: QuotaSpec, *, algorithm: str, name: str, cost: int = 1) -> None:
        several = Quota.parse_all(quotas) if isinstance(quotas, str) else quotas
        several = [several] if isinstance(several, Quota) else several
        if not isinstance(several, Sequence) or not several:
            raise ValueError(
                f'a quota is written "100 per 15 minutes" or "100/15m", not {quotas!r}'
            )
        self.quotas = tuple(one if isinstance(one, Quota) else Quota.parse(one) for one in several)
        self.algorithms = tuple(
            algorithm_for(quota, None if quota.calendar else algorithm) for quota in self.quotas
        )
        self.most = min(quota.limit for quota in self.quotas)
        """The highest cost that can be allowed: the lowest limit."""
        if cost > self.most:
            raise ValueError(f"cost: {cost} is more than a quota of {self.most} ever allows")
        if len(self.quotas) == 1:
            [one], [quota] = self.algorithms, self.quotas
            names = [quota.name or name]
            period = quota.calendar or repr(quota.period)
            self.place = f"{name}/{one.name}/{quota.limit}/{period}"
        else:
            names = [quota.name or f"{name}-{_span(quota)}" for quota in self.quotas]
            if len(set(names)) < len(names):
                listed = ", ".join(names)
                raise ValueError(f"quota: two of one name; give each its own: {listed}")
            self.place = f"{name}/together"
        self.names = tuple(names)
        self._together = CombinedAlgorithm(self.algorithms).take if len(self.quotas) > 1 else None
        self.change = self.charging(cost)

    def charging(self, cost: int) -> QuotaChange:
        """Return the change of a caller's state by a request of *cost*."""
        if self._together is not None:
            together = self._together

            def change(
                old: bytes | None, now: float
            ) -> tuple[bytes | None, float, tuple[Verdicts, float]]:
                new, ttl, verdicts = together(old, now, cost)
                return new, ttl, (verdicts, now)

            return change
        take = self.algorithms[0].take
        if cost == 1:  # nearly all requests: saves an argument on the hot path

            def one(
                old: bytes | None, now: float
            ) -> tuple[bytes | None, float, tuple[Verdicts, float]]:
                new, ttl, verdict = take(old, now)
                return new, ttl, ((verdict,), now)

            return one

        def several(
            old: bytes | None, now: float
        ) -> tuple[bytes | None, float, tuple[Verdicts, float]]:
            new, ttl, verdict = take(old, now, cost)
            return new, ttl, ((verdict,), now)

        return several


def _span(quota: Quota) -> str:
    """Return the period of *quota* in short form: ``15m``."""
    if quota.calendar:
        return quota.calendar
    for name, seconds in (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60)):
        if quota.period % seconds == 0:
            return f"{quota.period / seconds:g}{name}"
    return f"{quota.period:g}s"
