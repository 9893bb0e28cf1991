"""The shape of the file's routes. No behaviour.

A key that may be left out and whose default is a constructor's is None here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from wsgigate.config.kinds import Choice, Duration, Flag, Integer, Text
from wsgigate.config.middlewares import Middleware, MiddlewareEntry
from wsgigate.config.shaping import FallbackTable, MirrorTable, Share, SplitTable
from wsgigate.config.tables import Either, ListOf, MapOf, Table, setting, table
from wsgigate.config.texts import ImportPath, PathPattern

__all__ = ["FieldChanges", "Route", "WebSockets"]

_ONE_LINE = r"[^\x00-\x1f\x7f]+"
_SLASHES = Choice("reject", "keep")


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


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
