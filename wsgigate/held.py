"""Responses held back until their first chunk, so that another answer can take their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.wsgi import ExcInfo, Headers, close_body, is_websocket

__all__ = ["Held"]


class Held:
    """One response that may still be replaced by another until its first chunk is handed on.

    The head is held back rather than replaced by a second ``start_response`` with ``exc_info``,
    which PEP 3333 allows too: gunicorn keeps the fields of the first call, its Content-Length among
    them, and would send both.

    A subclass says what to answer, by :meth:`instead`. The object is the body as well, with the one
    ``close()`` that PEP 3333 promises.
    """

    asks = True
    """Whether :meth:`instead` has something to say to a response that is about to begin."""

    begun = False
    _body: Iterable[bytes] = ()
    _chunks: Iterator[bytes] | None = None
    _head: tuple[str, Headers, ExcInfo | None] | None = None
    _other: Iterable[bytes] | None = None
    _write: Callable[[bytes], object] | None = None

    def __init__(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        self._environ = environ
        self._start_response = start_response

    def instead(self, error: BaseException | None) -> WSGIApplication | None:
        """Return the app that answers in the place of this response, or ``None`` to let it go on.

        Asked once, when the response is about to begin or has failed before it did.

        :param error: What ended it, raised again unless an app is returned; ``None`` if nothing
            did.
        """
        raise NotImplementedError

    def call(self, app: WSGIApplication) -> Iterable[bytes]:
        """Return the body of *app*'s response, or of what is answered instead."""
        body: Iterable[bytes] = ()
        try:
            body = self._body = app(self._environ, self.start_response)
            if type(body) is not list and type(body) is not tuple:
                return self
            # Nothing of a list is left to fail: it is handed on as it is, with its length.
            if not self.begun:
                self._begin()
        except (Exception, SystemExit) as error:
            self._fail(error)
        return body if self._other is None else self._other

    def start_response(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        if not self.begun:
            if self._head is not None and not exc_info:
                raise AssertionError("start_response was called twice without exc_info")
            self._head = (status, list(headers), exc_info)
        elif self._other is None:
            if exc_info:
                return self._start_response(status, headers, exc_info)
            return self._start_response(status, headers)
        return self.write

    def write(self, data: bytes) -> None:
        """Send *data* at once: what ``start_response`` returns."""
        if not self.begun:
            self._begin()
        if self._write is not None:  # a response that was replaced speaks to nobody
            self._write(data)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunks = self._chunks
        return self._first() if chunks is None else next(chunks)

    def _first(self) -> bytes:
        """Return the first chunk, of this response or of what is answered instead."""
        chunk: bytes | None = None
        if self._other is None:
            try:
                self._chunks = chunks = iter(self._body)
                chunk = next(chunks, None)
                if not self.begun:
                    self._begin()
            except (Exception, SystemExit) as error:
                self._fail(error)
        if self._other is not None:
            self._chunks = chunks = iter(self._other)
            chunk = next(chunks, None)
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        body, self._body = self._body, ()  # some servers and test clients close twice
        other, self._other = self._other, ()
        try:
            close_body(body)
        finally:
            close_body(other)

    def _begin(self) -> None:
        """Hand on the head, or start the answer that takes its place."""
        app = self.instead(None) if self.asks else None
        if app is not None:
            self._replace(app)
            return
        if self._head is None and is_websocket(self._environ):
            self.begun = True  # the app took the socket over and has answered by itself
            return
        if self._head is None:
            raise AssertionError("the application answered without calling start_response")
        status, headers, exc_info = self._head
        self._head = None
        self.begun = True  # before the call: should the server refuse the head, it answers for it
        if exc_info:
            self._write = self._start_response(status, headers, exc_info)
        else:
            self._write = self._start_response(status, headers)

    def _fail(self, error: BaseException) -> None:
        """Start the answer that takes the place of a response ended by *error*, or raise it."""
        if isinstance(error, StopIteration) and is_websocket(self._environ):
            raise error  # so an app tells gunicorn that it took the socket over
        if not self.begun and (app := self.instead(error)) is not None:
            self._replace(app)
        if self._other is None:
            raise error

    def _replace(self, app: WSGIApplication) -> None:
        self.begun = True
        self._head = None
        self._other = app(self._environ, self._start_response)
