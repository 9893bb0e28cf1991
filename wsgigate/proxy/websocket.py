"""WebSockets: a handshake passed on, and after it a tunnel where the server hands out its socket.

gunicorn's threaded and gevent workers and werkzeug's server do. The response is an ordinary one of
WSGI, with the status 101: its first chunk is empty, which has the server send the head, and asking
for the second is what runs the tunnel. So every middleware sees its beginning and its end. The
socket is shut down then, from which the server learns that no other request comes by it.
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
from dataclasses import dataclass
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import requests

from wsgigate.client.connections import Connection
from wsgigate.client.response import RawResponse
from wsgigate.http.fields import HOP_BY_HOP, connection_tokens, is_field_value, is_token
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.wsgi import TUNNELLED, Headers
from wsgigate.proxy.disconnect import ClientWatch, client_socket
from wsgigate.proxy.pool import InstanceLease
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.response import ResponseMaker
from wsgigate.proxy.send import Sender
from wsgigate.rules.arguments import checked
from wsgigate.runtime import fork
from wsgigate.runtime.clocks import real

__all__ = [
    "BadHandshake",
    "Tunnels",
    "Upgrader",
    "WebSocketLimits",
    "asks_for_websocket",
    "check_request",
    "read_answer",
    "relay",
]


# The opening handshake of a WebSocket, both sides of it: text in, text out (RFC 6455, 4).

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_KEPT = frozenset(("sec-websocket-accept", "sec-websocket-protocol", "sec-websocket-extensions"))

_DROPPED = HOP_BY_HOP | {"content-length"}


class BadHandshake(Exception):
    """The instance's 101 opens no WebSocket."""


def asks_for_websocket(environ: WSGIEnvironment) -> bool:
    """Return whether the request asks to become a WebSocket."""
    if "websocket" not in environ.get("HTTP_UPGRADE", "").lower():
        return False
    try:
        return "upgrade" in connection_tokens(environ.get("HTTP_CONNECTION", ""))
    except ValueError:
        return False


def check_request(environ: WSGIEnvironment) -> str:
    """Return the key of a client's handshake.

    :raises Refusal: It is none; carries the answer.
    """
    if environ["REQUEST_METHOD"] != "GET" or environ.get("SERVER_PROTOCOL") != "HTTP/1.1":
        raise Refusal.of(400, "Malformed WebSocket handshake.", "not a GET of HTTP/1.1")
    if environ["HTTP_UPGRADE"].strip().lower() != "websocket":
        raise Refusal.of(400, "Malformed WebSocket handshake.", "another protocol in Upgrade")
    if environ.get("CONTENT_LENGTH", "0") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ:
        raise Refusal.of(400, "Malformed WebSocket handshake.", "a body")
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


def read_answer(answer: Headers, key: str, protocols: str, extensions: str) -> Headers:
    """Return the fields for the client, of an instance's 101 that opens a WebSocket.

    :param answer: The fields of the instance's.
    :param key: The client's key, which the answer must have understood.
    :param protocols: What the client asked for in ``Sec-WebSocket-Protocol``.
    :param extensions: What it asked for in ``Sec-WebSocket-Extensions``.
    :raises BadHandshake: It opens none; says why.
    """
    fields = [(name, value.strip(" \t")) for name, value in answer]
    if not all(is_token(name) and is_field_value(value) for name, value in fields):
        raise BadHandshake("a malformed field")

    def values(wanted: str) -> list[str]:
        return [value for name, value in fields if name.lower() == wanted]

    if [value.lower() for value in values("upgrade")] != ["websocket"]:
        raise BadHandshake("an upgrade to something else")
    try:
        named = frozenset().union(*map(connection_tokens, values("connection")))
    except ValueError as error:
        raise BadHandshake(str(error)) from None
    if "upgrade" not in named:
        raise BadHandshake("no upgrade in Connection")
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    if values("sec-websocket-accept") != [base64.b64encode(digest).decode()]:
        raise BadHandshake("a wrong Sec-WebSocket-Accept")
    _check_chosen(values("sec-websocket-protocol"), protocols)
    if values("sec-websocket-extensions") and not extensions:
        raise BadHandshake("an extension that was not asked for")
    dropped = _DROPPED | (named - _KEPT)
    return [
        *(field for field in fields if field[0].lower() not in dropped),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
    ]


def _check_chosen(chosen: Sequence[str], asked: str) -> None:
    offered = [each.strip() for each in asked.split(",")]
    if len(chosen) > 1 or (chosen and chosen[0] not in offered):
        raise BadHandshake("a protocol that was not asked for")


# Bytes both ways between two sockets, and how many threads of a process do that at a time.

BLOCK = 65536

TICK = 1.0
"""Seconds after which a silent tunnel sees that it is to end."""

_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Tunnels:
    """How many tunnels a process has, and whether they are to end.

    :param most: How many there may be: each holds a thread for as long as it lasts.
    :param grace: Seconds that they go on for once they are told to end.
    :raises ValueError: *most* is negative.
    """

    def __init__(self, most: int = 8, *, grace: float = 5.0) -> None:
        if most < 0:
            raise ValueError(f"the number of tunnels is 0 or more, got {most}")
        self._most = most
        self._grace = grace
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Have none: those of a parent are not its child's."""
        self._lock = threading.Lock()
        self.open = 0
        self.end_at = float("inf")

    def enter(self) -> bool:
        """Count one more in, unless there are as many as there may be, or they are to end."""
        with self._lock:
            if self.open >= self._most or self.end_at < float("inf"):
                return False
            self.open += 1
            return True

    def leave(self) -> None:
        """Count one out."""
        with self._lock:
            self.open -= 1

    def stop(self) -> None:
        """Have all of them end soon, and no other begin; does not wait."""
        self.end_at = real() + self._grace


class _Way:
    """What goes one way, read only as fast as it is taken."""

    __slots__ = ("closed", "held", "moved", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket, first: bytes) -> None:
        self.source = source
        self.sink = sink
        self.held = memoryview(first)
        self.moved = 0
        self.closed = False

    def move(self) -> bool:
        """Move what can be moved without waiting; return whether anything was."""
        moved = False
        while True:
            if self.held:
                try:
                    sent = self.sink.send(self.held)
                except _LATER:
                    return moved
                self.held = self.held[sent:]
                self.moved += sent
                moved = True
                continue
            if self.closed:
                return moved
            try:
                data = self.source.recv(BLOCK)
            except _LATER:
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
    """Move bytes both ways until either end closes; return how many went up and down.

    :param idle_timeout: Seconds without a byte either way after which it ends.
    :param first: What the upstream has said already.
    :param end_at: When it ends in any case, by *clock*.
    """
    client.setblocking(False)
    upstream.setblocking(False)
    up, down = _Way(client, upstream, b""), _Way(upstream, client, first)
    idle_at = clock() + idle_timeout
    try:
        with selector() as ready:
            for end in (client, upstream):
                ready.register(end, selectors.EVENT_READ)
            while True:
                # Both are always tried: TLS may hold what no selector sees.
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
                    _want(ready, end, wanted)
                ready.select(min(left, TICK))
    except OSError:
        pass  # one end is gone
    return up.moved, down.moved


def _want(ready: Any, end: socket.socket, wanted: int) -> None:
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
    """What the WebSockets of a route may take.

    :param idle_timeout: Seconds without a byte either way after which one is closed.
    :raises ValueError: It is not above 0.
    """

    idle_timeout: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.idle_timeout < float("inf"):
            raise ValueError(
                f"idle_timeout is a number of seconds above 0, got {self.idle_timeout}"
            )


class Upgrader:
    """Opens WebSockets for a route.

    :param limits: What they may take.
    :param tunnels: Counts those of the process.
    :param sender: Sends the handshake, by the same rules as any other request.
    :param responses: Makes the fields that an instance sends those that the client gets.
    """

    def __init__(
        self,
        limits: WebSocketLimits,
        tunnels: Tunnels,
        sender: Sender,
        responses: ResponseMaker,
    ) -> None:
        self._limits = limits
        self._tunnels = tunnels
        self._sender = sender
        self._responses = responses

    def __call__(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        request: Outgoing,
        watch: ClientWatch,
        lease: InstanceLease,
    ) -> Iterable[bytes] | requests.Response:
        """Open a WebSocket to the instance that *request* is for.

        :returns: The body that is the WebSocket; or the instance's response, its body unread, when
            it opens none: the client gets that as it is.

        :param watch: Tells whether the client has left; closed here once it is open.
        :param lease: Released at its end; not when it could not be opened.
        :raises Refusal: It cannot be opened; carries the answer.
        """
        client = client_socket(environ)
        if client is None:
            raise Refusal(_UNSUPPORTED, "the server does not hand out the client's socket")
        key = check_request(environ)
        if _sent_ahead(environ):
            raise Refusal.of(400, "Malformed WebSocket handshake.", "bytes behind the handshake")
        if not self._tunnels.enter():
            raise Refusal(_TOO_MANY, "as many WebSockets as this process may have")
        upstream: Connection | None = None
        try:
            response = self._ask(request, watch)
            if response.status_code != 101:
                self._tunnels.leave()
                return response
            upstream, answer, first = _taken_over(response)
            asked = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "")
            extensions = environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", "")
            headers = read_answer(answer, key, asked, extensions)
            headers = self._responses.own_fields(headers, request, lease.instance)
            if lease.place is not None:
                lease.place.tunnelled()
            watch.close()  # the tunnel sees by itself when an end leaves
            start_response("101 Switching Protocols", headers)
            return _Tunnel(
                environ, client, upstream, first, self._limits, self._tunnels, lease.release
            )
        except BaseException as error:
            self._tunnels.leave()
            if upstream is not None:
                upstream.close()
            if isinstance(error, BadHandshake):
                raise Refusal(_BAD, f"the handshake failed: {error}") from error
            raise

    def _ask(self, request: Outgoing, watch: ClientWatch) -> requests.Response:
        """Return the instance's response to the handshake."""
        request.headers.update({"Connection": "Upgrade", "Upgrade": "websocket"})
        request.upgrade = True
        return self._sender.send(request, watch)


def _taken_over(response: requests.Response) -> tuple[Connection, Headers, bytes]:
    """Return the connection of a 101, its fields, and what came behind it."""
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
    """The body of a response that has become a tunnel."""

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
        try:
            self._upstream.close()
            _hang_up(self._client)
            self._tunnels.leave()
        finally:
            done()


def _hang_up(client: socket.socket) -> None:
    try:
        # Not SSLSocket.shutdown(), after which the server's own closing would fail.
        socket.socket.shutdown(client, socket.SHUT_RDWR)
    except OSError:
        pass


def _sent_ahead(environ: WSGIEnvironment) -> bool:
    """Return whether gunicorn has read more than the request, whose client is to wait for it."""
    reader = getattr(getattr(environ.get("wsgi.input"), "reader", None), "unreader", None)
    held = getattr(reader, "buf", None)
    return held is not None and bool(held.getvalue())
