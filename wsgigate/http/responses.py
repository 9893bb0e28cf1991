"""Responses held back until their first chunk, so that another answer can take their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.fields import is_field_value
from wsgigate.http.problem import status_line
from wsgigate.http.wsgi import SHAPED, ExcInfo, Headers, close_body, is_websocket, without

__all__ = [
    "Choose",
    "CopiedBody",
    "FIELD",
    "Held",
    "answer_instead",
    "fixed_answer",
    "marked",
    "shaped",
]


# A copy of what goes out, made as it goes.


class CopiedBody:
    """The body of an answer on its way out, of which a copy is made if it comes to its end.

    :param body: What the app returned.
    :param most: The bytes that are copied; of a longer body there is no copy.
    :param whole: Called once with the copy, when the body has come to its end.
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


# An answer that is always the same.

LARGEST = 1024 * 1024
"""The largest body, in bytes: each worker keeps it."""


def fixed_answer(
    body: bytes | str,
    *,
    status: int = 503,
    content_type: str = "text/plain; charset=utf-8",
    fields: Iterable[tuple[str, str]] = (),
) -> WSGIApplication:
    """Return the app that always answers with *body*, of which nobody is to keep a copy.

    :param body: The body; text is sent as UTF-8.
    :param status: Its status, 200 to 599; 204, 205 and 304 have no body, so they are none.
    :param content_type: Its ``Content-Type``.
    :param fields: Further fields.
    :raises ValueError: One of them can not be; says which.
    """
    data = body.encode() if isinstance(body, str) else bytes(body)
    if len(data) > LARGEST:
        raise ValueError(f"body: at most {LARGEST} bytes, not {len(data)}")
    if not 200 <= status <= 599 or status in (204, 205, 304):
        raise ValueError(f"status: one from 200 to 599 that has a body, not {status}")
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


# Answers in the place of others: those that fail before they begin.

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
