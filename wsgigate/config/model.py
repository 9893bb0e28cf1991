"""The model of the file: its tables and keys with their descriptions, and its JSON Schema.

An optional key whose default is defined by a constructor is None here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from wsgigate.config.discover import SOURCES, Discover
from wsgigate.config.errors import at
from wsgigate.config.middlewares import Middleware, MiddlewareEntry
from wsgigate.config.registry import RegistryTable
from wsgigate.config.tables import (
    Arguments,
    ArgumentTable,
    Either,
    ListOf,
    MapOf,
    Table,
    TableKey,
    argument,
    is_flag,
    is_list,
    is_table,
    setting,
    table,
)
from wsgigate.config.types import (
    Bind,
    Boolean,
    Duration,
    Enumeration,
    ImportPath,
    Integer,
    Number,
    ParsedText,
    PathPattern,
    Schema,
    Secret,
    Text,
    Url,
)
from wsgigate.http.fields import FieldRules
from wsgigate.http.forwarded import AddressList, address_field
from wsgigate.middleware.maintenance import Maintenance
from wsgigate.middleware.mirror import Mirror
from wsgigate.middleware.splitter import Splitter
from wsgigate.middleware.stale import StaleAnswers
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.sticky import Stickiness
from wsgigate.proxy.websocket import WebSocketLimits
from wsgigate.rules.arguments import FIELD_NAME
from wsgigate.rules.balance import POLICIES
from wsgigate.rules.circuit import CircuitRules
from wsgigate.rules.fallback import FallbackRules
from wsgigate.rules.health import HealthCheck
from wsgigate.rules.outlier import OutlierRules
from wsgigate.rules.pace import PaceRules
from wsgigate.rules.retry import HedgeRules, RetryBudget, RetryRules
from wsgigate.rules.routing import Route, host_pattern
from wsgigate.runtime.log_level import LEVELS
from wsgigate.server_check import MOST_THREADS, MOST_WORKERS

__all__ = [
    "BREAKER",
    "MIRROR",
    "RETRY",
    "SPLIT",
    "STALE",
    "STICKY",
    "Admin",
    "Balance",
    "Config",
    "FallbackTable",
    "GatewayTable",
    "InstanceTable",
    "MaintenanceTable",
    "RegistryTable",
    "RouteTable",
    "ServerTls",
    "ServiceTable",
    "Share",
    "StoreTable",
    "Tls",
    "schema",
]


def schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of a gateway's file, for editors.

    It covers each table by itself; ``wsgigate check`` also checks tables against each other.
    """
    definitions: dict[str, Schema] = {}
    root = Table(Config).schema(definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "wsgigate",
        "description": "The file that describes a gateway, in TOML or YAML.",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _address(text: str) -> str:
    AddressList([text])
    return text


def _forwarded(text: str) -> str:
    if text not in ("x-forwarded-for", "forwarded"):
        address_field(text)
    return text


_SERVICE = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}"

_ONE_LINE = r"[^\x00-\x1f\x7f]+"


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
class GatewayTable:
    """The settings of the gateway itself."""

    name: str = setting(
        Text("a name of one line", pattern=_ONE_LINE), "The gateway's name.", default="wsgigate"
    )
    version: str = setting(
        Text("a version of one line", pattern=_ONE_LINE), "The gateway's version.", default="0.0.0"
    )
    bind: str = setting(
        Bind(),
        "The address to listen on: HOST:PORT, [IPv6]:PORT or unix:PATH.",
        default="127.0.0.1:3000",
    )
    tls: ServerTls | None = setting(
        Table(ServerTls), "The certificate for TLS connections from clients.", default=None
    )
    http2: bool = setting(
        Boolean(), "Accept HTTP/2 as well as HTTP/1.1. Requires tls.", default=False
    )
    workers: int | None = setting(
        Integer(1, MOST_WORKERS),
        "The number of worker processes. Default: one per CPU.",
        default=None,
    )
    threads: int = setting(
        Integer(1, MOST_THREADS),
        "The number of threads per worker process: requests served at a time.",
        default=16,
    )
    zone: str | None = setting(
        Text("a zone without spaces", pattern=r"[\x21-\x7e]{1,128}"),
        "The availability zone of the gateway; instances in the same zone are preferred. "
        "Default: the environment variable WSGIGATE_ZONE.",
        default=None,
    )
    log_level: str | None = setting(
        Enumeration(*LEVELS),
        "The minimum level of log records. Default: info, which includes every change of state.",
        default=None,
    )
    head_timeout: float | None = setting(
        Duration(), "The time limit for receiving a request's head. Default: 10 s.", default=None
    )
    idle_timeout: float | None = setting(
        Duration(),
        "The time a client may take to send more of a request body, or to read more of a "
        "response. Default: 30 s.",
        default=None,
    )
    keep_alive: float = setting(
        Duration(zero=True),
        "How long an idle client connection stays open for the next request; 0 closes it after "
        "each response.",
        default=75.0,
    )
    self_check: Literal["refuse", "warn"] = setting(
        Enumeration("refuse", "warn"),
        "What to do when the server or its settings make the gateway unsafe: refuse to serve, "
        "or log a warning.",
        default="refuse",
    )
    websockets: int | None = setting(
        Integer(0, 4096),
        "The maximum number of WebSockets per worker. Default: 512 under gunicorn, whose worker "
        "starts a thread for each; elsewhere at least half of the threads, up to three quarters "
        "with few services.",
        default=None,
    )
    trusted_proxies: tuple[str, ...] = setting(
        ListOf(ParsedText(_address, 'an address, a network, or "unix"', reason=True)),
        'Proxies whose forwarding fields are trusted: addresses, networks, "unix" for the peers '
        "of a Unix socket.",
        default=(),
    )
    forwarded: str = setting(
        ParsedText(_forwarded, 'a field such as "x-forwarded-for" or "x-real-ip"', reason=True),
        "The header field in which trusted proxies pass the client's address: x-forwarded-for, "
        "forwarded, a field with a single address such as x-real-ip, cf-connecting-ip, "
        'true-client-ip or fly-client-ip, or "header:NAME" for any other.',
        default="x-forwarded-for",
    )
    request_id: bool = setting(
        Boolean(), "Give every request an id, in logs and header fields.", default=True
    )
    identity: Mapping[str, str] = setting(
        MapOf(Text('a claim such as "sub"'), key=FIELD_NAME, called="a field name"),
        "Request fields that pass claims of the verified token to services: field name to claim "
        "name.",
        default_factory=dict,
    )
    via: str = setting(
        Text("a name without spaces", pattern=FIELD_NAME),
        "The gateway's name in Via fields, which detect forwarding loops. Default: derived from "
        "the gateway's name, the host name and the file.",
        default="",
    )
    loop_field: Literal["via", "cdn-loop"] = setting(
        Enumeration("via", "cdn-loop"),
        "The header field that detects forwarding loops; use cdn-loop for services that do not "
        "compress responses to requests with Via.",
        default="via",
    )
    allowed_hosts: tuple[str, ...] = setting(
        ListOf(
            ParsedText(
                host_pattern, 'a host such as "api.example.com" or "*.example.com"', reason=True
            )
        ),
        "The hosts to serve; requests for other hosts get a 421. Default: all hosts.",
        default=(),
    )
    encoded_slash: Literal["reject", "keep"] = setting(
        Enumeration("reject", "keep"),
        "How to handle %2F in a path, unless the route sets encoded_slash.",
        default="reject",
    )
    list_routes: bool = setting(Boolean(), "List the routes in 404 responses.", default=True)
    fallback: str | None = setting(
        ImportPath("a WSGI application"),
        "The WSGI application for requests that no route matches.",
        default=None,
    )
    fault_injection: bool = setting(
        Boolean(), 'Activate the "faults" middlewares that are enabled.', default=False
    )


@table
class StoreTable:
    """The store for state that workers share: quotas, circuits, health, registrations."""

    url: str = setting(
        Text('"lmdb:", "lmdb:FOLDER", "memory:", or a URL such as "redis://HOST:6379/0"'),
        "lmdb: for the workers of one machine, redis:// for several machines, memory: for a "
        "single process.",
        default="lmdb:",
    )


@table
class Admin:
    """The gateway's own endpoints, such as /health. Without this table there are none."""

    prefix: str = setting(
        Text('"" or a path such as "/_gateway"', pattern=r"|(?:/[A-Za-z0-9._~-]+)+"),
        "The path prefix of the endpoints.",
        default="/_gateway",
    )
    token: str | None = setting(
        Secret(),
        "The bearer token for requests that change something.",
        default=None,
        repr=False,
    )
    routes: Mapping[str, str] = setting(
        MapOf(Text()),
        "The routes that /info lists. Default: derived from the routes.",
        default_factory=dict,
    )
    features: tuple[str, ...] = setting(
        ListOf(Text()), "The features that /info lists.", default=()
    )


@table
class AllowHeader:
    """A request field with a secret; requests with it bypass maintenance."""

    name: str = setting(Text("the name of a field", pattern=FIELD_NAME), "The field's name.")
    secret: str = setting(Secret(), "The field's value, at least 16 characters.", repr=False)


@table
class MaintenanceTable:
    """Maintenance mode: the responses while the gateway, a service or a route is out of service."""

    exempt: tuple[str, ...] = setting(
        ListOf(Text('a path such as "/health" or "/static/*"', pattern="/.*")),
        'Paths that stay in service, such as "/health", or "/static/*" for all paths below it.',
        default=(),
    )
    allow: tuple[str, ...] = setting(
        ListOf(ParsedText(_address, 'an address, a network, or "unix"', reason=True)),
        "Addresses and networks of clients whose requests bypass maintenance.",
        default=(),
    )
    allow_header: AllowHeader | None = setting(
        Table(AllowHeader),
        "A request field and a secret; requests with them bypass maintenance.",
        default=None,
    )
    retry_after: float | None = argument(Maintenance, default=None)
    page: str | None = setting(
        Text(), "A file to serve instead of a problem document.", default=None
    )
    content_type: str | None = setting(
        Text(), "The content type of the page. Default: derived from its file name.", default=None
    )


_FIELD_CHANGES = ArgumentTable(
    FieldRules,
    name="FieldChanges",
    doc="Changes to header fields: remove first, then set, then add.",
)


# Services.

BREAKER = ArgumentTable(
    CircuitRules,
    name="ServiceBreaker",
    keys={"statuses": (Resilience, "failures")},
)

RETRY = ArgumentTable(
    RetryRules,
    keys={"budget": (RetryBudget, "share"), "budget_floor": (RetryBudget, "floor")},
)

STICKY = ArgumentTable(
    Stickiness,
    without=("service",),
    keys={
        "secret": TableKey(
            Secret(),
            "The secret that signs the cookie, at least 16 bytes; the same on all gateways.",
            convert=lambda secret: secret.encode("utf-8", "surrogatepass"),
        )
    },
)

_HTTP_HEALTH = ArgumentTable(
    HealthCheck,
    name="ServiceHealth",
    doc="Active health checks over HTTP.",
    keys={
        "type": TableKey(
            Enumeration("http"),
            'The kind of check. With "tcp" an instance that accepts a connection is healthy; path, '
            "statuses and contains are then not allowed.",
            "http",
        ),
        "host": "The Host field to send. Default: the Host that the service's requests have.",
    },
)

_TCP_HEALTH = ArgumentTable(
    HealthCheck,
    without=("path", "statuses", "contains", "host", "fields", "method", "scheme"),
    name="TcpHealth",
    doc="Active health checks by TCP connection.",
    keys={"type": TableKey(Enumeration("tcp"), "The kind of check.")},
)


def _is_http(value: Any) -> bool:
    return not (isinstance(value, dict) and value.get("type") == "tcp")


_POLICY = Enumeration(*POLICIES)


@table
class Balance:
    """Load balancing: which instance handles the next request."""

    use: str = setting(_POLICY, "The load-balancing policy.", default="two-choices")
    key: str | None = setting(
        Text('"address", "subject", "header:NAME", "cookie:NAME", "claim:NAME" or "path:NAME"'),
        "The key that requests to the same instance share, for consistent-hash. Default: the "
        "client's address.",
        default=None,
    )
    slow_start: float | None = argument(Pool, default=None)


STALE = ArgumentTable(
    StaleAnswers,
    without=("rules",),
    name="Stale",
)


@table
class FallbackTable:
    """The response when a service fails."""

    stale: bool | Arguments = setting(
        Either(is_flag, Boolean(), STALE),
        "Serve an earlier good response if one is kept and may be served; takes precedence.",
        default=False,
    )
    service: str | None = setting(Text(), "Another service that handles the request.", default=None)
    app: str | None = setting(
        ImportPath("a WSGI application"),
        "A WSGI application that handles the request, in this process.",
        default=None,
    )
    body: str | None = setting(Text(), "A fixed response: its body.", default=None)
    file: str | None = setting(Text(), "A fixed response: a file with its body.", default=None)
    status: int | None = setting(
        Integer(200, 599), "The status of the fixed response.", default=None
    )
    content_type: str | None = setting(
        Text(), "The content type of the fixed response.", default=None
    )
    statuses: tuple[int, ...] | None = argument(FallbackRules, default=None)
    reasons: tuple[str, ...] | None = argument(FallbackRules, default=None)
    methods: tuple[str, ...] | None = argument(FallbackRules, default=None)


@table
class InstanceTable:
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

    verify: bool = setting(Boolean(), "Verify certificates.", default=True)
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
class ServiceTable:
    """A backend application: its instances, and how the gateway connects to them."""

    instances: tuple[InstanceTable | str, ...] = setting(
        ListOf(Either(is_table, Table(InstanceTable), Url()), least=1),
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
    health: Arguments | None = setting(
        Either(_is_http, _HTTP_HEALTH, _TCP_HEALTH),
        "Active health checks.",
        default=None,
        repr=False,  # its fields may be credentials
    )
    balance: Balance | str | None = setting(
        Either(is_table, Table(Balance), _POLICY),
        "The load-balancing policy. Default: two-choices.",
        default=None,
    )
    prefer_zone: bool | None = setting(
        Boolean(),
        "Prefer instances in the gateway's own zone, where gateway.zone is set. Default: true.",
        default=None,
    )
    sticky: Arguments | None = setting(
        STICKY,
        "Sticky sessions, by a signed cookie. Default: disabled.",
        default=None,
        repr=False,
    )
    max_in_flight: int | None = setting(
        Integer(0),
        "The maximum number of this service's requests in flight per worker; requests above "
        "that get a 503 at once. 0: no limit. Default: no limit for a single service; several "
        "services share the threads, and only a slow one is limited.",
        default=None,
    )
    instance_max_in_flight: int | None = argument(Pool, "instance_limit", default=None)
    breaker: Arguments | None = setting(
        BREAKER,
        "The circuit breaker; {} for the defaults. Default: disabled.",
        default=None,
    )
    outlier: Arguments | None = setting(
        ArgumentTable(OutlierRules),
        "Outlier detection, which ejects failing instances for a while; {} for the defaults. "
        "Default: disabled.",
        default=None,
    )
    retry: Arguments | None = setting(
        RETRY,
        "Retries; {} for the defaults. Default: disabled.",
        default=None,
    )
    hedge: Arguments | None = setting(
        ArgumentTable(HedgeRules),
        "Hedged requests, which send a slow read-only request to a second instance as well; {} "
        "for the defaults. Default: disabled.",
        default=None,
    )
    fallback: FallbackTable | None = setting(
        Table(FallbackTable),
        "The fallback when the service fails, on routes without a fallback.",
        default=None,
    )
    timeout: float | None = argument(Forwarder, default=None)
    connect_timeout: float | None = argument(Forwarder, default=None)
    read_timeout: float | None = argument(Forwarder, default=None)
    min_response_rate: int | None = argument(
        PaceRules,
        "least",
        doc="The minimum rate of a response body, in bytes per second, on average over the time "
        "that the gateway waits for it, after 30 s; 0 for no minimum. Does not apply to event "
        "streams.",
        default=None,
    )
    response_timeout: float | None = argument(
        PaceRules,
        "total",
        doc="The total time that the gateway waits for a response body. Does not apply to event "
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
    preserve_host: bool | None = argument(Forwarder, default=None)


# Routes.

SPLIT = ArgumentTable(
    Splitter,
    without=("apps", "salt"),
    name="Split",
    keys={
        "key": TableKey(
            Either(is_list, ListOf(Text(), least=1), Text()),
            "The key whose requests go to the same service, as of a limiter. Default: each request "
            "is assigned at random.",
            None,
        ),
        "override": "A request field that names the service, also one with weight 0. An unknown "
        "name is ignored. Any client can send the field.",
    },
)

MIRROR = ArgumentTable(
    Mirror,
    name="Mirror",
    keys={"service": TableKey(Text(), "The service.")},
)


@table
class Share:
    """A service and its share of a route's requests."""

    service: str = setting(Text(), "The service.")
    weight: float = setting(
        Number(0), "The share relative to the other services; 0 for none.", default=1.0
    )


_SLASHES = Enumeration("reject", "keep")


@table
class RouteTable:
    """One route: the requests it matches, and the service or WSGI application for them."""

    path: str | None = setting(
        PathPattern(),
        'This path and all paths below it; "{name}" is a named segment, "*" any one segment.',
        default=None,
    )
    paths: tuple[str, ...] = setting(
        ListOf(PathPattern(), least=1), "Several paths with the same settings.", default=()
    )
    host: str = setting(
        Text(),
        'The requested host: "api.example.com" or "*.example.com". Default: any host.',
        default="",
    )
    methods: tuple[str, ...] = setting(
        ListOf(Text('a method such as "GET"', pattern="[A-Za-z][A-Za-z-]*")),
        "The allowed methods. Default: all methods.",
        default=(),
    )
    exact: bool | None = argument(Route, default=None)
    priority: int | None = argument(Route, default=None)
    name: str = setting(
        Text("a name of one line", pattern=_ONE_LINE),
        "The route's name in logs. Default: its path.",
        default="",
    )
    summary: str | None = argument(Route, default=None)
    listed: tuple[str, ...] | None = argument(Route, default=None)
    service: str | None = setting(Text(), "The service that handles the requests.", default=None)
    services: tuple[Share, ...] = setting(
        ListOf(Table(Share), least=1),
        "Several services, each with a share of the requests.",
        default=(),
    )
    split: Arguments | None = setting(
        SPLIT,
        "How requests are divided between the services.",
        default=None,
    )
    app: str | None = setting(
        ImportPath("a WSGI application"),
        "The WSGI application that handles the requests, in this process.",
        default=None,
    )
    fallback: FallbackTable | None = setting(
        Table(FallbackTable),
        "The fallback when the route's services fail; overrides the fallbacks of the services.",
        default=None,
    )
    mirror: Arguments | None = setting(
        MIRROR,
        "Traffic mirroring: the service that receives copies of the requests.",
        default=None,
    )
    strip_prefix: bool | str = setting(
        Either(
            is_flag,
            Boolean(),
            Text('true, false or a path such as "/api"', pattern=r"(?:/[^/?#]+)+"),
        ),
        "The prefix to remove from the path: true for the route's path, or a path.",
        default=False,
    )
    add_prefix: str | None = argument(Forwarder, default=None)
    encoded_slash: Literal["reject", "keep"] | None = setting(
        _SLASHES, "How to handle %2F in the path. Default: as gateway.encoded_slash.", default=None
    )
    encoded_backslash: Literal["reject", "keep"] | None = argument(Route, default=None)
    double_slash: Literal["merge", "keep"] | None = argument(Route, default=None)
    dot_segments: Literal["reject", "keep"] | None = argument(Route, default=None)
    request_fields: Arguments | None = setting(
        _FIELD_CHANGES, "Changes to the request's header fields.", default=None
    )
    response_fields: Arguments | None = setting(
        _FIELD_CHANGES, "Changes to the response's header fields.", default=None
    )
    preserve_host: bool | None = argument(Forwarder, default=None)
    rewrite_location: bool | None = argument(Forwarder, default=None)
    rewrite_cookies: bool | None = argument(Forwarder, default=None)
    websocket: bool | Arguments = setting(
        Either(is_flag, Boolean(), ArgumentTable(WebSocketLimits)),
        "Allow WebSockets on this route.",
        default=False,
    )
    forward_authorization: bool | None = argument(
        Forwarder,
        doc="Forward the Authorization field to the service. Default: true, but false when "
        "gateway.identity is set.",
        default=None,
    )
    middleware: tuple[Middleware, ...] = setting(
        ListOf(MiddlewareEntry()),
        "The middlewares of this route, outermost first.",
        default=(),
    )

    def service_names(self) -> Iterator[str | None]:
        """Yield the services that may receive the route's requests."""
        yield self.service
        yield from (share.service for share in self.services)
        if self.fallback is not None:
            yield self.fallback.service
        if self.mirror is not None:
            yield self.mirror.get("service")


@table
class Config:
    """A gateway: its middlewares, its routes and its services."""

    gateway: GatewayTable = setting(
        Table(GatewayTable), "The settings of the gateway itself.", default_factory=GatewayTable
    )
    store: StoreTable = setting(
        Table(StoreTable),
        "The store for state that workers share.",
        default_factory=StoreTable,
    )
    admin: Admin | None = setting(Table(Admin), "The gateway's own endpoints.", default=None)
    maintenance: MaintenanceTable | None = setting(
        Table(MaintenanceTable),
        "Maintenance mode. Without this table there is no maintenance switch.",
        default=None,
    )
    registry: RegistryTable | None = setting(
        Table(RegistryTable), "The service registry.", default=None
    )
    middleware: tuple[Middleware, ...] = setting(
        ListOf(MiddlewareEntry()), "The middlewares of all requests, outermost first.", default=()
    )
    services: Mapping[str, ServiceTable] = setting(
        MapOf(
            Table(ServiceTable, one_of=("instances", "discover")),
            key=_SERVICE,
            called="a service's name",
        ),
        "The services, by name.",
        default_factory=dict,
    )
    routes: tuple[RouteTable, ...] = setting(
        ListOf(Table(RouteTable)),
        "The routes, in any order: the most specific match wins.",
        default=(),
    )

    def middleware_lists(self) -> Iterator[tuple[str, Sequence[Middleware]]]:
        """Yield each list of middlewares with its key path, that of all requests first."""
        yield "middleware", self.middleware
        for index, route in enumerate(self.routes):
            yield at(at("routes", index), "middleware"), route.middleware

    def middlewares(self) -> list[Middleware]:
        """Return the entries of all lists."""
        return [entry for _, entries in self.middleware_lists() for entry in entries]

    def virtual_host(self, name: str) -> str:
        """Return the one host that clients request a service by, if it gets the client's ``Host``.

        Its health checks send this ``Host`` too, as a virtual host responds to no other. Empty when
        ``preserve_host`` is off, or when the routes have no host or several.
        """
        hosts = self.preserved_hosts(name)
        [host] = hosts if len(hosts) == 1 else [""]
        return "" if host.startswith("*") else host

    def preserved_hosts(self, name: str) -> set[str]:
        """Return the hosts of the routes to a service that forward the client's ``Host``."""
        service = self.services[name]
        return {
            route.host
            for route in self.routes
            if name in route.service_names()
            and (service.preserve_host if route.preserve_host is None else route.preserve_host)
        }
