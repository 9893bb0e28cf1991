"""The tables of the file's services: balancing, health checks, retries, ejection, TLS.

An optional key whose default is defined by a constructor is None here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from wsgigate.config.discover import SOURCES, Discover
from wsgigate.config.middleware_options import ServiceBreaker
from wsgigate.config.tables import Either, ListOf, MapOf, Table, is_table, setting, table
from wsgigate.config.traffic import FallbackTable
from wsgigate.config.types import (
    FIELD_NAME,
    Choice,
    Duration,
    Flag,
    Integer,
    Number,
    Secret,
    Size,
    Text,
    Url,
)
from wsgigate.rules.balance import POLICIES
from wsgigate.rules.retry import IDEMPOTENT

__all__ = [
    "BUDGET_KEYS",
    "HEALTH",
    "HEALTH_KEYS",
    "POLICY",
    "Balance",
    "Options",
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


# Load balancing and sticky sessions.

POLICY = Choice(*POLICIES)


@table
class Balance:
    """Load balancing: which instance handles the next request."""

    use: str = setting(POLICY, "The load-balancing policy.", default="two-choices")
    key: str | None = setting(
        Text('"address", "subject", "header:NAME", "cookie:NAME", "claim:NAME" or "path:NAME"'),
        "The key that requests to the same instance share, for consistent-hash. Default: the "
        "client's address.",
        default=None,
    )
    slow_start: float | None = setting(
        Duration(zero=True),
        "The time over which a recovered instance ramps up to its full share.",
        default=None,
    )


@table
class ServiceSticky:
    """Sticky sessions: clients stay with the instance that answered first, by a signed cookie."""

    secret: str = setting(
        Secret(), "The secret that signs the cookie; the same on all gateways.", repr=False
    )
    cookie: str | None = setting(
        Text('a cookie\'s name such as "shop"', pattern=FIELD_NAME),
        "The cookie's name. Default: \"wsgigate-\" and the service's name.",
        default=None,
    )
    max_age: float | None = setting(
        Duration(),
        "The cookie's lifetime, renewed after half of it. Default: a session cookie.",
        default=None,
    )
    path: str | None = setting(
        Text('a path such as "/shop"', pattern=r"/[^;\x00-\x1f\x7f]*"),
        'The cookie\'s path. Default: "/".',
        default=None,
    )
    keep_draining: bool | None = setting(
        Flag(), "Keep existing clients on an instance that drains.", default=None
    )


# Health checks.


@table
class ServiceHealth:
    """Active health checks over HTTP."""

    path: str = setting(Text('a path such as "/health"', pattern=r"/.*"), "The path to probe.")
    type: str = setting(
        Choice("http"),
        'The kind of check. With "tcp" an instance that accepts a connection is healthy; path, '
        "statuses and contains are then not allowed.",
        default="http",
    )
    interval: float | None = setting(Duration(), "The time between two checks.", default=None)
    timeout: float | None = setting(Duration(), "The time limit for a response.", default=None)
    healthy_after: int | None = setting(
        Integer(1, 100),
        "Consecutive successful checks before an instance is used again.",
        default=None,
    )
    unhealthy_after: int | None = setting(
        Integer(1, 100),
        "Consecutive failed checks before an instance is removed from rotation.",
        default=None,
    )
    statuses: tuple[int, ...] | None = setting(
        ListOf(Integer(200, 599), least=1),
        "The response statuses of a healthy instance.",
        default=None,
    )
    contains: str | None = setting(
        Text(),
        "Text that a healthy instance's response contains, in its first 64 KiB.",
        default=None,
    )
    host: str | None = setting(
        Text('a name such as "shop.example"'),
        "The Host field to send. Default: the Host that the service's requests have.",
        default=None,
    )
    fields: Mapping[str, str] | None = setting(
        MapOf(Text()),
        "Additional request fields by name, such as Authorization.",
        default=None,
        repr=False,
    )
    method: str | None = setting(
        Text('a method such as "GET" or "HEAD"'), "The request method.", default=None
    )
    port: int | None = setting(
        Integer(1, 65535), "The port to probe. Default: the instance's port.", default=None
    )
    scheme: str | None = setting(
        Choice("http", "https"),
        "The scheme to probe with. Default: the instance's scheme.",
        default=None,
    )


@table
class TcpHealth:
    """Active health checks by TCP connection."""

    type: str = setting(Choice("tcp"), "The kind of check.")
    interval: float | None = setting(Duration(), "The time between two checks.", default=None)
    timeout: float | None = setting(Duration(), "The time limit for a connection.", default=None)
    healthy_after: int | None = setting(
        Integer(1, 100),
        "Consecutive accepted connections before an instance is used again.",
        default=None,
    )
    unhealthy_after: int | None = setting(
        Integer(1, 100),
        "Consecutive failed connections before an instance is removed from rotation.",
        default=None,
    )
    port: int | None = setting(
        Integer(1, 65535), "The port to connect to. Default: the instance's port.", default=None
    )


Options: TypeAlias = ServiceHealth | TcpHealth


def _asks(value: Any) -> bool:
    return not (isinstance(value, dict) and value.get("type") == "tcp")


HEALTH = Either(_asks, Table(ServiceHealth), Table(TcpHealth))

HEALTH_KEYS = ("host", "fields", "method", "port", "scheme", "contains")
"""The keys that an error of a health check may begin with."""


# Hedging.


def _is_quantile(value: object) -> bool:
    return isinstance(value, str) and value.startswith("p")


@table
class ServiceHedge:
    """Hedged requests: send a slow read-only request to a second instance as well."""

    after: float | str | None = setting(
        Either(
            _is_quantile,
            Text('a share of the answers such as "p95"', pattern=r"p[1-9][0-9](?:\.[0-9])?"),
            Duration(),
        ),
        'How long to wait for a response before hedging: "200ms", or "p95" for the time within '
        "which 95 % of recent responses began.",
        default=None,
    )
    most: int | None = setting(
        Integer(1, 5), "The maximum number of additional attempts.", default=None
    )


# Outlier detection.


@table
class ServiceOutlier:
    """Outlier detection: eject an instance for a while, judged by its responses."""

    consecutive_failures: int | None = setting(
        Integer(0),
        "Consecutive failures that eject an instance; 0 disables this rule.",
        default=None,
    )
    eject_for: float | None = setting(
        Duration(),
        "The duration of the first ejection; each further one is longer by as much.",
        default=None,
    )
    eject_at_most: float | None = setting(
        Duration(), "The maximum duration of an ejection.", default=None
    )
    most_ejected: float | None = setting(
        Number(0, 1),
        "The maximum fraction of the instances that may be ejected at once.",
        default=None,
    )
    success_rate: bool | None = setting(
        Flag(),
        "Also eject instances whose success rate is markedly below the others'.",
        default=None,
    )
    least_instances: int | None = setting(
        Integer(1), "The minimum number of instances to compare success rates.", default=None
    )
    least_requests: int | None = setting(
        Integer(1),
        "The minimum number of requests in ten seconds to judge an instance's success rate.",
        default=None,
    )
    deviations: float | None = setting(
        Number(0.1, 100),
        "How many standard deviations below the mean a success rate must be to eject.",
        default=None,
    )


# Retries.

BUDGET_KEYS = ("budget", "budget_floor")


@table
class ServiceRetry:
    """Retries of requests that were not processed, or that are idempotent."""

    attempts: int | None = setting(
        Integer(1, 10), "The maximum number of attempts, including the first.", default=None
    )
    backoff: float | None = setting(
        Duration(zero=True),
        "The delay before the first retry is random between 0 and this value; the bound doubles "
        "with each retry.",
        default=None,
    )
    backoff_at_most: float | None = setting(
        Duration(zero=True), "The maximum bound of the random delay.", default=None
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(Choice(*IDEMPOTENT)),
        "Methods to retry even if the request may have been processed.",
        default=None,
    )
    statuses: tuple[int, ...] | None = setting(
        ListOf(Integer(500, 599)), "Response statuses that trigger a retry.", default=None
    )
    idempotency_key: bool | None = setting(
        Flag(),
        "The service honours Idempotency-Key, so requests with this field may be retried.",
        default=None,
    )
    retry_after_at_most: float | None = setting(
        Duration(zero=True), "The longest Retry-After to wait for.", default=None
    )
    per_try_timeout: float | None = setting(
        Duration(), "The time limit for each attempt, until its response begins.", default=None
    )
    buffer: int | None = setting(
        Size(), "The maximum size of a request body that is kept for retries.", default=None
    )
    budget: float | None = setting(
        Number(0, 1),
        "The maximum ratio of retries to requests, over the last ten seconds.",
        default=None,
    )
    budget_floor: float | None = setting(
        Number(0, 10_000),
        "Retries per second that are allowed regardless of the ratio.",
        default=None,
    )


@table
class Weighted:
    """One instance and its share of the requests."""

    url: str = setting(Url(), "The instance's address.")
    weight: int = setting(
        Integer(0, 65535),
        "The share relative to the other instances; 0 drains the instance.",
        default=1,
    )
    tier: int = setting(
        Integer(0, 15),
        "The priority tier: 0 is used first, the next tiers as far as those before fail.",
        default=0,
    )
    zone: str = setting(
        Text("a zone without spaces", pattern=r"[\x21-\x7e]{0,128}"),
        "The availability zone of the instance.",
        default="",
    )


@table
class Tls:
    """Verification of the certificates of https:// instances."""

    verify: bool = setting(Flag(), "Verify certificates.", default=True)
    ca: str | None = setting(
        Text(),
        "A file or folder of CA certificates to trust instead of the default ones.",
        default=None,
    )
    server_name: str | None = setting(
        Text("a host's name", pattern=r"[A-Za-z0-9._-]+"),
        "The name that certificates are issued for, if it differs from the instance's address.",
        default=None,
    )


@table
class ServerTls:
    """The gateway's own certificate."""

    cert: str = setting(
        Text(), "A PEM file with the certificate and its intermediate certificates."
    )
    key: str | None = setting(
        Text(),
        "A PEM file with the private key. Default: the file of the certificate.",
        default=None,
    )


@table
class Service:
    """A backend application: its instances, and how the gateway connects to them."""

    instances: tuple[Weighted | str, ...] = setting(
        ListOf(Either(is_table, Table(Weighted, name="Instance"), Url()), least=1),
        'The addresses of the instances: "http://10.0.0.5:8000", or { url = "...", weight = 2, '
        "tier = 1 }.",
        default=(),
    )
    discover: Discover | tuple[str, ...] | str | None = setting(
        Either(is_table, Table(Discover), SOURCES),
        'The source that finds the instances, instead of instances: "registry", '
        '"dns:orders.internal:8000" and others.',
        default=None,
    )
    routes: tuple[str, ...] = setting(
        ListOf(Text()), "The service's paths, for people to read in /services.", default=()
    )
    health: ServiceHealth | TcpHealth | None = setting(
        HEALTH, "Active health checks.", default=None
    )
    balance: Balance | str | None = setting(
        Either(is_table, Table(Balance), POLICY),
        "The load-balancing policy. Default: two-choices.",
        default=None,
    )
    prefer_zone: bool | None = setting(
        Flag(),
        "Prefer instances in the gateway's own zone, where gateway.zone is set. Default: true.",
        default=None,
    )
    sticky: ServiceSticky | None = setting(
        Table(ServiceSticky),
        "Sticky sessions, by a signed cookie. Default: disabled.",
        default=None,
    )
    max_in_flight: int | None = setting(
        Integer(0),
        "The maximum number of this service's requests in flight per worker; requests above "
        "that get a 503 at once. 0: no limit. Default: no limit for a single service; several "
        "services share the threads, and only a slow one is limited.",
        default=None,
    )
    instance_max_in_flight: int | None = setting(
        Integer(1),
        "The maximum number of requests in flight per worker and instance. Default: no limit.",
        default=None,
    )
    breaker: ServiceBreaker | None = setting(
        Table(ServiceBreaker),
        "The circuit breaker; {} for the defaults. Default: disabled.",
        default=None,
    )
    outlier: ServiceOutlier | None = setting(
        Table(ServiceOutlier),
        "Outlier detection, which ejects failing instances for a while; {} for the defaults. "
        "Default: disabled.",
        default=None,
    )
    retry: ServiceRetry | None = setting(
        Table(ServiceRetry),
        "Retries; {} for the defaults. Default: disabled.",
        default=None,
    )
    hedge: ServiceHedge | None = setting(
        Table(ServiceHedge),
        "Hedged requests, which send a slow read-only request to a second instance as well; {} "
        "for the defaults. Default: disabled.",
        default=None,
    )
    fallback: FallbackTable | None = setting(
        Table(FallbackTable, name="Fallback"),
        "The fallback when the service fails, on routes without a fallback.",
        default=None,
    )
    timeout: float | None = setting(
        Duration(),
        "The time limit until the response begins; also caps connect_timeout and read_timeout.",
        default=None,
    )
    connect_timeout: float | None = setting(
        Duration(), "The time limit for connecting.", default=None
    )
    read_timeout: float | None = setting(
        Duration(), "How long an instance may send nothing.", default=None
    )
    min_response_rate: int | None = setting(
        Size(),
        "The minimum rate of a response body, in bytes per second, on average over the time "
        "that the gateway waits for it, after 30 s; 0 for no minimum. Does not apply to event "
        "streams. Default: 100B.",
        default=None,
    )
    response_timeout: float | None = setting(
        Duration(),
        "The total time that the gateway waits for a response body. Does not apply to event "
        "streams. Default: no limit.",
        default=None,
    )
    tls: Tls | None = setting(
        Table(Tls), "Verification of the instances' certificates.", default=None
    )
    host: str | None = setting(
        Text('a name such as "shop.example" or "shop.example:8080"'),
        "The Host field to send to instances. Default: the looked-up name with discover by dns "
        "or srv, else the instance's own.",
        default=None,
    )
    preserve_host: bool | None = setting(
        Flag(), "Send the client's Host instead of the instance's.", default=None
    )
