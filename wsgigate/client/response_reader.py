"""A response out of the bytes of a connection: strict, and without a socket.

``httptools`` (llhttp) refuses by itself both framings at once, duplicate, signed, listed and
overflowing lengths, odd chunk sizes, bare CR and LF, folded fields, NUL, names with spaces. Left to
this module is what a parser of single messages can not know or does not mind: versions, statuses,
codings, what ends early or goes on too long, to which method it answers, and which of the messages
is the final one. Heads alone are handed to it, so that where each of them ends is certain.
"""

from __future__ import annotations

import re
from functools import lru_cache
from operator import itemgetter
from typing import Any

import requests
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

__all__ = [
    "BLOCK",
    "BrokenResponse",
    "MOST_FIELDS",
    "MOST_HEAD_BYTES",
    "NotConnected",
    "PoolFull",
    "ResponseReader",
    "SlowResponse",
    "TlsFailed",
]


# What can go wrong between the gateway and an instance, as exceptions that ``requests`` knows.


class NotConnected(requests.ConnectionError):
    """No connection came about, so nothing of the request was sent."""


class TlsFailed(NotConnected, requests.exceptions.SSLError):
    """The TLS handshake failed, so nothing of the request was sent."""


class PoolFull(requests.ConnectionError):
    """The instance has as many connections as it may, and none became free in time."""


class SlowResponse(requests.ReadTimeout):
    """The body comes, but more slowly than it may."""


class BrokenResponse(requests.ConnectionError):
    """What came is not a valid response, or not all of one."""


BLOCK = 65536
"""Bytes moved at a time, each way."""

MOST_HEAD_BYTES = 65536

MOST_FIELDS = 100

MOST_INTERIM = 10

_LONGEST_LEARNT = 4096
"""Characters of a head whose names are remembered: what costs more memory is found out again."""

MOST_CHUNK_OVERHEAD = 65536
"""Bytes of chunk extensions or trailers in a row without any of the body among them."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([^\r\n]*))?\r\n")

_START = b"HTTP/1."

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_FIELD = re.compile(r"([^:\r\n]++):[ \t]*+([^\r\n]*+)\r\n")

_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

_NOBODY = object()
"""What a parser reports to that is only asked whether it takes a head."""

_name_of = itemgetter(0)


class ResponseReader:
    """Reads the response to one request: its head, over interim ones, then its body.

    :param method: The request's method; ``HEAD`` has a response without a body.
    :param upgrade: Whether the request asked for another protocol, so that a 101 is final.
    :ivar begun: Whether any byte of a response has come.
    :ivar fields: Names and values in order, duplicates kept.
    :ivar complete: Whether the response has come to its end.
    :ivar keep: Whether the connection is fit for another request once it has.
    :ivar body: What of the body came with the head.
    :ivar error: What is wrong with the body behind what has been returned of it.
    """

    # What most responses leave as it is stands here, so that it costs nothing to make a reader.
    begun = False
    body = b""
    complete = False
    error: BrokenResponse | None = None
    keep = True
    reason = ""
    status = 0
    version = 0
    fields: list[tuple[str, str]]
    _chunked = False
    _decoded: list[bytes]
    _held = bytearray()  # never changed, but replaced
    _interim = 0
    _left: int | None = None
    _overhead = 0
    _parser: Any = None
    _tail = b""

    def __init__(self, method: str, upgrade: bool = False) -> None:
        self._bodiless = method == "HEAD"
        self._upgrade = upgrade

    def feed_head(self, data: bytes) -> bool:
        """Take bytes until the final head is in; tell whether it is.

        :raises BrokenResponse: It is not a valid one.
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
            self._read_head(data[:end])
            data = data[end:]
            if self.status >= 200 or (self.status == 101 and self._upgrade):
                self.body = self.feed_body(data)
                return True
            self._interim += 1
            if self.status == 101 or self._interim > MOST_INTERIM:
                raise BrokenResponse(f"an interim response nobody asked for: {self.status}")
            if not data:
                return False

    def _with_held(self, data: bytes) -> bytes | None:
        """Return what has come with *data* behind it, ``None`` while it is no whole head.

        Only what is new is looked at: a head that comes byte by byte costs no more than its length.
        """
        held = self._held
        if b"\r\n\r\n" not in held[-3:] + data:
            _check_unfinished(held, data)
            held += data
            return None
        self._held = bytearray()
        return bytes(held) + data

    def feed_body(self, data: bytes) -> bytes:
        """Return what *data* holds of the body; ``complete`` tells whether it was the last of it.

        :raises BrokenResponse: It is not framed as it should be.
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
            self.keep = False  # what follows an answer is nobody's
            return data[:left]
        return self._feed_chunks(data) if self._chunked else data

    def feed_end(self) -> None:
        """Take note that the connection has ended.

        :raises BrokenResponse: The response had not, by its own framing.
        """
        self.keep = False
        if self.status < 200:
            raise BrokenResponse("the response head was cut short")
        if self.error is not None:
            raise self.error
        if self._chunked or self._left:
            raise BrokenResponse("the response was cut short")
        self.complete = True

    def _read_head(self, head: bytes) -> None:
        line = _STATUS_LINE.match(head)  # as the parser skips empty lines before a message
        if line is None:
            raise BrokenResponse("malformed status line")
        self._feed(HttpResponseParser(_NOBODY), head)
        # The parser has seen that these are fields; that they are all there is, is seen here.
        text = head[line.end() :].decode("latin-1")
        fields = _FIELD.findall(text)
        if len(fields) != text.count("\n") - 1:
            raise BrokenResponse("malformed response head")
        if len(fields) > MOST_FIELDS:
            raise BrokenResponse("the response has too many fields")
        if " \r" in text or "\t\r" in text:
            fields = [(name, value.rstrip(" \t")) for name, value in fields]
        self.fields = fields
        self.status = status = int(line[2])
        self.version = version = 11 if line[1] == b"1" else 10
        self.keep = version == 11
        reason = line[3]
        self.reason = reason.decode("latin-1") if reason and not _CONTROL.search(reason) else ""
        learn = _framing if len(text) <= _LONGEST_LEARNT else _framing.__wrapped__
        length_at, codings, connections = learn(tuple(map(_name_of, fields)))
        for at in connections:
            if "close" in fields[at][1].lower():
                self.keep = False
        if codings:
            self._check_codings([fields[at][1].lower() for at in codings])
        if status == 101:
            self.keep = False  # what follows is another protocol's
            self._left = None
        elif self._bodiless or status < 200 or status in (204, 304):
            self._left = 0
            if status == 204 and (codings or (length_at >= 0 and int(fields[length_at][1]))):
                self.keep = False
        elif codings:
            self._left = None
            self._chunked = True
            self._parser = HttpResponseParser(_Messages(self))
            # What has been decided, not the head as it was written: to the parser, a blank behind
            # the word makes another coding of it, and the chunks a body without an end.
            self._parser.feed_data(_CHUNKED)
        elif length_at >= 0:
            self._left = int(fields[length_at][1])
        else:
            self._left = None
            self.keep = False  # its end is the connection's

    def _check_codings(self, codings: list[str]) -> None:
        if codings != ["chunked"] or self.version != 11:
            raise BrokenResponse(f"Transfer-Encoding {', '.join(codings)!r}")

    @staticmethod
    def _feed(parser: Any, head: bytes) -> None:
        try:
            parser.feed_data(head)
        except HttpParserUpgrade:
            pass
        except HttpParserError as error:
            raise BrokenResponse(f"malformed response head: {error}") from None

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
            if not self.complete:  # what came before the error is passed on, then it is told
                self.error = BrokenResponse(f"malformed chunk: {error}")
        self._tail = tail = (self._tail + data[-5:])[-5:]
        if self.complete:
            self._parser = None
            if tail[1:] != b"\r\n\r\n" or tail[:1] == b"\n":
                self.keep = False  # there is more than the empty line that ends the trailers
        elif decoded:
            self._overhead = 0
        else:
            self._overhead += len(data)
            if self._overhead > MOST_CHUNK_OVERHEAD:
                self.error = BrokenResponse("too much between the chunks")
        if self.error is not None and not decoded:
            raise self.error
        return decoded[0] if len(decoded) == 1 else b"".join(decoded)


class _Messages:
    """What the parser reports to of a chunked body: the data of chunks, nothing behind them."""

    __slots__ = ("_reader",)

    def __init__(self, reader: ResponseReader) -> None:
        self._reader = reader

    def on_message_begin(self) -> None:
        if self._reader.complete:
            self._reader.keep = False  # a second message: an answer to nothing

    def on_body(self, data: bytes) -> None:
        if not self._reader.complete:
            self._reader._decoded.append(data)

    def on_message_complete(self) -> None:
        self._reader.complete = True


@lru_cache(maxsize=1024)
def _framing(names: tuple[str, ...]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return where in a head with these *names* the fields are that frame the body.

    An instance sends the same names over and over: what they mean is found out once.

    :returns: The place of ``Content-Length``, of which there is at most one, or -1; the places of
        ``Transfer-Encoding``; the places of ``Connection``.
    """
    lower = [name.lower() for name in names]

    def places(wanted: str) -> tuple[int, ...]:
        return tuple(at for at, name in enumerate(lower) if name == wanted)

    lengths = places("content-length")
    return lengths[0] if lengths else -1, places("transfer-encoding"), places("connection")


def _check_unfinished(held: bytes | bytearray, data: bytes) -> None:
    """Refuse early what cannot become a head, rather than wait for the end of it.

    :param held: What has been looked at before.
    :param data: What has come since.
    """
    length = len(held) + len(data)
    if length > MOST_HEAD_BYTES:
        raise BrokenResponse("the response head is too long")
    if len(held) < 7 and (held[:7] + data[:7])[:7] != _START[:length]:
        raise BrokenResponse("what came is not HTTP/1")
    if data.count(b"\n") != (held[-1:] + data).count(b"\r\n"):
        raise BrokenResponse("malformed response head: a bare line feed")
