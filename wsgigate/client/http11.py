"""One HTTP/1.1 exchange over a connection of a pool: the request, and the response as it arrives.

The rules that must hold:

- A request on the wire has exactly one framing, and no line end except those written here. Fields
  or a target with a CR, LF or NUL are rejected; an instance would read a second request in them
  (request smuggling).
- While a body is sent, the socket is also read: an instance may reject a request early (413, 401)
  and close. Waiting for the whole body to be sent would lose that response, or deadlock when both
  sides only write. The connection is not reused after an early response: the rest of the body was
  not sent, so the instance would read the next request as part of it.
- The time that a body takes to be sent does not count against the response:
  :class:`ExchangeDeadline` is restarted after the last block. Each step of sending has its own
  timeout.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn

import requests
from requests.exceptions import InvalidHeader, InvalidURL

from wsgigate.client.connections import Connection
from wsgigate.client.dial import OnSocket
from wsgigate.client.response_reader import BLOCK, ResponseReader, SlowResponse
from wsgigate.rules.pace import Pace

__all__ = [
    "ExchangeDeadline",
    "FieldList",
    "Fields",
    "RawResponse",
    "StreamedResponse",
    "Upload",
    "head_bytes",
    "request_head",
    "send_request",
    "upload_of",
]

_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_USUAL = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
"""Methods that need no such check."""


class Fields(dict[str, str]):
    """Request fields as they are sent, with the exact request target.

    :ivar on_socket: Called with the socket that carries the request, and with ``None`` before that
        socket may carry another; optional.
    """

    __slots__ = ("on_socket", "target")

    target: str
    on_socket: OnSocket

    @classmethod
    def joined(cls, fields: Iterable[tuple[str, str]]) -> Fields:
        """Return *fields*, equal names joined by ``, `` (RFC 9110, 5.2), cookies by ``; ``.

        A dictionary would otherwise replace the client's field by one that is added.
        """
        made = cls()
        names: dict[str, str] = {}
        for name, value in fields:
            known = names.setdefault(name.lower(), name)
            if known in made:
                made[known] += ("; " if known.lower() == "cookie" else ", ") + value
            else:
                made[known] = value
        return made

    def copy(self) -> Fields:
        copied = Fields(self)
        copied.target = self.target
        on_socket = getattr(self, "on_socket", None)
        if on_socket is not None:
            copied.on_socket = on_socket
        return copied


def request_head(request: requests.PreparedRequest, upload: Upload | None, origin: str) -> bytes:
    """Return the bytes of the request head, with target and fields unchanged.

    :raises ValueError: See :func:`head_bytes`.
    """
    fields: Any = request.headers
    method = request.method or "GET"
    if type(fields) is Fields:
        target = fields.target
    else:
        target = request.path_url
        fields = {_text(name): _text(value) for name, value in (fields or {}).items()}
        names = {name.lower(): name for name in fields}
        if "expect" in names:
            del fields[names["expect"]]  # waiting for "100 Continue" costs more than it saves
        if "host" not in names:
            scheme, _, host = origin.partition("://")
            fields = {"Host": "localhost" if scheme == "http+unix" else host, **fields}
    if upload is not None and upload.field is not None:
        fields = {**fields, upload.field[0]: upload.field[1]}
    return head_bytes(method, target, fields)


def head_bytes(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """Return the bytes of a request head.

    :raises ValueError: The method, the target or a field is malformed, so that an instance could
        read another request than was meant.
    """
    lines = [f"{method} {target} HTTP/1.1", *map(": ".join, fields.items()), "\r\n"]
    text = "\r\n".join(lines)
    ends = len(lines)  # exactly the line ends written here; more would come from a value
    if text.count("\n") != ends or text.count("\r") != ends or "\0" in text:
        raise InvalidHeader("a request field contains a line end or NUL")
    if lines[0].count(" ") != 2 or not (method in _USUAL or _METHOD.fullmatch(method)):
        raise InvalidURL("the request has no valid method or target")
    return text.encode("latin-1")


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def upload_of(request: requests.PreparedRequest) -> Upload | None:
    """Return the request body as it is sent; ``None`` for a request without one.

    :raises ValueError: The framing fields contradict each other or the body.
    """
    body: Any = request.body
    headers: Any = request.headers or {}
    stated = headers.get("Content-Length") or ""
    if type(stated) is bytes:
        stated = stated.decode("latin-1")
    chunked = bool(headers.get("Transfer-Encoding"))
    if chunked and stated:
        raise InvalidHeader("a request has both Content-Length and Transfer-Encoding")
    if body is None or (isinstance(body, (str, bytes)) and not body):
        if chunked or stated not in ("", "0"):
            raise InvalidHeader("the request has no body, but its fields announce one")
        return None
    if stated and not (stated.isascii() and stated.isdigit()):
        raise InvalidHeader(f"malformed Content-Length {stated!r}")
    length = int(stated) if stated else None
    field = None
    if isinstance(body, str):
        body = body.encode()
    if isinstance(body, (bytes, bytearray, memoryview)):
        if chunked:
            blocks: Iterator[bytes] = iter((bytes(body),))
        elif length not in (None, len(body)):
            raise InvalidHeader(f"Content-Length is {length}, but the body has {len(body)} bytes")
        else:
            return Upload(iter((bytes(body),)), len(body), field=_length_field(len(body), length))
    elif hasattr(body, "read"):
        read: Callable[[int], bytes] = body.read
        known = getattr(body, "length", None)
        if not chunked and length is None and isinstance(known, int):
            length, field = known, ("Content-Length", str(known))
        blocks = iter(partial(read, BLOCK), b"")
    else:
        whole: Iterable[bytes | str] = body
        blocks = (_bytes(block) for block in whole)
    if length is None and not chunked:
        field = ("Transfer-Encoding", "chunked")
    return Upload(blocks, length, field=field)


def _length_field(length: int, stated: int | None) -> tuple[str, str] | None:
    return ("Content-Length", str(length)) if stated is None else None


def _bytes(block: bytes | str) -> bytes:
    return block.encode() if isinstance(block, str) else block


class Upload:
    """A request body, as framed blocks.

    The first block is read before a connection is taken: a small one is sent together with the
    head, and a slow client occupies no connection.

    :param blocks: The body in parts.
    :param length: Its length in bytes; ``None`` for a chunked body.
    :param field: The framing field that the request lacks.
    :ivar ended: Whether the whole body was read.
    :ivar first: The first block, framed.
    :ivar replayable: Whether everything read so far can be sent again.
    """

    __slots__ = ("_blocks", "_left", "ended", "field", "first", "replayable")

    def __init__(
        self,
        blocks: Iterator[bytes],
        length: int | None,
        *,
        field: tuple[str, str] | None = None,
    ) -> None:
        self._blocks = blocks
        self._left = length
        self.ended = length == 0
        self.field = field
        self.first = self._next()
        self.replayable = True

    def rest(self) -> Iterator[bytes]:
        """Yield the blocks after the first."""
        while not self.ended:
            self.replayable = False
            yield self._next()

    def _next(self) -> bytes:
        if self.ended:
            return b""
        block = next(self._blocks, b"")
        while not block and self._left is None:
            again = next(self._blocks, None)  # an empty block must not look like the last chunk
            if again is None:
                self.ended = True
                return b"0\r\n\r\n"
            block = again
        if self._left is None:
            return b"%x\r\n%b\r\n" % (len(block), block)
        if not block or len(block) > self._left:
            raise InvalidHeader("the length of the body differs from its Content-Length")
        self._left -= len(block)
        self.ended = self._left == 0
        return block


_HEAD_BLOCK = 16384

_SINGLE = 16384
"""Up to this many bytes are sent in one call: every socket's send buffer has room for them."""


class ExchangeDeadline:
    """The deadline of a response head, and the timeout of one step.

    The time spent sending the request body does not count: the total starts again once it is sent.

    :param step: Seconds for each step; at most *total*.
    :param total: Seconds until the response head is complete.
    :param now: The time by *clock*.
    :param clock: Monotonic clock, in seconds.
    """

    __slots__ = ("_clock", "_total", "step", "until")

    def __init__(
        self, step: float, total: float, now: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.step = min(step, total)
        self._total = total
        self._clock = clock
        self.until = now + total

    def left(self) -> float:
        """Return the timeout of the next step, in seconds.

        :raises TimeoutError: The deadline has passed.
        """
        left = self.until - self._clock()
        if left <= 0:
            raise TimeoutError("the response did not begin in time")
        return min(left, self.step)

    def restart(self) -> None:
        """Start the total again, after the body was sent."""
        self.until = self._clock() + self._total


def send_request(
    connection: Connection,
    head: bytes,
    upload: Upload | None,
    reader: ResponseReader,
    deadline: ExchangeDeadline,
) -> None:
    """Send a request and read the head of its response into *reader*.

    :raises requests.RequestException: No valid head was received; the caller closes the connection.
    """
    try:
        answered = hung_up = False
        whole = upload is None or (upload.ended and len(head) + len(upload.first) <= _SINGLE)
        # One piece on a reused connection: no time was used yet, which saves reading the clock.
        fresh = whole and connection.reused
        try:
            if not fresh:
                connection.set_timeout(deadline.left())
            elif connection.timeout != deadline.step:
                connection.set_timeout(deadline.step)
            if upload is None:
                connection.sock.sendall(head)
            elif whole:
                connection.sock.sendall(head + upload.first)
            else:
                answered = _send_with_body(connection, head, upload, reader, deadline)
        except (BrokenPipeError, ConnectionResetError):
            hung_up = True  # a response may precede the close
        while not answered:
            if not fresh:
                connection.set_timeout(deadline.left())
            fresh = False
            try:
                data = connection.sock.recv(_HEAD_BLOCK)
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                data = b""
            answered = reader.feed_head(data) if data else _ended(reader)
        if hung_up:
            reader.keep = False  # even if the head allows reuse
    except TimeoutError as error:
        raise requests.ReadTimeout(error) from error
    except BlockingIOError as error:  # the kernel's timeout
        raise requests.ReadTimeout(TimeoutError("timed out")) from error
    except ssl.SSLError as error:
        raise requests.exceptions.SSLError(error) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, requests.RequestException):
            raise
        raise requests.ConnectionError(error) from error


def _ended(reader: ResponseReader) -> NoReturn:
    """Raise the error of a connection that ended before the response head did."""
    if reader.begun:
        reader.feed_end()
    raise http.client.RemoteDisconnected("Remote end closed connection without response")


def _send_with_body(
    connection: Connection,
    head: bytes,
    upload: Upload,
    reader: ResponseReader,
    deadline: ExchangeDeadline,
) -> bool:
    """Send head and body; return whether the response arrived before the end of the body."""
    block = upload.first
    if len(head) + len(block) <= _SINGLE:
        connection.send_all(head + block)
    else:
        connection.send_all(head)
        if _push(connection, block, reader, deadline):
            return True
    if upload.ended:
        return False
    for block in upload.rest():
        if _push(connection, block, reader, deadline):
            return True
    deadline.restart()
    return False


def _push(
    connection: Connection, block: bytes, reader: ResponseReader, deadline: ExchangeDeadline
) -> bool:
    """Send a block; return ``True`` if a response arrived first, which ends the connection."""
    view = memoryview(block)
    while view:
        answered, writable = connection.wait(deadline.step)
        if answered:
            data = connection.recv_now(BLOCK)
            if data is not None:
                if not data:
                    _ended(reader)
                if reader.feed_head(data):
                    reader.keep = False
                    return True
        elif not writable:
            raise TimeoutError("the instance did not accept the request body in time")
        if writable:
            view = view[connection.send_now(view, deadline.step) :]
    return False


class FieldList:
    """Response fields in the order received, with repeated names kept separate."""

    __slots__ = ("_fields",)

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields = fields

    def items(self) -> list[tuple[str, str]]:
        """Return the names and values."""
        return self._fields

    def getlist(self, name: str) -> list[str]:
        """Return the values of the fields of that name."""
        name = name.lower()
        return [value for key, value in self._fields if key.lower() == name]

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the values of that name, joined by ``, ``."""
        return ", ".join(self.getlist(name)) or default

    def __contains__(self, name: str) -> bool:
        return bool(self.getlist(name))


class RawResponse:
    """A response body, read from the connection; the connection is returned at its end.

    One that is not complete yet is a :class:`StreamedResponse`.

    :param connection: The connection; closed when the body is not read to its end. ``None`` if it
        was returned already, as the response is complete.
    :param reader: The response parser, after the head.
    :param read_timeout: Seconds to wait for each part.
    :param pace: The minimum rate; ``None`` for no minimum.
    :param clock: Monotonic clock, in seconds.
    :ivar fields: The names and values of the response fields, in the order received.
    """

    __slots__ = (
        *("_at", "_clock", "_connection", "_pace", "_reader", "_ready", "_timeout"),
        "fields",
    )

    def __init__(
        self,
        connection: Connection | None,
        reader: ResponseReader,
        read_timeout: float = 0.0,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fields = reader.fields
        self._reader = reader
        self._ready = reader.body
        self._at = 0
        self._timeout = read_timeout
        self._pace = pace
        self._clock = clock
        self._connection = connection
        if connection is not None and reader.complete:
            self._connection = None
            connection.give_back(reader.keep)

    @property
    def headers(self) -> FieldList:
        """The response fields."""
        return FieldList(self.fields)

    @property
    def status(self) -> int:
        """The status code."""
        return self._reader.status

    @property
    def reason(self) -> str:
        """The reason phrase; empty when it contained control characters."""
        return self._reader.reason

    @property
    def version(self) -> int:
        """10 for HTTP/1.0, 11 for HTTP/1.1."""
        return self._reader.version

    @property
    def closed(self) -> bool:
        """Whether the body was read to its end, or closed."""
        return self._connection is None and not self._ready

    def read1(self, amt: int | None = -1, decode_content: bool | None = False) -> bytes:
        """Return the next available bytes, at most *amt*; empty only at the end.

        :raises requests.RequestException: The body was cut short or is malformed.
        """
        block = self._ready
        if not block:
            block = self._receive()
        if amt is None or amt < 0 or len(block) - self._at <= amt:
            self._ready = b""
            at, self._at = self._at, 0
            return block[at:] if at else block
        self._ready = block
        self._at += amt
        return block[self._at - amt : self._at]

    def read(self, amt: int | None = None, decode_content: bool | None = False) -> bytes:
        """Return *amt* bytes, fewer only at the end. Default: all remaining bytes."""
        blocks: list[bytes] = []
        left = amt
        while left is None or left > 0:
            block = self.read1(left)
            if not block:
                break
            blocks.append(block)
            if left is not None:
                left -= len(block)
        return b"".join(blocks)

    def read_within(self, most: int, until: float) -> bytes:
        """Return the body, or its first *most* bytes, within one time limit.

        :param until: The time by the response's clock at which reading fails, however steadily
            bytes arrive.
        :raises requests.RequestException: The body was cut short, is malformed or is too slow.
        """
        body = bytearray()
        while len(body) < most:
            self._timeout = until - self._clock()
            if self._timeout <= 0:
                self.close()
                raise requests.ReadTimeout(TimeoutError("the deadline has passed"))
            block = self.read1()
            if not block:
                break
            body += block
        return bytes(body[:most])

    def stream(self, amt: int = BLOCK, decode_content: bool | None = None) -> Iterator[bytes]:
        """Yield the body in parts of at most *amt* bytes, decompressed by default."""
        coding = self.headers.get("content-encoding") if decode_content is not False else None
        if coding is None:
            while block := self.read1(amt):
                yield block
            return
        from urllib3 import HTTPHeaderDict, HTTPResponse  # imported only when decompressing

        body: Any = self
        fields = HTTPHeaderDict({"Content-Encoding": coding})
        decoded = HTTPResponse(body, fields, preload_content=False, decode_content=True)
        yield from decoded.stream(amt, decode_content=True)

    def take_over(self) -> tuple[Connection, bytes]:
        """Return the connection, for another protocol, and the bytes already received.

        :raises ValueError: The connection was already returned to its pool.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            raise ValueError("the response has ended; its connection was returned to the pool")
        ready, self._ready = self._ready[self._at :], b""
        return connection, ready

    def close(self) -> None:
        """Close the connection, unless the response was read to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._ready = b""
        self._at = 0

    release_conn = close

    def _receive(self) -> bytes:
        reader = self._reader
        connection = self._connection
        if connection is None:
            return b""
        block = b""
        try:
            if reader.error is not None:
                raise reader.error
            pace = self._pace
            if pace is None:
                connection.set_timeout(self._timeout)
            while not block and not reader.complete:
                data = connection.recv(BLOCK) if pace is None else self._paced(connection, pace)
                if data:
                    block = reader.feed_body(data)
                else:
                    reader.feed_end()
        except requests.RequestException:
            self.close()
            raise
        except TimeoutError as error:
            self.close()
            raise requests.ReadTimeout(error) from error
        except OSError as error:
            self.close()
            raise requests.ConnectionError(error) from error
        except BaseException:
            self.close()
            raise
        if reader.complete:
            self._connection = None
            connection.give_back(reader.keep)
        elif pace is not None:
            pace.received += len(block)
        return block

    def _paced(self, connection: Connection, pace: Pace) -> bytes:
        """Receive the next bytes, and add the waiting time to *pace*.

        :raises SlowResponse: The body arrives below the minimum rate.
        """
        left = pace.left()
        if left <= 0:
            raise SlowResponse(f"{pace.received} bytes in {pace.waited:.1f} s are too slow")
        connection.set_timeout(min(self._timeout, left))
        began = self._clock()
        try:
            return connection.recv(BLOCK)
        except TimeoutError:
            if left < self._timeout:
                raise SlowResponse(
                    f"{pace.received} bytes in {pace.waited + left:.1f} s are too slow"
                ) from None
            raise
        finally:
            pace.waited += self._clock() - began


class StreamedResponse(RawResponse):
    """A response that has not been received completely, so that it still holds its connection."""

    __slots__ = ()

    def __del__(self) -> None:
        if self._connection is not None:
            self.close()
