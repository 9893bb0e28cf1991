"""The response of an app that reads a body which is too large."""

from __future__ import annotations

import io
import json

import pytest

from wsgigate.http.wsgi import BodyTooLarge
from wsgigate.middleware.body_limit import BodyLimit
from wsgigate.testing.fakes import ClosableBody, Server, new_environ

LIMIT = 100


def chunked(size):
    return {
        **new_environ("POST"),
        "wsgi.input": io.BytesIO(b"x" * size),
        "wsgi.input_terminated": True,
        "HTTP_TRANSFER_ENCODING": "chunked",
    }


def test_each_read_above_the_limit_raises():
    told = []

    def app(environ, start_response):
        for _ in range(3):
            try:
                environ["wsgi.input"].read(1000)
            except BodyTooLarge as error:
                told.append(str(error))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"as if nothing had happened"]

    server = Server().serve(BodyLimit(app, LIMIT), chunked(1000))
    assert server.status.startswith("413")
    assert told == ["the request body is larger than 100 bytes"] * 3


def lazy_read(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "9")])
    yield environ["wsgi.input"].read()


def caught_and_answered(environ, start_response):
    try:
        environ["wsgi.input"].read()
    except BodyTooLarge:
        start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
        yield b"sorry"


def written(environ, start_response):
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    try:
        environ["wsgi.input"].read()
    except BodyTooLarge:
        write(b"sorry")
    return []


@pytest.mark.parametrize("app", [lazy_read, caught_and_answered, written])
def test_a_response_that_has_not_begun_is_replaced(app):
    server = Server().serve(BodyLimit(app, LIMIT), chunked(101))
    assert server.status.startswith("413")
    assert json.loads(b"".join(server.chunks))["status"] == 413
    lengths = [value for name, value in server.headers if name == "Content-Length"]
    assert lengths == [str(len(b"".join(server.chunks)))]


def test_the_replaced_response_is_closed():
    body = ClosableBody()

    def app(environ, start_response):
        try:
            environ["wsgi.input"].read()
        except BodyTooLarge:
            pass
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body

    Server().serve(BodyLimit(app, LIMIT), chunked(101))
    assert body.closed == 1


def test_a_response_that_has_begun_fails():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"begun"
        yield environ["wsgi.input"].read()

    server = Server()
    with pytest.raises(BodyTooLarge):
        server.serve(BodyLimit(app, LIMIT), chunked(101))
    assert (server.status, server.chunks) == ("200 OK", [b"begun"])


def test_the_rejection_can_be_replaced():
    def page(problem):
        def app(environ, start_response):
            start_response("413 Too Much", [("Content-Type", "text/html")])
            return [str(problem.status).encode()]

        return app

    limited = BodyLimit(lazy_read, LIMIT, refuse=page)
    for environ in ({**chunked(0), "CONTENT_LENGTH": "101"}, chunked(101)):
        server = Server().serve(limited, environ)
        assert (server.status, server.chunks) == ("413 Too Much", [b"413"])
