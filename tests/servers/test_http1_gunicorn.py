"""The server's parser beside gunicorn's own: what that one refuses, this one refuses as well."""

from __future__ import annotations

import io
import random
import socket
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import create

from wsgigate.servers.gunicorn_body import ClientGone, Deadlines
from wsgigate.servers.gunicorn_connection import BUFFERED, ClientConnection
from wsgigate.servers.http1_request import BadRequest, ChunkedDecoder, HeadParser, HeadRules

PEER = ("192.0.2.1", 4321)

GOOD = [
    b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    b"GET /a/b?c=d%20e&f HTTP/1.1\r\nHost: a.test:8080\r\nAccept: */*\r\nX-Empty:\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: a.test\r\nContent-Type: text/plain\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'3;a=b;c="d"\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: x\r\n\r\n',
    b"GET http://a.test/x?y HTTP/1.1\r\nHost: a.test\r\nConnection: close, x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n",
    b"GET //b/c HTTP/1.0\r\nConnection: keep-alive\r\nCookie: a=b\r\nX-A: 1\r\nX-A: 2\r\n\r\n",
    b"PUT /%c3%a9 HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
]
"""Requests that both accept; mutants are made of them."""

PARTS = [
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\x7f", b"\xff", b"_", b"-", b"#", b"%"),
    *(b"0", b"+1", b"1_0", b",", b";", b'"', b"//", b"://", b"a@b", b"[", b"HTTP/1.0", b"HTTP/2.0"),
    *(b"Host: b\r\n", b"Content-Length: 5\r\n", b"Content-Length: 6\r\n", b" folded\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Expect: x\r\n"),
    *(b"X_A: b\r\n", b"Content-Type: a\r\n", b"0\r\n\r\n", b"ffffffffffffffffff\r\n", b"chunked, "),
]


def mutants(count: int, seed: int) -> list[bytes]:
    """Return *count* requests, each made from a good one by a few changes."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        data = bytearray(chance.choice(GOOD))
        for _ in range(chance.randint(1, 3)):
            at, to = sorted(chance.choices(range(len(data) + 1), k=2))
            kind = chance.random()
            if kind < 0.5:
                data[at:at] = chance.choice(PARTS)
            elif kind < 0.7:
                data[at : at + chance.randint(1, 3)] = b""
            elif kind < 0.85:
                data[at : at + 1] = chance.choice(PARTS)
            else:
                data[at:at] = data[at : min(to, at + 40)]
        made.append(bytes(data))
    return made


def config() -> Config:
    cfg = Config()
    for name, value in {
        "http_parser": "python",
        "forwarded_allow_ips": "",
        "forwarder_headers": "",
        "header_map": "refuse",
        "limit_request_line": 8190,
    }.items():
        cfg.set(name, value)
    return cfg


CONFIG = config()


class Socket:
    def send(self, data: bytes) -> int:
        return len(data)


def gunicorns(data: bytes) -> tuple[dict[str, str], bytes, bytes] | None:
    """Return the environ, the body and what follows, as gunicorn reads them; None if refused."""
    unreader = IterUnreader(iter([data]))
    try:
        request = Request(CONFIG, unreader, PEER)
        _, environ = create(request, Socket(), PEER, ("127.0.0.1", 80), CONFIG)
        body = request.body.read()
    except (ParseException, NoMoreData, StopIteration, OSError):
        return None
    rest = b""
    while part := unreader.read():
        rest += part
    return environ, body, rest


def ours(data: bytes) -> tuple[dict[str, str], bytes, bytes] | None:
    """Return the same as this server reads it."""
    if data.startswith(b"\r\n"):
        data = data[2:]
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    environ: dict[str, Any] = {}
    rest = data[end + 4 :]
    try:
        head = HeadParser(HeadRules()).parse(data[:end], environ)
        if head.length >= 0:
            if len(rest) < head.length:
                return None
            return environ, rest[: head.length], rest[head.length :]
        decoder = ChunkedDecoder()
        body = b"".join(decoder.feed(bytes([each])) for each in rest)
        at_once = ChunkedDecoder()
        assert (at_once.feed(rest), at_once.complete) == (body, decoder.complete)
    except BadRequest:
        return None
    return (environ, body, at_once.rest) if at_once.complete else None


KEYS = ("REQUEST_METHOD", "RAW_URI", "PATH_INFO", "QUERY_STRING", "SCRIPT_NAME", "SERVER_PROTOCOL")


def compared(environ: dict[str, str]) -> dict[str, str]:
    return {
        key: value
        for key, value in environ.items()
        if key in KEYS or (key.startswith(("HTTP_", "CONTENT_")) and key != "HTTP_COOKIE")
    }


@pytest.mark.parametrize("data", GOOD)
def test_both_read_the_same(data: bytes) -> None:
    theirs, mine = gunicorns(data), ours(data)
    assert theirs is not None
    assert mine is not None
    assert (compared(mine[0]), mine[1:]) == (compared(theirs[0]), theirs[1:])


@pytest.mark.parametrize("seed", range(20))
def test_what_gunicorn_refuses_is_refused_and_the_rest_read_alike(seed: int) -> None:
    accepted = 0
    for data in mutants(400, seed):
        theirs, mine = gunicorns(data), ours(data)
        if mine is None:
            continue
        assert theirs is not None, data
        assert (compared(mine[0]), mine[1:]) == (compared(theirs[0]), theirs[1:]), data
        accepted += 1
    assert accepted > 25


def test_a_body_is_read_whatever_pieces_it_comes_in() -> None:
    body = b"5\r\nhello\r\n10;x\r\n0123456789abcdef\r\n0\r\nA: b\r\n\r\nnext"
    for size in range(1, len(body)):
        decoder, found = ChunkedDecoder(), io.BytesIO()
        rest = b""
        for at in range(0, len(body), size):
            if decoder.complete:
                rest += body[at : at + size]
            else:
                found.write(decoder.feed(body[at : at + size]))
        assert found.getvalue() == b"hello0123456789abcdef"
        assert decoder.complete
        assert decoder.rest + rest == b"next"


def served(pieces: list[bytes]) -> tuple[list[tuple[dict[str, str], bytes]], bool]:
    """Return the requests that a connection reads from *pieces*, and whether it refuses one."""
    client, sock = socket.socketpair()
    rules = HeadRules()
    ours = ClientConnection(
        sock, "", {}, HeadParser(rules), rules, Deadlines(9, 9, 500, 9), waits={}, watch=id
    )
    found: list[tuple[dict[str, str], bytes]] = []
    left = list(pieces)
    with client, sock:
        try:
            while True:
                request = ours.advance() if left != pieces else None
                if request is None:
                    if left:
                        client.sendall(left.pop(0))
                    else:
                        client.shutdown(socket.SHUT_WR)
                    continue
                if request.streamed is not None:
                    client.sendall(b"".join(left))  # the kernel keeps few small pieces
                    left.clear()
                    client.shutdown(socket.SHUT_WR)
                found.append((compared(request.environ), request.environ["wsgi.input"].read()))
                ours.rest()
        except BadRequest:
            return found, True
        except ClientGone:
            return found, False


LARGE = b"POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (
    BUFFERED + 9,
    bytes(BUFFERED + 9),
)


@pytest.mark.parametrize("seed", range(10))
def test_requests_are_the_same_whatever_pieces_they_arrive_in(seed: int) -> None:
    chance = random.Random(seed)
    read = refused = 0
    for first, second in zip(mutants(60, seed), mutants(60, -1 - seed), strict=True):
        data = b"".join(
            [chance.choice(GOOD), chance.choice([first, LARGE]), chance.choice(GOOD), second]
        )
        whole = served([data])
        read += len(whole[0])
        refused += whole[1]
        for most in (1, 7, 100) if len(data) < 2000 else (9000,):
            pieces, at = [], 0
            while at < len(data):
                size = chance.randint(1, most)
                pieces.append(data[at : at + size])
                at += size
            assert served(pieces) == whole, data
    assert read > 60
    assert refused > 15
