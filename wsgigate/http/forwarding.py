"""The fields that describe a request to the next server: ``X-Forwarded-*`` and ``Forwarded``.

They are those of the trusted proxies before the gateway, with what the gateway itself knows of the
request; what another peer sends is not in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from wsgiref.types import WSGIEnvironment

from wsgigate.http.forwarded import address_of, format_forwarded
from wsgigate.http.wsgi import CLIENT_SOURCE

__all__ = ["forwarding_fields"]


def forwarding_fields(environ: WSGIEnvironment, trusted: bool) -> Mapping[str, str]:
    """Return ``X-Forwarded-For``, ``-Proto``, ``-Host`` and ``-Port``, and ``Forwarded``.

    :param trusted: Whether the peer is a trusted proxy.
    """
    peer = environ.get("REMOTE_ADDR") or "unknown"
    if trusted:  # a proxy fix inside ClientAddress may have replaced it by the client's
        source = environ.get(CLIENT_SOURCE) or (peer,)
        peer = source[0] if source[0] != "unix" else "unknown"
    added = _first_hop(peer, environ["wsgi.url_scheme"], environ.get("HTTP_HOST", ""))
    return _next_hop(environ, added) if trusted else added


@lru_cache(maxsize=4096)
def _first_hop(peer: str, scheme: str, host: str) -> Mapping[str, str]:
    """Return the forwarding fields of a request that no other proxy forwarded."""
    # On an IPv6 socket an IPv4 client has the address ::ffff:192.0.2.1; use the IPv4 form.
    added = {
        "X-Forwarded-For": address_of(peer.partition("%")[0]) or peer,
        "X-Forwarded-Proto": scheme,
    }
    if host:
        added["X-Forwarded-Host"] = host
    added["X-Forwarded-Port"] = _port(host, scheme)
    added["Forwarded"] = format_forwarded(peer, host, scheme)
    return added


def _next_hop(environ: WSGIEnvironment, added: Mapping[str, str]) -> Mapping[str, str]:
    """Return the fields of the trusted proxies before this one, with *added* appended.

    Scheme, host and port describe the client's view together: a port that the proxy did not send
    follows from the host and scheme that it sent, never from this hop.
    """
    merged = dict(added)
    for name, key in (
        ("X-Forwarded-For", "HTTP_X_FORWARDED_FOR"),
        ("Forwarded", "HTTP_FORWARDED"),
    ):
        chain = environ.get(key)
        if chain:
            merged[name] = f"{chain}, {added[name]}"
    for name, key in (
        ("X-Forwarded-Proto", "HTTP_X_FORWARDED_PROTO"),
        ("X-Forwarded-Host", "HTTP_X_FORWARDED_HOST"),
    ):
        value = environ.get(key)
        if value:
            merged[name] = value
    port = environ.get("HTTP_X_FORWARDED_PORT", "")
    host, scheme = merged.get("X-Forwarded-Host", ""), merged["X-Forwarded-Proto"]
    merged["X-Forwarded-Port"] = _port(host, scheme, port)
    return merged


def _port(host: str, scheme: str, forwarded: str = "") -> str:
    """Return the port of *host*; without one, *forwarded*, or else the scheme's default."""
    port = host.rpartition(":")[2] if not host.endswith("]") and ":" in host else ""
    return port or forwarded or ("443" if scheme == "https" else "80")
