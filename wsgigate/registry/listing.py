"""Listings of services, cached in each worker and read again when their version changes.

Requests that wait for such a change (long polling) wait here; one of them reads the version for all
of them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from wsgigate.registry.storage import ExpiryState, RegistryKeys, ServiceIndex, split
from wsgigate.rules.registry import (
    BODY,
    LeaseRules,
    Registered,
    short_absence,
    silent_since,
)
from wsgigate.runtime import fork
from wsgigate.store import Store, StoreError, get_all

__all__ = ["Listing", "ListingCache", "LongPoll"]


@dataclass(frozen=True, slots=True)
class Listing:
    """The instances of a service.

    :ivar instances: The entries, sorted by id.
    :ivar version: Changes with every change except a mere heartbeat.
    :ivar now: The time at which leases are judged, by the store's clock.
    :ivar age: Seconds since the store was last read; more than 0 only while it fails.
    :ivar preserving: Whether self-preservation is active: most instances are kept although their
        leases have expired. A client that finds no healthy instance should use the others.
    """

    instances: tuple[Registered, ...]
    version: int
    now: float
    age: float = 0.0
    preserving: bool = False


class _CachedListing(NamedTuple):
    raw: bytes | None
    read: float
    seen: float
    version: int
    entries: tuple[Registered, ...]
    of: dict[bytes, Registered]


class _Sweep(NamedTuple):
    read: float
    swept: ExpiryState | None
    preserving: bool


class ListingCache:
    """Reads listings, and caches them.

    A cached listing whose version is unchanged is used for up to a second: only heartbeat times
    can have changed. While the store fails, cached listings are used without a limit of age.

    :param most: The largest number of cached services.
    :param entry_of: As :meth:`.Registered.from_body`.
    :param clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        keys: RegistryKeys,
        rules: LeaseRules,
        most: int,
        entry_of: Callable[[bytes], Registered | None] = Registered.from_body,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._keys = keys
        self._rules = rules
        self._most = most
        self._entry_of = entry_of
        self._clock = clock
        self._fresh = min(1.0, rules.heartbeat / 2, (rules.unhealthy_after - rules.heartbeat) / 2)
        self._known: dict[str, _CachedListing] = {}
        self._names: tuple[str, ...] | None = None
        self._sweep = _Sweep(float("-inf"), None, False)

    def listing(self, service: str) -> Listing:
        """Return all instances of *service*.

        :raises StoreError: The store failed, and *service* is not cached.
        """
        known = self._known.get(service)
        try:
            raw, now = self._store.get(self._keys.service(service))
            sweep = self._expiry_state(now)
            known = self._known.get(service)
            if known is None or raw != known.raw or not 0 <= now - known.read < self._fresh:
                known = self._read(service, raw, now, known, sweep.swept)
        except StoreError:
            if known is None:
                raise
            age = max(0.0, self._clock() - known.seen)
            return Listing(known.entries, known.version, known.read, age, self._sweep.preserving)
        return Listing(
            known.entries,
            known.version,
            judged(now, sweep.swept, self._rules),
            0.0,
            sweep.preserving,
        )

    def known(self) -> dict[str, tuple[Registered, ...]]:
        """Return the cached instances, by service, without a store access."""
        return {name: known.entries for name, known in list(self._known.items())}

    def stale(self, service: str) -> None:
        """Mark the cached listing of *service* as stale: this process has changed an entry."""
        known = self._known.get(service)
        if known is not None:
            self._known[service] = known._replace(read=float("-inf"))

    def names(self) -> tuple[str, ...]:
        """Return the names of the services; while the store fails, those that are cached.

        :raises StoreError: The store failed, and no names are cached.
        """
        try:
            self._names = split(self._store.get(self._keys.names)[0])
        except StoreError:
            if self._names is None:
                raise
            return tuple(name for name in self._names if name in self._known)
        return self._names

    def _read(
        self,
        service: str,
        raw: bytes | None,
        now: float,
        before: _CachedListing | None,
        swept: ExpiryState | None,
    ) -> _CachedListing:
        if raw is None:
            self._known.pop(service, None)
            return _CachedListing(None, now, self._clock(), 0, (), {})
        version, ids = ServiceIndex.read(raw)
        away = swept.away if swept is not None else ()
        values = get_all(self._store, [self._keys.instance(service, each) for each in ids])
        same = before.of if before is not None else {}  # most entries are unchanged
        found: dict[bytes, Registered] = {}
        for value in values:
            if value is not None:
                entry = same.get(value) or self._entry(value, away)
                if entry is not None:
                    found[value] = entry
        known = _CachedListing(raw, now, self._clock(), version, tuple(found.values()), found)
        while len(self._known) >= self._most and service not in self._known:
            for oldest in list(self._known)[:1]:  # a copy, as other threads change the mapping
                self._known.pop(oldest, None)
        self._known[service] = known
        return known

    def _entry(self, raw: bytes, away: Iterable[tuple[float, float]]) -> Registered | None:
        entry = self._entry_of(raw[BODY])
        if entry is None:
            return None
        heartbeat = Registered.heartbeat_in(raw)
        return entry.heard(heartbeat, silent_since(heartbeat, away) if away else None)

    def _expiry_state(self, now: float) -> _Sweep:
        """Return the state of lease expiry, read at most once a second."""
        sweep = self._sweep
        if not 0 <= now - sweep.read < 1.0:
            swept = ExpiryState.read(self._store.get(self._keys.swept)[0])
            if swept is not None and (sweep.swept is None or swept.away != sweep.swept.away):
                self._known.clear()  # the silence of an instance counts from another time
            sweep = self._sweep = _Sweep(now, swept, swept is not None and swept.preserving)
        return sweep


def judged(now: float, swept: ExpiryState | None, rules: LeaseRules) -> float:
    """Return the time at which leases are judged: it stops while no worker checks the leases."""
    return now if swept is None else min(now, swept.at + short_absence(rules))


class LongPoll:
    """Threads that wait for the versions of services, with one read of the store for all of them.

    :param look: Returns the current version of a service, with ``None`` of all services together.
    :param every: Seconds between two reads of the same version; a change made in this process
        wakes the waiting threads at once.
    :param clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        look: Callable[[str | None], int],
        *,
        every: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._every = every
        self._clock = clock
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Start without waiting threads: those of the parent do not exist in the child."""
        self._changed = threading.Condition()
        self._waiting: Counter[str | None] = Counter()
        self._seen: dict[str | None, tuple[float, int]] = {}
        self._looking: set[str | None] = set()
        self._stopped = False

    @property
    def waiting(self) -> int:
        """The number of threads that are blocked until a version changes."""
        with self._changed:
            return self._waiting.total() - len(self._looking)

    def wait(self, service: str | None, version: int, timeout: float) -> int:
        """Return the version of *service* as soon as it is not *version*, or after *timeout*.

        While the store fails, the version counts as unchanged.
        """
        end = self._clock() + timeout
        with self._changed:
            self._waiting[service] += 1
            try:
                while True:
                    now = self._clock()
                    looked, found = self._seen.get(service, (float("-inf"), version))
                    if now - looked >= self._every and service not in self._looking:
                        found = self._look_again(service, found)
                    if found != version or now >= end or self._stopped:
                        return found
                    self._changed.wait(min(self._every, end - now))
            finally:
                self._waiting[service] -= 1
                if not self._waiting[service]:
                    del self._waiting[service]
                    self._seen.pop(service, None)

    def notify(self, service: str) -> None:
        """Wake the threads that wait for *service*; they read the version again."""
        if self._waiting:
            with self._changed:
                self._seen.pop(service, None)
                self._seen.pop(None, None)
                self._changed.notify_all()

    def stop(self) -> None:
        """End all waits, and start no more: the process is stopping."""
        self._stopped = True
        with self._changed:
            self._changed.notify_all()

    def _look_again(self, service: str | None, known: int) -> int:
        self._looking.add(service)
        self._changed.release()
        try:
            found = self._look(service)
        except StoreError:
            found = known
        finally:
            self._changed.acquire()
            self._looking.discard(service)
        self._seen[service] = (self._clock(), found)
        self._changed.notify_all()
        return found
