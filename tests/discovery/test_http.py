"""Asking a server that is slow, silent, cut, too talkative, or somebody else."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.certificates import make_certificate
from wsgigate.discovery.sources import SourceError, http
from wsgigate.discovery.sources.http import ApiClient
from wsgigate.testing.backend import Backend, cut, reply

NEVER = threading.Event()


def test_an_answer_comes_with_its_fields(backend: Backend) -> None:
    backend.answers = [reply(b"[]", status="404 Not Found", fields=[("X-Consul-Index", "7")])]
    answer = ApiClient(backend.url).get("/a?b=c", NEVER, fields={"X-Token": "t"})
    assert (answer.status, answer.fields["x-consul-index"], answer.body) == (404, "7", b"[]")
    [request] = backend.requests
    assert request.line == "GET /a?b=c HTTP/1.1"
    assert request.value("Host") == f"127.0.0.1:{backend.port}"
    assert request.value("X-Token") == "t"
    assert request.value("Connection") == "close"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "connection was closed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "not valid HTTP"),
    ],
)
def test_what_is_no_answer_is_an_error(backend: Backend, answer: bytes, said: str) -> None:
    backend.answers = [cut(answer)]
    with pytest.raises(SourceError, match=said):
        ApiClient(backend.url).get("/", NEVER)


def test_who_is_not_there_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SourceError, match="refused"):
        ApiClient(f"http://127.0.0.1:{port}").get("/", NEVER)
    with pytest.raises(SourceError, match="host name cannot be resolved"):
        ApiClient("http://nobody.invalid").get("/", NEVER)


def test_a_server_that_says_nothing_is_given_up(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_ANSWER", 0.05)
    backend.answers = [b""]
    with pytest.raises(SourceError, match="in time"):
        ApiClient(backend.url).get("/", NEVER)


def test_one_that_sends_bit_by_bit_is_given_up_too(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_ANSWER", 0.1)
    ended = threading.Event()

    def drip(connection: socket.socket, _request: object) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not ended.wait(0.01):
            try:
                connection.sendall(b"H")
            except OSError:
                break
        return False

    backend.answers = [drip]
    with pytest.raises(SourceError, match="in time"):
        ApiClient(backend.url).get("/", NEVER)
    ended.set()


def test_an_answer_has_an_end(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MOST_BYTES", 100)
    backend.answers = [reply(b"x" * 101)]
    with pytest.raises(SourceError, match="too long"):
        ApiClient(backend.url).get("/", NEVER)


def test_lines_come_as_they_are_sent_and_have_an_end(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_MOST_LINE", 10)
    body = b"one\n" + b"two\n" + b"x" * 20
    backend.answers = [reply(body)]
    with closing(ApiClient(backend.url).lines("/", NEVER)) as lines:
        assert lines.status == 200
        assert [lines.next(5), lines.next(5)] == [b"one\n", b"two\n"]
        with pytest.raises(SourceError, match="too long"):
            lines.next(5)
    backend.answers = [reply(b"one\n")]
    with closing(ApiClient(backend.url).lines("/", NEVER)) as lines:
        assert [lines.next(5), lines.next(5)] == [b"one\n", None]


def test_a_line_that_does_not_come_is_waited_for_no_longer_than_said(backend: Backend) -> None:
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
