"""The service registry: instances register, send heartbeats and are discovered."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

from wsgigate.auth.throttle import TokenGuard
from wsgigate.client.destinations import Destinations, Forbidden
from wsgigate.discovery.health_results import ProbeRunner
from wsgigate.registry.checks import RegistryChecks
from wsgigate.registry.expiry import REGISTRATIONS, LeaseExpiry
from wsgigate.registry.listing import Listing, ListingCache, LongPoll
from wsgigate.registry.storage import (
    KEPT,
    Action,
    Changes,
    Index,
    RegistryFull,
    RegistryKeys,
    version_in,
)
from wsgigate.rules.arguments import Range
from wsgigate.rules.registry import (
    BODY,
    Invalid,
    LeaseRules,
    Registered,
    Status,
    check_host,
    check_id,
    check_service,
)
from wsgigate.rules.registry_checks import RegisteredCheck, carried_over
from wsgigate.runtime.logs import ChangeLog
from wsgigate.store import Store, update
from wsgigate.telemetry.metrics import PROCESS, Counter, ObservableGauge, Reading

__all__ = [
    "LONGEST_WAIT",
    "Invalid",
    "InvalidAddress",
    "Listing",
    "Registry",
    "RegistryFull",
]


LOG = logging.getLogger("wsgigate.registry")

LONGEST_WAIT = 25.0
"""The most seconds that a request waits for a change."""


SERVICES = ObservableGauge("wsgigate_registry_services", "Services that are registered.")

INSTANCES = ObservableGauge(
    "wsgigate_registry_instances",
    "Registered instances by the status that they report; silent are those that report UP, but "
    "whose heartbeats stopped or whose checks fail.",
    ("status",),
)

PRESERVING = ObservableGauge(
    "wsgigate_registry_self_preservation",
    "1 while silent instances are kept, because too many are silent at once.",
)

RENEWALS = Counter("wsgigate_registry_renewals", "Heartbeats that renewed a lease.")


class InvalidAddress(Invalid):
    """The address of an instance is not allowed, or cannot be resolved."""


class Registry:
    """A service registry in a store, which all workers share and which survives restarts.

    The constructor opens and starts nothing. Every worker calls :meth:`start` for itself, after
    the fork; without it no lease expires.

    :param store: The store that the workers share.
    :param rules: The lease times and the limits of self-preservation.
    :param destinations: The addresses that instances may have. Default: loopback and private
        networks.
    :param most_services: The maximum number of services, up to 1000.
    :param most_instances: The maximum number of instances of all services together, up to 1000000.
    :param most_of_one: The maximum number of instances of one service, up to 500.
    :param prefix: The prefix of the keys in the store.
    :param prober: Carries out the HTTP and TCP checks of instances; without it, registrations with
        such checks are rejected. It must connect only to what *destinations* allows.
    :param clock: Returns monotonic seconds.
    :param random: Returns numbers in [0, 1), which spread the checks over time.
    :ivar expiry: Evicts instances that are silent; its thread runs while the registry is started.
    :ivar checks: Carries out the checks; ``None`` without *prober*.
    :ivar guard: Counts wrong tokens, for all APIs of this registry.
    :raises ValueError: A bound is out of range; the message names it.
    """

    def __init__(
        self,
        store: Store,
        *,
        rules: LeaseRules = LeaseRules(),  # noqa: B008 - it is frozen
        destinations: Destinations | None = None,
        most_services: Annotated[int, Range(1, 1_000)] = 1_000,
        most_instances: Annotated[int, Range(1, 1_000_000)] = 20_000,
        most_of_one: Annotated[int, Range(1, 500)] = 500,
        prefix: str = "registry/",
        prober: ProbeRunner | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        for name, bound, most in (
            ("most_services", most_services, 1_000),
            ("most_instances", most_instances, 1_000_000),
            ("most_of_one", most_of_one, 500),  # more of the longest ids are too long a value
        ):
            if not 1 <= bound <= most:
                raise ValueError(f"{name} must be 1 to {most}, got {bound}")
        self.rules = rules
        self.destinations = destinations or Destinations()
        self._store = store
        self._keys = RegistryKeys(prefix)
        self._index = Index(store, self._keys, most_services, most_of_one, most_instances)
        # parsed at each heartbeat, but rarely changed
        self._entry_of = lru_cache(maxsize=most_instances)(Registered.from_body)
        self._listings = ListingCache(
            store, self._keys, rules, most_services, self._entry_of, clock
        )
        self._change_log = ChangeLog(LOG)
        self.expiry = LeaseExpiry(store, self._keys, rules, self._index, self._change_log, clock)
        self._waits = LongPoll(self.version, clock=clock)
        self.checks = (
            None
            if prober is None
            else RegistryChecks(self, store, f"{prefix}checks", prober, clock=clock, random=random)
        )
        self.guard = TokenGuard(store, prefix=prefix)
        self._renewals = RENEWALS.labels()
        PROCESS.collect_from(self)

    def collect(self) -> Iterable[Reading]:
        """Return the numbers of services and instances, for the metrics."""
        listings = self.listings()
        counts = dict.fromkeys((*Status, "silent"), 0)
        for listing in listings.values():
            for entry in listing.instances:
                silent = entry.status is Status.UP and not entry.healthy(listing.now, self.rules)
                counts["silent" if silent else entry.status] += 1
        yield SERVICES.reading(len(listings))
        for status, count in counts.items():
            yield INSTANCES.reading(count, status.lower())
        preserving = any(listing.preserving for listing in listings.values())
        yield PRESERVING.reading(float(preserving))

    def start(self) -> None:
        """Start the background threads of this process: lease expiry and checks."""
        self.expiry.start()
        if self.checks is not None:
            self.checks.start()

    def stop(self) -> None:
        """Undo :meth:`start`."""
        if self.checks is not None:
            self.checks.stop()
        self.expiry.stop()

    def stopping(self) -> None:
        """End all waits for a change, and start no more: the process is about to exit."""
        self._waits.stop()

    def register(self, entry: Registered) -> Registered:
        """Register *entry*, or replace an existing entry and renew its lease.

        :returns: The entry as it is stored. An entry that existed with the same members keeps the
            time of its registration.
        :raises Invalid: A name, an id or a host is malformed, or a check is not allowed.
        :raises InvalidAddress: The address is not allowed, or the host name cannot be resolved.
        :raises RegistryFull: A bound of the registry is reached.
        :raises StoreError: The store failed; the instance may be registered or not.
        """
        service, instance_id = check_service(entry.service), check_id(entry.instance_id)
        host = check_host(entry.host)
        self._check_destination(host, entry.port)
        for check in entry.checks:
            if self.checks is None:
                raise Invalid("check", "not by HTTP or TCP: this registry carries out no checks")
            parts = urlsplit(check.url)
            self._check_destination(parts.hostname or "", parts.port or 80, "check")
        key = self._keys.instance(service, instance_id)

        def put(old: bytes | None, now: float) -> tuple[bytes, float, _Put]:
            before = None if old is None else self._entry_of(old[BODY])
            checks = entry.checks
            if checks and before is not None:
                checks = carried_over(checks, before.checks)
            new = replace(entry, host=host, checks=checks)
            if old is not None and before is not None:
                same = replace(new, registered_at=before.registered_at)
                if same.body() == old[BODY]:
                    silence = now - Registered.heartbeat_in(old)
                    changed = silence > before.unhealthy_after(self.rules)
                    put = _Put(before.heard(now), changed, None)
                    return Registered.renewed(old, now), KEPT, put
            new = replace(new, registered_at=now).heard(now)
            action = Action.ADDED if old is None else Action.MODIFIED
            return new.to_bytes(), KEPT, _Put(new, True, action)

        def renew(old: bytes | None, now: float) -> tuple[bytes | None, float, _Put | None]:
            return (old, 0.0, None) if old is None else put(old, now)

        done = None
        if self._store.get(key)[0] is not None:  # most stores read faster than they update
            done = update(self._store, key, renew)
        if done is None:
            self._index.reserve(service, instance_id)
            done = update(self._store, key, put)._replace(changed=True, action=Action.ADDED)
        self._listings.stale(service)
        REGISTRATIONS.labels("registered").add()
        if done.changed:
            what = "registered" if done.action is Action.ADDED else "registered anew"
            place = (done.entry.host, done.entry.port)
            self._publish(service, instance_id, done.action, "%s of %s %s at %s:%d", what, *place)
        return done.entry

    def deregister(self, service: str, instance_id: str) -> bool:
        """Remove an instance; return whether it existed.

        :raises StoreError: The store failed; the instance may be removed or not.
        """

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            return (old, 0.0, False) if old is None else (None, 0.0, True)

        if not _are_names(service, instance_id):
            return False
        key = self._keys.instance(service, instance_id)
        raw = self._store.get(key)[0]
        if raw is not None:
            self._index.log.keep(raw, service, instance_id)
        removed = update(self._store, key, change)
        if removed:
            REGISTRATIONS.labels("deregistered").add()
            self._index.remove(service, instance_id)
            self._waits.notify(service)
            self._log("%s of %s deregistered", instance_id, service)
        return removed

    def heartbeat(
        self, service: str, instance_id: str, status: Status | None = None
    ) -> Registered | None:
        """Renew the lease of an instance; return its entry, ``None`` if it is not registered.

        :param status: The new status of the instance. Default: unchanged.
        :raises StoreError: The store failed; the heartbeat may be lost.
        """

        def change(
            old: bytes | None, now: float
        ) -> tuple[bytes | None, float, tuple[bytes, float] | None]:
            if old is None:
                return old, 0.0, None
            if status is not None:
                entry = self._entry_of(old[BODY])
                if entry is None:
                    return old, 0.0, None
                if entry.status is not status:
                    new = replace(entry, status=status, last_heartbeat=now).to_bytes()
                    return new, KEPT, (new, float("inf"))
            new = Registered.renewed(old, now)
            return new, KEPT, (new, now - Registered.heartbeat_in(old))

        if not _are_names(service, instance_id):
            return None
        done = update(self._store, self._keys.instance(service, instance_id), change)
        if done is None:
            return None
        raw, silence = done
        self._renewals.add()
        self._listings.stale(service)
        entry = self._entry_of(raw[BODY])
        if entry is None:
            return None
        entry = entry.heard(Registered.heartbeat_in(raw))
        if silence > entry.unhealthy_after(self.rules):
            if silence == float("inf"):  # the status has changed
                message, what = "%s of %s is now %s", entry.status.value
                self._publish(service, instance_id, Action.MODIFIED, message, what)
            else:
                message = "%s of %s sends heartbeats again, after %.0f s of silence"
                self._publish(service, instance_id, None, message, silence)
        return entry

    @property
    def carries_out_checks(self) -> bool:
        """Whether instances may be registered with checks by HTTP and TCP."""
        return self.checks is not None

    def report(
        self, service: str, instance_id: str, check: RegisteredCheck, status: str, output: str
    ) -> Registered | None:
        """Store the result of a check of an instance; return its entry, ``None`` without one.

        A result also renews the lease, except that of an instance that sends its own heartbeats.

        :param check: The check as it was carried out. The result of a check that was replaced
            meanwhile is dropped.
        :raises StoreError: The store failed; the result is lost.
        """
        wanted = check.definition()

        def change(
            old: bytes | None, now: float
        ) -> tuple[bytes | None, float, tuple[Registered, bool, bool] | None]:
            entry = None if old is None else self._entry_of(old[BODY])
            if old is None or entry is None:
                return old, 0.0, None
            known = next((each for each in entry.checks if each.definition() == wanted), None)
            if known is None:
                return old, 0.0, None
            heard = Registered.heartbeat_in(old) if entry.reports else now
            if known.status == status and known.carried_out:
                return Registered.renewed(old, heard), KEPT, (entry.heard(heard), False, False)
            says = known.says(status, output, now)
            checks = tuple(says if each is known else each for each in entry.checks)
            new = replace(entry, checks=checks).heard(heard)
            return new.to_bytes(), KEPT, (new, True, new.state is not entry.state)

        if not _are_names(service, instance_id):
            return None
        done = update(self._store, self._keys.instance(service, instance_id), change)
        if done is None:
            return None
        entry, changed, became = done
        self._listings.stale(service)
        if changed:
            action, message = (
                Action.MODIFIED if became else None,
                "%s of %s: the check %r is %s: %s",
            )
            self._publish(service, instance_id, action, message, check.name, status, output)
        return entry

    def discover(
        self,
        service: str,
        *,
        only_healthy: bool = False,
        status: Status | None = None,
        tags: Iterable[str] = (),
        zone: str | None = None,
        version: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Listing:
        """Return the instances of *service* that match all filters.

        While the store fails, the listing is the one that this worker read last.

        :param only_healthy: Only instances with status UP whose lease has not expired.
        :param tags: Only instances that have all of these tags.
        :param metadata: Only instances with these members in their metadata, compared as text.
        :raises StoreError: The store failed, and this worker has not read the service before.
        """
        if not _are_names(service):
            return Listing((), 0, 0.0)
        listing, wanted = self._listing(service), frozenset(tags)
        entries: Iterable[Registered] = listing.instances
        if only_healthy:
            entries = [entry for entry in entries if entry.healthy(listing.now, self.rules)]
        if status is not None:
            entries = [entry for entry in entries if entry.state is status]
        if wanted:
            entries = [entry for entry in entries if wanted.issubset(entry.tags)]
        if zone is not None:
            entries = [entry for entry in entries if entry.zone == zone]
        if version is not None:
            entries = [entry for entry in entries if entry.version == version]
        for name, value in (metadata or {}).items():
            text = _text(value)
            entries = [entry for entry in entries if _text(entry.metadata.get(name)) == text]
        if entries is listing.instances:
            return listing
        found = tuple(entries)
        return listing if found == listing.instances else replace(listing, instances=found)

    def _listing(self, service: str) -> Listing:
        listing = self._listings.listing(service)
        if self.checks is None:
            return listing
        entries = self.checks.overlaid(listing.instances)
        return listing if entries is listing.instances else replace(listing, instances=entries)

    def listings(self) -> dict[str, Listing]:
        """Return the listing of every service that has instances, by its name.

        :raises StoreError: The store failed, and this worker has read nothing before.
        """
        found = {name: self._listing(name) for name in self._listings.names()}
        return {name: listing for name, listing in found.items() if listing.instances}

    def names(self) -> tuple[str, ...]:
        """Return the names of the services, sorted.

        :raises StoreError: The store failed, and this worker has read nothing before.
        """
        return self._listings.names()

    def services(self) -> dict[str, tuple[Registered, ...]]:
        """Return the instances of every service, by its name; as :meth:`listings` does."""
        return {name: listing.instances for name, listing in self.listings().items()}

    @property
    def changes(self) -> Changes:
        """The change log."""
        return self._index.log

    def known(self) -> dict[str, tuple[Registered, ...]]:
        """Return the instances that this worker has read, by service, without a store access."""
        checks = self.checks
        found = self._listings.known()
        if checks is None:
            return found
        return {name: checks.overlaid(entries) for name, entries in found.items()}

    def version(self, service: str | None = None) -> int:
        """Return the version of *service*, or with ``None`` of all services together.

        It changes with every change except a mere heartbeat.

        :raises StoreError: The store failed.
        """
        if service is None:
            return version_in(self._store.get(self._keys.total)[0])
        if not _are_names(service):
            return 0
        return version_in(self._store.get(self._keys.service(service))[0])

    def wait(self, service: str | None, version: int, timeout: float) -> int:
        """Return the version of *service* as soon as it is not *version*, or after *timeout*.

        :param timeout: Seconds to wait, at most 25.
        """
        if service is not None and not _are_names(service):
            return 0
        return self._waits.wait(service, version, min(max(timeout, 0.0), LONGEST_WAIT))

    def _publish(
        self, service: str, instance_id: str, action: Action | None, message: str, *args: object
    ) -> None:
        """Publish a change of an instance, wake the requests that wait for it, and log it."""
        self._index.publish(service, instance_id, action)
        self._waits.notify(service)
        self._log(message, instance_id, service, *args)

    def _log(self, message: str, instance_id: str, service: str, *args: object) -> None:
        """Log an event of an instance. Its names and host were validated: no line breaks."""
        subject = f"{service}/{instance_id}"
        self._change_log.log(logging.INFO, subject, message, instance_id, service, *args)

    def _check_destination(self, host: str, port: int, field: str = "host") -> None:
        try:
            self.destinations.resolve(host, port)
        except Forbidden as error:
            raise InvalidAddress(field, str(error)) from None
        except OSError:
            raise InvalidAddress(field, "a name that cannot be resolved") from None


class _Put(NamedTuple):
    """The outcome of a registration.

    :ivar entry: The entry as it is stored.
    :ivar changed: Whether discovery returns something else than before.
    :ivar action: The action for the change log, ``None`` if the entry is unchanged.
    """

    entry: Registered
    changed: bool
    action: Action | None


def _text(value: object) -> str | None:
    """Return *value* as a query writes it; ``None`` for a value that a query cannot write."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (str, int, float)) else None


def _are_names(service: str, instance_id: str = "0") -> bool:
    """Return whether the names are well-formed: no other text may become part of a key."""
    try:
        check_service(service)
        check_id(instance_id)
    except Invalid:
        return False
    return True
