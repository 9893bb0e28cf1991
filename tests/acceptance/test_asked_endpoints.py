"""Two workers that ask other servers about requests: revocation, outages, and smuggled fields."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import requests

from tests.support.sockets import read_to_end
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, Received, reply

Serve = Callable[..., Any]

TOKEN = "k3x9-opaque-token"

INTROSPECTION = """
[gateway]
name = "asked"
threads = 4
[admin]
[[routes]]
path = "/open"
app = "wsgiref.simple_server:demo_app"
[[routes]]
path = "/closed"
app = "wsgiref.simple_server:demo_app"
[[routes.middleware]]
use = "introspection"
endpoint = "{url}/introspect"
client_id = "gate"
client_secret = "s3cret"
cache = "500ms"
inactive_cache = "200ms"
timeout = "1s"
max_concurrent = 2
"""


class AuthorizationServer(Backend):
    """Knows one token, and hangs on demand."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.active = {TOKEN}
        self.hangs = False
        self.release = threading.Event()

    def _answer(self, connection: socket.socket, request: Received) -> bool | None:
        if self.hangs:
            self.release.wait(60)
            return False
        token = parse_qs(request.body.decode())["token"][0]
        document = json.dumps({"active": token in self.active, "sub": "ann"}).encode()
        connection.sendall(reply(document, fields=[("Content-Type", "application/json")]))
        return None


def ask(url: str, token: str | None = None) -> int:
    """Send one request over a connection of its own, which any worker may accept."""
    fields = {"Connection": "close"}
    if token is not None:
        fields["Authorization"] = f"Bearer {token}"
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, headers=fields, timeout=20).status_code


def test_workers_follow_the_authorization_server(serve: Serve) -> None:
    with AuthorizationServer() as server:
        gateway = serve(INTROSPECTION.format(url=server.url), workers=2)
        closed, free = f"{gateway.url}/closed", f"{gateway.url}/open"
        assert {ask(closed, TOKEN) for _ in range(8)} == {200}
        assert {ask(closed, "bad") for _ in range(4)} == {401}
        assert ask(closed) == 401

        server.active.clear()
        until(lambda: [ask(closed, TOKEN) for _ in range(8)] == [401] * 8)  # revoked everywhere

        server.hangs = True
        clients = [threading.Thread(target=ask, args=(closed, f"t{n}")) for n in range(8)]
        for client in clients:
            client.start()
        assert {ask(free) for _ in range(8)} == {200}, "other routes are served meanwhile"
        for client in clients:
            client.join(60)
        assert ask(closed, "another") == 503

        server.active.add(TOKEN)
        server.hangs = False
        server.release.set()
        until(lambda: [ask(closed, TOKEN) for _ in range(8)] == [200] * 8)
        assert "s3cret" not in gateway.log
        assert TOKEN not in gateway.log


FORWARD_AUTH = """
[gateway]
name = "decided"
threads = 4
[services.orders]
instances = ["{backend}"]
[[routes]]
path = "/"
service = "orders"
[[routes.middleware]]
use = "forward-auth"
address = "{service}/verify"
auth_response_headers = ["Remote-User", "X-Forwarded-User"]
header_field = "Remote-User"
"""


def decide(connection: socket.socket, request: Received) -> None:
    """Let those with a session pass, and redirect others to a login."""
    if request.value("Cookie") == "session=ann":
        fields = [("Remote-User", "ann"), ("X-Forwarded-User", "ann")]
        connection.sendall(reply(fields=fields))
    else:
        target = request.value("X-Forwarded-Uri")
        fields = [("Location", f"/login?rd={target}"), ("Set-Cookie", "csrf=1")]
        connection.sendall(reply(b"sign in", status="302 Found", fields=fields))


def exchange(port: int, *lines: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        return read_to_end(connection)


def test_a_service_decides_about_requests_and_no_field_is_smuggled(serve: Serve) -> None:
    with Backend(decide) as service, Backend() as backend:
        gateway = serve(FORWARD_AUTH.format(service=service.url, backend=backend.url), workers=2)
        port = int(gateway.url.rpartition(":")[2])
        head = ("GET /orders?a=1 HTTP/1.1", "Host: shop.example")
        answer = exchange(port, *head, "Connection: close")
        assert answer.startswith(b"HTTP/1.1 302 ")
        assert b"Location: /login?rd=/orders?a=1\r\n" in answer
        assert b"Set-Cookie: csrf=1\r\n" in answer
        assert answer.endswith(b"sign in")
        assert backend.requests == []

        smuggled = ("Remote-User: root", "remote_user: root", "X-Forwarded-User: root")
        names = "Connection: close, remote-user, x-forwarded-user, cookie"
        for extra in ((), *((field,) for field in smuggled)):
            answer = exchange(port, *head, "Cookie: session=ann", names, *extra)
            if answer.startswith(b"HTTP/1.1 400 "):  # the server rejects names with underscores
                assert "_" in extra[0]
                continue
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            request = backend.requests[-1]
            assert request.value("Remote-User") == "ann"
            assert request.value("X-Forwarded-User") == "ann"
            assert b"root" not in request.head
        for request in service.requests:
            assert b"root" not in request.head
