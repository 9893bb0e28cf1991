"""The model of the file: its tables and keys with their descriptions, and its JSON Schema.

An optional key whose default is defined by a constructor is None here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from wsgigate.config.middlewares import Middleware, MiddlewareEntry
from wsgigate.config.registry import RegistryTable
from wsgigate.config.service_tables import ServerTls, Service, Tls, Weighted
from wsgigate.config.tables import Either, ListOf, MapOf, Table, is_flag, setting, table
from wsgigate.config.traffic import FallbackTable, MaintenanceTable, MirrorTable, Share, SplitTable
from wsgigate.config.types import (
    FIELD_NAME,
    Bind,
    Checked,
    Choice,
    Duration,
    Flag,
    ImportPath,
    Integer,
    PathPattern,
    Schema,
    Secret,
    Text,
)
from wsgigate.http.forwarded import AddressList, address_field
from wsgigate.rules.routing import host_pattern
from wsgigate.runtime.log_level import LEVELS
from wsgigate.server_check import MOST_THREADS, MOST_WORKERS

__all__ = [
    "Admin",
    "Config",
    "FieldChanges",
    "Gateway",
    "RegistryTable",
    "Route",
    "ServerTls",
    "Service",
    "StoreTable",
    "Tls",
    "WebSockets",
    "Weighted",
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
class Gateway:
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
    http2: bool = setting(Flag(), "Accept HTTP/2 as well as HTTP/1.1. Requires tls.", default=False)
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
        Choice(*LEVELS),
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
        Choice("refuse", "warn"),
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
        ListOf(Checked(_address, 'an address, a network, or "unix"', reason=True)),
        'Proxies whose forwarding fields are trusted: addresses, networks, "unix" for the peers '
        "of a Unix socket.",
        default=(),
    )
    forwarded: str = setting(
        Checked(_forwarded, 'a field such as "x-forwarded-for" or "x-real-ip"', reason=True),
        "The header field in which trusted proxies pass the client's address: x-forwarded-for, "
        "forwarded, a field with a single address such as x-real-ip, cf-connecting-ip, "
        'true-client-ip or fly-client-ip, or "header:NAME" for any other.',
        default="x-forwarded-for",
    )
    request_id: bool = setting(
        Flag(), "Give every request an id, in logs and header fields.", default=True
    )
    identity: Mapping[str, str] = setting(
        MapOf(Text('a claim such as "sub"'), key=FIELD_NAME, called="a field name"),
        "Request fields that pass claims of the verified token to services: field name to claim "
        "name.",
        default_factory=dict,
    )
    via: str = setting(
        Text("a name without spaces", pattern=FIELD_NAME),
        "The gateway's name in Via fields, which detect forwarding loops. Default: made from "
        "the gateway's name.",
        default="",
    )
    loop_field: Literal["via", "cdn-loop"] = setting(
        Choice("via", "cdn-loop"),
        "The header field that detects forwarding loops; use cdn-loop for services that do not "
        "compress responses to requests with Via.",
        default="via",
    )
    allowed_hosts: tuple[str, ...] = setting(
        ListOf(
            Checked(
                host_pattern, 'a host such as "api.example.com" or "*.example.com"', reason=True
            )
        ),
        "The hosts to serve; requests for other hosts get a 421. Default: all hosts.",
        default=(),
    )
    encoded_slash: Literal["reject", "keep"] = setting(
        Choice("reject", "keep"),
        "How to handle %2F in a path, unless the route sets encoded_slash.",
        default="reject",
    )
    list_routes: bool = setting(Flag(), "List the routes in 404 responses.", default=True)
    fallback: str | None = setting(
        ImportPath("a WSGI application"),
        "The WSGI application for requests that no route matches.",
        default=None,
    )
    fault_injection: bool = setting(
        Flag(), 'Activate the "faults" middlewares that are enabled.', default=False
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
class FieldChanges:
    """Changes to header fields: remove first, then set, then add."""

    set: Mapping[str, str] = setting(
        MapOf(Text()), "Fields to set, replacing existing values.", default_factory=dict
    )
    add: Mapping[str, str] = setting(
        MapOf(Text()), "Fields to add beside existing values.", default_factory=dict
    )
    remove: tuple[str, ...] = setting(ListOf(Text()), "Fields to remove.", default=())


@table
class WebSockets:
    """Limits for the WebSockets of a route."""

    idle_timeout: float | None = setting(
        Duration(), "How long a WebSocket may be idle. Default: 60 s.", default=None
    )


# Routes.

_SLASHES = Choice("reject", "keep")


@table
class Route:
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
    exact: bool = setting(Flag(), "Match the path only, not the paths below it.", default=False)
    priority: int = setting(
        Integer(-1_000_000, 1_000_000),
        "Routes with a higher priority are matched first.",
        default=0,
    )
    name: str = setting(
        Text("a name of one line", pattern=_ONE_LINE),
        "The route's name in logs. Default: its path.",
        default="",
    )
    summary: str = setting(Text(), "A one-line description of the route.", default="")
    listed: tuple[str, ...] | None = setting(
        ListOf(Text()),
        "The route's entries in the list of routes of 404 responses; [] hides the route. "
        "Default: derived from the route.",
        default=None,
    )
    service: str | None = setting(Text(), "The service that handles the requests.", default=None)
    services: tuple[Share, ...] = setting(
        ListOf(Table(Share), least=1),
        "Several services, each with a share of the requests.",
        default=(),
    )
    split: SplitTable | None = setting(
        Table(SplitTable, name="Split"),
        "How requests are divided between the services.",
        default=None,
    )
    app: str | None = setting(
        ImportPath("a WSGI application"),
        "The WSGI application that handles the requests, in this process.",
        default=None,
    )
    fallback: FallbackTable | None = setting(
        Table(FallbackTable, name="Fallback"),
        "The fallback when the route's services fail; overrides the fallbacks of the services.",
        default=None,
    )
    mirror: MirrorTable | None = setting(
        Table(MirrorTable, name="Mirror"),
        "The service that receives copies of the requests.",
        default=None,
    )
    strip_prefix: bool | str = setting(
        Either(
            is_flag, Flag(), Text('true, false or a path such as "/api"', pattern=r"(?:/[^/?#]+)+")
        ),
        "The prefix to remove from the path: true for the route's path, or a path.",
        default=False,
    )
    add_prefix: str = setting(
        Text('a path such as "/v1"', pattern=r"(?:/[^/?#]+)+"),
        "The prefix to add to the path, after strip_prefix.",
        default="",
    )
    encoded_slash: Literal["reject", "keep"] | None = setting(
        _SLASHES, "How to handle %2F in the path. Default: as gateway.encoded_slash.", default=None
    )
    encoded_backslash: Literal["reject", "keep"] = setting(
        _SLASHES, "How to handle %5C in the path.", default="reject"
    )
    double_slash: Literal["merge", "keep"] = setting(
        Choice("merge", "keep"), "How to handle // in the path.", default="merge"
    )
    dot_segments: Literal["reject", "keep"] = setting(
        _SLASHES,
        "How to handle . and .. in the path; with keep, the path must stay below the route's path.",
        default="reject",
    )
    request_fields: FieldChanges | None = setting(
        Table(FieldChanges), "Changes to the request's header fields.", default=None
    )
    response_fields: FieldChanges | None = setting(
        Table(FieldChanges), "Changes to the response's header fields.", default=None
    )
    preserve_host: bool | None = setting(
        Flag(), "Send the client's Host instead of the instance's.", default=None
    )
    rewrite_location: bool | None = setting(
        Flag(), "Rewrite redirects to the instance so that they lead to the gateway.", default=None
    )
    rewrite_cookies: bool | None = setting(
        Flag(),
        "Rewrite the paths of the service's cookies to the paths that clients use.",
        default=None,
    )
    websocket: bool | WebSockets = setting(
        Either(is_flag, Flag(), Table(WebSockets)),
        "Allow WebSockets on this route.",
        default=False,
    )
    forward_authorization: bool | None = setting(
        Flag(),
        "Forward the Authorization field to the service. Default: true, but false when "
        "gateway.identity is set.",
        default=None,
    )
    middleware: tuple[Middleware, ...] = setting(
        ListOf(MiddlewareEntry()),
        "The middlewares of this route, outermost first.",
        default=(),
    )


@table
class Config:
    """A gateway: its middlewares, its routes and its services."""

    gateway: Gateway = setting(
        Table(Gateway), "The settings of the gateway itself.", default_factory=Gateway
    )
    store: StoreTable = setting(
        Table(StoreTable, name="Store"),
        "The store for state that workers share.",
        default_factory=StoreTable,
    )
    admin: Admin | None = setting(Table(Admin), "The gateway's own endpoints.", default=None)
    maintenance: MaintenanceTable | None = setting(
        Table(MaintenanceTable, name="Maintenance"),
        "Maintenance mode. Without this table there is no maintenance switch.",
        default=None,
    )
    registry: RegistryTable | None = setting(
        Table(RegistryTable, name="Registry"), "The service registry.", default=None
    )
    middleware: tuple[Middleware, ...] = setting(
        ListOf(MiddlewareEntry()), "The middlewares of all requests, outermost first.", default=()
    )
    services: Mapping[str, Service] = setting(
        MapOf(
            Table(Service, one_of=("instances", "discover")),
            key=_SERVICE,
            called="a service's name",
        ),
        "The services, by name.",
        default_factory=dict,
    )
    routes: tuple[Route, ...] = setting(
        ListOf(Table(Route)), "The routes, in any order: the most specific match wins.", default=()
    )
