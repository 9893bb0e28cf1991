"""WebSockets through the forwarder: the same rules as for other requests."""

from __future__ import annotations

import base64
import hashlib
import io
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from tests.support.certificates import make_certificate
from tests.support.ports import refused_port
from tests.support.sockets import read_to_end
from wsgigate.client.adapter import Sessions, gateway_session
from wsgigate.discovery import Instance
from wsgigate.http.fields import FieldRules
from wsgigate.http.wsgi import REASON
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.disconnect import Disconnects
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.websocket import Tunnels
from wsgigate.rules.retry import RetryRules
from wsgigate.testing.backend import Backend, Received, cut, reply
from wsgigate.testing.fakes import Server, new_environ

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
ACCEPT = base64.b64encode(hashlib.sha1(f"{KEY}{GUID}".encode()).digest()).decode()
SWITCHED = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
).encode()


def echo(connection: socket.socket, _request: Received) -> bool:
    """Open a WebSocket, say hello with the same breath, and send back what comes."""
    connection.sendall(SWITCHED + b"hello ")
    while data := connection.recv(4096):
        connection.sendall(data)
    return False


class Gateway:
    """A forwarder that is asked for a WebSocket, with the client's socket at hand as servers do.

    :ivar client: The client's end of it.
    """

    def __init__(self, *urls: str, sessions: Sessions, **options: Any) -> None:
        instances = [Instance(url) for url in urls]
        self.pool = Pool("svc", instances, balance="round-robin", random=lambda: 0.0)
        self.sessions = sessions
        self.client, self._served = socket.socketpair()
        self.client.settimeout(30)
        self.app = Forwarder(self.pool, sessions=sessions, websocket=True, **options)

    def environ(self) -> dict[str, Any]:
        """Return the environ of a handshake."""
        return {
            **new_environ(),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_UPGRADE": "websocket",
            "HTTP_CONNECTION": "Upgrade",
            "HTTP_SEC_WEBSOCKET_KEY": KEY,
            "HTTP_SEC_WEBSOCKET_VERSION": "13",
            "gunicorn.socket": self._served,
        }

    def ask(self, send: bytes = b"", **changes: str) -> Server:
        """Return the response to a handshake; a client with a WebSocket sends *send* and leaves.

        It stays until it has the whole of any other response: that of a client that has left is
        aborted.
        """
        environ = self.environ() | changes
        server = Server()
        body = self.app(environ, server.start_response)
        if server.status.startswith("101"):
            self.client.sendall(send)
            self.client.shutdown(socket.SHUT_WR)
        server.chunks = list(body)
        getattr(body, "close", lambda: None)()
        return server

    def got(self) -> bytes:
        """Return all that the client has been sent through the tunnel."""
        return read_to_end(self.client)

    def close(self) -> None:
        for end in (self.client, self._served):
            end.close()
        self.sessions.close()


Through = Callable[..., Gateway]


@pytest.fixture
def through() -> Iterator[Through]:
    made: list[Gateway] = []

    def make(*urls: str, sessions: Sessions | None = None, **options: Any) -> Gateway:
        made.append(Gateway(*urls, sessions=sessions or Sessions(), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_bytes_pass_both_ways_and_everything_is_released(
    backend: Backend, through: Through
) -> None:
    backend.answers = [echo]
    disconnects, tunnels = Disconnects(), Tunnels(1)
    gateway = through(backend.url, disconnects=disconnects, tunnels=tunnels)
    assert gateway.ask(b"ping").status == "101 Switching Protocols"
    assert gateway.got().startswith(b"hello ")
    asked = backend.requests[0]
    assert (asked.values("upgrade"), asked.values("connection")) == (["websocket"], ["Upgrade"])
    adapter: Any = gateway.sessions.adapter(backend.url)
    assert adapter.pools()[backend.url].open_connections == 0
    assert gateway.pool.in_flight() == {backend.url: 0}
    assert (disconnects.watched, tunnels.open) == (0, 0)


def test_an_instance_that_refuses_the_connection_is_skipped(
    backend: Backend, through: Through
) -> None:
    backend.answers = [echo]
    with refused_port() as port:
        dead = f"http://127.0.0.1:{port}"
        gateway = through(dead, backend.url)
        assert gateway.ask().status == "101 Switching Protocols"
        assert gateway.pool.in_flight() == {dead: 0, backend.url: 0}


def test_the_number_of_websockets_is_limited(backend: Backend, through: Through) -> None:
    backend.answers = [echo]
    tunnels = Tunnels(1)
    open_one, other = (through(backend.url, tunnels=tunnels) for _ in range(2))
    body: Any = open_one.app(open_one.environ(), Server().start_response)
    assert other.ask().status == "503 Service Unavailable"
    assert len(backend.requests) == 1
    body.close()
    assert tunnels.open == 0
    assert open_one.client.recv(1) == b""


def test_a_websocket_ends_when_the_process_stops(backend: Backend, through: Through) -> None:
    backend.answers = [echo]
    tunnels = Tunnels(1, grace=0.0)
    gateway = through(backend.url, tunnels=tunnels)
    body: Any = gateway.app(gateway.environ(), Server().start_response)
    tunnels.stop()
    assert list(body) == [b""]
    body.close()


def test_the_response_fields_of_the_handshake_are_changed(
    backend: Backend, through: Through
) -> None:
    backend.answers = [echo]
    gateway = through(backend.url, response_fields=FieldRules(set={"X-Shop": "yes"}))
    assert ("X-Shop", "yes") in gateway.ask().headers


def test_data_sent_before_the_handshake_response_is_rejected(
    backend: Backend, through: Through
) -> None:
    """What gunicorn has read of it already is not in the socket any more."""
    gateway = through(backend.url)
    unreader = SimpleNamespace(buf=io.BytesIO(b"ping"))
    body = SimpleNamespace(reader=SimpleNamespace(unreader=unreader))
    environ = gateway.environ() | {"wsgi.input": body}
    answer = Server()
    gateway.app(environ, answer.start_response)
    assert answer.status == "400 Bad Request"
    assert backend.requests == []


def test_a_disconnect_before_the_handshake_response_closes_the_upstream_connection(
    through: Through,
) -> None:
    def silent(connection: socket.socket, _request: Received) -> bool:
        gateway.client.close()
        return connection.recv(1) != b""  # until the gateway lets go

    with Backend(silent) as backend:
        gateway = through(backend.url, disconnects=Disconnects(tick=0.001))
        environ = gateway.environ()
        gateway.app(environ, Server().start_response)
        assert environ[REASON] == "the client has disconnected"
        backend.wait_until_closed()
        assert gateway.pool.in_flight() == {backend.url: 0}


def test_a_forbidden_address_is_never_connected_to(backend: Backend, through: Through) -> None:
    """A name that was allowed when it was found may mean another address by now."""

    def check(address: object, port: int) -> None:
        raise ValueError(f"{address} is not for instances")

    sessions = Sessions(partial(gateway_session, check=check))
    assert through(backend.url, sessions=sessions).ask().status == "503 Service Unavailable"
    assert backend.requests == []


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path, "shop.test")


def test_the_certificate_is_verified(certificate: Path, through: Through) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Backend(echo, tls=partial(context.wrap_socket, server_side=True)) as backend:
        url = backend.url.replace("http:", "https:")
        named = Sessions(partial(gateway_session, server_name="shop.test"))
        gateway = through(url, sessions=named, verify=str(certificate))
        assert gateway.ask(b"ping").status == "101 Switching Protocols"
        assert gateway.got().startswith(b"hello ")
        assert through(url, verify=str(certificate)).ask().status == "502 Bad Gateway"
        empty = certificate.parent / "authorities"  # may be a folder, as for other requests
        empty.mkdir()
        assert through(url, sessions=named, verify=str(empty)).ask().status == "502 Bad Gateway"
        assert len(backend.requests) == 1


def test_an_instance_at_a_unix_socket_can_open_a_websocket(
    tmp_path: Path, through: Through
) -> None:
    with Backend(echo, unix=str(tmp_path / "s")) as backend:
        gateway = through(backend.url)
        assert gateway.ask(b"ping").status == "101 Switching Protocols"
        assert gateway.got().startswith(b"hello ")


def test_no_field_of_the_client_is_split_into_two(backend: Backend, through: Through) -> None:
    backend.answers = [echo]
    gateway = through(backend.url)
    assert gateway.ask(HTTP_VIA="1.1 a\r\nX-User-Id: root").status == "502 Bad Gateway"
    assert backend.requests == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (reply(b"no", status="400 Bad Request"), "400 Bad Request"),
        (cut(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\n123456789"), "403 Forbidden"),
        (b"HTTP/1.1 403 Forbidden\r\nBad Name: x\r\n\r\n", "502 Bad Gateway"),
        (SWITCHED.replace(b"HTTP/1.1", b"HTTP/1.0"), "502 Bad Gateway"),
        (SWITCHED.replace(b"websocket", b"h2c"), "502 Bad Gateway"),
        (SWITCHED.replace(b"Connection:", b"X: a\nConnection:"), "502 Bad Gateway"),
        (b"101\r\n\r\n", "502 Bad Gateway"),
        (cut(SWITCHED[:-2]), "502 Bad Gateway"),
        (cut(b""), "502 Bad Gateway"),
    ],
)
def test_an_invalid_handshake_response_is_reported(
    backend: Backend, through: Through, answer: Any, status: str
) -> None:
    backend.answers = [answer]
    tunnels = Tunnels(1)
    gateway = through(backend.url, tunnels=tunnels)
    assert gateway.ask().status == status
    assert tunnels.open == 0
    adapter: Any = gateway.sessions.adapter(backend.url)
    pool = adapter.pools()[backend.url]
    assert pool.open_connections == pool.idle_connections
    assert gateway.pool.in_flight() == {backend.url: 0}


@pytest.mark.parametrize("given", [dict, lambda: {"resilience": Resilience(retry=RetryRules())}])
@pytest.mark.parametrize(
    ("status", "fields", "expected"),
    [
        ("200 OK", "", []),
        ("401 Unauthorized", "WWW-Authenticate: Bearer", [("WWW-Authenticate", "Bearer")]),
        ("302 Found", "Location: {url}/login", [("Location", "/login")]),
        ("307 Temporary Redirect", "Location: /there", [("Location", "/there")]),
        ("403 Forbidden", "X-Why: a\r\nX-Why: b", [("X-Why", "a"), ("X-Why", "b")]),
        (
            "426 Upgrade Required",
            "Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\nConnection: Upgrade",
            [
                ("Sec-WebSocket-Version", "13"),
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade"),
            ],
        ),
        ("429 Too Many Requests", "Retry-After: 9", [("Retry-After", "9")]),
        (
            "503 Service Unavailable",
            "Retry-After: 7\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2; Path=/",
            [("Retry-After", "7"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2; Path=/")],
        ),
        ("500 Internal Server Error", "Upgrade: h2c", []),
    ],
)
def test_a_rejection_by_the_service_is_passed_on(
    backend: Backend, through: Through, status: str, fields: str, expected: Any, given: Any
) -> None:
    body = f"why: {status}".encode() * 9000  # more than comes with the head
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n"
    fields = fields.format(url=backend.url)
    backend.answers = [head.encode() + fields.encode() + b"\r\n" * (1 + bool(fields)) + body]
    tunnels = Tunnels(1)
    gateway = through(backend.url, tunnels=tunnels, **given())
    response = gateway.ask()
    assert response.status == status
    assert sorted(response.headers) == sorted([("Content-Length", str(len(body))), *expected])
    assert b"".join(response.chunks) == body
    assert tunnels.open == 0
    assert gateway.pool.in_flight() == {backend.url: 0}


def test_cookies_of_the_handshake_are_rewritten_to_the_clients_view(
    backend: Backend, through: Through
) -> None:
    cookie = b"\r\nSet-Cookie: a=1; Path=/inside"
    backend.answers = [SWITCHED[:-4] + cookie + b"\r\n\r\n"]
    gateway = through(backend.url, strip_prefix="/outside", add_prefix="/inside")
    response = gateway.ask(RAW_URI="/outside/ws", PATH_INFO="/outside/ws")
    assert ("Set-Cookie", "a=1; Path=/outside") in response.headers


def test_an_adapter_that_cannot_hand_over_its_connection_opens_no_websocket(
    backend: Backend, through: Through
) -> None:
    backend.answers = [echo]
    gateway = through(backend.url, sessions=Sessions(requests.Session))
    assert gateway.ask().status == "501 Not Implemented"
