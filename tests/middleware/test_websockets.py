"""WebSockets that an inner app has taken over are no failures."""

from __future__ import annotations

import io
import json

import pytest

from wsgigate import BodyLimit, Breaker, CircuitRules, Guard, Logger, Shedder, SheddingRules
from wsgigate.http.wsgi import close_body, is_websocket
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock
from wsgigate.testing.fakes import new_environ

HANDSHAKE = {"HTTP_UPGRADE": "WebSocket", "HTTP_CONNECTION": "keep-alive, Upgrade"}
WERKZEUG = {"werkzeug.socket": object()}


def raises(environ, start_response):
    """As under gunicorn."""
    raise StopIteration


def nothing(environ, start_response):
    """As under gevent."""
    return []


def empty(environ, start_response):
    return iter(())


def answers(environ, start_response):
    """As under werkzeug, on whose socket nobody listens any more."""
    start_response("200 OK", [("Content-Length", "0")])
    return iter([])


TAKEN = [(raises, {}), (nothing, {}), (empty, {}), (answers, WERKZEUG)]


def serve(app, environ):
    """Serve one request; return the status that the server was told, if any."""
    told = []

    def start_response(status, headers, exc_info=None):
        told.append(status)
        return lambda data: None

    try:
        body = app({**new_environ(), **environ}, start_response)
        for _ in body:
            pass
        close_body(body)
    except (LookupError, StopIteration):
        pass
    return told


@pytest.mark.parametrize(
    ("environ", "is_one"),
    [
        (HANDSHAKE, True),
        ({"HTTP_UPGRADE": " websocket "}, True),
        ({"HTTP_UPGRADE": "h2c"}, False),
        ({"HTTP_UPGRADE": "websocket", "REQUEST_METHOD": "POST"}, False),
        ({}, False),
    ],
)
def test_a_websocket_handshake_is_recognized(environ, is_one):
    assert is_websocket({**new_environ(), **environ}) is is_one


def logged(app, environ):
    stream = io.StringIO()
    logger = Logger(app, stream=stream, format="json")
    serve(logger, environ)
    logger.close()
    return json.loads(stream.getvalue())


@pytest.mark.parametrize(("app", "more"), TAKEN)
def test_the_log_says_101(app, more):
    line = logged(app, {**HANDSHAKE, **more})
    assert (line["status"], "error" in line, "aborted" in line) == (101, False, False)


def test_other_responses_to_a_handshake_are_logged_with_their_status():
    assert logged(answers, HANDSHAKE)["status"] == 200
    assert logged(raises, {})["status"] == 500

    def broken(environ, start_response):
        raise LookupError

    assert logged(broken, HANDSHAKE)["status"] == 500

    def refused(environ, start_response):
        start_response("403 Forbidden", [])
        return [b"no"]

    assert logged(refused, HANDSHAKE)["status"] == 403


@pytest.mark.parametrize(("app", "more"), TAKEN)
def test_a_breaker_takes_it_for_no_failure_and_not_for_slow(app, more):
    clock = FakeClock()
    rules = CircuitRules(consecutive_failures=1, slow_after=1, slow_rate=0.1, minimum_calls=1)

    def lasting(environ, start_response):
        clock.advance(3600)
        return app(environ, start_response)

    breaker = Breaker(lasting, rules, store=MemoryStore(clock=clock), clock=clock)
    for _ in range(3):
        serve(breaker, {**HANDSHAKE, **more})
    assert breaker.circuit.status().state.value == "CLOSED"
    serve(Breaker(raises, rules, store=MemoryStore(clock=clock), clock=clock), HANDSHAKE)
    other = Breaker(raises, rules, store=MemoryStore(clock=clock), clock=clock)
    serve(other, {})
    assert other.circuit.status().state.value == "OPEN"


def test_a_shedder_does_not_count_websockets():
    seen = []

    def lasting(environ, start_response):
        seen.append(shedder.in_flight)
        raise StopIteration

    shedder = Shedder(lasting, SheddingRules(least=1, most=1))
    serve(shedder, HANDSHAKE)
    assert (seen, shedder.in_flight) == ([0], 0)


@pytest.mark.parametrize(("app", "more"), TAKEN)
@pytest.mark.parametrize("make", [Guard, lambda app: Guard(Guard(app)), BodyLimit])
def test_no_middleware_replaces_the_response_to_a_handshake(app, more, make, caplog):
    told = serve(make(app), {**HANDSHAKE, **more})
    assert told == (["200 OK"] if app is answers else [])
    assert caplog.text == ""


def test_a_guard_replaces_failures_of_other_requests(caplog):
    assert serve(Guard(raises), {}) == ["500 Internal Server Error"]
    assert serve(Guard(nothing), {}) == ["500 Internal Server Error"]
