"""A logging filter that adds the request id to the log records of the app.

The id is in a context variable while code of the request runs: the call of the app, each chunk of
its body, and the ``close()`` of the body. In between the thread runs the server or another request.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from weakref import ref
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.wsgi import close_body

__all__ = ["RequestIdFilter", "call_with_id", "filters"]


_current: ContextVar[str | None] = ContextVar("wsgigate.request_id", default=None)

filters: set[ref[RequestIdFilter]] = set()
"""The filters that exist. While there are none, requests do not set the context variable."""


class RequestIdFilter(logging.Filter):
    """Add the id of the current request to log records, as ``%(request_id)s``.

    Add it to a handler of the app's own log. It requires a :class:`RequestId` around the app, which
    every gateway has. Records made outside a request, or in a thread that the app starts without
    the request's context (``contextvars.copy_context``), get *missing*.

    :param missing: The id of a record that belongs to no request.
    """

    def __init__(self, missing: str = "-") -> None:
        super().__init__()
        self._missing = missing
        filters.add(ref(self, filters.discard))

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = _current.get() or self._missing
        return True


def call_with_id(
    app: WSGIApplication, environ: WSGIEnvironment, start: StartResponse, request_id: str
) -> Iterable[bytes]:
    """Call *app* and return its body; what either of them logs has *request_id*."""
    before = _current.get()
    _current.set(request_id)
    try:
        body = app(environ, start)
    finally:
        _current.set(before)
    # A list runs no code of the app, and a server may send a file without reading its chunks.
    wrapper = environ.get("wsgi.file_wrapper")
    if type(body) is list or (isinstance(wrapper, type) and isinstance(body, wrapper)):
        return body
    return _Body(body, request_id)


class _Body:
    """A response body that sets the context variable while it is iterated and closed."""

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
