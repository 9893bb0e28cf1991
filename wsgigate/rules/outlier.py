"""Outlier detection: ejects instances for a while, judged by the outcomes of their requests.

Each worker counts outcomes for itself. The rules and their defaults are those of Envoy's outlier
detection.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Annotated, NamedTuple

from wsgigate.rules.arguments import Count, Fraction, Range, Seconds, Trait, checked
from wsgigate.rules.circuit import Outcome

__all__ = ["Ejection", "OutlierRules", "Outliers", "low_success"]

_LONGEST = 86_400.0
_MOST = 1_000_000
_MOST_TIMES = 1_000


@checked
@dataclass(frozen=True, kw_only=True, slots=True)
class OutlierRules:
    """Outlier detection: when an instance is ejected, and for how long.

    :param consecutive_failures: Failures in a row that eject an instance; ``None`` disables the
        rule.
    :param eject_for: The duration of the first ejection, in seconds; twice that for the second,
        three times that for the third. Each such period without another ejection reduces the number
        by one.
    :param eject_at_most: The maximum duration of an ejection, in seconds.
    :param most_ejected: The maximum fraction of the instances that may be ejected at once, 0 to 1.
        Above 0, one instance may always be, if there are others.
    :param success_rate: Whether an instance is ejected whose success rate is more than *deviations*
        standard deviations below the mean of all.
    :param least_instances: The minimum number of instances with enough requests to compare success
        rates.
    :param least_requests: The minimum number of requests in ten seconds to judge an instance's
        success rate.
    :param deviations: How many standard deviations below the mean a success rate must be to eject.
    :raises ValueError: An argument is invalid; the message names it.
    """

    consecutive_failures: Annotated[int | None, Trait.ZERO_IS_NONE] = 5
    eject_for: Seconds = 30.0
    eject_at_most: Seconds = 300.0
    most_ejected: Fraction = 0.5
    success_rate: bool = False
    least_instances: Count = 5
    least_requests: Count = 100
    deviations: Annotated[float, Range(0.1, 100)] = 1.9

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
        """Return how many of *instances* may be ejected at once."""
        if instances < 2 or self.most_ejected == 0:
            return 0
        return max(1, math.floor(self.most_ejected * instances))


class Ejection(NamedTuple):
    """The last ejection of an instance.

    :ivar until: When it ends; in the past for an instance that is back.
    :ivar times: The number of ejections that count for its length.
    :ivar since: When it began.
    :ivar why: The reason, without host names.
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


class _OutcomeCounts:
    """The counts of an instance since the last ejection or sweep."""

    __slots__ = ("answered", "asked", "in_a_row")

    def __init__(self) -> None:
        self.in_a_row = 0
        self.asked = 0
        self.answered = 0


class Outliers:
    """The ejections of one service's instances, in one worker.

    All threads of a worker share it; the caller holds a lock.

    :param rules: When an instance is ejected.
    :ivar returns: When the next ejection ends: from then on, call :meth:`ejected` again.
    """

    def __init__(self, rules: OutlierRules) -> None:
        self._rules = rules
        self._records: dict[str, _OutcomeCounts] = {}
        self._ejections: dict[str, Ejection] = {}
        self.returns = math.inf

    def set_instances(self, names: Collection[str]) -> None:
        """Set the instances of the pool; the records of all others are dropped."""
        self._records = {name: self._records.get(name) or _OutcomeCounts() for name in names}
        self._ejections = {
            name: ejection for name, ejection in self._ejections.items() if name in self._records
        }

    def report(self, name: str, outcome: Outcome, now: float, why: str = "") -> Ejection | None:
        """Count the outcome of a request to *name*; return its ejection if this causes one.

        :param why: The error of a failure.

        Client errors (4xx) and outcomes without evidence about the instance are not counted.
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
        """Compare success rates, once per interval; return the instances that this ejects."""
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
        """Return the instances that are ejected at *now*."""
        left_out = {name: each for name, each in self._ejections.items() if each.until > now}
        self.returns = min((each.until for each in left_out.values()), default=math.inf)
        return frozenset(left_out)

    def restore(self, name: str, now: float) -> None:
        """End the ejection of *name*: its active health check has recovered."""
        ejection = self._ejections.get(name)
        if ejection is not None and ejection.until > now:
            self._ejections[name] = ejection._replace(until=now)
            self.returns = now

    def ejection(self, name: str) -> Ejection:
        """Return the last ejection of *name*; an empty one if it was never ejected."""
        return self._ejections.get(name, Ejection())

    def _eject(self, name: str, now: float, why: str) -> Ejection | None:
        before = self._ejections.get(name, Ejection())
        if before.until > now:
            return None  # the request began before the ejection
        if len(self.ejected(now)) >= self._rules.most(len(self._records)):
            return None  # too many are ejected: it may be ejected when another one is back
        self._records[name].in_a_row = 0
        self._ejections[name] = ejection = before.again(now, self._rules, why)
        self.returns = min(self.returns, ejection.until)
        return ejection


def low_success(counts: Mapping[str, tuple[int, int]], rules: OutlierRules) -> list[str]:
    """Return the instances with a markedly lower success rate than the others, the lowest first.

    :param counts: By name, the requests of an interval and the successful ones among them.
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
