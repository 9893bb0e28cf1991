"""What a service says of itself to a registry, and at which address it says it is."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from wsgigate.rules.registration import Wanted
from wsgigate.rules.registry import parse

__all__ = ["Entry", "check_registry", "own_address"]


_NOT_IN_ID = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """One instance of a service, as it is to be registered.

    :param service: The name of the service.
    :param port: Where it takes connections.
    :param host: The name or address under which others reach it; ``None`` for the address by which
        this machine reaches the registry.
    :param instance_id: Tells it from its siblings; made from its host and port unless given.
    :param scheme: ``http`` or ``https``.
    :param weight: Its share of the traffic relative to its siblings.
    :param version: Which release of the service it is.
    :param zone: Where it runs, for those who look for one nearby.
    :param tags: Words to find it by.
    :param metadata: Whatever else is to be known of it: names, and what JSON can say.
    :param health_check_path: Where it answers whether it is well.
    :raises ValueError: A member is not what a registry takes; names it as the registry does.
    """

    service: str
    port: int
    host: str | None = None
    instance_id: str | None = None
    scheme: str = "http"
    weight: int = 1
    version: str | None = None
    zone: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    health_check_path: str | None = None

    def __post_init__(self) -> None:
        host = "127.0.0.1" if self.host is None else self.host
        parse(self.document(host, Wanted.UP))

    def id_at(self, host: str) -> str:
        """Return its id when it is at *host*: one for each address, however many workers it has."""
        return self.instance_id or _NOT_IN_ID.sub("-", f"{host}-{self.port}").strip("-.")

    def document(self, host: str, status: Wanted) -> dict[str, Any]:
        """Return what is sent to register it."""
        optional = {
            "version": self.version,
            "zone": self.zone,
            "tags": list(self.tags) or None,
            "metadata": dict(self.metadata) or None,
            "healthCheckPath": self.health_check_path,
        }
        return {
            "serviceName": self.service,
            "instanceId": self.id_at(host),
            "host": host,
            "port": self.port,
            "scheme": self.scheme,
            "weight": self.weight,
            "status": status.value,
            **{name: value for name, value in optional.items() if value is not None},
        }


def check_registry(url: str) -> str:
    """Return *url*, where a registry answers, without a slash at its end.

    :raises ValueError: It is no URL of a registry; never shows a password in it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("the registry's URL has no valid host and port") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("the registry's URL must not carry credentials: use REGISTRY_TOKEN")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"the registry's URL is http://HOST:PORT or https://..., not {url!r}")
    if parts.query or parts.fragment or not (url.isascii() and url.isprintable()) or " " in url:
        raise ValueError(f"the registry's URL ends with its path, not as {url!r}")
    return url.rstrip("/")


def own_address(registry: str) -> str:
    """Return the address that this machine uses to reach the host of *registry*.

    Nothing is sent: to connect a datagram socket is only to look at the routes.

    :raises OSError: The host has no address, or there is no way to it.
    """
    parts = urlsplit(registry)
    port = parts.port or 80
    failure = OSError("no address")
    for family, _, _, _, address in socket.getaddrinfo(
        parts.hostname, port, type=socket.SOCK_DGRAM
    ):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0]).partition("%")[0]
        except OSError as error:
            failure = error
    raise failure
