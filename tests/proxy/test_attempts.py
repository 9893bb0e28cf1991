"""Retries: which requests may be sent again, and when.

The backends record every byte they get, and fail at every point of an exchange.
"""

from __future__ import annotations

import io
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter
from requests.exceptions import InvalidHeader

from tests.proxy.clients import Departing, Reader, ServiceClient
from tests.support.logs import silence
from tests.support.objects import hold_locks
from wsgigate.client.adapter import Sessions
from wsgigate.coordination.circuit import Circuit
from wsgigate.discovery import Instance
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.response import UpstreamCut
from wsgigate.rules.circuit import CircuitRules
from wsgigate.rules.retry import HedgeRules, RetryBudget, RetryRules
from wsgigate.testing import FakeClock
from wsgigate.testing.backend import Backend, Received, cut, reply

BAD = reply(b"busy", status="503 Service Unavailable")
WELL = reply(b"well")
SMALL = b"0123456789"
LARGE = b"0123456789" * 40_000
RESET = struct.pack("ii", 1, 0)

Make = Callable[..., ServiceClient]


_silent = silence("wsgigate.circuits")


POINTS = (
    *("before a connection", "after accept", "after the head", "in the body", "after the body"),
    *("in the response's head", "in the response's body"),
)


class Dying:
    """A backend that dies at one point of every exchange, and records what it got before.

    :param point: One of *POINTS*.
    :param reset: Whether it dies with a reset instead of an orderly end.
    """

    def __init__(self, point: str, reset: bool) -> None:
        self.point = point
        self.reset = reset
        self.got: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        if point == "before a connection":
            self._listener.close()
        else:
            self._thread.start()

    def close(self) -> None:
        if self.point != "before a connection":
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join(30)
            self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(30)
                self.got.append(b"")
                try:
                    self._serve(connection)
                except OSError:
                    pass
                if self.reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def _serve(self, connection: socket.socket) -> None:
        if self.point == "after accept":
            return
        self._read(connection, lambda got: b"\r\n\r\n" in got)
        if self.point == "after the head":
            return
        head, _, _ = self.got[-1].partition(b"\r\n\r\n")
        found = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
        length = int(found[0].partition(b":")[2]) if found else 0
        wanted = length // 2 if self.point == "in the body" else length
        self._read(connection, lambda got: len(got) >= len(head) + 4 + wanted)
        if self.point == "in the response's head":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-")
        elif self.point == "in the response's body":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")

    def _read(self, connection: socket.socket, enough: Callable[[bytes], bool]) -> None:
        while not enough(self.got[-1]):
            block = connection.recv(65536)
            if not block:
                return
            self.got[-1] += block


@contextmanager
def dying(point: str, reset: bool = False) -> Iterator[Dying]:
    backend = Dying(point, reset)
    try:
        yield backend
    finally:
        backend.close()


KEYED = {"Idempotency-Key": "k-1"}
ASKED: list[tuple[str, bytes, dict[str, str], bool]] = [
    ("GET", b"", {}, True),
    ("HEAD", b"", {}, True),
    ("DELETE", b"", {}, True),
    ("PUT", SMALL, {}, True),
    ("POST", SMALL, {}, False),
    ("POST", b"", {}, False),
    ("PATCH", SMALL, {}, False),
    ("POST", SMALL, KEYED, True),
    ("POST", LARGE, {}, False),
]


@pytest.mark.parametrize("reset", [False, True], ids=["ends", "resets"])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(("method", "body", "fields", "safe"), ASKED)
def test_nothing_is_sent_twice_that_may_have_been_processed(
    method: str,
    body: bytes,
    fields: dict[str, str],
    safe: bool,
    point: str,
    reset: bool,
    backend: Backend,
    retrying: Make,
) -> None:
    backend.answers = [WELL]
    rules = RetryRules(attempts=3, idempotency_key=True)
    with dying(point, reset) as first:
        client = retrying(first.url, backend.url, rules=rules)
        try:
            answer = client.open("/", method=method, data=body or None, headers=fields)
            status = answer.status_code
        except UpstreamCut:
            status = 0  # the client has the beginning of an answer
        sent = len(first.got)
    again = len(backend.requests)
    assert again == (status == 200 and not (method == "HEAD" and point == POINTS[-1]))
    if point == "before a connection":
        assert (status, again) == (200, 1)
    elif point == "after accept" and reset and again:
        pass  # the reset was there before the connection was, so nothing was sent
    elif not safe:
        assert (sent, again) == (1, 0)
        assert status in (0, 200 if method == "HEAD" else 502)
    elif point.startswith("in the response"):
        assert again == 0 or (reset and "head" in point)
        assert sent == 1
    else:
        assert (sent, status, again) == (1, 200, 1)
    if again:
        assert backend.requests[0].body == body
        assert backend.requests[0].complete or not body


@pytest.mark.parametrize("keeps_to_it", [False, True])
def test_an_idempotency_key_counts_only_if_the_service_honors_it(
    keeps_to_it: bool, backend: Backend, retrying: Make
) -> None:
    with dying("after the body") as first:
        client = retrying(
            first.url, backend.url, rules=RetryRules(attempts=3, idempotency_key=keeps_to_it)
        )
        client.post("/", data=SMALL, headers=KEYED)
        assert len(first.got) + len(backend.requests) == 1 + keeps_to_it


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("given", [io.BytesIO, lambda body: io.BufferedReader(io.BytesIO(body))])
def test_a_body_above_the_buffer_is_not_sent_again(
    method: str, given: Callable[[bytes], Any], backend: Backend, retrying: Make
) -> None:
    with dying("in the body") as first:
        client = retrying(first.url, backend.url, rules=RetryRules(attempts=3, buffer=1000))
        answer = client.open(
            "/", method=method, input_stream=given(LARGE), content_length=len(LARGE)
        )
        assert answer.status_code == 502
        assert (len(first.got), len(backend.requests)) == (1, 0)


def test_a_large_body_of_which_little_was_read_is_sent_again(
    backend: Backend, retrying: Make
) -> None:
    with dying("before a connection") as first:
        client = retrying(first.url, backend.url)
        assert client.post("/", data=LARGE).status_code == 200
        assert backend.requests[0].body == LARGE


def test_only_the_first_attempt_is_resent_on_a_stale_connection(
    own: Any, sessions: Sessions
) -> None:
    """What the transport does by itself about a connection that was closed meanwhile is done for
    the first try alone."""
    with Backend(WELL, lambda *_: False) as one, Backend(WELL, lambda *_: False) as other:
        pool = Pool(
            "svc",
            [Instance(one.url), Instance(other.url)],
            balance="round-robin",
            random=lambda: 0.0,
        )
        given = Resilience(retry=RetryRules(), sleep=lambda _: None)
        own_sessions = Sessions()
        client = Reader(Forwarder(pool, sessions=own_sessions, resilience=given))
        assert [client.get("/").status_code for _ in range(2)] == [200, 200]  # now both keep one
        assert client.get("/").status_code == 502
        assert sorted((len(one.requests), len(other.requests))) == [1 + 1, 1 + 2]
        own_sessions.close()


def test_a_post_on_a_stale_connection_is_sent_once(retrying: Make, sessions: Sessions) -> None:
    with Backend(WELL, lambda *_: False) as one, Backend(WELL) as other:
        client = retrying(one.url, other.url)
        assert [client.get("/").status_code for _ in range(2)] == [200, 200]
        assert client.post("/", data=SMALL).status_code == 502
        assert (len(one.requests), len(other.requests)) == (2, 1)


@pytest.mark.parametrize(("status", "again"), [(502, 1), (503, 1), (504, 1), (500, 0), (404, 0)])
def test_some_statuses_are_retried(
    status: int, again: int, backend: Backend, retrying: Make
) -> None:
    with Backend(reply(b"no", status=f"{status} No")) as first:
        client = retrying(first.url, backend.url)
        answer = client.get("/")
        assert answer.status_code == (200 if again else status)
        assert len(backend.requests) == again
        client.get("/")
        assert client.post("/", data=SMALL).status_code == status
        assert set(client.pool.in_flight().values()) == {0}


def test_the_client_gets_the_last_response_when_no_attempt_is_left(retrying: Make) -> None:
    with Backend(BAD) as first, Backend(reply(b"late", status="504 Late")) as second:
        client = retrying(first.url, second.url, rules=RetryRules(attempts=3))
        answer = client.get("/")
        assert (answer.status_code, answer.data) == (503, b"busy")  # who had failed, had to again
        assert (len(first.requests), len(second.requests)) == (2, 1)
        assert client.waited == [0.0125, 0.025]


def test_a_streaming_response_is_closed_before_a_retry(backend: Backend, retrying: Make) -> None:
    def endless(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        return connection.recv(1) != b""

    with Backend(endless) as first:
        assert retrying(first.url, backend.url).get("/").data == b"ok"
        first.wait_until_closed()


@pytest.mark.parametrize(
    ("said", "status", "waited"),
    [
        ("0", 200, [0.0125]),
        ("1", 200, [1.0]),
        ("2", 503, []),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 200, [0.0125]),
        ("Wed, 21 Oct 2115 07:28:00 GMT", 503, []),
        ("soon", 200, [0.0125]),
    ],
)
def test_a_short_retry_after_is_waited_for_and_a_long_one_passed_on(
    said: str, status: int, waited: list[float], backend: Backend, retrying: Make
) -> None:
    bad = reply(b"", status="503 No", fields=[("Retry-After", said)])
    with Backend(bad) as first:
        client = retrying(first.url, backend.url)
        answer = client.get("/")
        assert answer.status_code == status
        assert client.waited == waited
        if status == 503:
            assert answer.headers["Retry-After"] == said


def test_all_requests_share_the_retry_budget(retrying: Make) -> None:
    with Backend(BAD) as first:
        client = retrying(first.url, given={"budget": RetryBudget(0.2, floor=0)})
        for _ in range(20):
            client.get("/")
        assert len(first.requests) == 24


def test_a_refused_connection_is_retried_without_the_budget(
    backend: Backend, retrying: Make
) -> None:
    backend.answers = [WELL]
    budget = RetryBudget(0, floor=0)
    with dying("before a connection") as first:
        client = retrying(first.url, backend.url, given={"budget": budget})
        statuses = [client.post("/", data=SMALL).status_code for _ in range(20)]
    assert statuses == [200] * 20
    assert len(backend.requests) == 20


def test_each_attempt_counts_for_the_circuit_which_may_reject_the_next(
    retrying: Make, clock: FakeClock
) -> None:
    rules = CircuitRules(consecutive_failures=3, jitter=0)
    circuit = Circuit("svc", rules, clock=clock)
    with Backend(BAD) as first:
        client = retrying(first.url, rules=RetryRules(attempts=5), given={"circuit": circuit})
        answer = client.get("/")
        assert (answer.status_code, answer.data) == (503, b"busy")  # what there is, is told
        assert len(first.requests) == 3
        assert client.get("/").get_json()["error"] == "Circuit breaker open"
        assert len(first.requests) == 3


def test_an_unsafe_request_that_failed_counts_for_the_circuit(
    retrying: Make, clock: FakeClock
) -> None:
    circuit = Circuit("svc", CircuitRules(), clock=clock)
    with dying("after the body") as first:
        retrying(first.url, given={"circuit": circuit}).post("/", data=SMALL)
    assert circuit.status().failures == 1


def test_a_client_that_has_disconnected_gets_no_retry(
    backend: Backend, sessions: Sessions, clock: FakeClock
) -> None:
    disconnects = Departing()
    watch = disconnects.client
    with Backend(BAD) as first:
        pool = Pool(
            "svc",
            [Instance(first.url), Instance(backend.url)],
            balance="round-robin",
            random=lambda: 0.0,
        )
        given = Resilience(retry=RetryRules(), sleep=lambda _: watch.disconnected(), clock=clock)
        forwarder = Forwarder(pool, sessions=sessions, resilience=given, disconnects=disconnects)
        assert Reader(forwarder).get("/").status_code == 499
        assert backend.connections == 0
        assert set(pool.in_flight().values()) == {0}


@pytest.mark.parametrize("given", [io.BytesIO, lambda body: io.BufferedReader(io.BytesIO(body))])
def test_a_chunked_body_is_sent_again_as_it_was(
    given: Callable[[bytes], Any], backend: Backend, retrying: Make
) -> None:
    with dying("after the head") as first:
        answer = retrying(first.url, backend.url).put(
            "/",
            input_stream=given(SMALL),
            environ_overrides={
                "HTTP_TRANSFER_ENCODING": "chunked",
                "CONTENT_LENGTH": "",
                "wsgi.input_terminated": True,
            },
        )
        assert answer.status_code == 200
    assert backend.requests[0].body == SMALL
    assert backend.requests[0].value("Transfer-Encoding") == "chunked"


class Unwilling(BaseAdapter):
    """Finds fault with every request."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def send(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        raise InvalidHeader("a line end in a request field")

    def close(self) -> None:
        pass


def test_a_request_that_cannot_be_sent_is_not_retried(clock: FakeClock) -> None:
    adapter = Unwilling()

    def session() -> requests.Session:
        made = requests.Session()
        made.mount("http://", adapter)
        return made

    circuit = Circuit("svc", CircuitRules(), clock=clock)
    given = Resilience(retry=RetryRules(attempts=3), circuit=circuit, clock=clock)
    pool = Pool("svc", [Instance("http://a.test"), Instance("http://b.test")])
    client = Reader(Forwarder(pool, sessions=Sessions(session), resilience=given))
    assert client.get("/").status_code == 502
    assert adapter.asked == 1
    assert circuit.status().failures == 0  # it tells nothing of the service


def test_one_attempt_disables_retries(retrying: Make) -> None:
    with Backend(BAD) as first, Backend(cut(b"")) as second:
        for url in (first.url, second.url):
            retrying(url, rules=RetryRules(attempts=1)).get("/")
        assert len(first.requests) == 1


def test_a_forked_worker_has_locks_of_its_own_for_budget_and_hedging(
    in_child: Callable[[Callable[[], bool]], bool],
) -> None:
    given = Resilience(retry=RetryRules(), hedge=HedgeRules(after="p95"))
    assert given.hedge is not None

    def asks() -> bool:
        given.count(0.0)
        return given.take(0.0) and given.hedge is not None and given.hedge.after() is None

    with hold_locks(given):
        assert in_child(asks)
