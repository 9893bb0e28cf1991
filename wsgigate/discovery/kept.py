"""The last good answer of a source, kept in the store for workers that begin without one.

A worker that is started while a source does not answer, be it for a reload, a crash or because it
has served its share of requests, would otherwise know of nobody.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from wsgigate.discovery import Instance
from wsgigate.discovery.destinations import Destinations
from wsgigate.store import Store
from wsgigate.store.limits import VALUE_BYTES

__all__ = ["Kept", "Recalled"]

_DAY = 86_400.0


class Recalled(NamedTuple):
    """What was kept, how many seconds ago the source said so, and the networks that it named."""

    instances: tuple[Instance, ...]
    age: float
    networks: tuple[str, ...] | None = None


class Kept:
    """The instances of a service as its source last told them to any worker.

    :param store: Where the workers meet.
    :param key: The key they are under.
    :param source: The source's name; what another one said before is nothing to this.
    """

    def __init__(self, store: Store, key: str, source: str) -> None:
        self._store = store
        self._key = key
        self._source = source

    def recall(self) -> Recalled | None:
        """Return what was kept, ``None`` if that is nothing that can be used.

        :raises StoreError: The store failed.
        """
        raw, now = self._store.get(self._key)
        if raw is None:
            return None
        try:
            source, at, listed, *rest = json.loads(raw)
            if source != self._source:
                return None
            instances = tuple(Instance(*each) for each in listed)
            networks = Destinations(rest[0]).allowed_networks if rest else None
            return Recalled(instances, max(0.0, now - at), networks)
        except (ValueError, TypeError):
            return None

    def keep(self, instances: Sequence[Instance], networks: Sequence[str] | None = None) -> None:
        """Keep *instances* for a day, unless they are too many for one value of a store.

        :param networks: The networks that the source allows them in, if it named any.
        :raises StoreError: The store failed.
        """
        old, now = self._store.get(self._key)
        listed = [[each.url, each.weight, each.tier, each.host, each.zone] for each in instances]
        members = [self._source, now, listed, *([] if networks is None else [list(networks)])]
        new = json.dumps(members, separators=(",", ":")).encode()
        if len(new) <= VALUE_BYTES:
            self._store.swap(self._key, old, new, _DAY)  # who was faster knows as much
