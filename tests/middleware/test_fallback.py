"""A fallback app serves what the first app fails to serve; nothing is processed twice."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pytest
from werkzeug.test import Client

from wsgigate import Fallback, FallbackRules
from wsgigate.http.responses import fixed_response
from wsgigate.http.wsgi import FAILURE, SHAPED
from wsgigate.testing.fakes import Server, new_environ

ALL = FallbackRules(methods=["GET", "POST", "DELETE"])


class App:
    """Answers with a status, having read so much of the body, and says why it fails."""

    def __init__(self, status: int = 200, *, reads: int = 0, failure: str | None = None) -> None:
        self.status = status
        self.reads = reads
        self.failure = failure
        self.bodies: list[bytes] = []

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.bodies.append(environ["wsgi.input"].read(self.reads) if self.reads else b"")
        if self.failure is not None:
            environ[FAILURE] = self.failure
        start_response(f"{self.status} Told", [("Content-Type", "text/plain")])
        return [str(self.status).encode()]


def ask(app: Any, method: str = "GET", body: bytes = b"", **more: Any) -> tuple[str, str | None]:
    answer = Server().serve(app, {**new_environ(method, body), **more})
    return answer.status[:3], dict(answer.headers).get("X-Gateway-Fallback")


@pytest.mark.parametrize(
    ("status", "method", "answered"),
    [
        (200, "GET", ("200", None)),
        (404, "GET", ("404", None)),
        (500, "GET", ("500", None)),
        (502, "GET", ("200", "app")),
        (503, "HEAD", ("200", "app")),
        (504, "OPTIONS", ("200", "app")),
        (503, "POST", ("503", None)),
        (503, "DELETE", ("503", None)),
    ],
)
def test_safe_requests_that_fail_are_answered_by_the_other(
    status: int, method: str, answered: tuple[str, str | None]
) -> None:
    assert ask(Fallback(App(status), App()), method) == answered


@pytest.mark.parametrize(
    ("failure", "method", "by_other"),
    [
        ("Connection refused", "POST", True),
        ("Circuit breaker open", "POST", True),
        ("No instance available", "DELETE", True),
        ("Request timeout", "POST", False),
        ("Invalid response", "POST", False),
        (None, "POST", False),
        ("Request timeout", "GET", True),
    ],
)
def test_a_request_that_may_have_been_processed_gets_no_fallback(
    failure: str | None, method: str, by_other: bool
) -> None:
    other = App()
    app = Fallback(App(503, failure=failure), other, rules=ALL)
    assert ask(app, method, b"order") == (("200", "app") if by_other else ("503", None))
    assert len(other.bodies) == by_other


def test_the_fallback_app_gets_a_body_that_was_not_read() -> None:
    first, other = App(503, failure="Connection refused"), App(reads=5)
    assert ask(Fallback(first, other, rules=ALL), "POST", b"order") == ("200", "app")
    assert other.bodies == [b"order"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("reads", [0, 1, 65536])
def test_the_other_gets_all_of_a_body_that_was_read_in_part(method: str, reads: int) -> None:
    first, other = App(503, failure="Connection refused", reads=reads), App(reads=70_000)
    assert ask(Fallback(first, other, rules=ALL), method, b"x" * 70_000) == ("200", "app")
    assert other.bodies == [b"x" * 70_000]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_fallback_app_is_not_called_if_too_much_of_the_body_was_read(method: str) -> None:
    first, other = App(503, failure="Connection refused", reads=65537), App()
    assert ask(Fallback(first, other, rules=ALL), method, b"x" * 70_000) == ("503", None)
    assert other.bodies == []


def test_the_other_gets_the_body_although_the_first_has_put_another_in_its_place() -> None:
    def first(environ: Any, start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"] = io.BytesIO(b"other")
        return App(503, failure="Connection refused")(environ, start_response)

    other = App(reads=5)
    ask(Fallback(first, other, rules=ALL), "POST", b"order")
    assert other.bodies == [b"order"]


def test_a_fixed_response_may_replace_the_response_to_any_request() -> None:
    fixed = fixed_response("later", status=503)
    app = Fallback(App(504, reads=5), fixed, rules=ALL, kind="fixed", acts=False)
    assert ask(app, "POST", b"order") == ("503", "fixed")


def test_a_request_with_a_key_may_have_been_sent_before() -> None:
    app = Fallback(App(503, failure="Connection refused"), App(), rules=ALL)
    assert ask(app, "POST", HTTP_IDEMPOTENCY_KEY="a") == ("503", None)


def test_only_the_reasons_that_were_named_count() -> None:
    rules = FallbackRules(reasons=["timeout"])
    assert ask(Fallback(App(503, failure="Request timeout"), App(), rules=rules))[0] == "200"
    assert ask(Fallback(App(503, failure="Connection refused"), App(), rules=rules))[0] == "503"
    assert ask(Fallback(App(503), App(), rules=rules))[0] == "503"


def test_an_app_that_raises_is_replaced_where_500_is() -> None:
    def broken(environ: Any, start_response: Any) -> Any:
        raise RuntimeError("a bug")

    assert ask(Fallback(broken, App(), rules=FallbackRules(statuses=[500])))[0] == "200"
    with pytest.raises(RuntimeError):
        ask(Fallback(broken, App()))


def test_a_websocket_is_left_alone() -> None:
    assert ask(Fallback(App(503), App()), HTTP_UPGRADE="websocket") == ("503", None)


def test_the_fallback_is_logged_and_its_own_failure_is_returned() -> None:
    environ = new_environ()
    app = Fallback(App(503, failure="Connection refused"), App(502), kind="spare")
    assert Server().serve(app, environ).status == "502 Told"
    assert environ[SHAPED] == "fallback=spare"
    assert FAILURE not in environ


def test_fallbacks_can_be_chained() -> None:
    fixed = fixed_response("closed", status=200, content_type="text/html")
    app = Fallback(Fallback(App(503), App(502)), fixed, kind="fixed", acts=False)
    answer = Client(app).get("/", buffered=True)
    assert (answer.status_code, answer.text, answer.content_type) == (200, "closed", "text/html")
    assert answer.headers.getlist("X-Gateway-Fallback") == ["fixed"]


def test_a_kind_that_is_not_a_token_raises() -> None:
    with pytest.raises(ValueError, match="kind: expected a word"):
        Fallback(App(), App(), kind="two words")
