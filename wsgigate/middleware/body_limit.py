"""A size limit for request bodies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Protocol
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.responses import BufferedResponse
from wsgigate.http.wsgi import BodyTooLarge
from wsgigate.rules.arguments import Trait, checked
from wsgigate.units import parse_size

__all__ = ["BodyLimit"]


@checked
class BodyLimit:
    """Reject requests whose body is larger than *limit* with 413.

    A body with a Content-Length is rejected before the application is called. A chunked body is
    counted while the application reads it: past the limit ``read`` raises
    :class:`~wsgigate.http.wsgi.BodyTooLarge`. If the response has not started by then, it is
    replaced by the 413.

    If the server does not mark the end of the body (no ``wsgi.input_terminated``), the input ends
    at the Content-Length, and is empty without one, so that no reader blocks forever.

    :param app: The WSGI application to protect.
    :param limit: Maximum size of a request body, in bytes; text such as ``"64KiB"`` is allowed.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: *limit* is not a size.
    """

    def __init__(
        self,
        app: WSGIApplication,
        limit: Annotated[int | str, Trait.BYTES] = "10MiB",
        *,
        refuse: Refuse = answer_with,
    ) -> None:
        try:
            self.limit = parse_size(limit)
        except ValueError as error:
            raise ValueError(f"limit: {error}") from None
        self.app = app
        self._too_large = refuse(
            Problem(413, f"The request body is larger than {self.limit} bytes.")
        )
        self._malformed = refuse(Problem(400, "Content-Length is not a decimal number."))
        self._no_length = refuse(Problem(411, "The request body has no Content-Length."))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        terminated = bool(environ.get("wsgi.input_terminated"))
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        text = environ.get("CONTENT_LENGTH") or ""
        length = _length(text) if text else 0
        if length is None:
            refused(environ, "BodyLimit", f"Content-Length is {text[:64]!r}")
            return self._malformed(environ, start_response)
        if length > self.limit:
            refused(environ, "BodyLimit", f"body of {text[:64]} bytes, limit {self.limit}")
            return self._too_large(environ, start_response)
        if not terminated:
            if chunked and not text:
                # This server does not decode chunks: the app would see an empty body.
                refused(environ, "BodyLimit", "chunked body, which this server does not decode")
                return self._no_length(environ, start_response)
            environ["wsgi.input"] = _BoundedInput(environ["wsgi.input"], length)
            environ["wsgi.input_terminated"] = True
            return self.app(environ, start_response)
        if text and not chunked:
            return self.app(
                environ, start_response
            )  # the server ends the input at the Content-Length
        counted = _LimitedInput(environ["wsgi.input"], self.limit)
        environ["wsgi.input"] = counted
        return _Limited(environ, start_response, counted, self._too_large).call(self.app)


def _length(text: str) -> int | None:
    """Return the Content-Length *text* as a number, ``None`` if it is not plain decimal.

    (RFC 9110 section 8.6.) More than 30 digits are cut off: the number is still far too large.
    """
    if not (text.isascii() and text.isdigit()):
        return None
    return int(text.lstrip("0")[:30] or "0")


class _Input(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def readline(self, size: int, /) -> bytes: ...


class _BoundedInput:
    """An input that ends after *length* bytes, even if the server's input does not."""

    __slots__ = ("_input", "_left")

    def __init__(self, input: _Input, length: int) -> None:
        self._input = input
        self._left = length

    def read(self, size: int | None = -1, /) -> bytes:
        return self._taken(self._input.read, size)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._taken(self._input.readline, size)

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        lines: list[bytes] = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def _taken(self, take: _Take, size: int | None) -> bytes:
        if size is None or size < 0 or size > self._left:
            size = self._left
        if size == 0:
            return b""
        data = take(size)
        self._left -= len(data)
        return data


class _Take(Protocol):
    def __call__(self, size: int, /) -> bytes: ...


class _LimitedInput(_BoundedInput):
    """An input that raises :class:`BodyTooLarge` past *limit* bytes."""

    __slots__ = ("exceeded", "limit")

    def __init__(self, input: _Input, limit: int) -> None:
        super().__init__(
            input, limit + 1
        )  # one byte more distinguishes a body that is too long from one that fits
        self.limit = limit
        self.exceeded = False

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size >= 0:
            return super().read(size)
        parts = []
        while part := super().read(-1):  # some servers return only what has arrived
            parts.append(part)
        return b"".join(parts)

    def _taken(self, take: _Take, size: int | None) -> bytes:
        if self.exceeded:
            raise self._error()
        data = super()._taken(take, size)
        if self._left == 0:
            self.exceeded = True
            raise self._error()
        return data

    def _error(self) -> BodyTooLarge:
        return BodyTooLarge(f"the request body is larger than {self.limit} bytes")


class _Limited(BufferedResponse):
    """A response that is replaced by the 413 if it has not started when the limit is exceeded."""

    __slots__ = ("_answer", "_input")

    def __init__(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        counted: _LimitedInput,
        answer: WSGIApplication,
    ) -> None:
        super().__init__(environ, start_response)
        self._input = counted
        self._answer = answer

    def replacement(self, error: BaseException | None) -> WSGIApplication | None:
        if not self._input.exceeded:
            return None
        refused(self._environ, "BodyLimit", f"body of more than {self._input.limit} bytes")
        return self._answer
