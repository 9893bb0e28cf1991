"""Responses: passed on as they are and as they come, and broken ones not at all: rules 5 and 10."""

from __future__ import annotations

import gzip
import socket
import threading

from wsgigate.testing.backend import Backend, Received, cut, reply
from wsgigate.testing.proxy.case import Case, Cases, ProxyUnderTest

__all__ = ["CASES"]


cases = Cases()

CASES: list[Case] = cases

OK = b"HTTP/1.1 200 OK\r\n"


@cases(5, "several-cookies")
def _(x: ProxyUnderTest) -> None:
    """Three Set-Cookie fields stay three, in their order."""
    cookies = ["a=1; Expires=Wed, 09 Jun 2100 10:18:14 GMT", "b=2", "a=3"]
    x.backend.answers = [reply(b"", fields=[("Set-Cookie", cookie) for cookie in cookies])]
    set_ = [value.partition(";")[0].strip() for value in x.send().values("Set-Cookie")]
    assert set_ == ["a=1", "b=2", "a=3"], f"they became {set_}"


@cases(5, "compressed")
def _(x: ProxyUnderTest) -> None:
    """A compressed body arrives compressed, with its Content-Encoding."""
    packed = gzip.compress(b"x" * 1000)
    x.backend.answers = [reply(packed, fields=[("Content-Encoding", "gzip")])]
    answer = x.send(fields=[("Accept-Encoding", "gzip")])
    assert answer.body == packed, f"{len(packed)} bytes became {len(answer.body)}"
    assert answer.values("Content-Encoding") == ["gzip"], "Content-Encoding was lost"
    assert answer.values("Content-Length") in ([str(len(packed))], []), "a wrong length"


@cases(5, "events-as-they-come")
def _(x: ProxyUnderTest) -> None:
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
def _(x: ProxyUnderTest) -> None:
    """A body without a length arrives as it is, lines of it unmerged and unchanged."""
    x.backend.answers = [cut(OK + b"Content-Type: text/plain\r\n\r\na\r\nb\nc\x00\xff")]
    answer = x.send()
    assert answer.body == b"a\r\nb\nc\x00\xff", f"it became {answer.body!r}"


@cases(10, "cut-by-length")
def _(x: ProxyUnderTest) -> None:
    """A body that ends before its Content-Length is truncated for the client, too."""
    x.backend.answers = [cut(OK + b"Content-Length: 50\r\n\r\nshort")]
    answer = x.send()
    assert answer.cut or answer.status >= 500, f"it came to a clean end with {answer.body!r}"


@cases(10, "cut-in-chunks")
def _(x: ProxyUnderTest) -> None:
    """A body without its last chunk is truncated for the client, too."""
    for body in (b"5\r\nshort\r\n", b"50\r\nshort", b"5\r\nshort\r\n0\r\n"):
        x.backend.answers = [cut(OK + b"Transfer-Encoding: chunked\r\n\r\n" + body)]
        answer = x.send()
        assert answer.cut or answer.status >= 500, f"{body!r} came to a clean end"


@cases(10, "head-cut")
def _(x: ProxyUnderTest) -> None:
    """A head that is cut off is no response."""
    x.backend.answers = [cut(OK + b"X-A: b\r\n")]
    answer = x.send()
    assert answer.status >= 500, f"it was answered with {answer.status}"


@cases(10, "two-framings")
def _(x: ProxyUnderTest) -> None:
    """A response with two framings is rejected, or forwarded with one."""
    both = OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    x.backend.answers = [cut(both)]
    answer = x.send()
    if answer.status < 500:
        assert answer.body == b"hello", f"the body became {answer.body!r}"
        assert answer.values("Content-Length") in ([], ["5"]), "the wrong length was passed on"


@cases(10, "impossible-length")
def _(x: ProxyUnderTest) -> None:
    """A malformed Content-Length, or two of them, is not forwarded."""
    for length in (b"-5", b"+5", b"5x", b"5\r\nContent-Length: 6"):
        x.backend.answers = [cut(OK + b"Content-Length: " + length + b"\r\n\r\nhello")]
        answer = x.send()
        passed = answer.values("Content-Length")
        assert answer.status >= 500 or passed in ([], ["5"]), f"passed on: {passed}"


@cases(10, "malformed-head")
def _(x: ProxyUnderTest) -> None:
    """A head with a malformed line is rejected, not forwarded without its remaining fields."""
    for line in (b"no colon", b"X-A : b", b"X A: b", b": b", b"X-A: b\x00c", b"X-A: b\rc"):
        x.backend.answers = [cut(OK + line + b"\r\nSet-Cookie: a=1\r\nContent-Length: 2\r\n\r\nok")]
        answer = x.send()
        assert answer.status >= 500, f"with {line!r} it was answered with {answer.status}"


@cases(10, "chunk-size-read-as-python")
def _(x: ProxyUnderTest) -> None:
    """A chunk size is plain hexadecimal digits."""
    for size in (b"0x5", b"0_5", b"+5", b"-5"):
        head = OK + b"Transfer-Encoding: chunked\r\n\r\n"
        x.backend.answers = [cut(head + size + b"\r\nhello\r\n0\r\n\r\n")]
        answer = x.send()
        assert answer.cut or answer.status >= 500, f"a chunk of size {size!r} was passed on"


@cases(10, "no-body")
def _(x: ProxyUnderTest) -> None:
    """HEAD, 204 and 304 have no body, do not wait for one, and keep the Content-Length."""
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
def _(x: ProxyUnderTest) -> None:
    """Bytes after a response without a body are not the next user's response."""
    x.backend.answers = [
        b"HTTP/1.1 204 No Content\r\nContent-Length: 40\r\n\r\n" + reply(b"evil"),
        reply(b"own"),
    ]
    x.send()
    body = x.send().body
    assert body == b"own", f"the next user got {body!r}"


# Bodies on their way to the backend, and clients that leave: rule 10.


class _BrokenUpload:
    """A ``wsgi.input`` that ends early, or breaks off with an error."""

    def __init__(self, data: bytes, error: Exception | None = None) -> None:
        self._data = data
        self._error = error

    def read(self, size: int = -1, /) -> bytes:
        if not self._data and self._error is not None:
            raise self._error
        if size < 0:
            size = len(self._data)
            if self._error is not None:
                raise self._error
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def readline(self, size: int = -1, /) -> bytes:
        return self.read(size)


class _Waiting:
    """One whose end comes only when the backend has begun to receive the request."""

    def __init__(self, backend: Backend) -> None:
        self._left = LARGE
        self._backend = backend
        self.held_back = False

    def read(self, size: int = -1, /) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        self._left -= size
        if not self._left and size:
            try:
                self._backend.wait_for_requests(1, timeout=2)
            except AssertionError:
                self.held_back = True
        return b"x" * size

    def readline(self, size: int = -1, /) -> bytes:
        return self.read(size)


LARGE = 1 << 20


@cases(10, "upload-held-back")
def _(x: ProxyUnderTest) -> None:
    """An upload is forwarded before all of it has arrived."""
    upload = _Waiting(x.backend)
    x.send("/", method="POST", body=upload, fields=[("Content-Length", str(LARGE))])
    x.backend.wait(lambda: x.received.complete, timeout=2)
    assert len(x.received.body) == LARGE, f"{len(x.received.body)} bytes of it came"
    assert not upload.held_back, "it was held back"


@cases(10, "upload-cut-by-length")
def _(x: ProxyUnderTest) -> None:
    """An upload that ends early is not complete for the backend, nor a success for the client."""
    answer = x.send(
        "/", method="POST", body=_BrokenUpload(b"begun"), fields=[("Content-Length", "100")]
    )
    _never_complete(x, answer.status)


@cases(10, "upload-cut-in-chunks")
def _(x: ProxyUnderTest) -> None:
    """Nor does one with truncated chunks."""
    upload = _BrokenUpload(b"begun", OSError("a malformed chunk"))
    answer = x.send("/", method="POST", body=upload, chunked=True)
    _never_complete(x, answer.status)


@cases(10, "client-leaves")
def _(x: ProxyUnderTest) -> None:
    """When the client leaves, the connection to the backend is closed at once."""
    gone = threading.Event()

    def closed(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000)
        connection.settimeout(5)
        if connection.recv(1) == b"":
            gone.set()
        return False

    x.backend.answers = [closed]
    answer = x.open()
    answer.next()
    answer.close()
    assert gone.wait(2), "it was left open"


@cases(10, "left-over-of-another")
def _(x: ProxyUnderTest) -> None:
    """A response that a client did not wait for does not reach the next client."""
    x.backend.answers = [reply(b"x" * 500_000), reply(b"own")]
    answer = x.open()
    answer.next()
    answer.close()
    body = x.send().body
    assert body == b"own", f"the next client got {body[:20]!r}"


def _never_complete(x: ProxyUnderTest, status: int) -> None:
    if x.backend.requests:
        try:
            x.backend.wait(lambda: not x.backend.open_connections or x.received.complete, 2)
        except AssertionError:
            raise AssertionError("the backend still waits for the rest") from None
        assert not x.received.complete, f"the backend took {x.received.body!r} for all of it"
    assert status >= 400, f"it was answered with {status}"


# Interim and impossible responses, and whose answer is whose: rule 3.

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"


@cases(3, "early-hints")
def _(x: ProxyUnderTest) -> None:
    """A 103 is not the final response."""
    x.backend.answers = [HINTS + reply(b"final")]
    answer = x.send()
    assert (answer.status, answer.body) == (200, b"final"), f"{answer.status} {answer.body!r}"


@cases(3, "answer-of-another")
def _(x: ProxyUnderTest) -> None:
    """After a 103 the next user gets the response to its request, not the late one."""
    late = threading.Event()

    def hinted(connection: socket.socket, _request: Received) -> None:
        connection.sendall(HINTS)
        late.wait(0.3)  # a proxy that took the 103 for the answer is done by now
        connection.sendall(reply(b"of the first"))

    x.backend.answers = [hinted, reply(b"of the second")]
    x.send("/first")
    late.set()
    body = x.send("/second").body
    assert body == b"of the second", f"the second user got {body!r}"


@cases(3, "several-interim")
def _(x: ProxyUnderTest) -> None:
    """100, 102 and 103 come before one final response."""
    interim = b"".join(b"HTTP/1.1 %d Interim\r\n\r\n" % status for status in (100, 102, 103))
    x.backend.answers = [interim + reply(b"final", status="404 Not Found")]
    answer = x.send()
    assert (answer.status, answer.body) == (404, b"final"), f"{answer.status} {answer.body!r}"


@cases(3, "interim-only")
def _(x: ProxyUnderTest) -> None:
    """A backend that closes after a 103 has sent no response."""
    x.backend.answers = [cut(HINTS)]
    answer = x.send()
    assert answer.status >= 500, f"it was answered with {answer.status}"


@cases(3, "unasked-upgrade")
def _(x: ProxyUnderTest) -> None:
    """A 101 without an upgrade request reaches no client."""
    x.backend.answers = [cut(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nleft")]
    answer = x.send()
    assert answer.status >= 500, f"it was answered with {answer.status}"


@cases(3, "impossible-status")
def _(x: ProxyUnderTest) -> None:
    """A status below 200 or above 599 reaches no client."""
    for status in (b"099", b"999"):
        x.backend.answers = [cut(b"HTTP/1.1 %s X\r\nContent-Length: 0\r\n\r\n" % status)]
        answer = x.send()
        assert 500 <= answer.status <= 599, f"it was answered with {answer.status}"
