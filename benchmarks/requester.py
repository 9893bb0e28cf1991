"""A client that costs little: raw sockets, kept open or not, and how long each answer took."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from time import perf_counter

__all__ = ["Requester", "percentile"]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


def percentile(times: Sequence[float], share: float) -> float:
    """Return the time within which *share* of *times* are."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


class Requester:
    """Send requests over a few connections to a port of loopback.

    :param most: How many connections there are at most.
    :param token: What is sent to be let in.
    :param keep: Whether they are kept open; else each request opens its own.
    :ivar times: Seconds from when a request was to be sent until its answer was there.
    :ivar problem: What the last error was.
    """

    def __init__(self, port: int, most: int, token: str, *, keep: bool = True) -> None:
        self.times: list[float] = []
        self.errors = 0
        self.problem = ""
        self._port = port
        self._keep = keep
        self._free = asyncio.Semaphore(most)
        self._idle: deque[_Link] = deque()
        kept = "keep-alive" if keep else "close"
        self._fields = (
            f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\nConnection: {kept}\r\n"
        )

    def forget(self) -> None:
        """Begin to measure."""
        self.times.clear()
        self.errors = 0

    def close(self) -> None:
        """Close the connections that are kept."""
        for link in self._idle:
            link.close()

    async def ask(self, method: str, target: str, body: bytes = b"", *, good: int = 200) -> None:
        """Send a request, and measure it; anything but *good* is an error."""
        head = f"{method} {target} HTTP/1.1\r\n{self._fields}"
        if method != "GET":
            kind = "Content-Type: application/json\r\n" if body else ""
            head += f"{kind}Content-Length: {len(body)}\r\n"
        began = perf_counter()
        async with self._free:
            try:
                status = await self._send(f"{head}\r\n".encode() + body)
            except OSError as error:
                self.errors += 1
                self.problem = repr(error)
                return
        if status == good:
            self.times.append(perf_counter() - began)
        else:
            self.errors += 1
            self.problem = f"{method} {target}: {status}"

    async def _send(self, data: bytes) -> int:
        link = None
        while self._idle and link is None:
            link = self._idle.popleft()
            if link.closed:  # the server may close what is idle at any time
                link = None
        kept = link is not None
        link = link or await self._connect()
        try:
            status = await link.ask(data)
        except ConnectionError:
            if not kept or link.begun:
                raise
            link = await self._connect()  # it closed while this was on its way
            status = await link.ask(data)
        if self._keep and not link.closed:
            self._idle.append(link)
        else:
            link.close()
        return status

    async def _connect(self) -> _Link:
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(_Link, "127.0.0.1", self._port)
        return link


class _Link(asyncio.Protocol):
    """One connection, one request at a time.

    :ivar begun: Whether any of the answer has come.
    """

    def __init__(self) -> None:
        self.closed = False
        self.begun = False
        self._data = b""
        self._end = 0
        self._status = 0
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, data: bytes) -> asyncio.Future[int]:
        """Send *data*; return what will be the status of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._data, self._end, self.begun = b"", 0, False
        self._transport.write(data)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self.begun = True
        self._data += data
        if not self._end:
            head = self._data.find(b"\r\n\r\n") + 4
            if head == 3:
                return
            fields = self._data[:head]
            self._status = int(fields[9:12])
            length = _LENGTH.search(fields)
            self.closed = self.closed or _CLOSE.search(fields) is not None
            if length is not None:
                self._end = head + int(length[1])
            elif _CHUNKED.search(fields) is None:
                self._fail(ConnectionError("an answer without a length"))
                return
        whole = len(self._data) >= self._end if self._end else self._data.endswith(b"0\r\n\r\n")
        if whole and self._answer is not None:
            answer, self._answer = self._answer, None
            if not answer.done():
                answer.set_result(self._status)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._fail(error or ConnectionError("closed"))

    def _fail(self, error: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)

    def close(self) -> None:
        """Close it."""
        self.closed = True
        self._transport.close()
