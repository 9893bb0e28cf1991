"""Health checks in the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from wsgigate.config.kinds import Choice, Duration, Integer, Text
from wsgigate.config.tables import Either, ListOf, MapOf, Table, given, setting, table
from wsgigate.rules.health import HealthCheck

__all__ = ["HEALTH", "ServiceHealth", "TcpHealth", "health_check"]


@table
class ServiceHealth:
    """How a service is asked whether it is well."""

    path: str = setting(Text('a path such as "/health"', pattern=r"/.*"), "What is asked for.")
    type: str = setting(
        Choice("http"),
        'How it is asked. With "tcp" an instance that accepts a connection is well; there is no '
        "path, statuses and contains then.",
        default="http",
    )
    interval: float | None = setting(Duration(), "How often.", default=None)
    timeout: float | None = setting(Duration(), "How long an answer may take.", default=None)
    healthy_after: int | None = setting(
        Integer(1, 100), "Good answers until an instance is used again.", default=None
    )
    unhealthy_after: int | None = setting(
        Integer(1, 100), "Bad answers until an instance is left out.", default=None
    )
    statuses: tuple[int, ...] | None = setting(
        ListOf(Integer(200, 599), least=1), "The statuses that are good.", default=None
    )
    contains: str | None = setting(
        Text(), "What a good answer contains, in its first 64 KiB.", default=None
    )
    host: str | None = setting(
        Text('a name such as "shop.example"'),
        "The Host to send; the one that requests to the service have unless given.",
        default=None,
    )
    fields: Mapping[str, str] | None = setting(
        MapOf(Text()),
        "Further request fields by name, such as Authorization.",
        default=None,
        repr=False,
    )
    method: str | None = setting(
        Text('a method such as "GET" or "HEAD"'), "The request method.", default=None
    )
    port: int | None = setting(
        Integer(1, 65535), "The port to ask; the instance's own unless given.", default=None
    )
    scheme: str | None = setting(
        Choice("http", "https"), "How it is asked; as the instance unless given.", default=None
    )


@table
class TcpHealth:
    """How it is found out whether a service accepts connections."""

    type: str = setting(Choice("tcp"), "How it is asked.")
    interval: float | None = setting(Duration(), "How often.", default=None)
    timeout: float | None = setting(Duration(), "How long a connection may take.", default=None)
    healthy_after: int | None = setting(
        Integer(1, 100), "Connections until an instance is used again.", default=None
    )
    unhealthy_after: int | None = setting(
        Integer(1, 100), "Refused ones until an instance is left out.", default=None
    )
    port: int | None = setting(
        Integer(1, 65535), "The port to connect to; the instance's own unless given.", default=None
    )


Options: TypeAlias = ServiceHealth | TcpHealth


def _asks(value: Any) -> bool:
    return not (isinstance(value, dict) and value.get("type") == "tcp")


HEALTH = Either(_asks, Table(ServiceHealth), Table(TcpHealth))


HEALTH_KEYS = ("host", "fields", "method", "port", "scheme", "contains")
"""The keys that an error of a check may begin with."""


def health_check(options: Options, host: str = "") -> HealthCheck:
    """Return how the instances of a service are asked.

    :param host: The Host to send where the file names none for the check.
    :raises ValueError: A setting is out of its range; says which.
    """
    path = options.path if isinstance(options, ServiceHealth) else None
    settings = given(options, without=("type", "path"))
    if path is not None and host:
        settings.setdefault("host", host)
    return HealthCheck(path, **settings)
