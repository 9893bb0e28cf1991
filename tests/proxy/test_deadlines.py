"""Timeouts of attempts, and the deadline of a request, which its client can shorten."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.proxy.clients import Reader, ServiceClient
from tests.support.logs import silence
from wsgigate.client.adapter import Sessions
from wsgigate.coordination.circuit import Circuit
from wsgigate.discovery import Instance
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.rules.circuit import CircuitRules
from wsgigate.rules.retry import RetryRules
from wsgigate.testing import FakeClock
from wsgigate.testing.backend import Backend, Received, reply

BAD = reply(b"busy", status="503 Service Unavailable")
Make = Callable[..., ServiceClient]


_silent = silence("wsgigate.circuits")


def silent(connection: socket.socket, _request: Received) -> bool:
    return connection.recv(1) != b""


def test_an_attempt_that_exceeds_its_timeout_is_retried(backend: Backend, clock: FakeClock) -> None:
    """Not over ``requests``' own adapter, which knows no such time."""
    sessions = Sessions()
    with Backend(silent) as first:
        pool = Pool(
            "svc",
            [Instance(first.url), Instance(backend.url)],
            balance="round-robin",
            random=lambda: 0.0,
        )
        rules = RetryRules(attempts=4, per_try_timeout=0.5)  # the second, or the next to it
        given = Resilience(retry=rules, clock=clock, sleep=lambda _: None)
        client = Reader(Forwarder(pool, sessions=sessions, resilience=given))
        assert client.get("/").data == b"ok"
        first.wait_until_closed()
    sessions.close()


def test_no_retry_starts_without_time_left(
    backend: Backend, retrying: Make, clock: FakeClock
) -> None:
    def slow(connection: socket.socket, request: Received) -> bool:
        clock.advance(29.99)
        connection.sendall(BAD)
        return True

    with Backend(slow) as first:
        client = retrying(first.url, backend.url, rules=RetryRules(backoff=0.1))
        assert client.get("/").status_code == 503
        assert backend.requests == []


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        ("2", "2.000"),
        ("250ms", "0.250"),
        ("0.5s", "0.500"),
        ("3600", "30.000"),
        ("soon", "30.000"),
        (None, None),
    ],
)
def test_a_client_can_shorten_the_timeout_which_is_passed_on(
    asked: str | None, passed: str | None, backend: Backend, retrying: Make
) -> None:
    fields = {} if asked is None else {"X-Request-Timeout": asked}
    retrying(backend.url).get("/", headers=fields)
    assert backend.requests[0].value("X-Request-Timeout") == passed


def test_a_retry_passes_the_remaining_time_on(
    backend: Backend, retrying: Make, clock: FakeClock
) -> None:
    def slow(connection: socket.socket, request: Received) -> bool:
        clock.advance(1.5)
        connection.sendall(BAD)
        return True

    with Backend(slow) as first:
        client = retrying(first.url, backend.url)
        assert client.get("/", headers={"X-Request-Timeout": "2"}).status_code == 200
    assert backend.requests[0].value("X-Request-Timeout") == "0.500"


@pytest.mark.parametrize("guarded", [False, True])
def test_exceeding_only_the_clients_timeout_is_no_failure_of_the_service(
    guarded: bool, clock: FakeClock
) -> None:
    circuit = Circuit("svc", CircuitRules(), clock=clock)
    given = Resilience(circuit=circuit) if guarded else None
    sessions = Sessions()
    with Backend(silent) as first:
        pool = Pool("svc", [Instance(first.url)])
        client = Reader(Forwarder(pool, sessions=sessions, resilience=given))
        late = client.get("/", headers={"X-Request-Timeout": "300ms"})
        assert (late.status_code, late.get_json()["error"]) == (504, "Request timeout")
        assert circuit.status()[1:3] == (0, 0)
        if guarded:
            hasty = Forwarder(pool, sessions=sessions, resilience=given, read_timeout=0.05)
            assert Reader(hasty).get("/", headers={"X-Request-Timeout": "9"}).status_code == 504
            assert circuit.status()[1:3] == (1, 0)  # too late for anybody
    sessions.close()
