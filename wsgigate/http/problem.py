"""Rejected requests: the problem document that the client gets, and the record in the log."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.wsgi import (
    INSTANCE,
    LOGGED,
    REASON,
    REJECTED_BY,
    REQUEST_ID,
    ROUTE,
    SERVICE,
    TRACE,
    peer,
)
from wsgigate.rules.arguments import explained
from wsgigate.runtime.logs import EventLog, one_line

__all__ = [
    "ErrorLog",
    "Problem",
    "Refusal",
    "Refuse",
    "answer_with",
    "errors",
    "event_fields",
    "failed",
    "ids_text",
    "prefers_html",
    "refused",
    "status_line",
    "write_end",
    "write_event",
]


@lru_cache(maxsize=1024)
def status_line(status: int) -> str:
    """Return *status* with its registered phrase: ``404 Not Found``."""
    return _LINES.get(status) or f"{status} Unknown"


_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}

_LINES[499] = "499 Client Closed Request"  # as nginx calls it; used in the log only


@explained
@dataclass(frozen=True)
class Problem:
    """A problem document (RFC 9457), and the WSGI application that responds with it.

    Besides the standard members it has ``success: false`` and ``message`` (the detail again), for
    clients that expect these. The detail names the rule that rejected the request, never a host,
    the flaw of a token or a stack trace: these go to the log, as ``environ["wsgigate.reason"]``.

    A client whose ``Accept`` field prefers ``text/html``, as a browser's does for a page, receives
    a small HTML page with the title and the detail instead of the JSON document (RFC 9110 section
    12.5.1). Clients that accept anything, or send no ``Accept``, receive the document.

    :param status: The HTTP status code.
    :param detail: One sentence for the client.
    :param type: A URI that identifies the problem type.
    :param title: The name of the problem type. Default: the reason phrase of the status.
    :param extensions: Further members of the document.
    :param headers: Further response fields, such as ``Retry-After``.
    """

    status: int
    detail: str = ""
    type: str = "about:blank"
    title: str = ""
    extensions: Mapping[str, object] = field(default_factory=dict)
    headers: tuple[tuple[str, str], ...] = ()

    def document(self) -> dict[str, object]:
        """Return the members of the document, in order."""
        title = self.title or status_line(self.status).partition(" ")[2]
        detail = self.detail or title
        return {
            "type": self.type,
            "title": title,
            "status": self.status,
            "detail": detail,
            "success": False,
            "message": detail,
            **self.extensions,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if "html" in environ.get("HTTP_ACCEPT", "") and prefers_html(environ["HTTP_ACCEPT"]):
            content_type, body = "text/html; charset=utf-8", self.page()
        else:
            content_type = "application/problem+json"
            body = json.dumps(self.document()).encode("ascii")
        start_response(
            status_line(self.status),
            [
                ("Content-Type", content_type),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                *self.headers,
                ("Vary", "Accept"),
            ],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def page(self) -> bytes:
        """Return the problem as an HTML page: its title and its detail, escaped."""
        document = self.document()
        title, detail = escape(str(document["title"])), escape(str(document["detail"]))
        paragraph = "" if detail == title else f"<p>{detail}</p>\n"
        return (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width">\n'
            f"<title>{self.status} {title}</title>\n<h1>{title}</h1>\n{paragraph}</html>\n"
        ).encode()


_HTML = ("text/html", "application/xhtml+xml")

_JSON = ("application/problem+json", "application/json")


def prefers_html(accept: str) -> bool:
    """Return whether an ``Accept`` field prefers an HTML page to a JSON document.

    It does only if the field names HTML with a higher quality than JSON: ``*/*`` and ``text/*`` are
    what programs send. (RFC 9110 section 12.5.1)
    """
    html, json_named, json_any = 0.0, -1.0, 0.0
    for item in accept.lower().split(",", _MOST_RANGES):
        kind, *parameters = item.split(";")
        kind, quality = kind.strip(), 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                quality = _quality(value.strip())
        if kind in _HTML:
            html = max(html, quality)
        elif kind in _JSON:
            json_named = max(json_named, quality)
        elif kind in ("application/*", "*/*"):
            json_any = max(json_any, quality)
    return html > (json_any if json_named < 0 else json_named)


_MOST_RANGES = 50


def _quality(value: str) -> float:
    """Return the weight of a media range, 0 to 1; 0 if it is malformed."""
    try:
        quality = float(value)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


class Refusal(Exception):
    """Raised to reject a request; the same app catches it and responds with *problem*.

    It must never leave a middleware: if the middleware is used alone, no outer code catches it.

    :param problem: The response.
    :param reason: The cause, for the log.
    """

    def __init__(self, problem: Problem, reason: str = "") -> None:
        super().__init__(reason or problem.detail)
        self.problem = problem

    @classmethod
    def of(cls, status: int, detail: str, reason: str = "") -> Refusal:
        """Return a refusal whose problem has only a status and a detail."""
        return cls(Problem(status, detail), reason)


Refuse: TypeAlias = Callable[[Problem], WSGIApplication]
"""Returns the WSGI app that responds with a problem, for HTML or another format."""


def answer_with(problem: Problem) -> WSGIApplication:
    """Return *problem* unchanged: the default *refuse* of every middleware."""
    return problem


# The error log: what the gateway itself rejects and what it fails to answer.
#
# A rejection is in the access log, with its reason; without a Logger around the middleware it is
# logged here, as a middleware that is used alone would reject requests without a trace. A failure
# (no instance, a broken response, an open circuit) is logged here in any case, as it is the
# operator's to mend. Clients may cause any number of either, so the first of each kind is a
# WARNING, further ones are counted, and that count is logged once a minute and at the end. The kind
# is the middleware, the service, and the reason up to the first value in it; clients may choose
# values, so the kinds of each middleware are limited, and all further ones count as one.

_log = logging.getLogger("wsgigate.refusals")

_MOST_KINDS = 8
_MOST_SERVICES = 64
_KIND = re.compile(r"[^'\"0-9\[{]{,60}")


class _Incident(NamedTuple):
    """A rejection or a failure, with what is logged of it."""

    text: str
    fields: dict[str, Any]


class ErrorLog:
    """The rejections and failures of this process, by kind.

    :param log: Logs them.
    """

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self._kinds: dict[tuple[str, str], set[str]] = {}

    def add(self, service: str, event: _Incident) -> None:
        """Log an event, or count it if one of its kind was just logged."""
        by, reason = event.fields["by"], event.fields["reason"]
        key = (by, service)
        if key not in self._kinds and len(self._kinds) >= _MOST_SERVICES:
            key = (by, "")
        kinds = self._kinds.setdefault(key, set())
        found = _KIND.match(reason)
        kind = found.group() if found else ""
        if kind not in kinds:
            if len(kinds) < _MOST_KINDS:
                kinds.add(kind)
            else:
                kind = ""
        if not self.log.add((*key, kind), event) and _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s", event.text, extra={"wsgigate": event.fields})


def write_event(event: _Incident, held: int) -> None:
    """Log *event* as a warning, after *held* others of its kind that were only counted."""
    since = f" ({held} more since the last warning)" if held else ""
    fields = {**event.fields, "held_back": held} if held else event.fields
    _log.warning("%s%s", event.text, since, extra={"wsgigate": fields})


def write_end(event: _Incident, total: int, lasted: float) -> None:
    """Log that a kind of event has ended; *event* is the last one."""
    fields = {**event.fields, "event": f"{event.fields['event']}.over", "count": total}
    _log.warning(
        "Over for a minute: %s, %d times in %.0f s; the last: %s",
        event.fields["event"],
        total,
        lasted,
        event.text,
        extra={"wsgigate": fields},
    )


errors = ErrorLog(EventLog(write_event, write_end))
"""The rejections and failures of this process."""


def refused(environ: WSGIEnvironment, by: str, reason: str) -> None:
    """Record why a request is rejected, and log it unless an outer Logger does.

    :param by: The name of the middleware.
    :param reason: For the log only: it may contain what a client must not see.
    """
    environ[REASON], environ[REJECTED_BY] = reason, by
    if LOGGED not in environ:
        text = f"{by} refused {_request(environ)}: {one_line(reason)}{ids_text(environ)}"
        errors.add("", _Incident(text, event_fields("rejected", environ, by, reason)))


def failed(environ: WSGIEnvironment, by: str, status: int, reason: str) -> None:
    """Record why the gateway fails to answer a request, and log it.

    :param by: The name of the middleware, or of the part of the gateway.
    :param status: The status of the response, such as 502.
    :param reason: For the log only: it may contain what a client must not see.
    """
    environ[REASON] = reason
    service, instance = environ.get(SERVICE) or "", environ.get(INSTANCE) or ""
    at = f" (service {service}{f', instance {instance}' if instance else ''})" if service else ""
    request, ids = _request(environ), ids_text(environ)
    text = f"{by} answered {status} to {request}{at}: {one_line(reason)}{ids}"
    fields = event_fields("failed", environ, by, reason) | {
        "status": status,
        "service": service or None,
        "instance": instance or None,
    }
    errors.add(service, _Incident(text, fields))


def _request(environ: WSGIEnvironment) -> str:
    method = environ.get("REQUEST_METHOD", "")[:32]
    return f"{method!r} {_path(environ)} of {one_line(peer(environ))}"


def _path(environ: WSGIEnvironment) -> str:
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return quote(path[:512], encoding="latin-1", errors="replace")[:512]


def ids_text(environ: WSGIEnvironment) -> str:
    """Return the request id and the trace id as the end of a line; empty without any."""
    found = [
        f"{name} {one_line(value)}"
        for name, value in (("request", environ.get(REQUEST_ID)), ("trace", _trace_id(environ)))
        if value
    ]
    return f" ({', '.join(found)})" if found else ""


def _trace_id(environ: WSGIEnvironment) -> str | None:
    return getattr(environ.get(TRACE), "trace_id", None)


def event_fields(event: str, environ: WSGIEnvironment, by: str, reason: str) -> dict[str, Any]:
    """Return the fields of a line about a request, for the attribute ``wsgigate`` of a record."""
    return {
        "event": event,
        "by": by,
        "reason": one_line(reason),
        "method": environ.get("REQUEST_METHOD", "")[:32],
        "path": _path(environ),
        "client": one_line(peer(environ)),
        "route": environ.get(ROUTE),
        "request_id": environ.get(REQUEST_ID),
        "trace_id": _trace_id(environ),
    }
