"""Instances that Consul knows: its health API, asked with blocking queries.

https://developer.hashicorp.com/consul/api-docs/health and .../features/blocking have the rules.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from wsgigate.discovery import Instance
from wsgigate.discovery.sources import MOST, Found, SourceError, distinct, instance_of, zone_of
from wsgigate.discovery.sources.http import ApiClient, read_json, refused

__all__ = ["Consul"]

_WAIT = 50
"""Seconds that Consul is asked to wait for a change; it adds up to a sixteenth."""
_GRACE = 5.0
_PAUSE = 0.1
"""Seconds between two questions at least: changes come in floods, and Consul asks for that."""
_POLL = 1.0


class Consul:
    """A source of a service's instances whose checks do not fail.

    An instance with a critical check, which one under maintenance has too, is not there; one with a
    warning has the weight that its registration has for that. That none is left is believed after a
    while only.

    :param service: Its name in Consul.
    :param url: The agent's or server's.
    :param tags: It must have all of them.
    :param token: An ACL token that may read the service and its nodes.
    :param ca: A file of authorities to believe instead of the usual.
    :param scheme: ``http`` or ``https``: how its instances are talked to.
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
        self._asker = ApiClient(url, ca=ca)
        self._index = 0

    def close(self) -> None:
        """Begin anew: the next answer is given at once."""
        self._index = 0

    def find(self, stopping: threading.Event) -> Found:
        """Return who is there, as soon as that is not what was returned before."""
        index, self._index = self._index, 0  # whatever goes wrong, the next answer is a whole one
        query: list[tuple[str, Any]] = [("tag", tag) for tag in self._tags]
        if index:
            query += [("index", index), ("wait", f"{_WAIT}s")]
        target = f"{self._target}?{urlencode(query)}" if query else self._target
        wait = _WAIT * 17 / 16 + _GRACE if index else 0.0
        answer = self._asker.get(target, stopping, fields=self._fields, wait=wait)
        if answer.status != 200:
            raise refused(answer.status)
        found = _instances(read_json(answer.body), self._scheme)
        new = _number(answer.fields.get("x-consul-index"))
        if not new:  # it does not say, so there is nothing to wait for
            return Found(found, _POLL)
        # One that goes back belongs to a server that was restored: what it has is asked for anew.
        self._index = new if new >= index else 0
        return Found(found, _PAUSE)


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 20 else 0


def _instances(document: object, scheme: str) -> tuple[Instance, ...]:
    if not isinstance(document, list):
        raise SourceError("its answer is not a list of instances")
    if len(document) > MOST:
        raise SourceError(f"it has {len(document)} instances, more than {MOST}")
    made = (_instance(entry, scheme) for entry in document)
    return distinct(instance for instance in made if instance is not None)


def _instance(entry: object, scheme: str) -> Instance | None:
    if not isinstance(entry, Mapping):
        raise SourceError("its answer has an instance that is none")
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
    """Return the zone that a service or a node says: its locality, or ``zone`` of its metadata."""
    locality, meta = part.get("Locality"), part.get("Meta")
    return (locality.get("Zone") if isinstance(locality, Mapping) else None) or (
        meta.get("zone") if isinstance(meta, Mapping) else None
    )
