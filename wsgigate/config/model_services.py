"""The shape of the file's services and routes. No behaviour.

A key that may be left out and whose default is a constructor's is None here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from wsgigate.config.breakers import ServiceBreaker
from wsgigate.config.discovers import Discover, Discovered
from wsgigate.config.healths import HEALTH, ServiceHealth, TcpHealth
from wsgigate.config.kinds import Choice, Duration, Flag, Integer, Text
from wsgigate.config.middlewares import Middleware, MiddlewareEntry
from wsgigate.config.outliers import ServiceOutlier
from wsgigate.config.retries import ServiceRetry
from wsgigate.config.tables import Either, ListOf, MapOf, Table, setting, table
from wsgigate.config.texts import ImportPath, PathPattern, Url
from wsgigate.rules.balance import POLICIES

__all__ = [
    "Balance",
    "FieldChanges",
    "Route",
    "ServerTls",
    "Service",
    "Tls",
    "WebSockets",
    "Weighted",
]

_ONE_LINE = r"[^\x00-\x1f\x7f]+"
_SLASHES = Choice("reject", "keep")


_POLICY = Choice(*(name for name in POLICIES if name != "sticky"))


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


@table
class Weighted:
    """One instance and its share of the requests."""

    url: str = setting(Url(), "Its address.")
    weight: int = setting(
        Integer(0, 65535), "Its share relative to the others; 0 drains it.", default=1
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
class Balance:
    """Who of a service's instances takes the next request."""

    use: str = setting(_POLICY, "The policy.", default="two-choices")
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
class Service:
    """A backend application: its instances, and how they are talked to."""

    instances: tuple[Weighted | str, ...] = setting(
        ListOf(Either(_is_table, Table(Weighted, name="Instance"), Url()), least=1),
        'Where it runs: "http://10.0.0.5:8000", or { url = "...", weight = 2 }.',
        default=(),
    )
    discover: Discover | str | None = setting(
        Either(_is_table, Table(Discover), Discovered()),
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
        Either(_is_table, Table(Balance), _POLICY),
        "Who of them takes the next request; two-choices unless said.",
        default=None,
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
    timeout: float | None = setting(
        Duration(), "How long until the answer begins; caps the next two.", default=None
    )
    connect_timeout: float | None = setting(
        Duration(), "How long connecting may take.", default=None
    )
    read_timeout: float | None = setting(
        Duration(), "How long an instance may be silent.", default=None
    )
    tls: Tls | None = setting(Table(Tls), "How certificates are verified.", default=None)
    preserve_host: bool | None = setting(
        Flag(), "Send the client's Host instead of the instance's own.", default=None
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
    app: str | None = setting(
        ImportPath("a WSGI application"),
        "The WSGI app that serves it, in this process.",
        default=None,
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
