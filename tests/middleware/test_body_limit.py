"""Bodies above the limit are rejected, with or without an announced length."""

from __future__ import annotations

import io
import json

import pytest

from wsgigate.http.wsgi import REASON
from wsgigate.middleware.body_limit import BodyLimit
from wsgigate.testing.fakes import Server, new_environ

LIMIT = 100


class Socket(io.RawIOBase):
    """An input as a server has it: where it is not bounded, reading past its bytes would hang."""

    def __init__(self, data, *, hangs=False, step=None):
        self.data = data
        self.hangs = hangs
        self.step = step
        self.read_so_far = 0

    def read(self, size=-1):
        if size < 0 or size > len(self.data):
            assert not self.hangs, f"read({size}) with {len(self.data)} bytes left waits for ever"
            size = len(self.data)
        if self.step:
            size = min(size, self.step)
        data, self.data = self.data[:size], self.data[size:]
        self.read_so_far += len(data)
        return data

    def readline(self, size=-1):
        end = self.data.find(b"\n") + 1 or len(self.data)
        if size >= 0:
            end = min(end, size)
        elif end == len(self.data):
            assert not self.hangs, "readline() waits for ever"
        return self.read(end)


def reading(how):
    def app(environ, start_response):
        body = how(environ["wsgi.input"])
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return [body]

    return app


READS = {
    "read": lambda input: input.read(),
    "read -1": lambda input: input.read(-1),
    "read None": lambda input: input.read(None),
    "read 7": lambda input: b"".join(iter(lambda: input.read(7), b"")),
    "read 64k": lambda input: b"".join(iter(lambda: input.read(65536), b"")),
    "readline": lambda input: b"".join(iter(input.readline, b"")),
    "readline 5": lambda input: b"".join(iter(lambda: input.readline(5), b"")),
    "readlines": lambda input: b"".join(input.readlines()),
    "iter": lambda input: b"".join(input),
}
how = pytest.mark.parametrize("how", READS.values(), ids=READS)


def environ_of(data, length=None, *, terminated=True, chunked=False, **socket):
    environ = new_environ("POST")
    environ["wsgi.input"] = Socket(data, **socket)
    if terminated:
        environ["wsgi.input_terminated"] = True
    if length is not None:
        environ["CONTENT_LENGTH"] = length
    if chunked:
        environ["HTTP_TRANSFER_ENCODING"] = "chunked"
    return environ


@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("0", 200),
        ("100", 200),
        ("101", 413),
        ("00100", 200),
        ("0" * 50 + "100", 200),
        ("1" + "0" * 23, 413),
        ("9" * 10_000, 413),
        ("-1", 400),
        ("+3", 400),
        ("0x3", 400),
        ("1_0", 400),
        ("1 0", 400),
        ("3, 3", 400),
        (" 3", 400),
        ("3.0", 400),
        ("²", 400),
        ("٣", 400),
        ("x", 400),
    ],
)
def test_a_length_is_judged_before_anything_is_read(length, status):
    """A04, A06, A07."""
    called = []

    def app(environ, start_response):
        called.append(1)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []

    environ = environ_of(b"", length, hangs=True)
    server = Server().serve(BodyLimit(app, LIMIT), environ)
    assert server.status.startswith(str(status))
    assert bool(called) == (status == 200)
    if status == 413:
        assert json.loads(server.chunks[0])["detail"] == (
            "The request body is larger than 100 bytes."
        )
    if status != 200:
        assert environ[REASON]
        assert len(environ[REASON]) < 200


@how
@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_a_chunked_body_up_to_the_limit_arrives_whole(size, how):
    data = (b"line\n" * 30)[:size]
    server = Server().serve(BodyLimit(reading(how), LIMIT), environ_of(data, chunked=True, step=9))
    assert server.status == "200 OK"
    assert b"".join(server.chunks) == data


@how
@pytest.mark.parametrize("data", [b"x" * 101, b"line\n" * 100_000, b"x" * 1_000_000])
def test_a_chunked_body_past_the_limit_is_refused_while_it_is_read(data, how):
    """A13."""
    environ = environ_of(data, chunked=True)
    socket = environ["wsgi.input"]
    server = Server().serve(BodyLimit(reading(how), LIMIT), environ)
    assert server.status.startswith("413")
    assert json.loads(b"".join(server.chunks))["status"] == 413
    assert environ[REASON] == "body of more than 100 bytes"
    assert socket.read_so_far <= LIMIT + 1


def test_a_body_without_length_or_encoding_is_counted_where_the_server_ends_it():
    """HTTP/2 needs neither."""
    server = Server().serve(BodyLimit(reading(READS["read"]), LIMIT), environ_of(b"x" * 101))
    assert server.status.startswith("413")


@how
def test_without_length_on_a_server_that_does_not_end_bodies_there_is_no_body(how):
    """R04."""
    environ = environ_of(b"GET /next HTTP/1.1", terminated=False, hangs=True)
    server = Server().serve(BodyLimit(reading(how), LIMIT), environ)
    assert (server.status, server.chunks) == ("200 OK", [b""])


@how
def test_reading_ends_at_the_length_on_a_server_that_does_not_end_bodies(how):
    environ = environ_of(b"a\nbcd" + b"GET /next", "5", terminated=False, hangs=True)
    server = Server().serve(BodyLimit(reading(how), LIMIT), environ)
    assert (server.status, server.chunks) == ("200 OK", [b"a\nbcd"])
    assert environ["wsgi.input_terminated"] is True


def test_a_chunked_body_that_the_server_does_not_read_is_not_taken_for_empty():
    environ = environ_of(b"5\r\nhello\r\n", terminated=False, chunked=True)
    server = Server().serve(BodyLimit(reading(READS["read"]), LIMIT), environ)
    assert server.status == "411 Length Required"


def test_readlines_stops_at_its_hint():
    for terminated in (True, False):
        environ = environ_of(b"a\nb\nc\n", None if terminated else "6", terminated=terminated)
        seen = []

        def app(environ, start_response, seen=seen):
            seen += environ["wsgi.input"].readlines(3)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return []

        Server().serve(BodyLimit(app, LIMIT), environ)
        assert seen == [b"a\n", b"b\n"]


def test_a_failure_that_is_not_about_the_size_goes_on():
    def app(environ, start_response):
        environ["wsgi.input"].read()
        raise OSError("something else")

    with pytest.raises(OSError, match="something else"):
        Server().serve(BodyLimit(app, LIMIT), environ_of(b"x", chunked=True))


def test_an_error_of_the_input_reaches_the_app():
    """R06, A12."""

    class Broken(Socket):
        def read(self, size=-1):
            raise OSError("bad chunk")

    environ = {**environ_of(b"", chunked=True), "wsgi.input": Broken(b"")}
    with pytest.raises(OSError, match="bad chunk"):
        Server().serve(BodyLimit(reading(READS["read"]), LIMIT), environ)


def test_a_body_whose_server_ends_it_at_its_length_is_left_alone():
    environ = environ_of(b"hello", "5")
    input = environ["wsgi.input"]
    Server().serve(BodyLimit(reading(READS["read"]), LIMIT), environ)
    assert environ["wsgi.input"] is input


@pytest.mark.parametrize(
    ("limit", "size"), [("64KiB", 65536), ("1 MB", 10**6), (5, 5), (0, 0), ("10", 10)]
)
def test_limits(limit, size):
    assert BodyLimit(reading(READS["read"]), limit).limit == size


def test_the_default_limit_is_ten_mebibytes():
    assert BodyLimit(reading(READS["read"])).limit == 10 * 1024 * 1024


@pytest.mark.parametrize("limit", ["", "10 parsecs", -1, "-1", None, True])
def test_a_limit_that_is_no_size_is_refused(limit):
    with pytest.raises(ValueError, match="limit: "):
        BodyLimit(reading(READS["read"]), limit)
