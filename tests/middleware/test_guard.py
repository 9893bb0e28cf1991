"""Guard responds for an app that fails before its response has begun."""

from __future__ import annotations

import json
import logging

import pytest

from wsgigate.http.wsgi import REASON, REQUEST_ID
from wsgigate.middleware.guard import Guard
from wsgigate.testing.fakes import ClosableBody, Server, new_environ

FIELDS = [("Content-Type", "text/plain"), ("Content-Length", "5")]


class Boom(Exception):
    pass


def raises_at_once(error):
    def app(environ, start_response):
        raise error

    return app


def raises_after_start(error):
    def app(environ, start_response):
        start_response("200 OK", list(FIELDS))
        raise error

    return app


def raises_at_the_first_chunk(error):
    def app(environ, start_response):
        if error:
            raise error
        yield b""

    return app


def raises_after_a_late_start(error):
    def app(environ, start_response):
        start_response("200 OK", list(FIELDS))
        if error:
            raise error
        yield b""

    return app


ERRORS = [Boom("secret"), SystemExit(3), RecursionError(), MemoryError(), OSError("10.0.0.5")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "failing",
    [raises_at_once, raises_after_start, raises_at_the_first_chunk, raises_after_a_late_start],
)
def test_a_failure_before_the_response_began_is_answered_with_500(failing, error, caplog):
    """Q14, R03."""
    environ = new_environ()
    server = Server().serve(Guard(failing(error)), environ)
    assert server.status == "500 Internal Server Error"
    assert json.loads(b"".join(server.chunks)) == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "Gateway error occurred",
        "success": False,
        "message": "Gateway error occurred",
        "error": "Internal server error",
    }
    assert [name for name, _ in server.headers].count("Content-Length") == 1
    assert environ[REASON] == f"failed with {type(error).__name__}"


def test_the_traceback_is_logged_under_the_request_id(caplog):
    def app(environ, start_response):
        environ[REQUEST_ID] = "abc123"
        raise Boom("the cause")

    Server().serve(Guard(app))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("wsgigate", logging.ERROR)
    assert "abc123" in record.getMessage()
    assert "Boom: the cause" in caplog.text
    assert "in app" in caplog.text


def test_nothing_of_the_failure_reaches_the_client(caplog):
    server = Server().serve(Guard(raises_at_once(Boom("10.0.0.5 password"))))
    answer = repr(server.headers) + repr(server.chunks)
    assert "Boom" not in answer
    assert "10.0.0.5" not in answer


def test_a_failure_after_the_first_chunk_propagates(caplog):
    boom = Boom()

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"first"
        raise boom

    server = Server()
    with pytest.raises(Boom):
        server.serve(Guard(app))
    assert server.chunks == [b"first"]
    assert not caplog.records


def test_a_failure_after_write_propagates():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])(b"written")
        raise Boom

    server = Server()
    with pytest.raises(Boom):
        server.serve(Guard(app))
    assert (server.status, server.chunks) == ("200 OK", [b"written"])


@pytest.mark.parametrize("where", ["iterating", "closing", "after write"])
def test_an_exit_never_reaches_the_server(where):
    """Q14: it would end a threaded worker and every other request in it."""

    class Exits(ClosableBody):
        def __next__(self):
            if where == "iterating" and not self.first:
                raise SystemExit(1)
            self.first = False
            return super().__next__()

        first = True

        def close(self):
            if where == "closing":
                raise SystemExit(1)

    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        if where == "after write":
            write(b"written")
            raise SystemExit(1)
        return Exits()

    with pytest.raises(RuntimeError, match="exited with 1"):
        Server().serve(Guard(app))


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_interrupts_pass(error):
    with pytest.raises(error):
        Server().serve(Guard(raises_at_once(error())))


def test_the_inner_iterable_is_closed_once_when_its_first_chunk_fails(caplog):
    class Failing(ClosableBody):
        def __next__(self):
            raise Boom

    body = Failing()

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body

    server = Server().serve(Guard(app))
    assert server.status.startswith("500")
    assert body.closed == 1


@pytest.mark.parametrize(
    "body", [[b"x"], (b"x",), iter([b"x"]), []], ids=["list", "tuple", "iterator", "nothing"]
)
def test_an_app_that_never_starts_its_response_is_a_failure(body, caplog):
    """R11: gunicorn's sync worker would send "HTTP/1.1 None"."""
    server = Server().serve(Guard(lambda environ, start_response: body))
    assert server.status.startswith("500")
    assert "without calling start_response" in caplog.text


def test_an_app_that_returns_no_iterable_is_a_failure(caplog):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])

    assert Server().serve(Guard(app)).status.startswith("500")


def test_an_error_of_the_server_while_it_starts_the_response_is_raised():
    calls = []

    def start_response(status, headers, exc_info=None):
        calls.append(status)
        raise ValueError("a line break in a field")

    def app(environ, start_response):
        start_response("200 OK", [("X-Bad", "a\nb")])
        return [b"x"]

    with pytest.raises(ValueError, match="line break"):
        list(Guard(app)(new_environ(), start_response))
    assert calls == ["200 OK"]


def test_a_list_keeps_its_length():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"whole"]

    assert len(Guard(app)(new_environ(), Server().start_response)) == 1


def test_head_is_answered_without_a_body(caplog):
    server = Server().serve(Guard(raises_at_once(Boom())), new_environ("HEAD"))
    assert server.status.startswith("500")
    assert server.chunks == []


def test_the_response_can_be_replaced(caplog):
    closed = []

    def page(problem):
        def app(environ, start_response):
            start_response("500 Oops", [("Content-Type", "text/html")])
            body = ClosableBody([b"<h1>", problem.detail.encode()])
            closed.append(body)
            return body

        return app

    server = Server().serve(Guard(raises_at_the_first_chunk(Boom()), refuse=page))
    assert (server.status, server.chunks) == ("500 Oops", [b"<h1>", b"Gateway error occurred"])
    assert closed[0].closed == 1


def test_an_exception_that_is_meant_for_the_server_is_raised_again():
    def app(environ, start_response):
        environ["wsgigate.propagate"] = True
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Server().serve(Guard(app), new_environ())
