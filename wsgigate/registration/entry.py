"""The entry that a service registers, and the address of this machine."""

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
    """The registration of one instance of a service.

    :param service: The name of the service.
    :param port: The port at which others reach the instance.
    :param host: The name or address at which others reach it. Default: the address from which this
        machine reaches the registry.
    :param instance_id: The id of the instance. Default: made from host and port.
    :param scheme: ``http`` or ``https``.
    :param weight: Its share of the traffic relative to the other instances.
    :param version: The release of the service.
    :param zone: The availability zone.
    :param tags: Tags for discovery.
    :param metadata: Any other data, as a JSON object.
    :param health_check_path: The path of its health check.
    :raises ValueError: A member is invalid; the message names it as the registry does.
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
        """Return the id of the instance at *host*: the same for all workers at an address."""
        return self.instance_id or _NOT_IN_ID.sub("-", f"{host}-{self.port}").strip("-.")

    def document(self, host: str, status: Wanted) -> dict[str, Any]:
        """Return the JSON object of the registration."""
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
    """Return *url*, the URL of a registry, without a trailing slash.

    :raises ValueError: *url* is not valid; the message never contains a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("the registry's URL has no valid host and port") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("the registry's URL must not carry credentials: use REGISTRY_TOKEN")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"the registry's URL must be http://HOST:PORT or https://..., not {url!r}")
    if parts.query or parts.fragment or not (url.isascii() and url.isprintable()) or " " in url:
        raise ValueError(f"the registry's URL must end with its path, got {url!r}")
    return url.rstrip("/")


def own_address(registry: str) -> str:
    """Return the address that this machine uses to reach the host of *registry*.

    Nothing is sent: connecting a datagram socket only selects a route.

    :raises OSError: The host cannot be resolved, or there is no route to it.
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
