"""Load shedding: requests above the adaptive limit are rejected at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from werkzeug.test import Client, EnvironBuilder

from wsgigate import Shedder, SheddingRules
from wsgigate.http.wsgi import REASON
from wsgigate.testing import FakeClock

RULES = SheddingRules(least=2, measure_requests=4, window_requests=4, jitter=0)


def app(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"body"


def under_way(guarded: Any) -> Any:
    """Begin a request and do not end it."""
    body = guarded(EnvironBuilder().get_environ(), lambda *_: lambda data: None)
    next(iter(body))
    return body


def test_requests_above_the_limit_are_rejected_until_one_ends(clock: FakeClock) -> None:
    guarded = Shedder(app, RULES, clock=clock)
    first, second = under_way(guarded), under_way(guarded)
    answer = Client(guarded).get("/")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.json["message"] == "Service temporarily unavailable"
    assert answer.json["error"] == "Overloaded"
    assert (guarded.in_flight, guarded.refused) == (2, 1)
    first.close()
    assert Client(guarded).get("/", buffered=True).status_code == 200
    second.close()
    assert guarded.in_flight == 0


def test_a_forked_worker_counts_its_own(
    clock: FakeClock, in_child: Callable[[Callable[[], bool]], bool]
) -> None:
    """What its parent had under way stayed so in the child, which refused all for ever."""
    guarded = Shedder(app, RULES, clock=clock)
    kept = [under_way(guarded), under_way(guarded)]

    def serves() -> bool:
        answer = Client(guarded).get("/", buffered=True)
        return (answer.status_code, guarded.in_flight, guarded.refused) == (200, 0, 0)

    assert in_child(serves)
    assert guarded.in_flight == 2
    for body in kept:
        body.close()


def test_the_reason_of_a_rejection_is_logged(clock: FakeClock) -> None:
    guarded = Shedder(app, RULES, clock=clock)
    kept = [under_way(guarded), under_way(guarded)]
    environ = EnvironBuilder().get_environ()
    list(guarded(environ, lambda *_: lambda data: None))
    assert environ[REASON] == "2 requests are in flight already"
    for body in kept:
        body.close()


def test_the_response_of_a_rejection_can_be_replaced(clock: FakeClock) -> None:
    def refuse(problem: Any) -> Any:
        def answer(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response("503 Busy", [])
            return [problem.detail.upper().encode()]

        return answer

    guarded = Shedder(app, RULES, clock=clock, refuse=refuse)
    kept = [under_way(guarded), under_way(guarded)]
    assert Client(guarded).get("/").text == "SERVICE TEMPORARILY UNAVAILABLE"
    for body in kept:
        body.close()


def timed(
    clock: FakeClock, takes: list[float], *, reads: float = 0.0, status: str = "200 OK"
) -> Any:
    def slow(environ: Any, start_response: Any) -> Iterator[bytes]:
        clock.advance(takes[0])
        start_response(status, [])
        yield b"first"
        clock.advance(reads)
        yield b"last"

    return slow


def test_the_limit_follows_the_response_times(clock: FakeClock) -> None:
    takes = [0.01]
    guarded = Shedder(timed(clock, takes), RULES, clock=clock)
    client = Client(guarded)
    for _ in range(50):
        client.get("/", buffered=True)
    grown = guarded.limit
    assert grown > 2
    takes[0] = 0.2
    for _ in range(60):
        client.get("/", buffered=True)
    assert guarded.limit < grown


def test_slow_readers_are_no_load(clock: FakeClock) -> None:
    guarded = Shedder(timed(clock, [0.01], reads=0.2), RULES, clock=clock)
    client = Client(guarded)
    for _ in range(60):
        client.get("/", buffered=True)
    assert guarded.limit > 2


def test_failures_are_not_measured(clock: FakeClock) -> None:
    guarded = Shedder(timed(clock, [0.0], status="500 Broken"), RULES, clock=clock)
    client = Client(guarded)
    for _ in range(60):
        client.get("/", buffered=True)
    assert guarded.limit == 2


def test_an_app_that_raises_releases_its_slot(clock: FakeClock) -> None:
    def broken(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise RuntimeError("broken")

    guarded = Shedder(broken, RULES, clock=clock)
    for _ in range(9):
        with pytest.raises(RuntimeError):
            Client(guarded).get("/")
    assert guarded.in_flight == 0


def test_threads_never_have_more_under_way_than_the_limit() -> None:
    guarded = Shedder(lambda *_: inside(*_), SheddingRules(least=3, most=3))
    lock, now, most = threading.Lock(), [0], [0]

    def inside(environ: Any, start_response: Any) -> Iterator[bytes]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        start_response("200 OK", [])
        yield b"body"
        with lock:
            now[0] -= 1

    def ask() -> None:
        client = Client(guarded)
        for _ in range(100):
            client.get("/", buffered=True)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] <= 3
    assert guarded.in_flight == 0
