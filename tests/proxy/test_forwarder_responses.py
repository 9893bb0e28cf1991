"""Responses of instances as clients get them: fields, streamed bodies, and failures.

Ids such as G33 are those of a catalogue of attacks and faults.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from tests.proxy.clients import ServiceClient
from tests.support.ports import free_port
from wsgigate.client.adapter import Sessions
from wsgigate.http.wsgi import close_body
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.response import UpstreamCut
from wsgigate.testing.backend import Backend, Received, cut, reply

Forward = Callable[..., ServiceClient]


def test_several_cookies_stay_several_and_in_order(backend: Backend, forward: Forward) -> None:
    """D23"""
    cookies = [("Set-Cookie", f"c{n}={n}") for n in range(3)]
    backend.answers = [reply(b"", fields=cookies)]
    answer = forward(backend.url).get("/")
    assert answer.headers.getlist("Set-Cookie") == ["c0=0", "c1=1", "c2=2"]


def test_a_redirect_is_passed_on_with_its_body_and_never_followed(
    backend: Backend, forward: Forward
) -> None:
    """G33, N22"""
    backend.answers = [reply(b"moved", status="302 Found", fields=[("Location", "http://[broken")])]
    answer = forward(backend.url).get("/")
    assert (answer.status_code, answer.data) == (302, b"moved")
    assert answer.headers["Location"] == "http://[broken"
    assert len(backend.requests) == 1


LOCATIONS = [
    ("/7", "/api/users/7"),
    ("{origin}/7?x=1", "/api/users/7?x=1"),
    ("http://other.test/7", "http://other.test/7"),
    ("//evil.test/7", "//evil.test/7"),
    ("7", "7"),
    ("javascript:alert(1)", "javascript:alert(1)"),
]


@pytest.mark.parametrize(("sent", "seen"), LOCATIONS)
def test_a_location_is_rewritten_to_the_clients_view(
    sent: str, seen: str, backend: Backend, forward: Forward
) -> None:
    location = ("Location", sent.format(origin=backend.url))
    backend.answers = [reply(b"", status="201 Created", fields=[location])]
    answer = forward(backend.url, strip_prefix="/api/users").post("/api/users")
    assert answer.headers["Location"] == seen
    untouched = forward(backend.url, strip_prefix="/api/users", rewrite_location=False)
    assert untouched.post("/api/users").headers["Location"] == location[1]


def test_a_cookies_path_is_rewritten_to_the_clients_view(
    backend: Backend, forward: Forward
) -> None:
    cookies = [
        ("Set-Cookie", "a=1; Path=/cart; HttpOnly"),
        ("Set-Cookie", "b=2; Path=/"),
        ("Set-Cookie", "c=3; Domain=127.0.0.1"),
    ]
    backend.answers = [reply(b"", fields=cookies)]
    answer = forward(backend.url, strip_prefix="/shop").get("/shop")
    assert answer.headers.getlist("Set-Cookie") == [
        "a=1; Path=/shop/cart; HttpOnly",
        "b=2; Path=/shop",
        "c=3",
    ]
    untouched = forward(backend.url, strip_prefix="/shop", rewrite_cookies=False).get("/shop")
    assert untouched.headers.getlist("Set-Cookie") == [value for _, value in cookies]


def test_hop_by_hop_response_fields_are_not_forwarded(backend: Backend, forward: Forward) -> None:
    """C09, C10, C11"""
    backend.answers = [
        cut(
            b"HTTP/1.1 200 OK\r\nConnection: close, X-Secret, Content-Type, Set-Cookie\r\n"
            b"X-Secret: 1\r\nContent-Type: a/b\r\nSet-Cookie: a=1\r\nKeep-Alive: timeout=9\r\n"
            b"Trailer: X\r\nUpgrade: h2c\r\nProxy-Authenticate: Basic\r\nProxy-Connection: x\r\n"
            b"Content-Length: 2\r\n\r\nok"
        )
    ]
    answer = forward(backend.url).get("/")
    assert set(answer.headers.keys()) == {"Content-Type", "Set-Cookie", "Content-Length"}


def test_a_compressed_body_is_not_decoded(backend: Backend, forward: Forward) -> None:
    """G35"""
    squeezed = b"\x1f\x8b\x08\x00 not even valid gzip"
    backend.answers = [reply(squeezed, fields=[("Content-Encoding", "gzip")])]
    answer = forward(backend.url).get("/")
    assert answer.data == squeezed
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Content-Length"] == str(len(squeezed))


LARGE = 1 << 21


class Measured:
    """A request body that keeps how much of it was asked for at a time."""

    def __init__(self) -> None:
        self.left = LARGE
        self.sizes: list[int] = []

    def read(self, size: int) -> bytes:
        self.sizes.append(size)
        size = min(size, self.left)
        self.left -= size
        return b"x" * size


@pytest.mark.parametrize("framing", ["length", "chunked", "one chunk", "close"])
def test_at_most_64_kib_are_held_in_each_direction(
    framing: str, backend: Backend, forward: Forward
) -> None:
    """G36"""
    field, data = {
        "length": (f"Content-Length: {LARGE}\r\n", b"x" * LARGE),
        "chunked": (
            "Transfer-Encoding: chunked\r\n",
            (b"200\r\n%b\r\n" % (b"x" * 512)) * (LARGE // 512) + b"0\r\n\r\n",
        ),
        "one chunk": (
            "Transfer-Encoding: chunked\r\n",
            b"%x\r\n%b\r\n0\r\n\r\n" % (LARGE, b"x" * LARGE),
        ),
        "close": ("", b"x" * LARGE),
    }[framing]
    backend.answers = [cut(f"HTTP/1.1 200 OK\r\n{field}\r\n".encode() + data)]
    sent = Measured()
    environ = EnvironBuilder("/", method="POST").get_environ()
    environ.update({"wsgi.input": sent, "CONTENT_LENGTH": str(LARGE)})
    body, _, _ = run_wsgi_app(forward(backend.url).application, environ)
    blocks = [len(block) for block in body]
    close_body(body)
    assert sum(blocks) == LARGE
    assert max(blocks) <= 65536
    assert backend.requests[0].complete
    assert max(sent.sizes) <= 65536


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_events_arrive_one_by_one(framing: str, backend: Backend, forward: Forward) -> None:
    """R07: each event is read before the instance sends the next one."""
    client_read: list[bytes] = []
    said = socket.socketpair()

    def events(connection: socket.socket, _request: Received) -> bool:
        coding = "Transfer-Encoding: chunked\r\n" if framing == "chunked" else ""
        connection.sendall(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{coding}\r\n".encode()
        )
        for number in range(3):
            data = f"data: {number}\n\n".encode()
            if framing == "chunked":
                data = f"{len(data):x}\r\n".encode() + data + b"\r\n"
            connection.sendall(data)
            assert said[1].recv(1) == b"."  # the client has it
        if framing == "chunked":
            connection.sendall(b"0\r\n\r\n")
        return False

    backend.answers = [events]
    environ = EnvironBuilder("/").get_environ()
    body, _, _ = run_wsgi_app(forward(backend.url).application, environ)
    for chunk in body:
        client_read.append(chunk)
        said[0].sendall(b".")
    close_body(body)
    for end in said:
        end.close()
    assert client_read == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]


def test_a_client_that_disconnects_releases_the_instances_connection(
    backend: Backend, forward: Forward
) -> None:
    """N18"""

    def endless(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        return connection.recv(1) != b""

    backend.answers = [endless, reply(b"ok")]
    client = forward(backend.url)
    body, _, _ = run_wsgi_app(client.application, EnvironBuilder("/").get_environ())
    assert next(iter(body)) == b"begun"
    assert client.pool.in_flight() == {backend.url: 1}
    close_body(body)
    backend.wait_until_closed()
    assert client.pool.in_flight() == {backend.url: 0}
    assert client.get("/").data == b"ok"


def test_a_service_that_is_down_is_503(forward: Forward) -> None:
    answer = forward(f"http://127.0.0.1:{free_port()}").get("/")
    assert answer.status_code == 503
    assert answer.json is not None
    assert answer.json["success"] is False
    assert answer.json["message"] == "Service unavailable"
    assert answer.json["error"] == "Connection refused"
    assert "127.0.0.1" not in answer.text


def test_a_service_that_has_no_address_is_503(forward: Forward) -> None:
    answer = forward("http://no-such-host.invalid").get("/")
    assert answer.status_code == 503


def test_a_service_that_is_slow_is_504(backend: Backend, forward: Forward) -> None:
    def silent(connection: socket.socket, _request: Received) -> bool:
        return connection.recv(1) != b""

    backend.answers = [silent]
    client = forward(backend.url, timeout=0.2)
    answer = client.get("/")
    assert answer.status_code == 504
    assert answer.json is not None
    assert (answer.json["message"], answer.json["error"]) == ("Service timeout", "Request timeout")
    backend.wait_until_closed()


def test_a_response_that_stalls_is_cut(backend: Backend, forward: Forward) -> None:
    def stalling(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nbegun")
        return connection.recv(1) != b""

    backend.answers = [stalling]
    client = forward(backend.url, read_timeout=1.5)
    body, _, _ = run_wsgi_app(client.application, EnvironBuilder("/").get_environ())
    with pytest.raises(UpstreamCut):
        b"".join(body)
    close_body(body)
    backend.wait_until_closed()


def test_a_service_without_instances_is_503_with_retry_after(sessions: Sessions) -> None:
    answer = Client(Forwarder(Pool("svc", []), sessions=sessions)).get("/")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"
