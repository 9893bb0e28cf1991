"""The OpenTelemetry SDK's provider of one process, and the queue from which spans are sent."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, attach, set_value
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from wsgigate.runtime import fork
from wsgigate.runtime.logs import RepeatLog, one_line
from wsgigate.runtime.threads import SupervisedThread
from wsgigate.telemetry.spans import wanted_trace_id

__all__ = ["SpanQueue", "provider_of"]

LOG = logging.getLogger("wsgigate.tracing")

_EXPORTER_LOG = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")

_reasons: ContextVar[list[str] | None] = ContextVar("wsgigate.span_export", default=None)
"""In a thread that sends spans for a gateway: what the exporter has logged about it."""


class _KeepReasons(logging.Filter):
    """Keeps the exporter's records of the gateway's batches out of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        reasons = _reasons.get()
        if reasons is None:
            return True
        reasons.append(record.getMessage())
        return False


_KEEP_REASONS = _KeepReasons()


class _DecidedIds(RandomIdGenerator):
    """Begins a trace with the id from which the gateway has decided to sample it."""

    def generate_trace_id(self) -> int:
        return wanted_trace_id() or super().generate_trace_id()


def provider_of(
    exporter: SpanExporter, attributes: Mapping[str, str]
) -> tuple[TracerProvider, SpanQueue]:
    """Return a provider whose spans are sent by *exporter*, and the queue that they wait in.

    :param attributes: The attributes of the resource, beside those of the environment.
    """
    _EXPORTER_LOG.addFilter(_KEEP_REASONS)  # a second time it is not added
    queue = SpanQueue(
        exporter,
        size=_setting("OTEL_BSP_MAX_QUEUE_SIZE", 2048),
        batch=_setting("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512),
        delay=_setting("OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000,
    )
    provider = TracerProvider(
        sampler=ALWAYS_ON,  # what is not sampled does not come here
        resource=Resource.create(dict(attributes)),
        shutdown_on_exit=False,
        id_generator=_DecidedIds(),
    )
    provider.add_span_processor(queue)
    return provider, queue


def _setting(name: str, default: int) -> int:
    """Return the number above 0 of a variable of the environment, or else *default*."""
    try:
        return max(1, int(os.environ.get(name, default)))
    except ValueError:
        LOG.warning("%s is not a number, so %d is used", name, default)
        return default


class SpanQueue(SpanProcessor):
    """A bounded queue of ended spans, and the thread that sends them.

    :param size: Maximum number of spans that wait; further ones are dropped and counted.
    :param batch: Number of spans that are sent together.
    :param delay: Seconds for which spans are collected.
    :ivar dropped: Number of spans that were dropped, or that the collector did not take.
    """

    def __init__(self, exporter: SpanExporter, *, size: int, batch: int, delay: float) -> None:
        self.dropped = 0
        self._exporter = exporter
        self._size = size
        self._batch = min(batch, size)
        self._delay = delay
        self._log = RepeatLog(LOG, logging.WARNING)
        self._thread = SupervisedThread("wsgigate-spans", self._run, lambda: None)
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Forget what is queued: the parent sends it."""
        self._queue: deque[ReadableSpan] = deque()
        self._changed = threading.Condition()
        self._sending = False
        self._hurry = False
        self._closed = False

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing: only ended spans are sent."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue *span* without waiting."""
        with self._changed:
            if self._closed or len(self._queue) >= self._size:
                self.dropped += 1
                return
            self._queue.append(span)
            if len(self._queue) >= self._batch:
                self._changed.notify()
        if not self._thread.alive:
            try:
                self._thread.start()
            except RuntimeError:  # the system grants no further thread at the moment
                pass

    def flush(self, timeout: float) -> bool:
        """Wait until the queue is empty and sent; return False after *timeout* seconds."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not (self._queue or self._sending), timeout)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Wait until the queue is empty and sent."""
        return self.flush(timeout_millis / 1000)

    def close(self, timeout: float) -> bool:
        """Send what is queued and end the thread; return False after *timeout* seconds."""
        sent = self.flush(timeout) if self._thread.alive else not self._queue
        with self._changed:
            self._closed = True
            left = len(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        self._thread.end()
        if left:
            self._log.log("%d spans were not sent before the end of the process", left)
        self._exporter.shutdown()  # it stops waiting for a collector that does not answer
        return sent

    def shutdown(self) -> None:
        """Send what is queued and end the thread."""
        self.close(3.0)

    def _run(self, stopping: threading.Event) -> None:
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        while not stopping.is_set():
            batch = self._next()
            if not batch:
                return
            try:
                self._send(batch)
            finally:
                with self._changed:
                    self._sending = False
                    self._changed.notify_all()

    def _next(self) -> list[ReadableSpan]:
        """Wait for the next batch; it is empty at the end."""
        with self._changed:
            ready = lambda: self._closed or self._hurry or len(self._queue) >= self._batch  # noqa: E731
            while not self._closed:
                self._changed.wait_for(ready, self._delay)
                if self._queue:
                    break
                self._hurry = False
            count = min(self._batch, len(self._queue))
            batch = [self._queue.popleft() for _ in range(count)]
            self._sending = bool(batch)
            if not self._queue:
                self._hurry = False
        return batch

    def _send(self, batch: list[ReadableSpan]) -> None:
        reasons: list[str] = []
        token = _reasons.set(reasons)
        try:
            sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:
            sent = False
            reasons.append(f"{type(error).__name__}: {error}")
        finally:
            _reasons.reset(token)
        if not sent:
            self.dropped += len(batch)
            why = one_line(reasons[0]) if reasons else "the collector did not accept them"
            self._log.log("Spans cannot be exported (%d lost so far): %s", self.dropped, why)
