"""One limit made ready: its quotas, what counts each of them, and where their counts are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from wsgigate.rules.algorithms import Together, algorithm_for
from wsgigate.rules.quota import Quota, Verdict

__all__ = ["Policy", "Quotas"]

Quotas: TypeAlias = Quota | str | Sequence[Quota | str]
"""A quota, or several of which a request must pass all; as a text, ``"10/h; 100/d"``."""

Verdicts: TypeAlias = tuple[Verdict, ...]
Change: TypeAlias = Callable[
    [bytes | None, float], tuple[bytes | None, float, tuple[Verdicts, float]]
]
"""What a store's update is given; its result is each quota's verdict, and the store's time."""


class Policy:
    """What is decided about requests against some quotas, all of which a request must pass.

    :param quotas: One or several, as they are or as they are written.
    :param algorithm: Counts those that are not for a span of the calendar.
    :param name: Of the limit. Where there are several quotas and one has no name, it is called
        after the limit and its time: ``default-15m``, ``default-month``.
    :param cost: As how many requests one usually counts.
    :raises ValueError: A quota is malformed, two have one name, or *cost* is more than one allows.
    """

    __slots__ = ("_together", "algorithms", "change", "most", "names", "place", "quotas")

    def __init__(self, quotas: Quotas, *, algorithm: str, name: str, cost: int = 1) -> None:
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
        """The highest cost that is ever allowed."""
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
        self._together = Together(self.algorithms).take if len(self.quotas) > 1 else None
        self.change = self.charging(cost)

    def charging(self, cost: int) -> Change:
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
        if cost == 1:  # an argument less is worth it here, where nearly all requests come by

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
    """Return the time of *quota* as short as can be: ``15m``."""
    if quota.calendar:
        return quota.calendar
    for name, seconds in (("w", 604800), ("d", 86400), ("h", 3600), ("m", 60)):
        if quota.period % seconds == 0:
            return f"{quota.period / seconds:g}{name}"
    return f"{quota.period:g}s"
