"""What requests to the gateway's own endpoints bring with them: one JSON object."""

from __future__ import annotations

from typing import Any
from wsgiref.types import WSGIEnvironment

from wsgigate.problem import Problem
from wsgigate.rules.compact import MAX_LENGTH, TokenRejected, read_object
from wsgigate.wsgi import BodyError

__all__ = ["LARGEST", "WrongBody", "read_body"]

LARGEST = 2 * MAX_LENGTH
"""The largest body that is read, in bytes: a token and all else there is to say."""


class WrongBody(Exception):
    """What is wrong with a body, as the problem to answer.

    :param status: The status of the answer.
    :param detail: What is wrong.
    :param field: The member that it is wrong with, if it is one.
    """

    def __init__(self, status: int, detail: str, field: str = "") -> None:
        super().__init__(detail)
        self.problem = Problem(status, detail, extensions={"field": field} if field else {})


def read_body(environ: WSGIEnvironment) -> dict[str, Any]:
    """Return the object that is the request's body.

    :raises WrongBody: It is none, or too large.
    """
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise WrongBody(415, "The body has to be application/json.")
    length = environ.get("CONTENT_LENGTH") or ""
    if not length and not environ.get("wsgi.input_terminated"):
        raise WrongBody(411, "The body needs a Content-Length.")
    if length and not (length.isascii() and length.isdigit()):
        raise WrongBody(400, "Malformed Content-Length.")
    if len(length) > 9 or int(length or 0) > LARGEST:
        raise WrongBody(413, f"The body has to be at most {LARGEST} bytes.")
    wanted = int(length) if length else LARGEST + 1
    data = b""
    try:
        while len(data) < wanted:
            part = environ["wsgi.input"].read(wanted - len(data))
            if not part:
                break
            data += part
    except (BodyError, OSError):
        raise WrongBody(400, "The body could not be read to its end.") from None
    if len(data) > LARGEST:
        raise WrongBody(413, f"The body has to be at most {LARGEST} bytes.")
    if length and len(data) < wanted:
        raise WrongBody(400, "The body could not be read to its end.")
    try:
        return read_object(data, "body")
    except TokenRejected as error:
        raise WrongBody(400, f"The request has {error}.") from None
