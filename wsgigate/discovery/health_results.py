"""Health check results: shared by all workers through the store, or kept by one worker.

While the store works, one worker writes and all read: :meth:`Results.write`, :meth:`Results.read`.
While it fails, each worker keeps its results in memory (:meth:`Results.keep`), based on what it
last read, so that thresholds continue to count. When the store answers again, a worker's own result
applies until the store has a *newer* one: an old verdict that outlived the outage in the store must
not bring a dead instance back into rotation. The leader writes its own results at once
(:meth:`Results.share`), so that the other workers, and workers that start then, have a newer result
soon. The newer of two results is the one whose check ended less long ago; wall clocks of two
machines are never compared.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from logging import INFO, WARNING
from typing import Any, NamedTuple, Protocol, TypeAlias
from urllib.parse import quote

from wsgigate.coordination.leader import LeaderLease
from wsgigate.discovery import Instance
from wsgigate.rules.health import CheckResult, Health, HealthCheck, record
from wsgigate.runtime import fork
from wsgigate.runtime.logs import ChangeLog, one_line
from wsgigate.store import Store
from wsgigate.units import iso_time

__all__ = [
    "CheckTarget",
    "Markable",
    "OnResult",
    "Probe",
    "ProbeRunner",
    "Results",
    "StoredHealth",
    "ThreadProber",
    "instance_status",
    "not_checked",
    "not_monitored",
    "service_status",
]


# Probe runners.

Probe: TypeAlias = Callable[[Instance, HealthCheck], CheckResult]
"""Probes one instance once, within the check's timeout. Runs in any thread."""

OnResult: TypeAlias = Callable[[CheckResult | Exception], None]
"""Receives the outcome of a check, or the error that prevented it. Runs in any thread."""


class ProbeRunner(Protocol):
    """Probes instances, many at a time."""

    def probe(self, service: str, instance: Instance, check: HealthCheck, found: OnResult) -> None:
        """Start a check; call *found* when it has ended."""

    def stop(self) -> None:
        """Abandon the checks in flight."""


class ThreadProber:
    """A probe runner that calls a function, each check in its own thread.

    :param probe: Probes one instance once.
    :param spawn: Runs a function in the background. Default: in a new thread.
    """

    def __init__(
        self, probe: Probe, *, spawn: Callable[[Callable[[], None]], None] | None = None
    ) -> None:
        self._probe = probe
        self._spawn = spawn or _spawn_thread

    def probe(self, service: str, instance: Instance, check: HealthCheck, found: OnResult) -> None:
        """Start a check in a thread.

        :raises RuntimeError: No thread can be started.
        """
        self._spawn(partial(self._run, instance, check, found))

    def stop(self) -> None:
        """Do nothing: each thread ends with its check."""

    def _run(self, instance: Instance, check: HealthCheck, found: OnResult) -> None:
        outcome: CheckResult | Exception
        try:
            outcome = self._probe(instance, check)
        except Exception as error:
            outcome = error
        found(outcome)


def _spawn_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="wsgigate-health-check", daemon=True).start()


# The status of services and instances, as members of JSON documents.


def not_checked() -> dict[str, Any]:
    """Return the status of a service whose first check has not ended yet."""
    return {"healthy": False, "error": "Not checked yet"}


def not_monitored() -> dict[str, Any]:
    """Return the status of a service without a health check: healthy, as it gets its requests."""
    return {"healthy": True, "status": "No health check"}


def instance_status(health: Health | None) -> dict[str, Any]:
    """Return the status of one instance.

    A healthy instance has ``healthy, lastCheck, responseTime, status``, an unhealthy one ``healthy,
    lastCheck, error, status``. ``status`` is the status code, ``"N/A"`` without a response. The
    last check may disagree with the verdict: a healthy instance then has an ``error`` as well, and
    the error of an unhealthy one that answers again is ``Recovering``.
    """
    if health is None:
        return not_checked()
    last = health.last
    status: dict[str, Any] = {"healthy": health.healthy, "lastCheck": iso_time(health.checked)}
    if health.healthy:
        status["responseTime"] = last.response_time
    if not health.healthy or not last.ok:
        status["error"] = "Recovering" if last.ok else last.error
    status["status"] = "N/A" if last.status is None else last.status
    return status


def service_status(healths: Mapping[str, Health | None]) -> dict[str, Any]:
    """Return the status of a service from the *healths* of its instances, by URL.

    A service is healthy if one of its instances is. With several instances, the members are those
    of the last checked instance that agrees with the verdict; ``instances`` has all of them.
    """
    if not healths:
        return {"healthy": False, "error": "No instances"}
    known = [health for health in healths.values() if health is not None]
    if not known:
        status = not_checked()
    else:
        healthy = any(health.healthy for health in known)
        agreeing = (health for health in known if health.healthy == healthy)
        status = instance_status(max(agreeing, key=lambda health: health.checked))
        status["lastCheck"] = iso_time(max(health.checked for health in known))
    if len(healths) > 1:
        status["instances"] = {url: instance_status(health) for url, health in healths.items()}
    return status


LOG = logging.getLogger("wsgigate.health")

_LEAST_TTL = 300.0

_INTERVALS_KEPT = 10


class Markable(Protocol):
    """The part of a pool that health checks use."""

    @property
    def instances(self) -> Iterable[Instance]:
        """The current instances of the pool."""

    def mark(self, url: str, healthy: bool) -> None:
        """Mark the instance at *url* as healthy or unhealthy."""


class CheckTarget(NamedTuple):
    """An instance to check, its check, and the key of its health in the store."""

    key: str
    service: str
    instance: Instance
    check: HealthCheck


class StoredHealth(NamedTuple):
    """The health of an instance, and its bytes in the store."""

    raw: bytes | None
    health: Health | None


_NOTHING = StoredHealth(None, None)


class Results:
    """The health of the instances in *pools*, as last read from the store.

    :param pools: The pools, by service; their instances may change at any time.
    :param checks: The health checks, by service.
    :param store: The store that the workers share.
    :param lease: The lease that a worker must hold to write.
    :param prefix: The prefix of the keys in the store.
    :param clock: Returns monotonic seconds.
    :param wall: Returns the Unix time; used instead of the store's time until that was read.
    """

    def __init__(
        self,
        pools: Mapping[str, Markable],
        checks: Mapping[str, HealthCheck],
        store: Store,
        lease: LeaderLease,
        *,
        prefix: str,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._ahead: float | None = None  # store's time minus clock; None until read
        # results of this worker that the store may not have: the clock's time of each
        self._own: dict[str, float] = {}
        self._pools = pools
        self._checks = checks
        self._store = store
        self._lease = lease
        self._prefix = prefix
        self._known: dict[str, StoredHealth] = {}
        self._changes = ChangeLog(LOG, clock=clock)
        self._storing: threading.Lock
        fork.renewed(self, _storing="Lock")

    def now(self) -> float:
        """Return an estimate of the store's time, without a store access."""
        return self._wall() if self._ahead is None else self._clock() + self._ahead

    def targets(self) -> dict[str, CheckTarget]:
        """Return the instances to check, by key."""
        targets = (
            CheckTarget(_key(self._prefix, service, instance.url), service, instance, check)
            for service, check in self._checks.items()
            for instance in self._pools[service].instances
        )
        return {target.key: target for target in targets}

    def known(self, target: CheckTarget) -> StoredHealth:
        """Return the known health of *target*."""
        return self._known.get(target.key, _NOTHING)

    def healths(self, service: str) -> dict[str, Health | None]:
        """Return the health of each instance of *service*, by URL."""
        known = self._known
        return {
            instance.url: known.get(_key(self._prefix, service, instance.url), _NOTHING).health
            for instance in self._pools[service].instances
        }

    def read(self, targets: Mapping[str, CheckTarget]) -> None:
        """Read the health of *targets*, forget all others, and mark the pools.

        A value that is missing from the store, or malformed, leaves the known health unchanged.

        :raises StoreError: The store failed; nothing has changed.
        """
        self._changes.flush()
        with self._storing:  # otherwise a read could replace a result that is written meanwhile
            # one by one: a store on the network would scan all its keys for a prefix
            found = {key: self._store.get(key)[0] for key in targets}
            _, now = self._store.get(self._lease.key)
            self._ahead = now - self._clock()
            before = self._known
            self._known = {
                key: self._agreed(key, found.get(key), before.get(key, _NOTHING)) for key in targets
            }
            self._forget_own()
        self.mark(targets)

    def mark(self, targets: Mapping[str, CheckTarget]) -> None:
        """Mark the pools with the known health of *targets*."""
        known = self._known
        for key, target in targets.items():
            health = known.get(key, _NOTHING).health
            if health is not None:
                self._pools[target.service].mark(target.instance.url, health.healthy)

    def only(self, targets: Mapping[str, CheckTarget]) -> None:
        """Forget all but *targets*, and mark the pools, without reading the store."""
        with self._storing:
            self._known = {key: known for key, known in self._known.items() if key in targets}
            self._forget_own()
        self.mark(targets)

    def keep(self, target: CheckTarget, outcome: CheckResult) -> None:
        """Record *outcome* for this worker alone, as the store fails."""
        with self._storing:
            before = self.known(target)
            health = record(before.health, outcome, self.now(), target.check)
            self._known[target.key] = StoredHealth(before.raw, health)
            self._own[target.key] = self._clock()
        self._pools[target.service].mark(target.instance.url, health.healthy)
        self._log_change(target, before.health, health)

    def share(self, targets: Mapping[str, CheckTarget]) -> None:
        """Write this worker's own results, unless the store has newer ones.

        Called by the holder of the lease, after :meth:`read`.

        :raises StoreError: The store failed; the remaining results can be shared later.
        """
        for key in list(self._own):
            target = targets.get(key)
            with self._storing:
                known = self._known.get(key, _NOTHING)
                if target is None or known.health is None or key not in self._own:
                    continue
                new = known.health.to_bytes()
                if self._store.swap(key, known.raw, new, _ttl(target.check)):
                    self._known[key] = StoredHealth(new, known.health)
                    self._own.pop(key, None)

    def _agreed(self, key: str, raw: bytes | None, before: StoredHealth) -> StoredHealth:
        """Return the newer one of the store's result and this worker's own."""
        stored = _decoded(raw, before)
        at = self._own.get(key)
        if at is None or before.health is None or self._ahead is None:
            return stored
        # the times may be from the wall clock, if the store's time was not known then
        moved = at + self._ahead - before.health.checked
        own = replace(
            before.health,
            since=max(0.0, before.health.since + moved),
            checked=max(0.0, before.health.checked + moved),
        )
        if stored.health is None or stored.health is before.health:
            return StoredHealth(raw, own)
        if stored.health.checked >= own.checked:
            del self._own[key]
            return stored
        return StoredHealth(raw, own)

    def _forget_own(self) -> None:
        for key in self._own.keys() - self._known.keys():
            del self._own[key]

    def write(self, target: CheckTarget, outcome: CheckResult, raw: bytes | None) -> None:
        """Write *outcome*, unless the lease is lost or the store's value is no longer *raw*.

        A process that was stopped during a check must not overwrite what its successor has found
        meanwhile.

        :param raw: The store's value when the check began.
        :raises StoreError: The store failed; the outcome is lost.
        """
        with self._storing:
            held, now = self._lease.held()
            if not held:
                return
            before = self.known(target).health
            health = record(before, outcome, now, target.check)
            new = health.to_bytes()
            if not self._store.swap(target.key, raw, new, _ttl(target.check)):
                return
            self._known[target.key] = StoredHealth(new, health)
            self._own.pop(target.key, None)
        self._log_change(target, before, health)

    def _log_change(self, target: CheckTarget, before: Health | None, health: Health) -> None:
        """Log a change of the verdict; an instance that is healthy from the start is none."""
        if health.healthy if before is None else before.healthy == health.healthy:
            return
        place, service, log = target.instance.address, target.service, self._changes.log
        if before is not None and health.healthy:
            lasted = health.checked - before.since
            log(INFO, place, "%s of %r is healthy again, after %.0f s", place, service, lasted)
        else:
            reason = one_line(health.last.error)
            log(WARNING, place, "%s of %r is unhealthy: %s", place, service, reason)


def _ttl(check: HealthCheck) -> float:
    return max(_LEAST_TTL, _INTERVALS_KEPT * check.interval)


def _decoded(raw: bytes | None, before: StoredHealth) -> StoredHealth:
    if raw == before.raw:
        return before
    if raw is None:
        return StoredHealth(None, before.health)
    try:
        return StoredHealth(raw, Health.from_bytes(raw))
    except ValueError:
        return StoredHealth(raw, before.health)


@lru_cache(maxsize=4096)
def _key(prefix: str, service: str, url: str) -> str:
    """Return the key of an instance's health; a key too long for a store becomes a hash."""
    key = f"{prefix}{quote(service, safe='')}/{url}"
    return key if len(key) <= 480 else f"{prefix}{sha256(key.encode()).hexdigest()}"
