"""The shape of the file: its tables, their keys, and one line on each. No behaviour.

A key that may be left out and whose default is a constructor's is None here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from wsgigate.addresses import AddressList
from wsgigate.config.kinds import Choice, Duration, Flag, Integer, Secret, Text
from wsgigate.config.middlewares import Middleware, MiddlewareEntry
from wsgigate.config.model_routes import FieldChanges, Route
from wsgigate.config.model_services import ServerTls, Service, Tls, Weighted
from wsgigate.config.registry import RegistryTable
from wsgigate.config.shaping import MaintenanceTable
from wsgigate.config.tables import ListOf, MapOf, Table, setting, table
from wsgigate.config.texts import Bind, Checked, ImportPath
from wsgigate.forwarding import address_field
from wsgigate.log_level import LEVELS
from wsgigate.rules.hosts import host_pattern
from wsgigate.rules.serving import MOST_THREADS, MOST_WORKERS

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
    "Weighted",
]


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
