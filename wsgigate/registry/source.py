"""A discovery source that reads this gateway's own registry, in its store."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from wsgigate.discovery import Instance
from wsgigate.discovery.sources import Found, SourceError, distinct, instance_of
from wsgigate.registry import Listing, Registry
from wsgigate.rules.registry import Registered, Status
from wsgigate.runtime.clocks import real
from wsgigate.store import StoreError

__all__ = ["OwnRegistry"]


_WAIT = 5.0
"""Seconds to wait for a change of the version, which missing heartbeats do not change at once."""

_LOOK_UP = 0.5

_RETRY_AFTER = 1.0
"""Seconds until a failing store is read again: cheap, as the store bounds the wait."""


class OwnRegistry:
    """A source of the instances that are registered with this gateway.

    Instances with status UP and a valid lease are returned. DRAINING instances are returned with
    weight 0: they keep their sticky sessions and get no other requests. While the leases of all
    instances have expired, all instances with status UP are returned, as it is then the registry
    that cannot be reached. An empty list is certain, unless the store does not know the service
    at all: then the store may have lost its data.

    :param registry: The registry.
    :param service: The name of the service in the registry.
    :param tags: Only instances that have all of these tags.
    """

    def __init__(self, registry: Registry, service: str, *, tags: Sequence[str] = ()) -> None:
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
        until = real() + _WAIT
        while not stopping.is_set():
            now = real()
            look_up = min(until, now + _LOOK_UP)
            if (
                now >= until
                or self._registry.wait(self._service, version, look_up - now) != version
            ):
                return
            stopping.wait(max(0.0, look_up - real()))  # the registry returns at once when it stops

    def _instances(self, listing: Listing) -> tuple[Instance, ...]:
        entries, rules = listing.instances, self._registry.rules
        up = [entry for entry in entries if entry.state is Status.UP]
        healthy = [entry for entry in up if entry.healthy(listing.now, rules)] or up
        draining = [entry for entry in entries if entry.status is Status.DRAINING]
        return distinct(
            [
                *(_instance(each, each.weight) for each in healthy),
                *(_instance(each, 0) for each in draining),
            ]
        )


def _instance(entry: Registered, weight: int) -> Instance:
    return instance_of(entry.scheme, entry.host, entry.port, weight, zone=entry.zone)
