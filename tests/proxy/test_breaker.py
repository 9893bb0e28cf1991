"""The circuit breaker of a service: which outcomes count, and the forwarders that share it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from tests.proxy.clients import Reader, ServiceClient
from tests.support.logs import silence
from tests.support.ports import refused_port
from wsgigate.client.adapter import Adapter, Sessions, gateway_session
from wsgigate.coordination.circuit import Circuit
from wsgigate.discovery import Instance
from wsgigate.http.wsgi import REASON, close_body
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.response import UpstreamCut
from wsgigate.rules.circuit import CircuitRules, State
from wsgigate.testing import FakeClock
from wsgigate.testing.backend import Backend, Received, cut, reply

RULES = CircuitRules(consecutive_failures=2, open_for=5, jitter=0, probes=1)
BAD = reply(b"no", status="500 Internal Server Error")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OPEN = {"message": "Service temporarily unavailable", "error": "Circuit breaker open"}

Make = Callable[..., ServiceClient]


_silent = silence("wsgigate.circuits")


@pytest.fixture
def make(sessions: Sessions, clock: FakeClock) -> Make:
    """Return a maker of clients of a forwarder, which know its circuit."""

    def make(url: str, rules: CircuitRules = RULES, **options: Any) -> ServiceClient:
        circuit = Circuit("svc", rules, clock=clock, random=lambda: 0.0)
        given = Resilience(circuit=circuit, clock=clock, **options.pop("guarded", {}))
        pool = options.pop("pool", None) or Pool("svc", [Instance(url)])
        forwarder = Forwarder(pool, sessions=sessions, resilience=given, **options)
        client = Reader(forwarder, use_cookies=False)
        client.circuit, client.pool = circuit, pool
        client.given = given
        return client

    return make


def counts(client: ServiceClient) -> tuple[str, int, int]:
    state, failures, successes, *_ = client.circuit.status()
    return state.value, failures, successes


def test_failures_open_the_circuit_and_no_request_is_sent(
    backend: Backend, make: Make, clock: FakeClock
) -> None:
    backend.answers = [BAD, BAD, reply(b"well")]
    client = make(backend.url)
    assert [client.get("/").status_code for _ in range(2)] == [500, 500]
    refused = client.get("/")
    assert refused.status_code == 503
    assert {key: refused.get_json()[key] for key in OPEN} == OPEN
    assert refused.headers["Retry-After"] == "5"
    environ = EnvironBuilder("/").get_environ()
    list(client.application(environ, lambda *_: lambda _: None))
    assert environ[REASON] == "the circuit 'svc' is open"
    assert len(backend.requests) == 2
    clock.advance(5)
    assert client.get("/").data == b"well"  # the probe
    assert counts(client) == ("CLOSED", 0, 1)
    assert client.get("/").data == b"well"


def test_all_forwarders_of_a_service_share_the_circuit(
    backend: Backend, make: Make, sessions: Sessions
) -> None:
    backend.answers = [BAD]
    client = make(backend.url)
    given = client.given
    other = Client(Forwarder(client.pool, sessions=sessions, resilience=given))
    client.get("/")
    other.get("/")
    assert client.get("/").status_code == other.get("/").status_code == 503
    assert len(backend.requests) == 2


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_failure_status_counts(status: int, backend: Backend, make: Make) -> None:
    backend.answers = [reply(b"", status=f"{status} No")]
    client = make(backend.url)
    client.get("/")
    assert counts(client) == ("CLOSED", 1, 0)


@pytest.mark.parametrize("status", [400, 401, 404, 408, 409, 429, 499])
def test_errors_of_the_client_do_not_count(status: int, backend: Backend, make: Make) -> None:
    backend.answers = [BAD, reply(b"", status=f"{status} No")]
    client = make(backend.url)
    client.get("/")
    client.get("/")
    assert counts(client) == ("CLOSED", 1, 0)


@pytest.mark.parametrize("status", [200, 204, 304, 501])
def test_any_other_response_is_a_success(status: int, backend: Backend, make: Make) -> None:
    backend.answers = [BAD, f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()]
    client = make(backend.url)
    client.get("/")
    client.get("/")
    assert counts(client) == ("CLOSED", 0, 1)


def test_the_failure_statuses_can_be_configured(backend: Backend, make: Make) -> None:
    backend.answers = [BAD, reply(b"", status="501 No")]
    client = make(backend.url, guarded={"failures": [501]})
    client.get("/")
    assert counts(client) == ("CLOSED", 0, 1)
    client.get("/")
    assert counts(client) == ("CLOSED", 1, 1)
    with pytest.raises(ValueError, match="500 to 599"):
        Resilience(failures=[404])


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (cut(b""), 502),
        (cut(b"HTTP/1.1 200 OK\r\nContent-"), 502),
        (cut(b"gibberish\r\n\r\n"), 502),
        (reply(b"", status="999 No"), 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX: a\x01b\r\n\r\nx", 502),
    ],
)
def test_a_missing_response_is_a_failure(
    answer: Any, status: int, backend: Backend, make: Make
) -> None:
    backend.answers = [answer]
    client = make(backend.url)
    assert client.get("/").status_code == status
    assert counts(client) == ("CLOSED", 1, 0)


def test_a_timeout_is_a_failure(backend: Backend, make: Make) -> None:
    backend.answers = [lambda connection, request: connection.recv(1) != b""]
    client = make(backend.url, read_timeout=0.05)
    assert client.get("/").status_code == 504
    assert counts(client) == ("CLOSED", 1, 0)


def test_failed_connections_are_counted_by_their_own_rule(make: Make) -> None:
    with refused_port() as port:
        rules = CircuitRules(connect_failures=3, failure_rate=None)
        client = make(f"http://127.0.0.1:{port}", rules)
        answers = [client.get("/").get_json()["error"] for _ in range(4)]
    assert answers == ["Connection refused"] * 3 + ["Circuit breaker open"]


@pytest.mark.parametrize(
    "answer",
    [
        cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
        cut(CHUNKED + b"4\r\nhalf\r\n"),
    ],
)
def test_a_truncated_response_is_a_failure(answer: Any, backend: Backend, make: Make) -> None:
    backend.answers = [answer]
    client = make(backend.url)
    with pytest.raises(UpstreamCut):
        client.get("/")
    assert counts(client) == ("CLOSED", 1, 0)


def test_a_response_counts_at_its_end_and_that_of_a_probe_at_its_head(
    backend: Backend, make: Make, clock: FakeClock
) -> None:
    def endless(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(CHUNKED + b"1\r\na\r\n")
        return connection.recv(1) != b""

    backend.answers = [endless, BAD, BAD, endless]
    client = make(backend.url)
    first, *_ = run_wsgi_app(client.application, EnvironBuilder("/").get_environ())
    assert counts(client) == ("CLOSED", 0, 0)
    close_body(first)  # the client has enough
    assert counts(client) == ("CLOSED", 0, 1)
    client.get("/")
    client.get("/")
    clock.advance(5)
    probe, *_ = run_wsgi_app(client.application, EnvironBuilder("/").get_environ())
    assert counts(client)[0] == "CLOSED"
    close_body(probe)


@pytest.mark.parametrize(
    "options",
    [
        {"path": "/", "environ_overrides": {"HTTP_X": "a\r\nb"}},
        {"path": "/", "environ_overrides": {"RAW_URI": "/%zz"}},
        {"path": "/", "method": "POST", "environ_overrides": {"CONTENT_LENGTH": "9"}},
        {"path": "/", "environ_overrides": {"SERVER_PROTOCOL": "HTTP/1.2"}},
    ],
)
def test_an_invalid_request_does_not_count_even_as_a_probe(
    options: dict[str, Any], backend: Backend, make: Make, clock: FakeClock
) -> None:
    backend.answers = [BAD, BAD, reply(b"well")]
    client = make(backend.url)
    client.get("/")
    client.get("/")
    clock.advance(5)
    for _ in range(3):
        assert client.open(**options).status_code in (400, 505)
    assert counts(client) == ("HALF_OPEN", 2, 0)
    assert client.get("/").data == b"well"
    assert counts(client)[0] == "CLOSED"


def test_a_lack_of_instances_does_not_count(backend: Backend, make: Make) -> None:
    client = make(backend.url, pool=Pool("svc", []))
    for _ in range(4):
        assert client.get("/").get_json()["error"] == "No instance available"
    assert counts(client) == ("CLOSED", 0, 0)


def test_a_full_connection_pool_does_not_count(backend: Backend, clock: FakeClock) -> None:
    def session() -> requests.Session:
        made = gateway_session()
        made.mount("http://", Adapter(max_open=1))
        return made

    backend.answers = [lambda connection, request: connection.recv(1) != b""]
    circuit = Circuit("svc", RULES, clock=clock)
    sessions = Sessions(session)
    pool = Pool("svc", [Instance(backend.url)])
    forwarder = Forwarder(
        pool,
        sessions=sessions,
        resilience=Resilience(circuit=circuit, clock=clock),
        connect_timeout=0.05,
    )
    adapter: Any = sessions.adapter(backend.url)
    held = adapter.pool(backend.url).acquire(0.0, time.monotonic() + 10)
    try:
        answer = Client(forwarder).get("/")
        assert (answer.status_code, answer.get_json()["error"]) == (503, "Too many connections")
        assert circuit.status()[:3] == (State.CLOSED, 0, 0)
    finally:
        held.close()
        sessions.close()


def test_slow_responses_are_measured_until_their_head(backend: Backend, make: Make) -> None:
    ticks = iter(range(0, 10_000, 100))
    rules = CircuitRules(slow_after=50, slow_rate=1.0, minimum_calls=2, failure_rate=None)
    client = make(backend.url, rules)
    client.given.clock = lambda: float(next(ticks))
    client.get("/")
    client.get("/")
    assert counts(client)[0] == "OPEN"


def test_every_outcome_releases_the_instance(backend: Backend, make: Make) -> None:
    backend.answers = [BAD, cut(b""), reply(b"", status="404 No"), reply(b"well"), BAD, BAD]
    client = make(backend.url)
    for _ in range(8):
        client.get("/")
    assert set(client.pool.in_flight().values()) == {0}


def test_an_open_circuit_rejects_websockets_but_does_not_count_them(
    backend: Backend, make: Make, clock: FakeClock
) -> None:
    backend.answers = [BAD]
    client = make(backend.url, websocket=True)
    ends = socket.socketpair()
    asks = {
        "werkzeug.socket": ends[0],
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_UPGRADE": "websocket",
        "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
    }
    for _ in range(3):
        assert client.get("/", environ_overrides=asks).data == b"no"
    assert counts(client) == ("CLOSED", 0, 0)
    client.get("/")
    client.get("/")
    assert client.get("/", environ_overrides=asks).get_json()["error"] == OPEN["error"]
    clock.advance(5)
    assert client.get("/", environ_overrides=asks).data == b"no"
    assert counts(client)[0] == "HALF_OPEN"  # and its probe is made once more
    client.get("/")
    assert counts(client)[0] == "OPEN"
    for end in ends:
        end.close()
