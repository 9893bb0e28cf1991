"""Which instances of which services there are, by name, and how many: the bounds are kept here."""

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
    "Action",
    "Changes",
    "EMPTY",
    "Full",
    "Index",
    "KEPT",
    "Keys",
    "Noted",
    "REACH",
    "Service",
    "Swept",
    "Total",
    "is_same",
    "next_version",
]


# How the registry lies in its store.
#
# ==================== ===============================================================
# ``i/SERVICE/ID``     an entry, and first the moment of its last heartbeat
# ``s/SERVICE``        the version of a service, and the ids of its instances
# ``names``            the names of the services
# ``all``              the version of all services together, and how many instances
# ``swept``            when leases were last looked after, and when nobody did
# ``leader``           the lease of who looks after them
# ``checks``           the lease of who carries out checks
# ``c/...``            what has changed of late, see :mod:`.registry_changes`
# ``d/SERVICE/ID``     an entry that was removed of late
# ==================== ===============================================================
#
# A heartbeat writes one small value, whose bytes but the first eight stay as they are. Whoever
# changes what is discovered writes the entry first and the versions then, so that nobody keeps
# what is old under a version that is new.

KEPT = 366 * 86_400.0
"""Seconds for which the store keeps what belongs to a registry that nobody runs."""

EMPTY = 60.0
"""Seconds for which the version of a service without instances is kept, for those who wait."""

_VERSION = struct.Struct(">Q")

_TOTAL = struct.Struct(">QI")

_MOST_AWAY = 16


class Keys:
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
        """Return the key of a page of the changes of some seconds."""
        return f"{self._prefix}c/{bucket}/{page}"

    def removed(self, service: str, instance_id: str) -> str:
        """Return the key of an entry that was removed."""
        return f"{self._prefix}d/{service}/{instance_id}"


class Service(NamedTuple):
    """The version of a service, and the ids of its instances."""

    version: int = 0
    ids: tuple[str, ...] = ()

    @classmethod
    def read(cls, raw: bytes | None) -> Service:
        """Return what is in *raw*."""
        if raw is None or len(raw) < _VERSION.size:
            return cls()
        return cls(_VERSION.unpack_from(raw)[0], split(raw[_VERSION.size :]))

    def to_bytes(self) -> bytes:
        """Return what :meth:`read` reads."""
        return _VERSION.pack(self.version) + join(self.ids)


class Total(NamedTuple):
    """The version of all services together, and how many instances they have."""

    version: int = 0
    instances: int = 0

    @classmethod
    def read(cls, raw: bytes | None) -> Total:
        """Return what is in *raw*."""
        return cls() if raw is None or len(raw) != _TOTAL.size else cls(*_TOTAL.unpack(raw))

    def to_bytes(self) -> bytes:
        """Return what :meth:`read` reads."""
        return _TOTAL.pack(*self)


class Swept(NamedTuple):
    """What whoever looks after the leases has to tell.

    :ivar at: When that was last done.
    :ivar away: From when to when nobody did.
    :ivar evictions: What was removed in this minute.
    :ivar preserving: Whether too many are silent to be removed.
    """

    at: float
    away: tuple[tuple[float, float], ...] = ()
    evictions: Evictions = Evictions()
    preserving: bool = False

    @classmethod
    def read(cls, raw: bytes | None) -> Swept | None:
        """Return what is in *raw*, None when it is nothing."""
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
        """Return what :meth:`read` reads."""
        members = [self.at, self.away[-_MOST_AWAY:], self.evictions, self.preserving]
        return json.dumps(members).encode("ascii")


def version_in(raw: bytes | None) -> int:
    """Return the version that *raw*, a service's or the total, begins with."""
    if raw is None or len(raw) < _VERSION.size:
        return 0
    version: int = _VERSION.unpack_from(raw)[0]
    return version


def next_version(version: int, now: float) -> int:
    """Return a version that neither *version* nor any before it has had.

    It is a time in milliseconds or later, so that one that was forgotten does not come again.
    """
    return max(version + 1, int(now * 1000))


def split(raw: bytes | None) -> tuple[str, ...]:
    """Return the words in *raw*."""
    return tuple(raw.decode("ascii").split("\n")) if raw else ()


def join(words: Iterable[str]) -> bytes:
    """Return *words* as :func:`split` reads them."""
    return "\n".join(words).encode("ascii")


# What has changed of late, shared by all workers, for clients that ask for changes alone.
#
# Eureka's clients fetch everything once and then a delta every 30 seconds. Some of them compare a
# hash code and fetch everything again when it differs; others (eureka-js-client) believe the
# deltas alone, and keep a dead instance for ever if one deletion is missing. So no worker may
# answer by what it has happened to see: changes are written down in the store, by the worker that
# makes them.
#
# ==================== ===============================================================
# ``c/BUCKET/PAGE``    the changes of 15 seconds, one a line: ``D users/users-1``
# ``c/since``          since when changes are written down at all
# ``d/SERVICE/ID``     an entry that was removed, as it was
# ==================== ===============================================================
#
# All expire by themselves, a little later than a delta reaches back. What must hold:
#
# - The entry that is removed is kept before it is removed: a process that is killed in between
#   leaves a copy of an instance that is still there, which nobody asks for.
# - A change is written down before the version of all services changes. Whoever has read a
#   version and asks for the changes then finds all that led to it.
# - A page is a set: what became of an instance is what it is now, or what it was when it was
#   removed.

REACH = 180.0
"""Seconds for which changes are known: Eureka's own, six times the pause between two deltas."""

BUCKET = 15.0
"""Seconds of changes under one key."""

PAGE_BYTES = 3 * 1024
"""The most that one value holds, some sixty changes; more are on further pages. Each change writes
one anew, so they are small."""

PAGES = 320
"""More changes than these hold in a bucket, some twenty thousand, are not told one by one."""

_AT_ONCE = 8
"""How many pages of a bucket are read in one step."""

_KEPT = REACH + 2 * BUCKET

_OVERFLOW = b"*\n"

Name: TypeAlias = tuple[str, str]


class Action(StrEnum):
    """What became of an instance, in Eureka's words."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


_ACTIONS = {action.value[0]: action for action in Action}


class Noted(NamedTuple):
    """The changes within the reach.

    :ivar actions: What was done to each instance, by service and id, in no order.
    :ivar complete: Whether these are all changes of that time. They are not while the log is
        younger than it reaches back, and after more changes than it holds.
    :ivar bucket: What the moment of reading falls into; another one may know less.
    """

    actions: Mapping[Name, frozenset[Action]]
    complete: bool
    bucket: int


class Changes:
    """The log of changes of a registry."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys
        self._begun = False
        self._written = (0, 0)

    def begin(self) -> float:
        """See that it is known since when changes are written down; return the store's time."""
        raw, now = self._store.get(self._keys.changes_since)
        if raw is None:
            self._store.swap(self._keys.changes_since, None, repr(now).encode(), KEPT)
        self._begun = True
        return now

    def note(self, action: Action, service: str, instance_id: str) -> None:
        """Write down that *action* was done to an instance.

        :raises StoreError: The store failed.
        """
        now = self._store.get(self._keys.total)[1] if self._begun else self.begin()
        bucket, line = int(now // BUCKET), f"{action[0]} {service}/{instance_id}\n".encode()

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            lines = old or b""
            if line in lines:  # whole: a line has one space, behind its first letter
                return old, 0.0, True
            if len(lines) + len(line) > PAGE_BYTES:
                return old, 0.0, False
            return lines + line, _KEPT, True

        # pages before the one that was written last are full, and need not be looked through
        written = self._written
        for page in range(written[1] if written[0] == bucket else 0, PAGES):
            if update(self._store, self._keys.changes(bucket, page), change):
                self._written = bucket, page
                return
        key = self._keys.changes(bucket, PAGES)
        update(self._store, key, lambda old, now: (_OVERFLOW, _KEPT, None))

    def keep(self, raw: bytes, service: str, instance_id: str) -> None:
        """Keep *raw*, the entry of an instance that is about to be removed.

        Of an instance that is removed twice, only the second entry is kept. A client may know the
        first one, so where they differ it has to replace it whatever comes.

        :raises StoreError: The store failed.
        """

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            return raw, _KEPT, old is not None and not _are_alike(old, raw)

        if update(self._store, self._keys.removed(service, instance_id), change):
            self.note(Action.MODIFIED, service, instance_id)

    def bucket(self) -> int:
        """Return the bucket of this moment: while it and the version stay, so do the changes.

        :raises StoreError: The store failed.
        """
        return int(self._store.get(self._keys.total)[1] // BUCKET)

    def read(self) -> Noted:
        """Return the changes within the reach.

        :raises StoreError: The store failed.
        """
        since, now = self._store.get(self._keys.changes_since)
        last = int(now // BUCKET)
        open_buckets = list(range(int((now - REACH) // BUCKET), last + 1))
        actions: dict[Name, frozenset[Action]] = {}
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
        return Noted(actions, complete, last)

    def removed(self, names: list[Name]) -> list[Registered | None]:
        """Return the entries of instances that were removed, as they were; None when not known.

        :raises StoreError: The store failed.
        """
        found: list[Registered | None] = []
        for raw in get_all(self._store, [self._keys.removed(*name) for name in names]):
            try:
                found.append(None if raw is None else Registered.from_bytes(raw))
            except ValueError:
                found.append(None)
        return found


def _lines(raw: bytes | None) -> Iterator[tuple[str, str, Action]]:
    for line in (raw or b"").decode("ascii").splitlines():
        letter, _, name = line.partition(" ")
        service, _, instance_id = name.partition("/")
        if letter in _ACTIONS:
            yield service, instance_id, _ACTIONS[letter]


def _are_alike(one: bytes, other: bytes) -> bool:
    """Return whether two entries are the same but for the moments in them."""
    try:
        return is_same(Registered.from_bytes(one), Registered.from_bytes(other))
    except ValueError:
        return False


def is_same(one: Registered, other: Registered) -> bool:
    """Return whether two entries are the same but for the moments in them."""
    return replace(one, registered_at=0.0, last_heartbeat=0.0) == replace(
        other, registered_at=0.0, last_heartbeat=0.0
    )


def _moment(raw: bytes, now: float) -> float:
    try:
        return float(raw)
    except ValueError:
        return now


class Full(Exception):
    """There is no room for one more; says of what, and how many there may be."""


class Index:
    """The names of services and the ids of instances in the store, with their versions.

    Several processes change it at once, and any of them may be killed between two steps. So whoever
    adds looks again afterwards whether it is there, and so does whoever removes whether it should
    have been: of two that meet, the later one sees the other. An instance is counted by the process
    that adds its id, and no more by the one that removes it.

    :param most_services: How many services there may be.
    :param most_of_one: How many instances one service may have.
    :param most_in_all: How many instances all services together may have.
    :ivar log: Where changes are written down.
    """

    def __init__(
        self, store: Store, keys: Keys, most_services: int, most_of_one: int, most_in_all: int
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

    def service(self, name: str) -> Service:
        """Return the version and the ids of the service *name*."""
        return Service.read(self._store.get(self._keys.service(name))[0])

    def reserve(self, name: str, instance_id: str) -> None:
        """Make room for one more instance.

        :raises Full: There is none.
        """
        self._add_name(name)
        try:
            self._count(1)
            try:
                if not self._add_id(name, instance_id):
                    self._count(-1)  # somebody else is about to register the same one
            except Full:
                self._count(-1)
                raise
        except Full:
            self._tidy(name)
            raise

    def publish(
        self, name: str, instance_id: str | None = None, action: Action | None = None
    ) -> None:
        """Make a change known: of one instance that is there, or of the service as a whole.

        :param action: What became of the instance; None when nothing but its silence has changed.
        """
        if instance_id is not None and action is not None:
            self.log.note(action, name, instance_id)

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            version, ids = Service.read(old)
            adding = instance_id is not None and instance_id not in ids
            if instance_id is not None and adding:
                ids = tuple(sorted((*ids, instance_id)))
            new = Service(next_version(version, now), ids).to_bytes()
            return new, KEPT if ids else EMPTY, adding

        added = update(self._store, self._keys.service(name), change)
        if instance_id is not None:
            self._add_name(name, bounded=False)
        self._count(1 if added else 0, bounded=False)  # the last, as it tells of all the others
        if instance_id is not None and not self._is_there(name, instance_id):
            # removed meanwhile, by a process that saw less of it than is there now
            self.remove(name, instance_id)

    def remove(self, name: str, instance_id: str) -> None:
        """Forget an instance whose entry is gone, and make that known."""

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            version, ids = Service.read(old)
            left = tuple(each for each in ids if each != instance_id)
            new = Service(next_version(version, now), left).to_bytes()
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
        """Correct the number of all instances, if nothing has changed since it was *before*."""

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, None]:
            if old is None or Total.read(old) != before or before.instances == instances:
                return old, 0.0, None
            return Total(before.version, instances).to_bytes(), KEPT, None

        update(self._store, self._keys.total, change)

    def total(self) -> Total:
        """Return the version of all services together, and how many instances there are."""
        return Total.read(self._store.get(self._keys.total)[0])

    def _is_there(self, name: str, instance_id: str) -> bool:
        return self._store.get(self._keys.instance(name, instance_id))[0] is not None

    def _add_id(self, name: str, instance_id: str) -> bool:
        most = self._most_of_one

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool | None]:
            version, ids = Service.read(old)
            if instance_id in ids:
                return old, 0.0, False
            if len(ids) >= most:
                return old, 0.0, None
            return Service(version, tuple(sorted((*ids, instance_id)))).to_bytes(), KEPT, True

        added = update(self._store, self._keys.service(name), change)
        if added is None:
            raise Full(f"a service has at most {most} instances")
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

        if not update(self._store, self._keys.names, change):
            raise Full(f"there are at most {most} services")

    def _tidy(self, name: str) -> None:
        """Forget the name of a service that has no instances."""

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
        """Count *more* instances, and give all services together a new version."""
        most = self._most_in_all if bounded else float("inf")

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            version, instances = Total.read(old)
            if more > 0 and instances + more > most:
                return old, 0.0, False
            new = Total(next_version(version, now), max(0, instances + more))
            return new.to_bytes(), KEPT, True

        if not update(self._store, self._keys.total, change):
            raise Full(f"there are at most {most} instances in all")
