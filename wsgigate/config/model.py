"""The model of the file: its tables and keys with their descriptions, and its JSON Schema.

An optional key whose default is defined by a constructor is None here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from wsgigate.admin.access import origin_of
from wsgigate.config.discover import SOURCES, Discover
from wsgigate.config.errors import at
from wsgigate.config.middlewares import Middleware, MiddlewareEntry
from wsgigate.config.registry import RegistryTable
from wsgigate.config.tables import (
    Arguments,
    ArgumentTable,
    ListOf,
    MapOf,
    Table,
    TableKey,
    UnionOf,
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
    HiddenText,
    ImportPath,
    Integer,
    Number,
    ParsedText,
    PathPattern,
    Schema,
    Text,
    Url,
)
from wsgigate.coordination.api_keys import ApiKeys
from wsgigate.discovery import Instance
from wsgigate.http.fields import FieldRules
from wsgigate.http.forwarded import AddressList, address_field
from wsgigate.http.responses import fixed_response
from wsgigate.middleware.maintenance import Maintenance
from wsgigate.middleware.mirror import Mirror
from wsgigate.middleware.splitter import Splitter
from wsgigate.middleware.stale import StaleAnswers
from wsgigate.middleware.tracing import Tracing
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
from wsgigate.runtime.logs import LEVELS
from wsgigate.server_check import MOST_THREADS, MOST_WORKERS
from wsgigate.telemetry.metrics import MAX_SERIES
from wsgigate.telemetry.span_export import SpanExport

__all__ = [
    "BREAKER",
    "INTERNAL_TOKEN",
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
    "LoggingTable",
    "MaintenanceTable",
    "MetricsTable",
    "RegistryTable",
    "RouteTable",
    "ServerTls",
    "ServiceTable",
    "ShareTable",
    "StoreTable",
    "Tls",
    "TracingTable",
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


INTERNAL_TOKEN = ArgumentTable(
    "wsgigate.auth.internal_token:InternalTokens",
    keys={
        "jwks_path": TableKey(
            Text('a path such as "/.well-known/jwks.json"', pattern="/[!-~]+"),
            "The path at which the gateway publishes its keys, without authentication.",
            "/.well-known/jwks.json",
        ),
        "issuer": TableKey(
            Text(), "The iss of the tokens. Default: gateway.resource, or else gateway.name.", None
        ),
    },
    name="InternalToken",
)


@table
class ServerTls:
    """The gateway's own certificate."""

    cert: str = setting("A PEM file with the certificate and its intermediate certificates.")
    key: str | None = setting(
        "A PEM file with the private key. Default: the file of the certificate.",
        default=None,
    )
    client_ca: str | None = setting(
        "A PEM file with the certificate authorities of client certificates (mutual TLS). Default: "
        "clients are asked for none.",
        default=None,
    )
    client_cert: str = setting(
        'Whether connections require a client certificate: "required", or "optional" if a '
        "client-certificate middleware decides. An invalid one is always rejected.",
        Enumeration("optional", "required"),
        default="optional",
    )


@table
class GatewayTable:
    """The settings of the gateway itself."""

    name: str = setting(
        "The gateway's name.", Text("a name of one line", pattern=_ONE_LINE), default="wsgigate"
    )
    version: str = setting(
        "The gateway's version.", Text("a version of one line", pattern=_ONE_LINE), default="0.0.0"
    )
    bind: str = setting(
        "The address to listen on: HOST:PORT, [IPv6]:PORT or unix:PATH.",
        Bind(),
        default="127.0.0.1:3000",
    )
    tls: ServerTls | None = setting(
        "The certificate for TLS connections from clients.", default=None
    )
    http2: bool = setting("Accept HTTP/2 as well as HTTP/1.1. Requires tls.", default=False)
    workers: int | None = setting(
        "The number of worker processes. Default: one per CPU.",
        Integer(1, MOST_WORKERS),
        default=None,
    )
    threads: int = setting(
        "The number of threads per worker process: requests served at a time.",
        Integer(1, MOST_THREADS),
        default=16,
    )
    zone: str | None = setting(
        "The availability zone of the gateway; instances in the same zone are preferred. "
        "Default: the environment variable WSGIGATE_ZONE.",
        Text("a zone without spaces", pattern=r"[\x21-\x7e]{1,128}"),
        default=None,
    )
    log_level: str | None = setting(
        "The minimum level of log records. Default: info, which includes every change of state.",
        Enumeration(*LEVELS),
        default=None,
    )
    head_timeout: float | None = setting(
        "The time limit for receiving a request's head. Default: 10 s.", Duration(), default=None
    )
    idle_timeout: float | None = setting(
        "The time a client may take to send more of a request body, or to read more of a "
        "response. Default: 30 s.",
        Duration(),
        default=None,
    )
    max_connections_per_client: int | None = setting(
        "The maximum number of connections that one client address, or one /64 network of IPv6, "
        "may have open to each worker under gunicorn; further ones are closed. trusted_proxies "
        "have no limit. Default: no limit.",
        Integer(1, 1_000_000),
        default=None,
    )
    keep_alive: float = setting(
        "How long an idle client connection stays open for the next request; 0 closes it after "
        "each response.",
        Duration(zero=True),
        default=75.0,
    )
    drain_delay: float = setting(
        "How long a server that is asked to stop goes on accepting requests while /readyz is 503, "
        "so that balancers send it no more; a second signal ends it. Longer than a balancer needs "
        "to notice: 15 s for probes every 5 s.",
        Duration(zero=True),
        default=0.0,
    )
    self_check: Literal["refuse", "warn"] = setting(
        "What to do when the server or its settings make the gateway unsafe: refuse to serve, "
        "or log a warning.",
        default="refuse",
    )
    websockets: int | None = setting(
        "The maximum number of WebSockets per worker. Default: 512 under gunicorn, whose worker "
        "starts a thread for each; elsewhere at least half of the threads, up to three quarters "
        "with few services.",
        Integer(0, 4096),
        default=None,
    )
    trusted_proxies: tuple[str, ...] = setting(
        'Proxies whose forwarding fields are trusted: addresses, networks, "unix" for the peers '
        "of a Unix socket.",
        ListOf(ParsedText(_address, 'an address, a network, or "unix"', reason=True)),
        default=(),
    )
    forwarded: str = setting(
        "The header field in which trusted proxies pass the client's address: x-forwarded-for, "
        "forwarded, a field with a single address such as x-real-ip, cf-connecting-ip, "
        'true-client-ip or fly-client-ip, or "header:NAME" for any other.',
        ParsedText(_forwarded, 'a field such as "x-forwarded-for" or "x-real-ip"', reason=True),
        default="x-forwarded-for",
    )
    request_id: bool = setting("Give every request an id, in logs and header fields.", default=True)
    identity: Mapping[str, str] = setting(
        "Request fields that pass the verified caller to services: the field name, and subject, "
        "client, issuer, scheme, scopes, or the path of a claim. Fields of these names are removed "
        "from every request of a client, in any spelling, before anything is decided.",
        MapOf(Text('"subject", or a claim such as "sub"'), key=FIELD_NAME, called="a field name"),
        default_factory=dict,
    )
    internal_token: Arguments | None = setting(
        "Sign a short-lived token (JWT) with the verified caller for each service, in place of the "
        "caller's own token. Services verify it with the keys at jwks_path.",
        INTERNAL_TOKEN,
        default=None,
    )
    resource: str | None = setting(
        "The public URL of the gateway as an OAuth protected resource (RFC 9728), such as "
        '"https://api.example.com". The metadata, which tells clients the issuers and scopes, is '
        "then served at /.well-known/oauth-protected-resource, without authentication, and "
        "WWW-Authenticate names it.",
        Text('a URL such as "https://api.example.com"'),
        default=None,
    )
    via: str = setting(
        "The gateway's name in Via fields, which detect forwarding loops. Default: derived from "
        "the gateway's name, the host name and the file.",
        Text("a name without spaces", pattern=FIELD_NAME),
        default="",
    )
    loop_field: Literal["via", "cdn-loop"] = setting(
        "The header field that detects forwarding loops; use cdn-loop for services that do not "
        "compress responses to requests with Via.",
        default="via",
    )
    allowed_hosts: tuple[str, ...] = setting(
        "The hosts to serve; requests for other hosts get a 421. Default: all hosts.",
        ListOf(
            ParsedText(
                host_pattern, 'a host such as "api.example.com" or "*.example.com"', reason=True
            )
        ),
        default=(),
    )
    encoded_slash: Literal["reject", "keep"] = setting(
        "How to handle %2F in a path, unless the route sets encoded_slash.",
        default="reject",
    )
    list_routes: bool = setting("List the routes in 404 responses.", default=True)
    fallback: str | None = setting(
        "The WSGI application for requests that no route matches.",
        ImportPath("a WSGI application"),
        default=None,
    )
    fault_injection: bool = setting(
        'Activate the "faults" middlewares that are enabled.', default=False
    )


@table
class StoreTable:
    """The store for state that workers share: quotas, circuits, health, registrations."""

    url: str = setting(
        "lmdb: for the workers of one machine, redis:// for several machines, memory: for a "
        "single process.",
        Text('"lmdb:", "lmdb:FOLDER", "memory:", or a URL such as "redis://HOST:6379/0"'),
        default="lmdb:",
    )


@table
class Admin:
    """The gateway's own endpoints, such as /health. Without this table there are none."""

    prefix: str = setting(
        "The path prefix of the endpoints.",
        Text('"" or a path such as "/_gateway"', pattern=r"|(?:/[A-Za-z0-9._~-]+)+"),
        default="/_gateway",
    )
    token: str | None = setting(
        "The bearer token for requests that read or change something.",
        HiddenText(),
        default=None,
        repr=False,
    )
    viewer_token: str | None = setting(
        "The bearer token for requests that only read.",
        HiddenText(),
        default=None,
        repr=False,
    )
    hosts: tuple[str, ...] = setting(
        "Hosts that requests with a token may name, beside loopback names and "
        "gateway.allowed_hosts. Default: any host, but loopback names alone if gateway.bind is a "
        "loopback address, unless a trusted proxy sends the request.",
        ListOf(
            ParsedText(
                host_pattern, 'a host such as "ops.example.com" or "*.example.com"', reason=True
            )
        ),
        default=(),
    )
    origins: tuple[str, ...] = setting(
        "Origins of web pages that may send requests with a token, beside the gateway's own.",
        ListOf(ParsedText(origin_of, 'an origin such as "https://ops.example.com"', reason=True)),
        default=(),
    )
    routes: Mapping[str, str] = setting(
        "The routes that /info lists. Default: derived from the routes.",
        default_factory=dict,
    )
    features: tuple[str, ...] = setting("The features that /info lists.", default=())


@table
class LoggingTable:
    """The log of the gateway and its server; the access log is the logger middleware's."""

    format: Literal["text", "json"] = setting(
        "How records are written, also those of gunicorn: text, or one JSON object per line with "
        "the fields of the record, such as request_id and trace_id. Handlers that the application "
        "has set up keep their format. Takes effect when the server starts.",
        default="text",
    )


@table
class MetricsTable:
    """Metrics for Prometheus. By default they are recorded where there is an [admin] table."""

    enabled: bool = setting("Record metrics.", default=True)
    bind: str | None = setting(
        'A listener of its own, such as "127.0.0.1:9464", which serves /metrics, /livez and '
        "/readyz and nothing else, over plain HTTP to every client that reaches it. With gunicorn "
        "only.",
        Bind(),
        default=None,
    )
    public: bool = setting(
        "Serve the metrics below admin.prefix without a token to every client.", default=False
    )
    buckets: tuple[float, ...] = setting(
        "The upper bounds of the buckets of request durations, in seconds, increasing. Default: "
        "those of OpenTelemetry, from 0.005 to 10.",
        ListOf(Number(0), least=1),
        default=(),
    )
    max_series: int = setting(
        "The maximum number of series, which are metrics with different labels; the label values "
        "of further ones become _other.",
        Integer(100, 20000),
        default=MAX_SERIES,
    )
    folder: str | None = setting(
        "The folder of the file that the workers count in. Default: a private folder below "
        "/dev/shm, else below the user's runtime or state folder.",
        default=None,
    )


@table
class AllowHeader:
    """A request field with a secret; requests with it bypass maintenance."""

    name: str = setting("The field's name.", Text("the name of a field", pattern=FIELD_NAME))
    secret: str = setting("The field's value, at least 16 characters.", HiddenText(), repr=False)


@table
class MaintenanceTable:
    """Maintenance mode: the responses while the gateway, a service or a route is out of service."""

    exempt: tuple[str, ...] = setting(
        'Paths that stay in service, such as "/health", or "/static/*" for all paths below it.',
        ListOf(Text('a path such as "/health" or "/static/*"', pattern="/.*")),
        default=(),
    )
    allow: tuple[str, ...] = setting(
        "Addresses and networks of clients whose requests bypass maintenance.",
        ListOf(ParsedText(_address, 'an address, a network, or "unix"', reason=True)),
        default=(),
    )
    allow_header: AllowHeader | None = setting(
        "A request field and a secret; requests with them bypass maintenance.",
        default=None,
    )
    retry_after: float | None = argument(Maintenance, default=None)
    page: str | None = setting("A file to serve instead of a problem document.", default=None)
    content_type: str | None = setting(
        "The content type of the page. Default: derived from its file name.", default=None
    )


@table
class TracingTable:
    """The traces of requests: which are continued and sampled, and where spans are sent.

    Without this table traces are continued and passed on; spans are sent if the environment names a
    collector (OTEL_EXPORTER_OTLP_ENDPOINT) and the extra otel is installed.
    """

    enabled: bool = setting(
        "Continue and start traces. When false, the fields of clients are forwarded as any other.",
        default=True,
    )
    accept: str | None = argument(Tracing, default=None)
    accept_sampled: str | None = argument(Tracing, default=None)
    sample: float | None = argument(
        Tracing,
        default=None,
        doc="Share of the traces that are sampled, 0 to 1, where no accepted caller has decided. "
        "Default: that of OTEL_TRACES_SAMPLER, or else 1.0.",
    )
    b3: bool | None = argument(Tracing, default=None)
    endpoint: str | None = argument(
        SpanExport,
        default=None,
        doc="The URL of the collector (OTLP over HTTP), such as http://localhost:4318; without a "
        "path /v1/traces is added. Requires the extra otel. Default: OTEL_EXPORTER_OTLP_ENDPOINT; "
        "without one no spans are sent.",
    )
    headers: Mapping[str, str] = setting(
        "Fields sent to the collector, such as its API key.",
        MapOf(HiddenText(), key=FIELD_NAME, called="a field name"),
        default_factory=dict,
        repr=False,
    )
    service_name: str | None = argument(SpanExport, default=None)
    resource: Mapping[str, str] = setting(
        "Further attributes of the resource, such as deployment.environment.name.",
        MapOf(Text("a text"), key=r"[A-Za-z][A-Za-z0-9._-]*", called="the name of an attribute"),
        default_factory=dict,
    )


@table
class ApiKeysTable:
    """The API keys that the gateway issues to partners and programs."""

    file: str | None = setting(
        "The file that keeps the SHA-256 digests of the keys, .json or .toml; it is read again "
        "when it changes. Keys are created, rotated and revoked in a .json file only. Default: "
        "the gateway's store keeps them.",
        Text('a file such as "keys.json"', pattern=r".+\.(?:json|toml)"),
        default=None,
    )
    prefix: str | None = argument(ApiKeys, default=None)


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
            HiddenText(),
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

    use: str = setting("The load-balancing policy.", _POLICY, default="two-choices")
    key: str | None = setting(
        "The key that requests to the same instance share, for consistent-hash. Default: the "
        "client's address.",
        Text(
            '"address", "subject", "client", "header:NAME", "cookie:NAME", "claim:PATH" or '
            '"path:NAME"'
        ),
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
        "Serve an earlier good response if one is kept and may be served; takes precedence.",
        UnionOf(is_flag, Boolean(), STALE),
        default=False,
    )
    service: str | None = setting("Another service that handles the request.", default=None)
    app: str | None = setting(
        "A WSGI application that handles the request, in this process.",
        ImportPath("a WSGI application"),
        default=None,
    )
    body: str | None = setting("A fixed response: its body.", default=None)
    file: str | None = setting("A fixed response: a file with its body.", default=None)
    status: int | None = argument(
        fixed_response, doc="The status of the fixed response.", default=None
    )
    content_type: str | None = argument(
        fixed_response, doc="The content type of the fixed response.", default=None
    )
    statuses: tuple[int, ...] | None = argument(FallbackRules, default=None)
    reasons: tuple[str, ...] | None = argument(FallbackRules, default=None)
    methods: tuple[str, ...] | None = argument(FallbackRules, default=None)


_INSTANCE = ArgumentTable(
    Instance,
    without=("host",),
    doc="One instance and its share of the requests.",
    keys={"url": TableKey(Url(), "The instance's address.")},
)


@table
class Tls:
    """Verification of the certificates of https:// instances."""

    verify: bool = setting("Verify certificates.", default=True)
    ca: str | None = setting(
        "A file or folder of CA certificates to trust instead of the default ones.",
        default=None,
    )
    server_name: str | None = setting(
        "The name that certificates are issued for, if it differs from the instance's address.",
        Text("a host's name", pattern=r"[A-Za-z0-9._-]+"),
        default=None,
    )


@table
class ServiceTable:
    """A backend application: its instances, and how the gateway connects to them."""

    instances: tuple[Arguments | str, ...] = setting(
        'The addresses of the instances: "http://10.0.0.5:8000", or { url = "...", weight = 2, '
        "tier = 1 }.",
        ListOf(UnionOf(is_table, _INSTANCE, Url()), least=1),
        default=(),
    )
    discover: Discover | tuple[str, ...] | str | None = setting(
        'The source that finds the instances, instead of instances: "registry", '
        '"dns:orders.internal:8000" and others.',
        UnionOf(is_table, Table(Discover), SOURCES),
        default=None,
    )
    routes: tuple[str, ...] = setting(
        "The service's paths, for people to read in /services.", default=()
    )
    health: Arguments | None = setting(
        "Active health checks.",
        UnionOf(_is_http, _HTTP_HEALTH, _TCP_HEALTH),
        default=None,
        repr=False,  # its fields may be credentials
    )
    balance: Balance | str | None = setting(
        "The load-balancing policy. Default: two-choices.",
        UnionOf(is_table, Table(Balance), _POLICY),
        default=None,
    )
    prefer_zone: bool | None = setting(
        "Prefer instances in the gateway's own zone, where gateway.zone is set. Default: true.",
        default=None,
    )
    sticky: Arguments | None = setting(
        "Sticky sessions, by a signed cookie. Default: disabled.",
        STICKY,
        default=None,
        repr=False,
    )
    max_in_flight: int | None = setting(
        "The maximum number of this service's requests in flight per worker; requests above "
        "that get a 503 at once. 0: no limit. Default: no limit for a single service; several "
        "services share the threads, and only a slow one is limited.",
        Integer(0),
        default=None,
    )
    required_for_readiness: int = setting(
        "The number of available instances that the gateway needs for /readyz. Default: none, as "
        "all gateways would leave rotation with one dead service.",
        Integer(0),
        default=0,
    )
    instance_max_in_flight: int | None = argument(Pool, "instance_limit", default=None)
    breaker: Arguments | None = setting(
        "The circuit breaker; {} for the defaults. Default: disabled.",
        BREAKER,
        default=None,
    )
    outlier: Arguments | None = setting(
        "Outlier detection, which ejects failing instances for a while; {} for the defaults. "
        "Default: disabled.",
        ArgumentTable(OutlierRules),
        default=None,
    )
    retry: Arguments | None = setting(
        "Retries; {} for the defaults. Default: disabled.",
        RETRY,
        default=None,
    )
    hedge: Arguments | None = setting(
        "Hedged requests, which send a slow read-only request to a second instance as well; {} "
        "for the defaults. Default: disabled.",
        ArgumentTable(HedgeRules),
        default=None,
    )
    fallback: FallbackTable | None = setting(
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
    tls: Tls | None = setting("Verification of the instances' certificates.", default=None)
    host: str | None = setting(
        "The Host field to send to instances. Default: the looked-up name with discover by dns "
        "or srv, else the instance's own.",
        Text('a name such as "shop.example" or "shop.example:8080"'),
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
            UnionOf(is_list, ListOf(Text(), least=1), Text()),
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
class ShareTable:
    """A service and its share of a route's requests."""

    service: str = setting("The service.")
    weight: float = setting(
        "The share relative to the other services; 0 for none.", Number(0), default=1.0
    )


@table
class RouteTable:
    """One route: the requests it matches, and the service or WSGI application for them."""

    path: str | None = setting(
        'This path and all paths below it; "{name}" is a named segment, "*" any one segment.',
        PathPattern(),
        default=None,
    )
    paths: tuple[str, ...] = setting(
        "Several paths with the same settings.", ListOf(PathPattern(), least=1), default=()
    )
    host: str = setting(
        'The requested host: "api.example.com" or "*.example.com". Default: any host.',
        default="",
    )
    methods: tuple[str, ...] = setting(
        "The allowed methods. Default: all methods.",
        ListOf(Text('a method such as "GET"', pattern="[A-Za-z][A-Za-z-]*")),
        default=(),
    )
    exact: bool | None = argument(Route, default=None)
    priority: int | None = argument(Route, default=None)
    name: str = setting(
        "The route's name in logs. Default: its path.",
        Text("a name of one line", pattern=_ONE_LINE),
        default="",
    )
    summary: str | None = argument(Route, default=None)
    listed: tuple[str, ...] | None = argument(Route, default=None)
    service: str | None = setting("The service that handles the requests.", default=None)
    services: tuple[ShareTable, ...] = setting(
        "Several services, each with a share of the requests.",
        ListOf(Table(ShareTable), least=1),
        default=(),
    )
    percent: float | None = setting(
        "The share of the requests that the route handles, in percent; gateway.fallback, the app "
        "that the gateway wraps, handles the others, without the middlewares of this route. For "
        "moving a path from an app to a service step by step. Default: 100.",
        Number(0, 100),
        default=None,
    )
    split: Arguments | None = setting(
        "How requests are divided between the services, or by percent.",
        SPLIT,
        default=None,
    )
    app: str | None = setting(
        "The WSGI application that handles the requests, in this process.",
        ImportPath("a WSGI application"),
        default=None,
    )
    fallback: FallbackTable | None = setting(
        "The fallback when the route's services fail; overrides the fallbacks of the services.",
        default=None,
    )
    mirror: Arguments | None = setting(
        "Traffic mirroring: the service that receives copies of the requests.",
        MIRROR,
        default=None,
    )
    strip_prefix: bool | str = setting(
        "The prefix to remove from the path: true for the route's path, or a path.",
        UnionOf(
            is_flag,
            Boolean(),
            Text('true, false or a path such as "/api"', pattern=r"(?:/[^/?#]+)+"),
        ),
        default=False,
    )
    add_prefix: str | None = argument(Forwarder, default=None)
    encoded_slash: Literal["reject", "keep"] | None = setting(
        "How to handle %2F in the path. Default: as gateway.encoded_slash.", default=None
    )
    encoded_backslash: Literal["reject", "keep"] | None = argument(Route, default=None)
    double_slash: Literal["merge", "keep"] | None = argument(Route, default=None)
    dot_segments: Literal["reject", "keep"] | None = argument(Route, default=None)
    request_fields: Arguments | None = setting(
        "Changes to the request's header fields.", _FIELD_CHANGES, default=None
    )
    response_fields: Arguments | None = setting(
        "Changes to the response's header fields.", _FIELD_CHANGES, default=None
    )
    preserve_host: bool | None = argument(Forwarder, default=None)
    rewrite_location: bool | None = argument(Forwarder, default=None)
    rewrite_cookies: bool | None = argument(Forwarder, default=None)
    websocket: bool | Arguments = setting(
        "Allow WebSockets on this route.",
        UnionOf(is_flag, Boolean(), ArgumentTable(WebSocketLimits)),
        default=False,
    )
    forward_authorization: bool | None = argument(
        Forwarder,
        doc="Forward the Authorization field to the service. Default: true, but false when "
        "gateway.identity or gateway.internal_token is set.",
        default=None,
    )
    middleware: tuple[Middleware, ...] = setting(
        "The middlewares of this route, outermost first.",
        ListOf(MiddlewareEntry()),
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
        "The settings of the gateway itself.", default_factory=GatewayTable
    )
    store: StoreTable = setting(
        "The store for state that workers share.",
        default_factory=StoreTable,
    )
    admin: Admin | None = setting("The gateway's own endpoints.", default=None)
    logging: LoggingTable = setting(
        "The log of the gateway and its server.", default_factory=LoggingTable
    )
    metrics: MetricsTable | None = setting(
        "Metrics. Without this table they are recorded where there is an [admin] table.",
        default=None,
    )
    maintenance: MaintenanceTable | None = setting(
        "Maintenance mode. Without this table there is no maintenance switch.",
        default=None,
    )
    registry: RegistryTable | None = setting("The service registry.", default=None)
    api_keys: ApiKeysTable | None = setting(
        'The API keys that middlewares with use = "api-key" accept. Default: keys in the '
        "gateway's store.",
        default=None,
    )
    tracing: TracingTable = setting(
        "The traces of requests.",
        default_factory=TracingTable,
    )
    middleware: tuple[Middleware, ...] = setting(
        "The middlewares of all requests, outermost first.", ListOf(MiddlewareEntry()), default=()
    )
    services: Mapping[str, ServiceTable] = setting(
        "The services, by name.",
        MapOf(
            Table(ServiceTable, one_of=("instances", "discover")),
            key=_SERVICE,
            called="a service's name",
        ),
        default_factory=dict,
    )
    routes: tuple[RouteTable, ...] = setting(
        "The routes, in any order: the most specific match wins.",
        default=(),
    )

    @property
    def logs_json(self) -> bool:
        """Whether the log of the gateway and its server is JSON."""
        return self.logging.format == "json"

    @property
    def records_metrics(self) -> bool:
        """Whether the gateway records metrics."""
        return self.admin is not None if self.metrics is None else self.metrics.enabled

    @property
    def metrics_bind(self) -> str | None:
        """The address of the listener for metrics and probes; None without one."""
        return None if self.metrics is None else self.metrics.bind

    def middleware_lists(self) -> Iterator[tuple[str, Sequence[Middleware]]]:
        """Yield each list of middlewares with its key path, that of all requests first."""
        yield "middleware", self.middleware
        for index, route in enumerate(self.routes):
            yield at(at("routes", index), "middleware"), route.middleware

    def uses_api_keys(self) -> bool:
        """Return whether a middleware accepts API keys."""
        return any(entry.use == "api-key" for entry in self.middlewares())

    def middlewares(self) -> list[Middleware]:
        """Return the entries of all lists, and those that they combine."""
        return [entry for _, entry in self.middlewares_at()]

    def middlewares_at(self) -> Iterator[tuple[str, Middleware]]:
        """Yield the entries of all lists, and those that they combine, with their key paths."""
        for path, entries in self.middleware_lists():
            for index, entry in enumerate(entries):
                yield from entry.flat(at(path, index))

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
