"""The transport adapter by itself: use through ``requests``, TLS, and Unix sockets."""

from __future__ import annotations

import errno
import gzip
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from werkzeug.test import Client

from tests.support.certificates import Authority
from wsgigate.client.adapter import Adapter, Timeout, gateway_session
from wsgigate.client.http11 import Fields
from wsgigate.client.response_reader import NotConnected, TlsFailed
from wsgigate.discovery import Instance
from wsgigate.proxy.response import nothing_sent, problem_of
from wsgigate.testing.backend import Backend, Received, cut, reply

Forward = Callable[..., Client]


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with gateway_session() as made:
        yield made


def test_a_session_returns_whole_responses(backend: Backend, session: requests.Session) -> None:
    fields = [("Content-Type", "application/json; charset=utf-8"), ("X", "1"), ("X", "2")]
    backend.answers = [reply(b'{"a": "\xc3\xa9"}', status="201 Made", fields=fields)]
    answer = session.get(backend.url + "/x?y=1", headers={"A": "b"}, timeout=25)
    assert (answer.status_code, answer.reason, answer.ok) == (201, "Made", True)
    assert answer.json() == {"a": "é"}
    assert answer.headers["x"] == "1, 2"
    assert answer.encoding == "utf-8"
    assert answer.history == []
    assert answer.elapsed
    assert [value for name, value in answer.raw.headers.items() if name == "X"] == ["1", "2"]
    assert backend.requests[0].line == "GET /x?y=1 HTTP/1.1"
    assert backend.requests[0].value("Host") == f"127.0.0.1:{backend.port}"
    assert backend.requests[0].value("A") == "b"


def test_a_body_can_be_read_in_parts_and_decompressed(
    backend: Backend, session: requests.Session
) -> None:
    text = b"0123456789" * 1000
    backend.answers = [reply(gzip.compress(text), fields=[("Content-Encoding", "gzip")])]
    assert session.get(backend.url, timeout=25).content == text
    backend.answers = [reply(text)]
    with session.get(backend.url, stream=True, timeout=25) as answer:
        assert [len(part) for part in answer.iter_content(4000)] == [4000, 4000, 2000]
    with session.get(backend.url, stream=True, timeout=25) as answer:
        assert answer.raw.read(7) == text[:7]
        assert answer.raw.read1(3) == text[7:10]
        assert answer.raw.read() == text[10:]
        assert answer.raw.read() == b""
        assert answer.raw.closed
    assert backend.connections == 1


BODIES: list[tuple[Any, str | None, str | None, bytes]] = [
    (b"abc", "3", None, b"abc"),
    ("é", "2", None, b"\xc3\xa9"),
    ({"a": "b"}, "3", None, b"a=b"),
    (io.BytesIO(b"abc"), "3", None, b"abc"),
    (iter([b"a", b"", b"bc"]), None, "chunked", b"abc"),
    (iter([]), None, "chunked", b""),
    (b"x" * 300_000, "300000", None, b"x" * 300_000),
]


@pytest.mark.parametrize(("data", "length", "coding", "arrives"), BODIES)
def test_every_kind_of_body_has_exactly_one_framing(
    data: Any,
    length: str | None,
    coding: str | None,
    arrives: bytes,
    backend: Backend,
    session: requests.Session,
) -> None:
    answer = session.post(backend.url, data=data, headers={"Expect": "100-continue"}, timeout=25)
    assert answer.status_code == 200
    request = backend.requests[0]
    assert (request.body, request.complete) == (arrives, True)
    assert request.value("Content-Length") == length
    assert request.value("Transfer-Encoding") == coding
    assert request.value("Expect") is None


def outgoing(url: str, method: str = "GET", body: Any = None, **fields: str) -> Any:
    request: Any = requests.PreparedRequest()
    request.method, request.url, request.body = method, url + "/", body
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    request.headers = Fields({"Host": "a.test", **named})
    request.headers.target = "/"
    return request


class Reader(io.BytesIO):
    length: int


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"abc", {"Content_Length": "4"}),
        (b"abc", {"Content_Length": "3", "Transfer_Encoding": "chunked"}),
        (None, {"Content_Length": "3"}),
        (None, {"Transfer_Encoding": "chunked"}),
        (b"abc", {"Content_Length": "+3"}),
        (io.BytesIO(b"abcd"), {"Content_Length": "3"}),
        (io.BytesIO(b""), {"Content_Length": "3"}),
        (None, {"X": "a\r\nY: b"}),
        (None, {"X": "a\nb"}),
        (None, {"X": "a\0b"}),
        (None, {"X": "€"}),
    ],
)
def test_a_request_with_two_meanings_is_not_sent(
    body: Any, fields: dict[str, str], backend: Backend
) -> None:
    adapter = Adapter()
    with pytest.raises(ValueError):  # noqa: PT011
        adapter.send(outgoing(backend.url, "POST", body, **fields), timeout=25)
    adapter.close()
    assert backend.connections == 0


@pytest.mark.parametrize(("method", "target"), [("GET", "/a b"), ("GE T", "/"), ("GET", "")])
def test_a_request_line_with_two_meanings_is_not_sent(
    method: str, target: str, backend: Backend
) -> None:
    adapter = Adapter()
    request = outgoing(backend.url, method)
    request.headers.target = target or "/\r\nX: y"
    with pytest.raises(ValueError):  # noqa: PT011
        adapter.send(request, timeout=25)
    adapter.close()
    assert backend.connections == 0


def test_a_reader_that_knows_its_length_is_framed_by_it(backend: Backend) -> None:
    adapter = Adapter()
    body = Reader(b"abc")
    body.length = 3
    assert adapter.send(outgoing(backend.url, "POST", body), timeout=25).content == b"ok"
    assert backend.requests[0].value("Content-Length") == "3"
    assert adapter.send(outgoing(backend.url, "POST", io.BytesIO(b"abc"))).content == b"ok"
    assert backend.requests[1].value("Transfer-Encoding") == "chunked"
    adapter.close()


class Endless:
    """A body of which there is always more."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def read(self, size: int) -> bytes:
        self.read_bytes += size
        return b"x" * size


@pytest.mark.parametrize("hints", [b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
def test_an_upload_stops_at_the_response(hints: bytes) -> None:
    """G39: the instance reads no further, so that the rest would wait for ever."""

    def refuse(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(hints + reply(b"enough", status="413 Content Too Large"))
            while connection.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        backend = threading.Thread(target=refuse, args=(listener,))
        backend.start()
        adapter = Adapter()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        answer = adapter.send(outgoing(url, "POST", Endless()), timeout=25)
        assert (answer.status_code, answer.content) == (413, b"enough")
        assert adapter.pools()[url].open_connections == 0
        backend.join(30)
        adapter.close()


def test_an_upload_that_the_instance_does_not_read_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        adapter = Adapter()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(requests.ReadTimeout):
            adapter.send(outgoing(url, "POST", Endless()), timeout=Timeout(1, 0.1, 1))
        adapter.close()


def test_a_requested_upgrade_hands_the_connection_over(backend: Backend) -> None:
    def switch(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello"
        )
        connection.sendall(connection.recv(100))
        return False

    backend.answers = [switch]
    adapter = Adapter()
    asked = outgoing(backend.url, Connection="upgrade", Upgrade="x")
    answer = adapter.send(asked, timeout=25)
    assert answer.status_code == 101
    connection, begun = answer.raw.take_over()
    connection.sock.sendall(b"ping")
    while len(begun) < len(b"helloping") and (block := connection.recv(100)):
        begun += block
    assert begun == b"helloping"
    connection.close()
    adapter.close()


def test_the_adapter_rejects_proxies(backend: Backend) -> None:
    with pytest.raises(requests.exceptions.ProxyError):
        Adapter().send(outgoing(backend.url), proxies={"http": "http://127.0.0.1:9"})


@pytest.mark.parametrize("url", ["ftp://a.test", "http://", "http://a.test:x", "nonsense"])
def test_an_invalid_address_is_rejected(url: str) -> None:
    with pytest.raises(requests.exceptions.InvalidURL):
        Adapter().send(outgoing(url))


def test_an_instance_can_be_a_unix_socket(tmp_path: Path, own: Forward) -> None:
    path = str(tmp_path / "App 1.sock")
    with Backend(unix=path) as backend:
        moved = [("Location", "http://localhost/next"), ("X", "1")]
        backend.answers = [reply(b"one"), reply(b"two"), reply(b"", fields=moved)]
        client = own(backend.url, strip_prefix="/api")
        assert client.get("/api/a?b").data == b"one"
        assert client.post("/api/a", data=b"body").data == b"two"
        assert client.get("/api/a").headers["Location"] == "/api/next"
        assert backend.requests[0].line == "GET /a?b HTTP/1.1"
        assert backend.requests[0].value("Host") == "localhost"
        assert backend.requests[1].body == b"body"
        with gateway_session() as session:
            assert session.get(backend.url + "/b", timeout=25).status_code == 200
        assert backend.requests[3].value("Host") == "localhost"
        assert backend.connections == 2


def test_a_unix_socket_without_a_listener_is_503(tmp_path: Path, own: Forward) -> None:
    url = f"http+unix://{str(tmp_path / 'none.sock').replace('/', '%2F')}"
    assert Instance(url).address == f"unix:{tmp_path / 'none.sock'}"
    assert own(url).get("/").status_code == 503


@pytest.mark.parametrize(
    "url",
    [
        "http+unix://relative.sock",
        "http+unix://",
        "http+unix:///run/app.sock",
        "http+unix://%2Frun%00",
        "http+unix://%2F" + "x" * 200,
        "http+unix://u:p@%2Frun",
    ],
)
def test_a_socket_is_named_by_its_encoded_absolute_path(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|path"):
        Instance(url)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


LOOPBACK = x509.IPAddress(ip_address("127.0.0.1"))
LOCALHOST = x509.DNSName("localhost")


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def over_tls(context: ssl.SSLContext) -> Backend:
    return Backend(tls=lambda sock: context.wrap_socket(sock, True))


def test_a_trusted_instance_is_reached_over_tls(authority: Authority, forward: Forward) -> None:
    context = server_context(authority.issue("known", [LOOPBACK]))
    with over_tls(context) as backend:
        client = forward(backend.url, verify=str(authority.path))
        assert client.get("/").data == b"ok"
        large = b"x" * 300_000
        assert client.post("/", data=large).data == b"ok"
        assert backend.requests[1].body == large
        assert backend.connections == 1


def test_tls_records_without_data_are_no_response(authority: Authority, own: Forward) -> None:
    """Tickets for the next session come while the first body is on its way."""
    context = server_context(authority.issue("ticketing", [LOOPBACK]))
    context.set_alpn_protocols(["h2", "http/1.1"])
    spoken: list[str | None] = []

    def tell(connection: socket.socket, _request: Received) -> None:
        assert isinstance(connection, ssl.SSLSocket)
        spoken.append(connection.selected_alpn_protocol())
        connection.sendall(reply(b"ok"))

    large = b"x" * 300_000
    with over_tls(context) as backend:
        backend.answers = [tell]
        assert own(backend.url, verify=str(authority.path)).post("/", data=large).data == b"ok"
        assert backend.requests[0].body == large
    assert spoken == ["http/1.1"]


@pytest.mark.parametrize(("verify", "status"), [(True, 502), (False, 200)])
def test_an_untrusted_certificate_is_rejected_unless_verify_is_off(
    verify: bool, status: int, authority: Authority, own: Forward
) -> None:
    """N21"""
    context = server_context(authority.issue("stranger", [LOOPBACK]))
    with over_tls(context) as backend:
        assert own(backend.url, verify=verify).get("/").status_code == status
        assert len(backend.requests) == (status == 200)


def test_a_certificate_for_another_name_is_rejected(authority: Authority, forward: Forward) -> None:
    """N21"""
    context = server_context(authority.issue("other", [LOCALHOST]))
    with over_tls(context) as backend:
        assert forward(backend.url, verify=str(authority.path)).get("/").status_code == 502
        assert backend.requests == []


@pytest.mark.parametrize(
    ("names", "trusted", "error"),
    [
        ([LOCALHOST], True, "Certificate verification failed"),  # another name
        ([LOOPBACK], False, "Certificate verification failed"),  # of an unknown authority
    ],
)
def test_a_rejected_certificate_is_reported(
    names: list[Any], trusted: bool, error: str, authority: Authority, forward: Forward
) -> None:
    context = server_context(authority.issue(f"told-{trusted}", names))
    with over_tls(context) as backend:
        answer = forward(backend.url, verify=str(authority.path) if trusted else True).get("/")
        assert answer.status_code == 502
        assert (answer.json or {})["error"] == error
        assert backend.requests == []


def test_an_instance_without_tls_is_reported(forward: Forward) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        answer = forward(f"https://127.0.0.1:{server.getsockname()[1]}").get("/")
        thread.join()
        assert answer.status_code == 502
        assert (answer.json or {})["error"] == "TLS failed"


def test_a_name_that_cannot_be_resolved_is_reported(own: Forward) -> None:
    answer = own(f"http://{'a' * 64}.test").get("/")  # no name server is asked for such a one
    assert answer.status_code == 503
    assert (answer.json or {})["error"] == "Host not found"
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Host not found"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "Host unreachable"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "Host unreachable"),
        (PermissionError("not connected: 127.0.0.1"), "Address not allowed"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "Connection refused"),
        (FileNotFoundError(errno.ENOENT, "no such socket"), "Connection refused"),
        (PermissionError(errno.EACCES, "a Unix socket"), "Connection refused"),
    ],
)
def test_the_reason_of_a_failed_connection_names_no_address(error: Exception, words: str) -> None:
    problem = problem_of(NotConnected(error))
    assert (problem.status, problem.extensions["error"]) == (503, words)
    assert nothing_sent(NotConnected(error))
    assert nothing_sent(TlsFailed(error))


def test_verified_and_unverified_requests_share_no_connection(authority: Authority) -> None:
    """N21: the kind of CVE-2024-35195."""
    context = server_context(authority.issue("unshared", [LOOPBACK]))
    with over_tls(context) as backend:
        adapter = Adapter()
        assert adapter.send(outgoing(backend.url), verify=False, timeout=25).content == b"ok"
        with pytest.raises(requests.exceptions.SSLError):
            adapter.send(outgoing(backend.url), verify=True, timeout=25)
        adapter.close()


def test_the_name_of_the_instance_is_sent_by_sni(authority: Authority, forward: Forward) -> None:
    context = server_context(authority.issue("named", [LOCALHOST]))
    names: list[str | None] = []
    context.sni_callback = lambda _sock, name, _context: names.append(name)
    with over_tls(context) as backend:
        url = backend.url.replace("127.0.0.1", "localhost")
        client = forward(url, verify=str(authority.path), preserve_host=True)
        assert client.get("/", base_url="http://shop.test").data == b"ok"
        assert names == ["localhost"]


def test_a_client_certificate_is_presented(authority: Authority, forward: Forward) -> None:
    context = server_context(authority.issue("choosy", [LOOPBACK]))
    context.load_verify_locations(authority.path)
    context.verify_mode = ssl.CERT_REQUIRED
    mine = str(authority.issue("mine", []))
    with over_tls(context) as backend:
        bundle = str(authority.path)
        assert forward(backend.url, verify=bundle, cert=mine).get("/").data == b"ok"
        assert forward(backend.url, verify=bundle, cert=(mine, mine)).get("/").data == b"ok"
        assert forward(backend.url, verify=bundle).get("/").status_code == 502


def test_a_plain_response_over_tls_is_an_error(forward: Forward) -> None:
    def plain(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(reply(b"plain"))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=plain, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        assert forward(url).get("/").status_code == 502
        thread.join(30)


def test_a_body_until_the_end_of_a_tls_connection_needs_its_close_notify(
    authority: Authority,
) -> None:
    """Others can end the TCP connection; only the instance can send close_notify."""
    context = server_context(authority.issue("ragged", [LOOPBACK]))
    with over_tls(context) as backend:
        backend.answers = [cut(b"HTTP/1.1 200 OK\r\n\r\nbegun")]
        adapter = Adapter()
        answer = adapter.send(outgoing(backend.url), verify=str(authority.path), timeout=25)
        with pytest.raises(requests.ConnectionError):
            _ = answer.content
        adapter.close()
