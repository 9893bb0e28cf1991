"""When a circuit opens, for how long, and what closes it again: the settings, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wsgigate.rules.arguments import checked

__all__ = ["MOST_TRIPS", "CircuitRules"]

MOST_TRIPS = 60
"""More than so many doublings of the open time are none."""

_MOST = 1_000_000
_LONGEST = 86_400.0


@checked
@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitRules:
    """When a circuit opens, for how long, and what closes it again.

    :param consecutive_failures: Failures in a row that open it; ``None`` for no such rule.
    :param connect_failures: Failed connections in a row that do; ``None`` for no such rule.
    :param failure_rate: The share of failed calls that does, above 0 to 1; ``None`` for no such
        rule.
    :param slow_after: Seconds after which a call is slow; ``None``: none is.
    :param slow_rate: The share of slow calls that opens it, above 0 to 1.
    :param minimum_calls: Calls in the window below which no share counts.
    :param window: Seconds that the shares are taken over.
    :param open_for: Seconds it stays open, doubled each time that the probes fail, or that it opens
        again soon after.
    :param open_at_most: The most seconds it stays open; a minute, or *open_for* if that is longer.
    :param jitter: By up to which share of itself the open time is shortened, by chance.
    :param probes: Calls that are let pass after that; all of them must pass.
    :param probe_timeout: Seconds after which a probe that nothing was heard of is given up.
    :raises ValueError: A setting is out of its range; says which.
    """

    consecutive_failures: int | None = None
    connect_failures: int | None = 5
    failure_rate: float | None = 0.5
    slow_after: float | None = None
    slow_rate: float = 1.0
    minimum_calls: int = 20
    window: float = 10.0
    open_for: float = 5.0
    open_at_most: float | None = None
    jitter: float = 0.2
    probes: int = 5
    probe_timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("consecutive_failures", "connect_failures", "minimum_calls", "probes"):
            count = getattr(self, name)
            most = 1_000 if name == "probes" else _MOST
            optional = name in ("consecutive_failures", "connect_failures")
            if count is None and optional:
                continue
            if type(count) is not int or not 1 <= count <= most:
                raise ValueError(f"{name} is a whole number from 1 to {most}, got {count!r}")
        for name in ("failure_rate", "slow_rate"):
            share = getattr(self, name)
            if share is not None and not (_is_number(share) and 0 < share <= 1):
                raise ValueError(f"{name} is a share above 0 and at most 1, got {share!r}")
        for name in ("slow_after", "window", "open_for", "open_at_most", "probe_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not (_is_number(seconds) and 0 < seconds <= _LONGEST):
                raise ValueError(f"{name} is more than 0 s and at most a day, got {seconds!r}")
        if not (_is_number(self.jitter) and 0 <= self.jitter <= 1):
            raise ValueError(f"jitter is a share between 0 and 1, got {self.jitter!r}")
        if self.open_at_most is not None and self.open_at_most < self.open_for:
            raise ValueError(
                f"open_at_most is not less than open_for: {self.open_at_most!r} < {self.open_for!r}"
            )

    @property
    def longest(self) -> float:
        """The most seconds it stays open."""
        return max(60.0, self.open_for) if self.open_at_most is None else self.open_at_most

    def open_time(self, trips: int, chance: float) -> float:
        """Return the seconds it stays open for the *trips*-th time in a row.

        :param chance: A number in [0, 1).
        """
        doubled = self.open_for * 2.0 ** min(trips - 1, MOST_TRIPS)
        return float(min(doubled, self.longest) * (1 - self.jitter * chance))


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and not math.isnan(value)  # type: ignore[arg-type]
