"""Stand-ins for tests: a clock, random numbers, and the server's side of a request."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.util import setup_testing_defaults

from wsgigate.http.wsgi import ExcInfo, Headers, close_body

MakeMiddleware: TypeAlias = Callable[[WSGIApplication], WSGIApplication]

__all__ = [
    "CHUNKS",
    "FIELDS",
    "Boom",
    "ClosableBody",
    "FakeClock",
    "MakeMiddleware",
    "Script",
    "Server",
    "answers",
    "new_environ",
]


class FakeClock:
    """A clock that advances only by :meth:`advance`: pass it wherever a ``clock`` is accepted.

    :param start: The first time that it returns, in seconds.
    """

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Advance the clock by *seconds*; a negative number sets it back, as operators do."""
        self.now += seconds


class Script:
    """Scripted random numbers: pass it wherever a ``random`` is accepted.

    :param values: The numbers that the calls return, one after the other.
    """

    def __init__(self, values: Iterable[float]) -> None:
        self._values = list(values)
        self._next = 0

    def __call__(self) -> float:
        """Return the next value.

        :raises AssertionError: All values have been returned.
        """
        if not self.left:
            raise AssertionError(f"a random number was requested after all {len(self._values)}")
        self._next += 1
        return self._values[self._next - 1]

    @property
    def left(self) -> int:
        """The number of values that have not been returned yet."""
        return len(self._values) - self._next


FIELDS: Headers = [
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Set-Cookie", "a=1"),
    ("Set-Cookie", "b=2"),
    ("X-From-App", "yes"),
]
CHUNKS = [b"one", b"", b"two", b"three"]


class Boom(Exception):
    pass


class ClosableBody:
    """An app's iterable that is its own iterator, as many are; counts the calls of ``close``."""

    def __init__(self, chunks: Iterable[bytes] = CHUNKS) -> None:
        self.chunks = iter(chunks)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        assert not self.closed, "the app's iterable was iterated after its close()"
        return next(self.chunks)

    def close(self) -> None:
        self.closed += 1


class Server:
    """The server's side of one request: records the status, fields, chunks and errors."""

    def __init__(self) -> None:
        self.status = ""
        self.headers: Headers = []
        self.chunks: list[bytes] = []
        self.saw_exc_info = False

    def start_response(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        if exc_info:
            self.saw_exc_info = True
            if any(self.chunks) and exc_info[1] is not None:
                raise exc_info[1]
        else:
            assert not self.status, "start_response was called again without exc_info"
        self.status, self.headers = status, list(headers)
        return self.chunks.append

    def serve(self, app: WSGIApplication, environ: WSGIEnvironment | None = None) -> Server:
        body = app(new_environ() if environ is None else environ, self.start_response)
        try:
            for chunk in body:
                assert self.status, "a chunk came before start_response was called"
                self.chunks.append(chunk)
            assert self.status, "start_response was never called"
        finally:
            close_body(body)
        return self


def new_environ(method: str = "GET", body: bytes = b"") -> WSGIEnvironment:
    environ: WSGIEnvironment = {
        "REQUEST_METHOD": method,
        "REMOTE_ADDR": "192.0.2.1",
        "QUERY_STRING": "",
        "wsgi.input": io.BytesIO(body),
    }
    if body:
        environ["CONTENT_LENGTH"] = str(len(body))
        environ["CONTENT_TYPE"] = "application/octet-stream"
    setup_testing_defaults(environ)
    return environ


def answers(body: Iterable[bytes]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", FIELDS)
        return body

    return app
