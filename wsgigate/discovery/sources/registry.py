"""Registry sources: the gateway's own registry, and a wsgigate registry in another process.

Both return the same instances of a service, by :func:`_chosen`:

- Instances with status UP and a valid lease.
- DRAINING instances with weight 0: they keep their sticky sessions and get no other requests.
- While the leases of all instances have expired, all instances with status UP: it is then the
  registry that cannot be reached.
- An empty list is certain, unless the registry, or its store, does not know the service at all:
  then it may have lost its data.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from wsgigate.client.destinations import Destinations
from wsgigate.discovery import Instance
from wsgigate.discovery.sources import MOST, Found, SourceError, distinct, instance_of, zone_of
from wsgigate.discovery.sources.http import ApiClient, read_json, refused
from wsgigate.rules.registry import LeaseRules, Registered, Status
from wsgigate.runtime.clocks import real
from wsgigate.store import StoreError

__all__ = ["OwnRegistry", "RemoteRegistry"]

E = TypeVar("E")
"""An instance as a registry lists it."""


def _chosen(
    up: Sequence[E],
    draining: Iterable[E],
    is_healthy: Callable[[E], bool],
    instance: Callable[[E, int | None], Instance],
) -> tuple[Instance, ...]:
    """Return the instances of a service as the head of this module describes.

    :param up: Those with status UP.
    :param draining: Those with status DRAINING.
    :param is_healthy: Whether the lease is valid.
    :param instance: Makes an instance; a weight that is not None replaces its own.
    """
    healthy = [entry for entry in up if is_healthy(entry)] or up
    return distinct(
        [*(instance(entry, None) for entry in healthy), *(instance(entry, 0) for entry in draining)]
    )


# The registry of this gateway.

_CHANGE_WAIT = 5.0
"""Seconds to wait for a change of the version, which missing heartbeats do not change at once."""

_LOOK_UP = 0.5

_RETRY_AFTER = 1.0
"""Seconds until a failing store is read again: cheap, as the store bounds the wait."""


class ListedService(Protocol):
    """The instances of a service in a registry.

    :ivar instances: The entries.
    :ivar version: Changes with every change but a heartbeat; 0 for an unknown service.
    :ivar now: The store's time of the listing.
    :ivar age: Seconds since the listing was read, as the store fails; else 0.
    """

    @property
    def instances(self) -> tuple[Registered, ...]: ...
    @property
    def version(self) -> int: ...
    @property
    def now(self) -> float: ...
    @property
    def age(self) -> float: ...


class LocalRegistry(Protocol):
    """The part of :class:`wsgigate.registry.Registry` that is used here."""

    rules: LeaseRules

    def discover(self, service: str, *, tags: Iterable[str] = ()) -> ListedService:
        """Return the instances of *service* that have all *tags*."""

    def wait(self, service: str | None, version: int, timeout: float) -> int:
        """Return the version of *service* once it is not *version*, or after *timeout* seconds."""


class OwnRegistry:
    """A source of the instances that are registered with this gateway.

    :param registry: The registry.
    :param service: The name of the service in the registry.
    :param tags: Only instances that have all of these tags.
    """

    def __init__(self, registry: LocalRegistry, service: str, *, tags: Sequence[str] = ()) -> None:
        self.name = "registry"
        self._registry = registry
        self._service = service
        self._tags = tuple(tags)
        self._version: int | None = None

    def close(self) -> None:
        """Forget the last version: the next :meth:`find` returns at once."""
        self._version = None

    def find(self, stopping: threading.Event) -> Found:
        """Return the instances as soon as they differ from the last ones, or after 5 s."""
        if self._version is not None:
            self._await_change(self._version, stopping)
        try:
            listing = self._registry.discover(self._service, tags=self._tags)
        except StoreError as error:
            self._version = None
            raise SourceError("the store fails", again_in=_RETRY_AFTER) from error
        self._version = listing.version
        trouble = "the store fails" if listing.age else ""
        certain = listing.version != 0 and not trouble
        return Found(self._instances(listing), 0.0, certain=certain, trouble=trouble)

    def _await_change(self, version: int, stopping: threading.Event) -> None:
        until = real() + _CHANGE_WAIT
        while not stopping.is_set():
            now = real()
            look_up = min(until, now + _LOOK_UP)
            if (
                now >= until
                or self._registry.wait(self._service, version, look_up - now) != version
            ):
                return
            stopping.wait(max(0.0, look_up - real()))  # the registry returns at once when it stops

    def _instances(self, listing: ListedService) -> tuple[Instance, ...]:
        entries, rules = listing.instances, self._registry.rules
        return _chosen(
            [entry for entry in entries if entry.state is Status.UP],
            [entry for entry in entries if entry.status is Status.DRAINING],
            lambda entry: entry.healthy(listing.now, rules),
            _registered,
        )


def _registered(entry: Registered, weight: int | None) -> Instance:
    weight = entry.weight if weight is None else weight
    return instance_of(entry.scheme, entry.host, entry.port, weight, zone=entry.zone)


# A registry in another process, by long polling of its HTTP API.

_LONG_POLL = 20
"""Seconds of a long poll; the registry may answer earlier."""
_PAUSE = 0.1
_POLL = 1.0


class RemoteRegistry:
    """A source of the instances in a ``wsgigate registry``, or in one with the same API.

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
    return _chosen(
        [entry for entry in entries if entry.get("status", "UP") == "UP"],
        [entry for entry in entries if entry.get("status") == "DRAINING"],
        lambda entry: bool(entry.get("healthy", True)),
        _instance,
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
