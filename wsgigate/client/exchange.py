"""Exchanges of one request and one response, each on its own connection and within one deadline.

Theory of operation. An :class:`Exchange` never blocks. Its methods are generators (:data:`Steps`):
each yields the event that it waits for, a :class:`Wait`, and is resumed when the event occurs, or
with a :exc:`TimeoutError` at the deadline. They are driven in two ways: :func:`run` waits in the
calling thread, for the sources of discovery and for registrations (:class:`HttpClient`); the health
prober selects over hundreds of exchanges in one thread.

The requests that a gateway forwards take the other way, through :mod:`.adapter`: they reuse
connections, stream bodies in both directions, and have a deadline until the head only.

Rules that must hold:

- The deadline covers everything from connecting to the last byte, not each read: a server that
  sends one byte per second cannot extend it. Only the resolution of a name is not covered, as the
  system's resolver cannot be interrupted; the prober resolves names in other threads.
- The server may be broken or hostile. Redirects are not followed, the caller bounds the body, and
  the strict :class:`.ResponseReader` parses the response.
- Nothing is taken from the environment: no proxy, no ``.netrc``.
- The code that makes an exchange closes it on every path; no connection is reused.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

from requests.exceptions import InvalidHeader, InvalidURL

from wsgigate.client.dial import Check, SocketAddress, check_target, literal, shares
from wsgigate.client.http11 import head_bytes
from wsgigate.client.response_reader import BLOCK, BrokenResponse, ResponseReader
from wsgigate.runtime.clocks import real

__all__ = [
    "Exchange",
    "HttpClient",
    "Reply",
    "Steps",
    "Stopped",
    "TooLong",
    "Wait",
    "reason_for",
    "run",
]

T = TypeVar("T")

_BUSY_PAUSE = 0.02


class Wait(NamedTuple):
    """The event that an exchange waits for.

    :ivar sock: The socket; ``None`` for an event without one, such as the result of a lookup.
    :ivar events: ``EVENT_READ``, ``EVENT_WRITE``, or 0.
    :ivar until: The time at which a :exc:`TimeoutError` is thrown into the steps.
    """

    sock: socket.socket | None
    events: int
    until: float


Steps: TypeAlias = Generator[Wait, Any, T]
"""A part of an exchange: yields each :class:`Wait`, is resumed when the event occurs, and returns
its result."""


class Exchange:
    """One request and its response, without blocking.

    :param method: The method of the request.
    :param deadline: The time by *clock* at which the exchange fails; may be changed meanwhile.
    :param check: Called with each address and port before connecting; raises ValueError to reject.
    :param clock: Monotonic clock, in seconds.
    :ivar reader: The response so far.
    :ivar sock: The connection, once there is one.
    """

    def __init__(
        self,
        method: str,
        deadline: float,
        *,
        check: Check | None = None,
        clock: Callable[[], float] = real,
    ) -> None:
        self.deadline = deadline
        self.reader = ResponseReader(method)
        self.sock: socket.socket | None = None
        self._check = check
        self._clock = clock

    def close(self) -> None:
        """Close the connection."""
        if self.sock is not None:
            self.sock.close()

    def connect(
        self, addresses: Sequence[SocketAddress], until: float | None = None
    ) -> Steps[None]:
        """Connect to the first address that accepts, each within its share of the time left.

        :param until: The time at which connecting fails, if that is before the deadline.
        :raises OSError: No address accepts; the error of the last one.
        """
        end = self.deadline if until is None else min(until, self.deadline)
        failure: OSError = OSError("the host has no address")
        for (family, address), share in shares(addresses, end, self._clock):
            self.sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                if self._check is not None and family != socket.AF_UNIX:
                    check_target(self._check, address)
                yield from self._connect(self.sock, family, address, self._clock() + share)
                return
            except OSError as error:
                failure = error
                self.sock.close()
        raise failure

    def _connect(self, sock: socket.socket, family: int, address: Any, until: float) -> Steps[None]:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(address)
                return
            except BlockingIOError:
                if family != socket.AF_UNIX:
                    yield Wait(sock, EVENT_WRITE, until)
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if code:
                        raise OSError(code, "not connected") from None  # Python picks the subclass
                    return
            if self._clock() >= until:
                raise TimeoutError
            try:  # the listen queue is full; no event signals a free place
                yield Wait(None, 0, min(until, self._clock() + _BUSY_PAUSE))
            except TimeoutError:
                pass

    def handshake(self, tls: ssl.SSLContext, host: str) -> Steps[None]:
        """Begin TLS on the connection.

        :param host: The name that the certificate must have.
        """
        assert self.sock is not None  # noqa: S101
        self.sock = sock = tls.wrap_socket(
            self.sock, server_hostname=host, do_handshake_on_connect=False
        )
        yield from self._ready(sock.do_handshake, EVENT_READ)

    def send(self, data: bytes) -> Steps[None]:
        """Send *data*, the head and the body of the request."""
        assert self.sock is not None  # noqa: S101
        while data:
            sent = yield from self._ready(partial(self.sock.send, data), EVENT_WRITE)
            data = data[sent:]

    def read_head(self) -> Steps[None]:
        """Read until the head of the final response is complete.

        :raises http.client.RemoteDisconnected: The connection was closed without a response.
        :raises BrokenResponse: The head is invalid or incomplete.
        """
        reader = self.reader
        while True:
            data = yield from self._receive()
            if not data:
                if reader.begun:
                    reader.feed_end()
                raise http.client.RemoteDisconnected("the connection was closed")
            if reader.feed_head(data):
                return

    def read(self) -> Steps[bytes]:
        """Return the next bytes of the body; empty only at its end.

        :raises BrokenResponse: The body is invalid or incomplete.
        """
        reader = self.reader
        block, reader.body = reader.body, b""
        while not block and not reader.complete:
            if reader.error is not None:
                raise reader.error
            data = yield from self._receive()
            if data:
                block = reader.feed_body(data)
            else:
                reader.feed_end()
        return block

    def read_body(self, most: int) -> Steps[bytes]:
        """Return the body, or its first *most* bytes, after which the rest is not read."""
        body = bytearray()
        while len(body) < most:
            block = yield from self.read()
            if not block:
                break
            body += block
        return bytes(body[:most])

    def _receive(self) -> Steps[bytes]:
        assert self.sock is not None  # noqa: S101
        if self._clock() >= self.deadline:  # also when there is always something to read
            raise TimeoutError("the deadline has passed")
        data: bytes = yield from self._ready(partial(self.sock.recv, BLOCK), EVENT_READ)
        return data

    def _ready(self, act: Callable[[], Any], events: int) -> Steps[Any]:
        """Return the result of *act* once it does not block; TLS may read in order to write."""
        while True:
            try:
                return act()
            except ssl.SSLWantReadError:
                wanted = EVENT_READ
            except ssl.SSLWantWriteError:
                wanted = EVENT_WRITE
            except BlockingIOError:
                wanted = events
            yield Wait(self.sock, wanted, self.deadline)


class Stopped(Exception):
    """The thread that waited for an exchange is being stopped."""


_LOOK = 0.5
"""Seconds after which a wait checks whether the thread is being stopped."""


def run(steps: Steps[T], stopping: threading.Event | None = None) -> T:
    """Take *steps* in this thread, by the clock :func:`.real`, and return their result.

    :param stopping: When it is set, a wait ends within half a second.
    :raises Stopped: *stopping* was set.
    """
    try:
        wait = next(steps)
        while True:
            try:
                _await(wait, stopping)
            except (TimeoutError, Stopped) as error:
                wait = steps.throw(error)
            else:
                wait = steps.send(None)
    except StopIteration as end:
        result: T = end.value
        return result


def _await(wait: Wait, stopping: threading.Event | None) -> None:
    poll = None
    if wait.sock is not None:
        poll = select.poll()  # looked up now: gevent may have replaced it
        poll.register(wait.sock, select.POLLIN if wait.events == EVENT_READ else select.POLLOUT)
    while True:
        if stopping is not None and stopping.is_set():
            raise Stopped
        left = min(wait.until - real(), _LOOK)
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        if poll is None:
            time.sleep(left)
        elif poll.poll(left * 1000):
            return


_CONNECT = 5.0
"""The most seconds for connecting, of those for the whole exchange."""

_ALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""TCP keepalive: a dead connection ends a long poll after 25 s."""


class HttpClient:
    """A client for one server that sends each request on a new connection.

    :param url: ``http://HOST[:PORT]`` or ``https://HOST[:PORT]``; a path precedes all targets.
    :param tls: Returns the TLS context of a connection; called for ``https`` only.
    :param check: Called with each address and port before connecting; raises ValueError to reject.
    """

    def __init__(
        self, url: str, tls: Callable[[], ssl.SSLContext], *, check: Check | None = None
    ) -> None:
        parts = urlsplit(url)
        self._prefix = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._host = parts.hostname or ""
        self._tls = tls if parts.scheme == "https" else None
        self._port = parts.port or (80 if self._tls is None else 443)
        self._check = check

    def send(
        self,
        method: str,
        target: str,
        fields: Mapping[str, str],
        body: bytes | None = None,
        *,
        timeout: float,
        stopping: threading.Event | None = None,
    ) -> Reply:
        """Send a request and return its response, the body unread; the caller closes it.

        :param fields: The fields, besides ``Host``, ``Connection`` and ``Content-Length``.
        :param timeout: The seconds until the end of the body.
        :param stopping: When it is set, a wait ends within half a second.
        :raises OSError: There is no valid response; :func:`reason_for` describes this and the rest.
        :raises ValueError: The target or a field is malformed.
        :raises Stopped: *stopping* was set.
        """
        exchange = Exchange(method, real() + timeout, check=self._check)
        try:
            run(self._begin(exchange, method, target, fields, body), stopping)
        except BaseException:
            exchange.close()
            raise
        return Reply(exchange, stopping)

    def _begin(
        self,
        exchange: Exchange,
        method: str,
        target: str,
        fields: Mapping[str, str],
        body: bytes | None,
    ) -> Steps[None]:
        length = {} if body is None else {"Content-Length": str(len(body))}
        all_fields = {"Host": self._authority, **fields, **length, "Connection": "close"}
        head = head_bytes(method, self._prefix + target, all_fields)
        tls = None if self._tls is None else self._tls()
        yield from exchange.connect(self._addresses(), real() + _CONNECT)
        _keep_alive(exchange.sock)
        if tls is not None:
            yield from exchange.handshake(tls, self._host)
        yield from exchange.send(head + (body or b""))
        yield from exchange.read_head()

    def _addresses(self) -> list[SocketAddress]:
        known = literal(self._host, self._port)
        if known is not None:
            return [known]
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]


def _keep_alive(sock: socket.socket | None) -> None:
    assert sock is not None  # noqa: S101
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _ALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class TooLong(ValueError):
    """A line of a response is longer than allowed."""


class Reply:
    """A response to :meth:`HttpClient.send`; a context manager that closes it.

    :ivar status: The status code.
    :ivar fields: The fields, with names in lower case; of equal names, the last one.
    """

    def __init__(self, exchange: Exchange, stopping: threading.Event | None) -> None:
        self.status = exchange.reader.status
        self.fields = {name.lower(): value for name, value in exchange.reader.fields}
        self._exchange = exchange
        self._stopping = stopping
        self._unread = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._exchange.close()

    def body(self, most: int) -> bytes:
        """Return the body, or its first *most* bytes.

        :raises OSError: It is incomplete or invalid, or the time is up.
        """
        return run(self._exchange.read_body(most), self._stopping)

    def line(self, most: int, within: float) -> bytes | None:
        """Return the next line of the body with its line feed, ``None`` at the end.

        :param within: The most seconds to wait for it, instead of the time left for the response.
        :raises TooLong: It has more than *most* bytes.
        :raises OSError: The body is incomplete or invalid, or the time is up.
        """
        self._exchange.deadline = real() + within
        unread, seen = self._unread, 0
        while True:
            end = unread.find(b"\n", seen) + 1
            if (end or len(unread)) > most:
                raise TooLong("a line of the response is too long")
            seen = len(unread)
            block = b"" if end else run(self._exchange.read(), self._stopping)
            if not block:
                line = bytes(unread[: end or None])
                del unread[: len(line)]
                return line or None
            unread += block


_REASONS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((TimeoutError,), "there was no answer in time"),
    ((socket.gaierror, UnicodeError), "its host name cannot be resolved"),
    ((ssl.SSLCertVerificationError,), "its certificate cannot be verified"),
    ((ssl.SSLError,), "TLS failed"),
    ((ConnectionRefusedError,), "the connection was refused"),
    ((ConnectionResetError, BrokenPipeError), "the connection was closed"),
    ((InvalidHeader, InvalidURL), "the request is malformed"),
    ((BrokenResponse,), "its answer is not valid HTTP"),
    ((OSError,), "the connection failed"),
)


def reason_for(error: Exception) -> str:
    """Return why a request failed, without the name of a host and without secrets."""
    if isinstance(error, TooLong):
        return str(error)
    return next(
        (reason for kinds, reason in _REASONS if isinstance(error, kinds)),
        f"the request failed ({type(error).__name__})",
    )
