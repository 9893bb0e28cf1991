"""Active health checks: one worker probes the instances, and all workers share the results.

Theory of operation
===================

Every worker runs one thread that reads the results from the store and marks its own pools. The
worker that holds the lease ``health/leader`` also probes the instances. These rules must hold:

1. One worker probes for all, so the number of probes does not grow with the number of workers.
   When the leader dies or is stopped, another worker takes the lease and continues the schedule:
   the first probe of an instance is due when the former leader's next one would have been.
2. A probe never blocks the thread. Probes run in the background, many at a time, so that an
   instance that hangs delays neither the other probes nor the renewal of the lease.
3. Instances that hang cannot use up all slots. At most half of the slots are for instances that
   did not answer the last time, and three quarters for those and for new ones
   (:class:`Schedule`). Services take turns, so that a small one does not wait for a large one.
4. A result is written only if the worker still holds the lease and the store's value is the one
   from when the probe began. A leader that was stopped during a probe must not overwrite what its
   successor has found.
5. Times are differences on a monotonic clock, or the store's time. Wall clocks of two machines are
   never compared.
6. Intervals have a random part, so that workers and instances do not synchronize.

While the store fails, there is no lease and no shared result, so each worker probes for itself from
the first failed round on: instances die during store outages, too. Rule 1 also holds then, so an
outage causes no burst of probes. In the first round in which the store answers again, one worker
leads and the others stop; :mod:`wsgigate.discovery.health_results` describes which verdict applies.
"""

from __future__ import annotations

import logging
import random as _random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wsgigate.coordination.leader import LeaderLease, LeaderThread
from wsgigate.discovery.health_results import (
    CheckTarget,
    Markable,
    ProbeRunner,
    Results,
    instance_status,
    not_monitored,
    service_status,
)
from wsgigate.rules.health import CheckResult, Health, HealthCheck, first_due, next_due
from wsgigate.runtime.logs import RepeatLog
from wsgigate.store import Store, StoreError
from wsgigate.telemetry import metrics

__all__ = ["Due", "Flight", "HealthChecker", "Markable", "Schedule"]


# The schedule: which checks are due, and how many may be in flight.

SURE, NEW, SILENT = 0, 1, 2
"""An instance that answered the last check, was never checked, or did not answer."""


class Flight:
    """A check in flight.

    :ivar raw: The store's value for the instance when the check began. The result may replace only
        this value: if another result was written meanwhile, it is dropped.
    :ivar started: The monotonic time of its start.
    :ivar doubt: How likely the check is to hang: :data:`SURE`, :data:`NEW` or :data:`SILENT`.
    """

    __slots__ = ("doubt", "raw", "started")

    def __init__(self, raw: bytes | None, started: float, doubt: int) -> None:
        self.raw = raw
        self.started = started
        self.doubt = doubt


class Due(NamedTuple):
    """The work of a round.

    :ivar checks: Checks to start; each is in flight until :meth:`Schedule.land`.
    :ivar overdue: Instances whose check in flight has exceeded its timeout.
    :ivar next_at: When the next check is due; a time in the past while more checks are due than may
        be in flight.
    """

    checks: list[tuple[CheckTarget, Flight]]
    overdue: list[CheckTarget]
    next_at: float


class Schedule:
    """The next check of each instance, at most one of it at a time.

    :param most: The largest number of checks in flight. At most half are checks of instances that
        did not answer the last one, and at most three quarters those and first checks.
    :param random: Returns numbers in [0, 1).
    """

    def __init__(self, most: int, random: Callable[[], float]) -> None:
        self._most = (most, most * 3 // 4, most // 2)
        self._random = random
        self._next: dict[str, float] = {}
        self._flights: dict[str, Flight] = {}

    def rest(self) -> None:
        """Clear the schedule: another worker carries out the checks."""
        self._next.clear()

    def due(self, targets: Mapping[str, CheckTarget], results: Results, now: float) -> Due:
        """Return the work that is due; instances that are not in *targets* are forgotten."""
        planned = self._next
        self._next = {
            key: planned[key] if key in planned else self._first(target, results, now)
            for key, target in targets.items()
        }
        flights = list(self._flights.values())
        free = [
            most - sum(flight.doubt >= doubt for flight in flights)
            for doubt, most in enumerate(self._most)
        ]
        due = Due([], [], next_at=now)
        waiting = False
        for key in self._in_turn(targets, now):
            target = targets[key]
            flight = self._flights.get(key)
            if flight is not None:
                if now - flight.started > target.check.timeout:
                    self._next[key] = next_due(now, target.check.interval, self._random())
                    due.overdue.append(target)
                continue
            raw, health = results.known(target)
            doubt = NEW if health is None else _doubt(health)
            if min(free[: doubt + 1]) <= 0:
                waiting = True
                continue
            for less in range(doubt + 1):
                free[less] -= 1
            self._next[key] = next_due(now, target.check.interval, self._random())
            self._flights[key] = flight = Flight(raw, now, doubt)
            due.checks.append((target, flight))
        return due if waiting else due._replace(next_at=min(self._next.values(), default=now))

    def _in_turn(self, targets: Mapping[str, CheckTarget], now: float) -> list[str]:
        """Return the keys that are due, services in turn: none waits for a larger one."""
        turns: Counter[str] = Counter()
        due = []
        for moment, key in sorted((at, key) for key, at in self._next.items() if at <= now):
            service = targets[key].service
            due.append((turns[service], moment, key))
            turns[service] += 1
        return [key for _, _, key in sorted(due)]

    def land(self, target: CheckTarget, flight: Flight) -> None:
        """Record that *flight* has ended. Any thread may call this."""
        if self._flights.get(target.key) is flight:
            del self._flights[target.key]

    def _first(self, target: CheckTarget, results: Results, now: float) -> float:
        """Return when this worker's first check is due: as another worker's next one, or soon."""
        health = results.known(target).health
        if health is None:
            return first_due(now, target.check.interval, self._random())
        age = max(0.0, results.now() - health.checked)
        return max(now, next_due(now - age, target.check.interval, self._random()))


def _doubt(health: Health) -> int:
    last = health.last
    silent = not last.ok and (last.status is None or last.error == "Timeout")
    return SILENT if silent else SURE


LOG = logging.getLogger("wsgigate.health")

CHECKS = metrics.Counter(
    "wsgigate_health_checks",
    "Health checks of a service's instances by their result, counted where they are carried out.",
    ("service", "result"),
)

ROUND = 0.5
"""Seconds between two rounds of the thread."""

SHORTEST = 0.05
"""Seconds between two rounds when checks are due soon, or wait for a free slot."""

REFRESH = 1.0
"""Seconds after which the lease is renewed, and pools and results are read again."""


_TIMED_OUT = CheckResult(False, error="Timeout")


class HealthChecker(LeaderThread):
    """Checks the instances of services and marks them in the pools of every worker.

    Nothing runs before :meth:`start`, which every worker calls for itself, after the fork. While
    the store fails, each worker checks for itself. The instances of a pool may change at any time;
    each round checks the current ones.

    :param pools: The pools of this process, by service.
    :param checks: The health check of each service; services without one are not checked.
    :param store: The store that the workers share. Gateways that share a store need different
        prefixes.
    :param prober: Sends the probes.
    :param most: The largest number of checks in flight. At most half of them are checks of
        instances that did not answer the last one, and at most three quarters those and first
        checks: a thousand dead hosts delay neither the other instances nor new ones.
    :param prefix: The prefix of the keys in the store.
    :param clock: Returns monotonic seconds.
    :param random: Returns numbers in [0, 1).
    :ivar checks: The health check of each service.
    :ivar prober: Sends the probes.
    :raises ValueError: A check is for a service that has no pool, or *most* is below 4.
    """

    def __init__(
        self,
        pools: Mapping[str, Markable],
        checks: Mapping[str, HealthCheck],
        store: Store,
        prober: ProbeRunner,
        *,
        most: int = 256,
        prefix: str = "health/",
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        for service in checks:
            if service not in pools:
                raise ValueError(f"there is a health check for {service!r}, but no such service")
        if most < 4:
            raise ValueError(f"most must be 4 or more checks, got {most}")
        self.checks = dict(checks)
        self.prober = prober
        self._most = most
        self._clock = clock
        self._random = random
        lease = LeaderLease(store, prefix + "leader")
        self._results = Results(pools, self.checks, store, lease, prefix=prefix, clock=clock)
        super().__init__("wsgigate-health", lease, task="checks the health of instances", log=LOG)

    def begin_anew(self) -> None:
        """Discard the state of an earlier thread."""
        super().begin_anew()
        self._schedule = Schedule(self._most, self._random)
        self._alone = False
        self._announced = False  # whether it was logged that this worker checks for itself
        self._targets: dict[str, CheckTarget] = {}
        self._lead_at = self._read_at = float("-inf")
        self._errors = RepeatLog(LOG, logging.ERROR, clock=self._clock)

    def start(self) -> None:
        """Start the thread of this process, unless it is running or there are no checks."""
        if self.checks:
            super().start()

    def stop(self, timeout: float = 1.0) -> None:
        """Stop the thread of this process and release the lease; checks in flight are abandoned."""
        super().stop(timeout)
        self.prober.stop()

    def round(self) -> float:
        """Run one round; log what fails."""
        due = float("inf")
        try:
            due = self.step()
        except Exception as error:
            self._errors.log("A round of health checks failed", traceback=error)
        return min(ROUND, max(SHORTEST, due - self._clock()))

    @property
    def alone(self) -> bool:
        """Whether this worker checks for itself, because the store fails."""
        return self._alone

    def step(self) -> float:
        """Run one round: take the lease if it is free, read the results, start the due checks.

        :returns: When the next check is due, by the clock of the constructor; infinite while
            another worker checks.
        """
        now = self._clock()
        try:
            if now >= self._lead_at:
                self._lead_at = now + REFRESH
                self._lead()
            if now >= self._read_at:
                self._read_at = now + REFRESH
                self._targets = self._results.targets()
                self._results.read(self._targets)
                if self.leading:
                    self._results.share(self._targets)
                self._check_together()
        except StoreError as error:
            self.leading = False
            self._lead_at = self._read_at = now + REFRESH
            self._check_alone(error)
        if not (self.leading or self._alone):
            self._schedule.rest()
            return float("inf")
        due = self._schedule.due(self._targets, self._results, now)
        for target in due.overdue:
            self._write(target, _TIMED_OUT, self._results.known(target).raw)
        for target, flight in due.checks:
            self._start_check(target, flight)
        return due.next_at

    def _check_alone(self, error: StoreError) -> None:
        self._alone = True
        self._announced |= self._errors.log(
            "Store unavailable: this worker checks health for itself until it recovers: %s", error
        )
        self._targets = self._results.targets()
        self._results.only(self._targets)

    def _check_together(self) -> None:
        self._alone = False
        if self._announced:
            self._announced = False
            LOG.warning("Store available again: health results are shared by all workers")

    def refresh(self) -> None:
        """Read the results from the store now, whether or not the thread is running."""
        try:
            self._results.read(self._results.targets())
        except StoreError as error:
            self._errors.log("Health results cannot be read: %s", error)

    def status(self, service: str) -> dict[str, Any]:
        """Return the status of *service* as it was last read, as members of a JSON object."""
        if service not in self.checks:
            return not_monitored()
        return service_status(self._results.healths(service))

    def instances(self, service: str) -> dict[str, dict[str, Any]]:
        """Return the status of each instance of *service*, by URL; empty without checks."""
        if service not in self.checks:
            return {}
        return {url: instance_status(each) for url, each in self._results.healths(service).items()}

    def all(self) -> dict[str, dict[str, Any]]:
        """Return the status of every service with at least one checked instance."""
        healths = {service: self._results.healths(service) for service in self.checks}
        return {
            service: service_status(instances)
            for service, instances in healths.items()
            if any(instances.values())
        }

    def _start_check(self, target: CheckTarget, flight: Flight) -> None:
        schedule = self._schedule

        def found(outcome: CheckResult | Exception) -> None:
            try:
                if isinstance(outcome, Exception):
                    self._errors.log("A health check failed", traceback=outcome)
                else:
                    self._write(target, outcome, flight.raw)
            finally:
                schedule.land(target, flight)

        try:
            self.prober.probe(target.service, target.instance, target.check, found)
        except Exception as error:  # no thread or socket available
            schedule.land(target, flight)
            self._errors.log("A health check could not be started", traceback=error)

    def _write(self, target: CheckTarget, outcome: CheckResult, raw: bytes | None) -> None:
        CHECKS.labels(target.service, "ok" if outcome.ok else "failed").add()
        if not self._alone:
            try:
                self._results.write(target, outcome, raw)
                return
            except StoreError as error:
                self._errors.log("A health result could not be written to the store: %s", error)
        self._results.keep(target, outcome)
