"""What the server makes of an app's response: framing, and what is refused."""

from __future__ import annotations

import http.client
import io
import random
import re
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from wsgigate.servers.http1_response import Response, ShortResponse, http_date


class Sent:
    """What was sent, piece by piece."""

    def __init__(self, method: str = "GET", version: tuple[int, int] = (1, 1), **options: Any):
        self.pieces: list[bytes] = []
        options = {"keep": True, "keep_alive": 5, **options}
        self.response = Response(self._send, method, version, **options)

    def _send(self, data: bytes) -> None:
        self.pieces.append(data)

    def run(
        self, body: Iterable[bytes], *fields: tuple[str, str], status: str = "200 OK"
    ) -> tuple[str, list[str], bytes]:
        """Return the status line, the fields without Date and Server, and the rest."""
        self.response.start(status, list(fields))
        self.response.run(body)
        head, _, rest = b"".join(self.pieces).partition(b"\r\n\r\n")
        first, server, date, *lines = head.decode("latin-1").split("\r\n")
        assert (server, date[:6]) == ("Server: gunicorn", "Date: ")
        return first, lines, rest


KEEP = ["Connection: keep-alive", "Keep-Alive: timeout=5"]
CLOSE = ["Connection: close"]
CHUNKED = "Transfer-Encoding: chunked"
LENGTH = ("Content-Length", "5")


def parts() -> Iterable[bytes]:
    yield b"he"
    yield b""
    yield b"llo"


@pytest.mark.parametrize(
    ("options", "body", "fields", "expected", "sent"),
    [
        ({}, [b"hello"], [LENGTH], [*KEEP, "Content-Length: 5"], b"hello"),
        ({}, [b"hello"], [], [*KEEP, "Content-Length: 5"], b"hello"),
        ({}, parts(), [], [*KEEP, CHUNKED], b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
        ({}, parts(), [LENGTH], [*KEEP, "Content-Length: 5"], b"hello"),
        ({}, [], [], [*KEEP, CHUNKED], b"0\r\n\r\n"),
        ({}, [b"hello world"], [LENGTH], [*KEEP, "Content-Length: 5"], b"hello"),
        ({"version": (1, 0)}, parts(), [], CLOSE, b"hello"),
        ({"version": (1, 2)}, [b"hello"], [LENGTH], [*KEEP, "Content-Length: 5"], b"hello"),
        ({"keep": False}, [b"hello"], [LENGTH], [*CLOSE, "Content-Length: 5"], b"hello"),
        ({"keep_alive": 0}, [b"hello"], [LENGTH], [KEEP[0], "Content-Length: 5"], b"hello"),
        ({"method": "HEAD"}, [b"hello"], [LENGTH], [*KEEP, "Content-Length: 5"], b""),
        ({"method": "HEAD"}, [], [], KEEP, b""),
        ({"begins": lambda: False}, [b"hello"], [LENGTH], [*CLOSE, "Content-Length: 5"], b"hello"),
    ],
)
def test_a_body_is_framed(
    options: dict[str, Any],
    body: Iterable[bytes],
    fields: list[tuple[str, str]],
    expected: list[str],
    sent: bytes,
) -> None:
    result = Sent(**options)
    first, lines, rest = result.run(body, *fields)
    assert first == ("HTTP/1.0 200 OK" if options.get("version") == (1, 0) else "HTTP/1.1 200 OK")
    assert (lines, rest) == (expected, sent)
    assert result.response.keep == (expected[0] == KEEP[0])


@pytest.mark.parametrize(
    ("status", "expected"),
    [("204 No Content", KEEP), ("304 Not Modified", [*KEEP, "Content-Length: 5"])],
)
def test_some_responses_have_no_body(status: str, expected: list[str]) -> None:
    assert Sent().run([b"hello"], LENGTH, status=status)[1:] == (expected, b"")


def test_head_and_body_leave_in_one_piece() -> None:
    result = Sent()
    result.run([b"hello"], LENGTH)
    assert len(result.pieces) == 1
    assert result.response.sent == 5


def test_fields_of_the_connection_are_the_servers_own() -> None:
    fields = [("Connection", "close"), ("Keep-Alive", "x"), ("Transfer-Encoding", "gzip")]
    more = [("Server", "x"), ("Date", "x"), ("Upgrade", "h2c"), ("X-A", "b"), ("X-A", "c")]
    assert Sent().run([b"hello"], *fields, *more, LENGTH)[1] == [
        *KEEP,
        "X-A: b",
        "X-A: c",
        "Content-Length: 5",
    ]


def test_an_upgrade_to_websocket_is_passed_on() -> None:
    fields = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
    status = "101 Switching Protocols"
    assert Sent().run([b""], *fields, status=status)[1:] == (
        ["Connection: upgrade", "Upgrade: websocket"],
        b"",
    )


@pytest.mark.parametrize("status", ["", "20", "2000", "200OK", "200 O\nK", "abc", "200 \u20ac"])
def test_a_malformed_status_is_an_error(status: str) -> None:
    with pytest.raises(ValueError, match="malformed status"):
        Sent().response.start(status, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("X A", "b"), ("", "b"), ("X:", "b"), ("X\n", "b"), ("Content-Length", "+5")],
)
def test_a_malformed_name_or_length_is_an_error(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        Sent().response.start("200 OK", [(name, value)])


@pytest.mark.parametrize("value", ["a\r\nX: b", "a\nb", "a\rb", "a\x00b", "a\x7fb"])
def test_a_malformed_value_is_an_error_that_does_not_show_it(value: str) -> None:
    result = Sent()
    result.response.start("200 OK", [("X-Fine", "a\tb"), ("X-Token", value)])
    with pytest.raises(ValueError, match="'X-Token'") as caught:
        result.response.run([b"hello"])
    assert value not in str(caught.value)
    assert result.pieces == []


@pytest.mark.parametrize(
    ("status", "fields"), [(b"200 OK", []), ("200 OK", [(b"X", "a")]), ("200 OK", [("X", 5)])]
)
def test_what_is_no_string_is_an_error(status: Any, fields: Any) -> None:
    with pytest.raises(TypeError, match="no string"):
        Sent().response.start(status, fields)


def test_what_is_no_bytes_is_an_error() -> None:
    body: Any = ["text"]
    with pytest.raises(TypeError, match="no bytes"):
        Sent().run(body)


def test_a_body_that_is_shorter_than_its_length_is_an_error() -> None:
    result = Sent()
    with pytest.raises(ShortResponse):
        result.run([b"hell"], LENGTH)
    assert b"".join(result.pieces).endswith(b"\r\n\r\nhell")


def test_a_response_may_be_replaced_until_its_head_has_left() -> None:
    result = Sent()
    result.response.start("200 OK", [("X-A", "b")])
    with pytest.raises(AssertionError):
        result.response.start("500 Failed", [])
    try:
        raise KeyError("late")
    except KeyError:
        result.response.start("500 Failed", [LENGTH], sys.exc_info())  # type: ignore[arg-type]
        result.response.write(b"hello")
        with pytest.raises(KeyError, match="late"):
            result.response.start("500 Failed", [], sys.exc_info())  # type: ignore[arg-type]
    assert b"X-A" not in result.pieces[0]


def test_an_app_that_starts_no_response_is_an_error() -> None:
    with pytest.raises(AssertionError, match="start_response"):
        Sent().response.run([])
    with pytest.raises(AssertionError, match="start_response"):
        Sent().response.run([b"x"])


def test_early_hints_precede_the_response() -> None:
    result = Sent()
    result.response.hint([("Link", "</a.css>; rel=preload")])
    assert result.pieces == [b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"]
    with pytest.raises(ValueError, match="Link"):
        result.response.hint([("Link", "a\r\nb")])
    result.response.start("200 OK", [LENGTH])
    result.response.run([b"hello"])
    result.response.hint([("Link", "late")])
    older = Sent(version=(1, 0))
    older.response.hint([("Link", "x")])
    assert (len(result.pieces), older.pieces) == (2, [])


def test_the_date_is_that_of_rfc_9110() -> None:
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", http_date())


def test_two_different_lengths_are_refused_and_equal_ones_sent_once() -> None:
    with pytest.raises(ValueError, match="two different"):
        Sent().run([b"hello"], LENGTH, ("content-length", "6"))
    assert Sent().run([b"hello"], LENGTH, LENGTH)[1] == [*KEEP, "Content-Length: 5"]


def test_a_connection_that_was_upgraded_is_not_kept() -> None:
    result = Sent()
    result.run([b""], ("Connection", "Upgrade"), status="101 Switching Protocols")
    assert not result.response.keep


class Kept(io.BufferedReader):
    """What http.client reads several responses from: it closes its file after each."""

    def makefile(self, mode: str) -> Kept:
        return self

    def close(self) -> None:
        pass


@pytest.mark.parametrize("seed", range(5))
def test_http_client_reads_responses_of_all_kinds_one_after_the_other(seed: int) -> None:
    chance = random.Random(seed)
    sent = io.BytesIO()
    expected = []
    for _ in range(200):
        method = chance.choice(["GET", "GET", "HEAD"])
        status = chance.choice(["200 OK", "200 OK", "204 No Content", "304 Not Modified"])
        parts = [chance.randbytes(chance.randint(0, 300)) for _ in range(chance.randint(0, 4))]
        body = b"".join(parts)
        fields = [("Content-Length", str(len(body)))] if chance.random() < 0.5 else []
        response = Response(sent.write, method, (1, 1), keep=True, keep_alive=5)
        response.start(status, fields)
        response.run(parts if chance.random() < 0.5 else iter(parts))
        assert response.keep
        expected.append((method, status, body if (method, status) == ("GET", "200 OK") else b""))
    sent.seek(0)
    stream: Any = Kept(sent)  # type: ignore[arg-type]
    for method, status, body in expected:
        read = http.client.HTTPResponse(stream, method=method)
        read.begin()
        assert (f"{read.status} {read.reason}", read.read()) == (status, body)
    assert stream.read() == b""
