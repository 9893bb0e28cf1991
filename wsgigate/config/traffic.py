"""Traffic shaping in the file: fallbacks, splits, mirrors, faults and maintenance."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from wsgigate.config.errors import Errors, at, shown
from wsgigate.config.tables import (
    Either,
    ListOf,
    MapOf,
    Table,
    given,
    is_flag,
    is_list,
    setting,
    suggestion,
    table,
)
from wsgigate.config.types import (
    FIELD_NAME,
    Checked,
    Choice,
    Duration,
    Flag,
    ImportPath,
    Integer,
    Number,
    Secret,
    Size,
    Text,
)
from wsgigate.http.forwarded import AddressList
from wsgigate.middleware.faults import FaultRules
from wsgigate.rules.fallback import REASONS, FallbackRules

__all__ = [
    "FallbackTable",
    "FaultOptions",
    "MaintenanceTable",
    "MirrorTable",
    "Share",
    "SplitTable",
    "StaleTable",
    "check_fallback",
    "check_service",
    "fallback_rules",
    "fault_rules",
]


_FIELD = Text("the name of a field", pattern=FIELD_NAME)

_METHOD = Text('a method such as "GET"', pattern="[A-Z]+")


def _address(text: str) -> str:
    AddressList([text])
    return text


@table
class StaleTable:
    """Stale responses: earlier responses that are kept and served when a service fails."""

    max_size: int | None = setting(
        Size(), "The maximum size of kept responses per worker and route.", default=None
    )
    max_answer: int | None = setting(
        Size(), "The maximum body size of a kept response.", default=None
    )
    stale_for: float | None = setting(
        Duration(zero=True),
        "How long after its freshness ends a response without a stale-if-error directive is "
        "served.",
        default=None,
    )


@table
class FallbackTable:
    """The response when a service fails."""

    stale: bool | StaleTable = setting(
        Either(is_flag, Flag(), Table(StaleTable, name="Stale")),
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
    statuses: tuple[int, ...] | None = setting(
        ListOf(Integer(500, 599), least=1),
        "The response statuses that count as failures.",
        default=None,
    )
    reasons: tuple[str, ...] | None = setting(
        ListOf(Choice(*sorted(REASONS)), least=1),
        "The reasons of failure that trigger the fallback.",
        default=None,
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(_METHOD, least=1), "The methods that the fallback applies to.", default=None
    )


@table
class Share:
    """A service and its share of a route's requests."""

    service: str = setting(Text(), "The service.")
    weight: float = setting(
        Number(0), "The share relative to the other services; 0 for none.", default=1.0
    )


@table
class SplitTable:
    """How requests are divided between the services of a route."""

    key: str | tuple[str, ...] | None = setting(
        Either(is_list, ListOf(Text(), least=1), Text()),
        "The key whose requests go to the same service, as of a limiter. Default: each request "
        "is assigned at random.",
        default=None,
    )
    override: str | None = setting(
        _FIELD, "A request field that names the service; any client may send it.", default=None
    )


@table
class MirrorTable:
    """Traffic mirroring: a service that gets copies of requests; its responses are discarded."""

    service: str = setting(Text(), "The service.")
    percent: float | None = setting(
        Number(0, 100), "The percentage of requests to copy.", default=None
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(_METHOD, least=1), "The methods of the requests to copy.", default=None
    )
    max_body: int | None = setting(
        Size(), "The maximum size of a request body that is copied.", default=None
    )
    credentials: bool | None = setting(
        Flag(), "Include the caller's credentials and identity in copies.", default=None
    )
    max_answer: int | None = setting(
        Size(), "The maximum number of bytes read of a response.", default=None
    )
    max_time: float | None = setting(
        Duration(), "The maximum time for reading a response.", default=None
    )
    threads: int | None = setting(
        Integer(1, 64), "The maximum number of copies in flight per worker.", default=None
    )
    queue: int | None = setting(
        Integer(1, 100_000), "The maximum number of copies that wait to be sent.", default=None
    )


@table
class AllowHeader:
    """A request field with a secret; requests with it bypass maintenance."""

    name: str = setting(_FIELD, "The field's name.")
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
        ListOf(Checked(_address, 'an address, a network, or "unix"', reason=True)),
        "Addresses and networks of clients whose requests bypass maintenance.",
        default=(),
    )
    allow_header: AllowHeader | None = setting(
        Table(AllowHeader),
        "A request field and a secret; requests with them bypass maintenance.",
        default=None,
    )
    retry_after: float | None = setting(
        Duration(), "The Retry-After to send when the maintenance has no planned end.", default=None
    )
    page: str | None = setting(
        Text(), "A file to serve instead of a problem document.", default=None
    )
    content_type: str | None = setting(
        Text(), "The content type of the page. Default: derived from its file name.", default=None
    )


@table
class FaultOptions:
    """Inject faults for testing: delay some requests and fail some."""

    enabled: bool = setting(
        Flag(), "Inject faults; requires gateway.fault_injection = true as well.", default=False
    )
    delay: float | None = setting(Duration(), "The delay of a request, at most 60 s.", default=None)
    delay_percent: float | None = setting(
        Number(0, 100), "The percentage of requests to delay.", default=None
    )
    abort_status: int | None = setting(
        Integer(400, 599), "The response status of failed requests.", default=None
    )
    abort_percent: float | None = setting(
        Number(0, 100), "The percentage of requests to fail.", default=None
    )
    when: Mapping[str, str] | None = setting(
        MapOf(Text()), "Request fields and values that a request must have.", default=None
    )
    max_delayed: int | None = setting(
        Integer(1, 4096),
        "The maximum number of threads per worker that delays may occupy.",
        default=None,
    )


def fallback_rules(fallback: FallbackTable) -> FallbackRules:
    """Return the rules that *fallback* describes.

    :raises ValueError: An option is invalid; the message names it.
    """
    return FallbackRules(**given(fallback, only=("statuses", "reasons", "methods")))


def fault_rules(options: FaultOptions) -> FaultRules:
    """Return the rules that *options* describe.

    :raises ValueError: An option is invalid; the message names it.
    """
    settings: dict[str, Any] = given(
        options, only=("delay", "delay_percent", "abort_status", "abort_percent")
    )
    return FaultRules(**settings)


def check_service(name: object, path: str, services: Collection[str], errors: Errors) -> None:
    """Add an error at *path* unless *name* is one of *services*."""
    known = isinstance(name, str) and name in services
    if not known and name is not None and not errors.under(at("services", str(name))):
        near = suggestion(str(name), list(services))
        errors.add(path, f"there is no service {shown(name)}{near}")


def check_fallback(
    fallback: FallbackTable, path: str, services: Collection[str], errors: Errors
) -> None:
    """Add the contradictions in *fallback* to *errors*."""
    if errors.under(path):
        return
    kinds = [
        key for key in ("service", "app", "body", "file") if getattr(fallback, key) is not None
    ]
    if len(kinds) > 1:
        errors.add(path, f"{' and '.join(kinds)} are mutually exclusive; give one of them")
    elif not kinds and not fallback.stale:
        errors.add(path, "requires one of stale, service, app, body and file")
    if not {"body", "file"} & set(kinds):
        for key in ("status", "content_type"):
            if getattr(fallback, key) is not None:
                errors.add(at(path, key), "applies to a fixed response only: set body or file")
    check_service(fallback.service, at(path, "service"), services, errors)
