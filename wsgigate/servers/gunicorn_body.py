"""The body of a request that its app reads from the client as it arrives: a ``wsgi.input``.

A body of up to 64 KiB is complete before its request takes a thread (``gunicorn_connection``), so
this serves the longer ones. Its reader waits for the client within the deadlines, and gets a
:class:`ClientGone` for a body that ends early: never a short body that looks complete.
"""

from __future__ import annotations

import errno
import select
import time
from typing import NamedTuple, Protocol

from wsgigate.servers.http1_request import BadRequest, ChunkedDecoder, Head

__all__ = ["ClientGone", "ClientStalled", "Deadlines", "HandshakeFailed", "StreamedBody"]


class ClientGone(ConnectionResetError):
    """The client has closed the connection, or it broke.

    Not any ``OSError``: an app may raise one that has nothing to do with its client.
    """

    def __init__(self, text: str = "the client has closed the connection") -> None:
        super().__init__(errno.ECONNRESET, text)


class ClientStalled(ClientGone, TimeoutError):
    """The client sends or reads too slowly; its connection is given up."""


class HandshakeFailed(ClientGone):
    """The TLS handshake with the client failed: it trusts other authorities, or the like.

    :ivar reason: OpenSSL's name of the reason.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"TLS handshake failed: {reason}")
        self.reason = reason


class Deadlines(NamedTuple):
    """The deadlines of a worker's clients.

    :ivar head: Seconds for a TLS handshake, and for a request head.
    :ivar idle: Seconds for a client to send more of a body or take more of a response.
    :ivar rate: Bytes of a body that earn its client one more second in all.
    :ivar keep_alive: Seconds between two requests.
    """

    head: float
    idle: float
    rate: float
    keep_alive: float


class BodySource(Protocol):
    """What a body is read from.

    :ivar buffer: Bytes that were read beyond the body.
    """

    buffer: bytes

    def receive(self) -> bytes | None:
        """Return what has arrived; None if nothing has, an empty string at the end."""

    def wait(self, events: int, seconds: float) -> bool:
        """Wait until the socket is ready; return whether it is within *seconds*."""

    def send(self, data: bytes) -> None:
        """Send *data*."""


class StreamedBody:
    """A body that is read from the connection as the app asks for it: a ``wsgi.input``.

    The sum of all waits for the client is bounded by the idle timeout, plus one second for each
    ``rate`` bytes received: so a client that sends single bytes is cut off, too. The time that the
    app takes between two reads does not count.
    """

    def __init__(
        self,
        connection: BodySource,
        deadlines: Deadlines,
        head: Head,
        first: bytes,
        decoder: ChunkedDecoder | None,
        received: int,
    ) -> None:
        self._connection = connection
        self._deadlines = deadlines
        self._decoder = decoder
        self._buffer = bytearray(first)
        self._left = -1 if decoder is not None else head.length - len(first)
        self._received = received
        self._waited = 0.0
        self._expects = head.expects
        self.failed = False

    @property
    def complete(self) -> bool:
        """Whether all of the body has been read from the connection."""
        return self._decoder.complete if self._decoder is not None else self._left == 0

    def response_begins(self) -> bool:
        """Return whether the connection can stay open, as the response begins now.

        It cannot when the body is incomplete: what the client sends next is not known. One that
        waits for ``100 Continue`` may send its body or not.
        """
        self._expects = False  # too late for 100 Continue
        return self.complete

    def _fill(self) -> bool:
        """Read more; return whether there was any."""
        if self.complete:
            return False
        connection = self._connection
        if self._expects:
            self._expects = False
            connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            data = connection.receive()
            if data is None:
                data = self._wait()
            if not data:
                raise ClientGone("the client has closed the connection within the body")
            self._received += len(data)
            if self._decoder is not None:
                self._buffer += self._decoder.feed(data)
                if self._decoder.complete:
                    connection.buffer = self._decoder.rest
            else:
                if len(data) > self._left:
                    connection.buffer = data[self._left :]
                    data = data[: self._left]
                self._left -= len(data)
                self._buffer += data
        except BaseException:
            self.failed = True
            raise
        return True

    def _wait(self) -> bytes:
        connection = self._connection
        deadlines = self._deadlines
        while True:
            left = deadlines.idle + self._received / deadlines.rate - self._waited
            began = time.monotonic()
            if left <= 0 or not connection.wait(select.POLLIN, min(left, deadlines.idle)):
                raise ClientStalled("the request body came too slowly")
            self._waited += time.monotonic() - began
            data = connection.receive()
            if data is not None:
                return data

    def read(self, size: int | None = -1) -> bytes:
        """Return up to *size* bytes; all by default."""
        if size is None or size < 0:
            while self._fill():
                pass
            size = len(self._buffer)
        else:
            while len(self._buffer) < size and self._fill():
                pass
        return self._take(size)

    def readline(self, size: int | None = -1) -> bytes:
        """Return a line of up to *size* bytes."""
        limit = -1 if size is None or size < 0 else size
        at = 0
        while True:
            end = self._buffer.find(b"\n", at)
            if end >= 0:
                return self._take(end + 1 if limit < 0 else min(end + 1, limit))
            at = len(self._buffer)
            if 0 <= limit <= at or not self._fill():
                return self._take(at if limit < 0 else min(at, limit))

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """Return the lines; up to some *hint* bytes, if given."""
        lines: list[bytes] = []
        size = 0
        for line in self:
            lines.append(line)
            size += len(line)
            if hint is not None and 0 < hint <= size:
                break
        return lines

    def __iter__(self) -> StreamedBody:
        return self

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def discard(self, most: int) -> bool:
        """Read the rest of the body if it has arrived; return whether all of it was read."""
        while not self.failed and not self.complete and most > 0:
            data = self._connection.receive()
            if not data:
                return False
            most -= len(data)
            self._received += len(data)
            if self._decoder is not None:
                try:
                    self._decoder.feed(data)
                except BadRequest:
                    return False
                if self._decoder.complete:
                    self._connection.buffer = self._decoder.rest
            else:
                self._connection.buffer = data[self._left :]
                self._left -= min(self._left, len(data))
        return self.complete and not self.failed
