"""The limits of requests in flight, per service and per instance."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.objects import hold_locks
from wsgigate.client.adapter import Sessions
from wsgigate.coordination.circuit import Circuit
from wsgigate.discovery import Instance
from wsgigate.http.problem import Refusal
from wsgigate.http.wsgi import close_body
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.bulkhead import Bulkhead
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.response import UpstreamCut
from wsgigate.rules.circuit import CircuitRules
from wsgigate.rules.retry import RetryRules
from wsgigate.testing.backend import Backend, Received, cut, reply
from wsgigate.testing.fakes import Server, new_environ

FULL = {
    "type": "about:blank",
    "status": 503,
    "message": "Service temporarily unavailable",
    "error": "Too many requests in flight",
}


class Gate:
    """Lets what waits at it pass when it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, connection: socket.socket, _request: Received) -> None:
        assert self.opened.wait(20)
        connection.sendall(reply(b"late"))


def of(
    *urls: str, sessions: Sessions, most: int = 2, pool: dict[str, Any] | None = None, **given: Any
) -> tuple[Forwarder, Bulkhead, Pool]:
    bulkhead = Bulkhead(most)
    made = Pool(
        "svc",
        [Instance(url) for url in urls],
        **{"balance": "round-robin", "random": lambda: 0.0} | (pool or {}),
    )
    resilience = Resilience(bulkhead=bulkhead, **given)
    return Forwarder(made, sessions=sessions, resilience=resilience), bulkhead, made


def ask(app: Any, **options: Any) -> Any:
    return Client(app, use_cookies=False).open("/", buffered=True, **options)


InChild = Callable[[Callable[[], bool]], bool]

GIVEN: list[Callable[[], dict[str, Any]]] = [
    dict,
    lambda: {"retry": RetryRules()},
    lambda: {"circuit": Circuit("svc", CircuitRules())},
]


@pytest.mark.parametrize("given", GIVEN, ids=["plain", "retry", "circuit"])
def test_a_request_above_the_limit_is_rejected_at_once(
    given: Callable[[], dict[str, Any]], backend: Backend, sessions: Sessions
) -> None:
    gate = Gate()
    backend.answers = [gate, gate, reply(b"soon")]
    app, bulkhead, pool = of(backend.url, sessions=sessions, **given())
    with ThreadPoolExecutor(2) as threads:
        waiting: list[Future[Any]] = [threads.submit(ask, app) for _ in range(2)]
        backend.wait_for_requests(2)
        for _ in range(3):
            refused = ask(app)
            assert refused.status_code == 503
            assert refused.headers["Content-Type"] == "application/problem+json"
            assert refused.headers["Retry-After"] == "1"
            assert {key: refused.get_json()[key] for key in FULL} == FULL
        assert bulkhead.status() == {"inFlight": 2, "maxInFlight": 2, "refused": 3}
        gate.opened.set()
        assert [each.result(20).text for each in waiting] == ["late", "late"]
    assert ask(app).text == "soon"
    assert len(backend.requests) == 3
    assert bulkhead.in_flight == 0
    assert set(pool.in_flight().values()) == {0}


@pytest.mark.parametrize("given", GIVEN, ids=["plain", "retry", "circuit"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (reply(b"ok"), 200),
        (reply(b""), 200),
        (reply(b"no", status="503 No"), 503),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", 200),
        (cut(b"HTTP/1.1 200 OK\r\n\r\nto the end"), 200),
        (cut(b""), 502),
        (cut(b"HTTP/1.1 2"), 502),
        (b"HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n", 502),
        (cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), 0),
    ],
)
def test_a_request_frees_its_slot_however_it_ends(
    answer: Any,
    status: int,
    method: str,
    given: Callable[[], dict[str, Any]],
    backend: Backend,
    sessions: Sessions,
) -> None:
    backend.answers = [answer]
    app, bulkhead, _ = of(backend.url, sessions=sessions, most=1, **given())
    try:
        got = ask(app, method=method).status_code
    except UpstreamCut:
        got = 0
    assert got == (status or (200 if method == "HEAD" else 0))
    assert bulkhead.in_flight == 0
    assert bulkhead.refused == 0


@pytest.mark.parametrize("given", GIVEN, ids=["plain", "retry", "circuit"])
def test_a_request_that_is_never_sent_frees_its_slot(
    given: Callable[[], dict[str, Any]], backend: Backend, sessions: Sessions
) -> None:
    app, bulkhead, _ = of(backend.url, sessions=sessions, most=1, **given())
    assert ask(app, environ_overrides={"RAW_URI": "/a%zz"}).status_code == 400
    assert ask(app, environ_overrides={"CONTENT_LENGTH": "x"}).status_code == 400
    nobody, other, _ = of(sessions=sessions, most=1, **given())
    assert ask(nobody).get_json()["error"] == "No instance available"
    assert (bulkhead.in_flight, other.in_flight) == (0, 0)
    assert bulkhead.refused == 0
    assert backend.requests == []


@pytest.mark.parametrize("given", GIVEN, ids=["plain", "retry", "circuit"])
def test_a_response_holds_its_slot_until_its_end(
    given: Callable[[], dict[str, Any]], sessions: Sessions
) -> None:
    gate = threading.Event()

    def slow(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        gate.wait(20)
        return False

    with Backend(slow) as backend:
        app, bulkhead, _ = of(backend.url, sessions=sessions, most=1, **given())
        body = app(new_environ(), Server().start_response)
        assert next(iter(body)) == b"first"
        assert bulkhead.in_flight == 1
        assert ask(app).status_code == 503
        close_body(body)  # the client has left
        close_body(body)
        assert bulkhead.in_flight == 0
        gate.set()


def test_a_rejected_request_is_not_retried_and_not_counted_by_the_circuit(
    backend: Backend, sessions: Sessions
) -> None:
    gate = Gate()
    backend.answers = [gate]
    circuit = Circuit("svc", CircuitRules(consecutive_failures=1))
    waits: list[float] = []
    given = {"circuit": circuit, "retry": RetryRules(attempts=5), "sleep": waits.append}
    app, bulkhead, _ = of(backend.url, sessions=sessions, most=1, **given)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, app)
        backend.wait_for_requests(1)
        assert ask(app).status_code == 503
        assert (bulkhead.refused, waits, len(backend.requests)) == (1, [], 1)
        assert circuit.status()[:3] == (circuit.status().state, 0, 0)
        assert circuit.status().state.value == "CLOSED"
        gate.opened.set()
        assert waiting.result(20).status_code == 200


def test_a_request_keeps_its_slot_during_retries(sessions: Sessions) -> None:
    held: list[int] = []
    with Backend(reply(b"", status="503 No")) as one, Backend(reply(b"well")) as other:
        app, bulkhead, _ = of(
            one.url,
            other.url,
            sessions=sessions,
            most=1,
            retry=RetryRules(),
            sleep=lambda _: held.append(bulkhead.in_flight),  # type: ignore[has-type]
            random=lambda: 0.5,
        )
        assert ask(app).text == "well"
    assert held == [1]
    assert bulkhead.in_flight == 0


def test_forwarders_of_a_service_share_the_limit(backend: Backend, sessions: Sessions) -> None:
    gate = Gate()
    backend.answers = [gate]
    app, bulkhead, pool = of(backend.url, sessions=sessions, most=1)
    other = Forwarder(pool, sessions=sessions, resilience=Resilience(bulkhead=bulkhead))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, app)
        backend.wait_for_requests(1)
        assert ask(other).status_code == 503
        gate.opened.set()
        assert waiting.result(20).status_code == 200
    assert ask(other).status_code == 200


def test_a_forked_worker_counts_its_own_requests(in_child: InChild) -> None:
    bulkhead = Bulkhead(1)
    bulkhead.enter()
    with pytest.raises(Refusal):
        bulkhead.enter()

    def counts() -> bool:
        bulkhead.enter()
        return bulkhead.status() == {"inFlight": 1, "maxInFlight": 1, "refused": 0}

    with hold_locks(bulkhead):
        assert in_child(counts)
    assert bulkhead.status() == {"inFlight": 1, "maxInFlight": 1, "refused": 1}


@pytest.mark.parametrize("most", [0, -1, 1.5, True])
def test_a_bulkhead_of_zero_is_rejected(most: Any) -> None:
    with pytest.raises(ValueError, match="max_in_flight"):
        Bulkhead(most)


# -- per instance ----------------------------------------------------------------------------------


def limited(*urls: str, **options: Any) -> Pool:
    return Pool(
        "svc",
        [Instance(url) for url in urls],
        **{"balance": "round-robin", "instance_limit": 1, "random": lambda: 0.0} | options,
    )


A, B, C = (f"http://127.0.0.1:{port}" for port in (3001, 3002, 3003))


def test_full_instances_are_skipped_and_a_request_fails_when_all_are_full() -> None:
    pool = limited(A, B, C)
    leases = [pool.pick() for _ in range(3)]
    assert sorted(lease.instance.url for lease in leases if lease) == [A, B, C]
    assert pool.pick() is None
    assert leases[1] is not None
    leases[1].release()
    again = pool.pick()
    assert again is not None
    assert again.instance.url == B


@pytest.mark.parametrize("full", [A, B, C])
@pytest.mark.parametrize("failed", [A, B, C])
def test_a_full_instance_is_never_used_and_a_failed_one_only_as_the_last(
    full: str, failed: str
) -> None:
    pool = limited(A, B, C, balance="random", random=Random(1).random)
    members = {}
    while len(members) < 3:
        lease = pool.pick(avoid=list(members.values()))
        assert lease is not None
        members[lease.instance.url] = lease.member
        lease.release()
    held = pool.pick(avoid=[member for url, member in members.items() if url != full])
    assert held is not None

    def picked(*avoided: str) -> set[str]:
        urls = set()
        for _ in range(50):
            lease = pool.pick(avoid=[members[url] for url in avoided])
            assert lease is not None
            urls.add(lease.instance.url)
            lease.release()
        return urls

    assert picked(failed) == {A, B, C} - {full, failed}
    others = {A, B, C} - {full}
    assert picked(*others) == others


def test_an_instance_that_failed_the_request_is_preferred_to_a_full_one() -> None:
    pool = limited(A, B)
    first = pool.pick()
    assert first is not None
    first.release()
    second = pool.pick(avoid=[first.member])
    assert second is not None
    assert second.instance.url == B
    third = pool.pick(avoid=[first.member])
    assert third is not None
    assert third.instance.url == A


@pytest.mark.parametrize("given", GIVEN, ids=["plain", "retry", "circuit"])
def test_a_request_is_rejected_at_once_when_all_instances_are_full(
    given: Callable[[], dict[str, Any]], backend: Backend, sessions: Sessions
) -> None:
    gate = Gate()
    backend.answers = [gate]
    app, bulkhead, pool = of(
        backend.url, sessions=sessions, most=9, pool={"instance_limit": 1}, **given()
    )
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, app)
        backend.wait_for_requests(1)
        refused = ask(app)
        assert {key: refused.get_json()[key] for key in FULL} == FULL
        assert bulkhead.in_flight == 1
        gate.opened.set()
        assert waiting.result(20).status_code == 200
    assert set(pool.in_flight().values()) == {0}


def test_an_instance_limit_of_zero_is_rejected() -> None:
    with pytest.raises(ValueError, match="instance_limit"):
        limited(A, instance_limit=0)
