"""Responses of instances as bytes on a socket, and what the client gets.

Ids such as G01 are those of a catalogue of attacks and faults. Each case is held
against both transports; a poisoned connection is looked for by a second request behind each.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tests.proxy.clients import ServiceClient
from wsgigate.http.wsgi import REASON, close_body
from wsgigate.proxy.response import UpstreamCut
from wsgigate.testing.backend import Backend, Received, ScriptedAnswer, cut, reply

Forward = Callable[..., ServiceClient]

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"
NEXT = b"for the next user"


@dataclass
class Case:
    """One answer: what is sent, and what becomes of it.

    :param becomes: The status, body included; ``cut`` for one that the client sees end too early.
    :param stays: Whether the connection is kept for the next request; None when either is right.
    """

    id: str
    data: bytes
    becomes: int | str
    body: bytes = b""
    method: str = "GET"
    stays: bool | None = False
    own: bool = False


CASES = [
    # bodies and lengths
    Case("G01", OK + b"Content-Length: 50\r\n\r\nshort", "cut", b"short"),
    Case("G02", CHUNKED + b"5\r\nshort\r\n", "cut", b"short"),
    Case("G03", CHUNKED + b"9\r\nshort", "cut", b"short"),
    Case("G04", CHUNKED + b"5\r\nshort\r\n0\r\n", "cut", b"short"),
    Case("G05", OK + b"Content-Length: 0\r\n", 502),
    Case("G05-mid-field", OK + b"Content-Le", 502),
    Case("G06", b"HTTP/1.0 200 OK\r\n\r\nall of it", 200, b"all of it"),
    Case("G06-1.1", OK + b"\r\nall of it", 200, b"all of it"),
    Case("G07", OK + b"Content-Length: 3\r\n\r\nabcde", 200, b"abc"),
    Case("G08", OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502),
    Case("G08-te-first", OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 502),
    # a blank behind the coding is none of it
    *(
        Case(
            f"G08-blank-{number}",
            OK + b"Transfer-Encoding:" + coding + b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            200,
            b"hello",
            stays=None,
        )
        for number, coding in enumerate(
            (b"chunked\t", b"\tchunked", b" chunked \t ", b"Chunked\t\t", b"chunked ")
        )
    ),
    Case("G08-unknown", OK + b"Transfer-Encoding: xchunked\r\n\r\nok", 502),
    Case("G08-unknown-cl", OK + b"Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\nok", 502),
    Case("G08-gzip", OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502),
    Case("G08-twice", OK + b"Transfer-Encoding: chunked\r\n" + CHUNKED[17:] + b"0\r\n\r\n", 502),
    Case("G08-identity", OK + b"Transfer-Encoding: identity\r\n\r\nok", 502),
    Case(
        "G08-1.0",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        502,
        own=True,
    ),
    Case("G09", OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 502),
    Case("G10", OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde", 502),
    Case("G10-list", OK + b"Content-Length: 5, 5\r\n\r\nabcde", 502),
    *(
        Case(f"G11-{length.decode()[:4]}", OK + b"Content-Length: %b\r\n\r\nabcde" % length, 502)
        for length in (b"-5", b"+5", b"5x", b"0x5", b"5_0", b"", b"1" + b"0" * 30)
    ),
    *(
        Case(f"G12-{size.decode()[:4]}", CHUNKED + b"5\r\nshort\r\n%b\r\n" % size, "cut", b"short")
        for size in (b"zz", b"-5", b"+5", b"0x5", b"0_5", b"", b"1" + b"0" * 16, b"5\n")
    ),
    Case("G12-no-end", CHUNKED + b"5\r\nshortXX5\r\nabcde\r\n", "cut", b"short"),
    Case("G12-bare-lf", CHUNKED + b"5\r\nshort\r\n5\nabcde\r\n", "cut", b"short"),
    Case("G12-extension", CHUNKED + b"5;a=b\r\nwhole\r\n0\r\n\r\n", 200, b"whole", stays=None),
    Case(
        "G12-nul", CHUNKED + b"5\r\nshort\r\n5;\0\r\nabcde\r\n0\r\n\r\n", "cut", b"short", own=True
    ),
    Case(
        "G12-trailers", CHUNKED + b"2\r\nok\r\n0\r\nSet-Cookie: a=1\r\n\r\n", 200, b"ok", stays=True
    ),
    Case("G13-chunked", CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + reply(b"stray"), 200, b"ok"),
    Case("G13-newline", CHUNKED + b"2\r\nok\r\n0\r\n\r\n\r\n", 200, b"ok", own=True),
    Case("G13-garbage", CHUNKED + b"2\r\nok\r\n0\r\n\r\nX\r\n\r\n", 200, b"ok"),
    Case("G13", reply(b"one") + reply(b"stray"), 200, b"one"),
    Case("G14-204", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nstray", 204),
    Case("G14-204-plain", b"HTTP/1.1 204 No Content\r\n\r\nstray", 204),
    Case("G14-304", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nstray", 304),
    Case("G14-head", OK + b"Content-Length: 5\r\n\r\nstray", 200, method="HEAD"),
    Case("G15", CHUNKED, 200, method="HEAD", stays=True),
    Case("G15-body", CHUNKED + b"5\r\nstray\r\n0\r\n\r\n", 200, method="HEAD"),
    # interim and odd statuses
    *(
        Case(
            f"G20-{n}",
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * n + reply(b"ok"),
            200,
            b"ok",
            stays=True,
        )
        for n in (1, 10)
    ),
    Case(
        "G20-mixed",
        b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 102 P\r\n\r\n" + reply(b"ok"),
        200,
        b"ok",
        stays=True,
    ),
    Case("G22", b"HTTP/1.1 103 Early Hints\r\n\r\n", 502),
    Case("G23", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 11 + reply(b"late"), 502),
    Case("G24", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", 502),
    Case("G24-more", b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + reply(b"x"), 502),
    Case("G25", reply(b"one") + b"HTTP/1.1 100 Continue\r\n\r\n", 200, b"one"),
    *(
        Case(f"G26-{line.decode()}", b"HTTP/1.1 %b\r\n" % line + EMPTY, 502)
        for line in (
            b"099 x",
            b"000 x",
            b"199 x",
            b"600 x",
            b"999 x",
            b"1000 x",
            b"2O0 x",
            b"200OK",
        )
    ),
    *(
        Case(f"G27-{number}", b"HTTP/1.1 404%b\r\n" % reason + EMPTY, 404, stays=None)
        for number, reason in enumerate(
            (b" \x1b[31mEvil", b" \x07", b" \xe9", b" " + b"r" * 8000, b"", b" ")
        )
    ),
    Case(
        "G28-205", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 5\r\n\r\nstray", 205, stays=None
    ),
    Case("G28-304", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, stays=True),
    # fields
    *(
        Case(f"G30-{name}", OK + field + b"\r\n" + EMPTY, 502)
        for name, field in {
            "no-colon": b"no colon",
            "leading-space": b" X: a",
            "folded": b"X: a\r\n folded",
            "bare-cr": b"X: a\rb",
            "bare-lf": b"X: a\nb",
            "nul": b"X: a\0b",
            "space-in-name": b"X Y: a",
            "space-before-colon": b"X : a",
            "no-name": b": a",
            "del": b"X: a\x7f",
            "non-ascii-name": b"X\xe9: a",
        }.items()
    ),
    Case("G30-all-bare-lf", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", 502),
    Case("G31", OK + b"Set-Cookie: a=b\nSet-Cookie: evil=1\r\n\r\n", 502),
    Case("G32-fields", OK + b"X: y\r\n" * 120 + EMPTY, 502),
    Case("G32-field", OK + b"X: " + b"y" * 70_000 + b"\r\n" + EMPTY, 502),
    Case("G32-head", OK + (b"X: " + b"y" * 8000 + b"\r\n") * 130 + EMPTY, 502, own=True),
    Case("G32-endless", OK + b"X: " + b"y" * 1_000_000, 502),
    Case("G38-0.9", b"<html>hello</html>", 502),
    Case("G38-version-0.9", b"HTTP/0.9 200 OK\r\n" + EMPTY, 502),
    Case("G38-2.0", b"HTTP/2.0 200 OK\r\n" + EMPTY, 502),
    Case("G38-1.2", b"HTTP/1.2 200 OK\r\n" + EMPTY, 502),
    Case("G38-lower-case", b"http/1.1 200 OK\r\n" + EMPTY, 502),
    Case("G38-newline-first", b"\r\nHTTP/1.1 200 OK\r\n" + EMPTY, 502),
    Case("G38-tls-alert", b"\x15\x03\x01\x00\x02\x02\x28", 502),
    Case("G38-ssh", b"SSH-2.0-OpenSSH_9.2\r\n", 502),
    Case("G38-partial-status", b"HTTP/1.1 20", 502),
    Case("G40", b"", 502),
]
OURS = [case for case in CASES if case.own]
BOTH = [case for case in CASES if not case.own]


def check(case: Case, backend: Backend, client: ServiceClient, ending: str) -> None:
    def farewell(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(case.data)
        return False

    def loiter(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(case.data)
        return connection.recv(1) == b"never"

    first: ScriptedAnswer = {"closes": farewell, "lingers": loiter, "keeps": case.data}[ending]  # type: ignore[assignment]
    backend.answers = [first, reply(NEXT)]
    environ = EnvironBuilder("/", method=case.method).get_environ()
    chunks, status, headers = run_wsgi_app(client.application, environ)
    received: list[bytes] = []
    if case.becomes == "cut":
        with pytest.raises(UpstreamCut):
            received.extend(chunks)
        assert status == "200 OK"
    else:
        received.extend(chunks)
        assert int(status[:3]) == case.becomes
    close_body(chunks)
    if case.becomes != 502:
        assert b"".join(received) == case.body
        assert "evil" not in str(headers)
        assert "Set-Cookie" not in headers
    assert client.pool.in_flight() == {backend.url: 0}
    if ending != "keeps":
        backend.wait_until_closed()
    assert client.get("/").data == NEXT
    if ending == "keeps":
        assert backend.connections == (1 if case.stays else 2)


@pytest.mark.parametrize("sent", [False, True], ids=["held", "sent"])
@pytest.mark.parametrize(
    "data",
    [
        CHUNKED,
        CHUNKED + b"5;" + b"x" * 200_000 + b"\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\n",
        OK + b"Content-Length: 9\r\n\r\n",
    ],
    ids=["cut", "extension", "size", "length"],
)
def test_a_body_that_fails_before_its_first_byte_is_502_unless_the_head_was_sent(
    data: bytes, sent: bool, backend: Backend, forward: Forward
) -> None:
    backend.answers = [cut(data), reply(NEXT)]
    client = forward(backend.url)
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        if exc_info and sent:
            raise exc_info[1]
        assert exc_info or not started
        started.append((status, headers))

    environ = EnvironBuilder("/").get_environ()
    body = client.application(environ, start_response)
    if started[0][0] != "200 OK":  # it was seen together with the head
        assert started[0][0] == "502 Bad Gateway"
    elif sent:
        with pytest.raises(UpstreamCut):
            list(body)
    else:
        told = json.loads(b"".join(body))
        assert (told["status"], told["error"]) == (502, "Invalid response")
        assert [status for status, _ in started] == ["200 OK", "502 Bad Gateway"]
        assert dict(started[1][1])["Content-Type"] == "application/problem+json"
        assert environ[REASON]
    close_body(body)
    assert client.pool.in_flight() == {backend.url: 0}
    backend.wait_until_closed()
    assert client.get("/").data == NEXT


ENDED_BY_CLOSING = {"G06", "G06-1.1", "G22", "G26-199 x"}
"""Answers that only the end of the connection makes whole, or wrong."""


def known_wrong(case: Case) -> bool:
    """Tell whether the answer is seen to be what it is before the connection ends."""
    if case.id in ENDED_BY_CLOSING or case.data in (b"", b"HTTP/1.1 20"):
        return False
    return case.id not in ("G01", "G02", "G03", "G04", "G05", "G05-mid-field", "G38-tls-alert")


@pytest.mark.parametrize("case", BOTH, ids=lambda case: case.id)
def test_each_response_is_forwarded_as_expected(
    case: Case, backend: Backend, forward: Forward
) -> None:
    check(case, backend, forward(backend.url), "closes")


@pytest.mark.parametrize("case", OURS, ids=lambda case: case.id)
def test_our_adapter_rejects_responses_that_requests_accepts(
    case: Case, backend: Backend, own: Forward
) -> None:
    check(case, backend, own(backend.url), "closes")


SEEN = [case for case in CASES if known_wrong(case) and case.stays is False]


@pytest.mark.parametrize("case", SEEN, ids=lambda case: case.id)
def test_an_invalid_response_is_reported_before_its_connection_ends(
    case: Case, backend: Backend, own: Forward
) -> None:
    """Waiting for the end of it would be a timeout, and the wrong answer."""
    check(case, backend, own(backend.url, timeout=20.0), "lingers")


KEPT = [case for case in CASES if known_wrong(case) and case.stays is not None]


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case.id)
def test_a_connection_with_unread_bytes_is_not_reused(
    case: Case, backend: Backend, own: Forward
) -> None:
    check(case, backend, own(backend.url, timeout=20.0), "keeps")


@pytest.mark.parametrize("case", BOTH, ids=lambda case: case.id)
def test_a_502_has_a_generic_message(case: Case, backend: Backend, forward: Forward) -> None:
    if case.becomes != 502:
        return
    backend.answers = [cut(case.data)]
    answer = forward(backend.url).get("/")
    assert answer.json is not None
    assert (answer.json["message"], answer.json["error"]) == ("Bad gateway", "Invalid response")
    backend.wait_until_closed()


@pytest.mark.parametrize("case", [c for c in CASES if len(c.data) < 300], ids=lambda c: c.id)
def test_a_response_byte_by_byte_is_the_same_response(
    case: Case, backend: Backend, own: Forward
) -> None:
    def dripping(connection: socket.socket, _request: Received) -> bool:
        for at in range(len(case.data)):
            connection.sendall(case.data[at : at + 1])
        return False

    backend.answers = [dripping]
    environ = EnvironBuilder("/", method=case.method).get_environ()
    chunks, status, _ = run_wsgi_app(own(backend.url).application, environ)
    received: list[bytes] = []
    try:
        received.extend(chunks)
        became: int | str = int(status[:3])
    except UpstreamCut:
        became = "cut"
    close_body(chunks)
    assert became == case.becomes
    if became != 502:
        assert b"".join(received) == case.body


def test_a_delayed_final_response_does_not_reach_the_next_client(
    backend: Backend, forward: Forward
) -> None:
    """G21: an interim response, and the final one only while the next client waits."""
    said = socket.socketpair()

    def paused(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        said[1].recv(1)
        connection.sendall(reply(b"for alice"))
        return True

    backend.answers = [paused, reply(b"for bob")]
    client = forward(backend.url)
    said[0].sendall(b".")
    assert client.get("/").data == b"for alice"
    assert client.get("/").data == b"for bob"
    for end in said:
        end.close()


def test_an_unexpected_second_response_reaches_no_client(
    backend: Backend, forward: Forward
) -> None:
    """G13: it came before the next user did, so that the connection is not taken again."""
    said = socket.socketpair()

    def late(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(reply(b"for alice"))
        said[1].recv(1)
        connection.sendall(reply(b"also for alice"))
        said[1].sendall(b".")
        return True

    backend.answers = [late, reply(b"for bob")]
    client = forward(backend.url)
    assert client.get("/").data == b"for alice"
    said[0].sendall(b".")
    said[0].recv(1)
    assert client.get("/").data == b"for bob"
    assert backend.connections == 2
    for end in said:
        end.close()


def test_the_reason_phrase_is_the_standard_one(backend: Backend, forward: Forward) -> None:
    """G27"""
    backend.answers = [b"HTTP/1.1 404 \x1b[31mEvil\r\nContent-Length: 0\r\n\r\n"]
    assert forward(backend.url).get("/").status == "404 Not Found"


def test_a_head_that_drips_is_504(backend: Backend, own: Forward) -> None:
    """G37: each byte is in time, all of them together are not."""

    def dripping(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(OK)
        connection.settimeout(0.01)
        while True:
            try:
                return connection.recv(1) != b""
            except TimeoutError:
                connection.sendall(b"X: y\r\n")

    backend.answers = [dripping]
    answer = own(backend.url, timeout=0.2, read_timeout=0.15).get("/")
    assert answer.status_code == 504
    backend.wait_until_closed()


def test_an_endless_trailer_section_ends_the_connection(backend: Backend, own: Forward) -> None:
    def endless(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(CHUNKED + b"5\r\nshort\r\n0\r\n")
        while True:
            connection.sendall(b"X: " + b"y" * 1000 + b"\r\n")

    backend.answers = [endless]
    chunks, _, _ = run_wsgi_app(own(backend.url).application, EnvironBuilder("/").get_environ())
    received: list[bytes] = []
    with pytest.raises(UpstreamCut):
        received.extend(chunks)
    close_body(chunks)
    assert received == [b"short"]
    backend.wait_until_closed()


BODILESS = [
    # method, head of the response, status, Content-Length at the client
    ("HEAD", "200 OK\r\nContent-Length: 5", "200 OK", "5"),
    ("HEAD", "200 OK\r\nTransfer-Encoding: chunked", "200 OK", None),  # G15
    ("GET", "204 No Content", "204 No Content", None),
    ("GET", "204 No Content\r\nContent-Length: 0", "204 No Content", None),
    ("GET", "304 Not Modified\r\nContent-Length: 5", "304 Not Modified", "5"),  # G28
    ("GET", "205 Reset Content\r\nContent-Length: 0", "205 Reset Content", "0"),
    ("GET", "200 OK\r\nContent-Length: 0", "200 OK", "0"),
]


@pytest.mark.parametrize(("method", "head", "status", "length"), BODILESS)
def test_a_response_without_a_body_has_none_and_keeps_its_connection(
    method: str, head: str, status: str, length: str | None, backend: Backend, forward: Forward
) -> None:
    backend.answers = [f"HTTP/1.1 {head}\r\n\r\n".encode(), reply(b"next")]
    client = forward(backend.url)
    answer = client.open("/", method=method)
    assert (answer.status, answer.data) == (status, b"")
    assert answer.headers.get("Content-Length") == length
    assert client.get("/").data == b"next"
    assert backend.connections <= (2 if "205" in status else 1)
