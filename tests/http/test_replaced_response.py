"""A response can be replaced before it begins, and is passed on unchanged otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from wsgigate.http.responses import (
    FALLBACK_FIELD,
    record_shaping,
    replaceable_response,
    with_fallback_field,
)
from wsgigate.http.wsgi import SHAPED
from wsgigate.testing.fakes import Boom, ClosableBody, Server, new_environ

PLAIN = [("Content-Type", "text/plain")]


def other(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [*PLAIN, ("X-From", "other")])
    return [b"other"]


def serve(app: Any, choose: Any) -> Server:
    def around(environ: Any, start_response: Any) -> Any:
        return replaceable_response(app, environ, start_response, choose)

    return Server().serve(around, new_environ())


def failures(status: int, error: Exception | None) -> Any:
    return other if status >= 500 else None


def never(status: int, error: Exception | None) -> Any:
    return None


def eager(status: str, body: Any) -> Any:
    def app(environ: Any, start_response: Any) -> Any:
        start_response(status, PLAIN)
        return body

    return app


def lazy(status: str, body: Any) -> Any:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response(status, PLAIN)
        yield from body

    return app


@pytest.mark.parametrize("kind", [eager, lazy])
def test_a_failed_response_is_replaced(kind: Any) -> None:
    answer = serve(kind("503 Busy", [b"no"]), failures)
    assert (answer.status, answer.chunks) == ("200 OK", [b"other"])
    assert ("X-From", "other") in answer.headers


@pytest.mark.parametrize("kind", [eager, lazy])
@pytest.mark.parametrize(
    ("status", "choose"), [("200 OK", failures), ("503 Busy", never), ("418 Teapot", failures)]
)
def test_a_successful_response_is_passed_on(kind: Any, status: str, choose: Any) -> None:
    answer = serve(kind(status, [b"one", b"two"]), choose)
    assert (answer.status, answer.chunks) == (status, [b"one", b"two"])


def test_the_body_of_a_response_that_is_not_replaced_is_passed_on_as_it_is() -> None:
    body = ClosableBody()
    got = replaceable_response(
        eager("200 OK", body), new_environ(), Server().start_response, failures
    )
    assert got is body


def test_the_body_of_a_replaced_response_is_closed_before_the_other_app_is_called() -> None:
    body, closed = ClosableBody(), []

    def after(environ: Any, start_response: Any) -> list[bytes]:
        closed.append(body.closed)
        return other(environ, start_response)

    serve(eager("500 No", body), lambda status, error: after)
    assert (closed, body.closed) == ([1], 1)


@pytest.mark.parametrize("kind", ["at once", "later"])
def test_an_app_that_raises_counts_as_500(kind: str) -> None:
    told: list[Any] = []

    def at_once(environ: Any, start_response: Any) -> Any:
        raise Boom

    def later(environ: Any, start_response: Any) -> Iterator[bytes]:
        raise Boom
        yield b""

    app = at_once if kind == "at once" else later

    def choose(status: int, error: Exception | None) -> Any:
        told.append((status, type(error)))
        return other

    assert serve(app, choose).chunks == [b"other"]
    assert told == [(500, Boom)]
    with pytest.raises(Boom):
        serve(app, never)


def test_an_app_that_raises_after_its_response_was_replaced_is_replaced() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("503 Busy", PLAIN)(b"written to nobody")
        raise Boom

    assert serve(app, failures).chunks == [b"other"]


def test_a_response_that_has_begun_is_not_replaced() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"one"
        raise Boom

    with pytest.raises(Boom):
        serve(app, lambda status, error: other if error else None)


def test_a_second_start_response_with_exc_info_decides() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("503 Busy", PLAIN)
        try:
            raise Boom
        except Boom:
            start_response("404 Nowhere", PLAIN, sys.exc_info())
        return [b"nowhere"]

    answer = serve(app, failures)
    assert (answer.status, answer.chunks) == ("404 Nowhere", [b"nowhere"])


def test_a_lazy_body_is_closed_once() -> None:
    body = ClosableBody()

    class Lazy:
        def __iter__(self) -> Iterator[bytes]:
            self.start("200 OK", PLAIN)
            return iter(body)

        def close(self) -> None:
            body.close()

        def __call__(self, environ: Any, start_response: Any) -> Any:
            self.start = start_response
            return self

    got: Any = replaceable_response(Lazy(), new_environ(), Server().start_response, failures)
    assert next(iter(got)) == b"one"
    got.close()
    got.close()
    assert body.closed == 1


def test_the_fallback_field_replaces_one_of_the_app() -> None:
    answer = Server()
    with_fallback_field(answer.start_response, "app")(
        "200 OK", [*PLAIN, (FALLBACK_FIELD.lower(), "none")]
    )
    assert answer.headers == [*PLAIN, (FALLBACK_FIELD, "app")]


def test_record_shaping_appends_in_order() -> None:
    environ: dict[str, Any] = {}
    record_shaping(environ, "split=a")
    record_shaping(environ, "fallback=b")
    assert environ[SHAPED] == "split=a fallback=b"
