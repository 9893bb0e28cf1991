"""The registry's layout in its store: keys, versions, indexes, bounds and the change log.

Theory of operation
===================

Layout, below the registry's prefix:

==================== ===========================================================================
``i/SERVICE/ID``     an entry, preceded by the 8-byte time of its last heartbeat
``s/SERVICE``        the version of a service, and the ids of its instances
``names``            the names of the services
``all``              the version of all services together, and the number of instances
``swept``            when leases were last checked, and the periods in which no worker did
``leader``           the lease of the worker that expires leases
``checks``           the lease of the worker that carries out checks
``c/BUCKET/PAGE``    the changes of 15 seconds, one a line: ``D users/users-1``
``c/since``          since when changes are recorded
``d/SERVICE/ID``     the entry of an instance that was removed, as it was
==================== ===========================================================================

A store has atomic updates of single keys, no transactions over several, and any process may be
killed between two writes. The entry (``i/``) is therefore the truth, and everything else is an
index of it that can be repaired. These rules must hold:

1. A heartbeat writes one key, the entry, and changes its first 8 bytes only. It changes no
   version: a reader that knows the version has all of the rest.
2. A change is written in the order entry, change log, service, names, total. Versions come after
   what they describe. In the opposite order, a reader could keep old data under a new version,
   and would never read it again.
3. A version never returns, not even after a service was forgotten: it is at least the store's
   time in milliseconds (:func:`next_version`). Otherwise a client that waits for another version
   than the one that it has seen would miss a change.
4. A process that adds an id reads the entry once more afterwards, and so does a process that
   removes one. Of two processes that work on the same instance at the same time, the later one
   sees the other's write and corrects the index.
5. The process whose write adds an id to ``s/SERVICE`` counts the instance in ``all``, and the
   process whose write removes the id subtracts it. No other process does, so the bounds hold.
   Where a process was killed in between, the next sweep recounts (:meth:`Index.recount`) and adds
   entries that no index lists (:mod:`wsgigate.registry.expiry`).

The change log serves Eureka clients, which fetch everything once and a delta every 30 seconds.
Some compare a hash code and fetch everything again when it differs; others (eureka-js-client)
rely on the deltas alone, and keep a dead instance for ever if one deletion is missing. A worker
must therefore not answer from what it happened to see itself: the worker that makes a change
records it in the store. All keys of the log expire a little later than a delta reaches back, and:

6. The copy of a removed entry (``d/``) is written before the entry is removed. A process that is
   killed in between leaves a copy of an instance that still exists, which is never read.
7. A change is recorded before the version of all services changes. A reader that reads a version
   and then the log finds every change that led to this version.
8. A page is a set: it records which instances changed, not in which order. The state of an
   instance is its entry now, or its copy from when it was removed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from wsgigate.rules.registry import Evictions, Registered
from wsgigate.store import Store, get_all, update

__all__ = [
    "EMPTY",
    "KEPT",
    "REACH",
    "Action",
    "Changes",
    "ExpiryState",
    "Index",
    "InstanceName",
    "RecordedChanges",
    "RegistryFull",
    "RegistryKeys",
    "ServiceIndex",
    "Total",
    "is_same",
    "next_version",
    "split",
    "version_in",
]


# Keys and values.

KEPT = 366 * 86_400.0
"""Seconds for which the store keeps the keys of a registry that no longer runs."""

EMPTY = 60.0
"""Seconds for which the version of a service without instances is kept, for waiting requests."""

_VERSION = struct.Struct(">Q")

_TOTAL = struct.Struct(">QI")

_MOST_AWAY = 16


class RegistryKeys:
    """The keys of the registry under a prefix."""

    def __init__(self, prefix: str) -> None:
        self.names = prefix + "names"
        self.total = prefix + "all"
        self.swept = prefix + "swept"
        self.leader = prefix + "leader"
        self.changes_since = prefix + "c/since"
        self.services = prefix + "s/"
        self.instances = prefix + "i/"
        self._prefix = prefix

    def service(self, service: str) -> str:
        """Return the key of the version and the ids of *service*."""
        return self.services + service

    def instance(self, service: str, instance_id: str) -> str:
        """Return the key of an entry."""
        return f"{self.instances}{service}/{instance_id}"

    def changes(self, bucket: int, page: int) -> str:
        """Return the key of a page of a bucket of the change log."""
        return f"{self._prefix}c/{bucket}/{page}"

    def removed(self, service: str, instance_id: str) -> str:
        """Return the key of the copy of a removed entry."""
        return f"{self._prefix}d/{service}/{instance_id}"


class ServiceIndex(NamedTuple):
    """The version of a service, and the ids of its instances."""

    version: int = 0
    ids: tuple[str, ...] = ()

    @classmethod
    def read(cls, raw: bytes | None) -> ServiceIndex:
        """Parse the value of ``s/SERVICE``."""
        if raw is None or len(raw) < _VERSION.size:
            return cls()
        return cls(_VERSION.unpack_from(raw)[0], split(raw[_VERSION.size :]))

    def to_bytes(self) -> bytes:
        """Return the bytes that :meth:`read` parses."""
        return _VERSION.pack(self.version) + join(self.ids)


class Total(NamedTuple):
    """The version of all services together, and the number of their instances."""

    version: int = 0
    instances: int = 0

    @classmethod
    def read(cls, raw: bytes | None) -> Total:
        """Parse the value of ``all``."""
        return cls() if raw is None or len(raw) != _TOTAL.size else cls(*_TOTAL.unpack(raw))

    def to_bytes(self) -> bytes:
        """Return the bytes that :meth:`read` parses."""
        return _TOTAL.pack(*self)


class ExpiryState(NamedTuple):
    """The state of lease expiry, shared by all workers.

    :ivar at: When leases were last checked.
    :ivar away: The periods, start and end, in which no worker checked them.
    :ivar evictions: The number of instances evicted in the current minute.
    :ivar preserving: Whether self-preservation is active: too many instances are silent to evict
        them.
    """

    at: float
    away: tuple[tuple[float, float], ...] = ()
    evictions: Evictions = Evictions()
    preserving: bool = False

    @classmethod
    def read(cls, raw: bytes | None) -> ExpiryState | None:
        """Parse the value of ``swept``; return ``None`` if there is none or it is malformed."""
        if raw is None:
            return None
        try:
            at, away, (since, gone), preserving = json.loads(raw)
            periods = tuple((float(start), float(end)) for start, end in away)
            evictions = Evictions(float(since), int(gone))
            return cls(float(at), periods, evictions, preserving is True)
        except (ValueError, TypeError):
            return None

    def to_bytes(self) -> bytes:
        """Return the bytes that :meth:`read` parses."""
        members = [self.at, self.away[-_MOST_AWAY:], self.evictions, self.preserving]
        return json.dumps(members).encode("ascii")


def version_in(raw: bytes | None) -> int:
    """Return the version at the start of *raw*, the value of ``s/SERVICE`` or ``all``."""
    if raw is None or len(raw) < _VERSION.size:
        return 0
    version: int = _VERSION.unpack_from(raw)[0]
    return version


def next_version(version: int, now: float) -> int:
    """Return a version greater than *version* and than every version used before.

    A version is at least the current time in milliseconds, so that the versions of a service that
    was forgotten are not used again.
    """
    return max(version + 1, int(now * 1000))


def split(raw: bytes | None) -> tuple[str, ...]:
    """Return the names in *raw*, as :func:`join` writes them."""
    return tuple(raw.decode("ascii").split("\n")) if raw else ()


def join(words: Iterable[str]) -> bytes:
    """Return *words* as bytes that :func:`split` parses."""
    return "\n".join(words).encode("ascii")


# The change log.

REACH = 180.0
"""Seconds of changes that a delta covers: Eureka's own value, six times its polling interval."""

BUCKET = 15.0
"""Seconds of changes under one key."""

PAGE_BYTES = 3 * 1024
"""The largest page, about sixty changes; more are on further pages. Pages are small because each
change rewrites one."""

PAGES = 320
"""The most pages of a bucket, about twenty thousand changes; more are not recorded one by one."""

_AT_ONCE = 8
"""The number of pages of a bucket that are read in one step."""

_KEPT = REACH + 2 * BUCKET

_OVERFLOW = b"*\n"

InstanceName: TypeAlias = tuple[str, str]


class Action(StrEnum):
    """What happened to an instance, in the terms of Eureka."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


_ACTIONS = {action.value[0]: action for action in Action}


class RecordedChanges(NamedTuple):
    """The changes of the last :data:`REACH` seconds.

    :ivar actions: The actions of each instance, by service and id, in no order.
    :ivar complete: Whether these are all changes of that period. ``False`` while the log is
        younger than :data:`REACH`, and after more changes than it holds.
    :ivar bucket: The bucket at the time of reading; in a later bucket, old changes are left out.
    """

    actions: Mapping[InstanceName, frozenset[Action]]
    complete: bool
    bucket: int


class Changes:
    """The change log of a registry."""

    def __init__(self, store: Store, keys: RegistryKeys) -> None:
        self._store = store
        self._keys = keys
        self._begun = False
        self._written = (0, 0)

    def begin(self) -> float:
        """Record since when the log exists, unless that is recorded; return the store's time."""
        raw, now = self._store.get(self._keys.changes_since)
        if raw is None:
            self._store.swap(self._keys.changes_since, None, repr(now).encode(), KEPT)
        self._begun = True
        return now

    def note(self, action: Action, service: str, instance_id: str) -> None:
        """Record *action* for an instance.

        :raises StoreError: The store failed.
        """
        now = self._store.get(self._keys.total)[1] if self._begun else self.begin()
        bucket, line = int(now // BUCKET), f"{action[0]} {service}/{instance_id}\n".encode()

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            lines = old or b""
            if line in lines:  # only whole lines match: a line's one space follows its first letter
                return old, 0.0, True
            if len(lines) + len(line) > PAGE_BYTES:
                return old, 0.0, False
            return lines + line, _KEPT, True

        # pages before the one that was written last are full
        written = self._written
        for page in range(written[1] if written[0] == bucket else 0, PAGES):
            if update(self._store, self._keys.changes(bucket, page), change):
                self._written = bucket, page
                return
        key = self._keys.changes(bucket, PAGES)
        update(self._store, key, lambda old, now: (_OVERFLOW, _KEPT, None))

    def keep(self, raw: bytes, service: str, instance_id: str) -> None:
        """Store a copy of *raw*, the entry of an instance that is about to be removed.

        Of an instance that is removed twice, only the second copy is kept. A client may have the
        first entry, so if the two differ, a change is recorded that makes the client replace it.

        :raises StoreError: The store failed.
        """

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            return raw, _KEPT, old is not None and not _are_alike(old, raw)

        if update(self._store, self._keys.removed(service, instance_id), change):
            self.note(Action.MODIFIED, service, instance_id)

    def bucket(self) -> int:
        """Return the current bucket. The changes are the same while it and the version are.

        :raises StoreError: The store failed.
        """
        return int(self._store.get(self._keys.total)[1] // BUCKET)

    def read(self) -> RecordedChanges:
        """Return the changes of the last :data:`REACH` seconds.

        :raises StoreError: The store failed.
        """
        since, now = self._store.get(self._keys.changes_since)
        last = int(now // BUCKET)
        open_buckets = list(range(int((now - REACH) // BUCKET), last + 1))
        actions: dict[InstanceName, frozenset[Action]] = {}
        complete = since is not None and now - _moment(since, now) >= REACH
        first = 0
        while open_buckets and first <= PAGES:
            pages = range(first, min(first + _AT_ONCE, PAGES + 1))
            places = [(bucket, page) for bucket in open_buckets for page in pages]
            raws = get_all(self._store, [self._keys.changes(*place) for place in places])
            for raw in raws:
                complete = complete and raw != _OVERFLOW
                for service, instance_id, done in _lines(raw):
                    known = actions.get((service, instance_id), frozenset())
                    actions[service, instance_id] = known | {done}
            ends = raws[len(pages) - 1 :: len(pages)]
            open_buckets = [
                bucket for bucket, raw in zip(open_buckets, ends, strict=True) if raw is not None
            ]
            first += _AT_ONCE
        return RecordedChanges(actions, complete, last)

    def removed(self, names: list[InstanceName]) -> list[Registered | None]:
        """Return the copies of removed entries, ``None`` for each that is not known.

        :raises StoreError: The store failed.
        """
        raws = get_all(self._store, [self._keys.removed(*name) for name in names])
        return [None if raw is None else Registered.from_bytes(raw) for raw in raws]


def _lines(raw: bytes | None) -> Iterator[tuple[str, str, Action]]:
    for line in (raw or b"").decode("ascii").splitlines():
        letter, _, name = line.partition(" ")
        service, _, instance_id = name.partition("/")
        if letter in _ACTIONS:
            yield service, instance_id, _ACTIONS[letter]


def _are_alike(one: bytes, other: bytes) -> bool:
    """Return whether two entries, as bytes, are equal except for their times."""
    before, after = Registered.from_bytes(one), Registered.from_bytes(other)
    return before is not None and after is not None and is_same(before, after)


def is_same(one: Registered, other: Registered) -> bool:
    """Return whether two entries are equal except for their times."""
    return replace(one, registered_at=0.0, last_heartbeat=0.0) == replace(
        other, registered_at=0.0, last_heartbeat=0.0
    )


def _moment(raw: bytes, now: float) -> float:
    try:
        return float(raw)
    except ValueError:
        return now


class RegistryFull(Exception):
    """A bound of the registry is reached; the message names the bound."""


class Index:
    """The names of services and the ids of instances in the store, with their versions.

    Several processes change the index at once, and each may be killed between two steps; rules 4
    and 5 at the head of this module keep it correct.

    :param most_services: The largest number of services.
    :param most_of_one: The largest number of instances of one service.
    :param most_in_all: The largest number of instances of all services together.
    :ivar log: The change log.
    """

    def __init__(
        self,
        store: Store,
        keys: RegistryKeys,
        most_services: int,
        most_of_one: int,
        most_in_all: int,
    ) -> None:
        self.log = Changes(store, keys)
        self._store = store
        self._keys = keys
        self._most_services = most_services
        self._most_of_one = most_of_one
        self._most_in_all = most_in_all

    def names(self) -> tuple[str, ...]:
        """Return the names of the services, sorted."""
        return split(self._store.get(self._keys.names)[0])

    def service(self, name: str) -> ServiceIndex:
        """Return the version and the ids of the service *name*."""
        return ServiceIndex.read(self._store.get(self._keys.service(name))[0])

    def reserve(self, name: str, instance_id: str) -> None:
        """Reserve room for one more instance.

        :raises RegistryFull: A bound is reached.
        """
        self._add_name(name)
        try:
            self._count(1)
            try:
                if not self._add_id(name, instance_id):
                    self._count(-1)  # another process is registering the same instance
            except RegistryFull:
                self._count(-1)
                raise
        except RegistryFull:
            self._tidy(name)
            raise

    def publish(
        self, name: str, instance_id: str | None = None, action: Action | None = None
    ) -> None:
        """Publish a change of an existing instance, or of the service as a whole.

        :param action: What happened to the instance; ``None`` if only its health has changed.
        """
        if instance_id is not None and action is not None:
            self.log.note(action, name, instance_id)

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            version, ids = ServiceIndex.read(old)
            adding = instance_id is not None and instance_id not in ids
            if instance_id is not None and adding:
                ids = tuple(sorted((*ids, instance_id)))
            new = ServiceIndex(next_version(version, now), ids).to_bytes()
            return new, KEPT if ids else EMPTY, adding

        added = update(self._store, self._keys.service(name), change)
        if instance_id is not None:
            self._add_name(name, bounded=False)
        self._count(1 if added else 0, bounded=False)  # last: it announces all other writes
        if instance_id is not None and not self._is_there(name, instance_id):
            # removed meanwhile, by a process that did not see what was written here
            self.remove(name, instance_id)

    def remove(self, name: str, instance_id: str) -> None:
        """Remove an instance whose entry is gone from the index, and publish that."""

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            version, ids = ServiceIndex.read(old)
            left = tuple(each for each in ids if each != instance_id)
            new = ServiceIndex(next_version(version, now), left).to_bytes()
            return new, KEPT if left else EMPTY, len(left) < len(ids)

        self.log.note(Action.DELETED, name, instance_id)
        removed = update(self._store, self._keys.service(name), change)
        again = self._is_there(name, instance_id)
        if not again:
            self._tidy(name)
        self._count(-1 if removed else 0)
        if again:
            self.publish(name, instance_id, Action.ADDED)  # it has registered again meanwhile

    def recount(self, before: Total, instances: int) -> None:
        """Correct the number of instances, unless the total has changed since *before* was read."""

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, None]:
            if old is None or Total.read(old) != before or before.instances == instances:
                return old, 0.0, None
            return Total(before.version, instances).to_bytes(), KEPT, None

        update(self._store, self._keys.total, change)

    def total(self) -> Total:
        """Return the version of all services together, and the number of instances."""
        return Total.read(self._store.get(self._keys.total)[0])

    def _is_there(self, name: str, instance_id: str) -> bool:
        return self._store.get(self._keys.instance(name, instance_id))[0] is not None

    def _add_id(self, name: str, instance_id: str) -> bool:
        most = self._most_of_one

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool | None]:
            version, ids = ServiceIndex.read(old)
            if instance_id in ids:
                return old, 0.0, False
            if len(ids) >= most:
                return old, 0.0, None
            return ServiceIndex(version, tuple(sorted((*ids, instance_id)))).to_bytes(), KEPT, True

        added = update(self._store, self._keys.service(name), change)
        if added is None:
            raise RegistryFull(f"a service has at most {most} instances")
        return added

    def _add_name(self, name: str, *, bounded: bool = True) -> None:
        most = self._most_services

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            names = split(old)
            if name in names:
                return old, 0.0, True
            if bounded and len(names) >= most:
                return old, 0.0, False
            return join(sorted((*names, name))), KEPT, True

        if name in split(self._store.get(self._keys.names)[0]):
            return  # most often: a read takes less than an update
        if not update(self._store, self._keys.names, change):
            raise RegistryFull(f"there are at most {most} services")

    def _tidy(self, name: str) -> None:
        """Remove the name of a service that has no instances."""

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, None]:
            names = split(old)
            if name not in names:
                return old, 0.0, None
            return join(each for each in names if each != name), KEPT, None

        if not self.service(name).ids:
            update(self._store, self._keys.names, change)
            if self.service(name).ids:
                self._add_name(name, bounded=False)

    def _count(self, more: int, *, bounded: bool = True) -> None:
        """Add *more* to the number of instances, and give all services together a new version."""
        most = self._most_in_all if bounded else float("inf")

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            version, instances = Total.read(old)
            if more > 0 and instances + more > most:
                return old, 0.0, False
            new = Total(next_version(version, now), max(0, instances + more))
            return new.to_bytes(), KEPT, True

        if not update(self._store, self._keys.total, change):
            raise RegistryFull(f"there are at most {most} instances in all")
