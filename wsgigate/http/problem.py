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
from typing import TypeAlias
from urllib.parse import quote
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.wsgi import LOGGED, REASON, peer
from wsgigate.rules.arguments import explained
from wsgigate.runtime.clocks import real
from wsgigate.runtime.logs import ThrottledLog

__all__ = [
    "Problem",
    "Refusal",
    "Refuse",
    "answer_with",
    "prefers_html",
    "refused",
    "status_line",
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


# The log of rejections: by the access log, or here without a Logger around. Otherwise a middleware
# that is used alone would reject requests without a trace. Each rejection is one record: a WARNING,
# or INFO within a minute after a WARNING of the same middleware and kind of reason, so that a flood
# of rejections is not a flood of warnings, and requests without a token do not hide why tokens are
# rejected. The kind is the reason up to the first value in it; clients may choose values, so the
# kinds of each middleware are limited, and all further ones count as one.

_log = logging.getLogger("wsgigate.refusals")

rejection_logs: dict[str, dict[str, ThrottledLog]] = {}
"""Counts the rejections of each middleware, by its name and kind, between two warnings."""

_MOST_KINDS = 8
_KIND = re.compile(r"[^'\"0-9\[{]{,60}")


def refused(environ: WSGIEnvironment, by: str, reason: str) -> None:
    """Record why a request is rejected, and log it unless an outer Logger does.

    :param by: The name of the middleware.
    :param reason: For the log only: it may contain what a client must not see.
    """
    environ[REASON] = reason
    if LOGGED in environ:
        return
    kinds = rejection_logs.setdefault(by, {})
    found = _KIND.match(reason)
    kind = found.group() if found else ""
    if kind not in kinds and len(kinds) >= _MOST_KINDS:
        kind = ""
    warnings = kinds.get(kind)
    if warnings is None:
        warnings = kinds.setdefault(kind, ThrottledLog(_log.warning, "", real))
    count = warnings.due()
    level = logging.WARNING if count else logging.INFO
    if not _log.isEnabledFor(level):
        return
    path = quote(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""), encoding="latin-1")
    method = environ.get("REQUEST_METHOD", "")[:32]
    since = f" ({count - 1} more since the last warning)" if count > 1 else ""
    _log.log(
        level, "%s refused %r %s of %s: %s%s", by, method, path[:512], peer(environ), reason, since
    )
