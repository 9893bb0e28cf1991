"""The load-balanced instances of one service in one worker, and their leases."""

from __future__ import annotations

import logging
import math
import random as _random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from wsgigate.client.response_reader import PoolFull, SlowResponse
from wsgigate.coordination.circuit import Permit
from wsgigate.coordination.overrides import ACTIVE, AUTOMATIC, DRAINED, EJECTED, Override
from wsgigate.discovery import Instance
from wsgigate.http.wsgi import ClientLeft, Key
from wsgigate.proxy.bulkhead import Slot
from wsgigate.proxy.failed_attempts import FailedAttempts
from wsgigate.proxy.meter import InstanceMeter, ServiceMeter
from wsgigate.proxy.response import (
    UNSENDABLE,
    BadResponse,
    UpstreamCut,
    nothing_sent,
    problem_of,
    reason_of,
)
from wsgigate.proxy.sticky import Stickiness
from wsgigate.rules.arguments import Range, Seconds, checked
from wsgigate.rules.balance import (
    BalancePolicy,
    InstanceState,
    Tiers,
    available,
    policy_of,
    slow_start,
    tier_of,
    zoned,
)
from wsgigate.rules.circuit import Outcome
from wsgigate.rules.outlier import OutlierRules, Outliers
from wsgigate.runtime import fork
from wsgigate.runtime.logs import ChangeLog
from wsgigate.telemetry.metrics import PROCESS, ObservableGauge, Reading

if TYPE_CHECKING:
    from wsgigate.telemetry.spans import AttemptSpan

__all__ = ["ALL_DRAINED", "InstanceLease", "Member", "Pool"]


class Member:
    """The state of one instance in a pool, in this worker.

    :ivar name: Its URL.
    :ivar weight: Its current weight, above 0 for an instance that can be picked.
    :ivar well_since: When it became healthy; ``-inf`` if it was healthy from the start.
    :ivar override: What an operator has decided about it.
    :ivar meter: Measures its attempts.
    """

    __slots__ = (
        "ejected",
        "healthy",
        "in_flight",
        "instance",
        "meter",
        "name",
        "override",
        "weight",
        "well_since",
    )

    def __init__(
        self,
        service: str,
        instance: Instance,
        well_since: float = -math.inf,
        override: Override = AUTOMATIC,
    ) -> None:
        self.instance = instance
        self.meter = InstanceMeter(service, instance.address)
        self.override = override
        self.name = instance.url
        self.weight: float = instance.weight
        self.healthy = True
        self.ejected = False
        self.in_flight = 0
        self.well_since = well_since

    @property
    def share(self) -> int:
        """Its share of the requests; 0 if it gets no new ones: slow start is not in it."""
        override = self.override
        if override.state != ACTIVE:
            return 0
        return self.instance.weight if override.weight is None else override.weight


_log = logging.getLogger("wsgigate.pool")

INSTANCES = ObservableGauge(
    "wsgigate_instances",
    "Instances of a service: healthy, unhealthy, ejected by this worker or an operator, drained.",
    ("service", "status"),
)

AVAILABLE = ObservableGauge(
    "wsgigate_instance_available",
    "1 for an instance that takes requests: healthy, and neither ejected nor drained.",
    ("service", "instance"),
)

_STATUSES = ("healthy", "unhealthy", "ejected", "drained")

_SWEEP = 10.0  # seconds between two checks of the instances' success rates

_STEPS = 20  # slow start raises a weight in this many steps

ALL_DRAINED = "all instances are drained or ejected by an operator"
"""The reason for the log; :meth:`Pool.unavailability` returns it."""


class InstanceLease:
    """One request's lease of an instance, which counts as in flight until it is released.

    Its end reports the outcome of the request to outlier detection and to the circuit breaker. A
    success is reported at the end of the response, because the response may still be cut. The
    success of a half-open circuit's probe is reported when its response begins: other requests wait
    for it, and a response may have no end.

    :ivar instance: The instance.
    :ivar member: Its entry in the pool.
    :ivar permit: The circuit's permit of the request, reported together with the lease.
    :ivar slot: The request's slot in a bulkhead, released together with the lease.
    :ivar span: The span of the attempt, which ends together with the lease.
    """

    permit: Permit | None = None
    slot: Slot | None = None
    span: AttemptSpan | None = None
    _outcome = Outcome.IGNORED
    _status = 0
    _took = 0.0

    def __init__(self, pool: Pool, member: Member) -> None:
        self._pool: Pool | None = pool
        self.instance = member.instance
        self.member = member

    def answered(self, outcome: Outcome, took: float, status: int) -> None:
        """Record that the instance has begun its response.

        :param took: Seconds until it began.
        :param status: Its status code.
        """
        self._outcome = outcome
        self._took = took
        self._status = status
        permit = self.permit
        if permit is not None and (outcome is not Outcome.OK or permit.probe):
            permit.done(outcome, took=took, why=self._why(None, outcome))

    def began(self) -> None:
        """Record that the response to the client begins."""
        if self.slot is not None:
            self.slot.answered()

    def release(self, error: Exception | None = None) -> None:
        """End the lease and report the outcome; a second call does nothing.

        :param error: The error that ended the request; ``None`` if it was served.
        """
        pool, self._pool = self._pool, None
        if pool is None:
            return
        with pool._lock:
            self.member.in_flight = in_flight = self.member.in_flight - 1
            self.member.meter.in_flight.set(in_flight)
        if not in_flight and pool._members.get(self.member.name) is not self.member:
            pool._forget(self.member)
        if error is not None:
            reason = cut_by(error)
            if reason:
                pool.meter.cut(reason)
        if self.slot is not None:
            self.slot.leave()
        if self.span is not None:
            self._end_span(self.span, error)
        permit = self.permit
        if permit is None and not pool.judges:
            return
        outcome = self._outcome if error is None else outcome_of_error(error)
        why = "" if outcome is Outcome.OK else self._why(error, outcome)
        if pool.judges:
            pool.report(self.member, outcome, why)
        if permit is not None:
            permit.done(outcome, took=self._took, why=why)

    def _end_span(self, span: AttemptSpan, error: Exception | None) -> None:
        if isinstance(error, ClientLeft):
            span.cancelled("the client has disconnected")
        elif error is not None:
            span.failed(error, reason_of(error))
        span.end()

    def _why(self, error: Exception | None, outcome: Outcome) -> str:
        """Return the reason of a failure, without host names; empty for no failure."""
        if outcome is Outcome.FAILED or outcome is Outcome.UNREACHABLE:
            return f"status {self._status}" if error is None else failure_of(error)
        return ""


def _status_of(member: Member) -> str:
    """Return the status of an instance, one of :data:`_STATUSES`."""
    if not member.healthy:
        return "unhealthy"
    if member.ejected or member.override.state == EJECTED:
        return "ejected"
    return "healthy" if member.share else "drained"


def outcome_of_error(error: Exception) -> Outcome:
    """Return the outcome that circuit breaker and outlier detection count for *error*."""
    if isinstance(error, (UpstreamCut, BadResponse)):
        return Outcome.FAILED
    if isinstance(error, (ClientLeft, PoolFull, *UNSENDABLE)):
        return Outcome.IGNORED  # caused by the client, the gateway's limit, or the request itself
    return Outcome.UNREACHABLE if nothing_sent(error) else Outcome.FAILED


def cut_by(error: Exception) -> str:
    """Return why a response that has begun ended early, in one word; empty for another error."""
    if isinstance(error, UpstreamCut):
        return "too_slow" if isinstance(error.__cause__, SlowResponse) else "instance"
    return {ClientLeft: "client", BadResponse: "invalid"}.get(type(error), "")


def failure_of(error: Exception) -> str:
    """Return the client-facing description of an instance's failure."""
    if isinstance(error, UpstreamCut):
        return "Response too slow" if isinstance(error.__cause__, SlowResponse) else "Response cut"
    return str(problem_of(error).extensions.get("error", "Invalid response"))


@checked
class Pool:
    """The instances of one service, and the load balancing between them.

    An instance is available while it is healthy, not ejected, and its weight is not 0.
    :func:`wsgigate.rules.balance.available` decides how tiers share the requests.

    An operator's override has the last word: an instance that is drained or ejected by one gets no
    new request, not even in panic. A drained one keeps the clients of its sticky sessions, an
    ejected one does not. Requests in flight are finished in both cases, and health checks go on.

    :param service: The service's name.
    :param instances: Its instances, each with a different URL.
    :param balance: The load balancing policy: a name in :data:`wsgigate.rules.balance.POLICIES`, or
        a function that takes *random* and returns a policy.
    :param key: Returns the key of a request, for policies that keep equal keys together.
    :param sticky: Sticky sessions. Default: none.
    :param instance_limit: The maximum number of requests in flight per worker and instance.
        Default: no limit.
    :param slow_start: The time over which a recovered instance ramps up to its full share, in
        seconds; 0 for at once.
    :param outlier: When a failing instance is ejected for a time; ``None`` for never. Each worker
        counts the outcomes of its own requests.
    :param zone: The preferred zone; instances of other zones get the requests that these cannot
        take. Empty for no preference.
    :param panic: The share of available instances below which health is ignored, 0 to 1.
    :param random: Returns a number in [0, 1). The default is reseeded in a forked worker.
    :param clock: Monotonic clock, in seconds.
    :ivar judges: Whether outcomes must be reported, for outlier detection.
    :ivar timed: Whether the policy needs response times.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        service: str,
        instances: Sequence[Instance],
        *,
        balance: str | Callable[[Callable[[], float]], BalancePolicy[Member]] = "two-choices",
        key: Key | None = None,
        sticky: Stickiness | None = None,
        instance_limit: Annotated[int | None, Range(1)] = None,
        slow_start: Annotated[Seconds, Range(0)] = 0.0,
        outlier: OutlierRules | None = None,
        zone: str = "",
        panic: float = 0.5,
        random: Callable[[], float] = _random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        urls = [instance.url for instance in instances]
        if len(set(urls)) != len(urls):
            raise ValueError(f"the service {service!r} has an instance twice")
        if not 0 <= panic <= 1:
            raise ValueError(f"panic must be a share between 0 and 1, got {panic}")
        if not 0 <= slow_start < math.inf:
            raise ValueError(f"slow_start must be 0 or more seconds, got {slow_start}")
        self.service = service
        self.meter = ServiceMeter(service)
        self.failures = FailedAttempts(service)
        self.panic = panic
        self.zone = zone
        if instance_limit is not None and instance_limit < 1:
            raise ValueError(f"instance_limit must be 1 or more requests, got {instance_limit}")
        self.key = key
        self.sticky = sticky
        self.instance_limit = instance_limit
        self._policy: Tiers[Member] = Tiers(random, lambda: policy_of(balance, random))
        self.timed = self._policy.timed
        self.judges = outlier is not None
        self._outliers = Outliers(outlier or OutlierRules())
        self._outliers.set_instances(urls)
        self._sweep_at = math.inf
        if outlier is not None and outlier.success_rate:
            self._sweep_at = clock() + _SWEEP
        self._slow_start = slow_start
        self._clock = clock
        self._lock = threading.Lock()
        self._members = {instance.url: Member(service, instance) for instance in instances}
        self._sticky_members: dict[str, Member] = {}
        self._changes = ChangeLog(_log)
        self._overrides: Mapping[str, Override] = {}
        self._returned: list[Member] = []  # ejections that are over but not logged yet
        self._picked: list[Member] = []
        self._renew_at = math.inf
        self._watches = self.timed  # whether a pick needs the time
        self._renew()
        fork.renew_at_fork(self)
        PROCESS.collect_from(self)

    def after_fork(self) -> None:
        """Reset the counts: the requests in flight are the parent's."""
        self._lock = threading.Lock()
        for member in self._members.values():
            member.in_flight = 0
        self._renew()  # a thread of the parent may have been interrupted in it

    def collect(self) -> Iterable[Reading]:
        """Return the states of the instances, for the metrics."""
        statuses = {m.instance.address: _status_of(m) for m in list(self._members.values())}
        counts = Counter(statuses.values())
        for status in _STATUSES:
            yield INSTANCES.reading(counts[status], self.service, status)
        for address, status in statuses.items():
            yield AVAILABLE.reading(float(status == "healthy"), self.service, address)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """All instances, healthy or not."""
        return tuple(member.instance for member in self._members.values())

    def available(self) -> tuple[Instance, ...]:
        """Return the instances that are healthy, not drained and not ejected."""
        return tuple(
            member.instance
            for member in self._members.values()
            if member.healthy and member.share and not member.ejected
        )

    def shares(self) -> dict[str, int]:
        """Return the share of the requests of each instance, by URL; 0 if it gets no new ones."""
        return {url: member.share for url, member in self._members.items()}

    def overrides(self) -> Mapping[str, Override]:
        """Return what operators have decided about instances, by URL."""
        return self._overrides

    def unavailability(self) -> str:
        """Return why no instance takes requests, without host names."""
        members = self._members.values()
        if members and all(member.override.state != ACTIVE for member in members):
            return ALL_DRAINED
        return "no instance is available"

    def mark(self, url: str, healthy: bool) -> None:
        """Set whether the instance at *url* is healthy; an unknown URL is ignored."""
        member = self._members.get(url)
        if member is None or member.healthy == healthy:
            return
        with self._lock:
            member.healthy = healthy
            member.well_since = now = self._clock()
            if healthy:
                self._outliers.restore(url, now)
            self._renew()
        if self._returned:
            self._log_returned()

    def override(self, overrides: Mapping[str, Override], restored: Collection[str] = ()) -> None:
        """Replace what operators have decided about the instances; the others are automatic.

        An override of an instance that is not known applies when it is. An instance that gets
        requests again has its slow start.

        :param overrides: The overrides by URL.
        :param restored: URLs of instances whose automatic ejection ends now.
        """
        with self._lock:
            now = self._clock()
            self._overrides = overrides
            for url, member in self._members.items():
                before = member.override.state
                member.override = overrides.get(url, AUTOMATIC)
                if before != ACTIVE and member.override.state == ACTIVE:
                    member.well_since = now
                if url in restored:
                    self._outliers.restore(url, now)
            self._renew()
        if self._returned:
            self._log_returned()

    def renew(self, instances: Sequence[Instance]) -> tuple[Instance, ...]:
        """Replace the instances; return those that were removed.

        An instance that stays, by its URL, keeps its state: requests in flight, latency, ejection
        and health. A new instance has its slow start. Requests in flight to a removed instance
        finish, and their outcomes are ignored. Overrides apply to an instance that comes back.

        :raises ValueError: A URL occurs twice; nothing was changed.
        """
        renewed = {instance.url: instance for instance in instances}
        if len(renewed) != len(instances):
            raise ValueError(f"the service {self.service!r} has an instance twice")
        with self._lock:
            before, since = self._members, self._clock() if self._members else -math.inf
            members = {}
            for url, instance in renewed.items():
                members[url] = member = before.get(url) or Member(
                    self.service, instance, since, self._overrides.get(url, AUTOMATIC)
                )
                member.instance = instance
            self._members = members  # replaced, never changed: it is read without the lock
            self._outliers.set_instances(members)
            self._renew()
            gone = [member for url, member in before.items() if url not in members]
            idle = [member for member in gone if not member.in_flight]
        for member in idle:
            self._forget(member)
        return tuple(member.instance for member in gone)

    def pick(
        self,
        key: str | None = None,
        avoid: Collection[Member] = (),
        sticky_id: str | None = None,
        only_others: bool = False,
    ) -> InstanceLease | None:
        """Pick the instance for the next request and lease it.

        :param key: The key of the request, for policies that keep equal keys together.
        :param avoid: Instances that failed this request; picked only if there are no others.
        :param sticky_id: The id of an instance from a sticky cookie.
        :param only_others: Pick none of *avoid*, not even if there are no others.
        :returns: ``None`` if no instance takes requests.
        """
        now = self._clock() if self._watches else 0.0
        excluded = avoid if only_others else ()
        with self._lock:
            if now >= self._renew_at:
                self._renew()
            free = self._picked
            if self.instance_limit is not None:
                full = [m for m in self._members.values() if m.in_flight >= self.instance_limit]
                free = [member for member in free if member not in full]
                avoid = full if all(m in avoid for m in free) else [*avoid, *full]
            member = self._sticky_members.get(sticky_id) if sticky_id is not None else None
            if member is None or member in avoid:  # a draining one is not in free
                if not free:
                    return None
                member = self._policy.pick(key, avoid, now)
                if member in excluded:
                    return None
            member.in_flight += 1
            member.meter.in_flight.set(member.in_flight)
        if self._returned:
            self._log_returned()
        return InstanceLease(self, member)

    def answered(self, member: Member, seconds: float, failed: bool) -> None:
        """Record the seconds until *member* began a response, or failed."""
        now = self._clock()
        with self._lock:
            if self._members.get(member.name) is member:  # else it was removed
                self._policy.answered(member, seconds, now, failed)

    def report(self, member: Member, outcome: Outcome, why: str = "") -> None:
        """Report the outcome of a request to *member* to outlier detection.

        :param why: The reason of a failure.
        """
        now = self._clock()
        with self._lock:
            members = self._members
            if members.get(member.name) is not member:
                return  # it was removed
            ejection = self._outliers.report(member.name, outcome, now, why)
            names = [] if ejection is None else [member.name]
            if ejection is not None:
                member.meter.ejected("consecutive_failures")
            if now >= self._sweep_at:
                self._sweep_at = now + _SWEEP
                low = self._outliers.sweep(now)
                for name in low:
                    members[name].meter.ejected("success_rate")
                names += low
            if names:
                self._renew()
            ejections = [(members[name], self._outliers.ejection(name)) for name in names]
        for each, (until, _, _, reason) in ejections:
            self._changes.log(
                logging.WARNING,
                each.name,
                "Instance %s of %r is ejected for %.0f s: %s",
                *(each.instance.address, self.service, until - now, reason),
            )
        if self._returned:
            self._log_returned()
        elif self._changes.due < math.inf:
            self._changes.flush()

    def ejected(self) -> list[str]:
        """Return the URLs of the ejected instances."""
        with self._lock:
            return sorted(self._outliers.ejected(self._clock()))

    def ejections(self) -> dict[str, tuple[float, float, str]]:
        """Return the instances that this worker has ejected, by URL.

        :returns: For each, the seconds since its ejection, the seconds until its return, and the
            reason, without host names.
        """
        with self._lock:
            now = self._clock()
            left_out = sorted(self._outliers.ejected(now))
            found = {name: self._outliers.ejection(name) for name in left_out}
        return {
            name: (max(0.0, now - each.since), max(0.0, each.until - now), each.why)
            for name, each in found.items()
        }

    def in_flight(self) -> dict[str, int]:
        """Return the number of this worker's requests in flight by instance URL."""
        return {url: member.in_flight for url, member in self._members.items()}

    def _forget(self, member: Member) -> None:
        """Drop the metrics of a removed instance, whose last request has ended."""
        address = member.instance.address
        if all(each.instance.address != address for each in self._members.values()):
            member.meter.remove()
            self.failures.failing.discard(address)

    def _log_returned(self) -> None:
        """Log the ejections that are over; not with the lock held, as writing may block."""
        with self._lock:
            returned, self._returned = self._returned, []
        for member in returned:
            self._changes.log(
                logging.INFO,
                member.name,
                "Instance %s of %r is back in rotation after its ejection",
                *(member.instance.address, self.service),
            )

    def _renew(self) -> None:
        """Compute the instances to pick from, with their weights."""
        now, window = self._clock(), self._slow_start
        members = list(self._members.values())
        ejected = self._outliers.ejected(now)
        for member in members:
            if member.ejected and member.name not in ejected:
                member.well_since = now
                self._returned.append(member)
            member.ejected = member.name in ejected
        states = [
            InstanceState(
                m.healthy and not m.ejected,
                m.share,
                zoned(m.instance.tier, m.instance.zone, self.zone),
            )
            for m in members
        ]
        levels = [
            (level.tier, level.share, [members[at] for at in level.places])
            for level in available(states, self.panic)
        ]
        picked = [member for _, _, those in levels for member in those]
        draining = [m for m in members if not m.share and m.healthy and not m.ejected]
        self._renew_at = self._outliers.returns
        for member in picked:
            age = now - member.well_since
            member.weight = slow_start(member.share, age, window)
            if age < window:
                self._renew_at = min(self._renew_at, now + window / _STEPS)
        self._watches = self.timed or self._renew_at < math.inf
        self._picked = picked
        if picked:
            self._policy.set_members(levels, draining)
        if self.sticky is not None:
            # a client stays with its instance in another zone, but not in a standby tier
            tiers = {tier_of(level, self.zone) for level, share, _ in levels if share}
            staying = [
                m for level, _, those in levels if tier_of(level, self.zone) in tiers for m in those
            ]
            keeps = self.sticky.keep_draining
            # as with HAProxy: an instance that is drained by hand keeps its sessions
            staying += [
                m
                for m in draining
                if m.override.state == DRAINED or (keeps and m.override.state == ACTIVE)
            ]
            self._sticky_members = {self.sticky.id_of(member.name): member for member in staying}
