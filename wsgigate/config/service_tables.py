"""The shape of the file's services. No behaviour.

A key that may be left out and whose default is a constructor's is None here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from wsgigate.config.discover import SOURCES, Discover
from wsgigate.config.middleware_options import ServiceBreaker
from wsgigate.config.tables import Either, ListOf, MapOf, Table, setting, table
from wsgigate.config.traffic import FallbackTable
from wsgigate.config.types import Choice, Duration, Flag, Integer, Number, Secret, Size, Text, Url
from wsgigate.rules.balance import POLICIES
from wsgigate.rules.retry import IDEMPOTENT

__all__ = [
    "Balance",
    "HEALTH",
    "POLICY",
    "ServerTls",
    "Service",
    "ServiceHealth",
    "ServiceHedge",
    "ServiceOutlier",
    "ServiceRetry",
    "ServiceSticky",
    "TcpHealth",
    "Tls",
    "Weighted",
]


# Balancing in the file: who takes the next request, and which clients stay where they are.

POLICY = Choice(*POLICIES)


@table
class Balance:
    """Who of a service's instances takes the next request."""

    use: str = setting(POLICY, "The policy.", default="two-choices")
    key: str | None = setting(
        Text('"address", "subject", "header:NAME", "cookie:NAME", "claim:NAME" or "path:NAME"'),
        "What tells requests that belong together, for consistent-hash; the address unless said.",
        default=None,
    )
    slow_start: float | None = setting(
        Duration(zero=True),
        "In which time an instance that has become well gets all of its share.",
        default=None,
    )


@table
class ServiceSticky:
    """How clients stay with the instance that answered them first."""

    secret: str = setting(
        Secret(), "What the cookie is signed with, the same on all gateways.", repr=False
    )
    cookie: str | None = setting(
        Text('a cookie\'s name such as "shop"', pattern=r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"),
        "The cookie's name; \"wsgigate-\" and the service's unless said.",
        default=None,
    )
    max_age: float | None = setting(
        Duration(),
        "How long it is valid, renewed after half of that; as long as a client keeps it.",
        default=None,
    )
    path: str | None = setting(
        Text('a path such as "/shop"', pattern=r"/[^;\x00-\x1f\x7f]*"),
        'The path that clients send it with; "/" unless said.',
        default=None,
    )
    keep_draining: bool | None = setting(
        Flag(), "Whether an instance that drains keeps the clients it has.", default=None
    )


# Health checks in the file.


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


# Hedging in the file: when a request that only reads is made once more beside itself.


def _is_quantile(value: object) -> bool:
    return isinstance(value, str) and value.startswith("p")


@table
class ServiceHedge:
    """When a request that only reads is made once more beside itself."""

    after: float | str | None = setting(
        Either(
            _is_quantile,
            Text('a share of the answers such as "p95"', pattern=r"p[1-9][0-9](?:\.[0-9])?"),
            Duration(),
        ),
        'After how long without an answer: "200ms", or "p95" for what 95 % of them took lately.',
        default=None,
    )
    most: int | None = setting(
        Integer(1, 5), "How many tries there are beside the first one.", default=None
    )


# Ejection in the file: when an instance of a service is left out for a while.


@table
class ServiceOutlier:
    """When an instance is left out for a while, judged by its answers."""

    consecutive_failures: int | None = setting(
        Integer(0), "Failures in a row after which it is; 0 for no such rule.", default=None
    )
    eject_for: float | None = setting(
        Duration(), "How long at first; each time as much longer.", default=None
    )
    eject_at_most: float | None = setting(Duration(), "How long at most.", default=None)
    most_ejected: float | None = setting(
        Number(0, 1), "The share of the instances that may be left out at once.", default=None
    )
    success_rate: bool | None = setting(
        Flag(), "Whether who answers markedly less often than the others is too.", default=None
    )
    least_instances: int | None = setting(
        Integer(1), "Instances below which that is not judged.", default=None
    )
    least_requests: int | None = setting(
        Integer(1), "Requests of ten seconds that an instance is judged by at least.", default=None
    )
    deviations: float | None = setting(
        Number(0.1, 100), "How many standard deviations below the others it is.", default=None
    )


# Retries in the file: when a request to a service is made once more.

_BUDGET = ("budget", "budget_floor")


@table
class ServiceRetry:
    """When a request is made once more: if it was not processed, or twice is as good as once."""

    attempts: int | None = setting(
        Integer(1, 10), "How many there are in all, the first among them.", default=None
    )
    backoff: float | None = setting(
        Duration(zero=True),
        "The wait before the first retry is drawn from 0 to that; each time twice as much.",
        default=None,
    )
    backoff_at_most: float | None = setting(
        Duration(zero=True), "The most it is drawn from.", default=None
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(Choice(*IDEMPOTENT)),
        "The methods that are repeated although they may have been processed.",
        default=None,
    )
    statuses: tuple[int, ...] | None = setting(
        ListOf(Integer(500, 599)), "The statuses after which there is a retry.", default=None
    )
    idempotency_key: bool | None = setting(
        Flag(),
        "Whether the service keeps to Idempotency-Key, so that what has one can be repeated.",
        default=None,
    )
    retry_after_at_most: float | None = setting(
        Duration(zero=True), "The longest Retry-After that is waited for.", default=None
    )
    per_try_timeout: float | None = setting(
        Duration(), "How long each try may take until its answer begins.", default=None
    )
    buffer: int | None = setting(
        Size(), "How much of a request's body is kept to be sent again.", default=None
    )
    budget: float | None = setting(
        Number(0, 1), "Retries per request, over the last ten seconds.", default=None
    )
    budget_floor: float | None = setting(
        Number(0, 10_000), "Retries a second that there may be anyhow.", default=None
    )


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


@table
class Weighted:
    """One instance and its share of the requests."""

    url: str = setting(Url(), "Its address.")
    weight: int = setting(
        Integer(0, 65535), "Its share relative to the others; 0 drains it.", default=1
    )
    tier: int = setting(
        Integer(0, 15),
        "Whose turn it is: 0 first, the next ones as far as those before fail.",
        default=0,
    )
    zone: str = setting(
        Text("a zone without spaces", pattern=r"[\x21-\x7e]{0,128}"),
        "The availability zone it runs in.",
        default="",
    )


@table
class Tls:
    """How the certificates of https:// instances are verified."""

    verify: bool = setting(Flag(), "Whether they are verified at all.", default=True)
    ca: str | None = setting(
        Text(),
        "A file or folder with the authorities to believe instead of the usual.",
        default=None,
    )
    server_name: str | None = setting(
        Text("a host's name", pattern=r"[A-Za-z0-9._-]+"),
        "The name that certificates are for, where an instance's address is not.",
        default=None,
    )


@table
class ServerTls:
    """The gateway's own certificate."""

    cert: str = setting(Text(), "A PEM file with the certificate and those that vouch for it.")
    key: str | None = setting(
        Text(), "A PEM file with its key, unless the same file holds it.", default=None
    )


@table
class Service:
    """A backend application: its instances, and how they are talked to."""

    instances: tuple[Weighted | str, ...] = setting(
        ListOf(Either(_is_table, Table(Weighted, name="Instance"), Url()), least=1),
        'Where it runs: "http://10.0.0.5:8000", or { url = "...", weight = 2, tier = 1 }.',
        default=(),
    )
    discover: Discover | tuple[str, ...] | str | None = setting(
        Either(_is_table, Table(Discover), SOURCES),
        'Who knows where it runs, instead: "registry", "dns:orders.internal:8000" and others.',
        default=None,
    )
    routes: tuple[str, ...] = setting(
        ListOf(Text()), "The paths it has, for people to read in /services.", default=()
    )
    health: ServiceHealth | TcpHealth | None = setting(
        HEALTH, "How its health is checked.", default=None
    )
    balance: Balance | str | None = setting(
        Either(_is_table, Table(Balance), POLICY),
        "Who of them takes the next request; two-choices unless said.",
        default=None,
    )
    prefer_zone: bool | None = setting(
        Flag(),
        "Whether instances in the gateway's own zone come first, where gateway.zone is set; true "
        "unless said.",
        default=None,
    )
    sticky: ServiceSticky | None = setting(
        Table(ServiceSticky),
        "How clients stay with an instance, by a signed cookie; they do not unless said.",
        default=None,
    )
    max_in_flight: int | None = setting(
        Integer(0),
        "How many of its requests a worker serves at a time; requests above that get a 503 at "
        "once. 0: no limit. Default: no limit for a single service; several share the threads, "
        "and only a slow one is limited.",
        default=None,
    )
    instance_max_in_flight: int | None = setting(
        Integer(1), "How many requests a worker gives to one instance at a time.", default=None
    )
    breaker: ServiceBreaker | None = setting(
        Table(ServiceBreaker),
        "When it is left alone for a while; {} for the defaults, none unless said.",
        default=None,
    )
    outlier: ServiceOutlier | None = setting(
        Table(ServiceOutlier),
        "When an instance is left out for a while; {} for the defaults, never unless said.",
        default=None,
    )
    retry: ServiceRetry | None = setting(
        Table(ServiceRetry),
        "When a request is made once more; {} for the defaults, never unless said.",
        default=None,
    )
    hedge: ServiceHedge | None = setting(
        Table(ServiceHedge),
        "When a request that only reads is made at a second instance before the first has answered;"
        " {} for the defaults, never unless said.",
        default=None,
    )
    fallback: FallbackTable | None = setting(
        Table(FallbackTable, name="Fallback"),
        "What is answered when it fails, on routes that do not say.",
        default=None,
    )
    timeout: float | None = setting(
        Duration(), "How long until the answer begins; caps the next two.", default=None
    )
    connect_timeout: float | None = setting(
        Duration(), "How long connecting may take.", default=None
    )
    read_timeout: float | None = setting(
        Duration(), "How long an instance may be silent.", default=None
    )
    min_response_rate: int | None = setting(
        Size(),
        "Bytes a second that an instance must send of a response's body, on average over the time "
        "that the gateway waits for it, after 30 s; 0 for any; 100B unless said. Not for streams "
        "of events.",
        default=None,
    )
    response_timeout: float | None = setting(
        Duration(),
        "How long the gateway waits in all for a response's body; any time unless said. Not for "
        "streams of events.",
        default=None,
    )
    tls: Tls | None = setting(Table(Tls), "How certificates are verified.", default=None)
    host: str | None = setting(
        Text('a name such as "shop.example" or "shop.example:8080"'),
        "The Host that its instances are asked by; with discover by dns or srv the name that was "
        "looked up, else the instance's own, unless given.",
        default=None,
    )
    preserve_host: bool | None = setting(
        Flag(), "Send the client's Host instead of the instance's own.", default=None
    )
