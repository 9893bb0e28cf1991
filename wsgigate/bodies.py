"""The body of a request, and the JSON object that it is, read within bounds."""

from __future__ import annotations

from typing import Any
from wsgiref.types import WSGIEnvironment

from wsgigate.problem import Problem, Refusal
from wsgigate.rules.compact import TokenRejected, read_object
from wsgigate.wsgi import BodyError

__all__ = ["has_body", "json_body", "read_body", "wrong"]


def has_body(environ: WSGIEnvironment) -> bool:
    """Tell whether the request announces a body that is not empty."""
    length = environ.get("CONTENT_LENGTH") or ""
    return length != "0" if length else bool(environ.get("HTTP_TRANSFER_ENCODING"))


def json_body(environ: WSGIEnvironment, largest: int, *, typed: bool = True) -> dict[str, Any]:
    """Return the object that is the request's body: strict JSON, no member named twice.

    :param largest: How many bytes it may have.
    :param typed: Whether the request has to say that it is JSON.
    :raises Refusal: It is none, or could not be read; the problem says which.
    """
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if typed and kind != "application/json":
        raise Refusal.of(415, "The body has to be application/json.")
    try:
        return read_object(read_body(environ, largest), "body")
    except TokenRejected as error:
        raise Refusal.of(400, f"The request has {error}.") from None


def read_body(environ: WSGIEnvironment, largest: int) -> bytes:
    """Return the request's body.

    :param largest: How many bytes it may have.
    :raises Refusal: It has more, or could not be read; the problem says which.
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
    """Return a 400 that says what is wrong with a body, and which of its members is."""
    return Refusal(Problem(400, detail, extensions={"field": field} if field else {}))
