"""A conformance suite for middlewares: the WSGI contract (PEP 3333) with the app and the server."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

from wsgigate.http.fields import HOP_BY_HOP
from wsgigate.http.wsgi import close_body
from wsgigate.testing.fakes import (
    CHUNKS,
    FIELDS,
    Boom,
    ClosableBody,
    MakeMiddleware,
    Server,
    answers,
    new_environ,
)

__all__ = ["ENDINGS", "check_middleware"]


# How responses begin, fail and end: the part of the WSGI contract that is easiest to break.


def _bears_a_late_start(make: MakeMiddleware) -> None:
    """An app may call start_response as late as at its first chunk."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("202 Accepted", FIELDS)
        yield b"late"

    server = Server().serve(make(app))
    assert (server.status, server.chunks) == ("202 Accepted", [b"late"])


def _bears_a_second_start(make: MakeMiddleware) -> None:
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


def _passes_exc_info_too_late(make: MakeMiddleware) -> None:
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


def _lets_failures_out(make: MakeMiddleware) -> None:
    """An exception of the app reaches the server, or becomes a 5xx while nothing was sent."""

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


def _lets_failures_of_the_body_out(make: MakeMiddleware) -> None:
    """An exception after the first chunk reaches the server, which then truncates the response."""
    boom = Boom()

    def chunks() -> Iterator[bytes]:
        yield b"first"
        raise boom

    body = ClosableBody(chunks())
    server = Server()
    assert raised_by(server, make(answers(body))) is boom, "a cut response came to a clean end"
    assert server.chunks == [b"first"], f"the client was sent {server.chunks}"
    assert body.closed == 1, f"the app's iterable was closed {body.closed} times after a failure"


def _lets_interrupts_out(make: MakeMiddleware) -> None:
    """The middleware does not swallow KeyboardInterrupt."""

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


def _closes_what_was_never_iterated(make: MakeMiddleware) -> None:
    """The iterable is closed though never iterated, and once though the server closes twice."""
    body = ClosableBody()
    result = make(answers(body))(new_environ(), Server().start_response)
    close_body(result)
    assert body.closed == 1, f"never iterated, the app's iterable was closed {body.closed} times"
    if result is not body:
        close_body(result)
        assert body.closed == 1, "the second close() was passed on"


def _closes_what_was_left(make: MakeMiddleware) -> None:
    """A client that leaves after the first chunk closes the iterable, exactly once."""
    body = ClosableBody()
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


def check_middleware(make: MakeMiddleware, *, leaves_body: bool = False) -> None:
    """Check that a middleware keeps the WSGI contract.

    *make* is called for each check, so that checks do not affect each other. The middleware must
    let some two hundred ordinary requests through: for one that requires a token, *make* can add
    it.

    :param make: Wraps an app in the middleware; returns a WSGI app.
    :param leaves_body: Whether the middleware must return the app's iterable unwrapped, because it
        does not need the end of a response: ``len()`` and the server's ``sendfile`` depend on that.
    :raises AssertionError: It violates the contract; the message says how.
    """
    for check in _CHECKS:
        try:
            check(make)
        except Exception as error:
            error.add_note(f"wsgigate.testing.check_middleware: {check.__doc__}")
            raise
    if leaves_body:
        _returns_the_iterable(make)


def _passes_a_list(make: MakeMiddleware) -> None:
    """A list goes out as it is, fields included; the app's own list of fields stays as it was."""
    before, chunks = list(FIELDS), list(CHUNKS)
    server = Server().serve(make(answers(chunks)))
    assert server.status == "200 OK", f"the status became {server.status!r}"
    assert server.chunks == CHUNKS, f"the chunks {CHUNKS} became {server.chunks}"
    assert chunks == CHUNKS, "the app's list of chunks was changed"
    assert before == FIELDS, f"the app's list of fields was changed to {FIELDS}"
    cookies = [value for name, value in server.headers if name == "Set-Cookie"]
    assert cookies == ["a=1", "b=2"], f"two cookies became {cookies}"
    assert ("X-From-App", "yes") in server.headers, "a field of the app was lost"
    added = {name.lower() for name, _ in server.headers} & HOP_BY_HOP
    assert not added, f"hop-by-hop fields were added: {sorted(added)}"


def _passes_an_iterable(make: MakeMiddleware) -> None:
    """Chunks go out one by one, unchanged and unmerged; the iterable is closed exactly once."""
    body = ClosableBody()
    server = Server().serve(make(answers(body)))
    assert server.chunks == CHUNKS, f"the chunks {CHUNKS} became {server.chunks}"
    assert body.closed == 1, f"the app's iterable was closed {body.closed} times"


def _reads_no_further_than_asked(make: MakeMiddleware) -> None:
    """No chunk is read from the app before the server reads it."""
    taken: list[bytes] = []

    def chunks() -> Iterator[bytes]:
        for chunk in (b"1", b"2", b"3"):
            taken.append(chunk)
            yield chunk

    result = make(answers(chunks()))(new_environ(), Server().start_response)
    iterator = iter(result)
    for count, chunk in enumerate((b"1", b"2", b"3"), 1):
        assert next(iterator) == chunk, "the chunks were merged or reordered"
        assert len(taken) == count, f"{len(taken)} chunks were taken to hand on {count}"
    close_body(result)


def _answers_head(make: MakeMiddleware) -> None:
    """A response to HEAD has the fields of GET, and no body."""
    fields = [*FIELDS, ("Content-Length", "11")]

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        assert environ["REQUEST_METHOD"] == "HEAD", "the method was changed"
        start_response("200 OK", list(fields))
        return []

    server = Server().serve(make(app), new_environ("HEAD"))
    assert b"".join(server.chunks) == b"", f"HEAD was answered with {server.chunks}"
    assert ("Content-Length", "11") in server.headers, "Content-Length was lost"


def _passes_write(make: MakeMiddleware) -> None:
    """The callable that start_response returns writes to the server, ahead of the iterable."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", FIELDS)
        write(b"written")
        write(b"again")
        return [b"returned"]

    server = Server().serve(make(app))
    assert server.chunks == [b"written", b"again", b"returned"], f"it became {server.chunks}"


def _passes_files(make: MakeMiddleware) -> None:
    """A file in wsgi.file_wrapper arrives complete, and is closed."""
    file = io.BytesIO(b"x" * 100_000)
    environ = {**new_environ(), "wsgi.file_wrapper": FileWrapper}

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", FIELDS)
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return wrapped

    server = Server().serve(make(app), environ)
    assert len(b"".join(server.chunks)) == 100_000, "a file did not arrive whole"
    assert file.closed, "a file was left open"


def _leaves_the_request(make: MakeMiddleware) -> None:
    """The environ stays a dict; only the app reads the request's body, and reads all of it."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        assert type(environ) is dict, f"environ became a {type(environ).__name__}"
        start_response("200 OK", FIELDS)
        if environ["REQUEST_METHOD"] == "PUT":
            return []
        return [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))]

    for terminated in (True, False):
        environ = {**new_environ("PUT", b"hello"), "wsgi.input": _Untouched()}
        Server().serve(make(app), {**environ, "wsgi.input_terminated": terminated})
        environ = {**new_environ("POST", b"hello"), "wsgi.input_terminated": terminated}
        server = Server().serve(make(app), environ)
        assert server.chunks == [b"hello"], f"the app read {server.chunks} of a body of b'hello'"


class _Untouched(io.RawIOBase):
    def readable(self) -> bool:
        raise AssertionError("the request's body was used before the app read it")

    def readinto(self, buffer: object, /) -> int:
        raise AssertionError("the request's body was read before the app read it")


def _is_valid(make: MakeMiddleware) -> None:
    """wsgiref.validate finds no error, neither outside the middleware nor inside."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "DELETE":
            start_response("204 No Content", [("X-From-App", "yes")])
            return []
        if environ["REQUEST_METHOD"] == "POST":
            environ["wsgi.input"].read(5)
        start_response("200 OK", list(FIELDS))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"a", b"b"]

    for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
        environ = new_environ(method, b"hello" if method == "POST" else b"")
        Server().serve(validator(make(validator(app))), environ)


def _keeps_requests_apart(make: MakeMiddleware) -> None:
    """Concurrent requests through one object do not affect each other."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("X-Path", environ["PATH_INFO"])])
        yield environ["PATH_INFO"].encode()
        yield b"!"

    wrapped = make(app)
    start = threading.Barrier(8)
    wrong: list[object] = []

    def client(name: int) -> None:
        start.wait()
        for count in range(25):
            path = f"/{name}/{count}"
            try:
                server = Server().serve(wrapped, {**new_environ(), "PATH_INFO": path})
            except Exception as error:
                wrong.append(error)
                return
            if ("X-Path", path) not in server.headers or server.chunks != [path.encode(), b"!"]:
                wrong.append((path, server.status, server.headers, server.chunks))

    threads = [threading.Thread(target=client, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"a response went wrong among others: {wrong[0]}"


def _returns_the_iterable(make: MakeMiddleware) -> None:
    for body in (list(CHUNKS), ClosableBody(), FileWrapper(io.BytesIO(b"file"))):
        result = make(answers(body))(new_environ(), Server().start_response)
        assert result is body, f"the app's own {type(body).__name__} was not returned"
        close_body(result)


_CHECKS: tuple[Callable[[MakeMiddleware], None], ...] = (
    _passes_a_list,
    _passes_an_iterable,
    _reads_no_further_than_asked,
    _answers_head,
    _passes_write,
    _passes_files,
    _leaves_the_request,
    _is_valid,
    _keeps_requests_apart,
    *ENDINGS,
)
