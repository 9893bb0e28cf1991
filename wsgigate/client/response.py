"""A ``requests.Response`` whose body streams and whose attributes are computed on first use."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from typing import Any

import requests
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers

from wsgigate.client.connections import Connection
from wsgigate.client.response_reader import BLOCK, ResponseReader, SlowResponse
from wsgigate.rules.pace import Pace

__all__ = ["FieldList", "LazyResponse", "RawResponse"]


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

    :param connection: The connection; closed when the body is not read to its end.
    :param reader: The response parser, after the head.
    :param read_timeout: Seconds to wait for each part.
    :param pace: The minimum rate; ``None`` for no minimum.
    :param clock: Monotonic clock, in seconds.
    """

    __slots__ = (
        *("_at", "_clock", "_connection", "_pace", "_reader", "_ready", "_timeout"),
        "headers",
    )

    def __init__(
        self,
        connection: Connection,
        reader: ResponseReader,
        read_timeout: float,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.headers = FieldList(reader.fields)
        self._reader = reader
        self._ready = reader.body
        self._at = 0
        self._timeout = read_timeout
        self._pace = pace
        self._clock = clock
        self._connection: Connection | None = connection
        if reader.complete:
            self._connection = None
            connection.give_back(reader.keep)

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

    def whole(self) -> bytes | None:
        """Return the whole body if it arrived with the head, else ``None`` without reading."""
        if self._connection is not None or self._at or self._reader.error is not None:
            return None
        block, self._ready = self._ready, b""
        return block

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

    def __del__(self) -> None:
        if self._connection is not None:
            self.close()

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


class LazyResponse(requests.Response):
    """A response that computes its headers, cookies and encoding on first access.

    :param request: The request.
    :param raw: The response body.
    :param reader: The parser that read the head.
    """

    _content: Any = False
    _content_consumed = False
    _next = None

    def __init__(
        self, request: requests.PreparedRequest, raw: RawResponse, reader: ResponseReader
    ) -> None:
        self.status_code = reader.status
        self.reason = reader.reason
        self.raw = raw
        self.request = request
        self.url = request.url or ""

    def __getattr__(self, name: str) -> Any:
        make = _LAZY.get(name)
        if make is None:
            raise AttributeError(f"a response has no {name}")
        value = make(self)
        setattr(self, name, value)
        return value

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""
        self.raw.close()


def _headers(reply: LazyResponse) -> CaseInsensitiveDict[str]:
    merged: CaseInsensitiveDict[str] = CaseInsensitiveDict()
    for name, value in reply.raw.headers.items():
        merged[name] = f"{merged[name]}, {value}" if name in merged else value
    return merged


_LAZY: dict[str, Any] = {
    "headers": _headers,
    "cookies": lambda _reply: RequestsCookieJar(),
    "encoding": lambda reply: get_encoding_from_headers(reply.headers),
    "history": lambda _reply: [],
    "elapsed": lambda _reply: datetime.timedelta(0),
    "connection": lambda _reply: None,
}
