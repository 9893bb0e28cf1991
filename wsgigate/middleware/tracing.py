"""Traces: continues the caller's trace or starts one, and passes it on to the app and services.

Theory of operation. The context of a request is decided once, before anything else sees it, and
written into ``environ``: the object for the gateway's own code, and the request fields for the app
and for the forwarder, which copies request fields. A request that is not sampled costs no more
than that. For a sampled one, spans are recorded by the OpenTelemetry SDK if there is a provider of
tracers: one for the request here, and one for each attempt by :mod:`wsgigate.proxy.attempts`.

Rules that must hold:

- The SDK is not touched for a request that is not sampled, as its span costs more than the rest.
- Only a trusted caller decides what is sampled, unless configured otherwise: a client that sets the
  flag of each request would have every request recorded.
- The caller's fields are replaced, not added to: what reaches a service is what is decided here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Literal
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.wsgi import TRACE, observe, peer_trusted
from wsgigate.rules.arguments import Fraction, checked
from wsgigate.runtime import fork
from wsgigate.telemetry.trace_context import (
    RANDOM,
    SAMPLED,
    RemoteParent,
    TraceContext,
    TracerSource,
    bounded_baggage,
    ratio_bound,
    read_b3,
    read_traceparent,
    read_tracestate,
)

if TYPE_CHECKING:
    from wsgigate.telemetry.spans import Spans

__all__ = ["Tracing"]

_TRACEPARENT, _TRACESTATE, _BAGGAGE = "HTTP_TRACEPARENT", "HTTP_TRACESTATE", "HTTP_BAGGAGE"

_B3_FIELDS = (
    "HTTP_B3",
    "HTTP_X_B3_TRACEID",
    "HTTP_X_B3_SPANID",
    "HTTP_X_B3_PARENTSPANID",
    "HTTP_X_B3_SAMPLED",
    "HTTP_X_B3_FLAGS",
)

_RIGHT_HALF = (1 << 64) - 1
"""The part of a trace id that decides about sampling."""

_WHO = ("trusted", "always", "never")


class _RandomIds(random.Random):
    """Random numbers of ids; seeded anew in each process, also after an unseen fork.

    Not those of the module: an app that seeds them, as some tests do, would repeat its ids.
    """

    def after_fork(self) -> None:
        """Seed with other numbers than the parent."""
        self.seed()


_ids = _RandomIds()
fork.renew_at_fork(_ids)


@checked
class Tracing:
    """Continue the caller's trace, or start one, and pass it on.

    The app and services get ``traceparent`` with the id of the gateway's span as their parent, and
    the caller's ``tracestate`` and ``baggage`` within the bounds of their specifications. With
    *tracer_provider*, sampled requests are recorded: a server span here, and a client span for each
    attempt of a forwarder. An app that OpenTelemetry instruments becomes a child of the server
    span.

    :param app: The WSGI application whose requests are traced.
    :param accept: Whose traces are continued: ``"always"``, ``"trusted"`` (those of a trusted proxy
        of an outer ClientAddress) or ``"never"``. The others get a trace of their own, whose span
        links to the caller's.
    :param accept_sampled: Whose decision about sampling is followed, in the same way. For the
        others *sample* decides.
    :param sample: Share of the traces that are sampled, 0 to 1, where no accepted caller has
        decided. Traces that begin here are chosen by their ids, as the OpenTelemetry sampler
        ``traceidratio`` does.
    :param b3: Continue the traces of B3 fields (``b3`` or ``X-B3-TraceId``) as well, where there is
        no ``traceparent``; they are removed, and written anew as ``b3``.
    :param tracer_provider: The OpenTelemetry provider whose tracers record sampled requests.
        Default: nothing is recorded.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        accept: Literal["always", "trusted", "never"] = "always",
        accept_sampled: Literal["always", "trusted", "never"] = "trusted",
        sample: Fraction = 1.0,
        b3: bool = False,
        tracer_provider: TracerSource | None = None,
    ) -> None:
        for name, value in (("accept", accept), ("accept_sampled", accept_sampled)):
            if value not in _WHO:
                raise ValueError(f'{name} is "always", "trusted" or "never", not {value!r}')
        if not 0 <= sample <= 1:
            raise ValueError(f"sample is a share from 0 to 1, got {sample}")
        self.app = app
        self._bound = ratio_bound(sample)
        self._continues = accept
        self._follows = accept_sampled
        self._b3 = b3
        self._spans: Spans | None = None
        if tracer_provider is not None:
            self.record_with(tracer_provider)

    def record_with(self, tracer_provider: TracerSource) -> None:
        """Record sampled requests from now on."""
        from wsgigate.telemetry.spans import Spans

        self._spans = Spans(tracer_provider)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if TRACE in environ:  # an outer one has decided
            return self.app(environ, start_response)
        sent = environ.get(_TRACEPARENT)
        parent = None if sent is None else read_traceparent(sent)
        if self._b3:
            parent = self._with_b3(environ, parent)
        if parent is None:
            number = _ids.getrandbits(128) or 1
            trace = TraceContext(
                f"{number:032x}",
                f"{_ids.getrandbits(64) or 1:016x}",
                number & _RIGHT_HALF < self._bound,
            )
            environ.pop(_TRACESTATE, None)  # it means nothing without its parent
        else:
            trace = self._continued(environ, parent)
        environ[TRACE] = trace
        if _BAGGAGE in environ and not bounded_baggage(environ[_BAGGAGE]):
            del environ[_BAGGAGE]
        if trace.sampled and self._spans is not None:
            return self._recorded(self._spans, trace, environ, start_response)
        environ[_TRACEPARENT] = trace.traceparent()
        if self._b3:
            environ["HTTP_B3"] = _b3(trace)
        return self.app(environ, start_response)

    def _continued(self, environ: WSGIEnvironment, parent: RemoteParent) -> TraceContext:
        """Return the context for a request whose caller has sent one."""
        trusted = peer_trusted(environ)
        span_id = f"{_ids.getrandbits(64) or 1:016x}"
        continues = _accepts(self._continues, trusted)
        state = read_tracestate(environ.pop(_TRACESTATE, ""))
        if state and continues:
            environ[_TRACESTATE] = state
        if continues and not trusted:  # the client may have chosen its id: it must not decide
            number = _ids.getrandbits(64)
        elif continues:
            number = int(parent.trace_id[16:], 16)
        else:
            number = _ids.getrandbits(128) or 1
        if parent.flags is not None and _accepts(self._follows, trusted):
            sampled = bool(parent.flags & SAMPLED)
        else:
            sampled = number & _RIGHT_HALF < self._bound
        if not continues:
            return TraceContext(f"{number:032x}", span_id, sampled, link=parent)
        is_random = bool((parent.flags or 0) & RANDOM)
        return TraceContext(parent.trace_id, span_id, sampled, is_random, parent)

    def _with_b3(
        self, environ: WSGIEnvironment, parent: RemoteParent | None
    ) -> RemoteParent | None:
        """Return *parent*, or else that of the B3 fields, which are removed."""
        if parent is None:
            parent = read_b3(environ.get)
        for key in _B3_FIELDS:
            environ.pop(key, None)
        return parent

    def _recorded(
        self,
        spans: Spans,
        trace: TraceContext,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        """Call the app and record its response."""
        trace.span = span = spans.start(trace, environ)
        environ[_TRACEPARENT] = trace.traceparent()
        if self._b3:
            environ["HTTP_B3"] = _b3(trace)
        if span is None:
            return self.app(environ, start_response)
        with span.current():
            return observe(self.app, environ, start_response, partial(span.end, environ))


def _accepts(who: str, trusted: bool) -> bool:
    return who == "always" or (trusted and who == "trusted")


def _b3(trace: TraceContext) -> str:
    return f"{trace.trace_id}-{trace.span_id}-{trace.sampled:d}"
