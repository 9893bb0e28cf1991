"""The access log has one record per response, written at its end."""

from __future__ import annotations

import io
import json
import threading

import pytest

from wsgigate.http.wsgi import CLAIMS, CLIENT, INSTANCE, REASON, REQUEST_ID, ROUTE, SERVICE
from wsgigate.middleware.guard import Guard
from wsgigate.middleware.logger import Logger
from wsgigate.testing import FakeClock
from wsgigate.testing.fakes import ClosableBody, Server, new_environ


class Boom(Exception):
    pass


class Terminal(io.StringIO):
    def isatty(self):
        return True


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello, ", b"world"]


class Chunks:
    """A body that is no list, so that its end is told by ``close()``."""

    def __iter__(self):
        return iter([b"hello, ", b"world"])


def streamed(environ, start_response):
    hello(environ, start_response)
    return Chunks()


def logged(app, environ=None, serve=None):
    """Return the record that a Logger around *app* writes of one request."""
    stream = io.StringIO()
    logger = Logger(app, stream=stream)
    environ = {**new_environ(), **(environ or {})}
    if serve is None:
        Server().serve(logger, environ)
    else:
        serve(logger, environ)
    assert logger.close(30)
    (line,) = stream.getvalue().splitlines()
    return json.loads(line)


def test_a_record_has_the_members_of_the_environ_and_the_response():
    def app(environ, start_response):
        clock.advance(0.25)
        environ[REQUEST_ID] = "r1"
        environ[CLIENT] = "203.0.113.9"
        environ[ROUTE] = "users"
        environ[SERVICE] = "user-service"
        environ[INSTANCE] = "http://10.0.0.5:8000"
        environ[CLAIMS] = {"sub": "u1", "role": "admin"}
        environ[REASON] = "because"
        return hello(environ, start_response)

    clock = FakeClock(1_750_000_000.0)
    stream = io.StringIO()
    logger = Logger(app, stream=stream, now=clock, clock=clock)
    environ = {
        **new_environ("POST"),
        "RAW_URI": "/users/7?token=secret",
        "QUERY_STRING": "token=secret",
        "HTTP_AUTHORIZATION": "Bearer secret",
        "HTTP_COOKIE": "session=secret",
    }
    Server().serve(logger, environ)
    assert logger.close(30)
    assert json.loads(stream.getvalue()) == {
        "time": "2025-06-15T15:06:40.250Z",
        "request_id": "r1",
        "client": "203.0.113.9",
        "method": "POST",
        "path": "/users/7",
        "status": 200,
        "bytes": 12,
        "duration_ms": 250.0,
        "route": "users",
        "service": "user-service",
        "instance": "http://10.0.0.5:8000",
        "subject": "u1",
        "reason": "because",
    }
    assert "secret" not in stream.getvalue()  # L03


def test_members_without_a_value_are_null():
    record = logged(hello)
    for name in ("request_id", "route", "service", "instance", "subject"):
        assert record[name] is None
    assert not {"reason", "error", "aborted"} & record.keys()
    assert record["client"] == "192.0.2.1"
    assert record["path"] == "/"


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"RAW_URI": "/a%2fb?c", "REQUEST_URI": "/other"}, "/a%2fb"),
        ({"REQUEST_URI": "/a%2fb?c"}, "/a%2fb"),
        ({"RAW_URI": "http://h.test/a?b"}, "/a"),
        ({"SCRIPT_NAME": "/app", "PATH_INFO": "/a b\r\n"}, "/app/a%20b%0D%0A"),
    ],
)
def test_the_logged_path_is_that_of_the_request(environ, path):
    assert logged(hello, environ)["path"] == path


def test_a_peer_without_an_address():
    assert logged(hello, {"REMOTE_ADDR": ""})["client"] == "unix"


@pytest.mark.parametrize("sub", [None, 7, "", ["a"]])
def test_a_subject_that_is_no_name(sub):
    assert logged(hello, {CLAIMS: {"sub": sub}})["subject"] is None


def test_head_sends_no_bytes():
    assert logged(hello, {"REQUEST_METHOD": "HEAD"})["bytes"] == 0


def test_written_bytes_count():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])(b"12345")
        return [b"678"]

    assert logged(app)["bytes"] == 8


def failing_with(error):
    """Return what serves a request whose app is to fail with *error*."""

    def serve(app, environ):
        with pytest.raises(error):
            Server().serve(app, environ)

    return serve


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("error", [Boom, SystemExit])
def test_an_app_that_fails_before_anything_is_sent_is_a_500(started, lazy, error):
    def app(environ, start_response):
        if started:
            start_response("200 OK", [("Content-Type", "text/plain")])
        raise error

    def lazy_app(environ, start_response):
        yield from app(environ, start_response)

    record = logged(lazy_app if lazy else app, serve=failing_with(error))
    assert record["status"] == 500
    assert record["error"] == error.__name__
    assert record["bytes"] == 0
    assert "aborted" not in record


def test_an_app_that_fails_half_way_is_an_aborted_response():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"12345"
        raise Boom

    record = logged(app, serve=failing_with(Boom))
    assert (record["status"], record["error"], record["bytes"]) == (200, "Boom", 5)
    assert record["aborted"] is True


def test_a_client_that_leaves_is_an_aborted_response():
    body = ClosableBody([b"123", b"456", b"789"])

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body

    def leaves(app, environ):
        result = app(environ, Server().start_response)
        next(iter(result))
        result.close()

    record = logged(app, serve=leaves)
    assert (record["status"], record["bytes"], record["aborted"]) == (200, 3, True)
    assert "error" not in record
    assert body.closed == 1


def test_a_response_that_was_never_iterated():
    def never(app, environ):
        app(environ, Server().start_response).close()

    record = logged(streamed, serve=never)
    assert (record["status"], record["bytes"], record["aborted"]) == (200, 0, True)


def test_one_record_though_the_server_closes_twice():
    def twice(app, environ):
        result = app(environ, Server().start_response)
        list(result)
        result.close()
        result.close()

    assert logged(streamed, serve=twice)["bytes"] == 12


def test_a_body_that_is_a_list_is_whole_when_it_is_returned():
    def returned(app, environ):
        assert type(app(environ, Server().start_response)) is list

    record = logged(hello, serve=returned)
    assert (record["status"], record["bytes"], "aborted" in record) == (200, 12, False)


def test_the_response_of_an_inner_guard_is_logged():
    def app(environ, start_response):
        raise Boom

    record = logged(Guard(app))
    assert record["status"] == 500
    assert record["reason"] == "failed with Boom"
    assert "error" not in record


@pytest.mark.parametrize(
    ("format", "terminal", "first"),
    [
        ("auto", False, "{"),
        ("auto", True, "2"),
        ("json", True, "{"),
        ("text", False, "2"),
    ],
)
def test_formats(format, terminal, first, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal() if terminal else io.StringIO()
    logger = Logger(hello, stream=stream, format=format)
    Server().serve(logger)
    assert logger.close(30)
    assert stream.getvalue()[0] == first
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"),
    [(True, None, True), (True, "", True), (True, "1", False), (False, None, False)],
)
def test_colours_are_for_terminals_that_want_them(terminal, no_color, coloured, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    stream = Terminal() if terminal else io.StringIO()
    logger = Logger(hello, stream=stream, format="text")
    Server().serve(logger)
    assert logger.close(30)
    assert ("\x1b[32m200\x1b[0m" in stream.getvalue()) == coloured


def test_no_request_waits_for_the_log():
    """L05."""

    class Stuck(io.StringIO):
        open = threading.Event()

        def write(self, text):
            assert self.open.wait(30)
            return super().write(text)

    stream = Stuck()
    logger = Logger(hello, stream=stream, queue_size=5)
    for _ in range(200):
        assert Server().serve(logger).status == "200 OK"
    assert logger.dropped >= 150
    assert logger.flush(timeout=0) is False
    stream.open.set()
    assert logger.close(30)
    written = [json.loads(line) for line in stream.getvalue().splitlines()]
    reported = [line["count"] for line in written if "event" in line]
    assert sum(reported) + len(written) - len(reported) == 200


def test_a_closed_stream_hurts_no_request():
    stream = io.StringIO()
    stream.close()
    logger = Logger(hello, stream=stream)
    assert Server().serve(logger).status == "200 OK"
    assert logger.flush(30)
    assert logger.dropped == 1
    logger.close(30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "xml"}, "format is one of auto, json, text, otel, ecs, logfmt, combined, not"),
        ({"queue_size": 0}, "queue_size"),
        ({"queue_size": -1}, "queue_size"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Logger(hello, **settings)
