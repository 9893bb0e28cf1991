"""Which instances are left out for a while, judged by the requests they have answered.

What an instance has done each worker counts for itself. The rules and their numbers are those of
Envoy's outlier detection.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import NamedTuple

from wsgigate.rules.arguments import checked
from wsgigate.rules.circuit import Outcome

__all__ = ["Ejection", "OutlierRules", "Outliers", "low_success"]

_LONGEST = 86_400.0
_MOST = 1_000_000
_MOST_TIMES = 1_000


@checked
@dataclass(frozen=True, kw_only=True, slots=True)
class OutlierRules:
    """When an instance is left out, and for how long.

    :param consecutive_failures: Failures in a row after which it is; ``None`` for no such rule.
    :param eject_for: Seconds it is left out for the first time; twice that the second time, three
        times that the third. Each time that it then does well for as long is taken off again.
    :param eject_at_most: The most seconds it is left out.
    :param most_ejected: The share of the pool that may be left out at once, 0 to 1. One instance
        may always be, if there are others.
    :param success_rate: Whether an instance is left out that answers markedly less often than the
        others do: *deviations* standard deviations below their mean.
    :param least_instances: Instances with enough requests below which that is not judged.
    :param least_requests: Requests of an interval that are enough.
    :param deviations: How many standard deviations.
    :raises ValueError: A setting is out of its range; says which.
    """

    consecutive_failures: int | None = 5
    eject_for: float = 30.0
    eject_at_most: float = 300.0
    most_ejected: float = 0.5
    success_rate: bool = False
    least_instances: int = 5
    least_requests: int = 100
    deviations: float = 1.9

    def __post_init__(self) -> None:
        for name in ("consecutive_failures", "least_instances", "least_requests"):
            count = getattr(self, name)
            if count is None and name == "consecutive_failures":
                continue
            if type(count) is not int or not 1 <= count <= _MOST:
                raise ValueError(f"{name} is a whole number from 1 to {_MOST}, got {count!r}")
        for name, least, most in (
            ("eject_for", 0.001, _LONGEST),
            ("eject_at_most", 0.001, _LONGEST),
            ("most_ejected", 0.0, 1.0),
            ("deviations", 0.1, 100.0),
        ):
            value = getattr(self, name)
            if type(value) not in (int, float) or not least <= value <= most:
                raise ValueError(f"{name} is a number from {least:g} to {most:g}, got {value!r}")
        if self.eject_at_most < self.eject_for:
            raise ValueError(
                f"eject_at_most is not less than eject_for: {self.eject_at_most!r}"
                f" < {self.eject_for!r}"
            )

    def most(self, instances: int) -> int:
        """Return how many of *instances* may be left out at once."""
        if instances < 2 or self.most_ejected == 0:
            return 0
        return max(1, math.floor(self.most_ejected * instances))


class Ejection(NamedTuple):
    """Until when an instance is left out, and for which time that is.

    :ivar until: The moment; in the past for one that is back.
    :ivar times: How many times that count.
    :ivar since: Since when.
    :ivar why: What it did, in words that name no host.
    """

    until: float = 0.0
    times: int = 0
    since: float = 0.0
    why: str = ""

    def again(self, now: float, rules: OutlierRules, why: str = "") -> Ejection:
        """Return the ejection that follows at *now*."""
        well = max(0.0, now - self.until)
        times = max(0, self.times - int(min(well / rules.eject_for, _MOST_TIMES)))
        times = min(times + 1, _MOST_TIMES)
        until = now + min(rules.eject_for * times, rules.eject_at_most)
        return Ejection(until, times, now, why)


class _Record:
    """What an instance has done since it was last ejected or looked at."""

    __slots__ = ("answered", "asked", "in_a_row")

    def __init__(self) -> None:
        self.in_a_row = 0
        self.asked = 0
        self.answered = 0


class Outliers:
    """The instances of one service, as one worker has come to know them.

    It belongs to all threads of a worker, and whoever calls it holds a lock.

    :param rules: When an instance is left out.
    :ivar returns: When the next one is back: from then on, ask again who is left out.
    """

    def __init__(self, rules: OutlierRules) -> None:
        self._rules = rules
        self._records: dict[str, _Record] = {}
        self._ejections: dict[str, Ejection] = {}
        self.returns = math.inf

    def renew(self, names: Collection[str]) -> None:
        """Take note of who is in the pool; what is known of others is forgotten."""
        self._records = {name: self._records.get(name) or _Record() for name in names}
        self._ejections = {
            name: ejection for name, ejection in self._ejections.items() if name in self._records
        }

    def report(self, name: str, outcome: Outcome, now: float, why: str = "") -> Ejection | None:
        """Take note of how a request to *name* ended; return its ejection if it is one.

        :param why: Of a failure, what went wrong.

        What a client got wrong (4xx) and what tells nothing of the instance counts nowhere.
        """
        record = self._records.get(name)
        if record is None or outcome is Outcome.IGNORED or outcome is Outcome.REFUSED:
            return None
        record.asked += 1
        if outcome is Outcome.OK:
            record.answered += 1
            record.in_a_row = 0
            return None
        record.in_a_row += 1
        most = self._rules.consecutive_failures
        if most is None or record.in_a_row < most:
            return None
        reason = f"{record.in_a_row} {'failure' if record.in_a_row == 1 else 'failures'} in a row"
        return self._eject(name, now, f"{reason}, the last: {why}" if why else reason)

    def sweep(self, now: float) -> list[str]:
        """Judge by success rates, once in an interval; return who is left out for that."""
        counts = {name: (record.asked, record.answered) for name, record in self._records.items()}
        for record in self._records.values():
            record.asked = record.answered = 0
        if not self._rules.success_rate:
            return []
        low = low_success(counts, self._rules)

        def why(name: str) -> str:
            asked, answered = counts[name]
            return f"{answered} of {asked} requests succeeded, markedly fewer than with the others"

        return [name for name in low if self._eject(name, now, why(name)) is not None]

    def ejected(self, now: float) -> frozenset[str]:
        """Return who is left out at *now*."""
        left_out = {name: each for name, each in self._ejections.items() if each.until > now}
        self.returns = min((each.until for each in left_out.values()), default=math.inf)
        return frozenset(left_out)

    def restore(self, name: str, now: float) -> None:
        """Take *name* back at once: an active check has found it well again after it was ill."""
        ejection = self._ejections.get(name)
        if ejection is not None and ejection.until > now:
            self._ejections[name] = ejection._replace(until=now)
            self.returns = now

    def ejection(self, name: str) -> Ejection:
        """Return the last ejection of *name*; of one that was never ejected, an empty one."""
        return self._ejections.get(name, Ejection())

    def _eject(self, name: str, now: float, why: str) -> Ejection | None:
        before = self._ejections.get(name, Ejection())
        if before.until > now:
            return None  # the end of a request from before
        if len(self.ejected(now)) >= self._rules.most(len(self._records)):
            return None  # it may be its turn when another one is back
        self._records[name].in_a_row = 0
        self._ejections[name] = ejection = before.again(now, self._rules, why)
        self.returns = min(self.returns, ejection.until)
        return ejection


def low_success(counts: Mapping[str, tuple[int, int]], rules: OutlierRules) -> list[str]:
    """Return who answers markedly less often than the others, the worst first.

    :param counts: By name the requests of an interval, and how many of them were answered.
    """
    rates = {
        name: answered / asked
        for name, (asked, answered) in counts.items()
        if asked >= rules.least_requests
    }
    if len(rates) < rules.least_instances:
        return []
    least = fmean(rates.values()) - rules.deviations * pstdev(rates.values())
    return sorted((name for name, rate in rates.items() if rate < least), key=rates.__getitem__)
