"""The shape of the file: its tables, their keys, and one line on each. No behaviour.

A key that may be left out and whose default is a constructor's is None here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from wsgigate.config.middlewares import Middleware, MiddlewareEntry
from wsgigate.config.registry import RegistryTable
from wsgigate.config.service_tables import ServerTls, Service, Tls, Weighted
from wsgigate.config.tables import Either, ListOf, MapOf, Table, setting, table
from wsgigate.config.traffic import FallbackTable, MaintenanceTable, MirrorTable, Share, SplitTable
from wsgigate.config.types import (
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


# The JSON Schema of the file, made from the same kinds that read it.


def schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of a gateway's file, for editors.

    It tells what one table can tell; what several parts say of each other is ``wsgigate check``'s.
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


_FIELD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"

_SERVICE = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}"

_ONE_LINE = r"[^\x00-\x1f\x7f]+"


@table
class Gateway:
    """The gateway itself."""

    name: str = setting(
        Text("a name of one line", pattern=_ONE_LINE), "What it is called.", default="wsgigate"
    )
    version: str = setting(
        Text("a version of one line", pattern=_ONE_LINE), "Its version.", default="0.0.0"
    )
    bind: str = setting(
        Bind(), "Where it listens: HOST:PORT, [IPv6]:PORT or unix:PATH.", default="127.0.0.1:3000"
    )
    tls: ServerTls | None = setting(
        Table(ServerTls), "The certificate with which it speaks TLS to clients.", default=None
    )
    http2: bool = setting(
        Flag(), "Whether clients may speak HTTP/2, which needs tls; as well as 1.1.", default=False
    )
    workers: int | None = setting(
        Integer(1, MOST_WORKERS),
        "How many processes serve; one for each CPU unless said.",
        default=None,
    )
    threads: int = setting(
        Integer(1, MOST_THREADS), "How many requests one process serves at a time.", default=16
    )
    zone: str | None = setting(
        Text("a zone without spaces", pattern=r"[\x21-\x7e]{1,128}"),
        "The availability zone the gateway runs in, whose instances come first; that of the "
        "environment variable WSGIGATE_ZONE unless said.",
        default=None,
    )
    log_level: str | None = setting(
        Choice(*LEVELS),
        "The least important records that are logged; info, which has every change of state.",
        default=None,
    )
    head_timeout: float | None = setting(
        Duration(), "How long a client may take to send a request's head; 10 s.", default=None
    )
    idle_timeout: float | None = setting(
        Duration(),
        "How long a client may take to send more of a body, or take more of a response; 30 s.",
        default=None,
    )
    keep_alive: float = setting(
        Duration(zero=True),
        "How long a client's idle connection is kept for its next request; 0 keeps none.",
        default=75.0,
    )
    self_check: Literal["refuse", "warn"] = setting(
        Choice("refuse", "warn"),
        "What is done when the server or its settings make the gateway unsafe.",
        default="refuse",
    )
    websockets: int | None = setting(
        Integer(0, 4096),
        "How many threads of a process WebSockets may hold. Default: at least half of them, up to "
        "three quarters where there are few services.",
        default=None,
    )
    trusted_proxies: tuple[str, ...] = setting(
        ListOf(Checked(_address, 'an address, a network, or "unix"', reason=True)),
        'Proxies whose forwarding fields are believed: addresses, networks, "unix" for the peers '
        "of a Unix socket.",
        default=(),
    )
    forwarded: str = setting(
        Checked(_forwarded, 'a field such as "x-forwarded-for" or "x-real-ip"', reason=True),
        "The one field in which trusted proxies write the client's address: x-forwarded-for, "
        "forwarded, one with the address alone, such as x-real-ip, cf-connecting-ip, "
        'true-client-ip or fly-client-ip, or "header:NAME" for any other.',
        default="x-forwarded-for",
    )
    request_id: bool = setting(
        Flag(), "Whether every request gets an id, in logs and fields.", default=True
    )
    identity: Mapping[str, str] = setting(
        MapOf(Text('a claim such as "sub"'), key=_FIELD, called="a field name"),
        "Request fields that tell services the verified caller, and the claim each holds.",
        default_factory=dict,
    )
    via: str = setting(
        Text("a name without spaces", pattern=_FIELD),
        "What it is called in Via fields, by which loops are seen; made from its name unless said.",
        default="",
    )
    loop_field: Literal["via", "cdn-loop"] = setting(
        Choice("via", "cdn-loop"),
        "The field by which loops are seen; cdn-loop for services that do not compress for Via.",
        default="via",
    )
    allowed_hosts: tuple[str, ...] = setting(
        ListOf(
            Checked(
                host_pattern, 'a host such as "api.example.com" or "*.example.com"', reason=True
            )
        ),
        "The hosts it serves; a request for another is answered with 421. All unless said.",
        default=(),
    )
    encoded_slash: Literal["reject", "keep"] = setting(
        Choice("reject", "keep"),
        "What becomes of %2F in a path, where the route does not say.",
        default="reject",
    )
    list_routes: bool = setting(
        Flag(), "Whether the answer 404 lists the routes there are.", default=True
    )
    fallback: str | None = setting(
        ImportPath("a WSGI application"), "The app that serves what no route matches.", default=None
    )
    fault_injection: bool = setting(
        Flag(), 'Whether the middlewares "faults" that are enabled do anything.', default=False
    )


@table
class StoreTable:
    """Where the workers keep what they share."""

    url: str = setting(
        Text('"lmdb:", "lmdb:FOLDER", "memory:", or a URL such as "redis://HOST:6379/0"'),
        "lmdb: for the workers of one machine; redis:// for many; memory: for one process.",
        default="lmdb:",
    )


@table
class Admin:
    """The gateway's own endpoints; without this table there are none."""

    prefix: str = setting(
        Text('"" or a path such as "/_gateway"', pattern=r"|(?:/[A-Za-z0-9._~-]+)+"),
        "The path they are below.",
        default="/_gateway",
    )
    token: str | None = setting(
        Secret(),
        "What a request that changes something must present.",
        default=None,
        repr=False,
    )
    routes: Mapping[str, str] = setting(
        MapOf(Text()),
        "What /info says of the routes; listed from them unless said.",
        default_factory=dict,
    )
    features: tuple[str, ...] = setting(
        ListOf(Text()), "What /info says the gateway can do.", default=()
    )


@table
class FieldChanges:
    """What becomes of header fields: removed first, then set, then added."""

    set: Mapping[str, str] = setting(
        MapOf(Text()), "Fields that replace what was there.", default_factory=dict
    )
    add: Mapping[str, str] = setting(
        MapOf(Text()), "Fields that come beside what was there.", default_factory=dict
    )
    remove: tuple[str, ...] = setting(ListOf(Text()), "Fields that are dropped.", default=())


@table
class WebSockets:
    """What the WebSockets of a route may take."""

    idle_timeout: float | None = setting(
        Duration(), "How long one may be silent; 60 s unless said.", default=None
    )


# The shape of the file's routes. No behaviour.
#
# A key that may be left out and whose default is a constructor's is None here.

_SLASHES = Choice("reject", "keep")


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


@table
class Route:
    """Which requests go to which service, or to which WSGI application."""

    path: str | None = setting(
        PathPattern(),
        'This path and all below it; "{name}" is one segment with a name, "*" any one segment.',
        default=None,
    )
    paths: tuple[str, ...] = setting(
        ListOf(PathPattern(), least=1), "Several paths, all served alike.", default=()
    )
    host: str = setting(
        Text(),
        'The host asked for: "api.example.com" or "*.example.com"; any unless said.',
        default="",
    )
    methods: tuple[str, ...] = setting(
        ListOf(Text('a method such as "GET"', pattern="[A-Za-z][A-Za-z-]*")),
        "The methods it takes; all unless said.",
        default=(),
    )
    exact: bool = setting(Flag(), "Match the path alone, nothing below it.", default=False)
    priority: int = setting(
        Integer(-1_000_000, 1_000_000), "A higher one is asked first.", default=0
    )
    name: str = setting(
        Text("a name of one line", pattern=_ONE_LINE),
        "What logs call it; its path unless said.",
        default="",
    )
    summary: str = setting(Text(), "One line for people.", default="")
    listed: tuple[str, ...] | None = setting(
        ListOf(Text()),
        "How it stands in the 404's list of routes; worked out unless said, [] hides it.",
        default=None,
    )
    service: str | None = setting(Text(), "The service that serves it.", default=None)
    services: tuple[Share, ...] = setting(
        ListOf(Table(Share), least=1), "Several services, each with its share.", default=()
    )
    split: SplitTable | None = setting(
        Table(SplitTable, name="Split"), "How requests are divided between them.", default=None
    )
    app: str | None = setting(
        ImportPath("a WSGI application"),
        "The WSGI app that serves it, in this process.",
        default=None,
    )
    fallback: FallbackTable | None = setting(
        Table(FallbackTable, name="Fallback"),
        "What is answered when that fails, instead of what its services say.",
        default=None,
    )
    mirror: MirrorTable | None = setting(
        Table(MirrorTable, name="Mirror"), "Who gets copies of its requests.", default=None
    )
    strip_prefix: bool | str = setting(
        Either(
            _is_flag, Flag(), Text('true, false or a path such as "/api"', pattern=r"(?:/[^/?#]+)+")
        ),
        "What is cut off the path: true for the route's own, or a path.",
        default=False,
    )
    add_prefix: str = setting(
        Text('a path such as "/v1"', pattern=r"(?:/[^/?#]+)+"),
        "What is put before the path, after cutting.",
        default="",
    )
    encoded_slash: Literal["reject", "keep"] | None = setting(
        _SLASHES, "What becomes of %2F in the path.", default=None
    )
    encoded_backslash: Literal["reject", "keep"] = setting(
        _SLASHES, "What becomes of %5C in the path.", default="reject"
    )
    double_slash: Literal["merge", "keep"] = setting(
        Choice("merge", "keep"), "What becomes of // in the path.", default="merge"
    )
    dot_segments: Literal["reject", "keep"] = setting(
        _SLASHES,
        "What becomes of . and .. in the path; kept ones must stay beneath the route's path.",
        default="reject",
    )
    request_fields: FieldChanges | None = setting(
        Table(FieldChanges), "Changes to the request's fields.", default=None
    )
    response_fields: FieldChanges | None = setting(
        Table(FieldChanges), "Changes to the response's fields.", default=None
    )
    preserve_host: bool | None = setting(
        Flag(), "Send the client's Host instead of the instance's own.", default=None
    )
    rewrite_location: bool | None = setting(
        Flag(), "Whether redirects to the instance are led back to the gateway.", default=None
    )
    rewrite_cookies: bool | None = setting(
        Flag(),
        "Whether the paths of a service's cookies are brought back to what clients see.",
        default=None,
    )
    websocket: bool | WebSockets = setting(
        Either(_is_flag, Flag(), Table(WebSockets)),
        "Whether requests that ask for it become WebSockets.",
        default=False,
    )
    forward_authorization: bool | None = setting(
        Flag(),
        "Whether the service gets the Authorization field too; not when identity fields are set.",
        default=None,
    )
    middleware: tuple[Middleware, ...] = setting(
        ListOf(MiddlewareEntry()),
        "The middlewares of this route alone, outermost first.",
        default=(),
    )


@table
class Config:
    """A gateway: its middlewares, its routes, and the services behind them."""

    gateway: Gateway = setting(Table(Gateway), "The gateway itself.", default_factory=Gateway)
    store: StoreTable = setting(
        Table(StoreTable, name="Store"), "What workers share.", default_factory=StoreTable
    )
    admin: Admin | None = setting(Table(Admin), "The gateway's own endpoints.", default=None)
    maintenance: MaintenanceTable | None = setting(
        Table(MaintenanceTable, name="Maintenance"),
        "What can be taken out of service; without this table nothing can.",
        default=None,
    )
    registry: RegistryTable | None = setting(
        Table(RegistryTable, name="Registry"), "Where services register.", default=None
    )
    middleware: tuple[Middleware, ...] = setting(
        ListOf(MiddlewareEntry()), "The middlewares around everything, outermost first.", default=()
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
        ListOf(Table(Route)), "The routes, in any order: the more specific one wins.", default=()
    )
