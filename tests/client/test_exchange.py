"""Exchanges over a connection of their own: one deadline, bounded bodies, no connection left."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from requests.exceptions import InvalidHeader, InvalidURL

from tests.proxy.health_checks import drip
from tests.support.certificates import make_certificate
from wsgigate.client.exchange import HttpClient, Stopped, TooLong, reason_for
from wsgigate.client.response_reader import BrokenResponse
from wsgigate.runtime.tls import context_for
from wsgigate.testing.backend import Backend, Received, ScriptedAnswer, cut, reply

FIELDS = {"User-Agent": "test"}
HEAD = b"HTTP/1.1 200 OK\r\n"


def client(url: str) -> HttpClient:
    def no_tls() -> ssl.SSLContext:
        raise AssertionError("this is not https")

    return HttpClient(url, no_tls)


def test_a_request_has_its_fields_its_framing_and_the_path_of_the_url(backend: Backend) -> None:
    api = client(f"{backend.url}/below/")
    with api.send("POST", "/a?b=c", FIELDS, b"body", timeout=25) as response:
        assert (response.status, response.body(100)) == (200, b"ok")
    [request] = backend.requests
    assert request.line == "POST /below/a?b=c HTTP/1.1"
    assert request.body == b"body"
    assert request.fields == [
        ("Host", f"127.0.0.1:{backend.port}"),
        ("User-Agent", "test"),
        ("Content-Length", "4"),
        ("Connection", "close"),
    ]
    backend.wait_until_closed()


@pytest.mark.parametrize(
    "answer",
    [
        drip(b"", b""),
        drip(HEAD + b"X: ", b"x"),
        drip(b"", b"HTTP/1.1 102 P\r\n\r\n"[:1]),
        drip(HEAD + b"Content-Length: 9999\r\n\r\n", b"x"),
        drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        drip(HEAD + b"\r\n", b"x"),
    ],
    ids=["silent", "field", "status line", "length", "chunks", "until closed"],
)
def test_the_deadline_covers_head_and_body(answer: ScriptedAnswer) -> None:
    with Backend(answer) as backend:
        with (
            pytest.raises((TimeoutError, BrokenResponse)),
            client(backend.url).send("GET", "/", FIELDS, timeout=0.2) as response,
        ):
            response.body(100_000)
        backend.wait_until_closed()


def test_the_deadline_covers_a_request_that_is_accepted_slowly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        api = client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(TimeoutError):
            api.send("POST", "/", FIELDS, bytes(32 << 20), timeout=0.2)


def test_the_deadline_covers_a_handshake_that_hangs() -> None:
    def stall(connection: socket.socket) -> socket.socket:
        while connection.recv(4096):
            pass
        raise OSError

    with Backend(tls=stall) as backend:
        api = HttpClient(backend.url, lambda: context_for(False))
        with pytest.raises(TimeoutError):
            api.send("GET", "/", FIELDS, timeout=0.2)


def test_a_wait_ends_soon_after_the_thread_is_stopped() -> None:
    stopping = threading.Event()

    def answer(connection: socket.socket, _request: Received) -> bool:
        stopping.set()
        connection.recv(1)
        return False

    with Backend(answer) as backend:
        with pytest.raises(Stopped):
            client(backend.url).send("GET", "/", FIELDS, timeout=60, stopping=stopping)
        backend.wait_until_closed()


def test_of_a_body_no_more_is_read_than_allowed() -> None:
    with (
        Backend(reply(b"x" * 1000)) as backend,
        client(backend.url).send("GET", "/", FIELDS, timeout=25) as response,
    ):
        assert response.body(10) == b"x" * 10


def test_redirects_are_not_followed_and_the_environment_is_not_read(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    backend.answers = [reply(status="302 Found", fields=[("Location", f"{backend.url}/other")])]
    with client(backend.url).send("GET", "/", FIELDS, timeout=25) as response:
        assert (response.status, response.fields["location"]) == (302, f"{backend.url}/other")
    [request] = backend.requests
    assert request.values("Authorization") == []


@pytest.mark.parametrize(
    ("target", "fields", "error"),
    [
        ("/a b", FIELDS, InvalidURL),
        ("/a\r\nX: y", FIELDS, InvalidHeader),
        ("/", {"Authorization": "Bearer a\r\nX: y"}, InvalidHeader),
    ],
)
def test_a_request_that_could_be_read_as_two_is_not_sent(
    target: str, fields: dict[str, str], error: type[Exception], backend: Backend
) -> None:
    with pytest.raises(error):
        client(backend.url).send("GET", target, fields, timeout=25)
    assert backend.connections == 0


def test_lines_arrive_one_by_one_and_are_bounded() -> None:
    body = b"one\ntwo\n\n" + b"x" * 11
    with Backend(reply(body)) as backend:
        with client(backend.url).send("GET", "/", FIELDS, timeout=25) as response:
            lines = [response.line(10, 5) for _ in range(3)]
            assert lines == [b"one\n", b"two\n", b"\n"]
            with pytest.raises(TooLong, match="line"):
                response.line(10, 5)
        with client(backend.url).send("GET", "/", FIELDS, timeout=25) as response:
            lines = [response.line(11, 5) for _ in range(5)]
            assert lines[3:] == [b"x" * 11, None]


def failed(url: str, tls: Callable[[], ssl.SSLContext] = lambda: context_for(True)) -> str:
    with pytest.raises(OSError) as raised:  # noqa: PT011 - each of them is described
        HttpClient(url, tls).send("GET", "/", FIELDS, timeout=0.5)
    return reason_for(raised.value)


def test_the_reason_of_a_failure_names_no_host(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(tmp_path))
    with Backend(tls=lambda sock: context.wrap_socket(sock, server_side=True)) as backend:
        assert failed(backend.url) == "its certificate cannot be verified"
        plain = backend.url.replace("https", "http")
    assert failed(plain) == "the connection was refused"
    assert failed("http://no.such.host.invalid") == "its host name cannot be resolved"
    with Backend(cut(b"")) as backend:
        assert failed(backend.url) == "the connection was closed"
    with Backend(cut(b"HTTP/1.1 200")) as backend:
        assert failed(backend.url) == "its answer is not valid HTTP"
    with Backend(b"") as backend:
        assert failed(backend.url) == "there was no answer in time"
    assert reason_for(KeyError("secret")) == "the request failed (KeyError)"


def test_an_ipv6_address_is_connected_to_and_named_in_brackets() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        url = f"http://[::1]:{listener.getsockname()[1]}"
        heads: list[bytes] = []

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                heads.append(connection.recv(4096))
                connection.sendall(reply(b"six"))

        thread = threading.Thread(target=serve)
        thread.start()
        with client(url).send("GET", "/", FIELDS, timeout=25) as response:
            assert response.body(10) == b"six"
        thread.join(30)
    assert f"Host: {url.removeprefix('http://')}\r\n".encode() in heads[0]
