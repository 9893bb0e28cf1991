"""The endpoints that the middlewares of a gateway ask about requests, and their status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from wsgigate.client.endpoint import RemoteEndpoint

__all__ = ["EndpointProbe", "RemoteEndpoints"]

EndpointProbe: TypeAlias = Callable[[RemoteEndpoint], str]
"""Asks an endpoint once and returns why that fails; empty if it does not."""


class RemoteEndpoints:
    """The endpoints of a gateway or of an app; nothing is connected before the first request."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, object], ...], RemoteEndpoint] = {}
        self._probes: list[tuple[RemoteEndpoint, EndpointProbe]] = []

    def get(self, url: str, *, probe: EndpointProbe, **options: Any) -> RemoteEndpoint:
        """Return the endpoint at *url*; the same object for the same arguments.

        So the bounds and the circuit are those of the endpoint, however many routes ask it.

        :param probe: How ``wsgigate check`` asks it.
        :param options: Arguments of :class:`~wsgigate.client.endpoint.RemoteEndpoint`.
        :raises ValueError: An option is invalid; the message names it.
        """
        arguments = (("url", url), *sorted(options.items()))
        endpoint = self._known.get(arguments)
        if endpoint is None:
            endpoint = self._known[arguments] = RemoteEndpoint(url, **options)
        self._probes.append((endpoint, probe))
        return endpoint

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the status of each endpoint, by its name; of equal names, one with an error."""
        found: dict[str, dict[str, Any]] = {}
        for endpoint in self._known.values():
            status = endpoint.status()
            if "error" in status and "error" not in found.get(endpoint.name, {}):
                found[endpoint.name] = status
            found.setdefault(endpoint.name, status)
        return found

    def probe(self) -> dict[str, str]:
        """Ask each endpoint once; return why that fails, by its name."""
        troubles: dict[str, str] = {}
        for endpoint, probe in self._probes:
            if endpoint.name not in troubles:
                why = probe(endpoint)
                if why:
                    troubles[endpoint.name] = why
        return troubles

    def close(self) -> None:
        """Close the idle connections."""
        for endpoint in self._known.values():
            endpoint.close()
