"""RemoteEndpoints that requests wait for, on real sockets: they hang, close, grow, drip and lie."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.support.interpreter import run_alone
from tests.support.waiting import until
from wsgigate.client.endpoint import EndpointFailed, RemoteEndpoint, check_url
from wsgigate.rules.circuit import CircuitRules
from wsgigate.testing.backend import Backend, Received, cut, reply
from wsgigate.testing.fakes import FakeClock

NO_CIRCUIT = CircuitRules(connect_failures=None, failure_rate=None)


def failure(endpoint: RemoteEndpoint, **options: object) -> EndpointFailed:
    with pytest.raises(EndpointFailed) as found:
        endpoint.ask("GET", {}, **options)  # type: ignore[arg-type]
    assert "127.0.0.1" not in str(found.value)
    return found.value


class Held:
    """An answer that is held back until it is released."""

    def __init__(self, answer: bytes = b"") -> None:
        self.release = threading.Event()
        self.answer = answer or reply(b"ok")

    def __call__(self, connection: socket.socket, _request: Received) -> None:
        self.release.wait(30)
        connection.sendall(self.answer)


def test_a_connection_serves_several_requests() -> None:
    with Backend(reply(b"one"), reply(b"two")) as backend:
        endpoint = RemoteEndpoint(f"{backend.url}/ask?of=me")
        bodies = [endpoint.ask("POST", {"X-A": "1"}, b"body").body for _ in range(2)]
        assert bodies == [b"one", b"two"]
        assert backend.connections == 1
        assert backend.requests[0].line == "POST /ask?of=me HTTP/1.1"
        assert backend.requests[0].body == b"body"
        assert backend.requests[0].value("Host") == endpoint.authority
        endpoint.close()


def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    with Backend(cut(reply(b"one")), reply(b"two")) as backend:
        endpoint = RemoteEndpoint(backend.url)
        assert endpoint.ask("POST", {}, b"x").body == b"one"
        assert endpoint.ask("POST", {}, b"x").body == b"two"
        endpoint.close()


def test_a_body_without_bytes_is_framed() -> None:
    with Backend() as backend:
        RemoteEndpoint(backend.url).ask("POST", {})
        assert backend.requests[0].value("Content-Length") == "0"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (cut(b""), "the connection was closed"),
        (cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), "its answer is not valid HTTP"),
        (reply(b"x" * 70_000), "its answer is larger than 65536 bytes"),
        (b"nonsense\r\n\r\n", "its answer is not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nA: \0\r\nContent-Length: 0\r\n\r\n", "its answer is not valid HTTP"),
        (reply(b"", status="503 Busy"), "it answered 503"),
    ],
)
def test_an_answer_that_cannot_be_used_is_a_failure(answer: bytes, why: str) -> None:
    with Backend(answer) as backend:
        assert str(failure(RemoteEndpoint(backend.url))) == why


def test_an_endless_body_is_read_to_the_bound_only() -> None:
    def endless(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        except OSError:
            return False

    with Backend(endless) as backend:
        endpoint = RemoteEndpoint(backend.url, max_bytes=8192)
        assert str(failure(endpoint)) == "its answer is larger than 8192 bytes"


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"])
def test_an_answer_that_drips_does_not_extend_the_time_limit(begin: bytes) -> None:
    stop = threading.Event()

    def drip(connection: socket.socket, _request: Received) -> bool:
        try:
            connection.sendall(begin)
            while not stop.wait(0.02):
                connection.sendall(b"H" if begin else b"HTTP/1.1 200 OK\r\n"[:1])
        except OSError:
            pass
        return False

    with Backend(drip) as backend:
        try:
            error = failure(RemoteEndpoint(backend.url, timeout=0.3))
        finally:
            stop.set()
    assert error.timed_out or "not valid HTTP" in str(error)


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    with Backend() as inside, Backend() as backend:
        backend.answers = [reply(status="302 Found", fields=[("Location", inside.url)])]
        assert RemoteEndpoint(backend.url).ask("GET", {}).status == 302
        assert not inside.requests


def test_the_circuit_opens_and_one_probe_closes_it() -> None:
    clock = FakeClock()
    with Backend(cut(b"")) as backend:
        rules = CircuitRules(consecutive_failures=3, failure_rate=None, open_for=1.0, probes=1)
        endpoint = RemoteEndpoint(backend.url, circuit=rules, clock=clock)
        for _ in range(3):
            failure(endpoint)
        asked = len(backend.requests)
        error = failure(endpoint)
        assert str(error) == "it has failed too often: the connection was closed"
        assert error.again_in == pytest.approx(1.0)
        assert len(backend.requests) == asked, "it was asked while the circuit was open"
        assert endpoint.status() == {
            "circuit": "OPEN",
            "in_flight": 0,
            "waiting": 0,
            "error": "the connection was closed",
        }
        backend.answers = [reply(b"ok")]
        clock.advance(1.5)
        assert endpoint.ask("GET", {}).body == b"ok"
        assert endpoint.status() == {"circuit": "CLOSED", "in_flight": 0, "waiting": 0}


def test_a_status_that_a_client_can_provoke_does_not_open_the_circuit() -> None:
    with Backend(reply(b"oops", status="500 Oops")) as backend:
        endpoint = RemoteEndpoint(backend.url)
        assert [endpoint.ask("GET", {}).status for _ in range(20)] == [500] * 20


def test_places_are_bounded_and_not_waited_for_for_long() -> None:
    held = Held()
    with Backend(held) as backend:
        endpoint = RemoteEndpoint(backend.url, timeout=20, max_concurrent=1, circuit=NO_CIRCUIT)
        endpoint.patience = 20
        replies: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: replies.append(endpoint.ask("GET", {}).body))
            for _ in range(2)
        ]
        threads[0].start()
        backend.wait_for_requests(1)
        threads[1].start()
        until(lambda: endpoint.status()["waiting"] == 1)
        endpoint.patience = 0.01
        assert str(failure(endpoint)) == "1 requests wait for its answer already"
        assert len(backend.requests) == 1
        held.release.set()
        for thread in threads:
            thread.join(30)
        assert replies == [b"ok", b"ok"]
        assert endpoint.status()["in_flight"] == 0


def test_requests_that_wait_for_a_place_fail_when_the_circuit_opens() -> None:
    release = threading.Event()

    def closing(connection: socket.socket, _request: Received) -> bool:
        release.wait(30)
        return False

    with Backend(closing) as backend:
        rules = CircuitRules(consecutive_failures=1, failure_rate=None, open_for=60.0)
        endpoint = RemoteEndpoint(backend.url, timeout=25, max_concurrent=1, circuit=rules)
        endpoint.patience = 25
        errors: list[str] = []
        threads = [
            threading.Thread(target=lambda: errors.append(str(failure(endpoint)))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        backend.wait_for_requests(1)
        release.set()
        for thread in threads:
            thread.join(30)
        assert sorted(errors) == [
            "it has failed too often: the connection was closed",
            "the connection was closed",
        ]


@pytest.mark.parametrize(
    ("url", "private", "why"),
    [
        ("https://169.254.169.254/x", False, "an endpoint cannot be at a link-local address"),
        ("http://169.254.169.254/x", True, "an endpoint cannot be at a link-local address"),
        ("http://192.0.2.7/x", True, "an endpoint cannot be outside of the allowed networks"),
        ("https://[::ffff:169.254.169.254]/", False, "an endpoint cannot be at a link-local"),
        ("https://0.0.0.0/", False, "an endpoint cannot be at an unspecified address"),
    ],
)
def test_an_address_that_no_instance_may_have_is_not_connected_to(
    url: str, private: bool, why: str
) -> None:
    assert why in str(failure(RemoteEndpoint(url, private=private)))


@pytest.mark.parametrize(
    ("url", "private", "why"),
    [
        ("ftp://id.example.com/", True, "must begin with https://"),
        ("http://id.example.com/", False, "must begin with https://"),
        ("https://user:pass@id.example.com/", False, "without a user"),
        ("https://id.example.com/#x", False, "without a user, spaces and a fragment"),
        ("https://id.example.com/a b", False, "without a user, spaces"),
        ("https://[::1/", False, "is not a URL"),
        ("https:///x", False, "expected a URL such as"),
    ],
)
def test_a_url_that_must_not_be_asked_is_an_error(url: str, private: bool, why: str) -> None:
    with pytest.raises(ValueError, match=r"^address: ") as found:
        check_url(url, "address", example="https://id.example.com/", private=private)
    assert why in str(found.value)
    assert "pass" not in str(found.value)


@pytest.mark.parametrize("url", ["http://auth:9091/verify", "http://10.0.0.4/", "http://[::1]/"])
def test_plain_http_leads_to_private_addresses(url: str) -> None:
    check_url(url, "address", example="https://id.example.com/", private=True)


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": 61}, {"max_concurrent": 0}, {"ca": "missing.pem"}]
)
def test_an_option_that_is_out_of_range_is_an_error(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: "):
        RemoteEndpoint("https://id.example.com/", **options)  # type: ignore[arg-type]


IN_A_CHILD = """
import os, threading
from wsgigate.client.endpoint import RemoteEndpoint, EndpointFailed
from wsgigate.testing.backend import Backend

release = threading.Event()
with Backend(lambda connection, request: release.wait(30) and False) as backend:
    endpoint = RemoteEndpoint(backend.url, timeout=20, max_concurrent=1)

    def ask():
        try:
            endpoint.ask("GET", {})
        except EndpointFailed:
            pass

    thread = threading.Thread(target=ask)
    thread.start()
    backend.wait_for_requests(1)
    child = os.fork()
    if not child:
        endpoint.timeout = 0.2  # the backend does not answer before
        try:
            endpoint.ask("GET", {})
        except EndpointFailed as error:
            os._exit(0 if "no answer in time" in str(error) else 3)
        os._exit(4)
    _, status = os.waitpid(child, 0)
    release.set()
    thread.join(30)
assert os.waitstatus_to_exitcode(status) == 0, status
"""


def test_a_fork_in_the_middle_of_an_exchange_leaves_no_place_taken() -> None:
    run_alone(IN_A_CHILD)
