"""A rejection is logged by the access log, or without one by the logger of rejections."""

from __future__ import annotations

import io
import logging
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
    Limiter,
    Logger,
    Route,
)
from wsgigate.http import problem
from wsgigate.http.wsgi import close_body
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock
from wsgigate.testing.fakes import Server, new_environ

SECRET = "a secret of the tests, thirty-two bytes or more"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(problem, "rejection_logs", {})
    monkeypatch.setattr(problem, "real", clock)
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
    with caplog.at_level(logging.INFO, "wsgigate.refusals"):
        for _ in range(5):
            client.get("/a%0Ab?token=secret")
        clock.advance(60)
        client.get("/")
    levels = [each.levelname for each in caplog.records]
    assert levels == ["WARNING", "INFO", "INFO", "INFO", "WARNING"]
    assert caplog.messages[0].startswith("Limiter refused 'GET' /a%0Ab of ")
    assert "secret" not in caplog.text
    assert caplog.messages[-1].endswith("(3 more since the last warning)")
    caplog.clear()
    client.get("/")
    assert caplog.text == ""


def test_each_kind_of_reason_has_its_own_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A request without a token does not hide why a token is rejected; values make no kinds."""
    reasons = ["no token", *(f"for the audience 'a{n}', not 'b'" for n in range(3)), "no token"]
    with caplog.at_level(logging.INFO, "wsgigate.refusals"):
        for reason in reasons:
            problem.refused(new_environ(), "Authenticator", reason)
    levels = [each.levelname for each in caplog.records]
    assert levels == ["WARNING", "WARNING", "INFO", "INFO", "INFO"]


def test_kinds_of_reasons_that_clients_choose_are_few(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "wsgigate.refusals"):
        for number in range(99):
            problem.refused(new_environ(), "Limiter", f"{'x' * number} is over the quota")
    levels = [each.levelname for each in caplog.records]
    assert levels == ["WARNING"] * 9 + ["INFO"] * 90


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
