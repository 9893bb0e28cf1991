"""How far a request may go: methods that end here, and Max-Forwards (RFC 9110 section 7.6.2)."""

from __future__ import annotations

from wsgiref.types import WSGIEnvironment

from wsgigate.problem import Refusal

__all__ = ["NEVER", "hops_left", "is_last_hop"]

NEVER = frozenset(("CONNECT", "TRACE", "TRACK"))
"""Methods that are never passed on: a tunnel, and echoes of fields that a script must not read."""


def is_last_hop(environ: WSGIEnvironment) -> bool:
    """Return whether the request may go no further and is answered here.

    That is OPTIONS with ``Max-Forwards: 0`` (RFC 9110 section 7.6.2); the other method that the
    field is for, TRACE, never goes on.

    :raises Refusal: What it holds is no number.
    """
    if environ["REQUEST_METHOD"] != "OPTIONS" or "HTTP_MAX_FORWARDS" not in environ:
        return False
    return hops_left(environ["HTTP_MAX_FORWARDS"]) == 0


def hops_left(value: str) -> int:
    """Return how many times the request may be passed on, as its Max-Forwards field says.

    :raises Refusal: The *value* is no number.
    """
    value = value.strip(" \t")
    if not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise Refusal.of(400, "Malformed Max-Forwards field.")
    return int(value)
