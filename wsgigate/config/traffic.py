"""Fallbacks, splits, mirrors, faults and maintenance in the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from wsgigate.config.errors import Errors, at, shown
from wsgigate.config.tables import Either, ListOf, MapOf, Table, given, setting, suggestion, table
from wsgigate.config.types import (
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


_FIELD = Text("the name of a field", pattern=r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")

_METHOD = Text('a method such as "GET"', pattern="[A-Z]+")


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _address(text: str) -> str:
    AddressList([text])
    return text


@table
class StaleTable:
    """Which earlier answers are kept, to be shown when a service fails."""

    max_size: int | None = setting(
        Size(), "How much a worker keeps of them for a route.", default=None
    )
    max_answer: int | None = setting(Size(), "The largest body that is kept.", default=None)
    stale_for: float | None = setting(
        Duration(zero=True),
        "How long after it was fresh an answer is shown that does not say so.",
        default=None,
    )


@table
class FallbackTable:
    """What is answered when a service fails."""

    stale: bool | StaleTable = setting(
        Either(_is_flag, Flag(), Table(StaleTable, name="Stale")),
        "Earlier good answers, where there is one that may be shown; asked first.",
        default=False,
    )
    service: str | None = setting(Text(), "Another service.", default=None)
    app: str | None = setting(
        ImportPath("a WSGI application"), "A WSGI app, in this process.", default=None
    )
    body: str | None = setting(Text(), "A fixed answer: its body.", default=None)
    file: str | None = setting(Text(), "A fixed answer: a file with its body.", default=None)
    status: int | None = setting(Integer(200, 599), "The status of the fixed answer.", default=None)
    content_type: str | None = setting(Text(), "Its type.", default=None)
    statuses: tuple[int, ...] | None = setting(
        ListOf(Integer(500, 599), least=1), "What a failure is.", default=None
    )
    reasons: tuple[str, ...] | None = setting(
        ListOf(Choice(*sorted(REASONS)), least=1), "Why it failed.", default=None
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(_METHOD, least=1), "Which requests.", default=None
    )


@table
class Share:
    """A service and its share of a route's requests."""

    service: str = setting(Text(), "The service.")
    weight: float = setting(Number(0), "Its share relative to the others; 0 for none.", default=1.0)


@table
class SplitTable:
    """How requests are divided between the services of a route."""

    key: str | tuple[str, ...] | None = setting(
        Either(lambda value: isinstance(value, list), ListOf(Text(), least=1), Text()),
        "What tells requests that stay together, as of a limiter; chance decides unless said.",
        default=None,
    )
    override: str | None = setting(
        _FIELD, "A field by which anybody who sends it names the service.", default=None
    )


@table
class MirrorTable:
    """A service that gets copies of requests, whose answers nobody sees."""

    service: str = setting(Text(), "The service.")
    percent: float | None = setting(
        Number(0, 100), "Of how many requests in a hundred.", default=None
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(_METHOD, least=1), "Of which requests.", default=None
    )
    max_body: int | None = setting(Size(), "The largest body that is copied.", default=None)
    credentials: bool | None = setting(
        Flag(), "Whether copies tell who the caller is.", default=None
    )
    max_answer: int | None = setting(Size(), "How much of an answer is read.", default=None)
    max_time: float | None = setting(Duration(), "How long an answer is read.", default=None)
    threads: int | None = setting(
        Integer(1, 64), "How many copies a worker has under way.", default=None
    )
    queue: int | None = setting(Integer(1, 100_000), "How many may wait.", default=None)


@table
class AllowHeader:
    """A field by which requests are let pass."""

    name: str = setting(_FIELD, "Its name.")
    secret: str = setting(Secret(), "What it holds, 16 characters or more.", repr=False)


@table
class MaintenanceTable:
    """What is answered while something is out of service; there is a switch for it then."""

    exempt: tuple[str, ...] = setting(
        ListOf(Text('a path such as "/health" or "/static/*"', pattern="/.*")),
        'Paths that go on, such as "/health", or "/static/*" for all below it.',
        default=(),
    )
    allow: tuple[str, ...] = setting(
        ListOf(Checked(_address, 'an address, a network, or "unix"', reason=True)),
        "Whose requests are let pass: addresses and networks.",
        default=(),
    )
    allow_header: AllowHeader | None = setting(
        Table(AllowHeader), "A field and a secret by which requests are let pass.", default=None
    )
    retry_after: float | None = setting(
        Duration(), "When to come again, if nobody said when it is over.", default=None
    )
    page: str | None = setting(
        Text(), "A file that is answered instead of a problem document.", default=None
    )
    content_type: str | None = setting(Text(), "Its type; by its name unless said.", default=None)


@table
class FaultOptions:
    """Let some requests wait and some fail, for drills."""

    enabled: bool = setting(
        Flag(), "Whether it does; gateway.fault_injection has to be on, too.", default=False
    )
    delay: float | None = setting(
        Duration(), "How long a request waits; 60 s at most.", default=None
    )
    delay_percent: float | None = setting(
        Number(0, 100), "How many in a hundred wait.", default=None
    )
    abort_status: int | None = setting(
        Integer(400, 599), "What a request is answered with.", default=None
    )
    abort_percent: float | None = setting(
        Number(0, 100), "How many in a hundred are answered so.", default=None
    )
    when: Mapping[str, str] | None = setting(
        MapOf(Text()), "Fields that requests must have, with their values.", default=None
    )
    max_delayed: int | None = setting(
        Integer(1, 4096), "How many threads of a worker may wait.", default=None
    )


def fallback_rules(fallback: FallbackTable) -> FallbackRules:
    """Return the rules that *fallback* describes.

    :raises ValueError: They are none; says why.
    """
    return FallbackRules(**given(fallback, only=("statuses", "reasons", "methods")))


def fault_rules(options: FaultOptions) -> FaultRules:
    """Return the rules that *options* describe.

    :raises ValueError: They contradict each other; says how.
    """
    settings: dict[str, Any] = given(
        options, only=("delay", "delay_percent", "abort_status", "abort_percent")
    )
    return FaultRules(**settings)


def check_service(name: object, path: str, services: Collection[str], errors: Errors) -> None:
    """Add to *errors* that there is no service *name*, if there is none."""
    known = isinstance(name, str) and name in services
    if not known and name is not None and not errors.under(at("services", str(name))):
        near = suggestion(str(name), list(services))
        errors.add(path, f"there is no service {shown(name)}{near}")


def check_fallback(
    fallback: FallbackTable, path: str, services: Collection[str], errors: Errors
) -> None:
    """Add to *errors* what contradicts itself in *fallback*."""
    if errors.under(path):
        return
    kinds = [
        key for key in ("service", "app", "body", "file") if getattr(fallback, key) is not None
    ]
    if len(kinds) > 1:
        errors.add(path, f"{' and '.join(kinds)}: one of them answers")
    elif not kinds and not fallback.stale:
        errors.add(path, "needs one of stale, service, app, body and file")
    if not {"body", "file"} & set(kinds):
        for key in ("status", "content_type"):
            if getattr(fallback, key) is not None:
                errors.add(at(path, key), "is for a fixed answer, of body or file")
    check_service(fallback.service, at(path, "service"), services, errors)
