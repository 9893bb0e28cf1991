"""The client's body on its way to an instance: framed in one way, and never completed for it."""

from __future__ import annotations

from typing import Any, Protocol
from wsgiref.types import WSGIEnvironment

from wsgigate.problem import Problem, Refusal
from wsgigate.wsgi import BodyError

__all__ = ["ClientBody", "client_body"]


_READ = Problem(
    500,
    "The application has read the request body, so there is nothing left to forward. It has to "
    "forward the request before it reads the body, or to put it back as environ['wsgi.input'].",
    title="Request body already read",
)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class ClientBody:
    """The client's body, read as it is sent on; it ends where it said it would, or not at all.

    It has no ``__iter__`` and no length, so that ``requests`` frames it by the fields it comes with
    and never by both of them.

    :param source: ``wsgi.input``.
    :param length: Bytes to read, ``None`` to read to the end of a chunked body.
    """

    __slots__ = ("_left", "_source", "error", "length")

    def __init__(self, source: _Readable, length: int | None) -> None:
        self._source = source
        self.length = length
        self._left = length
        self.error: BodyError | None = None

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes, nothing at the end.

        :raises BodyError: The client stopped early, broke its framing or sent too much; kept in
            ``error`` too, as the layers between may dress it up.
        """
        left = self._left
        if left is not None:
            if left == 0:
                return b""
            size = min(size, left)
        try:
            block = self._source.read(size)
        except BodyError as error:
            self.error = error
            raise
        except Exception as error:
            self.error = BodyError(f"{type(error).__name__} while reading the request body")
            raise self.error from error
        if left is not None:
            if not block:
                self.error = BodyError(f"the request body ended {left} bytes early")
                raise self.error
            self._left = left - len(block)
        return block


def client_body(environ: WSGIEnvironment) -> ClientBody | None:
    """Return the request's body, ``None`` when it has none.

    :raises Refusal: Its framing is malformed, ambiguous, or one that the gateway does not speak.
    """
    coding: str = environ.get("HTTP_TRANSFER_ENCODING", "")
    length: str = environ.get("CONTENT_LENGTH", "") or ""
    if "werkzeug.request" in environ and (coding or length not in ("", "0")) and _was_read(environ):
        raise Refusal(_READ, _READ.detail)
    if coding:
        if length:
            raise Refusal.of(400, "Ambiguous body length.")
        if coding.strip(" \t").lower() != "chunked" or not environ.get("wsgi.input_terminated"):
            raise Refusal.of(501, "Transfer coding not supported.", f"Transfer-Encoding: {coding}")
        return ClientBody(environ["wsgi.input"], None)
    if not length:
        return None
    if not (length.isascii() and length.isdigit()) or len(length) > 18:
        raise Refusal.of(400, "Malformed Content-Length.")
    return ClientBody(environ["wsgi.input"], int(length)) if int(length) else None


def _was_read(environ: WSGIEnvironment) -> bool:
    """Return whether a request object of Flask or werkzeug has taken anything of the body.

    On a server whose ``wsgi.input`` is the client's socket, such as that of ``flask run``, reading
    it again would wait for bytes that never come.
    """
    request = environ["werkzeug.request"]
    known: dict[str, Any] = getattr(request, "__dict__", {})
    stream = known.get("stream")
    if stream is None:
        return False
    source = environ["wsgi.input"]
    inner = getattr(stream, "_stream", None)  # of the stream that ends with the body
    if source not in (stream, inner):
        return False  # somebody has put another one in its place
    position: int = getattr(stream, "_pos", 0)
    if inner is source and position:
        return True
    return known.get("_cached_data") is not None or "form" in known
