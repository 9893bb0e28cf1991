"""The access log: one record per response, written when the response has ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Literal, TextIO
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.wsgi import (
    INSTANCE,
    LOGGED,
    REASON,
    REQUEST_ID,
    ROUTE,
    RULE,
    SERVICE,
    SHAPED,
    TUNNELLED,
    Observed,
    observe,
    peer,
    subject,
)
from wsgigate.rules.arguments import Count, checked
from wsgigate.runtime.clocks import wall
from wsgigate.telemetry.access_log import JsonLines, LineFormat, Record, Sink, TextLines

__all__ = ["Logger"]

_KEYS = (
    REQUEST_ID,
    "REQUEST_METHOD",
    "RAW_URI",
    "REQUEST_URI",
    ROUTE,
    SERVICE,
    INSTANCE,
    REASON,
    TUNNELLED,
    SHAPED,
)

_record = tuple.__new__


@checked
class Logger:
    """Write an access log: one record per response, when the response has ended.

    The path is logged without its query, and header fields are not logged, as both may contain
    tokens. Values are truncated to 512 characters and escaped, so that no value can forge a line.
    Requests never wait for the log: a thread writes the records from a bounded queue. They are
    dropped and counted if it cannot keep up or the stream is broken.

    If the application fails before anything was sent, the record has the status 500, with which the
    server will respond. ``aborted`` marks a response that ended before its last chunk.

    :param app: The WSGI application whose responses are logged.
    :param stream: The output stream. Default: ``sys.stdout`` as of the first record.
    :param format: ``"json"``, ``"text"`` for people, or ``"auto"``: text on a terminal, else JSON.
        Text on a terminal is coloured unless the environment variable ``NO_COLOR`` is set.
    :param queue_size: Maximum number of records that wait for a slow reader; further ones are
        dropped and counted.
    :param now: Returns the Unix time in seconds.
    :param clock: Returns a monotonic time in seconds, for durations.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        stream: TextIO | None = None,
        format: Literal["auto", "json", "text"] = "auto",
        queue_size: Count = 10_000,
        now: Callable[[], float] = wall,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if format not in _FORMATS:
            raise ValueError(f'format is "auto", "json" or "text", not {format!r}')
        if queue_size < 1:
            raise ValueError(f"queue_size is 1 or more records, got {queue_size}")
        self.app = app
        self._now = now
        self._clock = clock
        self._sink = Sink(stream, _FORMATS[format], queue_size=queue_size, now=now)
        self._put = self._sink.put

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self.record(self.app, environ, start_response)

    def record(
        self, app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Call *app* and log its response.

        For responses that do not come from the wrapped app, such as a server's rejection of a
        malformed request.
        """
        began = self._clock()
        environ[LOGGED] = True

        def done(response: Observed) -> None:
            get = environ.get
            request_id, method, raw, uri, route, service, instance, reason, tunnelled, shaped = map(
                get, _KEYS
            )
            error = response.error
            failed = error is not None and not response.sent
            target = raw or uri
            values = (
                self._now(),
                request_id,
                peer(environ),
                method or "",
                target,
                "" if target else get("SCRIPT_NAME", "") + get("PATH_INFO", ""),
                "500" if failed else response.status,
                0 if method == "HEAD" else tunnelled[1] if tunnelled else response.sent,
                self._clock() - began,
                route,
                service,
                instance,
                subject(environ),
                reason,
                None if error is None else type(error).__name__,
                not (response.complete or failed),
                shaped,
                get(RULE),
            )
            self._put(_record(Record, values))  # half the price of Record(...)

        return observe(app, environ, start_response, done)

    @property
    def dropped(self) -> int:
        """Number of records that this process has dropped."""
        return self._sink.dropped

    def flush(self, timeout: float = 2.0) -> bool:
        """Wait until all records so far are written; return False after *timeout* seconds."""
        return self._sink.flush(timeout)

    def close(self, timeout: float = 2.0) -> bool:
        """Flush and stop the writer thread. A later request starts it again."""
        return self._sink.close(timeout)


def _json(stream: TextIO) -> LineFormat:
    return JsonLines()


def _text(stream: TextIO) -> LineFormat:
    colour = stream.isatty() and not os.environ.get("NO_COLOR")
    return TextLines(getattr(stream, "encoding", None) or "utf-8", colour=colour)


def _auto(stream: TextIO) -> LineFormat:
    return _text(stream) if stream.isatty() else _json(stream)


_FORMATS = {"auto": _auto, "json": _json, "text": _text}
