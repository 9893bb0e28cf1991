"""Access records as lines: one per response, as JSON or for people."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import NamedTuple, Protocol
from urllib.parse import quote

__all__ = ["JsonLines", "Lines", "Record", "TextLines"]

LONGEST = 4096
"""No line is longer, in bytes: up to this, POSIX writes to a pipe whole (``PIPE_BUF`` on Linux)."""

_LIMITS = (512, 128, 24)  # characters of a value: the first at which the line is not too long

_COLOURS = {"2": "32", "3": "36", "4": "33", "5": "31"}  # of a status class, ECMA-48 SGR

_SPECIAL = re.compile(r'[ "\\]')

_SAFE = "/:@!$&'()*+,;=~"  # what a path may carry besides letters and digits, RFC 3986 section 3.3


class Record(NamedTuple):
    """What is told of one response.

    ``target`` is the request target as it was received, if the server tells; else the path is made
    of ``path``, which is decoded. ``status`` is a status line or empty; ``duration`` in seconds.
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


class Lines(Protocol):
    """Turns records into lines."""

    def line(self, record: Record) -> bytes:
        """Return the line of *record*, its end included, at most :data:`LONGEST` bytes."""

    def dropped(self, now: float, count: int) -> bytes:
        """Return the line that says that *count* records were lost."""


class _Clock:
    """Writes times, a second's worth of work at once."""

    def __init__(self) -> None:
        self._last = (-1, "")  # a second and its text together: threads share this

    def __call__(self, now: float) -> str:
        second, rest = divmod(int(now * 1000), 1000)
        known, text = self._last
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._last = (second, text)
        return f"{text}.{rest:03d}Z"


def _short_enough(write: Callable[[Record, int], bytes], record: Record) -> bytes:
    """Return the line that *write* makes of *record* with its values cut as little as need be."""
    for limit in _LIMITS:
        line = write(record, limit)
        if len(line) <= LONGEST:
            break
    return line


class JsonLines:
    """One JSON object per line, in ASCII."""

    def __init__(self) -> None:
        self._time = _Clock()

    def line(self, record: Record) -> bytes:
        return _short_enough(self._line, record)

    def _line(self, r: Record, limit: int) -> bytes:
        line = (
            f'{{"time":"{self._time(r.time)}","request_id":{_json(r.request_id, limit)},'
            f'"client":{_known(r.client, limit)},"method":{_method(r.method, limit)},'
            f'"path":{_json(_path(r), limit)},'
            f'"status":{_status(r.status) or "null"},"bytes":{r.bytes},'
            f'"duration_ms":{r.duration * 1000:.3f},"route":{_known(r.route, limit)},'
            f'"service":{_known(r.service, limit)},"instance":{_known(r.instance, limit)},'
            f'"subject":{_json(r.subject, limit)}'
        )
        if r.shaped is not None:
            line += f',"shaped":{_json(r.shaped, limit)}'
        if r.reason is not None:
            line += f',"reason":{_json(r.reason, limit)}'
        if r.error is not None:
            line += f',"error":{_json(r.error, limit)}'
        if r.aborted:
            line += ',"aborted":true'
        # DEL is the one control character that JSON lets stand for itself.
        return (line + "}\n").replace("\x7f", "\\u007f").encode("ascii")

    def dropped(self, now: float, count: int) -> bytes:
        time = self._time(now)
        return f'{{"time":"{time}","event":"log records dropped","count":{count}}}\n'.encode()


class TextLines:
    """One line for people, in columns; values that nobody set are left out.

    Whatever does not print, a space, a quote or a backslash in a value is written as an escape, so
    that no value can end the line, colour the terminal or pass for another value. Only a reason,
    which is made of words, has its spaces, in quotes.

    :param encoding: Of the stream that the lines are for.
    :param colour: Whether the status is coloured by its class.
    """

    def __init__(self, encoding: str = "utf-8", *, colour: bool = False) -> None:
        self._time = _Clock()
        self._encoding = encoding
        self._colour = colour

    def line(self, record: Record) -> bytes:
        return _short_enough(self._line, record)

    def _line(self, r: Record, limit: int) -> bytes:
        def text(value: object) -> str:
            return _escaped(_cut(value, limit))

        status = _status(r.status) or "---"
        colour = _COLOURS.get(status[0]) if self._colour else None
        if colour:
            status = f"\x1b[{colour}m{status}\x1b[0m"
        line = (
            f"{self._time(r.time)} {status} {r.duration * 1000:9.1f}ms {r.bytes:>9}B"
            f" {text(r.client):<15} {text(r.method):<7} {text(_path(r))}"
        )
        for name, value in (
            ("route", r.route),
            ("service", r.service),
            ("instance", r.instance),
            ("subject", r.subject),
            ("request_id", r.request_id),
            ("error", r.error),
        ):
            if value is not None:
                line += f" {name}={text(value)}"
        if r.shaped is not None:
            line += f" shaped={_words(_cut(r.shaped, limit))}"
        if r.reason is not None:
            line += f" reason={_words(_cut(r.reason, limit))}"
        return (line + (" aborted\n" if r.aborted else "\n")).encode(
            self._encoding, "backslashreplace"
        )

    def dropped(self, now: float, count: int) -> bytes:
        return f"{self._time(now)} --- log records dropped: {count}\n".encode(self._encoding)


def _cut(value: object, limit: int) -> str:
    text = value if type(value) is str else str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _json(value: object, limit: int) -> str:
    if value is None:
        return "null"
    return _quoted(value if type(value) is str and len(value) <= limit else _cut(value, limit))


_LONGEST_METHOD = 20

_known = lru_cache(maxsize=4096)(_json)
"""The same for values that come again and again."""


def _method(value: object, limit: int) -> str:
    """The same for a method, which can be as long as its client likes, and new each time."""
    return (_known if len(str(value)) <= _LONGEST_METHOD else _json)(value, limit)


@lru_cache(maxsize=256)
def _status(line: str) -> str:
    """Return the code of a status line, empty if there is none."""
    code = line[:3]
    return code if len(code) == 3 and code.isascii() and code.isdigit() and code >= "100" else ""


def _path(record: Record) -> str:
    """Return the path of the request, without its query and fragment: tokens live there."""
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
        return path  # "*" of OPTIONS, or what no server should have let through
    return "/" + rest.partition("/")[2]  # without the authority, which may hold a password


def _escaped(value: str) -> str:
    if value.isprintable() and not _SPECIAL.search(value):
        return value
    return "".join(map(_escape, value))


def _words(value: str) -> str:
    return f'"{" ".join(map(_escaped, value.split(" ")))}"'


def _escape(character: str) -> str:
    if character.isprintable() and character not in ' "\\':
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
