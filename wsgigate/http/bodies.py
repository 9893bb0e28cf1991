"""Request bodies: kept copies, framing towards the upstream, and strict JSON (also of tokens)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any, NoReturn, Protocol
from wsgiref.types import WSGIEnvironment

from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.wsgi import BodyError

__all__ = [
    "BufferedBody",
    "ClientBody",
    "InvalidJson",
    "buffer_body",
    "client_body",
    "has_body",
    "json_body",
    "read_body",
    "read_object",
    "shown",
    "wrong",
]


# Request bodies that are kept while they are read, so that they can be read again.


class BufferedBody:
    """An input that keeps a copy of what is read, so that it can be read again.

    It has the methods of ``wsgi.input`` (PEP 3333). A size of ``None`` means no size, as in
    :mod:`io` and in servers.

    :param source: ``wsgi.input``.
    :param most: Maximum number of bytes to keep. When more have been read, the copy is dropped.
    :param expected: Length of the body in bytes; ``None`` if *source* marks its end.
    :ivar source: ``wsgi.input``.
    :ivar too_large: Whether more than *most* bytes have been read.
    """

    __slots__ = ("_again", "_ended", "_expected", "_kept", "_most", "source", "too_large")

    def __init__(self, source: Any, most: int, expected: int | None = None) -> None:
        self.source = source
        self.too_large = False
        self._most = most
        self._expected = expected
        self._kept: bytes | bytearray = b""
        self._again: BytesIO | None = None
        self._ended = False

    def read(self, size: int | None = -1, /) -> bytes:
        if self._again is None:
            if self.too_large and size is not None:
                return self.source.read(size)  # type: ignore[no-any-return]
            return self._read_and_keep(self.source.read, size)
        block = self._again.read(size)
        if size is None or size < 0:
            return block + self._read_on(self.source.read, size)
        if len(block) < size:
            block += self._read_on(self.source.read, size - len(block))
        return block

    def readline(self, size: int | None = -1, /) -> bytes:
        if self._again is None:
            return self._read_and_keep(self.source.readline, size)
        line = self._again.readline(size)
        if line.endswith(b"\n") or len(line) == size:
            return line
        left = size if size is None or size < 0 else size - len(line)
        return line + self._read_on(self.source.readline, left)

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def whole(self) -> bytes | None:
        """Return the whole body; ``None`` if it was too large, or not read to its end."""
        if self.too_large:
            return None
        ended = self._ended if self._expected is None else len(self._kept) == self._expected
        return bytes(self._kept) if ended else None

    def rewind(self) -> bool:
        """Restart from the beginning; return ``False``, and do nothing, if it was too large."""
        if not self.too_large:
            self._again = BytesIO(self._kept)
        return not self.too_large

    def _read_on(self, read: Callable[..., bytes], size: int | None) -> bytes:
        """Read from the source again, after the copy."""
        self._again = None
        return self._read_and_keep(read, size)

    def _read_and_keep(self, read: Callable[..., bytes], size: int | None) -> bytes:
        block = read() if size is None or size < 0 else read(size)
        kept = self._kept
        if not block:
            self._ended = self._ended or size != 0
        elif self.too_large:
            pass
        elif len(kept) + len(block) > self._most:
            self.too_large = True
            self._kept = b""
        elif kept:
            self._kept = kept = bytearray(kept) if type(kept) is bytes else kept
            kept += block
        else:
            self._kept = block  # a body that comes as one block is not copied
        return block


def buffer_body(environ: WSGIEnvironment, most: int) -> BufferedBody | None:
    """Replace the request's body by one that can be read again; return ``None`` without a body.

    :param most: Maximum number of bytes to keep.
    """
    if not has_body(environ):
        return None
    environ["wsgi.input"] = body = BufferedBody(environ["wsgi.input"], most)
    return body


# The client's body as it is forwarded: with one framing, and never completed if it is truncated.

_READ = Problem(
    500,
    "The application has read the request body, so there is nothing left to forward. It has to "
    "forward the request before it reads the body, or to put it back as environ['wsgi.input'].",
    title="Request body already read",
)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class ClientBody:
    """The client's body as it is forwarded; ``read`` raises an error if it ends too early.

    It has no ``__iter__`` and no ``__len__``, so that ``requests`` frames it by the request's
    header fields, and never by Content-Length and Transfer-Encoding both.

    :param source: ``wsgi.input``.
    :param length: Number of bytes to read; ``None`` to read to the end of a chunked body.
    """

    __slots__ = ("_left", "_source", "error", "length")

    def __init__(self, source: _Readable, length: int | None) -> None:
        self._source = source
        self.length = length
        self._left = length
        self.error: BodyError | None = None

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes, ``b""`` at the end.

        :raises BodyError: The body is truncated, malformed or too large. It is also kept in
            ``error``, as the layers between may wrap it.
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
    """Return the request's body, ``None`` if it has none.

    :raises Refusal: Its framing is malformed, ambiguous or not supported.
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
    """Return whether a request object of Flask or werkzeug has read any of the body.

    On a server whose ``wsgi.input`` is the client's socket, such as that of ``flask run``, reading
    it again would wait for bytes that never come.
    """
    request = environ["werkzeug.request"]
    known: dict[str, Any] = getattr(request, "__dict__", {})
    stream = known.get("stream")
    if stream is None:
        return False
    source = environ["wsgi.input"]
    while type(source) is BufferedBody:
        source = source.source
    inner = getattr(stream, "_stream", None)  # werkzeug's LimitedStream wraps the input
    if source not in (stream, inner):
        return False  # other code has replaced the input
    position: int = getattr(stream, "_pos", 0)
    if inner is source and position:
        return True
    return known.get("_cached_data") is not None or "form" in known


def has_body(environ: WSGIEnvironment) -> bool:
    """Return whether the request has a body: a Content-Length above 0, or a transfer coding."""
    length = environ.get("CONTENT_LENGTH")
    return length not in (None, "", "0") or "HTTP_TRANSFER_ENCODING" in environ


# Strict JSON: no duplicate names, no numbers outside the JSON grammar.


class InvalidJson(ValueError):
    """The data is not a strict JSON object; the message names the cause."""


def read_object(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in *data*, without duplicate members and infinite numbers.

    :param what: Its name in the error message.
    :raises InvalidJson: *data* is anything else.
    """
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_refused,
        )
        if b"\\u" in data:  # an unpaired surrogate cannot be encoded as UTF-8
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise InvalidJson(f"a {what} that is nested too deeply") from None
    except ValueError as error:
        raise InvalidJson(f"a {what} that is not strict JSON: {shown(str(error))}") from None
    if not isinstance(found, dict):
        raise InvalidJson(f"a {what} that is not an object")
    return found


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a duplicate member")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that is not finite")
    return number


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def shown(value: object) -> str:
    """Return *value* for a log line: ASCII, escaped, at most 80 characters."""
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number with too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def json_body(environ: WSGIEnvironment, largest: int, *, typed: bool = True) -> dict[str, Any]:
    """Return the JSON object in the request's body; duplicate members are rejected.

    :param largest: Maximum size in bytes.
    :param typed: Whether the Content-Type must be ``application/json``.
    :raises Refusal: The body is not a JSON object or cannot be read.
    """
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if typed and kind != "application/json":
        raise Refusal.of(415, "The body has to be application/json.")
    try:
        return read_object(read_body(environ, largest), "body")
    except InvalidJson as error:
        raise Refusal.of(400, f"The request has {error}.") from None


def read_body(environ: WSGIEnvironment, largest: int) -> bytes:
    """Return the request's body.

    :param largest: Maximum size in bytes.
    :raises Refusal: The body is larger or cannot be read.
    """
    length = environ.get("CONTENT_LENGTH") or ""
    if not length and not environ.get("wsgi.input_terminated"):
        raise Refusal.of(411, "The body needs a Content-Length.")
    if length and not (length.isascii() and length.isdigit()):
        raise Refusal.of(400, "Malformed Content-Length.")
    if len(length) > 9 or int(length or 0) > largest:
        raise Refusal.of(413, f"The body has to be at most {largest} bytes.")
    wanted = int(length) if length else largest + 1
    data = b""
    try:
        while len(data) < wanted:
            part = environ["wsgi.input"].read(wanted - len(data))
            if not part:
                break
            data += part
    except (BodyError, OSError):
        raise Refusal.of(400, "The body could not be read to its end.") from None
    if len(data) > largest:
        raise Refusal.of(413, f"The body has to be at most {largest} bytes.")
    if length and len(data) < wanted:
        raise Refusal.of(400, "The body could not be read to its end.")
    return data


def wrong(detail: str, field: str = "") -> Refusal:
    """Return a 400 with *detail*; *field* is the invalid member of the body."""
    return Refusal(Problem(400, detail, extensions={"field": field} if field else {}))
