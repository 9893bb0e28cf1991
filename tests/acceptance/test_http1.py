"""HTTP/1.1 to a gateway under gunicorn, by clients that send everything before they read."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import make_certificate
from tests.support.waiting import until
from wsgigate.testing.backend import Backend

Serve = Callable[..., Any]

GATEWAY = """
[gateway]
threads = 4
{more}
[store]
url = "memory:"
[[middleware]]
use = "request-id"
[[middleware]]
use = "logger"
format = "json"
[[middleware]]
use = "body-limit"
limit = "1KiB"
[services.svc]
instances = ["{url}"]
[[routes]]
path = "/svc"
service = "svc"
"""


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(serve_for_all: Serve, backend: Backend) -> Any:
    return serve_for_all(GATEWAY.format(url=backend.url, more=""), workers=1)


class Client:
    """One connection, on which whole answers are read."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self._left = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> tuple[str, dict[str, str]]:
        while b"\r\n\r\n" not in self._left:
            data = self.socket.recv(65536)
            assert data, self._left
            self._left += data
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        return first, {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}

    def answer(self) -> tuple[str, dict[str, str], bytes]:
        first, fields = self.head()
        size = int(fields["content-length"])
        while len(self._left) < size:
            data = self.socket.recv(65536)
            assert data
            self._left += data
        body, self._left = self._left[:size], self._left[size:]
        return first, fields, body

    def ended(self) -> bool:
        return not self.socket.recv(1)


def post(length: int, *more: str, path: str = "/svc", version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: a", f"Content-Length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


EXPECT = "Expect: 100-continue"


@pytest.mark.parametrize(
    ("path", "length", "status"), [("/svc", 10_000_000, 413), ("/nowhere", 10, 404)]
)
def test_what_is_refused_by_its_head_is_not_asked_for(
    path: str, length: int, status: int, gateway: Any
) -> None:
    with Client(gateway.port) as client:
        client.send(post(length, EXPECT, path=path))
        first, fields, _ = client.answer()
        assert first.startswith(f"HTTP/1.1 {status} ")
        assert fields["connection"] == "close"  # whether the body comes all the same is not known
        assert client.ended()


def test_a_body_that_is_wanted_is_asked_for(gateway: Any, backend: Backend) -> None:
    backend.requests.clear()
    with Client(gateway.port) as client:
        for _ in range(2):
            client.send(post(4, EXPECT))
            assert client.head()[0] == "HTTP/1.1 100 Continue"
            client.send(b"body")
            first, fields, body = client.answer()
            assert (first, fields["connection"], body) == ("HTTP/1.1 200 OK", "keep-alive", b"ok")
        client.send(post(4, EXPECT, version="1.0"))
        client.send(b"body")
        assert client.head()[0].endswith("200 OK")
    assert [request.body for request in backend.requests] == [b"body"] * 3


@pytest.mark.parametrize("more", ["", "Connection: close"])
def test_a_client_that_sends_all_of_a_refused_upload_reads_why(more: str, gateway: Any) -> None:
    size = 20_000_000
    with Client(gateway.port) as client:
        client.send(post(size, *([more] if more else [])) + bytes(size))
        assert client.answer()[0].startswith("HTTP/1.1 413 ")
        assert client.ended()


def test_the_same_over_tls(serve: Serve, backend: Backend, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    more = f'tls = {{ cert = "{certificate}" }}'
    gateway = serve(GATEWAY.format(url=backend.url, more=more), workers=1)
    size = 20_000_000
    context = ssl.create_default_context(cafile=str(certificate))
    with Client(gateway.port, context) as client:
        client.send(post(size) + bytes(size))
        assert client.answer()[0].startswith("HTTP/1.1 413 ")


BROKEN = {
    "no request": (b"what is this\r\n\r\n", 400),
    "a bad field": (b"GET /svc HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
    "a bad version": (b"GET /svc HTTP/one\r\nHost: a\r\n\r\n", 400),
    "both framings": (post(4, "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "a long target": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "a long field": (b"GET /svc HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
    "many fields": (b"GET /svc HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431),
    "an expectation": (post(4, "Expect: miracles"), 417),
    "a coding": (post(4, "Transfer-Encoding: gzip").replace(b"Content-Length: 4\r\n", b""), 400),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_head_is_refused_as_anything_else_is(what: str, gateway: Any) -> None:
    request, status = BROKEN[what]
    before = gateway.log.count("\n")
    with Client(gateway.port) as client:
        client.send(request)
        first, fields, body = client.answer()
        assert client.ended()
    assert first.startswith(f"HTTP/1.1 {status} ")
    assert fields["content-type"] == "application/problem+json"
    document = json.loads(body)
    assert (document["status"], document["success"]) == (status, False)

    def logged() -> list[dict[str, Any]]:
        lines = gateway.log.split("\n")[before:-1]
        return [json.loads(line) for line in lines if line[:1] == "{"]

    [record] = until(logged)
    assert (record["status"], record["client"]) == (status, "127.0.0.1")
    assert record["reason"]
    assert "Traceback" not in gateway.log


def test_a_later_minor_version_is_rejected_in_ours(gateway: Any, backend: Backend) -> None:
    backend.requests.clear()
    with Client(gateway.port) as client:
        client.send(post(4, version="1.2") + b"body")
        first, _, _ = client.answer()
        assert first == "HTTP/1.1 505 HTTP Version Not Supported"
    assert backend.requests == []


def test_a_response_announces_the_keep_alive_timeout(
    gateway: Any, serve: Serve, backend: Backend
) -> None:
    with Client(gateway.port) as client:
        client.send(post(0))
        assert client.answer()[1]["keep-alive"] == "timeout=75"
    short = serve(GATEWAY.format(url=backend.url, more='keep_alive = "1s"'), workers=1)

    def kept() -> bool:
        """Return whether a request that is sent at the last moment is answered."""
        with Client(short.port) as client:
            client.send(post(0))
            assert client.answer()[1]["keep-alive"] == "timeout=1"
            time.sleep(1)
            try:
                client.send(post(0))
                first, _, _ = client.answer()
            except (AssertionError, ConnectionError):
                return False
            assert first == "HTTP/1.1 200 OK"
            return client.ended()

    # on a slow machine a request may be a second late, for which the connection is kept as well
    assert any(kept() for _ in range(5))
    none = serve(GATEWAY.format(url=backend.url, more="keep_alive = 0"), workers=1)
    with Client(none.port) as client:
        client.send(post(0))
        fields = client.answer()[1]
        assert (fields["connection"], "keep-alive" in fields) == ("close", False)
