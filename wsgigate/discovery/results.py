"""What is known of the health of instances: written by the worker that checks, read by all."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple, Protocol
from urllib.parse import quote

from wsgigate import process
from wsgigate.discovery import Instance
from wsgigate.discovery.lease import Lease
from wsgigate.rules.health import Health, HealthCheck, Outcome, record
from wsgigate.store import Store

__all__ = ["Known", "Markable", "Results", "Target"]

LOG = logging.getLogger("wsgigate.health")

_LEAST_TTL = 300.0
_INTERVALS_KEPT = 10


class Markable(Protocol):
    """What is wanted of a pool: who is in it, and a way to say who is well."""

    @property
    def instances(self) -> Iterable[Instance]:
        """The instances in it at the moment."""

    def mark(self, url: str, healthy: bool) -> None:
        """Take note of whether the instance at *url* is healthy."""


class Target(NamedTuple):
    """One instance, how it is checked, and the key its health is kept under."""

    key: str
    service: str
    instance: Instance
    check: HealthCheck


class Known(NamedTuple):
    """The health of an instance, and the bytes of it that are in the store."""

    raw: bytes | None
    health: Health | None


_NOTHING = Known(None, None)


class Results:
    """The health of the instances in *pools*, as it was last read from the store.

    :param pools: By service; their instances may change at any time.
    :param checks: How a service is checked, by service.
    :param store: Where the workers meet.
    :param lease: Whoever holds it may write.
    :param prefix: What the keys in the store begin with.
    """

    def __init__(
        self,
        pools: Mapping[str, Markable],
        checks: Mapping[str, HealthCheck],
        store: Store,
        lease: Lease,
        *,
        prefix: str,
    ) -> None:
        self.store_now = 0.0
        """The store's time when it was last read."""
        self._pools = pools
        self._checks = checks
        self._store = store
        self._lease = lease
        self._prefix = prefix
        self._known: dict[str, Known] = {}
        self._storing = threading.Lock()
        self._pid = process.pid

    def after_fork(self) -> None:
        """Make good what a thread of the parent may have held, if this is another process."""
        if self._pid != process.pid:
            self._storing, self._pid = threading.Lock(), process.pid

    def targets(self) -> dict[str, Target]:
        """Return what is to be checked at the moment, by key."""
        targets = (
            Target(_key(self._prefix, service, instance.url), service, instance, check)
            for service, check in self._checks.items()
            for instance in self._pools[service].instances
        )
        return {target.key: target for target in targets}

    def known(self, target: Target) -> Known:
        """Return what is known of *target*."""
        return self._known.get(target.key, _NOTHING)

    def healths(self, service: str) -> dict[str, Health | None]:
        """Return the health of each instance of *service*, by URL."""
        known = self._known
        return {
            instance.url: known.get(_key(self._prefix, service, instance.url), _NOTHING).health
            for instance in self._pools[service].instances
        }

    def read(self, targets: Mapping[str, Target]) -> None:
        """Read what is known of *targets*, forget all others, and mark the pools.

        What has vanished from the store, or can not be understood, stays as it was last known.

        :raises StoreError: The store failed; nothing has changed.
        """
        with self._storing:  # else what is read could replace what is written meanwhile
            # one by one: a store on the network would look through all its keys for a prefix
            found = {key: self._store.get(key)[0] for key in targets}
            _, self.store_now = self._store.get(self._lease.key)
            before = self._known
            known = {key: _decoded(found.get(key), before.get(key, _NOTHING)) for key in targets}
            self._known = known
        for key, target in targets.items():
            health = known[key].health
            if health is not None:
                self._pools[target.service].mark(target.instance.url, health.healthy)

    def write(self, target: Target, outcome: Outcome, raw: bytes | None) -> None:
        """Make *outcome* known, unless another leads by now, or has written since *raw* was read.

        A process that was stopped in the middle of a check must not write over what its successor
        found meanwhile.

        :param raw: What was in the store when the check began.
        :raises StoreError: The store failed; the outcome is lost.
        """
        with self._storing:
            held, now = self._lease.held()
            if not held:
                return
            before = self.known(target).health
            health = record(before, outcome, now, target.check)
            new = health.to_bytes()
            ttl = max(_LEAST_TTL, _INTERVALS_KEPT * target.check.interval)
            if not self._store.swap(target.key, raw, new, ttl):
                return
            self._known[target.key] = Known(new, health)
        if before is None or before.healthy != health.healthy:
            _tell(target, health)


def _tell(target: Target, health: Health) -> None:
    if health.healthy:
        LOG.info("%s of %s is healthy", target.instance.url, target.service)
    else:
        reason = health.last.error
        LOG.warning("%s of %s is unhealthy: %s", target.instance.url, target.service, reason)


def _decoded(raw: bytes | None, before: Known) -> Known:
    if raw == before.raw:
        return before
    if raw is None:
        return Known(None, before.health)
    try:
        return Known(raw, Health.from_bytes(raw))
    except ValueError:
        return Known(raw, before.health)


@lru_cache(maxsize=4096)
def _key(prefix: str, service: str, url: str) -> str:
    """Return the key of an instance's health; one too long for a store is shortened to a hash."""
    key = f"{prefix}{quote(service, safe='')}/{url}"
    return key if len(key) <= 480 else f"{prefix}{sha256(key.encode()).hexdigest()}"
