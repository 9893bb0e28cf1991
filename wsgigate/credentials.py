"""Who sends a request that changes something: the token it presents, and the page it comes from."""

from __future__ import annotations

from urllib.parse import urlsplit
from wsgiref.types import WSGIEnvironment

__all__ = ["bearer", "from_another_site"]


def bearer(environ: WSGIEnvironment) -> bytes:
    """Return the token of ``Authorization: Bearer``, empty when there is none.

    It is taken from that field only: one in a query would end up in logs and histories.
    """
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer":
        return b""
    given: str = value.strip(" ")
    return given.encode("utf-8", "surrogatepass")


def from_another_site(environ: WSGIEnvironment) -> bool:
    """Tell whether a browser says so. The scheme is not compared: TLS may end before us."""
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
        return True
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:
        return False
    try:
        parts = urlsplit(origin)
        host = urlsplit(f"{parts.scheme}://{environ.get('HTTP_HOST', '')}")
        default = 443 if parts.scheme == "https" else 80
        here, there = (
            (each.hostname, default if each.port is None else each.port) for each in (host, parts)
        )
    except ValueError:
        return True
    return parts.scheme not in ("http", "https") or not parts.hostname or here != there
