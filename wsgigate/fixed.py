"""An answer that is always the same."""

from __future__ import annotations

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.fields import is_field_value
from wsgigate.problem import status_line

__all__ = ["fixed_answer"]

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
