"""Instances of this gateway's own registry, the one in its store."""

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
"""Seconds to wait for a change; that heartbeats no longer come is none."""

_LOOK_UP = 0.5

_AGAIN = 1.0
"""Seconds until a failing store is asked again: it costs little, as the store bounds the wait."""


class OwnRegistry:
    """A source of what services have registered with this gateway.

    Who is UP and sends its heartbeats is there; who is DRAINING keeps what belongs to it and gets
    nothing else. While nobody's heartbeats arrive, all that are UP are there: it is the registry
    then that cannot be reached. That nobody is left is believed at once, unless the store knows
    nothing of the service at all: then it may have lost its memory.

    :param registry: The registry.
    :param service: The service's name there.
    :param tags: It must have all of them.
    """

    def __init__(self, registry: Registry, service: str, *, tags: Sequence[str] = ()) -> None:
        self.name = "registry"
        self._registry = registry
        self._service = service
        self._tags = tuple(tags)
        self._version: int | None = None

    def close(self) -> None:
        """Begin anew: the next answer is given at once."""
        self._version = None

    def find(self, stopping: threading.Event) -> Found:
        """Return who is there, as soon as that is not what was returned before."""
        if self._version is not None:
            self._await_change(self._version, stopping)
        try:
            listing = self._registry.discover(self._service, tags=self._tags)
        except StoreError as error:
            self._version = None
            raise SourceError("the store fails", again_in=_AGAIN) from error
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
            stopping.wait(max(0.0, look_up - real()))  # it may not wait any more

    def _instances(self, listing: Listing) -> tuple[Instance, ...]:
        entries, rules = listing.instances, self._registry.rules
        up = [entry for entry in entries if entry.state is Status.UP]
        well = [entry for entry in up if entry.healthy(listing.now, rules)] or up
        leaving = [entry for entry in entries if entry.status is Status.DRAINING]
        return distinct(
            [
                *(_instance(each, each.weight) for each in well),
                *(_instance(each, 0) for each in leaving),
            ]
        )


def _instance(entry: Registered, weight: int) -> Instance:
    return instance_of(entry.scheme, entry.host, entry.port, weight, zone=entry.zone)
