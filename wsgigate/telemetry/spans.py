"""Spans of sampled requests, recorded by the tracers of an OpenTelemetry provider.

Names and rules are those of the stable semantic conventions for HTTP (1.44). A query is never
recorded, as it may carry credentials; neither are header fields, except ``User-Agent``. Values
that a client sends are cut at :data:`LONGEST` characters.

The provider may be the application's, with samplers and processors of its own: an exception of
theirs is logged, and the request goes on without a span.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import unquote, urlsplit
from wsgiref.types import WSGIEnvironment

from opentelemetry import context as contexts
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

from wsgigate.http.fields import KNOWN_METHODS
from wsgigate.http.wsgi import REASON, ROUTE, ClientLeft, Observed, peer
from wsgigate.runtime import fork
from wsgigate.runtime.logs import RepeatLog, one_line
from wsgigate.telemetry.trace_context import (
    RANDOM,
    SAMPLED,
    RemoteParent,
    TraceContext,
    TracerSource,
)

__all__ = ["LONGEST", "AttemptSpan", "ServerSpan", "Spans", "wanted_trace_id"]

LOG = logging.getLogger("wsgigate.tracing")

LONGEST = 1024
"""Longest value of an attribute that a client sends, in characters."""

_FAILURES = RepeatLog(LOG, logging.ERROR)

_ROOT = contexts.Context()
"""A context without a span: the parent of a span whose trace begins here."""

_VERSIONS = {"HTTP/1.0": "1.0", "HTTP/1.1": "1.1", "HTTP/2.0": "2", "HTTP/3.0": "3"}

_PORTS = {"http": 80, "https": 443}

_wanted = threading.local()


def wanted_trace_id() -> int | None:
    """Return the id of the trace that is about to begin in this thread, for an IdGenerator.

    The decision to sample it was made from this id, so a provider of the gateway's own uses it.
    """
    found: int | None = getattr(_wanted, "trace_id", None)
    return found


class Spans:
    """Starts the spans of requests.

    :param source: The provider of tracers; asked for one by the first sampled request of each
        process.
    """

    def __init__(self, source: TracerSource) -> None:
        self._source = source
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Ask for a tracer again: the provider may start anew in each process."""
        self._tracer: Tracer | None = None

    def start(self, trace: TraceContext, environ: WSGIEnvironment) -> ServerSpan | None:
        """Start the server span of a request; return None if the provider does not record it.

        *trace* gets the ids of the span.
        """
        try:
            return self._started(trace, environ)
        except Exception as error:
            _FAILURES.log("The span of a request cannot be started: %r", error, traceback=error)
            return None

    def _started(self, trace: TraceContext, environ: WSGIEnvironment) -> ServerSpan | None:
        tracer = self._tracer
        if tracer is None:
            tracer = self._tracer = self._source.get_tracer("wsgigate")
        name, attributes = _of_method(environ["REQUEST_METHOD"])
        attributes["url.scheme"] = environ["wsgi.url_scheme"]
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        attributes["url.path"] = _text(path)
        version = _VERSIONS.get(environ.get("SERVER_PROTOCOL", ""))
        if version is not None:
            attributes["network.protocol.version"] = version
        agent = environ.get("HTTP_USER_AGENT")
        if agent:
            attributes["user_agent.original"] = _text(agent)
        scheme = environ["wsgi.url_scheme"]
        _add_server(attributes, f"{scheme}://{environ.get('HTTP_HOST', '')[:LONGEST]}")
        context = _ROOT
        if trace.parent is None:
            _wanted.trace_id = int(trace.trace_id, 16)
        else:
            # what the caller has decided does not count any more: this request is sampled
            parent = trace.parent._replace(flags=(trace.parent.flags or 0) | SAMPLED)
            remote = _remote(parent, environ.get("HTTP_TRACESTATE", ""))
            context = set_span_in_context(NonRecordingSpan(remote), _ROOT)
        links = [] if trace.link is None else [Link(_remote(trace.link, ""))]
        try:
            span = tracer.start_span(name, context, SpanKind.SERVER, attributes, links)
        finally:
            _wanted.trace_id = None
        made = span.get_span_context()
        if not made.is_valid:  # the SDK is disabled
            return None
        trace.trace_id, trace.span_id = f"{made.trace_id:032x}", f"{made.span_id:016x}"
        trace.sampled = bool(made.trace_flags & SAMPLED)
        trace.random = bool(made.trace_flags & RANDOM)
        return ServerSpan(tracer, span, trace, name) if span.is_recording() else None


class ServerSpan:
    """The span of a request, from its begin to the end of its response."""

    __slots__ = ("_context", "_name", "_span", "_trace", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, trace: TraceContext, name: str) -> None:
        self._tracer = tracer
        self._span = span
        self._trace = trace
        self._name = name
        self._context = set_span_in_context(span, contexts.get_current())

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make it the current span, so that spans of the app become its children."""
        token = contexts.attach(self._context)
        try:
            yield
        finally:
            contexts.detach(token)

    def attempt(
        self, fields: MutableMapping[str, str], method: str, origin: str, target: str, number: int
    ) -> AttemptSpan | None:
        """Start the span of an attempt to forward the request; None if that fails.

        :param fields: The fields of the forwarded request; its parent becomes the new span.
        :param origin: The URL of the instance.
        :param target: The request target; its query is not recorded.
        :param number: The number of the attempt, from 1.
        """
        try:
            name, attributes = _of_method(method)
            path, query, _ = target.partition("?")
            attributes["url.full"] = _text(origin + path) + ("?REDACTED" if query else "")
            _add_server(attributes, origin)
            if number > 1:
                attributes["http.request.resend_count"] = number - 1
            span = self._tracer.start_span(name, self._context, SpanKind.CLIENT, attributes)
            made = span.get_span_context()
            if not (made.is_valid and made.trace_flags & SAMPLED):
                return None
            span_id = f"{made.span_id:016x}"
            if "Traceparent" in fields:  # unless the route removes it
                fields["Traceparent"] = self._trace.traceparent(span_id)
            if "B3" in fields:
                fields["B3"] = f"{self._trace.trace_id}-{span_id}-1"
            return AttemptSpan(span)
        except Exception as error:
            _FAILURES.log("The span of an attempt cannot be started: %r", error, traceback=error)
            return None

    def end(self, environ: WSGIEnvironment, response: Observed) -> None:
        """Record how the response has ended."""
        try:
            self._end(environ, response)
        except Exception as error:
            _FAILURES.log("The span of a request cannot be recorded: %r", error, traceback=error)

    def _end(self, environ: WSGIEnvironment, response: Observed) -> None:
        span, error = self._span, response.error
        route = environ.get(ROUTE)
        if route:
            span.update_name(f"{self._name} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("client.address", peer(environ))
        failed = error is not None and not isinstance(error, ClientLeft)
        status = response.status[:3]
        if failed and not response.sent:
            status = "500"  # what the server responds
        if status.isdecimal():
            span.set_attribute("http.response.status_code", int(status))
        reason = environ.get(REASON)
        if failed or status >= "500":
            kind = status if error is None or not failed else _kind_of(error)
            span.set_attribute("error.type", kind)
            span.set_status(Status(StatusCode.ERROR, one_line(reason) if reason else None))
        elif reason:
            span.add_event("rejected", {"reason": one_line(reason)})
        if not (response.complete or failed):
            span.add_event("client disconnected")
        span.end()


class AttemptSpan:
    """The span of one attempt to forward a request, up to the end of the instance's response."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def responded(self, status: int, version: str = "1.1") -> None:
        """Record that the instance has begun its response."""
        span = self._span
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("network.protocol.version", version)
        if status >= 400:
            span.set_attribute("error.type", str(status))
            span.set_status(Status(StatusCode.ERROR))

    def failed(self, error: BaseException, reason: str) -> None:
        """Record that the instance gave no response, or cut it."""
        self._span.set_attribute("error.type", _kind_of(error))
        self._span.set_status(Status(StatusCode.ERROR, one_line(reason)))

    def cancelled(self, why: str) -> None:
        """Record that the response was not needed any more, which is no error."""
        self._span.add_event("cancelled", {"reason": why})

    def end(self) -> None:
        """Record the end; a second call does nothing."""
        try:
            if self._span.is_recording():
                self._span.end()
        except Exception as error:
            _FAILURES.log("The span of an attempt cannot be recorded: %r", error, traceback=error)


def _of_method(method: str) -> tuple[str, dict[str, str | int]]:
    """Return the name of a span, and the attributes of the request's method."""
    if method in KNOWN_METHODS:
        return method, {"http.request.method": method}
    attributes: dict[str, str | int] = {"http.request.method": "_OTHER"}
    attributes["http.request.method_original"] = _text(method)
    return "HTTP", attributes


def _text(value: str) -> str:
    """Return *value*, whose bytes are those of the client, as text of bounded length."""
    if value.isascii():
        return value[:LONGEST]
    return value[:LONGEST].encode("latin-1", "replace").decode("utf-8", "replace")


def _add_server(attributes: dict[str, str | int], url: str) -> None:
    host, port = _host_and_port(url)
    if host:
        attributes["server.address"] = host
        if port is not None:
            attributes["server.port"] = port


@lru_cache(maxsize=1024)
def _host_and_port(url: str) -> tuple[str, int | None]:
    """Return the host and the port of a URL; the path of a Unix socket, which has no port."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "http+unix":
            return unquote(parts.netloc), None
        return parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    except ValueError:  # a Host field that is no host
        return "", None


def _remote(parent: RemoteParent, state: str) -> SpanContext:
    return SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(parent.flags or 0),
        trace_state=TraceState.from_header([state] if state else []),
    )


def _kind_of(error: BaseException) -> str:
    """Return the ``error.type`` of an exception: its qualified name."""
    kind = type(error)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
