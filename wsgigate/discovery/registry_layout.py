"""How the registry lies in its store.

==================== ===============================================================
``i/SERVICE/ID``     an entry, and first the moment of its last heartbeat
``s/SERVICE``        the version of a service, and the ids of its instances
``names``            the names of the services
``all``              the version of all services together, and how many instances
``swept``            when leases were last looked after, and when nobody did
``leader``           the lease of who looks after them
``checks``           the lease of who carries out checks
``c/...``            what has changed of late, see :mod:`.registry_changes`
``d/SERVICE/ID``     an entry that was removed of late
==================== ===============================================================

A heartbeat writes one small value, whose bytes but the first eight stay as they are. Whoever
changes what is discovered writes the entry first and the versions then, so that nobody keeps what
is old under a version that is new.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import NamedTuple

from wsgigate.rules.registry import Evictions

__all__ = ["EMPTY", "KEPT", "Keys", "Service", "Swept", "Total", "next_version"]

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
