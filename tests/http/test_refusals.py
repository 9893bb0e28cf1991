"""A rejection is logged by the access log, or without one by the logger of rejections."""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
from werkzeug.test import Client

from wsgigate import (
    Authenticator,
    BodyLimit,
    Breaker,
    CircuitRules,
    ConcurrencyLimiter,
    Cors,
    Dispatcher,
    Forwarder,
    Instance,
    Limiter,
    Logger,
    Pool,
    Route,
)
from wsgigate.http import problem
from wsgigate.http.wsgi import INSTANCE, REQUEST_ID, SERVICE, TRACE, close_body
from wsgigate.runtime.logs import EventLog
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock
from wsgigate.testing.fakes import Server, new_environ

SECRET = "a secret of the tests, thirty-two bytes or more"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    log = EventLog(problem.write_event, problem.write_end, clock=clock, later=lambda *_: None)
    monkeypatch.setattr(problem, "errors", problem.ErrorLog(log))
    return clock


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"x"]


def failing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("500 Oops", [])
    return []


def limited(**options: Any) -> Limiter:
    return Limiter(app, "1/h", store=MemoryStore(), **options)


PREFLIGHT = {
    "REQUEST_METHOD": "OPTIONS",
    "HTTP_ORIGIN": "https://evil.test",
    "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "PUT",
}


@pytest.mark.parametrize(
    ("make", "environ", "by", "why"),
    [
        (limited, {}, "Limiter", "over the quota 'default' of 1 per hour"),
        (lambda: Authenticator(app, algorithms=["HS256"], secret=SECRET), {}, "Auth", "no token"),
        (lambda: BodyLimit(app, 1), {"CONTENT_LENGTH": "2"}, "BodyLimit", "body of 2 bytes"),
        (lambda: Cors(app, origins=["https://a.test"]), PREFLIGHT, "Cors", "not allowed"),
        (
            lambda: Breaker(failing, CircuitRules(consecutive_failures=1), store="memory:"),
            {},
            "Breaker",
            "circuit 'default' is open",
        ),
        (
            lambda: Dispatcher([Route("/", app)], allowed_hosts=["a.test"]),
            {},
            "Dispatcher",
            "is not in allowed_hosts",
        ),
    ],
)
def test_each_kind_of_rejection_is_logged_once(
    make: Callable[[], WSGIApplication],
    environ: WSGIEnvironment,
    by: str,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stack, more = make(), {"HTTP_HOST": "localhost", "REMOTE_ADDR": "192.0.2.7", **environ}
    for _ in range(2):
        Server().serve(stack, {**new_environ(), **more})
    found = [each for each in caplog.records if each.name == "wsgigate.refusals"]
    assert found[0].levelno == logging.WARNING
    assert found[0].getMessage().startswith(by)
    assert why in found[0].getMessage()
    assert "192.0.2.7" in found[0].getMessage()


def test_a_flood_of_rejections_is_logged_as_one_warning_per_minute(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(limited())
    with caplog.at_level(logging.DEBUG, "wsgigate.refusals"):
        for _ in range(5):
            client.get("/a%0Ab?token=secret")
        clock.advance(60)
        client.get("/")
    levels = [each.levelname for each in caplog.records]
    assert levels == ["WARNING", "DEBUG", "DEBUG", "DEBUG", "WARNING"]
    assert caplog.messages[0].startswith("Limiter refused 'GET' /a%0Ab of ")
    assert "secret" not in caplog.text
    assert caplog.messages[-1].endswith("(3 more since the last warning)")
    caplog.clear()
    client.get("/")
    assert caplog.text == ""


def test_each_kind_of_reason_has_its_own_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A request without a token does not hide why a token is rejected; values make no kinds."""
    reasons = ["no token", *(f"for the audience 'a{n}', not 'b'" for n in range(3)), "no token"]
    with caplog.at_level(logging.DEBUG, "wsgigate.refusals"):
        for reason in reasons:
            problem.refused(new_environ(), "Authenticator", reason)
    levels = [each.levelname for each in caplog.records]
    assert levels == ["WARNING", "WARNING", "DEBUG", "DEBUG", "DEBUG"]


def test_kinds_of_reasons_that_clients_choose_are_few(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "wsgigate.refusals"):
        for number in range(99):
            problem.refused(new_environ(), "Limiter", f"{'x' * number} is over the quota")
    levels = [each.levelname for each in caplog.records]
    assert levels == ["WARNING"] * 9 + ["DEBUG"] * 90


def test_inside_a_logger_only_the_access_log_has_a_rejection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stream = io.StringIO()
    inside = Logger(limited(), stream=stream, format="json")
    for _ in range(2):
        Client(inside).get("/", buffered=True)
    inside.close()
    assert '"reason":' in stream.getvalue()
    assert caplog.text == ""
    stack = ConcurrencyLimiter(
        Logger(app, stream=stream), 1, store=MemoryStore(), key=lambda _: "x"
    )
    held = stack(new_environ(), Server().start_response)
    Server().serve(stack, new_environ())
    assert "ConcurrencyLimiter refused" in caplog.text
    close_body(held)


def test_an_observing_limit_logs_no_rejection(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(limited(observe=True))
    for _ in range(3):
        client.get("/")
    text = caplog.text.replace("would have rejected", "")
    assert "refused" not in text
    assert "rejected" not in text


@pytest.mark.parametrize("wrap", [lambda app: app, lambda app: Logger(app, stream=io.StringIO())])
def test_a_dead_upstream_is_logged_with_or_without_a_logger(
    wrap: Callable[[WSGIApplication], WSGIApplication], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as silent:  # bound, so that no other program listens at its port
        silent.bind(("127.0.0.1", 0))
        instance = Instance(f"http://127.0.0.1:{silent.getsockname()[1]}")
        stack = wrap(Forwarder(Pool("orders", [instance])))
        for number in range(50):
            environ = {**new_environ(), "HTTP_HOST": "localhost", REQUEST_ID: f"r{number}"}
            environ[TRACE] = Trace()
            assert Server().serve(stack, environ).status.startswith("503")
    [record] = [each for each in caplog.records if each.name == "wsgigate.refusals"]
    assert record.levelname == "WARNING"
    line = record.getMessage()
    assert line.startswith("Forwarder answered 503 to 'GET' / of 192.0.2.1 (service orders, insta")
    assert line.endswith(f"(request r0, trace {Trace.trace_id})")
    fields = vars(record)["wsgigate"]
    assert (fields["status"], fields["service"], fields["request_id"]) == (503, "orders", "r0")
    assert fields["trace_id"] == Trace.trace_id


class Trace:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    span_id = "00f067aa0ba902b7"
    sampled = True
    span = None


def test_a_failure_of_each_service_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    for service in ("orders", "users", "orders"):
        environ = {**new_environ(), SERVICE: service, INSTANCE: "10.0.0.1:80"}
        problem.failed(environ, "Forwarder", 503, "no instance is available")
    assert [vars(each)["wsgigate"]["service"] for each in caplog.records] == ["orders", "users"]


def test_the_end_of_failures_is_logged(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(9):
        problem.failed({**new_environ(), SERVICE: "orders"}, "Forwarder", 503, "away\r\n")
    clock.advance(60)
    problem.errors.log.flush()
    assert caplog.messages[-1].startswith(
        "Over for a minute: failed, 9 times in 0 s; the last: For"
    )
    assert vars(caplog.records[-1])["wsgigate"]["count"] == 9
    assert all(line.isprintable() for line in caplog.messages)
