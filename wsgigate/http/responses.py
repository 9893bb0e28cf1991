"""Responses that are copied, fixed, or replaced before they start.

WSGI lets an app call ``start_response`` and still fail before its first chunk. So a response can be
replaced until then, on these conditions:

- The head of a buffered response (:class:`BufferedResponse`) is held back until its first chunk.
  A second ``start_response`` with ``exc_info``, which PEP 3333 allows too, does not work: gunicorn
  keeps the fields of the first call, its Content-Length among them, and would send both.
- The body of a replaced response is closed before the other app is called, and the body that is
  returned is closed once, as PEP 3333 requires.
- A WebSocket that an inner app has taken over has no response left to replace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.fields import is_field_value
from wsgigate.http.problem import status_line
from wsgigate.http.wsgi import SHAPED, ExcInfo, Headers, close_body, is_websocket, without
from wsgigate.rules.arguments import Range

__all__ = [
    "FALLBACK_FIELD",
    "LARGEST",
    "BufferedResponse",
    "Choose",
    "CopiedBody",
    "fixed_response",
    "record_shaping",
    "replaceable_response",
    "with_fallback_field",
]


class CopiedBody:
    """A response body that is copied while it is sent.

    :param body: The body that the app returned.
    :param most: Maximum number of bytes to copy; a longer body is not copied.
    :param whole: Called once with the copy, when the body is complete.
    """

    def __init__(self, body: Iterable[bytes], most: int, whole: Callable[[bytes], object]) -> None:
        self._body = body
        self._most = most
        self._whole: Callable[[bytes], object] | None = whole
        self._chunks: Iterator[bytes] | None = None
        self._copy = bytearray()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunks = self._chunks
        if chunks is None:
            chunks = self._chunks = iter(self._body)
        try:
            chunk = next(chunks)
        except StopIteration:
            whole, self._whole = self._whole, None
            if whole is not None:
                whole(bytes(self._copy))
            raise
        except BaseException:
            self._whole = None
            raise
        if self._whole is not None:
            if len(self._copy) + len(chunk) > self._most:
                self._whole = None
                self._copy = bytearray()
            else:
                self._copy += chunk
        return chunk

    def close(self) -> None:
        body, self._body = self._body, ()
        close_body(body)


LARGEST = 1024 * 1024
"""Maximum body size of a fixed response in bytes: each worker holds it in memory."""


def fixed_response(
    body: bytes | str,
    *,
    status: Annotated[int, Range(200, 599)] = 503,
    content_type: str = "text/plain; charset=utf-8",
    fields: Iterable[tuple[str, str]] = (),
) -> WSGIApplication:
    """Return an app that always responds with *body* and ``Cache-Control: no-store``.

    :param body: The body; text is sent as UTF-8.
    :param status: The status, 200 to 599 except 204, 205 and 304, which have no body.
    :param content_type: The ``Content-Type``.
    :param fields: Further header fields.
    :raises ValueError: An argument is invalid; the message names it.
    """
    data = body.encode() if isinstance(body, str) else bytes(body)
    if len(data) > LARGEST:
        raise ValueError(f"body: at most {LARGEST} bytes, not {len(data)}")
    if not 200 <= status <= 599 or status in (204, 205, 304):
        raise ValueError(f"status: a status from 200 to 599 that has a body, not {status}")
    if not content_type or not is_field_value(content_type):
        raise ValueError(f"content_type: a type such as text/html, not {content_type!r}")
    line = status_line(status)
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(data))),
        ("Cache-Control", "no-store"),
        *fields,
    ]

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(line, headers.copy())
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [data]

    return answer


FALLBACK_FIELD = "X-Gateway-Fallback"
"""The header field of a fallback response; its value is the kind of the fallback."""

_FALLBACK_FIELDS = frozenset((FALLBACK_FIELD.lower(),))

Choose: TypeAlias = Callable[[int, Exception | None], WSGIApplication | None]
"""``choose(status, error)`` returns the app that replaces the response, ``None`` to keep it.
*error* is the exception that the app raised; the status is 500 then."""


def record_shaping(environ: WSGIEnvironment, what: str) -> None:
    """Record *what*, such as ``split=beta``, for the access log: how the request was shaped."""
    before = environ.get(SHAPED)
    environ[SHAPED] = f"{before} {what}" if before else what


def with_fallback_field(start_response: StartResponse, kind: str) -> StartResponse:
    """Return a *start_response* that adds :data:`FALLBACK_FIELD` with the value *kind*."""

    def start(
        status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        headers = [*without(headers, _FALLBACK_FIELDS), (FALLBACK_FIELD, kind)]
        if exc_info:
            return start_response(status, headers, exc_info)
        return start_response(status, headers)

    return start


def replaceable_response(
    app: WSGIApplication,
    environ: WSGIEnvironment,
    start_response: StartResponse,
    choose: Choose,
) -> Iterable[bytes]:
    """Call *app*, and the app that *choose* returns when the response starts or fails.

    A response that is kept is not delayed: ``start_response`` is passed on at once, and its body is
    returned unchanged. The body of a replaced response is closed before the other app is called.
    """
    return _ReplaceableResponse(environ, start_response, choose).call(app)


class _ReplaceableResponse:
    """A response that may be replaced when it starts; also the body if the app starts lazily."""

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
        """Return the app that replaces an app that raised *error*, or raise *error* again."""
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
        """Return the first chunk, of this response or of its replacement."""
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
    """Discard what the app writes of a response that is replaced."""


class BufferedResponse:
    """A response whose head is held back until its first chunk, so that it can be replaced.

    A subclass implements :meth:`replacement`, which returns the replacement. The object is also the
    body of the response.
    """

    replaces_started = True
    """Whether :meth:`replacement` is called for a response that has not failed."""

    begun = False
    _body: Iterable[bytes] = ()
    _chunks: Iterator[bytes] | None = None
    _head: tuple[str, Headers, ExcInfo | None] | None = None
    _other: Iterable[bytes] | None = None
    _write: Callable[[bytes], object] | None = None

    def __init__(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        self._environ = environ
        self._start_response = start_response

    def replacement(self, error: BaseException | None) -> WSGIApplication | None:
        """Return the app that replaces this response, or ``None`` to keep it.

        Called once, when the response is about to start or has failed before.

        :param error: The exception of the app, which is raised again if the response is kept;
            ``None`` without one.
        """
        raise NotImplementedError

    def call(self, app: WSGIApplication) -> Iterable[bytes]:
        """Call *app* and return the body of its response, or of the replacement."""
        body: Iterable[bytes] = ()
        try:
            body = self._body = app(self._environ, self.start_response)
            if type(body) is not list and type(body) is not tuple:
                return self
            # A list cannot fail any more: it is returned unchanged, with its length.
            head = self._head
            if head is not None and not (self.replaces_started or head[2]):
                self._head = None  # as _begin() does, which is a call per middleware
                self.begun = True
                self._write = self._start_response(head[0], head[1])
            elif not self.begun:
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
        """Send *data* at once: the ``write`` callable of PEP 3333."""
        if not self.begun:
            self._begin()
        if self._write is not None:  # a replaced response is discarded
            self._write(data)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunks = self._chunks
        return self._first() if chunks is None else next(chunks)

    def _first(self) -> bytes:
        """Return the first chunk, of this response or of its replacement."""
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
        """Pass on the head, or start the replacement."""
        app = self.replacement(None) if self.replaces_started else None
        if app is not None:
            self._replace(app)
            return
        if self._head is None and is_websocket(self._environ):
            self.begun = True  # the app has taken over the socket
            return
        if self._head is None:
            raise AssertionError("the application returned a body without calling start_response")
        status, headers, exc_info = self._head
        self._head = None
        self.begun = True  # before the call: if the server rejects the head, it sends the error
        if exc_info:
            self._write = self._start_response(status, headers, exc_info)
        else:
            self._write = self._start_response(status, headers)

    def _fail(self, error: BaseException) -> None:
        """Start the replacement of a response that failed with *error*, or raise *error*."""
        if isinstance(error, StopIteration) and is_websocket(self._environ):
            raise error  # an app that took over the socket ends this way under gunicorn
        if not self.begun and (app := self.replacement(error)) is not None:
            self._replace(app)
        if self._other is None:
            raise error

    def _replace(self, app: WSGIApplication) -> None:
        self.begun = True
        self._head = None
        self._other = app(self._environ, self._start_response)
