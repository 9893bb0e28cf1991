"""The access log: one line per response, as JSON or text, written by a background thread."""

from __future__ import annotations

import io
import os
import re
import select
import stat
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, NamedTuple, Protocol, TextIO
from urllib.parse import quote

from wsgigate.runtime import fork

__all__ = [
    "LONGEST",
    "SHORTEST",
    "BoundedLines",
    "JsonLines",
    "LineFormat",
    "LogOutput",
    "Record",
    "Sink",
    "TextLines",
    "TimeText",
    "cut",
    "json_text",
    "path_of",
    "status_of",
    "words",
]


LONGEST = 4096
"""Maximum bytes of a line: POSIX writes up to ``PIPE_BUF`` (4096 on Linux) to a pipe atomically."""

SHORTEST = 24
"""Characters of a value in a line that would be too long otherwise."""

_LIMITS = (512, 128, SHORTEST)  # characters of a value; the first that makes the line short enough

_COLOURS = {"2": "32", "3": "36", "4": "33", "5": "31"}  # colour of each status class, ECMA-48 SGR

_SPECIAL = re.compile(r'[ "\\]')

_SAFE = "/:@!$&'()*+,;=~"  # allowed in a path besides letters and digits, RFC 3986 section 3.3


class Record(NamedTuple):
    """The record of one response.

    ``target`` is the request target as received, if the server provides it; else the path is built
    from the decoded ``path``. ``status`` is a status line, or empty; ``duration`` is in seconds.
    ``environ`` and ``head``, the fields of the response, are for formats with further fields.
    """

    time: float
    request_id: str | None
    client: str
    method: str
    target: str | None
    path: str
    status: str
    bytes: int
    duration: float
    route: str | None
    service: str | None
    instance: str | None
    subject: str | None
    reason: str | None
    error: str | None
    aborted: bool
    shaped: str | None = None
    rule: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    environ: Mapping[str, Any] | None = None
    head: Sequence[tuple[str, str]] | None = None


class LineFormat(Protocol):
    """Turns records into lines."""

    def line(self, record: Record) -> bytes:
        """Return the line of *record* with its line end, at most :data:`LONGEST` bytes."""

    def dropped(self, now: float, count: int) -> bytes:
        """Return the line that reports *count* lost records."""


class TimeText:
    """Formats times; the text of a second is cached."""

    def __init__(self) -> None:
        self._last = (-1, "")  # a second and its text in one tuple, as threads share it

    def __call__(self, now: float) -> str:
        second, rest = divmod(int(now * 1000), 1000)
        known, text = self._last
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._last = (second, text)
        return f"{text}.{rest:03d}Z"


class BoundedLines:
    """Lines whose values are cut as little as necessary."""

    def line(self, record: Record) -> bytes:
        for limit in _LIMITS:
            line = self._line(record, limit)
            if len(line) <= LONGEST:
                break
        return line

    def _line(self, r: Record, limit: int) -> bytes:
        """Return the line of a record with its values cut to *limit* characters."""
        raise NotImplementedError


class JsonLines(BoundedLines):
    """One JSON object per line, in ASCII."""

    def __init__(self) -> None:
        self._time = TimeText()

    def _line(self, r: Record, limit: int) -> bytes:
        line = (
            f'{{"time":"{self._time(r.time)}","request_id":{json_text(r.request_id, limit)},'
            f'"client":{_known(r.client, limit)},'
            f'"method":{_METHODS.get(r.method) or json_text(r.method, limit)},'
            f'"path":{json_text(path_of(r), limit)},'
            f'"status":{status_of(r.status) or "null"},"bytes":{r.bytes},'
            f'"duration_ms":{r.duration * 1000:.3f},"route":{_known(r.route, limit)},'
            f'"service":{_known(r.service, limit)},"instance":{_known(r.instance, limit)},'
            f'"subject":{json_text(r.subject, limit)}'
        )
        if r.shaped is not None:
            line += f',"shaped":{json_text(r.shaped, limit)}'
        if r.rule is not None:
            line += f',"rule":{json_text(r.rule, limit)}'
        if r.reason is not None:
            line += f',"reason":{json_text(r.reason, limit)}'
        if r.error is not None:
            line += f',"error":{json_text(r.error, limit)}'
        if r.trace_id is not None:
            line += f',"trace_id":{json_text(r.trace_id, limit)}'
            line += f',"span_id":{json_text(r.span_id, limit)}'
        if r.aborted:
            line += ',"aborted":true'
        # DEL is the only control character that JSON does not require to be escaped.
        return (line + "}\n").replace("\x7f", "\\u007f").encode("ascii")

    def dropped(self, now: float, count: int) -> bytes:
        time = self._time(now)
        return f'{{"time":"{time}","event":"log records dropped","count":{count}}}\n'.encode()


class TextLines(BoundedLines):
    """One line of text in columns; values that are not set are left out.

    Characters that do not print, spaces, quotes and backslashes in a value are escaped, so that no
    value can end the line, control the terminal or be mistaken for another. Only a reason, which
    consists of words, keeps its spaces, in quotes.

    :param encoding: Encoding of the stream.
    :param colour: Whether the status is coloured by its class.
    """

    def __init__(self, encoding: str = "utf-8", *, colour: bool = False) -> None:
        self._time = TimeText()
        self._encoding = encoding
        self._colour = colour

    def _line(self, r: Record, limit: int) -> bytes:
        def text(value: object) -> str:
            return _escaped(cut(value, limit))

        status = status_of(r.status) or "---"
        colour = _COLOURS.get(status[0]) if self._colour else None
        if colour:
            status = f"\x1b[{colour}m{status}\x1b[0m"
        line = (
            f"{self._time(r.time)} {status} {r.duration * 1000:9.1f}ms {r.bytes:>9}B"
            f" {text(r.client):<15} {text(r.method):<7} {text(path_of(r))}"
        )
        for name, value in (
            ("route", r.route),
            ("service", r.service),
            ("instance", r.instance),
            ("subject", r.subject),
            ("request_id", r.request_id),
            ("trace_id", r.trace_id),
            ("error", r.error),
        ):
            if value is not None:
                line += f" {name}={text(value)}"
        if r.shaped is not None:
            line += f" shaped={words(cut(r.shaped, limit))}"
        if r.rule is not None:
            line += f" rule={words(cut(r.rule, limit))}"
        if r.reason is not None:
            line += f" reason={words(cut(r.reason, limit))}"
        return (line + (" aborted\n" if r.aborted else "\n")).encode(
            self._encoding, "backslashreplace"
        )

    def dropped(self, now: float, count: int) -> bytes:
        return f"{self._time(now)} --- log records dropped: {count}\n".encode(self._encoding)


def cut(value: object, limit: int) -> str:
    """Return *value* as text of at most *limit* characters."""
    text = value if type(value) is str else str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def json_text(value: object, limit: int) -> str:
    """Return *value* as a JSON text in ASCII, cut to *limit* characters; ``null`` for ``None``."""
    if value is None:
        return "null"
    return _quoted(value if type(value) is str and len(value) <= limit else cut(value, limit))


_METHODS = {
    method: f'"{method}"' for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}

_known = lru_cache(maxsize=4096)(json_text)
"""The same with a cache, for values that recur."""


@lru_cache(maxsize=256)
def status_of(line: str) -> str:
    """Return the code of a status line; empty without one."""
    code = line[:3]
    return code if len(code) == 3 and code.isascii() and code.isdigit() and code >= "100" else ""


def path_of(record: Record) -> str:
    """Return the path of the request, without query and fragment, which may contain tokens."""
    target = record.target
    if target and target[0] == "/" and "?" not in target and "#" not in target:
        return target
    if not target:
        return quote(record.path, safe=_SAFE, encoding="latin-1", errors="replace")
    path = target.partition("?")[0].partition("#")[0]
    if path.startswith("/"):
        return path
    _, separator, rest = path.partition("://")
    if not separator:
        return path  # "*" of OPTIONS, or a target that no server should accept
    return "/" + rest.partition("/")[2]  # without the authority, which may contain a password


def _escaped(value: str) -> str:
    if value.isprintable() and not _SPECIAL.search(value):
        return value
    return "".join(map(_escape, value))


def words(value: str) -> str:
    """Return *value* in quotes: its spaces stay, other special characters are escaped."""
    return f'"{" ".join(map(_escaped, value.split(" ")))}"'


def _escape(character: str) -> str:
    if character.isprintable() and character not in ' "\\':
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# The background thread that writes the lines, so that a slow reader of them slows no request.

AT_EXIT = 2.0
"""Maximum seconds for which the end of the process waits for unwritten lines."""

LINGER = 0.1
"""Seconds from the first line to its writing: one wake-up for all lines that come in between.

At each wake-up the thread competes with requests for the GIL, which costs them more than all the
rest of the log.
"""

_ROUND = 1000  # lines taken at a time

_BLOCK = 65536  # bytes written at a time to anything but a pipe


class LogOutput(Protocol):
    """Where lines go, besides a stream; used by one thread, which opens and closes it."""

    most: int
    """Bytes written at a time."""

    def write(self, lines: Sequence[bytes]) -> int:
        """Write *lines*; return how many of them were lost.

        :raises OSError: They all were.
        """

    def close(self) -> None:
        """Close what was opened. The next line opens it again."""


class Sink:
    """A bounded queue of lines, and the thread that writes them to a stream.

    A record becomes a line at once, in the calling thread: concurrent threads slow each other down,
    so the writing thread does nothing else. It starts with the first record of a process, and again
    in a forked child; lines that the parent has not written yet are left to the parent. A record
    that finds the queue full, or that the stream does not accept, is dropped and counted; the count
    is written as soon as writing works again.

    :param stream: The stream; ``None`` for the current ``sys.stdout``: test runners and
        ``redirect_stdout`` replace it, and close the replacement later.
    :param lines: Returns the formatter of lines for a stream; ``None`` for another output.
    :param queue_size: Maximum number of queued records.
    :param now: Returns the Unix time in seconds.
    :param output: Returns the output to use instead of a stream, unopened.
    """

    def __init__(
        self,
        stream: TextIO | None,
        lines: Callable[[TextIO | None], LineFormat],
        *,
        queue_size: int,
        now: Callable[[], float],
        output: Callable[[], LogOutput] | None = None,
    ) -> None:
        self._stream = stream
        self._output = output
        self._lines = lines
        self._queue_size = queue_size
        self._now = now
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Forget the writer: its thread and its lines belong to the parent process."""
        self._writer: _Writer | None = None
        self._starting = threading.Lock()

    @property
    def dropped(self) -> int:
        """Number of records that this process has lost."""
        writer = self._writer
        return writer.dropped if writer is not None else 0

    def put(self, record: Record) -> None:
        """Queue *record* without waiting."""
        writer = self._writer or self._start()
        if len(writer.queue) < self._queue_size:
            writer.put(record)
        else:
            writer.lose(1)

    def flush(self, timeout: float = AT_EXIT) -> bool:
        """Wait until all queued lines are written or lost; return whether that was in time."""
        writer = self._writer
        return writer is None or writer.flush(timeout)

    def close(self, timeout: float = AT_EXIT) -> bool:
        """Flush and stop the thread; the next record starts another. The stream stays open."""
        writer, self._writer = self._writer, None
        return writer is None or writer.stop(timeout)

    def _start(self) -> _Writer:
        with self._starting:
            if self._writer is not None:
                return self._writer
            output = None if self._output is None else self._output()
            many = self._queue_size // 2
            writer = _Writer(self._stream, self._lines, self._now, many, output)
            try:
                writer.start()
            except RuntimeError:  # no more threads, or the interpreter is shutting down
                return writer
            weakref.finalize(self, writer.add, None).atexit = False
            self._writer = writer
            return writer


class _Writer:
    """The thread of one process. It has no reference to its Sink, which may be collected."""

    def __init__(
        self,
        stream: TextIO | None,
        lines: Callable[[TextIO | None], LineFormat],
        now: Callable[[], float],
        many: int,
        output: LogOutput | None,
    ) -> None:
        self.queue: deque[bytes | threading.Event | None] = deque()
        self.dropped = 0
        self.thread = threading.Thread(target=self._run, name="wsgigate-log", daemon=True)
        self._stream = stream
        self._follows = stream is None and output is None
        self._streams = output is None
        self._make_lines = lines
        self._now = now
        self._many = many
        self._lock = threading.Lock()
        self._idle = False
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._reported = 0
        self._output: LogOutput | None = output
        self._lines: LineFormat | None = None

    def start(self) -> None:
        """Start the thread.

        :raises RuntimeError: No thread can be started.
        """
        self.thread.start()
        self._unregister = fork.at_exit(partial(self.flush, AT_EXIT))

    def put(self, record: Record) -> None:
        try:
            lines = self._lines
            if lines is None or (self._follows and sys.stdout is not self._stream):
                lines = self._opened()
            line = lines.line(record)
        except Exception:  # no stream, or a malformed value: the log must not fail a request
            self.lose(1)
            return
        queue = self.queue
        queue.append(line)
        if self._idle:
            self._wake.set()
        if len(queue) > self._many and not self._hurry.is_set():
            self._hurry.set()

    def add(self, item: threading.Event | None) -> None:
        """Queue an event, set when all lines before it are written, or ``None``: the end."""
        self.queue.append(item)
        self._hurry.set()
        self._wake.set()

    def lose(self, count: int) -> None:
        with self._lock:
            self.dropped += count
        if self._idle:
            self._wake.set()

    def flush(self, timeout: float) -> bool:
        if not self.thread.is_alive():
            return not self.queue
        written = threading.Event()
        self.add(written)
        return written.wait(timeout)

    def stop(self, timeout: float) -> bool:
        self.add(None)
        self.thread.join(timeout)
        return not self.thread.is_alive()

    def _run(self) -> None:
        queue = self.queue
        going_on = True
        while going_on:
            self._idle = True
            if not queue:  # checked after the flag: a thread that adds from here on sees the flag
                self._wake.wait()
            self._idle = False
            self._wake.clear()
            if len(queue) < _ROUND:
                self._hurry.wait(LINGER)
            self._hurry.clear()
            items = [queue.popleft() for _ in range(min(len(queue), _ROUND))]
            going_on = None not in items
            self._write(items)
        if self._output is not None:
            self._output.close()
        self._unregister()

    def _write(self, items: list[bytes | threading.Event | None]) -> None:
        batch: list[bytes] = []
        size = 0
        most = self._output.most if self._output is not None else LONGEST
        for item in items:
            if isinstance(item, bytes):
                if size + len(item) > most:
                    self._out(batch)
                    batch, size = [], 0
                batch.append(item)
                size += len(item)
            elif item is not None:
                self._out(batch)
                batch, size = [], 0
                item.set()
        self._out(batch)

    def _out(self, batch: list[bytes]) -> None:
        """Write the lines of *batch* at once, after the number of lines lost before."""
        try:
            lost = self.dropped - self._reported
            if not batch and not lost:
                return
            lines = self._opened()
            if self._output is None:
                self._output = _Output(self._current())
            if lost and not self._output.write([lines.dropped(self._now(), lost)]):
                self._reported += lost
            if batch:
                unwritten = self._output.write(batch)
                if unwritten:
                    self.lose(unwritten)
        except Exception:  # a full disk, a closed pipe or stream
            self.lose(len(batch))

    def _opened(self) -> LineFormat:
        with self._lock:
            if self._follows and sys.stdout is not self._stream:
                self._stream, self._lines, self._output = sys.stdout, None, None
            if self._lines is None:
                self._lines = self._make_lines(self._current() if self._streams else None)
            return self._lines

    def _current(self) -> TextIO:
        if self._stream is None:
            raise ValueError("there is no sys.stdout")
        return self._stream


class _Output:
    """Writes bytes to a text stream, unbuffered if possible, so that each line stays whole."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        # Not its file descriptor: the number of a closed file may be a client's connection by now.
        self._raw: io.RawIOBase | None = raw if isinstance(raw, io.RawIOBase) else None
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._torn = False
        self.most = LONGEST  # a longer write to a pipe may mix with those of other workers
        if self._raw is not None:
            stream.flush()
            try:
                mode = os.fstat(self._raw.fileno()).st_mode
            except OSError:  # not a file
                mode = 0
            if stat.S_ISREG(mode) or stat.S_ISCHR(mode):
                self.most = _BLOCK

    def close(self) -> None:
        """Leave the stream open: it belongs to the application."""

    def write(self, lines: Sequence[bytes]) -> int:
        """Write *lines*; return 0, as none is lost without an exception."""
        data = b"".join(lines)
        if self._raw is None:
            self._stream.write(data.decode(self._encoding))
            self._stream.flush()
            return 0
        if self._torn:  # a full disk has cut a line: begin a new one
            self._write_raw(self._raw, b"\n")
            self._torn = False
        self._write_raw(self._raw, data)
        return 0

    def _write_raw(self, raw: io.RawIOBase, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                written = raw.write(rest)
                if written is None:  # a non-blocking pipe
                    poll = select.poll()
                    poll.register(raw.fileno(), select.POLLOUT)
                    poll.poll(1000)
                else:
                    rest = rest[written:]
        except BaseException:
            self._torn = self._torn or 0 < len(rest) < len(data)
            raise
