"""How responses begin, fail and end: the part of the WSGI contract that is easiest to break."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.testing.server import FIELDS, Body, Boom, Make, Server, answers, new_environ
from wsgigate.wsgi import close_body

__all__ = ["ENDINGS"]


def _bears_a_late_start(make: Make) -> None:
    """An app may call start_response as late as at its first chunk."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("202 Accepted", FIELDS)
        yield b"late"

    server = Server().serve(make(app))
    assert (server.status, server.chunks) == ("202 Accepted", [b"late"])


def _bears_a_second_start(make: Make) -> None:
    """An app may start again with exc_info while nothing is sent; the server is given it."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", FIELDS)
        try:
            raise Boom
        except Boom:
            start_response("500 Internal Server Error", FIELDS, sys.exc_info())
        return [b"sorry"]

    server = Server().serve(make(app))
    assert server.status.startswith("500"), f"the second start was lost: {server.status!r}"
    assert server.chunks == [b"sorry"], f"the body of the second start became {server.chunks}"
    assert server.saw_exc_info, "exc_info was not passed on"


def _passes_exc_info_too_late(make: Make) -> None:
    """Starting again after a chunk went out reaches the server, whose error goes through."""
    boom = Boom()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", FIELDS)
        yield b"sent"
        try:
            raise boom
        except Boom:
            start_response("500 Internal Server Error", FIELDS, sys.exc_info())
        yield b"never"

    server = Server()
    assert raised_by(server, make(app)) is boom, "a failed response came to a clean end"
    assert server.chunks == [b"sent"], f"after a failure the client was sent {server.chunks[1:]}"


def _lets_failures_out(make: Make) -> None:
    """What the app raises goes on to the server, or is answered with a 5xx while it can be."""

    def at_once(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise boom

    def lazily(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", FIELDS)
        if boom:
            raise boom
        yield b""

    for app in (at_once, lazily):
        boom = Boom()
        server = Server()
        raised = raised_by(server, make(app))
        assert raised is boom or (raised is None and server.status.startswith("5")), (
            f"{app.__name__} raised; the client was answered {server.status!r}, "
            f"the server got {raised!r}"
        )


def _lets_failures_of_the_body_out(make: Make) -> None:
    """A failure after the first chunk reaches the server: a cut response must not look whole."""
    boom = Boom()

    def chunks() -> Iterator[bytes]:
        yield b"first"
        raise boom

    body = Body(chunks())
    server = Server()
    assert raised_by(server, make(answers(body))) is boom, "a cut response came to a clean end"
    assert server.chunks == [b"first"], f"the client was sent {server.chunks}"
    assert body.closed == 1, f"the app's iterable was closed {body.closed} times after a failure"


def _lets_interrupts_out(make: Make) -> None:
    """KeyboardInterrupt is not the middleware's to keep."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise KeyboardInterrupt

    assert isinstance(raised_by(Server(), make(app)), KeyboardInterrupt)


def raised_by(server: Server, app: WSGIApplication) -> BaseException | None:
    try:
        server.serve(app)
    except AssertionError:
        raise
    except BaseException as error:
        return error
    return None


def _closes_what_was_never_iterated(make: Make) -> None:
    """The iterable is closed though never iterated, and once though the server closes twice."""
    body = Body()
    result = make(answers(body))(new_environ(), Server().start_response)
    close_body(result)
    assert body.closed == 1, f"never iterated, the app's iterable was closed {body.closed} times"
    if result is not body:
        close_body(result)
        assert body.closed == 1, "the second close() was passed on"


def _closes_what_was_left(make: Make) -> None:
    """A client that leaves after the first chunk closes the iterable, exactly once."""
    body = Body()
    result = make(answers(body))(new_environ(), Server().start_response)
    iterator = iter(result)
    next(iterator)
    close_body(result)
    del iterator, result
    assert body.closed == 1, f"left half-way, the app's iterable was closed {body.closed} times"


ENDINGS = (
    _bears_a_late_start,
    _bears_a_second_start,
    _passes_exc_info_too_late,
    _lets_failures_out,
    _lets_failures_of_the_body_out,
    _lets_interrupts_out,
    _closes_what_was_never_iterated,
    _closes_what_was_left,
)
