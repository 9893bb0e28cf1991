"""Which way a request came: ``X-Forwarded-*``, ``Forwarded`` (RFC 7239) and ``Via`` (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from wsgiref.types import WSGIEnvironment

from wsgigate.addresses import address_of
from wsgigate.fields import is_token
from wsgigate.forwarding import format_forwarded
from wsgigate.problem import Refusal
from wsgigate.wsgi import CLIENT_SOURCE, peer_trusted

__all__ = ["Way"]


class Way:
    """Tells the next hop which way a request came.

    :param via: The gateway's name in ``Via`` (RFC 9110 section 7.6.3).
    :param loop_field: The field that names it to itself, so that it sees a loop: ``via``, or
        ``cdn-loop`` (RFC 8586) for services that treat requests with a ``Via`` differently.
    :raises ValueError: An argument is not of its form; the message names it.
    """

    def __init__(self, via: str, loop_field: str = "via") -> None:
        if not is_token(via):
            raise ValueError(f"via is a word such as wsgigate, got {via!r}")
        if loop_field not in ("via", "cdn-loop"):
            raise ValueError(f'loop_field is "via" or "cdn-loop", got {loop_field!r}')
        self._via = via
        self._in_via = loop_field == "via"

    def tell(
        self, environ: WSGIEnvironment, fields: dict[str, str], protocol: str, outside: str
    ) -> None:
        """Add to *fields* the way that the request of *environ* came.

        :param protocol: The client's, ``HTTP/1.1``.
        :param outside: What the client's path begins with and the next hop does not see.
        :raises Refusal: It came by here already.
        """
        peer = environ.get("REMOTE_ADDR") or "unknown"
        trusted = peer_trusted(environ)
        if trusted:  # a proxy fix inside of ClientAddress has replaced it by the client's
            source = environ.get(CLIENT_SOURCE) or (peer,)
            peer = source[0] if source[0] != "unix" else "unknown"
        scheme = environ["wsgi.url_scheme"]
        host = environ.get("HTTP_HOST", "")
        told = _first_hop(peer, scheme, host)
        if trusted:
            told = _next_hop(environ, told)
        fields.update(told)
        before = environ.get("HTTP_X_FORWARDED_PREFIX") if trusted else None
        if outside or before:
            prefix = (before or "").rstrip("/") + outside
            if prefix:
                fields["X-Forwarded-Prefix"] = prefix
        name = self._via
        if self._in_via:
            field, before, mine = "Via", environ.get("HTTP_VIA"), f"{protocol[5:]} {name}"
        else:
            field, before, mine = "Cdn-Loop", environ.get("HTTP_CDN_LOOP"), name
        if before:
            if name in before and name in re.split(r"[\s,;]+", before):
                raise Refusal.of(508, "Loop detected.", f"{name} is in {field} already")
            mine = f"{before}, {mine}"
        fields[field] = mine


@lru_cache(maxsize=4096)
def _first_hop(peer: str, scheme: str, host: str) -> Mapping[str, str]:
    """Return what is told of a request that nobody passed on before."""
    # An IPv4 client of an IPv6 socket is ::ffff:192.0.2.1 to the server: one spelling for all.
    told = {
        "X-Forwarded-For": address_of(peer.partition("%")[0]) or peer,
        "X-Forwarded-Proto": scheme,
    }
    if host:
        told["X-Forwarded-Host"] = host
    told["X-Forwarded-Port"] = _port(host, scheme)
    told["Forwarded"] = format_forwarded(peer, host, scheme)
    return told


def _next_hop(environ: WSGIEnvironment, told: Mapping[str, str]) -> Mapping[str, str]:
    """Return *told* behind what the trusted proxies before this one told.

    Scheme, host and port are one statement about the client's view: a port that the proxy did not
    tell is the one of the host and the scheme it told, never the one that this hop came by.
    """
    merged = dict(told)
    for name, key in (
        ("X-Forwarded-For", "HTTP_X_FORWARDED_FOR"),
        ("Forwarded", "HTTP_FORWARDED"),
    ):
        chain = environ.get(key)
        if chain:
            merged[name] = f"{chain}, {told[name]}"
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


def _port(host: str, scheme: str, told: str = "") -> str:
    """Return the port of *host*; where that has none, the one *told*, or the scheme's own."""
    port = host.rpartition(":")[2] if not host.endswith("]") and ":" in host else ""
    return port or told or ("443" if scheme == "https" else "80")
