"""The HTTP client of the sources, with servers that are slow, silent, cut off or too long."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.proxy.health_checks import drip
from tests.support.certificates import make_certificate
from tests.support.ports import refused_port
from wsgigate.discovery.sources import SourceError
from wsgigate.discovery.sources.http import ApiClient
from wsgigate.testing.backend import Backend, cut, reply

NEVER = threading.Event()


def test_a_response_of_any_status_is_returned_with_its_fields(backend: Backend) -> None:
    backend.answers = [reply(b"[]", status="404 Not Found", fields=[("X-Consul-Index", "7")])]
    answer = ApiClient(backend.url).get("/a?b=c", NEVER, fields={"X-Token": "t"})
    assert (answer.status, answer.fields["x-consul-index"], answer.body) == (404, "7", b"[]")
    [request] = backend.requests
    assert request.line == "GET /a?b=c HTTP/1.1"
    assert request.value("Host") == f"127.0.0.1:{backend.port}"
    assert request.value("X-Token") == "t"
    assert request.value("Connection") == "close"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "connection was closed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "not valid HTTP"),
    ],
)
def test_an_invalid_response_is_an_error(backend: Backend, answer: bytes, error: str) -> None:
    backend.answers = [cut(answer)]
    with pytest.raises(SourceError, match=error):
        ApiClient(backend.url).get("/", NEVER)


def test_a_server_that_cannot_be_reached_is_an_error() -> None:
    with refused_port() as port, pytest.raises(SourceError, match="refused"):
        ApiClient(f"http://127.0.0.1:{port}").get("/", NEVER)
    with pytest.raises(SourceError, match="host name cannot be resolved"):
        ApiClient("http://nobody.invalid").get("/", NEVER)


def test_a_silent_server_is_an_error_after_the_timeout(backend: Backend) -> None:
    backend.answers = [b""]
    with pytest.raises(SourceError, match="in time"):
        ApiClient(backend.url, timeout=0.05).get("/", NEVER)


def test_a_server_that_drips_does_not_extend_the_timeout(backend: Backend) -> None:
    backend.answers = [drip(b"HTTP/1.1 200 OK\r\nX: ", b"x")]
    with pytest.raises(SourceError, match="in time"):
        ApiClient(backend.url, timeout=0.1).get("/", NEVER)


def test_a_response_that_is_too_long_is_an_error(backend: Backend) -> None:
    backend.answers = [reply(b"x" * 101)]
    with pytest.raises(SourceError, match="too long"):
        ApiClient(backend.url, most=100).get("/", NEVER)


def test_lines_are_returned_as_they_arrive_and_bounded(backend: Backend) -> None:
    body = b"one\n" + b"two\n" + b"x" * 20
    backend.answers = [reply(body)]
    with closing(ApiClient(backend.url, most_line=10).lines("/", NEVER)) as lines:
        assert lines.status == 200
        assert [lines.next(5), lines.next(5)] == [b"one\n", b"two\n"]
        with pytest.raises(SourceError, match="too long"):
            lines.next(5)
    backend.answers = [reply(b"one\n")]
    with closing(ApiClient(backend.url, most_line=10).lines("/", NEVER)) as lines:
        assert [lines.next(5), lines.next(5)] == [b"one\n", None]


def test_a_line_that_does_not_arrive_in_time_is_an_error(backend: Backend) -> None:
    backend.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\none\n"]
    with closing(ApiClient(backend.url).lines("/", NEVER)) as lines:
        assert lines.next(5) == b"one\n"
        with pytest.raises(SourceError, match="in time"):
            lines.next(0.05)


def test_certificates_are_verified(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def wrap(sock: socket.socket) -> socket.socket:
        return context.wrap_socket(sock, server_side=True)

    with Backend(tls=wrap) as backend:
        assert ApiClient(backend.url, ca=str(certificate)).get("/", NEVER).body == b"ok"
        with pytest.raises(SourceError, match="certificate cannot be verified"):
            ApiClient(backend.url).get("/", NEVER)
        with pytest.raises(SourceError, match="certificate cannot be verified"):
            ApiClient(f"https://localhost:{backend.port}", ca=str(certificate)).get("/", NEVER)
