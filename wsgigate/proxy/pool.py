"""The instances of one service as one worker sees them: which are well, and how busy each is."""

from __future__ import annotations

import logging
import math
import random as _random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from wsgigate.discovery import Instance
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.wsgi import Key
from wsgigate.proxy.sticky import Stickiness
from wsgigate.rules.arguments import checked
from wsgigate.rules.balance import Policy, policy_of
from wsgigate.rules.circuit import Outcome
from wsgigate.rules.outlier import OutlierRules, Outliers
from wsgigate.rules.tiers import Standing, Tiers, available, slow_start, tier_of, zoned
from wsgigate.runtime import fork
from wsgigate.runtime.throttled_log import ChangeLog

__all__ = [
    "Bulkhead",
    "Compartment",
    "FULL",
    "InstanceLease",
    "Member",
    "Place",
    "Pool",
    "check_most",
    "full",
]


# A fixed limit of a service's requests in a worker, and what all bulkheads have in common.

FULL = Problem(
    503,
    "Service temporarily unavailable",
    extensions={"error": "Too many requests in flight"},
    headers=(("Retry-After", "1"),),
)


class Place(Protocol):
    """A request's place among those of its service that are under way."""

    def answered(self) -> None:
        """Take note that its response has begun."""

    def tunnelled(self) -> None:
        """Take note that it has become a WebSocket, which lasts as long as it is used."""

    def leave(self) -> None:
        """Give it up."""


class Compartment(Protocol):
    """What a service's requests need a place in."""

    def enter(self) -> Place:
        """Return a place for one more request.

        :raises Refusal: There is none; carries the answer.
        """

    def status(self) -> dict[str, int]:
        """Return what ``/services`` says of it."""


@checked
class Bulkhead:
    """A fixed limit of requests to a service that are under way in this worker.

    A request that is one too many is refused at once. A request holds its place until its response
    has ended, retries and the waits between them included.

    :param most: How many there may be, at least 1.
    :ivar in_flight: How many there are.
    :ivar refused: How many were refused so far.
    :raises ValueError: *most* is out of its range.
    """

    def __init__(self, most: int) -> None:
        check_most(most)
        self.most = most
        self.in_flight = 0
        self.refused = 0
        self._lock = threading.Lock()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Count none: those of the parent end there."""
        self._lock = threading.Lock()
        self.in_flight = self.refused = 0

    def enter(self) -> Place:
        """Count one more in; the place is the bulkhead itself.

        :raises Refusal: There are as many as there may be; carries the answer.
        """
        with self._lock:
            if self.in_flight < self.most:
                self.in_flight += 1
                return self
            self.refused += 1
        raise full(self.most)

    def answered(self) -> None:
        """Do nothing: a fixed limit does not depend on how fast responses are."""

    def tunnelled(self) -> None:
        """Do nothing: a WebSocket counts like any other request."""

    def leave(self) -> None:
        """Count one out."""
        with self._lock:
            self.in_flight -= 1

    def status(self) -> dict[str, int]:
        """Return what ``/services`` says of it."""
        return {"inFlight": self.in_flight, "maxInFlight": self.most, "refused": self.refused}


def check_most(most: object) -> None:
    """Raise ValueError when *most* is no limit."""
    if type(most) is not int or most < 1:
        raise ValueError(f"max_in_flight is at least one request, got {most!r}")


def full(most: int) -> Refusal:
    """Return the refusal of a request above a fixed limit of *most*."""
    return Refusal(FULL, f"{most} requests of the service are under way already")


# One instance of a service as one worker sees it.


class Member:
    """One instance in a pool: what this worker knows of it.

    :ivar name: Its URL.
    :ivar weight: Its share at the moment, above 0 for one that can be picked.
    :ivar well_since: When it became well, ``-inf`` for one that was from the beginning.
    """

    __slots__ = ("ejected", "healthy", "in_flight", "instance", "name", "weight", "well_since")

    def __init__(self, instance: Instance, well_since: float = -math.inf) -> None:
        self.instance = instance
        self.name = instance.url
        self.weight: float = instance.weight
        self.healthy = True
        self.ejected = False
        self.in_flight = 0
        self.well_since = well_since


_log = logging.getLogger("wsgigate.pool")

_SWEEP = 10.0  # seconds between two looks at the success rates of instances

_STEPS = 20  # in so many the weight of an instance grows that has just become well


class InstanceLease:
    """One request's hold on an instance, until it is released.

    :ivar place: The request's place in a bulkhead, which it gives up then.
    """

    __slots__ = ("_pool", "instance", "member", "place")

    def __init__(self, pool: Pool, member: Member) -> None:
        self._pool: Pool | None = pool
        self.instance = member.instance
        self.member = member
        self.place: Place | None = None

    def began(self) -> None:
        """Take note that the response has begun."""
        if self.place is not None:
            self.place.answered()

    def release(self, error: Exception | None = None) -> None:
        """Take note that the request has ended, by *error* or not; again, and it does nothing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._release(self)

    def end(self, outcome: Outcome, why: str = "") -> None:
        """Take note that the request has ended, and of what that tells of the instance.

        :param why: Of a failure, what went wrong.
        """
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._release(self)
            if pool.judges:
                pool.report(self.member, outcome, why)


@checked
class Pool:
    """The instances of one service, and who takes the next request.

    An instance is available while it is healthy, not ejected, and its weight is not 0; how tiers
    share the requests then, :func:`wsgigate.rules.tiers.available` says.

    :param service: The service's name.
    :param instances: Its instances; no URL twice.
    :param balance: Who takes the next request: the name of a policy, see
        :data:`wsgigate.rules.balance.POLICIES`, or what makes one when it is given *random*.
    :param key: Tells requests that belong together, for a policy that cares.
    :param sticky: Has clients stay with the instance that answered them first.
    :param instance_limit: How many requests of this worker an instance gets at a time.
    :param slow_start: Seconds in which an instance that has become well gets all of its weight;
        0 for at once.
    :param outlier: When an instance is left out for a while that fails; ``None`` for never. Each
        worker judges by what it has seen itself.
    :param zone: The zone whose instances come first; those of other zones get what these cannot
        take. Empty for none.
    :param panic: The share of available instances below which health is ignored, 0 to 1.
    :param random: Gives numbers in [0, 1); the module's own is seeded anew in a forked worker.
    :param clock: Tells the time in seconds, from any moment on.
    :ivar judges: Whether it wants to know how requests ended.
    :ivar timed: Whether the policy wants to know how long answers took.
    :raises ValueError: A setting is not of its form; says which.
    """

    def __init__(
        self,
        service: str,
        instances: Sequence[Instance],
        *,
        balance: str | Callable[[Callable[[], float]], Policy[Member]] = "two-choices",
        key: Key | None = None,
        sticky: Stickiness | None = None,
        instance_limit: int | None = None,
        slow_start: float = 0.0,
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
            raise ValueError(f"panic is a share between 0 and 1, got {panic}")
        if not 0 <= slow_start < math.inf:
            raise ValueError(f"slow_start is a number of seconds, got {slow_start}")
        self.service = service
        self.panic = panic
        self.zone = zone
        if instance_limit is not None and instance_limit < 1:
            raise ValueError(f"instance_limit is at least one request, got {instance_limit}")
        self.key = key
        self.sticky = sticky
        self.instance_limit = instance_limit
        self._policy: Tiers[Member] = Tiers(random, lambda: policy_of(balance, random))
        self.timed = self._policy.timed
        self.judges = outlier is not None
        self._outliers = Outliers(outlier or OutlierRules())
        self._outliers.renew(urls)
        self._sweep_at = math.inf
        if outlier is not None and outlier.success_rate:
            self._sweep_at = clock() + _SWEEP
        self._slow_start = slow_start
        self._clock = clock
        self._lock = threading.Lock()
        self._members = {instance.url: Member(instance) for instance in instances}
        self._stuck: dict[str, Member] = {}
        self._changes = ChangeLog(_log)
        self._returned: list[Member] = []  # no longer ejected, and not logged yet
        self._picked: list[Member] = []
        self._renew_at = math.inf
        self._watches = self.timed  # whether a pick needs to know the time
        self._renew()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Count no request: those of the parent end there."""
        self._lock = threading.Lock()
        for member in self._members.values():
            member.in_flight = 0
        self._renew()  # a thread of the parent may have been in the middle of it

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The instances, well or not."""
        return tuple(member.instance for member in self._members.values())

    def available(self) -> tuple[Instance, ...]:
        """Return the instances that are healthy, not drained and not ejected."""
        return tuple(
            member.instance
            for member in self._members.values()
            if member.healthy and member.instance.weight and not member.ejected
        )

    def mark(self, url: str, healthy: bool) -> None:
        """Take note of whether the instance at *url* is healthy; an unknown one is ignored."""
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

    def renew(self, instances: Sequence[Instance]) -> tuple[Instance, ...]:
        """Replace the instances; return those that are gone.

        Who stays, by its URL, keeps what is known of it: requests in flight, latency, ejection and
        health. Who is new has its slow start. Requests in flight with those that are gone end as
        they would have, and tell nothing any more.

        :raises ValueError: One is there twice; nothing has changed.
        """
        renewed = {instance.url: instance for instance in instances}
        if len(renewed) != len(instances):
            raise ValueError(f"the service {self.service!r} has an instance twice")
        with self._lock:
            before, since = self._members, self._clock() if self._members else -math.inf
            members = {}
            for url, instance in renewed.items():
                members[url] = member = before.get(url) or Member(instance, since)
                member.instance = instance
            self._members = members  # replaced, never changed: it is read without the lock
            self._outliers.renew(members)
            self._renew()
        return tuple(member.instance for url, member in before.items() if url not in members)

    def pick(
        self, key: str | None = None, avoid: Collection[Member] = (), stuck: str | None = None
    ) -> InstanceLease | None:
        """Return a hold on the instance for the next request, which counts as in flight with it.

        :param key: Tells requests that belong together.
        :param avoid: Those that have failed this request; picked only when there are no others.
        :param stuck: What a sticky cookie calls the instance that the client is to stay with.
        :returns: ``None`` when the service has no instance that takes requests.
        """
        now = self._clock() if self._watches else 0.0
        with self._lock:
            if now >= self._renew_at:
                self._renew()
            free = self._picked
            if self.instance_limit is not None:
                full = [m for m in self._members.values() if m.in_flight >= self.instance_limit]
                free = [member for member in free if member not in full]
                avoid = full if all(m in avoid for m in free) else [*avoid, *full]
            member = self._stuck.get(stuck) if stuck is not None else None
            if member is None or member in avoid:  # one that drains is not among the free
                if not free:
                    return None
                member = self._policy.pick(key, avoid, now)
            member.in_flight += 1
        if self._returned:
            self._log_returned()
        return InstanceLease(self, member)

    def answered(self, member: Member, seconds: float, failed: bool) -> None:
        """Take note of how long it took *member* to begin an answer, or to fail."""
        now = self._clock()
        with self._lock:
            if self._members.get(member.name) is member:  # else it is gone
                self._policy.answered(member, seconds, now, failed)

    def report(self, member: Member, outcome: Outcome, why: str = "") -> None:
        """Take note of how a request to *member* ended.

        :param why: Of a failure, what went wrong.
        """
        now = self._clock()
        with self._lock:
            members = self._members
            if members.get(member.name) is not member:
                return  # it is gone
            ejection = self._outliers.report(member.name, outcome, now, why)
            names = [] if ejection is None else [member.name]
            if now >= self._sweep_at:
                self._sweep_at = now + _SWEEP
                names += self._outliers.sweep(now)
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
        """Return the URLs of the instances that are left out because they fail."""
        with self._lock:
            return sorted(self._outliers.ejected(self._clock()))

    def ejections(self) -> dict[str, tuple[float, float, str]]:
        """Return by URL the instances that this worker leaves out because they fail.

        :returns: For how many seconds each has been left out, for how many more it will be, and
            why, in words that name no host.
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
        """Return by URL how many of this worker's requests each instance is serving."""
        return {url: member.in_flight for url, member in self._members.items()}

    def _release(self, lease: InstanceLease) -> None:
        with self._lock:
            lease.member.in_flight -= 1
        if lease.place is not None:
            lease.place.leave()

    def _log_returned(self) -> None:
        """Log whose ejection is over; never with the lock held, as writing may take a while."""
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
        """Work out who is to be picked from now on."""
        now, window = self._clock(), self._slow_start
        members = list(self._members.values())
        ejected = self._outliers.ejected(now)
        for member in members:
            if member.ejected and member.name not in ejected:
                member.well_since = now
                self._returned.append(member)
            member.ejected = member.name in ejected
        standings = [
            Standing(
                m.healthy and not m.ejected,
                m.instance.weight,
                zoned(m.instance.tier, m.instance.zone, self.zone),
            )
            for m in members
        ]
        levels = [
            (level.tier, level.share, [members[at] for at in level.places])
            for level in available(standings, self.panic)
        ]
        picked = [member for _, _, those in levels for member in those]
        draining = [m for m in members if not m.instance.weight and m.healthy and not m.ejected]
        self._renew_at = self._outliers.returns
        for member in picked:
            age = now - member.well_since
            member.weight = slow_start(member.instance.weight, age, window)
            if age < window:
                self._renew_at = min(self._renew_at, now + window / _STEPS)
        self._watches = self.timed or self._renew_at < math.inf
        self._picked = picked
        if picked:
            self._policy.renew(levels, draining)
        if self.sticky is not None:
            # a client stays with its instance in another zone, but not with one that stands by
            tiers = {tier_of(level, self.zone) for level, share, _ in levels if share}
            staying = [
                m for level, _, those in levels if tier_of(level, self.zone) in tiers for m in those
            ]
            staying += draining if self.sticky.keep_draining else []
            self._stuck = {self.sticky.id_of(member.name): member for member in staying}
