"""Who sends a request that changes something: the token it presents, and the page it comes from."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit
from wsgiref.types import WSGIEnvironment

from wsgigate.wsgi import CLIENT, PEER_TRUSTED

__all__ = ["bearer", "for_loopback", "from_another_site"]

_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]@/\s]+)(?::[0-9]{0,5})?", re.ASCII)


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


def for_loopback(environ: WSGIEnvironment) -> bool:
    """Return whether a request is for this machine, by a name or address of loopback.

    A page whose host name resolves to this machine (DNS rebinding) has that name in ``Host`` and
    ``Origin``. Any port will do, as ports are forwarded. A client that a trusted proxy reports has
    to be on this machine too, as the proxy may set another ``Host``.
    """
    if not _is_loopback(environ.get("HTTP_HOST", "")):
        return False
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None:
        scheme, separator, authority = origin.partition("://")
        if not separator or scheme not in ("http", "https") or not _is_loopback(authority):
            return False
    if not environ.get(PEER_TRUSTED):
        return True
    client = environ.get(CLIENT, "")
    return client == "unix" or _is_loopback(f"[{client}]" if ":" in client else client)


def _is_loopback(authority: str) -> bool:
    """Return whether ``HOST[:PORT]`` is loopback: its addresses, and ``localhost`` (RFC 6761)."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        return False
    host = found["host"].lower()
    if host.startswith("["):
        host = host[1:-1]
    else:
        host = host.removesuffix(".")
        if host == "localhost" or host.endswith(".localhost"):
            return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback
