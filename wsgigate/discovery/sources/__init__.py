"""Discovery sources: what a source is, and failover between several; one module for each kind.

One thread queries a source repeatedly and keeps the last good answer
(:mod:`wsgigate.discovery.watcher`), so a source only returns the current instances, or raises
:class:`SourceError`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from wsgigate.discovery import LAST_TIER, Instance

__all__ = [
    "MOST",
    "Failover",
    "Found",
    "Source",
    "SourceError",
    "distinct",
    "instance_of",
    "read_list",
    "zone_of",
]

MOST = 10_000
"""The largest number of instances of a service; a longer list is an error."""

_ZONE = re.compile(r"[\x21-\x7e]{1,128}")
_KEYS = ("url", "weight", "tier", "zone")


class SourceError(Exception):
    """A source cannot return the instances; the message says why, without hosts or secrets.

    :param again_in: Seconds until the next query; ``None`` for a pause that grows.
    """

    def __init__(self, why: str, *, again_in: float | None = None) -> None:
        super().__init__(why)
        self.again_in = again_in


class Found(NamedTuple):
    """The answer of a source.

    :ivar instances: The instances, each URL once, in an order that changes only when they do.
    :ivar again_in: Seconds until the next query; 0 for a source that itself waits for a change.
    :ivar certain: Whether an empty list is intended, rather than a lack of data.
    :ivar trouble: Why a part of the answer is from an earlier one; empty if none is.
    :ivar networks: The networks that the source allows instances in; ``None`` if it names none.
    """

    instances: tuple[Instance, ...]
    again_in: float
    certain: bool = False
    trouble: str = ""
    networks: tuple[str, ...] | None = None


class Source(Protocol):
    """Returns the instances of one service.

    Nothing is opened before :meth:`find`. One thread at a time uses a source, in one process.

    :ivar name: Its name in logs and status documents, such as ``dns:billing.internal:8000``.
    """

    name: str

    def find(self, stopping: threading.Event) -> Found:
        """Return the instances; a source may wait up to a minute for its last answer to change.

        :param stopping: When it is set, a wait ends within a second.
        :raises SourceError: The instances cannot be determined.
        """

    def close(self) -> None:
        """Close connections and forget the last answer; the next :meth:`find` starts anew."""


def distinct(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    """Return *instances* sorted by URL, each URL once.

    :raises SourceError: There are more than :data:`MOST`.
    """
    found = {instance.url: instance for instance in instances}
    if len(found) > MOST:
        raise SourceError(f"it has {len(found)} instances, more than {MOST}")
    return tuple(found[url] for url in sorted(found))


def instance_of(
    scheme: str,
    host: object,
    port: object,
    weight: object = 1,
    tier: int = 0,
    name: str = "",
    zone: object = "",
) -> Instance:
    """Return the instance at a host and port that a source returned.

    :param name: The host name for ``Host``, if *host* is an address that was resolved from it.
    :param zone: Its availability zone; an invalid one counts as unknown.
    :raises SourceError: The host, port or weight is invalid.
    """
    if not isinstance(host, str) or not host:
        raise SourceError("an instance has no host")
    if type(port) is not int or not 0 < port < 65536:
        raise SourceError("an instance has no valid port")
    if type(weight) is not int or not 0 <= weight <= 65535:
        raise SourceError("an instance's weight is not a whole number from 0 to 65535")
    try:
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        return Instance(url, weight, tier, f"{name}:{port}" if name else "", zone_of(zone))
    except ValueError as error:
        raise SourceError(str(error)) from None


def zone_of(*found: object) -> str:
    """Return the first of *found* that is a valid zone; empty if none is."""
    for each in found:
        if isinstance(each, str) and each and _ZONE.fullmatch(each):
            return each
    return ""


def read_list(document: object) -> tuple[Instance, ...]:
    """Return the instances of a document: a list, or a table with a list ``instances``.

    Each instance is a URL, or a table with ``url``, ``weight``, ``tier`` and ``zone``.

    :raises SourceError: The document is malformed; the message names the key.
    """
    listed = document.get("instances") if isinstance(document, Mapping) else document
    if not isinstance(listed, list):
        raise SourceError('instances: expected a list such as ["http://10.0.0.5:8000"]')
    if len(listed) > MOST:
        raise SourceError(f"instances: at most {MOST} of them, got {len(listed)}")
    found: dict[str, Instance] = {}
    for number, item in enumerate(listed):
        place = f"instances[{number}]"
        table = item if isinstance(item, Mapping) else {"url": item}
        url, weight, tier = table.get("url"), table.get("weight", 1), table.get("tier", 0)
        unknown = [str(key) for key in table if key not in _KEYS]
        if unknown:
            known = ", ".join(_KEYS)
            raise SourceError(f"{place}.{unknown[0]}: is not a known key; known are {known}")
        if not isinstance(url, str):
            raise SourceError(f'{place}.url: expected an address such as "http://10.0.0.5:8000"')
        if type(weight) is not int or not 0 <= weight <= 65535:
            raise SourceError(f"{place}.weight: expected a whole number from 0 to 65535")
        if type(tier) is not int or not 0 <= tier <= LAST_TIER:
            raise SourceError(f"{place}.tier: expected a whole number from 0 to {LAST_TIER}")
        zone = table.get("zone", "")
        if not isinstance(zone, str):
            raise SourceError(f'{place}.zone: expected a text such as "eu-1a"')
        try:
            instance = Instance(url, weight, tier, zone=zone)
        except ValueError as error:
            raise SourceError(f"{place}.url: {error}") from None
        if instance.url in found:
            raise SourceError(f"{place}.url: the instance is listed twice: {instance.url!r}")
        found[instance.url] = instance
    return tuple(found.values())


_EMPTY_PAUSE = 1.0
"""Seconds until the next query while no source has instances."""


class Failover:
    """A source that queries other sources in order: the next one if the ones before it fail.

    It stays with a source as long as that answers: registries that share a store return the same
    instances, and with registries that do not, instances would come and go with every change of
    the source. After an empty answer, the other sources are queried as well: a registry that was
    restarted without its data must not override one that has instances. An empty list is certain
    only if all sources return one that is.

    :param sources: The sources, the preferred one first; at least one.
    :raises ValueError: *sources* is empty.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ValueError("sources must not be empty")
        self._sources = tuple(sources)
        self._current = 0
        self.name = ", ".join(source.name for source in self._sources)

    def close(self) -> None:
        """Close all sources; the next :meth:`find` starts with the one that answered last."""
        for source in self._sources:
            source.close()

    def find(self, stopping: threading.Event) -> Found:
        """Return the first answer with instances, or else the first answer.

        :raises SourceError: All sources fail; the message has the reason of each.
        """
        count = len(self._sources)
        failures: list[str] = []
        empty: list[tuple[int, Found]] = []
        for place in [(self._current + each) % count for each in range(count)]:
            source = self._sources[place]
            if place != self._current:
                source.close()  # otherwise it might wait for a change of an old answer
            try:
                found = source.find(stopping)
            except SourceError as error:
                if stopping.is_set():
                    raise
                source.close()
                failures.append(f"{source.name}: {error}")
                continue
            if found.instances:
                self._current = place
                return found
            empty.append((place, found))
            if stopping.is_set():
                break
        if not empty:
            raise SourceError("; ".join(failures))
        self._current, found = empty[0]
        certain = not failures and all(each.certain for _, each in empty)
        return found._replace(certain=certain, again_in=max(found.again_in, _EMPTY_PAUSE))
