"""One health check against real sockets: what is asked, what counts, and that it always ends."""

from __future__ import annotations

import re
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wsgigate.client.dial import Check
from wsgigate.client.exchange import Steps
from wsgigate.discovery import Instance
from wsgigate.proxy.health_probe import Prober, TlsPolicy, steps
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.runtime.tls import Verify
from wsgigate.testing.backend import Answer, Backend, Received, cut, reply

CHECK = HealthCheck("/health?deep=1", timeout=5.0)
HASTY = HealthCheck("/health", timeout=0.3)


def ask(
    url: str,
    check: HealthCheck = CHECK,
    *,
    verify: Verify = True,
    server_name: str | None = None,
    allowed: Check | None = None,
    clock: Any = time.monotonic,
) -> CheckResult:
    """Return what the instance at *url* answers to *check*."""
    found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
    prober = Prober({"shop": TlsPolicy(verify, server_name, allowed)}, clock=clock)
    try:
        prober.probe("shop", Instance(url), check, found.put)
        outcome = found.get(timeout=10)
    finally:
        prober.stop()
    assert isinstance(outcome, CheckResult)
    return outcome


def probe(answer: Answer, check: HealthCheck = CHECK) -> CheckResult:
    with Backend(answer) as backend:
        outcome = ask(backend.url, check)
        backend.wait_until_closed()
        assert backend.connections == 1
    return outcome


def drip(head: bytes, drop: bytes) -> Answer:
    """Send *head*, then *drop* again and again until the client leaves."""

    def answer(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(head)
        connection.settimeout(0.01)
        while True:
            try:
                if not connection.recv(1):
                    return False
            except TimeoutError:
                connection.sendall(drop)

    return answer


def test_a_check_asks_for_the_path_at_the_instance_and_says_who_asks(backend: Backend) -> None:
    outcome = ask(backend.url)
    assert (outcome.ok, outcome.status, outcome.error) == (True, 200, "")
    (request,) = backend.requests
    assert request.line == "GET /health?deep=1 HTTP/1.1"
    assert sorted(request.fields) == [
        ("Accept", "*/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        ("Host", f"127.0.0.1:{backend.port}"),
        ("User-Agent", "wsgigate-health"),
    ]


def head_of(check: HealthCheck, instance: Callable[[Backend], Instance]) -> list[str]:
    """Return the request line and the fields that an instance gets."""
    with Backend(reply(b"")) as backend:
        found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
        prober = Prober()
        try:
            prober.probe("shop", instance(backend), check, found.put)
            outcome = found.get(timeout=10)
        finally:
            prober.stop()
        assert isinstance(outcome, CheckResult), outcome
        assert outcome.ok, outcome
        [request] = backend.requests
        port = str(backend.port)
    return request.head.decode().replace(port, "PORT").split("\r\n")


def test_a_check_sends_the_host_the_fields_and_the_method_that_it_is_told() -> None:
    check = HealthCheck(
        "/up",
        timeout=5.0,
        host="shop.example",
        fields={"Authorization": "Bearer x", "user-agent": "kube-probe/1.2", "X-Empty": ""},
        method="HEAD",
    )
    line, *fields = head_of(check, lambda backend: Instance(backend.url))
    assert line == "HEAD /up HTTP/1.1"
    assert [field for field in fields if field] == [
        "Host: shop.example",
        "User-Agent: kube-probe/1.2",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Authorization: Bearer x",
        "X-Empty: ",
        "Connection: close",
    ]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_method_with_content_says_that_there_is_none(method: str) -> None:
    check = HealthCheck("/up", timeout=5.0, method=method)
    line, *fields = head_of(check, lambda backend: Instance(backend.url))
    assert line == f"{method} /up HTTP/1.1"
    assert "Content-Length: 0" in fields


@pytest.mark.parametrize(
    ("url", "name", "told", "host"),
    [
        ("http://127.0.0.1:1", "", {}, "127.0.0.1:PORT"),
        ("http://127.0.0.1:1", "shop.example", {}, "shop.example:PORT"),
        ("http://127.0.0.1:1", "shop.example:8080", {}, "shop.example:PORT"),
        ("http://127.0.0.1:1", "", {"host": "admin.example"}, "admin.example"),
        ("https://127.0.0.1:1", "", {"scheme": "http"}, "127.0.0.1:PORT"),
    ],
)
def test_a_check_may_go_to_another_port(
    url: str, name: str, told: dict[str, Any], host: str
) -> None:
    """As that of a management interface, which need not speak TLS where the service does."""

    def check(port: int) -> HealthCheck:
        return HealthCheck("/up", timeout=5.0, port=port, **told)

    with Backend(reply(b"")) as backend:
        found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
        prober = Prober()
        prober.probe("shop", Instance(url, host=name), check(backend.port), found.put)
        outcome = found.get(timeout=10)
        prober.stop()
        assert isinstance(outcome, CheckResult)
        assert outcome.ok
        [request] = backend.requests
    assert dict(request.fields)["Host"] == host.replace("PORT", str(backend.port))


def test_a_connection_alone_may_be_to_another_port_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        check = HealthCheck(None, timeout=5.0, port=listener.getsockname()[1])
        assert ask("http://127.0.0.1:1", check).ok


def test_the_other_port_is_one_that_is_allowed() -> None:
    def allowed(address: Any, port: int) -> None:
        if port == 9:
            raise ValueError("not there")

    check = HealthCheck("/", timeout=5.0, port=9)
    assert ask("http://127.0.0.1:1", check, allowed=allowed).error == "Address not allowed"


def test_a_check_takes_nothing_from_the_environment(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert ask(backend.url).ok
    assert backend.requests[0].values("Authorization") == []


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "206 Partial Content", "299 Odd"])
def test_any_2xx_is_healthy(status: str) -> None:
    outcome = probe(reply(status=status))
    assert (outcome.ok, outcome.status) == (True, int(status[:3]))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("301 Moved", "Redirected"),
        ("304 Not Modified", "Redirected"),
        ("404 Not Found", "Status 404"),
        ("500 Internal Server Error", "Status 500"),
        ("503 Service Unavailable", "Status 503"),
    ],
)
def test_any_other_status_is_a_failure(status: str, error: str) -> None:
    outcome = probe(reply(status=status))
    assert (outcome.ok, outcome.status, outcome.error) == (False, int(status[:3]), error)


def test_a_redirect_is_not_followed_wherever_it_leads() -> None:
    with Backend() as inside:
        for location in (
            f"{inside.url}/latest",
            "http://169.254.169.254/",
            "//evil",
            "http://[",
            "",
        ):
            outcome = probe(reply(status="302 Found", fields=[("Location", location)]))
            assert (outcome.ok, outcome.status, outcome.error) == (False, 302, "Redirected")
        assert inside.connections == 0


def test_an_interim_response_is_not_taken_for_the_answer() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    assert probe(early + reply()).status == 200
    assert probe(early + reply(status="503 Down")).error == "Status 503"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ([("Response-Time", "12ms")], "12ms"),
        ([("X-Response-Time", "3.1 ms")], "3.1 ms"),
        ([("X-Response-Time", "2"), ("response-time", "1")], "1"),
    ],
)
def test_the_instance_may_tell_its_own_response_time(
    fields: list[tuple[str, str]], told: str
) -> None:
    assert probe(reply(fields=fields)).response_time == told


@pytest.mark.parametrize("fields", [[], [("Response-Time", "x" * 33)], [("Response-Time", "\xe9")]])
def test_else_it_is_measured(fields: list[tuple[str, str]]) -> None:
    now = 10.0

    def answer(connection: socket.socket, _request: Received) -> None:
        nonlocal now
        now += 0.00153
        connection.sendall(reply(b"ok", fields=fields))

    with Backend(answer) as backend:
        outcome = ask(backend.url, clock=lambda: now)
    assert outcome.response_time == "1.53ms"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (drip(b"", b""), None),
        (drip(b"", b"x"), None),
        (drip(b"HTTP/1.1 200 OK\r\n", b"X-Drop: 1\r\n"), None),
        (drip(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"), None),
        (drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"), 200),
        (drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), 200),
        (drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), 200),
        (drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"), 200),
    ],
    ids=["silence", "status line", "head", "field", "length", "to the end", "chunks", "chunk size"],
)
def test_a_server_that_drips_does_not_outlast_the_deadline(
    answer: Answer, status: int | None
) -> None:
    outcome = probe(answer, HASTY)  # what drips never ends by itself
    assert outcome == CheckResult(False, status, error="Timeout") or outcome.error == "Bad response"
    if outcome.error == "Bad response":  # 100 fields, before the time was up
        assert status is None


def test_each_check_has_a_connection_of_its_own_whatever_the_server_keeps() -> None:
    """A kept one would come with the deadline of the check that opened it."""
    with Backend(reply(b"ok")) as backend:
        for number in range(1, 4):
            assert ask(backend.url).ok
            assert backend.connections == number
        backend.wait_until_closed()


def test_interim_responses_without_end_do_not_outlast_the_deadline_either() -> None:
    outcome = probe(drip(b"", b"HTTP/1.1 102 Processing\r\n\r\n"), HASTY)
    assert (outcome.ok, outcome.status) == (False, None)
    assert outcome.error in ("Timeout", "Bad response")


@pytest.mark.parametrize("framing", [b"Content-Length: 1073741824\r\n", b""])
def test_of_a_gigabyte_no_more_than_is_needed_is_read(framing: bytes) -> None:
    sent = 0

    def answer(connection: socket.socket, _request: Received) -> bool:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n")
        try:
            while sent < 1_073_741_824:
                sent += connection.send(bytes(65_536))
        except OSError:
            pass
        return False

    outcome = probe(answer)
    assert (outcome.ok, outcome.status) == (True, 200)
    assert sent < 32_000_000  # what fits into the buffers between the two


def test_a_compressed_body_is_not_unpacked() -> None:
    assert probe(reply(b"not gzip at all", fields=[("Content-Encoding", "gzip")])).ok


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (cut(b""), "Connection closed"),
        (cut(b"\x16\x03\x01\x02\x00\r\n\r\n"), "Bad response"),
        (cut(b"SSH-2.0-OpenSSH_9.6\r\n"), "Bad response"),
        (cut(b"HTTP/1.1 abc\r\n\r\n"), "Bad response"),
        (cut(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), "Bad response"),
        (cut(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"), "Bad response"),
        (cut((b"HTTP/1.1 102 P\r\nX: " + b"y" * 60_000 + b"\r\n\r\n") * 5), "Bad response"),
        (cut(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), "Incomplete response"),
        (
            cut(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"),
            "Incomplete response",
        ),
        (
            cut(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n"),
            "Bad response",
        ),
    ],
)
def test_garbage_is_a_failure_in_words_that_name_no_host(answer: Answer, error: str) -> None:
    outcome = probe(answer)
    assert (outcome.ok, outcome.error) == (False, error)


def test_a_connection_reset_is_told_as_one() -> None:
    def answer(connection: socket.socket, _request: Received) -> bool:
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return False

    assert probe(answer).error == "Connection reset"


def test_nobody_listening_is_connection_refused() -> None:
    with Backend() as backend:
        url = backend.url
    assert ask(url) == CheckResult(False, error="Connection refused")


def test_a_name_that_does_not_exist_is_host_not_found() -> None:
    outcome = ask("http://no-such-host.invalid")
    assert outcome == CheckResult(False, error="Host not found")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and a certificate for 127.0.0.1 that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_tls_is_verified_against_the_authorities_that_are_named(authority: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)

    def wrap(connection: socket.socket) -> socket.socket:
        return context.wrap_socket(connection, server_side=True)

    with Backend(reply(b"ok"), tls=wrap) as backend:
        assert ask(backend.url, verify=str(authority)).ok
        assert ask(backend.url, verify=False).ok
        assert ask(backend.url) == CheckResult(False, error="TLS failed")
        other = ask(backend.url, verify=str(authority), server_name="shop.example")
        assert other == CheckResult(False, error="TLS failed")
        here = backend.url.replace("127.0.0.1", "localhost")
        assert ask(here, verify=str(authority)) == CheckResult(False, error="TLS failed")
        assert ask(here, verify=str(authority), server_name="127.0.0.1").ok


def test_a_tls_handshake_that_hangs_does_not_outlast_the_deadline() -> None:
    def stall(connection: socket.socket) -> socket.socket:
        while connection.recv(4096):
            pass
        raise OSError

    with Backend(tls=stall) as backend:
        outcome = ask(backend.url, HASTY, verify=False)
    assert outcome == CheckResult(False, error="Timeout")


def test_tls_files_that_can_not_be_used_are_told_at_construction(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ValueError, match="verify"):
        Prober({"shop": TlsPolicy(str(tmp_path / "missing.pem"))})
    with pytest.raises(ValueError, match="verify"):
        Prober({"shop": TlsPolicy(str(tmp_path / "empty.pem"))})


TCP = HealthCheck(None, timeout=5.0)


def test_a_check_without_a_path_asks_for_nothing(backend: Backend) -> None:
    outcome = ask(backend.url, TCP)
    assert (outcome.ok, outcome.status, outcome.error) == (True, None, "")
    assert re.fullmatch(r"\d+\.\d\dms", outcome.response_time)
    # the system takes the connection before the backend does
    backend.wait(lambda: backend.connections == 1 and not backend.open_connections)
    assert backend.requests == []


def test_nor_does_it_speak_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert ask(f"https://127.0.0.1:{listener.getsockname()[1]}", TCP).ok
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1) == b""


def test_what_accepts_no_connection_is_not_well() -> None:
    with Backend() as backend:
        url = backend.url
    assert ask(url, TCP) == CheckResult(False, error="Connection refused")


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """Yield a listener whose queue is full: whoever connects waits."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener


@pytest.mark.parametrize("path", [None, "/health"])
def test_a_connection_that_does_not_come_about_ends_with_the_deadline(
    deaf: socket.socket, path: str | None
) -> None:
    url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
    assert ask(url, HealthCheck(path, timeout=0.3)) == CheckResult(False, error="Timeout")


def test_a_unix_socket_is_asked_like_any_other(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with Backend(unix=path) as backend:
        assert ask(backend.url).ok
        assert ask(backend.url, TCP).ok
        assert backend.requests[0].value("Host") == "localhost"
    assert ask(backend.url).error == "Connection refused"
    assert ask("http+unix://%2Fno%2Fsuch.sock").error == "Connection refused"


def test_a_unix_socket_whose_queue_is_full_has_until_the_deadline(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as before,
        ThreadPoolExecutor() as threads,
    ):
        listener.bind(path)
        listener.listen(0)
        before.connect(path)
        url = f"http+unix://{quote(path, safe='')}"
        assert ask(url, HealthCheck(None, timeout=0.3)) == CheckResult(False, error="Timeout")
        asked = threads.submit(ask, url, TCP)
        listener.accept()[0].close()
        assert asked.result(10).ok


@pytest.mark.parametrize(
    ("statuses", "status", "error"),
    [
        ([401], "401 Unauthorized", ""),
        ([200, 429], "429 Too Many Requests", ""),
        ([301], "301 Moved", ""),
        ([204], "200 OK", "Status 200"),
        ([204], "302 Found", "Redirected"),
    ],
)
def test_the_statuses_that_are_good_can_be_named(
    statuses: list[int], status: str, error: str
) -> None:
    outcome = probe(reply(status=status), HealthCheck("/", statuses=statuses))
    assert (outcome.ok, outcome.error) == (not error, error)


@pytest.mark.parametrize(
    ("body", "ok"),
    [
        (b'{"status": "UP"}', True),
        (b'{"status": "DOWN"}', False),
        (b"", False),
        (b" " * 65_000 + b'"UP"', True),
        (b" " * 65_533 + b'"UP"', False),
    ],
)
def test_a_good_answer_may_have_to_contain_something(body: bytes, ok: bool) -> None:
    outcome = probe(reply(body), HealthCheck("/", contains='"UP"', timeout=5.0))
    assert (outcome.ok, outcome.status) == (ok, 200)
    assert outcome.error == ("" if ok else "Unexpected content")


def drive(going: Steps[CheckResult], addresses: list[Any]) -> None:
    """Go through all the steps, waiting for what each of them waits for."""
    wait = going.send(addresses)
    with selectors.DefaultSelector() as selector:
        while True:
            assert wait.sock is not None
            selector.register(wait.sock, wait.events)
            ready = selector.select(max(0.0, wait.until - time.monotonic()))
            selector.unregister(wait.sock)
            wait = going.send(None) if ready else going.throw(TimeoutError())


def test_an_address_that_is_not_allowed_is_not_connected_to(backend: Backend) -> None:
    """Whatever the name was said to mean when the instance was registered."""
    told: list[tuple[str, int]] = []

    def refuse(address: object, port: int) -> None:
        told.append((str(address), port))
        raise ValueError("not there")

    here = backend.url.replace("127.0.0.1", "localhost")
    assert ask(here, allowed=refuse) == CheckResult(False, error="Address not allowed")
    assert ("127.0.0.1", backend.port) in told
    assert backend.connections == 0
    assert ask(here, allowed=lambda address, port: None).ok


def test_each_address_of_a_host_is_tried_within_the_deadline(deaf: socket.socket) -> None:
    with Backend() as gone:
        pass
    with Backend() as backend:
        addresses = [
            (socket.AF_INET, ("127.0.0.1", gone.port)),
            (socket.AF_INET, deaf.getsockname()),
            (socket.AF_INET, ("127.0.0.1", backend.port)),
        ]
        going = steps(Instance("http://shop"), HASTY, "shop", None, time.monotonic)
        wait = next(going)
        assert (wait.sock, wait.events) == (None, 0)
        with pytest.raises(StopIteration) as ended:
            drive(going, addresses)
    assert ended.value.value.ok
