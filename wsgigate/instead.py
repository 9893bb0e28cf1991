"""Answers in the place of others: those that fail before they begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.wsgi import SHAPED, ExcInfo, Headers, close_body, without

__all__ = ["FIELD", "Choose", "answer_instead", "marked", "shaped"]

FIELD = "X-Gateway-Fallback"
"""The field of an answer that is not the one which was asked for; says whose it is."""

_NAMES = frozenset((FIELD.lower(),))

Choose: TypeAlias = Callable[[int, Exception | None], WSGIApplication | None]
"""``choose(status, error)``: the app that answers instead, ``None`` to leave the answer as it is.
*error* is what the app raised; its status is 500 then."""


def shaped(environ: WSGIEnvironment, what: str) -> None:
    """Note for the log that *what*, such as ``split=beta``, was done to the request on purpose."""
    before = environ.get(SHAPED)
    environ[SHAPED] = f"{before} {what}" if before else what


def marked(start_response: StartResponse, kind: str) -> StartResponse:
    """Return a *start_response* that says in the field :data:`FIELD` whose answer it is."""

    def start(
        status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        headers = [*without(headers, _NAMES), (FIELD, kind)]
        if exc_info:
            return start_response(status, headers, exc_info)
        return start_response(status, headers)

    return start


def answer_instead(
    app: WSGIApplication,
    environ: WSGIEnvironment,
    start_response: StartResponse,
    choose: Choose,
) -> Iterable[bytes]:
    """Call *app*, and another one if *choose* says so when the answer is about to begin.

    An answer that stays is passed on as it comes: nothing waits for its first chunk, and its body
    is returned as it is. The body of one that is replaced is closed before the other app is called.
    """
    return _Response(environ, start_response, choose).call(app)


class _Response:
    """One response that may still be replaced; the body as well, of an app that starts lazily."""

    __slots__ = ("_began", "_body", "_choose", "_chunks", "_environ", "_other", "_start_response")

    def __init__(
        self, environ: WSGIEnvironment, start_response: StartResponse, choose: Choose
    ) -> None:
        self._environ = environ
        self._start_response = start_response
        self._choose = choose
        self._began = False
        self._other: WSGIApplication | None = None
        self._body: Iterable[bytes] = ()
        self._chunks: Iterator[bytes] | None = None

    def call(self, app: WSGIApplication) -> Iterable[bytes]:
        try:
            body = app(self._environ, self._start)
        except Exception as error:
            return self._failed(error)(self._environ, self._start_response)
        if self._other is not None:
            close_body(body)
            return self._other(self._environ, self._start_response)
        if self._began:
            return body
        self._body = body
        return self

    def _start(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        if not self._began:
            code = status[:3]
            self._other = self._choose(int(code), None) if code.isdecimal() else None
            if self._other is not None:
                return _drop
            self._began = True
        if exc_info:
            return self._start_response(status, headers, exc_info)
        return self._start_response(status, headers)

    def _failed(self, error: Exception) -> WSGIApplication:
        """Return what answers in the place of an app that raised *error*, or raise it again."""
        other = self._other
        if other is None and not self._began:
            other = self._choose(500, error)
        if other is None:
            raise error
        return other

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunks = self._chunks
        return self._first() if chunks is None else next(chunks)

    def _first(self) -> bytes:
        """Return the first chunk, of this response or of the one that takes its place."""
        other: WSGIApplication | None
        try:
            self._chunks = chunks = iter(self._body)
            chunk = next(chunks, None)
            other = self._other
        except Exception as error:
            other = self._failed(error)
        if other is not None:
            self.close()
            self._body = other(self._environ, self._start_response)
            self._chunks = chunks = iter(self._body)
            return next(chunks)
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        body, self._body = self._body, ()  # some servers and test clients close twice
        close_body(body)


def _drop(_data: bytes) -> None:
    """Take what the app writes of an answer that is replaced."""
