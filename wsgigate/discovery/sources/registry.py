"""Registry source: a wsgigate registry in another process, by long polling of its HTTP API."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from wsgigate.client.destinations import Destinations
from wsgigate.discovery import Instance
from wsgigate.discovery.sources import MOST, Found, SourceError, distinct, instance_of, zone_of
from wsgigate.discovery.sources.http import ApiClient, read_json, refused

__all__ = ["RemoteRegistry"]

_LONG_POLL = 20
"""Seconds of a long poll; the registry may answer earlier."""
_PAUSE = 0.1
_POLL = 1.0


class RemoteRegistry:
    """A source of the instances in a ``wsgigate registry``, or in one with the same API.

    Instances with status UP and a valid lease are returned. DRAINING instances are returned with
    weight 0: they keep their sticky sessions and get no other requests. While the leases of all
    instances have expired, all instances with status UP are returned, as it is then the registry
    that cannot be reached. An empty list is certain, unless the registry does not know the service
    at all: then it may have lost its data.

    A registry names the networks in which it allows instances (``X-Registry-Networks``). The
    gateway connects to its instances in these networks only.

    :param url: The URL of the registry.
    :param service: The name of the service in the registry.
    :param tags: Only instances that have all of these tags.
    :param token: A bearer token for the registry. Default: none.
    :param ca: A file of trusted certificate authorities. Default: those of ``requests``.
    """

    def __init__(
        self,
        url: str,
        service: str,
        *,
        tags: Sequence[str] = (),
        token: str | None = None,
        ca: str | None = None,
    ) -> None:
        self.name = f"registry:{url}"
        self._target = f"/discover/{quote(service, safe='')}"
        self._tags = tuple(tags)
        self._fields = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._client = ApiClient(url, ca=ca)
        self._index = ""

    def close(self) -> None:
        """Forget the last index: the next :meth:`find` returns at once."""
        self._index = ""

    def find(self, stopping: threading.Event) -> Found:
        """Return the instances as soon as they change, or after 20 s."""
        index, self._index = self._index, ""
        query: list[tuple[str, Any]] = [("onlyHealthy", "false")]
        query += [("tag", tag) for tag in self._tags]
        if index:
            query += [("wait", _LONG_POLL), ("index", index)]
        target = f"{self._target}?{urlencode(query)}"
        wait = _LONG_POLL if index else 0.0
        response = self._client.get(target, stopping, fields=self._fields, wait=wait)
        if response.status != 200:
            raise refused(response.status)
        document = read_json(response.body)
        found = _instances(document)
        new = response.fields.get("x-registry-index") or ""
        self._index = new if new.isdecimal() else ""
        trouble = "its store fails" if isinstance(document, dict) and document.get("age") else ""
        certain = self._index not in ("", "0") and not trouble
        # The same index again: the registry had no free slot to wait, or nothing has changed.
        again_in = _PAUSE if self._index not in ("", index) else _POLL
        return Found(found, again_in, certain, trouble, _networks(response.fields))


def _networks(fields: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the networks in which the registry allows instances; ``None`` if it names none."""
    text = fields.get("x-registry-networks")
    if text is None:
        return None
    try:
        return Destinations(each.strip() for each in text.split(",")).allowed_networks
    except ValueError as error:
        raise SourceError("its answer has malformed networks") from error


def _instances(document: object) -> tuple[Instance, ...]:
    listed = document.get("instances") if isinstance(document, Mapping) else None
    if not isinstance(listed, list):
        raise SourceError("its answer has no list of instances")
    if len(listed) > MOST:
        raise SourceError(f"it has {len(listed)} instances, more than {MOST}")
    entries = [entry for entry in listed if isinstance(entry, Mapping)]
    up = [entry for entry in entries if entry.get("status", "UP") == "UP"]
    healthy = [entry for entry in up if entry.get("healthy", True)] or up
    draining = [entry for entry in entries if entry.get("status") == "DRAINING"]
    return distinct(
        [
            *(_instance(entry, None) for entry in healthy),
            *(_instance(entry, 0) for entry in draining),
        ]
    )


def _instance(entry: Mapping[str, Any], weight: int | None) -> Instance:
    url = entry.get("url")
    scheme = urlsplit(url).scheme if isinstance(url, str) else ""
    scheme = entry.get("scheme") or scheme or "http"
    if scheme not in ("http", "https"):
        raise SourceError("an instance is neither http nor https")
    given = entry.get("weight", 1) if weight is None else weight
    metadata = entry.get("metadata")
    zone = zone_of(
        entry.get("zone"), metadata.get("zone") if isinstance(metadata, Mapping) else None
    )
    return instance_of(scheme, entry.get("host"), entry.get("port"), given, zone=zone)
