"""The dashboard: a page of static files, which reads the admin API from the browser.

The files are the same for every gateway and hold no data, so they need no token: the page asks for
one, and the admin API decides what it may show. The page must not become a way around that:

- Its policy (``Content-Security-Policy``) lets it load and ask its own origin only, run no inline
  script, and be shown in no frame of another page, so that no click can be stolen.
- Trusted types forbid the page to make markup of text: a hostile name of a service stays text.
- All URLs in it are relative, so that it works below any prefix and any mount.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from urllib.parse import quote

from wsgigate.admin.access import Role, role_of
from wsgigate.admin.api import AdminEndpoint, Group
from wsgigate.http.bodies import wrong
from wsgigate.http.json_app import JsonRequest, JsonResponse
from wsgigate.http.problem import Problem, Refusal
from wsgigate.store import StoreError
from wsgigate.telemetry.history import GATEWAY, History

__all__ = ["POLICY", "RegisteredInstance", "RegisteredList", "dashboard_group", "history_group"]

MOST_KEYS = 20
"""Maximum number of series of one request."""

FOLDER = Path(__file__).parent / "static"

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}

POLICY = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

FIELDS = (
    ("Content-Security-Policy", POLICY),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Frame-Options", "DENY"),
)


class _File(NamedTuple):
    content: bytes
    content_type: str


@cache
def _files() -> dict[str, _File]:
    """Return the files by name; read once in a process, at the first request for one of them."""
    return {
        path.name: _File(path.read_bytes(), TYPES[path.suffix])
        for path in FOLDER.iterdir()
        if path.suffix in TYPES
    }


def _page(request: JsonRequest) -> object:
    """Return the page."""
    return _static(request, "index.html")


def _static(request: JsonRequest, name: str) -> object:
    """Return a file of the page.

    A browser asks each time whether its copy is current (``no-cache``), so that a page never runs
    with the scripts of another release.
    """
    file = _files().get(name)
    if file is None:
        return Problem(404, "The dashboard has no such file.")
    return JsonResponse(
        file.content, headers=FIELDS, cache="no-cache", content_type=file.content_type
    )


def _moved(request: JsonRequest) -> object:
    """Return the redirect to the page, whose relative URLs need the slash at its end."""
    name = request.environ.get("PATH_INFO", "").rpartition("/")[2]
    return JsonResponse(b"", 308, (("Location", f"{quote(name)}/"),), cache="no-cache")


def dashboard_group(prefix: str = "") -> Group:
    """Return the endpoints that serve the page and its files.

    :param prefix: The path prefix of the gateway's own endpoints.
    """
    public = partial(AdminEndpoint, response=str, role=Role.PUBLIC, content_type="text/html")
    moved = [public("GET ", _moved, "The dashboard")] if prefix else []
    return Group(
        "dashboard",
        [
            *moved,
            public("GET /", _page, "The dashboard"),
            public("GET /static/{name}", _static, "Files of the dashboard"),
        ],
    )


# What the page reads beside the documents of the other endpoints.


class Session(TypedDict):
    """What the token of this request may do."""

    role: Annotated[Literal["viewer", "admin"], "viewer: only reads; admin: also writes."]


class RegisteredInstance(TypedDict):
    """An instance in the service registry."""

    service: str
    id: str
    url: str
    status: str
    version: str | None
    zone: str | None
    renewed: Annotated[float, "When its last heartbeat arrived, in Unix time."]


class RegisteredList(TypedDict):
    """The service registry: who renews, and how many have to."""

    instances: list[RegisteredInstance]
    total: int
    renewing: Annotated[int, "Instances whose heartbeats arrive in time."]
    threshold: Annotated[float, "Self-preservation begins below this share of renewing instances."]
    preserving: Annotated[bool, "Whether self-preservation keeps silent instances."]


class HistoryDocument(TypedDict):
    """Samples of the last hour."""

    interval: Annotated[float, "Seconds between two samples."]
    times: Annotated[list[float], "When the samples were taken, in Unix time."]
    series: Annotated[
        dict[str, dict[str, list[float | None]]],
        "For each series that was asked for: rate and errors per second, success as a share, and "
        "the percentiles p50, p95, p99 of the durations in seconds.",
    ]
    inFlight: list[float | None]
    circuits: Annotated[dict[str, list[str | None]], "The state of each circuit breaker."]
    recent: Annotated[dict[str, Any], "The same figures of all series over the last minute."]


def history_group(
    history: History, registered: Callable[[], RegisteredList] | None = None
) -> Group:
    """Return the endpoints of the last hour, of the caller's role and of the registry.

    :param history: The samples.
    :param registered: Returns the contents of the service registry, if there is one.
    """

    def session(request: JsonRequest) -> Session:
        return {"role": "admin" if role_of(request.environ) is Role.ADMIN else "viewer"}

    of_registry = []
    if registered is not None:
        answer, summary = registered, "Registered instances and renewals"
        of_registry = [
            AdminEndpoint("GET /registered", lambda _: answer(), summary, RegisteredList)
        ]

    def show(request: JsonRequest) -> object:
        keys = request.query.get("of") or [GATEWAY]
        if len(keys) > MOST_KEYS:
            raise wrong(f"of: at most {MOST_KEYS} series.", "of")
        text = request.one("since", "0")
        try:
            since = float(text)
        except ValueError:
            since = nan
        if not isfinite(since):
            raise wrong("since: must be a Unix time in seconds.", "since")
        return history.document(since, list(dict.fromkeys(keys)))

    return Group(
        "history",
        [
            AdminEndpoint("GET /session", session, "What the token may do", Session),
            *of_registry,
            AdminEndpoint(
                "GET /history",
                show,
                "Samples of the last hour, for charts",
                HistoryDocument,
                query={
                    "since": "The samples after this Unix time. Default: all of the last hour.",
                    "of": 'A series: "gateway" (the default), "route:NAME", "service:NAME" or '
                    '"instance:SERVICE URL"; up to 20, each as a parameter of its own.',
                },
            ),
        ],
        errors={
            OSError: lambda error: Refusal(
                Problem(503, "The history cannot be read at the moment."),
                f"the history cannot be read: {error}",
            ),
            StoreError: lambda error: Refusal(
                Problem(503, "The registry cannot be read at the moment."),
                f"the registry cannot be read: {error}",
            ),
        },
    )
