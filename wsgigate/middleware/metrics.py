"""Metrics of requests: how many, how long, with which status, and how many are in flight."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hmac import compare_digest
from typing import Annotated, Any, NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.bearer import bearer
from wsgigate.http.fields import KNOWN_METHODS
from wsgigate.http.problem import Problem, answer_with
from wsgigate.http.wsgi import (
    FAILURE,
    INSTANCE,
    REASON,
    REJECTED_BY,
    REQUEST_ID,
    ROUTE,
    SERVICE,
    TRACE,
    TUNNELLED,
    UPSTREAM_SECONDS,
    Observed,
    observe,
)
from wsgigate.rules.arguments import Pattern, Trait, checked
from wsgigate.runtime import fork
from wsgigate.runtime.logs import RepeatLog
from wsgigate.telemetry.exposition import CONTENT_TYPES, exposition, preferred_format
from wsgigate.telemetry.metrics import (
    MAX_SERIES,
    PROCESS,
    Counter,
    CounterSeries,
    Exemplar,
    Family,
    Histogram,
    HistogramSeries,
    InFlight,
    Storage,
)
from wsgigate.telemetry.recent_errors import encoded_error

__all__ = ["Metrics", "metrics_page", "record_in", "set_duration_buckets"]

_ROUTE_LABELS = ("http_route", "service")

STARTED = Counter("wsgigate_requests_started", "Requests that were started.")

LOST = Counter(
    "wsgigate_requests_lost", "Requests that a worker had not finished when it was killed."
)

DURATION = Histogram(
    "http_server_request_duration_seconds",
    "Time from the beginning of a request to the end of its response.",
    ("http_request_method", "http_route", "http_response_status_code", "service"),
)

GATEWAY_DURATION = Histogram(
    "wsgigate_gateway_duration_seconds",
    "Time of requests without that for which services were waited for.",
    ("http_route",),
)

WEBSOCKETS = Histogram(
    "wsgigate_websocket_duration_seconds",
    "Time for which WebSockets were open; they are not among the other requests.",
    _ROUTE_LABELS,
    buckets=(1, 10, 60, 300, 900, 3600, 14400, 86400),
)

REQUEST_BYTES = Counter(
    "wsgigate_request_bytes",
    "Bytes of request bodies with a Content-Length, and of messages of WebSocket clients.",
    _ROUTE_LABELS,
)

RESPONSE_BYTES = Counter("wsgigate_response_bytes", "Bytes of response bodies.", _ROUTE_LABELS)

ABORTED = Counter(
    "wsgigate_responses_aborted",
    "Responses that ended early: the client left, or the app failed after it had begun.",
    _ROUTE_LABELS,
)

REJECTIONS = Counter(
    "wsgigate_rejections",
    "Requests that the gateway rejected itself, by status and the middleware or the reason.",
    ("http_response_status_code", "reason"),
)

ACTIVE = Family("http_server_active_requests", "gauge", "Requests in flight.", ())

IN_FLIGHT = InFlight(
    ACTIVE, LOST.family, STARTED.family.name, (DURATION.family.name, WEBSOCKETS.family.name)
)

PROCESS.in_flight.append(IN_FLIGHT)

_LOOK = 10.0
"""Seconds between two looks whether the file of the counts is still there."""

_MOST_KNOWN = 4096

_BETWEEN_REJECTIONS = 1.0
"""Seconds between two records of rejections: a client that is limited thousands of times must not
displace the records of the failures, of which there is room for few."""

SHORTEST_TOKEN = 32


class _RequestSeries(NamedTuple):
    duration: HistogramSeries
    gateway: HistogramSeries
    sent: CounterSeries


def record_in(owner: str, *, folder: str | None = None, max_series: int = MAX_SERIES) -> None:
    """Record metrics in this process, and share them with all workers of *owner*.

    Nothing is opened before the process serves. During tests the counts stay in the process, unless
    a folder is given: counts that persist after a test run would fail the next one.

    :param owner: Identifies the gateway or app. Default: the running program.
    :param folder: The folder of the file. Default: a private one.
    """
    PROCESS.max_series = max_series
    shared = folder is not None or not fork.tested()
    PROCESS.record(partial(_open, owner, folder, max_series) if shared else None)


def set_duration_buckets(buckets: Sequence[float]) -> None:
    """Use *buckets* for the durations of requests, of the gateway and of services.

    :param buckets: Upper bounds in seconds.
    :raises ValueError: They are not finite and increasing, or more than 60.
    """
    for name in (*_DURATIONS, "http_client_request_duration_seconds"):
        instrument = PROCESS.instruments.get(name)
        if isinstance(instrument, Histogram):
            instrument.set_buckets(buckets)


_DURATIONS = (DURATION.family.name, GATEWAY_DURATION.family.name)


def _open(owner: str, folder: str | None, max_series: int) -> Storage:
    from wsgigate.telemetry.slots import open_slots  # it needs fcntl, which Windows lacks

    return open_slots(owner, folder, max_series)


@checked
class Metrics:
    """Count requests, and measure how long they take. Put it outermost, so that it sees them all.

    All workers of a machine count in one file in memory, so a scrape of any of them returns the
    numbers of all, exact to the last request, also after a worker was killed. A gateway with an
    ``[admin]`` or ``[metrics]`` table has this middleware already.

    The labels are bounded: methods that HTTP does not define are ``_OTHER``, and the route is the
    name of the gateway's route or the rule of the Flask app, never the client's path.

    :param app: The WSGI application whose requests are counted.
    :param path: A path that serves the metrics, such as ``/metrics``; requests of it are not
        counted. Requires *token* or *public*. Default: none; a gateway serves them.
    :param token: The bearer token for that path, at least 32 characters.
    :param public: Serve that path to every client.
    :param route: A function that returns the route of a request for the label ``http_route``, of
        which there must be few; called when the response has ended.
    :param owner: Identifies the app: the workers with the same text count together. Default: the
        running program.
    :param folder: The folder of the file in which the workers count. Default: a private folder
        below ``/dev/shm``, else below the user's runtime or state folder.
    :param clock: Returns a monotonic time in seconds.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        path: Annotated[str, Pattern("/.*", 'a path such as "/metrics"')] | None = None,
        token: Annotated[str, Trait.SECRET] | None = None,
        public: bool = False,
        route: Callable[[WSGIEnvironment], str | None] | None = None,
        owner: str = "",
        folder: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if path is not None and not path.startswith("/"):
            raise ValueError(f'path is as "/metrics", got {path!r}')
        if token is not None and len(token) < SHORTEST_TOKEN:
            raise ValueError(f"token has {SHORTEST_TOKEN} or more characters, got {len(token)}")
        if path is not None and token is None and not public:
            raise ValueError("path requires token, or public=True for every client to read it")
        self.app = app
        self._path = path
        self._page = metrics_page(_with_token(token))
        self._route = route
        self._clock = clock
        self._known: dict[tuple[str, str, str, str], _RequestSeries] = {}
        self._look_at = 0.0
        self._next_rejection = -math.inf
        if not PROCESS.recording:
            record_in(owner, folder=folder)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._path is not None and environ.get("PATH_INFO") == self._path:
            return self._page(environ, start_response)
        if not PROCESS.started:
            PROCESS.start()
        began = self._clock()
        STARTED.add()
        rule: list[str] = []
        if "flask" in sys.modules:
            start_response = _noting_rule(environ, start_response, rule)
        return observe(self.app, environ, start_response, partial(self._done, environ, began, rule))

    def _done(
        self, environ: WSGIEnvironment, began: float, rule: list[str], response: Observed
    ) -> None:
        now = self._clock()
        if now > self._look_at:
            self._look_at = now + _LOOK
            PROCESS.look()
        seconds, get = now - began, environ.get
        route = get(ROUTE) if self._route is None else self._route(environ)
        route, service = route or (rule[0] if rule else ""), get(SERVICE) or ""
        failed = response.error is not None and not response.sent
        status = "500" if failed else response.status[:3]
        if not response.complete and not failed:
            ABORTED.labels(route, service).add()
        length = get("CONTENT_LENGTH") or "0"
        received = int(length) if length.isdecimal() and len(length) < 16 else 0
        if status == "101":
            received, sent = get(TUNNELLED) or (0, 0)
            WEBSOCKETS.labels(route, service).observe(seconds)
            RESPONSE_BYTES.labels(route, service).add(sent)
            REQUEST_BYTES.labels(route, service).add(received)
            return
        rejected = get(REJECTED_BY)
        if rejected and status >= "400":  # else a fallback has responded in its place
            REJECTIONS.labels(status, rejected).add()
        method = environ["REQUEST_METHOD"]
        if method not in KNOWN_METHODS:
            method = "_OTHER"
        if status >= "500":
            _keep(environ, method, route, service, status, response.error)
        elif rejected and status >= "400" and now >= self._next_rejection:
            self._next_rejection = now + _BETWEEN_REJECTIONS
            _keep(environ, method, route, service, status, response.error)
        key = (method, route, status, service)
        series = self._known.get(key) or self._made(key)
        if received:
            REQUEST_BYTES.labels(route, service).add(received)
        waited = get(UPSTREAM_SECONDS) or 0.0
        series.duration.observe(seconds, _exemplar(environ, seconds))
        series.gateway.observe(max(0.0, seconds - waited))
        if response.sent and method != "HEAD":
            series.sent.add(response.sent)

    def _made(self, key: tuple[str, str, str, str]) -> _RequestSeries:
        _, route, _, service = key
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        made = self._known[key] = _RequestSeries(
            DURATION.labels(*key),
            GATEWAY_DURATION.labels(route),
            RESPONSE_BYTES.labels(route, service),
        )
        return made


def _keep(
    environ: WSGIEnvironment,
    method: str,
    route: str,
    service: str,
    status: str,
    error: BaseException | None,
) -> None:
    """Keep a record of a request that failed or was rejected."""
    get = environ.get
    reason = get(REASON) or get(FAILURE) or get(REJECTED_BY) or ""
    texts = {
        "request_id": str(get(REQUEST_ID) or ""),
        "trace_id": str(getattr(get(TRACE), "trace_id", "")),
        "method": method,
        "route": route,
        "service": service,
        "instance": str(get(INSTANCE) or ""),
        "reason": str(reason),
        "error": "" if error is None else type(error).__name__,
    }
    PROCESS.put_event(encoded_error(int(status), texts), time.time())


def _noting_rule(
    environ: WSGIEnvironment, start_response: StartResponse, rule: list[str]
) -> StartResponse:
    """Return a *start_response* that appends the rule of Flask's route to *rule*.

    Flask removes its request from ``environ`` before the response has ended.
    """

    def noting(*arguments: Any) -> Any:
        url_rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
        if url_rule is not None:
            rule[:] = [str(url_rule.rule)]
        return start_response(*arguments)

    return noting


def _exemplar(environ: WSGIEnvironment, seconds: float) -> Exemplar | None:
    trace: Any = environ.get(TRACE)
    if trace is None or not getattr(trace, "sampled", False):
        return None
    return Exemplar(seconds, time.time(), str(trace.trace_id))


def metrics_page(admit: Callable[[WSGIEnvironment], Problem | None]) -> WSGIApplication:
    """Return the app that serves the metrics as text.

    :param admit: Returns why a request may not read them, or None.
    """

    def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _NOT_ALLOWED(environ, start_response)
        problem = admit(environ)
        if problem is not None:
            return answer_with(problem)(environ, start_response)
        PROCESS.start()
        form = preferred_format(environ.get("HTTP_ACCEPT", ""))
        try:
            body = exposition(PROCESS.totals(exemplars=form == "openmetrics"), form)
        except Exception as error:  # the file was damaged while it was in use
            _failures.log("The metrics cannot be read: %s", error)
            return answer_with(_UNREADABLE)(environ, start_response)
        headers = [
            ("Content-Type", CONTENT_TYPES[form]),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Vary", "Accept"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        start_response("200 OK", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    return page


_log = logging.getLogger("wsgigate.metrics")

_failures = RepeatLog(_log, logging.WARNING)

_UNREADABLE = Problem(503, "The metrics cannot be read at the moment; the log says why.")

_NOT_ALLOWED = answer_with(Problem(405, headers=(("Allow", "GET, HEAD"),)))


def _with_token(token: str | None) -> Callable[[WSGIEnvironment], Problem | None]:
    def admit(environ: WSGIEnvironment) -> Problem | None:
        if token is None or compare_digest(bearer(environ), token.encode()):
            return None
        return _UNAUTHORIZED

    return admit


_UNAUTHORIZED = Problem(
    401, "This requires the token of the metrics.", headers=(("WWW-Authenticate", "Bearer"),)
)
