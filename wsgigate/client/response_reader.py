"""A strict, sans-I/O parser of one HTTP/1 response.

Theory of operation. A :class:`ResponseReader` takes the bytes of a connection: ``feed_head`` until
the final response head is complete, then ``feed_body``; ``feed_end`` handles the end of the
connection. It finds the end of each head itself and passes single heads to ``httptools``
(llhttp) for validation. llhttp rejects both framings at once; duplicate, signed, listed and
overflowing lengths; odd chunk sizes; bare CR and LF; folded fields; NUL; names with spaces. This
module adds what a parser of single messages cannot know or does not check: versions, statuses,
codings, early ends, surplus bytes, the request method, and which message is the final response.

Most heads are a usual one: valid fields, one ``Content-Length``, a persistent connection. These are
read in one pass, without llhttp (``_read_usual``), which leaves every other head to the full path.
It must never decide differently: a test compares the two on mutated heads.

Rules that must hold:

- Where this parser and the instance disagree about the end of a response, the next user receives
  bytes of this response (response smuggling). So every ambiguity is an error, or at least ends the
  connection after this response: ``keep`` is false.
- The framing is decided once, in ``_read_usual`` or in ``_read_head``: there first the cases
  without a body (101, ``HEAD``, 1xx, 204, 304), then ``Transfer-Encoding``, then
  ``Content-Length``, else the end of the connection (RFC 9112, 6.3). The chunk parser starts from a
  fixed head, not from the received one: llhttp reads "chunked" followed by a blank as another
  coding, and the body as one without an end.
- Body data that precedes an error is returned first; the next call raises the error.
- Everything an instance controls is bounded: head size, number of fields, interim responses, chunk
  extensions and trailers, and the size of what the caches remember.
"""

from __future__ import annotations

import re
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import requests
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

__all__ = [
    "BLOCK",
    "MOST_FIELDS",
    "MOST_HEAD_BYTES",
    "BrokenResponse",
    "CutResponse",
    "NotConnected",
    "PoolFull",
    "ResponseReader",
    "SlowResponse",
    "TlsFailed",
]


# Errors between the gateway and an instance, as subclasses of the exceptions of ``requests``.


class NotConnected(requests.ConnectionError):
    """Connecting failed, so nothing of the request was sent."""


class TlsFailed(NotConnected, requests.exceptions.SSLError):
    """The TLS handshake failed, so nothing of the request was sent."""


class PoolFull(requests.ConnectionError):
    """All connections to the instance are in use, and none became free in time."""


class SlowResponse(requests.ReadTimeout):
    """The body arrives below the minimum rate."""


class BrokenResponse(requests.ConnectionError):
    """The instance sent an invalid or incomplete response."""


class CutResponse(BrokenResponse):
    """The instance closed the connection in the middle of a response body."""


BLOCK = 65536
"""Maximum bytes per read or write."""

MOST_HEAD_BYTES = 65536

MOST_FIELDS = 100

MOST_INTERIM = 10

_LONGEST_LEARNT = 4096
"""Longest head, in characters, whose field names are cached; bounds the memory of the cache."""

_LONGEST_STATUS = 128
"""Longest status line, in bytes, that is cached."""

MOST_CHUNK_OVERHEAD = 65536
"""Maximum bytes of chunk extensions or trailers in a row without body data between them."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([^\r\n]*))?\r\n")

_START = b"HTTP/1."

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_FIELD = re.compile(r"([^:\r\n]++):[ \t]*+([^\r\n]*+)\r\n")

_PLAIN_FIELD = re.compile(
    r"(?<=\n)([!#$%&'*+.^_`|~0-9A-Za-z-]++):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)(?<![ \t])\r\n"
)
"""A whole line with a valid name, and a value without control characters and blanks at its end."""

_MOST_DIGITS = 15

_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

_NO_CALLBACKS = object()
"""The protocol object of a parser that only validates a head."""

_name_of = itemgetter(0)


class ResponseReader:
    """Parses the response to one request: interim responses, the final head, the body.

    :param method: The request's method; the response to ``HEAD`` has no body.
    :param upgrade: Whether the request asked for another protocol, so that a 101 is final.
    :ivar begun: Whether any byte of a response was received.
    :ivar fields: Names and values in order, duplicates kept.
    :ivar names: The names alone, of a usual head.
    :ivar length: Its ``Content-Length``; ``None`` for a head that is not a usual one.
    :ivar complete: Whether the whole response was received.
    :ivar keep: Whether the connection can serve another request after this response.
    :ivar body: The part of the body that arrived with the head.
    :ivar error: The error in the body after the data returned so far.
    """

    # Class attributes are the defaults that most responses never change: they make a reader cheap.
    begun = False
    body = b""
    complete = False
    error: BrokenResponse | None = None
    keep = True
    length: int | None = None
    names: tuple[str, ...] = ()
    reason = ""
    status = 0
    version = 0
    fields: list[tuple[str, str]]
    _chunked = False
    _decoded: list[bytes]
    _held = bytearray()  # shared by all readers: replaced, never mutated
    _interim = 0
    _left: int | None = None
    _overhead = 0
    _parser: Any = None
    _tail = b""

    def __init__(self, method: str, upgrade: bool = False) -> None:
        self._bodiless = method == "HEAD"
        self._upgrade = upgrade

    def feed_head(self, data: bytes) -> bool:
        """Parse received bytes; return whether the final response head is complete.

        :raises BrokenResponse: The head is invalid.
        """
        if data:
            self.begun = True
        if self._held:
            whole = self._with_held(data)
            if whole is None:
                return False
            data = whole
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end == 3:
                _check_unfinished(b"", data)
                self._held = bytearray(data)
                return False
            if end > MOST_HEAD_BYTES:
                raise BrokenResponse("the response head is too long")
            if self._read_usual(data, end):
                return True
            self._read_head(data[:end])
            data = data[end:]
            if self.status >= 200 or (self.status == 101 and self._upgrade):
                self.body = self.feed_body(data)
                return True
            self._interim += 1
            if self.status == 101 or self._interim > MOST_INTERIM:
                raise BrokenResponse(f"unexpected interim response {self.status}")
            if not data:
                return False

    def _with_held(self, data: bytes) -> bytes | None:
        """Return all received bytes of the head, or ``None`` while the head is incomplete.

        Only new bytes are searched: a head that arrives byte by byte takes linear time.
        """
        held = self._held
        if b"\r\n\r\n" not in held[-3:] + data:
            _check_unfinished(held, data)
            held += data
            return None
        self._held = bytearray()
        return bytes(held) + data

    def feed_body(self, data: bytes) -> bytes:
        """Return the body bytes in *data*; sets ``complete`` at the end of the body.

        :raises BrokenResponse: The framing is invalid.
        """
        left = self._left
        if left is not None:
            size = len(data)
            if size < left:
                self._left = left - size
                return data
            self.complete = True
            self._left = 0
            if size == left:
                return data
            self.keep = False  # bytes after the response belong to no request
            return data[:left]
        return self._feed_chunks(data) if self._chunked else data

    def feed_end(self) -> None:
        """Handle the end of the connection.

        :raises BrokenResponse: The response is incomplete by its own framing.
        """
        self.keep = False
        if self.status < 200:
            raise BrokenResponse("the response head was cut short")
        if self.error is not None:
            raise self.error
        if self._chunked or self._left:
            raise CutResponse("the response was cut short")
        self.complete = True

    def _read_usual(self, data: bytes, end: int) -> bool:
        """Read a response with a usual head, which ends at *end*; return whether it is one.

        :raises BrokenResponse: The status line is malformed.
        """
        start = data.find(b"\n", 0, _LONGEST_STATUS)
        if start < 0 or end > _LONGEST_LEARNT or self._bodiless or self._upgrade:
            return False
        status, version, reason = _read_status(data[: start + 1])
        if version != 11 or status < 200 or status in (204, 304):
            return False
        text = data[start:end].decode("latin-1")
        fields = _PLAIN_FIELD.findall(text)
        if len(fields) != text.count("\n") - 2 or len(fields) > MOST_FIELDS:
            return False  # a line is no such field
        names = tuple(map(_name_of, fields))
        lengths, codings, connections = _framing(names)
        if len(lengths) != 1 or codings:
            return False
        for at in connections:
            if fields[at][1] != "keep-alive":
                return False
        digits = fields[lengths[0]][1]
        if not (digits.isascii() and digits.isdigit()) or len(digits) > _MOST_DIGITS:
            return False
        self.fields, self.status, self.version, self.reason = fields, status, version, reason
        self.keep = True  # an interim response may have said otherwise
        self.names = names
        self.length = left = int(digits)
        body = data[end:]
        if len(body) < left:
            self._left = left - len(body)
        else:
            self._left = 0
            self.complete = True
            if len(body) > left:
                self.keep = False  # bytes after the response belong to no request
                body = body[:left]
        self.body = body
        return True

    def _read_head(self, head: bytes) -> None:
        end = head.find(b"\n") + 1
        line = head[:end]  # checked here: llhttp skips empty lines before a message
        learn_line = _read_status if end <= _LONGEST_STATUS else _read_status.__wrapped__
        status, version, reason = learn_line(line)
        try:
            HttpResponseParser(_NO_CALLBACKS).feed_data(head)
        except HttpParserUpgrade:
            pass
        except HttpParserError as error:
            raise BrokenResponse(f"malformed response head: {error}") from None
        # llhttp has validated the syntax; this checks that no line was skipped.
        text = head[end:].decode("latin-1")
        fields = _FIELD.findall(text)
        if len(fields) != text.count("\n") - 1:
            raise BrokenResponse("malformed response head")
        if len(fields) > MOST_FIELDS:
            raise BrokenResponse("the response has too many fields")
        if " \r" in text or "\t\r" in text:
            fields = [(name, value.rstrip(" \t")) for name, value in fields]
        self.fields = fields
        self.status = status
        self.version = version
        self.keep = version == 11
        self.reason = reason
        learn = _framing if len(text) <= _LONGEST_LEARNT else _framing.__wrapped__
        lengths, codings, connections = learn(tuple(map(_name_of, fields)))
        for at in connections:
            if "close" in fields[at][1].lower():
                self.keep = False
        if codings:
            self._check_codings([fields[at][1].lower() for at in codings])
        if status == 101:
            self.keep = False  # another protocol follows
            self._left = None
        elif self._bodiless or status < 200 or status in (204, 304):
            self._left = 0
            if status == 204 and (codings or (lengths and int(fields[lengths[0]][1]))):
                self.keep = False
        elif codings:
            self._left = None
            self._chunked = True
            self._parser = HttpResponseParser(_ChunkCallbacks(self))
            # A fixed head, not the received one: llhttp reads "chunked" followed by a blank as
            # another coding, and the chunks as a body without an end.
            self._parser.feed_data(_CHUNKED)
        elif lengths:
            self._left = int(fields[lengths[0]][1])
        else:
            self._left = None
            self.keep = False  # the end of the connection ends the body

    def _check_codings(self, codings: list[str]) -> None:
        if codings != ["chunked"] or self.version != 11:
            raise BrokenResponse(f"unsupported Transfer-Encoding {', '.join(codings)!r}")

    def _feed_chunks(self, data: bytes) -> bytes:
        if self.error is not None:
            raise self.error
        if not data:
            return data
        decoded: list[bytes] = []
        self._decoded = decoded
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            if not self.complete:  # the data before the error is passed on first
                self.error = BrokenResponse(f"malformed chunk: {error}")
        self._tail = tail = (self._tail + data[-5:])[-5:]
        if self.complete:
            self._parser = None
            if tail[1:] != b"\r\n\r\n" or tail[:1] == b"\n":
                self.keep = False  # bytes follow the empty line that ends the trailers
        elif decoded:
            self._overhead = 0
        else:
            self._overhead += len(data)
            if self._overhead > MOST_CHUNK_OVERHEAD:
                self.error = BrokenResponse(
                    f"more than {MOST_CHUNK_OVERHEAD} bytes of chunk extensions or trailers"
                )
        if self.error is not None and not decoded:
            raise self.error
        return decoded[0] if len(decoded) == 1 else b"".join(decoded)


class _ChunkCallbacks:
    """Receives the callbacks of the chunk parser; ignores data after the end of the body."""

    __slots__ = ("_reader",)

    def __init__(self, reader: ResponseReader) -> None:
        self._reader = reader

    def on_message_begin(self) -> None:
        if self._reader.complete:
            self._reader.keep = False  # a second response, without a request

    def on_body(self, data: bytes) -> None:
        if not self._reader.complete:
            self._reader._decoded.append(data)

    def on_message_complete(self) -> None:
        self._reader.complete = True


@lru_cache(maxsize=256)
def _read_status(line: bytes) -> tuple[int, int, str]:
    """Return status, version (10 or 11) and reason phrase of a status line with its line end.

    Cached, because there are few of them.

    :raises BrokenResponse: The line is malformed.
    """
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise BrokenResponse("malformed status line")
    reason = match[3] or b""
    return (
        int(match[2]),
        11 if match[1] == b"1" else 10,
        "" if _CONTROL.search(reason) else reason.decode("latin-1"),
    )


class _Framing(NamedTuple):
    """The positions of the framing fields in a head."""

    lengths: tuple[int, ...]
    codings: tuple[int, ...]
    connections: tuple[int, ...]


@lru_cache(maxsize=1024)
def _framing(names: tuple[str, ...]) -> _Framing:
    """Return the framing of a head with these *names*.

    Cached, because an instance sends the same names again and again.
    """
    lower = [name.lower() for name in names]

    def places(wanted: str) -> tuple[int, ...]:
        return tuple(at for at, name in enumerate(lower) if name == wanted)

    return _Framing(places("content-length"), places("transfer-encoding"), places("connection"))


def _check_unfinished(held: bytes | bytearray, data: bytes) -> None:
    """Reject bytes that cannot become a valid head, without waiting for its end.

    :param held: Bytes checked before.
    :param data: New bytes.
    """
    length = len(held) + len(data)
    if length > MOST_HEAD_BYTES:
        raise BrokenResponse("the response head is too long")
    if len(held) < 7 and (held[:7] + data[:7])[:7] != _START[:length]:
        raise BrokenResponse("the response is not HTTP/1")
    if data.count(b"\n") != (held[-1:] + data).count(b"\r\n"):
        raise BrokenResponse("malformed response head: a line feed without a carriage return")
