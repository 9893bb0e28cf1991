"""The access log: one record per response, written when the response has ended."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TextIO
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.wsgi import (
    INSTANCE,
    LOGGED,
    REASON,
    REQUEST_ID,
    ROUTE,
    RULE,
    SERVICE,
    SHAPED,
    TRACE,
    TUNNELLED,
    ExcInfo,
    Headers,
    Observed,
    observe,
    peer,
    subject,
)
from wsgigate.rules.arguments import Bytes, Count, Fraction, OneOf, Range, Seconds, checked
from wsgigate.runtime.clocks import wall
from wsgigate.runtime.logs import EventLog
from wsgigate.telemetry.access_log import JsonLines, LineFormat, LogOutput, Record, Sink, TextLines
from wsgigate.telemetry.log_formats import (
    DEFAULTS,
    CombinedLines,
    LogfmtLines,
    SelectedJson,
    SelectedText,
    Selection,
)
from wsgigate.telemetry.log_outputs import (
    FACILITIES,
    HandlerOutput,
    JournalLines,
    JournalOutput,
    RotatingFile,
    SyslogLines,
    SyslogOutput,
)
from wsgigate.telemetry.log_sampling import is_kept, is_tunnel, slow_fields, slow_text

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
    RULE,
    TRACE,
)

_record = tuple.__new__

_slow_log = logging.getLogger("wsgigate.slow")

LogFormat = Literal["auto", "json", "text", "otel", "ecs", "logfmt", "combined"]

_FORMATS = ("auto", "json", "text", "otel", "ecs", "logfmt", "combined")


@checked
class Logger:
    """Write an access log: one record per response, when the response has ended.

    The path is logged without its query, and header fields are not logged, as both may contain
    tokens, unless *fields* or the format has them; then credentials in them are masked. Values are
    truncated to 512 characters and escaped, so that no value can forge a line. Requests never wait
    for the log: a thread writes the records from a bounded queue. They are dropped and counted if
    it cannot keep up or the output is broken.

    If the application fails before anything was sent, the record has the status 500, with which the
    server will respond. ``aborted`` marks a response that ended before its last chunk.

    :param app: The WSGI application whose responses are logged.
    :param stream: The output stream. Default: ``sys.stdout`` as of the first record.
    :param format: ``"json"``, ``"text"`` for people, or ``"auto"``: text on a terminal, else JSON.
        Text on a terminal is coloured unless the environment variable ``NO_COLOR`` is set.
        ``"otel"`` and ``"ecs"`` are JSON with the names of OpenTelemetry's semantic conventions and
        of Elastic Common Schema, ``"logfmt"`` is ``name=value`` pairs, and ``"combined"`` the
        format of Apache and nginx.
    :param queue_size: Maximum number of records that wait for a slow reader; further ones are
        dropped and counted.
    :param fields: The fields of a record, in order, such as ``["time", "status", "user_agent",
        "request.Accept", "claim.tenant"]``; with ``"text"``, further fields behind the columns.
        Default: those of the format.
    :param sample: The share of the records that are kept of responses below 400 that were neither
        rejected nor cut off nor slow: 0 to 1. It is decided by the trace id or the request id.
    :param slow: The time after which a request is slow, in seconds. The logger ``wsgigate.slow``
        warns of slow requests, with where the time went. Default: never.
    :param exempt: Which requests are not logged, such as probes: a function of ``environ``, or a
        table of ``addresses``, ``paths``, ``methods`` and a ``rule``, one of which must match.
    :param redact: Names of header fields, query parameters and claims whose values are masked, in
        addition to those of credentials, such as ``Authorization`` and ``access_token``.
    :param file: A file to write to instead of a stream. All workers may write to one file, and each
        notices when another program has rotated it.
    :param max_size: The size at which *file* is rotated, in bytes. Default: no limit.
    :param rotate_every: The interval after which *file* is rotated, in seconds, counted from
        midnight in UTC; ``86400`` rotates it each day. Default: never.
    :param backups: The number of rotated files that are kept: ``access.log.1`` is the newest.
    :param syslog: A syslog server to write to (RFC 5424): ``"unix:/dev/log"``,
        ``"udp://HOST:514"`` or ``"tcp://HOST:601"``.
    :param facility: The facility of messages to *syslog*.
    :param journal: Write to the journal of systemd, with fields to search by.
    :param handler: A handler of Python's ``logging`` to write to.
    :param now: Returns the Unix time in seconds.
    :param clock: Returns a monotonic time in seconds, for durations.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        stream: TextIO | None = None,
        format: LogFormat = "auto",
        queue_size: Count = 10_000,
        fields: Sequence[str] = (),
        sample: Fraction = 1.0,
        slow: Seconds | None = None,
        exempt: Exempt | Mapping[str, Any] | None = None,
        redact: Sequence[str] = (),
        file: str | None = None,
        max_size: Bytes | None = None,
        rotate_every: Seconds | None = None,
        backups: Annotated[int, Range(0, 1000)] = 7,
        syslog: str | None = None,
        facility: Annotated[str, OneOf(tuple(FACILITIES))] = "local0",
        journal: bool = False,
        handler: logging.Handler | None = None,
        now: Callable[[], float] = wall,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if format not in _FORMATS:
            raise ValueError(f"format is one of {', '.join(_FORMATS)}, not {format!r}")
        if queue_size < 1:
            raise ValueError(f"queue_size is 1 or more records, got {queue_size}")
        if not 0 <= sample <= 1:
            raise ValueError(f"sample is a share from 0 to 1, got {sample}")
        for name, value in (("slow", slow), ("max_size", max_size), ("rotate_every", rotate_every)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is a number above 0, got {value}")
        if not 0 <= backups <= 1000:
            raise ValueError(f"backups is 0 to 1000 files, got {backups}")
        if facility not in FACILITIES:
            raise ValueError(f"facility is one of {', '.join(FACILITIES)}, not {facility!r}")
        if fields and format == "combined":
            raise ValueError('fields: the format "combined" has fixed fields; use "logfmt"')
        outputs = {"stream": stream, "file": file, "syslog": syslog, "handler": handler}
        given = [name for name, each in outputs.items() if each is not None]
        given += ["journal"] if journal else []
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} are mutually exclusive; give one of them")
        if file is None and (max_size is not None or rotate_every is not None):
            name = "max_size" if max_size is not None else "rotate_every"
            raise ValueError(f"{name}: requires file, as nothing else is rotated")
        self.app = app
        self._now = now
        self._clock = clock
        self._exempt = exempt_of(exempt)
        self._sample = sample
        self._slow_after = slow
        self._slow = EventLog(self._write_slow, self._write_slow_end)
        lines, self._reads_head, self._detailed = _format(format, fields, redact)
        if syslog is not None:
            lines = _wrapped(SyslogLines, lines, facility)
        elif journal:
            lines = _wrapped(JournalLines, lines)
        output: Callable[[], LogOutput] | None = None
        if file is not None:
            output = partial(
                RotatingFile,
                file,
                max_size=max_size,
                every=rotate_every,
                backups=backups,
                now=now,
            )
        elif syslog is not None:
            SyslogOutput(syslog)  # raises ValueError
            output = partial(SyslogOutput, syslog)
        elif journal:
            output = JournalOutput
        elif handler is not None:
            output = partial(HandlerOutput, handler)
        self._sink = Sink(stream, lines, queue_size=queue_size, now=now, output=output)
        self._put = self._sink.put
        self._plain = sample >= 1 and slow is None and not self._detailed

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
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
        head: list[tuple[str, str]] | None = None
        if self._reads_head:
            head = []
            start_response = _noting(head, start_response)

        def done(response: Observed) -> None:
            get = environ.get
            # fmt: off
            (request_id, method, raw, uri, route, service, instance, reason, tunnelled, shaped,
             rule, trace) = map(get, _KEYS)
            # fmt: on
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
                rule,
                None if trace is None else trace.trace_id,
                None if trace is None else trace.span_id,
                environ,
                head,
            )
            record = _record(Record, values)  # half the price of Record(...)
            if self._plain or self._keeps(record):
                self._put(record)

        return observe(app, environ, start_response, done)

    def _keeps(self, record: Record) -> bool:
        """Return whether *record* is written; warn if it is that of a slow request."""
        limit = self._slow_after
        if limit is not None and record.duration > limit and not is_tunnel(record):
            self._slow.add(record.route, slow_fields(record))
            return True
        return self._sample >= 1 or is_kept(record, self._sample, random.random())

    def _write_slow(self, fields: dict[str, object], held: int) -> None:
        more = f"; {held} more of this route were slow since the last such line" if held else ""
        text = slow_text(fields, self._slow_after or 0.0)
        known = {**fields, "held_back": held} if held else fields
        _slow_log.warning("Slow request: %s%s", text, more, extra={"wsgigate": known})

    def _write_slow_end(self, fields: dict[str, object], total: int, lasted: float) -> None:
        _slow_log.warning(
            "No slow request for a minute of the route %s: %d were in %.0f s",
            fields["route"] or "-",
            total,
            lasted,
            extra={"wsgigate": {**fields, "event": "slow.over", "count": total}},
        )

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


def _noting(head: list[tuple[str, str]], start_response: StartResponse) -> StartResponse:
    def start(
        status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        head[:] = headers
        if exc_info:
            return start_response(status, headers, exc_info)
        return start_response(status, headers)

    return start


# The formats: each returns the formatter for a stream, or for another output without one.

MakeLines = Callable[[TextIO | None], LineFormat]


def _format(
    format: str, fields: Sequence[str], redact: Sequence[str]
) -> tuple[MakeLines, bool, bool]:
    """Return the formatter, whether it reads the response's head, and whether the environ."""
    if format == "combined":
        return (lambda stream: CombinedLines(redact)), False, True
    if not fields and format in ("auto", "json", "text"):
        return {"auto": _auto, "json": _json, "text": _text}[format], False, False
    names = fields or DEFAULTS[format]
    preset = format if format in ("otel", "ecs") else ""
    selection = Selection(names, preset=preset, redact=redact)

    def selected(stream: TextIO | None) -> LineFormat:
        if format == "logfmt":
            return LogfmtLines(selection)
        if format == "text" or (format == "auto" and stream is not None and stream.isatty()):
            encoding, colour = _terminal(stream)
            return SelectedText(selection, encoding, colour=colour)
        return SelectedJson(selection, nulls=not preset)

    return selected, selection.reads_response, True


def _wrapped(wrap: Callable[..., LineFormat], lines: MakeLines, *more: str) -> MakeLines:
    """Return a formatter whose lines *wrap* puts into messages."""
    return lambda stream: wrap(lines(stream), *more)


def _json(stream: TextIO | None) -> LineFormat:
    return JsonLines()


def _text(stream: TextIO | None) -> LineFormat:
    encoding, colour = _terminal(stream)
    return TextLines(encoding, colour=colour)


def _auto(stream: TextIO | None) -> LineFormat:
    return _text(stream) if stream is not None and stream.isatty() else _json(stream)


def _terminal(stream: TextIO | None) -> tuple[str, bool]:
    """Return the encoding of a stream, and whether it is a terminal that wants colours."""
    if stream is None:
        return "utf-8", False
    colour = stream.isatty() and not os.environ.get("NO_COLOR")
    return getattr(stream, "encoding", None) or "utf-8", colour
