"""What the proxy counts: each event once, in one series, and nothing else."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from tests.proxy.clients import Departing, Reader, pool_of
from tests.proxy.conftest import Forward
from tests.support.logs import silence
from tests.support.metrics import Measured
from tests.support.ports import refused_port
from tests.support.waiting import until
from wsgigate.client.adapter import Sessions
from wsgigate.coordination.circuit import Circuit
from wsgigate.discovery import Instance
from wsgigate.http.wsgi import ATTEMPTS, UPSTREAM_SECONDS, ClientLeft, close_body
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.bulkhead import Bulkhead
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.response import UpstreamCut
from wsgigate.rules.circuit import CircuitRules
from wsgigate.rules.outlier import OutlierRules
from wsgigate.rules.retry import HedgeRules, RetryRules
from wsgigate.runtime.threads import Timer
from wsgigate.testing import FakeClock
from wsgigate.testing.backend import Backend, Received, cut, reply
from wsgigate.testing.fakes import Server, new_environ

_circuits, _pool = silence("wsgigate.circuits"), silence("wsgigate.pool")

ATTEMPT = "http_client_request_duration_seconds"
BUSY = reply(b"busy", status="503 Service Unavailable")
WELL = reply(b"well")


def address(backend: Backend) -> str:
    return backend.url.removeprefix("http://")


def test_each_attempt_is_one_observation_with_its_status(
    backend: Backend, forward: Forward, measured: Measured
) -> None:
    backend.answers = [WELL, reply(b"no", status="404 Not Found"), BUSY]
    client = forward(backend.url)
    for _ in range(3):
        client.get("/", buffered=True)
    here = address(backend)
    assert measured.series(ATTEMPT) == {
        ("svc", here, "200", ""): 1.0,
        ("svc", here, "404", ""): 1.0,
        ("svc", here, "503", "503"): 1.0,
    }
    assert not measured.series("wsgigate_upstream_retries")
    assert not measured.series("wsgigate_upstream_active_requests")


def test_a_retry_counts_by_the_status_of_the_attempt_before(
    backend: Backend, retrying: Forward, measured: Measured
) -> None:
    backend.answers = [WELL]
    with Backend(BUSY) as ill:
        client = retrying(ill.url, backend.url)
        assert client.get("/").data == b"well"
    assert measured.series("wsgigate_upstream_retries") == {("svc", "503"): 1.0}
    assert measured.value(ATTEMPT, instance=address(ill)) == 1
    assert measured.value(ATTEMPT, instance=address(backend)) == 1


def test_a_retry_that_is_not_made_is_not_counted(
    backend: Backend, retrying: Forward, measured: Measured
) -> None:
    backend.answers = [BUSY]
    assert retrying(backend.url, rules=RetryRules(attempts=2)).get("/").status_code == 503
    assert measured.value("wsgigate_upstream_retries") == 1
    assert measured.value(ATTEMPT) == 2
    assert retrying(backend.url).post("/", data=b"x").status_code == 503
    assert measured.value("wsgigate_upstream_retries") == 1


def test_another_instance_after_a_refused_connection_is_a_retry(
    backend: Backend, measured: Measured, sessions: Sessions
) -> None:
    with refused_port() as port:
        gone = f"http://127.0.0.1:{port}"
        client = Reader(Forwarder(pool_of(gone, backend.url), sessions=sessions))
        assert client.get("/").status_code == 200
    assert measured.series("wsgigate_upstream_retries") == {("svc", "connection_refused"): 1.0}
    assert measured.value(ATTEMPT, error_type="connection_refused") == 1
    assert measured.value("wsgigate_upstream_connections", result="failed") == 1
    assert measured.value("wsgigate_upstream_connections", result="opened") == 1


def test_connections_are_opened_once_and_then_reused(
    backend: Backend, forward: Forward, measured: Measured
) -> None:
    client = forward(backend.url)
    for _ in range(3):
        client.get("/", buffered=True)
    assert measured.series("wsgigate_upstream_connections") == {
        ("svc", "opened"): 1.0,
        ("svc", "reused"): 2.0,
    }


@pytest.mark.parametrize(
    ("answer", "error"),
    [(cut(b""), "invalid_response"), (reply(b"", status="xyz"), "invalid_response")],
)
def test_an_attempt_without_a_valid_response_has_an_error(
    answer: Any, error: str, backend: Backend, forward: Forward, measured: Measured
) -> None:
    backend.answers = [answer]
    assert forward(backend.url).post("/", data=b"x").status_code == 502
    assert measured.series(ATTEMPT) == {("svc", address(backend), "", error): 1.0}


def test_a_cut_response_is_counted_once_though_it_is_closed_twice(
    backend: Backend, forward: Forward, measured: Measured
) -> None:
    backend.answers = [cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")]
    body = forward(backend.url).application(new_environ(), lambda *_: print)
    with pytest.raises(UpstreamCut):
        list(body)
    for _ in range(2):
        close_body(body)
    assert measured.series("wsgigate_upstream_responses_cut") == {("svc", "instance"): 1.0}
    assert measured.value(ATTEMPT, http_response_status_code="200") == 1
    assert not measured.series("wsgigate_upstream_active_requests")


def test_a_client_that_leaves_while_it_reads_cuts_the_response(
    backend: Backend, sessions: Sessions, measured: Measured
) -> None:
    departing = Departing()

    def answer(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        return connection.recv(1) != b""

    backend.answers = [answer]
    app = Forwarder(pool_of(backend.url), sessions=sessions, disconnects=departing)
    body = app(new_environ(), lambda *_: print)
    blocks = iter(body)
    assert next(blocks) == b"half"
    assert measured.value("wsgigate_upstream_active_requests", instance=address(backend)) == 1
    departing.client.disconnected()
    with pytest.raises(ClientLeft):
        next(blocks)
    close_body(body)
    assert measured.series("wsgigate_upstream_responses_cut") == {("svc", "client"): 1.0}
    assert not measured.series("wsgigate_upstream_active_requests")


def test_a_request_that_cannot_be_made_is_no_attempt(
    backend: Backend, forward: Forward, measured: Measured
) -> None:
    environ = new_environ() | {"HTTP_X": "bad\0value"}
    assert Server().serve(forward(backend.url).application, environ).status[:3] == "400"
    assert not measured.series(ATTEMPT)
    assert ATTEMPTS not in environ


def test_the_environ_has_the_attempts_and_the_time_that_they_took(
    backend: Backend, measured: Measured, sessions: Sessions
) -> None:
    times = iter(range(0, 1000, 3))
    resilience = Resilience(
        retry=RetryRules(attempts=2), clock=lambda: next(times), sleep=lambda _: None
    )
    backend.answers = [BUSY, WELL]
    environ = new_environ()
    app = Forwarder(pool_of(backend.url), sessions=sessions, resilience=resilience)
    assert Server().serve(app, environ).chunks == [b"well"]
    assert environ[ATTEMPTS] == 2
    assert environ[UPSTREAM_SECONDS] == 6.0
    assert measured.value(ATTEMPT) == 2


def test_the_time_for_which_a_body_is_waited_for_counts_as_the_services(
    backend: Backend, forward: Forward
) -> None:
    def slowly(connection: socket.socket, _request: Received) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
        released.wait(20)
        connection.sendall(b"lf")

    released = threading.Event()
    backend.answers = [slowly]
    environ = new_environ()
    body = forward(backend.url).application(environ, lambda *_: print)
    blocks = iter(body)
    assert next(blocks) == b"ha"
    head = environ[UPSTREAM_SECONDS]
    released.set()
    assert b"".join(blocks) == b"lf"
    close_body(body)
    assert environ[UPSTREAM_SECONDS] > head


def silent(connection: socket.socket, _request: Received) -> bool:
    return connection.recv(1) != b""  # until the gateway lets go


def test_a_hedged_attempt_that_wins(measured: Measured, sessions: Sessions) -> None:
    resilience = Resilience(hedge=HedgeRules(after=0.01), timer=Timer())
    with Backend(silent) as slow, Backend(WELL) as fast:
        pool = pool_of(slow.url, fast.url)
        environ = new_environ()
        app = Forwarder(pool, sessions=sessions, resilience=resilience)
        assert Server().serve(app, environ).chunks == [b"well"]
        pool.wait_until_idle()
        assert measured.series("wsgigate_upstream_hedges") == {("svc", "won"): 1.0}
        assert environ[ATTEMPTS] == 2
        assert measured.series(ATTEMPT) == {
            ("svc", address(fast), "200", ""): 1.0,
            ("svc", address(slow), "", "canceled"): 1.0,
        }
        assert not measured.series("wsgigate_upstream_retries")


def test_a_hedged_attempt_that_fails(measured: Measured, sessions: Sessions) -> None:
    resilience = Resilience(hedge=HedgeRules(after=0.01), timer=Timer())

    def late(connection: socket.socket, _request: Received) -> None:
        until(lambda: bool(measured.series("wsgigate_upstream_hedges")))
        connection.sendall(WELL)

    with Backend(cut(b"")) as broken, Backend(late) as slow:
        app = Forwarder(pool_of(slow.url, broken.url), sessions=sessions, resilience=resilience)
        assert Server().serve(app, new_environ()).chunks == [b"well"]
        assert measured.series("wsgigate_upstream_hedges") == {("svc", "failed"): 1.0}


def test_an_ejection_counts_by_instance(
    backend: Backend, sessions: Sessions, clock: FakeClock, measured: Measured
) -> None:
    rules = OutlierRules(consecutive_failures=2, eject_for=10)
    with Backend(BUSY) as ill:
        pool = Pool(  # a name that no other test has left
            *("meter", [Instance(ill.url), Instance(backend.url)]),
            balance="round-robin",
            outlier=rules,
            clock=clock,
        )
        client = Reader(Forwarder(pool, sessions=sessions))
        for _ in range(6):
            client.get("/")
        assert measured.series("wsgigate_upstream_ejections") == {
            ("meter", address(ill), "consecutive_failures"): 1.0
        }
        found = {
            status: measured.value("wsgigate_instances", service="meter", status=status)
            for status in ("healthy", "unhealthy", "ejected", "drained")
        }
        assert found == {"healthy": 1.0, "unhealthy": 0.0, "ejected": 1.0, "drained": 0.0}
        name = "wsgigate_instance_available"
        assert measured.value(name, service="meter", instance=address(backend)) == 1
        assert measured.value(name, service="meter", instance=address(ill)) == 0


def test_a_circuit_counts_its_transitions_and_shows_its_state(
    backend: Backend, sessions: Sessions, clock: FakeClock, measured: Measured
) -> None:
    rules = CircuitRules(consecutive_failures=2, open_for=5, jitter=0, probes=1)
    circuit = Circuit("meter", rules, clock=clock)  # a name that no other test has left
    resilience = Resilience(circuit=circuit, clock=clock)
    backend.answers = [BUSY, BUSY, WELL]
    client = Reader(Forwarder(pool_of(backend.url), sessions=sessions, resilience=resilience))
    for _ in range(4):
        client.get("/")
    transitions, state = "wsgigate_circuit_transitions", "wsgigate_circuit_state"
    assert measured.series(transitions) == {("meter", "open"): 1.0}
    assert measured.value(state, service="meter", state="open") == 1
    assert measured.value(ATTEMPT) == 2
    clock.advance(6)
    client.get("/")
    assert measured.series(transitions) == {
        ("meter", "open"): 1.0,
        ("meter", "half_open"): 1.0,
        ("meter", "closed"): 1.0,
    }
    assert [measured.value(state, service="meter", state=each) for each in ("open", "closed")] == [
        0.0,
        1.0,
    ]


def test_a_full_bulkhead_counts_the_rejected_request(
    backend: Backend, sessions: Sessions, measured: Measured
) -> None:
    bulkhead = Bulkhead(1)
    app = Forwarder(
        pool_of(backend.url), sessions=sessions, resilience=Resilience(bulkhead=bulkhead)
    )
    held = bulkhead.enter()
    assert Reader(app).get("/").status_code == 503
    held.leave()
    assert Reader(app).get("/").status_code == 200
    assert measured.series("wsgigate_bulkhead_rejected") == {("svc",): 1.0}
    assert measured.value(ATTEMPT) == 1


# Instances that come and go.


def test_what_was_measured_of_a_removed_instance_is_dropped(
    backend: Backend, sessions: Sessions, measured: Measured
) -> None:
    pool = pool_of(backend.url)
    client = Reader(Forwarder(pool, sessions=sessions))
    client.get("/")
    with Backend() as other:
        pool.renew([Instance(other.url)])
        client.get("/")
        assert measured.series(ATTEMPT) == {("svc", address(other), "200", ""): 1.0}


def test_a_removed_instance_is_measured_until_its_last_request_has_ended(
    measured: Measured,
) -> None:
    pool = Pool("svc", [Instance("http://10.0.0.1:8000")])
    lease = pool.pick()
    assert lease is not None
    pool.renew([Instance("http://10.0.0.2:8000")])
    assert measured.value("wsgigate_upstream_active_requests", instance="10.0.0.1:8000") == 1
    lease.member.meter.attempted(0.1, 200)
    assert measured.value(ATTEMPT, instance="10.0.0.1:8000") == 1
    lease.release()
    lease.release()
    assert not measured.series(ATTEMPT)


def test_instances_deployed_one_after_the_other_do_not_fill_the_table(
    measured: Measured,
) -> None:
    pool = Pool("svc", [])
    for number in range(5000):
        pool.renew([Instance(f"http://10.0.{number // 256}.{number % 256}:8000")])
        lease = pool.pick()
        assert lease is not None
        lease.member.meter.attempted(0.1, 200)
        lease.release()
    assert measured.series(ATTEMPT) == {("svc", "10.0.19.135:8000", "200", ""): 1.0}
    assert not measured.series("wsgigate_metrics_folded")
