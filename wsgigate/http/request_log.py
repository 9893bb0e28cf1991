"""The app's own log lines by request: a filter gives each record the id of its request.

The id is in a context variable while code of the request runs: the call of the app, each chunk of
its body, and the body's end. Between these the server has the thread, or another request.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.wsgi import close_body

__all__ = ["RequestIdFilter", "filters", "told"]


_current: ContextVar[str | None] = ContextVar("wsgigate.request_id", default=None)

filters: list[object] = []
"""Has an item once a filter was made: before, no request tells its id to its thread."""


class RequestIdFilter(logging.Filter):
    """Gives log records the id of the request they were made in, as ``%(request_id)s``.

    For a handler of the app's own log. It takes a :class:`RequestId` around the app, which every
    gateway has. Records made outside of a request, or in a thread that the app starts without its
    context (``contextvars.copy_context``), have *missing*.

    :param missing: The id of a record that belongs to no request.
    """

    def __init__(self, missing: str = "-") -> None:
        super().__init__()
        self._missing = missing
        if not filters:
            filters.append(self.__class__)

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = _current.get() or self._missing
        return True


def told(
    app: WSGIApplication, environ: WSGIEnvironment, start: StartResponse, request_id: str
) -> Iterable[bytes]:
    """Call *app* with its request's id told to whatever it logs, its body included."""
    before = _current.get()
    _current.set(request_id)
    try:
        body = app(environ, start)
    finally:
        _current.set(before)
    # nothing of a list runs any more, and a server may send a file by itself
    wrapper = environ.get("wsgi.file_wrapper")
    if type(body) is list or (isinstance(wrapper, type) and isinstance(body, wrapper)):
        return body
    return _Body(body, request_id)


class _Body:
    """A body whose chunks are made with the id told, and which is closed with it."""

    __slots__ = ("_body", "_chunks", "_id")

    def __init__(self, body: Iterable[bytes], request_id: str) -> None:
        self._body = body
        self._chunks: Iterator[bytes] | None = None
        self._id = request_id

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        before = _current.get()
        _current.set(self._id)
        try:
            if self._chunks is None:
                self._chunks = iter(self._body)
            return next(self._chunks)
        finally:
            _current.set(before)

    def close(self) -> None:
        before = _current.get()
        _current.set(self._id)
        try:
            body, self._body = self._body, ()
            close_body(body)
        finally:
            _current.set(before)
