"""WebSockets: a handshake passed on, and after it a tunnel where the server hands out its socket.

gunicorn's threaded and gevent workers and werkzeug's server do. The response is an ordinary one of
WSGI, with the status 101: its first chunk is empty, which has the server send the head, and asking
for the second is what runs the tunnel. So every middleware sees its beginning and its end. The
socket is shut down then, from which the server learns that no other request comes by it.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIEnvironment

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from wsgigate.discovery import Instance
from wsgigate.fields import FieldRules
from wsgigate.problem import Problem, Refusal
from wsgigate.proxy.departure import client_socket
from wsgigate.proxy.handshake import LONGEST_HEAD, BadHandshake, check_request, read_answer
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.tunnel import Tunnels, relay
from wsgigate.wsgi import TUNNELLED

__all__ = ["Upgrader", "WebSocketLimits"]

_UNSUPPORTED = Problem(501, "WebSockets are not supported here.")
_TOO_MANY = Problem(503, "Too many WebSockets.", headers=(("Retry-After", "5"),))
_DOWN = Problem(
    503,
    "Service unavailable",
    extensions={"error": "Connection refused"},
    headers=(("Retry-After", "1"),),
)
_LATE = Problem(504, "Service timeout", extensions={"error": "Request timeout"})
_BAD = Problem(502, "Bad gateway", extensions={"error": "Invalid response"})


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
    :param fields: Changes to the fields of the response.
    :param connect_timeout: Seconds to wait for a connection.
    :param timeout: Seconds to wait for the answer to the handshake.
    :param verify: As a :class:`~wsgigate.proxy.forwarder.Forwarder` has it; so is *cert*.
    """

    def __init__(
        self,
        limits: WebSocketLimits,
        tunnels: Tunnels,
        *,
        fields: FieldRules | None,
        connect_timeout: float,
        timeout: float,
        verify: bool | str,
        cert: str | tuple[str, str] | None,
    ) -> None:
        self._limits = limits
        self._tunnels = tunnels
        self._fields = fields or None
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._tls = (verify, cert)
        self._context: ssl.SSLContext | None = None

    def __call__(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        request: Outgoing,
        instance: Instance,
        done: Callable[[], object],
    ) -> Iterable[bytes]:
        """Open a WebSocket to *instance*.

        :param done: Called once, at its end; not when it could not be opened.
        :raises Refusal: It can not be opened; carries the answer.
        """
        client = client_socket(environ)
        if client is None:
            raise Refusal(_UNSUPPORTED, "the server does not hand out the client's socket")
        key = check_request(environ)
        if _sent_ahead(environ):
            raise Refusal.of(400, "Malformed WebSocket handshake.", "bytes behind the handshake")
        if not self._tunnels.enter():
            raise Refusal(_TOO_MANY, "as many WebSockets as this process may have")
        upstream = None
        try:
            upstream, head, first = self._ask(instance, request)
            asked = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "")
            extensions = environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", "")
            headers = read_answer(head, key, asked, extensions)
            if self._fields is not None:
                headers = self._fields.apply(headers)
            start_response("101 Switching Protocols", headers)
            return _Tunnel(environ, client, upstream, first, self._limits, self._tunnels, done)
        except BaseException as error:
            self._tunnels.leave()
            if upstream is not None:
                upstream.close()
            if isinstance(error, BadHandshake):
                refused = 400 <= error.status <= 599
                problem = Problem(error.status) if refused else _BAD
                raise Refusal(problem, f"the handshake failed: {error}") from error
            raise

    def _ask(self, instance: Instance, request: Outgoing) -> tuple[socket.socket, bytes, bytes]:
        if instance.scheme == "https" and self._context is None:
            self._context = _tls_context(*self._tls)
        context = self._context if instance.scheme == "https" else None
        try:
            return _handshake(
                instance,
                request,
                connect_timeout=self._connect_timeout,
                timeout=self._timeout,
                context=context,
            )
        except ConnectionRefusedError as error:
            raise Refusal(_DOWN, f"{type(error).__name__}: {error}") from error
        except TimeoutError as error:
            raise Refusal(_LATE, f"{type(error).__name__}: {error}") from error
        except OSError as error:
            raise Refusal(_BAD, f"{type(error).__name__}: {error}") from error


class _Tunnel:
    """The body of a response that has become a tunnel."""

    def __init__(
        self,
        environ: WSGIEnvironment,
        client: socket.socket,
        upstream: socket.socket,
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
            self._upstream,
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


def _handshake(
    instance: Instance,
    request: Outgoing,
    *,
    connect_timeout: float,
    timeout: float,
    context: ssl.SSLContext | None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[socket.socket, bytes, bytes]:
    """Send a handshake; return the socket, the head of the answer, and what came behind it.

    :param timeout: Seconds for the whole of the answer's head.
    :raises OSError: The instance can not be reached, or does not answer in time.
    :raises BadHandshake: It answers with more than a head can be, or closes before its end.
    """
    parts = urlsplit(instance.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    upstream = socket.create_connection((host, port), connect_timeout)
    try:
        if context is not None:
            upstream = context.wrap_socket(upstream, server_hostname=host)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ends = clock() + timeout
        lines = [f"{request.method} {request.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        lines += ["Connection: Upgrade", "Upgrade: websocket", "", ""]
        upstream.sendall("\r\n".join(lines).encode("latin-1"))
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            left = ends - clock()
            if left <= 0:
                raise TimeoutError("the handshake was not answered in time")
            upstream.settimeout(left)
            block = upstream.recv(4096)
            if not block or len(data) > LONGEST_HEAD:
                raise BadHandshake("no answer to the handshake")
            data += block
        return upstream, data[: end + 4], data[end + 4 :]
    except BaseException:
        upstream.close()
        raise


def _tls_context(verify: bool | str, cert: str | tuple[str, str] | None) -> ssl.SSLContext:
    """Return what speaks TLS as ``requests`` would with the same settings."""
    context = ssl.create_default_context()
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif isinstance(verify, str):
        context = ssl.create_default_context(cafile=verify)
    else:
        context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    if cert is not None:
        context.load_cert_chain(*((cert,) if isinstance(cert, str) else cert))
    return context


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
