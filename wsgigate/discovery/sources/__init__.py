"""Where the instances of a service are known: one file for each kind of source.

A source is asked again and again by one thread, see :mod:`wsgigate.discovery.watcher`, which keeps
the last good answer. So a source only has to say who is there now, or that it does not know.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from wsgigate.discovery import LAST_TIER, Instance

__all__ = [
    "MOST",
    "Found",
    "Source",
    "SourceError",
    "distinct",
    "instance_of",
    "read_list",
    "zone_of",
]

MOST = 10_000
"""How many instances of one service are taken in; a list of more is an error."""

_ZONE = re.compile(r"[\x21-\x7e]{1,128}")
_KEYS = ("url", "weight", "tier", "zone")


class SourceError(Exception):
    """A source does not know who is there; says why, without hosts or secrets.

    :param again_in: Seconds after which it is worth asking again; ``None`` for ever more of them.
    """

    def __init__(self, why: str, *, again_in: float | None = None) -> None:
        super().__init__(why)
        self.again_in = again_in


class Found(NamedTuple):
    """What a source answers.

    :ivar instances: Who is there, no URL twice, in an order that only changes when they do.
    :ivar again_in: Seconds after which it is worth asking again; 0 for a source that waits itself
        until something has changed.
    :ivar certain: Whether an empty list is what somebody wants, rather than all that is known.
    :ivar trouble: Why a part of it is from before, if one is.
    :ivar networks: The networks that the source allows instances in; ``None`` when it names none.
    """

    instances: tuple[Instance, ...]
    again_in: float
    certain: bool = False
    trouble: str = ""
    networks: tuple[str, ...] | None = None


class Source(Protocol):
    """Knows the instances of one service.

    Nothing is opened before :meth:`find`. One thread at a time uses it, in one process.

    :ivar name: What it is, for people: ``dns:billing.internal:8000``.
    """

    name: str

    def find(self, stopping: threading.Event) -> Found:
        """Return who is there; a source may wait up to a minute for what it said to change.

        :param stopping: When it is set, what waits gives up within a second.
        :raises SourceError: It is not known.
        """

    def close(self) -> None:
        """Release what is open; the next :meth:`find` opens it again, and knows nothing before."""


def distinct(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    """Return *instances* by URL, each once.

    :raises SourceError: There are too many.
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
    """Return the instance at a host and port that a source names.

    :param name: The name it is asked by, where *host* is an address that was looked up.
    :param zone: Where it runs; what is no zone counts as not known.
    :raises SourceError: They are none.
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
    """Return the first of *found* that is a zone; empty when none is."""
    for each in found:
        if isinstance(each, str) and each and _ZONE.fullmatch(each):
            return each
    return ""


def read_list(document: object) -> tuple[Instance, ...]:
    """Return the instances of a document: a list of them, or a table that has one.

    Each is a URL, or a table with ``url``, ``weight``, ``tier`` and ``zone``.

    :raises SourceError: It is not of that form; says where.
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
            raise SourceError(f"{place}.url: the instance is there twice")
        found[instance.url] = instance
    return tuple(found.values())
