"""Writing requests, the connections that they use, and sessions."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.exceptions import InvalidHeader, InvalidURL

from tests.support.interpreter import run_alone
from wsgigate.client.adapter import Adapter, Sessions, Timeout, gateway_session
from wsgigate.client.connections import Connection, ConnectionPool
from wsgigate.client.dial import dialer
from wsgigate.client.http11 import Fields, Upload, request_head, upload_of
from wsgigate.client.response_reader import BrokenResponse, NotConnected
from wsgigate.runtime.tls import Contexts
from wsgigate.testing.backend import Backend, Received, reply
from wsgigate.testing.fakes import FakeClock

ORIGIN = "http://a.test:8000"


def prepared(method: str = "POST", *, body: Any = None, **fields: str) -> requests.PreparedRequest:
    request = requests.PreparedRequest()
    request.method, request.url, request.body = method, f"{ORIGIN}/x", body
    request.headers = requests.structures.CaseInsensitiveDict(
        {name.replace("_", "-"): value for name, value in fields.items()}
    )
    return request


def head_of(request: requests.PreparedRequest, origin: str = ORIGIN) -> list[str]:
    head = request_head(request, upload_of(request), origin).decode("latin-1")
    assert head.endswith("\r\n\r\n")
    return head[:-4].split("\r\n")


def sent_of(upload: Upload | None) -> bytes:
    return b"" if upload is None else upload.first + b"".join(upload.rest())


def test_fields_with_equal_names_are_joined_regardless_of_case() -> None:
    fields = Fields.joined([("Cookie", "a=1"), ("X", "1"), ("cookie", "b=2"), ("x", "2")])
    assert fields == {"Cookie": "a=1; b=2", "X": "1, 2"}
    fields.target = "/x"
    assert not hasattr(fields.copy(), "on_socket")
    fields.on_socket = print
    assert (fields.copy(), fields.copy().target, fields.copy().on_socket) == (fields, "/x", print)


def test_the_default_host_is_that_of_the_origin() -> None:
    assert head_of(prepared("GET")) == ["GET /x HTTP/1.1", "Host: a.test:8000"]
    assert head_of(prepared("GET", host="b.test")) == ["GET /x HTTP/1.1", "host: b.test"]
    assert head_of(prepared("GET"), "http+unix://%2Fx")[1] == "Host: localhost"
    assert head_of(prepared("GET", Expect="100-continue"))[1:] == ["Host: a.test:8000"]


@pytest.mark.parametrize("value", ["a\nX: b", "a\rX: b", "a\r\nX: b", "a\0b"])
def test_a_value_with_a_line_end_is_rejected(value: str) -> None:
    """CVE-2019-11236"""
    with pytest.raises(InvalidHeader):
        head_of(prepared("GET", X=value))


@pytest.mark.parametrize("method", ["G T", "G(T", "GET / HTTP/1.1\r\nX: y\r\n\r\nGET", ""])
def test_a_method_that_is_no_token_is_rejected(method: str) -> None:
    """CVE-2020-26137"""
    request = prepared("GET")
    request.method = method or "é"
    with pytest.raises((InvalidURL, InvalidHeader)):
        head_of(request)


class Reader:
    def __init__(self, data: bytes, length: int | None = None) -> None:
        self._data = data
        if length is not None:
            self.length = length

    def read(self, size: int) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data


LENGTH, CODING = "Content-Length: 2", "Transfer-Encoding: chunked"
CHUNKED = b"2\r\nok\r\n0\r\n\r\n"
FRAMED: list[tuple[Callable[[], Any], dict[str, str], list[str], bytes]] = [
    # the body, the fields it comes with: how it is framed, what is sent
    (lambda: None, {}, [], b""),
    (lambda: b"", {}, [], b""),
    (lambda: "", {"Content_Length": "0"}, ["Content-Length: 0"], b""),
    (lambda: b"ok", {}, [LENGTH], b"ok"),
    (lambda: "ok", {}, [LENGTH], b"ok"),
    (lambda: b"ok", {"content_length": "2"}, [LENGTH.lower()], b"ok"),
    (lambda: b"ok", {"Transfer_Encoding": "chunked"}, [CODING], CHUNKED),
    (lambda: iter([b"o", "k"]), {"Content_Length": "2"}, [LENGTH], b"ok"),
    (lambda: iter(["ok", b""]), {}, [CODING], CHUNKED),
    (lambda: iter([b"", b"ok"]), {}, [CODING], CHUNKED),
    (lambda: Reader(b"ok"), {}, [CODING], CHUNKED),
    (lambda: Reader(b"ok", 2), {}, [LENGTH], b"ok"),
    (lambda: Reader(b"ok", 2), {"Content_Length": "2"}, [LENGTH], b"ok"),
    (lambda: Reader(b"ok", 2), {"Transfer_Encoding": "chunked"}, [CODING], CHUNKED),
    (lambda: Reader(b""), {"Content_Length": "0"}, ["Content-Length: 0"], b""),
]


@pytest.mark.parametrize(("body", "fields", "framing", "sent"), FRAMED)
def test_a_body_has_exactly_one_framing(
    body: Callable[[], Any], fields: dict[str, str], framing: list[str], sent: bytes
) -> None:
    """A24"""
    request = prepared(body=body(), **fields)
    upload = upload_of(request)
    lines = request_head(request, upload, ORIGIN).decode().split("\r\n")[1:-2]
    assert [line for line in lines if not line.startswith("Host")] == framing
    assert sent_of(upload) == sent


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"ok", {"Content_Length": "2", "Transfer_Encoding": "chunked"}),
        (None, {"Content_Length": "2"}),
        (None, {"Transfer_Encoding": "chunked"}),
        (b"ok", {"Content_Length": "3"}),
        (b"ok", {"Content_Length": "+2"}),
        (b"ok", {"Content_Length": "²"}),
        (Reader(b"ok"), {"Content_Length": "0x2"}),
        (Reader(b"o"), {"Content_Length": "2"}),
        (iter([b"ok!"]), {"Content_Length": "2"}),
    ],
)
def test_a_framing_that_contradicts_the_body_is_rejected(body: Any, fields: dict[str, str]) -> None:
    with pytest.raises(InvalidHeader):
        sent_of(upload_of(prepared(body=body, **fields)))


def test_a_body_is_replayable_until_its_second_block_is_read() -> None:
    """N09"""
    upload = Upload(iter([b"a", b"b"]), 2)
    assert upload.replayable
    assert list(upload.rest()) == [b"b"]
    assert not upload.replayable


class Recorded(Adapter):
    """An adapter that keeps until when each connection was wanted, and whether a new one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.taken: list[tuple[float, bool]] = []

    def pool(self, *key: Any) -> ConnectionPool:
        pool, taken = super().pool(*key), self.taken

        class Taking:
            def acquire(
                self, now: float, until: float, *, fresh: bool, **options: Any
            ) -> Connection:
                taken.append((round(until - now, 3), fresh))
                return pool.acquire(now, until, fresh=fresh, **options)

        return Taking()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("timeout", "wanted"),
    [
        (Timeout(2.0, 30.0, 30.0), 2.0),
        (Timeout(2.0, 30.0, 1.5), 1.5),
        ((2.0, 5.0), 2.0),
        (3.0, 3.0),
        (None, 86400.0),
    ],
)
def test_connecting_is_limited_by_the_connect_timeout_and_the_total(
    timeout: Any, wanted: float, backend: Backend
) -> None:
    adapter = Recorded(clock=FakeClock(0.0))
    request = prepared("GET")
    request.url = backend.url
    backend.answers = [reply(b"ok"), lambda *_: False, reply(b"ok")]
    for _ in range(2):  # the second meets a connection that is closed, and needs a new one
        assert adapter.send(request, timeout=timeout).content == b"ok"
    assert adapter.taken == [(wanted, False), (wanted, False), (wanted, True)]
    adapter.close()


def test_a_request_is_resent_over_a_new_connection_not_another_idle_one(backend: Backend) -> None:
    """N02"""

    def only_new(connection: socket.socket, request: Received) -> bool:
        new = request.connection > 2
        connection.sendall(reply(b"new") if new else b"")
        return new

    backend.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"] * 2 + [only_new]
    adapter = Adapter()
    pool = None
    kept = []
    for _ in range(2):
        request = prepared("GET")
        request.url = backend.url
        pool = adapter.pool(backend.url)
        kept.append(pool.acquire(time.monotonic(), time.monotonic() + 25))
        kept[-1].sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        backend.wait_for_requests(len(kept))
        data = b""
        while not data.endswith(b"ok") and (block := kept[-1].recv(1000)):
            data += block
        assert data.endswith(b"ok")
    for connection in kept:
        connection.give_back(True)
    assert adapter.send(request, timeout=25).content == b"new"
    assert len(backend.requests) == 4
    adapter.close()


def test_an_unrequested_101_is_an_invalid_response(backend: Backend) -> None:
    """G24"""
    switched = b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    backend.answers = [switched + reply(b"evil")]
    with gateway_session() as session, pytest.raises(BrokenResponse):
        session.get(backend.url, timeout=25)


def test_a_gateway_session_adds_no_fields_and_reads_no_environment() -> None:
    with gateway_session() as session:
        assert session.trust_env is False
        assert dict(session.headers) == {}


def test_credentials_in_a_url_are_not_sent_in_host(backend: Backend) -> None:
    request = prepared("GET")
    request.url = backend.url.replace("http://", "http://user:secret@")
    adapter = Adapter()
    assert adapter.send(request, timeout=25).content == b"ok"
    assert backend.requests[0].value("Host") == f"127.0.0.1:{backend.port}"
    adapter.close()


def test_pools_without_connections_are_removed_when_there_are_many(backend: Backend) -> None:
    adapter = Adapter()
    request = prepared("GET")
    request.url = backend.url
    assert adapter.send(request, timeout=25).content == b"ok"
    kept = adapter.pool(backend.url)
    for number in range(2500):
        adapter.pool(f"http://10.0.0.1:{number + 1}")
    assert len(adapter.pools()) <= 1000
    assert adapter.pool(backend.url) is kept
    adapter.close()


def test_each_tls_policy_has_its_own_connections() -> None:
    """N21, CVE-2024-35195"""
    adapter = Adapter()
    policies: list[Any] = [
        (True, None),
        (False, None),
        ("ca.pem", None),
        (True, "a"),
        (True, ("a", "b")),
    ]
    pools = [adapter.pool("https://a.test", *policy) for policy in policies]
    assert len(set(map(id, pools))) == len(policies)
    assert adapter.pool("https://a.test", True, ["a", "b"]) is pools[-1]


class Counted(requests.Session):
    closed = 0

    def close(self) -> None:
        super().close()
        self.closed += 1


def current(sessions: Sessions) -> Counted:
    session = sessions.current()
    assert isinstance(session, Counted)
    return session


def in_child(check: Callable[[], object]) -> bool:
    """Return the result of *check* in a forked process."""
    pid = os.fork()
    if not pid:
        os._exit(0 if check() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_forked_process_has_its_own_session_and_does_not_close_its_parents() -> None:
    """Q09"""
    sessions = Sessions(Counted)
    first = current(sessions)
    assert sessions.current() is first

    def child() -> bool:
        sessions.close()
        untouched = first.closed == 0
        second = current(sessions)
        sessions.close()
        return untouched and second is not first and (first.closed, second.closed) == (0, 1)

    assert in_child(child)
    assert sessions.current() is first
    sessions.close()
    assert first.closed == 1
    assert sessions.current() is not first
    sessions.close()


FORKED = """
import ctypes, os, sys
import requests
from wsgigate.client.adapter import Sessions

sessions = Sessions(requests.Session)
first = sessions.current()
child = ctypes.PyDLL(None).fork()
if not child:
    os._exit(sessions.current() is first)
same = sessions.current() is first
sessions.close()
sys.exit(not same or os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
"""


def test_a_process_forked_without_pythons_hooks_has_its_own_session() -> None:
    run_alone(FORKED)


def now_and(seconds: float) -> float:
    return time.monotonic() + seconds


def dial(origin: str, until: float) -> socket.socket:
    return dialer(origin, True, None, Contexts(), time.monotonic)(until)


def test_no_connection_is_opened_after_the_deadline(backend: Backend, tmp_path: Path) -> None:
    for origin in (backend.url, f"http+unix://{str(tmp_path / 's').replace('/', '%2F')}"):
        with pytest.raises(requests.ConnectTimeout):
            dial(origin, now_and(-1))
    assert backend.connections == 0


def test_connecting_waits_for_a_unix_socket_with_a_full_queue(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    ends: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        try:
            while True:
                ends.append(socket.socket(socket.AF_UNIX))
                ends[-1].setblocking(False)
                ends[-1].connect(path)
        except BlockingIOError:
            pass
        with pytest.raises(requests.ConnectTimeout):
            dial(f"http+unix://{path.replace('/', '%2F')}", now_and(0.05))
        for end in ends:
            end.close()


def test_an_invalid_host_name_is_not_connected() -> None:
    with pytest.raises(NotConnected):
        dial(f"http://{'x' * 64}.test:1", now_and(5))


def test_tcp_nodelay_is_set(backend: Backend) -> None:
    with dial(backend.url, now_and(5)) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert 0 < (sock.gettimeout() or 0) <= 5


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_each_scheme_has_its_default_port(
    scheme: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def none(host: str, port: int, **_: Any) -> list[Any]:
        asked.append((host, port))
        return []

    monkeypatch.setattr(socket, "getaddrinfo", none)
    with pytest.raises(NotConnected, match="no address"):
        dial(f"{scheme}://a.test", now_and(5))
    assert asked == [("a.test", port)]


@pytest.mark.parametrize("origin", ["http://", "ftp://a.test", "http://a:x", "https://[::1", "a"])
def test_an_invalid_origin_is_rejected(origin: str) -> None:
    with pytest.raises(InvalidURL):
        dialer(origin, True, None, Contexts(), time.monotonic)


def test_tls_contexts_require_tls_1_2_and_verify_by_default(tmp_path: Path) -> None:
    """N21"""
    contexts = Contexts()
    context = contexts.get(True, None)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert contexts.get(True, None) is context
    trusting = contexts.get(False, None)
    assert (trusting.check_hostname, trusting.verify_mode) == (False, ssl.CERT_NONE)
    folder = contexts.get(str(tmp_path), None)
    assert folder.verify_mode is ssl.CERT_REQUIRED
    with pytest.raises(OSError):  # noqa: PT011
        contexts.get(str(tmp_path / "none.pem"), None)


@pytest.fixture
def plain() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


def test_a_failed_handshake_closes_the_connection(plain: Backend) -> None:
    silent = plain.url.replace("http", "https")
    with pytest.raises(requests.ConnectTimeout) as caught:
        dial(silent, now_and(0.1))
    plain.wait_until_closed(5)
    assert caught.value is not None
