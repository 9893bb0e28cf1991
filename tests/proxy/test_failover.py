"""Without retries, a request whose connection fails goes to another instance; nothing was sent."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from requests.adapters import BaseAdapter
from werkzeug.test import EnvironBuilder

from tests.proxy.clients import Reader, ServiceClient
from tests.support.ports import refused_port
from wsgigate.client.adapter import Sessions, Timeout, gateway_session
from wsgigate.client.response_reader import NotConnected
from wsgigate.coordination.circuit import Circuit
from wsgigate.discovery import Instance
from wsgigate.http.wsgi import INSTANCE, REASON
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.rules.circuit import CircuitRules
from wsgigate.rules.outlier import OutlierRules
from wsgigate.rules.retry import RetryRules
from wsgigate.testing import FakeClock
from wsgigate.testing.backend import Backend, Received
from wsgigate.testing.fakes import Server

LARGE = b"0123456789" * 40_000


@pytest.fixture
def dead_url() -> Iterator[Callable[[], str]]:
    """Return a maker of URLs at which connections are refused."""
    with ExitStack() as reserved:
        yield lambda: f"http://127.0.0.1:{reserved.enter_context(refused_port())}"


def client_of(urls: list[str], sessions: Sessions, **options: Any) -> ServiceClient:
    outlier = options.pop("outlier", None)
    instances = [Instance(url) for url in urls]
    pool = Pool("svc", instances, balance="round-robin", random=lambda: 0.0, outlier=outlier)
    client = Reader(Forwarder(pool, sessions=sessions, **options), use_cookies=False)
    client.pool = pool
    return client


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_killing_one_of_three_instances_fails_no_request(method: str, sessions: Sessions) -> None:
    with Backend() as second, Backend() as third:
        with Backend() as first:
            three = [first, second, third]
            client = client_of([each.url for each in three], sessions)
            ask = lambda: client.open("/", method=method, data=b"body").status_code  # noqa: E731
            assert [ask() for _ in range(6)] == [200] * 6  # each has an idle connection now
        assert [ask() for _ in range(12)] == [200] * 12
        assert len(first.requests) == 2
        assert len(second.requests) + len(third.requests) == 4 + 12
        assert all(request.body == b"body" for each in three for request in each.requests)
    assert set(client.pool.in_flight().values()) == {0}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_body_reaches_the_next_instance_from_its_first_byte(
    chunked: bool,
    in_memory: bool,
    sessions: Sessions,
    backend: Backend,
    dead_url: Callable[[], str],
) -> None:
    client = client_of([dead_url(), dead_url(), backend.url], sessions)
    environ = EnvironBuilder("/", method="PATCH", data=LARGE).get_environ()
    body = io.BytesIO(b"read before" + LARGE)
    body.seek(len(b"read before"))
    environ["wsgi.input"] = body if in_memory else io.BufferedReader(body)
    if chunked:
        del environ["CONTENT_LENGTH"]
        environ |= {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    server = Server()
    server.serve(client.application, environ)
    assert server.status == "200 OK"
    assert backend.requests[0].body == LARGE
    assert environ[INSTANCE] == f"127.0.0.1:{backend.port}"


@pytest.mark.parametrize(("dead", "status"), [(2, 200), (3, 503)])
def test_a_request_has_at_most_three_attempts(
    dead: int, status: int, sessions: Sessions, backend: Backend, dead_url: Callable[[], str]
) -> None:
    client = client_of([*(dead_url() for _ in range(dead)), backend.url], sessions)
    assert client.get("/").status_code == status
    assert len(backend.requests) == (status == 200)


@pytest.mark.parametrize("count", [1, 2])
def test_each_instance_is_tried_once_and_its_failure_counted_once(
    count: int, sessions: Sessions, dead_url: Callable[[], str]
) -> None:
    clock = FakeClock()
    circuit = Circuit("svc", CircuitRules(consecutive_failures=9), clock=clock)
    resilience = Resilience(circuit=circuit, clock=clock)
    rules = OutlierRules(consecutive_failures=2, most_ejected=1.0)
    urls = [dead_url() for _ in range(count)]
    client = client_of(urls, sessions, resilience=resilience, outlier=rules)
    for number in (1, 2):
        answer = client.get("/")
        assert answer.status_code == 503
        assert answer.get_json()["error"] == "Connection refused"
        assert circuit.status()[1] == number * count
    ejected = client.pool.ejected()
    assert ejected == (sorted(urls) if count > 1 else [])  # the only one never is


def test_an_instance_that_refuses_connections_is_ejected_meanwhile(
    sessions: Sessions, backend: Backend, dead_url: Callable[[], str]
) -> None:
    rules = OutlierRules(consecutive_failures=2)
    dead = dead_url()
    client = client_of([dead, backend.url], sessions, outlier=rules)
    assert [client.get("/").status_code for _ in range(4)] == [200] * 4
    assert client.pool.ejected() == [dead]


def test_a_circuit_that_opens_meanwhile_ends_the_attempts(
    sessions: Sessions, backend: Backend, dead_url: Callable[[], str]
) -> None:
    circuit = Circuit("svc", CircuitRules(consecutive_failures=1))
    client = client_of([dead_url(), backend.url], sessions, resilience=Resilience(circuit=circuit))
    assert client.get("/").get_json()["error"] == "Connection refused"
    assert backend.requests == []


@pytest.mark.parametrize("rules", [None, RetryRules(attempts=1)])
def test_a_request_that_was_sent_is_not_repeated(
    rules: RetryRules | None, sessions: Sessions, backend: Backend
) -> None:
    def dies(_connection: socket.socket, _request: Received) -> bool:
        return False

    with Backend(dies) as first:
        resilience = Resilience(retry=rules)
        client = client_of([first.url, backend.url], sessions, resilience=resilience)
        assert client.get("/").status_code == 502
        assert (len(first.requests), len(backend.requests)) == (1, 0)


def test_one_attempt_disables_failover(
    sessions: Sessions, backend: Backend, dead_url: Callable[[], str]
) -> None:
    resilience = Resilience(retry=RetryRules(attempts=1))
    client = client_of([dead_url(), backend.url], sessions, resilience=resilience)
    assert [client.get("/").status_code for _ in range(2)] == [503, 200]


class Refusing(BaseAdapter):
    """Refuses every connection after some seconds, and records the timeouts.

    :param clock: Is advanced by *seconds* at each connection.
    """

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        super().__init__()
        self.timeouts: list[Timeout] = []
        self._clock = clock
        self._seconds = seconds

    def send(self, *_arguments: Any, timeout: Any = None, **_options: Any) -> Any:
        self.timeouts.append(timeout)
        self._clock.advance(self._seconds)
        raise NotConnected(ConnectionRefusedError(111, "refused"))

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("seconds", "connect"), [(2.0, [2.0]), (1.5, [2.0, 0.5]), (0.25, [2.0, 1.75, 1.5])]
)
def test_all_connections_together_get_the_time_of_one(seconds: float, connect: list[float]) -> None:
    clock = FakeClock()
    refusing = Refusing(clock, seconds)

    def session() -> Any:
        made = gateway_session()
        made.mount("http://", refusing)
        return made

    urls = [f"http://127.0.0.1:{port}" for port in range(1, 6)]
    resilience = Resilience(clock=clock)
    client = client_of(urls, Sessions(session), resilience=resilience, connect_timeout=2.0)
    assert client.get("/").status_code == 503
    assert [timeout[0] for timeout in refusing.timeouts] == pytest.approx(connect)


def test_the_log_has_the_reason_of_the_last_failure(
    sessions: Sessions, dead_url: Callable[[], str]
) -> None:
    client = client_of([dead_url(), dead_url()], sessions)
    environ = EnvironBuilder("/").get_environ()
    Server().serve(client.application, environ)
    assert "refused" in environ[REASON]
