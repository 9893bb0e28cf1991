"""The connection of a health check: addresses, ports, TLS, Unix sockets, and its deadline."""

from __future__ import annotations

import re
import selectors
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import quote

import pytest

from tests.proxy.health_checks import HASTY, check_answer, check_once
from tests.support.certificates import make_certificate
from tests.support.ports import refused_port
from wsgigate.client.exchange import Steps
from wsgigate.discovery import Instance
from wsgigate.proxy.health_probe import Prober, TlsPolicy, steps
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.testing.backend import Backend, Received, reply


@pytest.mark.parametrize(
    ("url", "name", "options", "host"),
    [
        ("http://127.0.0.1:1", "", {}, "127.0.0.1:PORT"),
        ("http://127.0.0.1:1", "shop.example", {}, "shop.example:PORT"),
        ("http://127.0.0.1:1", "shop.example:8080", {}, "shop.example:PORT"),
        ("http://127.0.0.1:1", "", {"host": "admin.example"}, "admin.example"),
        ("https://127.0.0.1:1", "", {"scheme": "http"}, "127.0.0.1:PORT"),
    ],
)
def test_a_check_can_use_another_port_and_scheme(
    url: str, name: str, options: dict[str, Any], host: str
) -> None:
    """As that of a management interface, which need not speak TLS where the service does."""

    def check(port: int) -> HealthCheck:
        return HealthCheck("/up", timeout=5.0, port=port, **options)

    with Backend(reply(b"")) as backend:
        found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
        prober = Prober()
        prober.probe("shop", Instance(url, host=name), check(backend.port), found.put)
        outcome = found.get(timeout=30)
        prober.stop()
        assert isinstance(outcome, CheckResult)
        assert outcome.ok
        [request] = backend.requests
    assert dict(request.fields)["Host"] == host.replace("PORT", str(backend.port))


def test_a_tcp_check_can_use_another_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        check = HealthCheck(None, timeout=5.0, port=listener.getsockname()[1])
        assert check_once("http://127.0.0.1:1", check).ok


def test_another_port_of_a_check_must_be_allowed() -> None:
    def allowed(address: Any, port: int) -> None:
        if port == 9:
            raise ValueError("not there")

    check = HealthCheck("/", timeout=5.0, port=9)
    assert check_once("http://127.0.0.1:1", check, allowed=allowed).error == "Address not allowed"


def test_each_check_opens_its_own_connection() -> None:
    """A kept one would come with the deadline of the check that opened it."""
    with Backend(reply(b"ok")) as backend:
        for number in range(1, 4):
            assert check_once(backend.url).ok
            assert backend.connections == number
        backend.wait_until_closed()


def test_a_connection_reset_is_reported() -> None:
    def answer(connection: socket.socket, _request: Received) -> bool:
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return False

    assert check_answer(answer).error == "Connection reset"


def test_a_closed_port_is_reported_as_refused() -> None:
    with refused_port() as port:
        outcome = check_once(f"http://127.0.0.1:{port}")
    assert outcome == CheckResult(False, error="Connection refused")


def test_an_unknown_name_is_reported_as_not_found() -> None:
    outcome = check_once("http://no-such-host.invalid")
    assert outcome == CheckResult(False, error="Host not found")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and a certificate for 127.0.0.1 that vouches for itself."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


def test_certificates_are_verified_against_the_configured_authorities(authority: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority)

    def wrap(connection: socket.socket) -> socket.socket:
        return context.wrap_socket(connection, server_side=True)

    with Backend(reply(b"ok"), tls=wrap) as backend:
        assert check_once(backend.url, verify=str(authority)).ok
        assert check_once(backend.url, verify=False).ok
        assert check_once(backend.url) == CheckResult(False, error="TLS failed")
        other = check_once(backend.url, verify=str(authority), server_name="shop.example")
        assert other == CheckResult(False, error="TLS failed")
        here = backend.url.replace("127.0.0.1", "localhost")
        assert check_once(here, verify=str(authority)) == CheckResult(False, error="TLS failed")
        assert check_once(here, verify=str(authority), server_name="127.0.0.1").ok


def test_a_tls_handshake_that_hangs_ends_at_the_deadline() -> None:
    def stall(connection: socket.socket) -> socket.socket:
        while connection.recv(4096):
            pass
        raise OSError

    with Backend(tls=stall) as backend:
        outcome = check_once(backend.url, HASTY, verify=False)
    assert outcome == CheckResult(False, error="Timeout")


def test_certificate_files_that_cannot_be_used_are_reported_by_the_constructor(
    tmp_path: Path,
) -> None:
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ValueError, match="verify"):
        Prober({"shop": TlsPolicy(str(tmp_path / "missing.pem"))})
    with pytest.raises(ValueError, match="verify"):
        Prober({"shop": TlsPolicy(str(tmp_path / "empty.pem"))})


TCP = HealthCheck(None, interval=60.0, timeout=25.0)


def test_a_check_without_a_path_only_connects(backend: Backend) -> None:
    outcome = check_once(backend.url, TCP)
    assert (outcome.ok, outcome.status, outcome.error) == (True, None, "")
    assert re.fullmatch(r"\d+\.\d\dms", outcome.response_time)
    # the system takes the connection before the backend does
    backend.wait(lambda: backend.connections == 1 and not backend.open_connections)
    assert backend.requests == []


def test_a_check_without_a_path_begins_no_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert check_once(f"https://127.0.0.1:{listener.getsockname()[1]}", TCP).ok
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1) == b""


def test_an_instance_that_accepts_no_connection_is_unhealthy() -> None:
    with refused_port() as port:
        outcome = check_once(f"http://127.0.0.1:{port}", TCP)
    assert outcome == CheckResult(False, error="Connection refused")


@pytest.fixture
def full_listener() -> Iterator[socket.socket]:
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
def test_connecting_ends_at_the_deadline(full_listener: socket.socket, path: str | None) -> None:
    url = f"http://127.0.0.1:{full_listener.getsockname()[1]}"
    assert check_once(url, HealthCheck(path, timeout=0.3)) == CheckResult(False, error="Timeout")


def test_a_unix_socket_is_checked(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with Backend(unix=path) as backend:
        assert check_once(backend.url).ok
        assert check_once(backend.url, TCP).ok
        assert backend.requests[0].value("Host") == "localhost"
    assert check_once(backend.url).error == "Connection refused"
    assert check_once("http+unix://%2Fno%2Fsuch.sock").error == "Connection refused"


def test_connecting_to_a_unix_socket_with_a_full_queue_waits_until_the_deadline(
    tmp_path: Path,
) -> None:
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
        assert check_once(url, HealthCheck(None, timeout=0.3)) == CheckResult(
            False, error="Timeout"
        )
        asked = threads.submit(check_once, url, TCP)
        listener.accept()[0].close()
        assert asked.result(30).ok


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
    checked: list[tuple[str, int]] = []

    def refuse(address: object, port: int) -> None:
        checked.append((str(address), port))
        raise ValueError("not there")

    here = backend.url.replace("127.0.0.1", "localhost")
    assert check_once(here, allowed=refuse) == CheckResult(False, error="Address not allowed")
    assert ("127.0.0.1", backend.port) in checked
    assert backend.connections == 0
    assert check_once(here, allowed=lambda address, port: None).ok


def test_each_address_of_a_host_is_tried_within_the_deadline(full_listener: socket.socket) -> None:
    check = HealthCheck("/health", timeout=1.5)
    with refused_port() as refused, Backend() as backend:
        addresses = [
            (socket.AF_INET, ("127.0.0.1", refused)),
            (socket.AF_INET, full_listener.getsockname()),
            (socket.AF_INET, ("127.0.0.1", backend.port)),
        ]
        going = steps(Instance("http://shop"), check, "shop", None, time.monotonic)
        wait = next(going)
        assert (wait.sock, wait.events) == (None, 0)
        with pytest.raises(StopIteration) as ended:
            drive(going, addresses)
    assert ended.value.value.ok
