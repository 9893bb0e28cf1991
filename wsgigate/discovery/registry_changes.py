"""What has changed of late, shared by all workers, for clients that ask for changes alone.

Eureka's clients fetch everything once and then a delta every 30 seconds. Some of them compare a
hash code and fetch everything again when it differs; others (eureka-js-client) believe the deltas
alone, and keep a dead instance for ever if one deletion is missing. So no worker may answer by what
it has happened to see: changes are written down in the store, by the worker that makes them.

==================== ===============================================================
``c/BUCKET/PAGE``    the changes of 15 seconds, one a line: ``D users/users-1``
``c/since``          since when changes are written down at all
``d/SERVICE/ID``     an entry that was removed, as it was
==================== ===============================================================

All expire by themselves, a little later than a delta reaches back. What must hold:

- The entry that is removed is kept before it is removed: a process that is killed in between
  leaves a copy of an instance that is still there, which nobody asks for.
- A change is written down before the version of all services changes. Whoever has read a version
  and asks for the changes then finds all that led to it.
- A page is a set: what became of an instance is what it is now, or what it was when it was removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from wsgigate.discovery.registry_layout import KEPT, Keys
from wsgigate.rules.registry import Registered
from wsgigate.store import Store, get_all, update

__all__ = ["REACH", "Action", "Changes", "Noted", "is_same"]

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
