"""Responses: passed on as they are and as they come, and broken ones not at all: rules 5 and 10."""

from __future__ import annotations

import gzip
import socket
import threading

from wsgigate.testing.backend import Received, cut, reply
from wsgigate.testing.proxy_safety.case import Case, Cases
from wsgigate.testing.proxy_safety.exchange import Exchange

__all__ = ["CASES"]

cases = Cases()
CASES: list[Case] = cases

OK = b"HTTP/1.1 200 OK\r\n"


@cases(5, "several-cookies")
def _(x: Exchange) -> None:
    """Three Set-Cookie fields stay three, in their order."""
    cookies = ["a=1; Expires=Wed, 09 Jun 2100 10:18:14 GMT", "b=2", "a=3"]
    x.backend.answers = [reply(b"", fields=[("Set-Cookie", cookie) for cookie in cookies])]
    set_ = [value.partition(";")[0].strip() for value in x.send().values("Set-Cookie")]
    assert set_ == ["a=1", "b=2", "a=3"], f"they became {set_}"


@cases(5, "compressed")
def _(x: Exchange) -> None:
    """A compressed body arrives compressed, with the fields that say so."""
    packed = gzip.compress(b"x" * 1000)
    x.backend.answers = [reply(packed, fields=[("Content-Encoding", "gzip")])]
    answer = x.send(fields=[("Accept-Encoding", "gzip")])
    assert answer.body == packed, f"{len(packed)} bytes became {len(answer.body)}"
    assert answer.values("Content-Encoding") == ["gzip"], "Content-Encoding was lost"
    assert answer.values("Content-Length") in ([str(len(packed))], []), "a wrong length"


@cases(5, "events-as-they-come")
def _(x: Exchange) -> None:
    """The first event arrives before the backend has sent the second."""
    read = threading.Event()
    seen: list[bool] = []

    def events(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(OK + b"Content-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        seen.append(read.wait(2))
        connection.sendall(b"data: 2\n\n")
        return False

    x.backend.answers = [events]
    answer = x.open()
    while b"\n\n" not in answer.body and answer.next():
        pass
    first = answer.body
    read.set()
    answer.finish()
    assert seen == [True], "it was held back"
    assert first == b"data: 1\n\n", f"it came as {first!r}"
    assert answer.body == b"data: 1\n\ndata: 2\n\n", f"all of it was {answer.body!r}"


@cases(5, "bytes-unchanged")
def _(x: Exchange) -> None:
    """A body without a length arrives as it is, lines of it unmerged and unchanged."""
    x.backend.answers = [cut(OK + b"Content-Type: text/plain\r\n\r\na\r\nb\nc\x00\xff")]
    answer = x.send()
    assert answer.body == b"a\r\nb\nc\x00\xff", f"it became {answer.body!r}"


@cases(10, "cut-by-length")
def _(x: Exchange) -> None:
    """A body that ends before its Content-Length is cut for the client too."""
    x.backend.answers = [cut(OK + b"Content-Length: 50\r\n\r\nshort")]
    answer = x.send()
    assert answer.cut or answer.status >= 500, f"it came to a clean end with {answer.body!r}"


@cases(10, "cut-in-chunks")
def _(x: Exchange) -> None:
    """A body whose last chunk never comes is cut for the client too."""
    for body in (b"5\r\nshort\r\n", b"50\r\nshort", b"5\r\nshort\r\n0\r\n"):
        x.backend.answers = [cut(OK + b"Transfer-Encoding: chunked\r\n\r\n" + body)]
        answer = x.send()
        assert answer.cut or answer.status >= 500, f"{body!r} came to a clean end"


@cases(10, "head-cut")
def _(x: Exchange) -> None:
    """A head that is cut off is no response."""
    x.backend.answers = [cut(OK + b"X-A: b\r\n")]
    answer = x.send()
    assert answer.status >= 500, f"it was answered with {answer.status}"


@cases(10, "two-framings")
def _(x: Exchange) -> None:
    """A response framed in two ways is refused, or passed on framed in one."""
    both = OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    x.backend.answers = [cut(both)]
    answer = x.send()
    if answer.status < 500:
        assert answer.body == b"hello", f"the body became {answer.body!r}"
        assert answer.values("Content-Length") in ([], ["5"]), "the wrong length was passed on"


@cases(10, "impossible-length")
def _(x: Exchange) -> None:
    """A length that is none, or two of them, is not passed on."""
    for length in (b"-5", b"+5", b"5x", b"5\r\nContent-Length: 6"):
        x.backend.answers = [cut(OK + b"Content-Length: " + length + b"\r\n\r\nhello")]
        answer = x.send()
        passed = answer.values("Content-Length")
        assert answer.status >= 500 or passed in ([], ["5"]), f"passed on: {passed}"


@cases(10, "malformed-head")
def _(x: Exchange) -> None:
    """A head with a malformed line is refused, not passed on without what came after it."""
    for line in (b"no colon", b"X-A : b", b"X A: b", b": b", b"X-A: b\x00c", b"X-A: b\rc"):
        x.backend.answers = [cut(OK + line + b"\r\nSet-Cookie: a=1\r\nContent-Length: 2\r\n\r\nok")]
        answer = x.send()
        assert answer.status >= 500, f"with {line!r} it was answered with {answer.status}"


@cases(10, "chunk-size-read-as-python")
def _(x: Exchange) -> None:
    """A chunk size is plain hexadecimal digits."""
    for size in (b"0x5", b"0_5", b"+5", b"-5"):
        head = OK + b"Transfer-Encoding: chunked\r\n\r\n"
        x.backend.answers = [cut(head + size + b"\r\nhello\r\n0\r\n\r\n")]
        answer = x.send()
        assert answer.cut or answer.status >= 500, f"a chunk of size {size!r} was passed on"


@cases(10, "no-body")
def _(x: Exchange) -> None:
    """HEAD, 204 and 304 have no body, wait for none and keep the length of what there would be."""
    length = b"Content-Length: 9\r\n\r\n"
    for method, head, status, kept in (
        ("HEAD", OK + length, 200, ["9"]),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, []),
        ("GET", b"HTTP/1.1 304 Not Modified\r\n" + length, 304, ["9"]),
    ):
        x.backend.answers = [head]
        answer = x.send(method=method)
        assert (answer.status, answer.body) == (status, b""), f"{answer.status} {answer.body!r}"
        assert answer.values("Content-Length") == kept, f"{method} {status}: length lost"


@cases(10, "body-after-none")
def _(x: Exchange) -> None:
    """Bytes after a response without a body are not the next user's response."""
    x.backend.answers = [
        b"HTTP/1.1 204 No Content\r\nContent-Length: 40\r\n\r\n" + reply(b"evil"),
        reply(b"own"),
    ]
    x.send()
    body = x.send().body
    assert body == b"own", f"the next user got {body!r}"
