"""Request ids: one id per request in the logs of the gateway and of the services."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Literal
from weakref import ref
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.fields import HOP_BY_HOP, is_token
from wsgigate.http.wsgi import (
    REQUEST_ID,
    ExcInfo,
    Headers,
    close_body,
    environ_key,
    peer_trusted,
    without,
)
from wsgigate.rules.arguments import checked

__all__ = ["RequestId", "RequestIdFilter", "filters"]

_VALID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_FRAMING = frozenset({"content-length", "content-type", "host"})


def _mint() -> str:
    # CPython reseeds the module's generator after a fork, so that workers get different ids.
    return f"{random.getrandbits(128):032x}"


@checked
class RequestId:
    """Assign an id to each request: in ``environ``, in a request field and in a response field.

    An id from an outer RequestId is kept. An id from the client is accepted according to *accept*,
    and only if it consists of 1 to 64 letters, digits, dots, underscores and hyphens: other
    characters could forge log lines.

    :param app: The WSGI application whose requests get an id.
    :param header: The field with the id, in requests and responses.
    :param accept: Which ids of clients are accepted: ``"trusted"`` (if the peer is a trusted proxy
        of an outer ClientAddress), ``"always"`` or ``"never"``.
    :param mint: Returns a new id.
    :raises ValueError: *header* is not a field name that may contain an id, or *accept* is none of
        the three.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        header: str = "X-Request-ID",
        accept: Literal["trusted", "always", "never"] = "trusted",
        mint: Callable[[], str] = _mint,
    ) -> None:
        if not is_token(header) or header.lower() in HOP_BY_HOP | _FRAMING:
            raise ValueError(f"header: {header!r} is not a field that may contain a request id")
        if accept not in ("trusted", "always", "never"):
            raise ValueError(f'accept is "trusted", "always" or "never", not {accept!r}')
        self.app = app
        self._header = header
        self._names = frozenset((header.lower(),))
        self._key = environ_key(header)
        self._always = accept == "always"
        self._trusted = accept == "trusted"
        self._mint = mint

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request_id = environ.get(REQUEST_ID)
        if request_id is None:
            request_id = self._sent(environ) if self._key in environ else None
            request_id = request_id or self._mint()
            environ[REQUEST_ID] = request_id
        environ[self._key] = request_id
        field = (self._header, request_id)
        names = self._names

        def start(
            status: str, headers: Headers, exc_info: ExcInfo | None = None
        ) -> Callable[[bytes], object]:
            # The backend's id would differ from the one in our log, so it is replaced.
            fields = without(headers, names)
            fields.append(field)
            if exc_info:
                return start_response(status, fields, exc_info)
            return start_response(status, fields)

        if filters:
            return call_with_id(self.app, environ, start, request_id)
        return self.app(environ, start)

    def _sent(self, environ: WSGIEnvironment) -> str | None:
        """Return the id that the client sent, if it is accepted."""
        if not (self._always or (self._trusted and peer_trusted(environ))):
            return None
        sent: str = environ[self._key]
        return sent if _VALID.fullmatch(sent) else None


# The id in the log records of the app. It is in a context variable while code of the request runs:
# the call of the app, each chunk of its body, and the close() of the body. In between the thread
# runs the server or another request.

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
    return _BodyWithId(body, request_id)


class _BodyWithId:
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
