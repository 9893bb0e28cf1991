"""The JSON object that is a request's body, read within bounds."""

from __future__ import annotations

from typing import Any
from wsgiref.types import WSGIEnvironment

from wsgigate.problem import Refusal
from wsgigate.rules.compact import TokenRejected, read_object
from wsgigate.wsgi import BodyError

__all__ = ["has_body", "json_body"]


def has_body(environ: WSGIEnvironment) -> bool:
    """Tell whether the request announces a body that is not empty."""
    length = environ.get("CONTENT_LENGTH") or ""
    return length != "0" if length else bool(environ.get("HTTP_TRANSFER_ENCODING"))


def json_body(environ: WSGIEnvironment, largest: int) -> dict[str, Any]:
    """Return the object that is the request's body: strict JSON, no member named twice.

    :param largest: How many bytes it may have.
    :raises Refusal: It is none, or could not be read; the problem says which.
    """
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal.of(415, "The body has to be application/json.")
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
    try:
        return read_object(data, "body")
    except TokenRejected as error:
        raise Refusal.of(400, f"The request has {error}.") from None
