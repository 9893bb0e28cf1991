"""WebSocket forwarding: the opening handshake, then a tunnel between the two sockets.

It requires a server that hands out the client's socket: gunicorn's threaded and gevent workers, and
werkzeug's server. The response is an ordinary WSGI response with the status 101. Its first chunk is
empty, so that the server sends the head; iterating to the second chunk runs the tunnel. So every
middleware sees the beginning and the end of the response. At the end the client's socket is shut
down, so that the server does not expect another request on it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import requests

from wsgigate.client.connections import Connection
from wsgigate.client.http11 import RawResponse
from wsgigate.http.bodies import has_body
from wsgigate.http.fields import HOP_BY_HOP, connection_tokens, is_field_value, is_token
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.wsgi import LEND_THREAD, READ_AHEAD, TUNNELLED, Headers
from wsgigate.proxy.attempts import Attempts
from wsgigate.proxy.disconnect import ClientWatch, client_socket
from wsgigate.proxy.response import BadResponse, ResponseMaker
from wsgigate.rules.arguments import Seconds, checked
from wsgigate.runtime import fork
from wsgigate.runtime.clocks import real

__all__ = [
    "BadHandshake",
    "Tunnels",
    "Upgrader",
    "WebSocketLimits",
    "check_request",
    "check_response",
    "is_upgrade",
    "relay",
]


# The opening handshake (RFC 6455, section 4), without I/O.

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_KEPT = frozenset(("sec-websocket-accept", "sec-websocket-protocol", "sec-websocket-extensions"))

_DROPPED = HOP_BY_HOP | {"content-length"}


class BadHandshake(BadResponse):
    """The instance's 101 response is not a valid WebSocket handshake."""


def is_upgrade(environ: WSGIEnvironment) -> bool:
    """Return whether the request asks for a WebSocket upgrade."""
    if "websocket" not in environ.get("HTTP_UPGRADE", "").lower():
        return False
    try:
        return "upgrade" in connection_tokens(environ.get("HTTP_CONNECTION", ""))
    except ValueError:
        return False


def check_request(environ: WSGIEnvironment) -> str:
    """Validate a client's handshake and return its key.

    :raises Refusal: The handshake is invalid; carries the client's response.
    """
    if environ["REQUEST_METHOD"] != "GET" or environ.get("SERVER_PROTOCOL") != "HTTP/1.1":
        raise Refusal.of(
            400, "Malformed WebSocket handshake.", "the handshake is not an HTTP/1.1 GET"
        )
    if environ["HTTP_UPGRADE"].strip().lower() != "websocket":
        raise Refusal.of(400, "Malformed WebSocket handshake.", "Upgrade names another protocol")
    if has_body(environ):
        raise Refusal.of(400, "Malformed WebSocket handshake.", "the handshake has a body")
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION", "").strip() != "13":
        problem = Problem(
            426,
            "WebSocket version not supported.",
            headers=(("Sec-WebSocket-Version", "13"),),
        )
        raise Refusal(problem, "a WebSocket version other than 13")
    key: str = environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip()
    try:
        nonce = base64.b64decode(key.encode("latin-1"), validate=True)
    except (binascii.Error, ValueError):
        nonce = b""
    if len(nonce) != 16:
        raise Refusal.of(400, "Malformed WebSocket handshake.", "a malformed Sec-WebSocket-Key")
    return key


def check_response(received: Headers, key: str, protocols: str, extensions: str) -> Headers:
    """Validate an instance's 101 response and return the fields for the client.

    :param received: The instance's fields.
    :param key: The client's key, which ``Sec-WebSocket-Accept`` must match.
    :param protocols: The client's ``Sec-WebSocket-Protocol``.
    :param extensions: The client's ``Sec-WebSocket-Extensions``.
    :raises BadHandshake: The response is invalid; the message says why.
    """
    fields = [(name, value.strip(" \t")) for name, value in received]
    if not all(is_token(name) and is_field_value(value) for name, value in fields):
        raise BadHandshake("a malformed field")

    def values(wanted: str) -> list[str]:
        return [value for name, value in fields if name.lower() == wanted]

    if [value.lower() for value in values("upgrade")] != ["websocket"]:
        raise BadHandshake("Upgrade is not websocket")
    try:
        named = frozenset().union(*map(connection_tokens, values("connection")))
    except ValueError as error:
        raise BadHandshake(str(error)) from None
    if "upgrade" not in named:
        raise BadHandshake("Connection does not contain upgrade")
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    if values("sec-websocket-accept") != [base64.b64encode(digest).decode()]:
        raise BadHandshake("a wrong Sec-WebSocket-Accept")
    _check_protocol(values("sec-websocket-protocol"), protocols)
    if values("sec-websocket-extensions") and not extensions:
        raise BadHandshake("an extension that the client did not request")
    dropped = _DROPPED | (named - _KEPT)
    return [
        *(field for field in fields if field[0].lower() not in dropped),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
    ]


def _check_protocol(chosen: Sequence[str], requested: str) -> None:
    offered = [each.strip() for each in requested.split(",")]
    if len(chosen) > 1 or (chosen and chosen[0] not in offered):
        raise BadHandshake("a protocol that the client did not request")


# The tunnel between two sockets, and the limit of tunnels per process.

BLOCK = 65536

TICK = 1.0
"""Seconds after which an idle tunnel notices that it must end."""

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Tunnels:
    """Counts and limits the tunnels of a process, and ends them at shutdown.

    :param most: Maximum number of tunnels while each occupies a thread of the server.
    :param most_lent: Maximum number under a server that starts a thread for each. Default: *most*.
    :param grace: Seconds that tunnels may continue after :meth:`stop`.
    :raises ValueError: *most* is negative.
    """

    def __init__(self, most: int = 8, *, most_lent: int | None = None, grace: float = 5.0) -> None:
        if most < 0:
            raise ValueError(f"most must be 0 or more tunnels, got {most}")
        self._most = most
        self._most_lent = most if most_lent is None else most_lent
        self._grace = grace
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Reset the count: the open tunnels are the parent's."""
        self._lock = threading.Lock()
        self.open = 0
        self.end_at = float("inf")

    def enter(self, lent: bool = False) -> bool:
        """Count a tunnel; return ``False`` at the limit and after :meth:`stop`."""
        with self._lock:
            most = self._most_lent if lent else self._most
            if self.open >= most or self.end_at < float("inf"):
                return False
            self.open += 1
            return True

    def leave(self) -> None:
        """Count a tunnel as ended."""
        with self._lock:
            self.open -= 1

    def stop(self) -> None:
        """Allow no new tunnels and end the open ones after the grace period; does not wait."""
        self.end_at = real() + self._grace


class _Direction:
    """One direction of a tunnel; reads only as fast as the sink accepts (backpressure)."""

    __slots__ = ("closed", "held", "moved", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket, first: bytes) -> None:
        self.source = source
        self.sink = sink
        self.held = memoryview(first)
        self.moved = 0
        self.closed = False

    def move(self) -> bool:
        """Move bytes while neither socket blocks; return whether any were moved."""
        moved = False
        while True:
            if self.held:
                try:
                    sent = self.sink.send(self.held)
                except _WOULD_BLOCK:
                    return moved
                self.held = self.held[sent:]
                self.moved += sent
                moved = True
                continue
            if self.closed:
                return moved
            try:
                data = self.source.recv(BLOCK)
            except _WOULD_BLOCK:
                return moved
            self.closed = not data
            self.held = memoryview(data)


def relay(
    client: socket.socket,
    upstream: socket.socket,
    *,
    idle_timeout: float,
    first: bytes = b"",
    end_at: Callable[[], float] = lambda: float("inf"),
    clock: Callable[[], float] = time.monotonic,
    selector: Callable[[], Any] = selectors.DefaultSelector,
) -> tuple[int, int]:
    """Copy bytes both ways until either end closes; return the bytes sent up and down.

    :param idle_timeout: Seconds without a byte in either direction until the tunnel ends.
    :param first: Bytes already received from the upstream.
    :param end_at: Returns the time at which the tunnel must end, by *clock*.
    """
    client.setblocking(False)
    upstream.setblocking(False)
    up, down = _Direction(client, upstream, b""), _Direction(upstream, client, first)
    idle_at = clock() + idle_timeout
    try:
        with selector() as ready:
            for end in (client, upstream):
                ready.register(end, selectors.EVENT_READ)
            while True:
                # Always try both: TLS may have buffered bytes that no selector sees.
                if up.move() | down.move():
                    idle_at = clock() + idle_timeout
                if (up.closed and not up.held) or (down.closed and not down.held):
                    break
                left = min(idle_at, end_at()) - clock()
                if left <= 0:
                    break
                for end, comes, goes in ((client, up, down), (upstream, down, up)):
                    wanted = (0 if comes.held or comes.closed else selectors.EVENT_READ) | (
                        selectors.EVENT_WRITE if goes.held else 0
                    )
                    _set_interest(ready, end, wanted)
                ready.select(min(left, TICK))
    except OSError:
        pass  # one end was closed
    return up.moved, down.moved


def _set_interest(ready: Any, end: socket.socket, wanted: int) -> None:
    known = ready.get_map().get(end)
    if known is None:
        if wanted:
            ready.register(end, wanted)
    elif not wanted:
        ready.unregister(end)
    elif known.events != wanted:
        ready.modify(end, wanted)


_UNSUPPORTED = Problem(501, "WebSockets are not supported here.")

_TOO_MANY = Problem(503, "Too many WebSockets.", headers=(("Retry-After", "5"),))

_BAD = Problem(502, "Bad gateway", extensions={"error": "Invalid response"})


@checked
@dataclass(frozen=True)
class WebSocketLimits:
    """Limits of a route's WebSockets.

    :param idle_timeout: How long a WebSocket may be idle, without a byte in either direction, in
        seconds.
    :raises ValueError: *idle_timeout* is not above 0.
    """

    idle_timeout: Seconds = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.idle_timeout < float("inf"):
            raise ValueError(
                f"idle_timeout must be a number of seconds above 0, got {self.idle_timeout}"
            )


class Upgrader:
    """Opens WebSockets for a route.

    :param limits: The limits of each WebSocket.
    :param tunnels: Counts the WebSockets of the process.
    :param attempts: Sends the handshakes.
    :param responses: Builds the client's responses.
    """

    def __init__(
        self,
        limits: WebSocketLimits,
        tunnels: Tunnels,
        attempts: Attempts,
        responses: ResponseMaker,
    ) -> None:
        self._limits = limits
        self._tunnels = tunnels
        self._attempts = attempts
        self._responses = responses

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse, watch: ClientWatch
    ) -> Iterable[bytes]:
        """Return the body that runs the WebSocket, or the instance's response if it is not a 101.

        :param watch: Reports whether the client has disconnected; closed once the WebSocket opens.
        :raises Refusal: The WebSocket cannot be opened; carries the client's response.
        """
        client = client_socket(environ)
        if client is None:
            raise Refusal(_UNSUPPORTED, "the server does not hand out the client's socket")
        key = check_request(environ)
        if _sent_ahead(environ):
            raise Refusal.of(400, "Malformed WebSocket handshake.", "bytes follow the handshake")
        lend: Callable[[], Callable[[], None]] | None = environ.get(LEND_THREAD)
        meter = self._attempts.meter
        if not self._tunnels.enter(lend is not None):
            meter.websocket(opened=False)
            raise Refusal(_TOO_MANY, "this process has reached its limit of WebSockets")
        with ExitStack() as held:
            held.callback(self._tunnels.leave)
            response, request, lease = self._attempts.run(environ, watch)
            if response.status_code != 101:
                return self._responses.respond(
                    response, request, lease.instance, lease.release, watch, environ, start_response
                )
            held.callback(lease.release)
            try:
                upstream, received, first = _take_over(response)
                held.callback(upstream.close)
                protocols = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "")
                extensions = environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", "")
                headers = check_response(received, key, protocols, extensions)
            except BadHandshake as error:
                lease.release(error)
                raise Refusal(_BAD, f"the handshake failed: {error}") from error
            headers = self._responses.own_fields(headers, request, lease.instance)
            if lease.slot is not None:
                lease.slot.tunnelled(lend is not None)
            watch.close()  # the tunnel itself notices when an end closes
            start_response("101 Switching Protocols", headers)
            if lend is not None:
                held.callback(lend())
            meter.websocket(opened=True)
            meter.websockets(1)
            held.callback(meter.websockets, -1)
            done = held.pop_all().close
            return _Tunnel(environ, client, upstream, first, self._limits, self._tunnels, done)


def _take_over(response: requests.Response) -> tuple[Connection, Headers, bytes]:
    """Return the connection of a 101, its fields, and the bytes received after it."""
    raw = response.raw
    if raw.version != 11:
        response.close()
        raise BadHandshake("a 101 of HTTP/1.0")
    if not isinstance(raw, RawResponse):
        response.close()
        raise Refusal(_UNSUPPORTED, "the session's adapter does not hand out its connections")
    connection, first = raw.take_over()
    return connection, raw.headers.items(), first


class _Tunnel:
    """The response body that runs the tunnel."""

    def __init__(
        self,
        environ: WSGIEnvironment,
        client: socket.socket,
        upstream: Connection,
        first: bytes,
        limits: WebSocketLimits,
        tunnels: Tunnels,
        done: Callable[[], object],
    ) -> None:
        self._environ = environ
        self._client = client
        self._upstream = upstream
        self._first = first
        self._limits = limits
        self._tunnels = tunnels
        self._done: Callable[[], object] | None = done

    def __iter__(self) -> Iterator[bytes]:
        yield b""
        self._environ[TUNNELLED] = relay(
            self._client,
            self._upstream.sock,
            idle_timeout=self._limits.idle_timeout,
            first=self._first,
            end_at=lambda: self._tunnels.end_at,
        )

    def close(self) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        _hang_up(self._client)
        done()


def _hang_up(client: socket.socket) -> None:
    try:
        # Not SSLSocket.shutdown(), after which the server could not close the socket.
        socket.socket.shutdown(client, socket.SHUT_RDWR)
    except OSError:
        pass


def _sent_ahead(environ: WSGIEnvironment) -> bool:
    """Return whether gunicorn has read bytes beyond the handshake; a client must not send any."""
    if READ_AHEAD in environ:
        return True
    reader = getattr(getattr(environ.get("wsgi.input"), "reader", None), "unreader", None)
    held = getattr(reader, "buf", None)
    return held is not None and bool(held.getvalue())
