"""WebSockets: a handshake passed on, and after it a tunnel where the server hands out its socket.

gunicorn's threaded and gevent workers and werkzeug's server do. The response is an ordinary one of
WSGI, with the status 101: its first chunk is empty, which has the server send the head, and asking
for the second is what runs the tunnel. So every middleware sees its beginning and its end. The
socket is shut down then, from which the server learns that no other request comes by it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from wsgiref.types import StartResponse, WSGIEnvironment

import requests

from wsgigate.problem import Problem, Refusal
from wsgigate.proxy.connection import Connection
from wsgigate.proxy.departure import Departure, client_socket
from wsgigate.proxy.handshake import BadHandshake, check_request, read_answer
from wsgigate.proxy.pool import Lease
from wsgigate.proxy.reply import RawResponse
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.response import ResponseMaker
from wsgigate.proxy.sender import Sender
from wsgigate.proxy.tunnel import Tunnels, relay
from wsgigate.rules.arguments import checked
from wsgigate.wsgi import TUNNELLED, Headers

__all__ = ["Upgrader", "WebSocketLimits"]

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
        departure: Departure,
        lease: Lease,
    ) -> Iterable[bytes] | requests.Response:
        """Open a WebSocket to the instance that *request* is for.

        :returns: The body that is the WebSocket; or the instance's response, its body unread, when
            it opens none: the client gets that as it is.

        :param departure: Tells whether the client has left; closed here once it is open.
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
            response = self._ask(request, departure)
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
            departure.close()  # the tunnel sees by itself when an end leaves
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

    def _ask(self, request: Outgoing, departure: Departure) -> requests.Response:
        """Return the instance's response to the handshake."""
        request.headers.update({"Connection": "Upgrade", "Upgrade": "websocket"})
        request.upgrade = True
        return self._sender.send(request, departure)


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
