"""Bodies on their way to the backend, and clients that leave: rule 10."""

from __future__ import annotations

import socket
import threading

from wsgigate.testing.backend import Backend, Received, reply
from wsgigate.testing.proxy_safety.case import Case, Cases
from wsgigate.testing.proxy_safety.exchange import Exchange

__all__ = ["CASES"]

cases = Cases()
CASES: list[Case] = cases


class _Upload:
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
def _(x: Exchange) -> None:
    """An upload goes on its way before all of it has come."""
    upload = _Waiting(x.backend)
    x.send("/", method="POST", body=upload, fields=[("Content-Length", str(LARGE))])
    x.backend.wait(lambda: x.received.complete, timeout=2)
    assert len(x.received.body) == LARGE, f"{len(x.received.body)} bytes of it came"
    assert not upload.held_back, "it was held back"


@cases(10, "upload-cut-by-length")
def _(x: Exchange) -> None:
    """An upload that ends early never looks complete to the backend, nor well to the client."""
    answer = x.send("/", method="POST", body=_Upload(b"begun"), fields=[("Content-Length", "100")])
    _never_complete(x, answer.status)


@cases(10, "upload-cut-in-chunks")
def _(x: Exchange) -> None:
    """Nor does one whose chunks break off."""
    upload = _Upload(b"begun", OSError("a malformed chunk"))
    answer = x.send("/", method="POST", body=upload, chunked=True)
    _never_complete(x, answer.status)


@cases(10, "client-leaves")
def _(x: Exchange) -> None:
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
def _(x: Exchange) -> None:
    """What a client did not wait for is not the next client's answer."""
    x.backend.answers = [reply(b"x" * 500_000), reply(b"own")]
    answer = x.open()
    answer.next()
    answer.close()
    body = x.send().body
    assert body == b"own", f"the next client got {body[:20]!r}"


def _never_complete(x: Exchange, status: int) -> None:
    if x.backend.requests:
        try:
            x.backend.wait(lambda: not x.backend.open_connections or x.received.complete, 2)
        except AssertionError:
            raise AssertionError("the backend still waits for the rest") from None
        assert not x.received.complete, f"the backend took {x.received.body!r} for all of it"
    assert status >= 400, f"it was answered with {status}"
