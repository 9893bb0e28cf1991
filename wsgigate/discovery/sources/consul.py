"""Consul source: its health API, with blocking queries.

https://developer.hashicorp.com/consul/api-docs/health and .../features/blocking define them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from wsgigate.discovery import Instance
from wsgigate.discovery.sources import MOST, Found, SourceError, distinct, instance_of, zone_of
from wsgigate.discovery.sources.http import ApiClient, read_json, refused

__all__ = ["Consul", "instances_of"]

_WAIT = 50
"""Seconds of a blocking query; Consul adds up to a sixteenth."""
_GRACE = 5.0
_PAUSE = 0.1
"""The fewest seconds between two queries: changes come in bursts, and Consul's docs require it."""
_POLL = 1.0


class Consul:
    """A source of a service's instances without critical checks.

    An instance with a critical check, which includes maintenance mode, is left out; one with a
    warning has the ``Warning`` weight of its registration. An empty list is not certain.

    :param service: The name of the service in Consul.
    :param url: The URL of an agent or server.
    :param tags: Only instances that have all of these tags.
    :param token: An ACL token that may read the service and its nodes.
    :param ca: A file of trusted certificate authorities. Default: those of ``requests``.
    :param scheme: The scheme of the instances, ``http`` or ``https``.
    """

    def __init__(
        self,
        service: str,
        url: str = "http://127.0.0.1:8500",
        *,
        tags: Sequence[str] = (),
        token: str | None = None,
        ca: str | None = None,
        scheme: str = "http",
    ) -> None:
        self.name = f"consul:{url}/{service}"
        self._target = f"/v1/health/service/{quote(service, safe='')}"
        self._tags = tuple(tags)
        self._fields = {} if token is None else {"X-Consul-Token": token}
        self._scheme = scheme
        self._client = ApiClient(url, ca=ca)
        self._index = 0

    def close(self) -> None:
        """Forget the last index: the next :meth:`find` returns at once."""
        self._index = 0

    def find(self, stopping: threading.Event) -> Found:
        """Return the instances as soon as they change, or after 50 s."""
        index, self._index = self._index, 0  # after any error, the next query does not block
        query: list[tuple[str, Any]] = [("tag", tag) for tag in self._tags]
        if index:
            query += [("index", index), ("wait", f"{_WAIT}s")]
        target = f"{self._target}?{urlencode(query)}" if query else self._target
        wait = _WAIT * 17 / 16 + _GRACE if index else 0.0
        response = self._client.get(target, stopping, fields=self._fields, wait=wait)
        if response.status != 200:
            raise refused(response.status)
        found = instances_of(read_json(response.body), self._scheme)
        new = _number(response.fields.get("x-consul-index"))
        if not new:  # without an index, poll
            return Found(found, _POLL)
        # An index that decreases is of a server that was restored: the next query does not block.
        self._index = new if new >= index else 0
        return Found(found, _PAUSE)


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 20 else 0


def instances_of(document: object, scheme: str) -> tuple[Instance, ...]:
    if not isinstance(document, list):
        raise SourceError("its answer is not a list of instances")
    if len(document) > MOST:
        raise SourceError(f"it has {len(document)} instances, more than {MOST}")
    made = (_instance(entry, scheme) for entry in document)
    return distinct(instance for instance in made if instance is not None)


def _instance(entry: object, scheme: str) -> Instance | None:
    if not isinstance(entry, Mapping):
        raise SourceError("its answer has a malformed instance")
    service, node = entry.get("Service") or {}, entry.get("Node") or {}
    states = {check.get("Status") for check in entry.get("Checks") or ()}
    if not states <= {"passing", "warning"}:
        return None
    weights = service.get("Weights") or {}
    weight = weights.get("Warning" if "warning" in states else "Passing", 1)
    host = service.get("Address") or node.get("Address")
    zone = zone_of(*(_zone(part) for part in (service, node)))
    return instance_of(scheme, host, service.get("Port"), weight, zone=zone)


def _zone(part: Mapping[str, Any]) -> object:
    """Return the zone of a service or node: of its locality, or ``zone`` of its metadata."""
    locality, meta = part.get("Locality"), part.get("Meta")
    return (locality.get("Zone") if isinstance(locality, Mapping) else None) or (
        meta.get("zone") if isinstance(meta, Mapping) else None
    )
