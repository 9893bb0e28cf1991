"""Bearer tokens, the permissions of the registry's, and protection against other web sites.

A browser attaches no bearer token by itself, but it can reach a service on the user's machine. So a
request from a page of another origin is rejected whatever token it has (``Origin``,
``Sec-Fetch-Site``).

A registry that is open without a token on one machine has another risk: a page of any site can let
its own host name resolve to 127.0.0.1 (DNS rebinding), and its requests are then same-origin. Only
the ``Host`` field reveals them. So an open registry serves requests without a token only for
loopback names and addresses.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit
from wsgiref.types import WSGIEnvironment

from wsgigate.auth.throttle import TokenGuard
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.wsgi import CLIENT, PEER_TRUSTED, client_address
from wsgigate.rules.registry import check_service

__all__ = [
    "Access",
    "Caller",
    "bearer",
    "for_loopback",
    "from_another_site",
    "has_other_scheme",
    "names_loopback",
]


_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]@/\s]+)(?::[0-9]{0,5})?", re.ASCII)


def bearer(environ: WSGIEnvironment) -> bytes:
    """Return the token of ``Authorization: Bearer``; empty without one.

    A token in the query is ignored: it would end up in logs and histories.
    """
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer":
        return b""
    given: str = value.strip(" ")
    return given.encode("utf-8", "surrogatepass")


# A comma may be where the server joined two header fields.
_OTHER_SCHEME = re.compile(r"(?!bearer)[!#$%&'*+.^_`|~0-9a-z-]+(?: [^,]*)?", re.IGNORECASE)


def has_other_scheme(value: str) -> bool:
    """Return whether an ``Authorization`` field is one value of another scheme than ``Bearer``."""
    return _OTHER_SCHEME.fullmatch(value) is not None


def from_another_site(environ: WSGIEnvironment) -> bool:
    """Return whether a browser sent the request for a page of another site.

    The scheme is not compared, as a proxy may terminate TLS.
    """
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
    """Return whether a request is for a loopback name or address.

    A page whose host name resolves to this machine (DNS rebinding) has that name in ``Host`` and
    ``Origin``. Any port is accepted, as ports may be forwarded. A client that a trusted proxy
    reports must be on this machine too, as the proxy may set another ``Host``.
    """
    if not names_loopback(environ.get("HTTP_HOST", "")):
        return False
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None:
        scheme, separator, authority = origin.partition("://")
        if not separator or scheme not in ("http", "https") or not names_loopback(authority):
            return False
    if not environ.get(PEER_TRUSTED):
        return True
    client = environ.get(CLIENT, "")
    return client == "unix" or names_loopback(f"[{client}]" if ":" in client else client)


def names_loopback(authority: str) -> bool:
    """Return whether ``HOST[:PORT]`` is a loopback address or ``localhost`` (RFC 6761)."""
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


_LONGEST_ADDRESS = 64

_REGISTRY_TOKEN = re.compile(r"[\x21-\x7e]{16,1024}")


class Caller(NamedTuple):
    """The permissions of a registry token.

    :ivar everything: Whether it may change every service.
    :ivar services: The names of the services that it may change.
    """

    everything: bool
    services: frozenset[str] = frozenset()

    def may(self, service: object) -> bool:
        """Return whether the caller may change *service*."""
        return self.everything or (isinstance(service, str) and service in self.services)


class Access:
    """The access control of a registry: callers by their tokens.

    Tokens are looked up by a hash with a random key of this process, so the lookup time reveals
    nothing about them, regardless of their number.

    :param token: The token that may change every service.
    :param tokens: By service, the token that may change this service only.
    :param open_reads: Whether reads need no token; otherwise any of the tokens is required.
    :param open_writes: Whether changes need no token: for a machine with one user. Requests without
        a token are then served for loopback names and addresses only (``localhost``,
        ``127.0.0.1``, ``[::1]``).
    :param guard: Throttles wrong tokens, so that they cannot be guessed quickly. Default: the guard
        of the first registry that uses this object.
    :raises ValueError: A token is too short or malformed, a service name is invalid, or no token
        is given without *open_writes*.
    """

    def __init__(
        self,
        token: str | None = None,
        tokens: Mapping[str, str] | None = None,
        *,
        open_reads: bool = True,
        open_writes: bool = False,
        guard: TokenGuard | None = None,
    ) -> None:
        if token is None and not tokens and not open_writes:
            raise ValueError("a token is required: without one no service can register")
        self._key = secrets.token_bytes(32)
        self._callers: dict[bytes, Caller] = {}
        self._open_reads = open_reads
        self._guard = guard
        self._anonymous = Caller(everything=True) if open_writes else None
        for service, text in (tokens or {}).items():
            check_service(service)
            _check(text, f"the token of {service!r}")
            digest = self._digest(text.encode("ascii"))
            known = self._callers.get(digest, Caller(everything=False))
            self._callers[digest] = known._replace(services=known.services | {service})
        if token is not None:
            _check(token, "the token")
            self._callers[self._digest(token.encode("ascii"))] = Caller(everything=True)

    def guard_by(self, guard: TokenGuard) -> None:
        """Throttle wrong tokens by *guard*, unless there is a guard already."""
        if self._guard is None:
            self._guard = guard

    def __repr__(self) -> str:
        return "Access(...)"

    def caller_of(self, token: bytes) -> Caller | None:
        """Return the permissions of *token*, None if it is unknown."""
        return self._callers.get(self._digest(token)) or self._anonymous

    def writer(self, environ: WSGIEnvironment) -> Caller:
        """Return the caller of a request that changes something.

        :raises Refusal: 401 without a valid token; 403 for a page of another site in a browser, or
            for a host that an open registry does not serve; 429 after too many wrong tokens.
        """
        if from_another_site(environ):
            raise Refusal.of(
                403,
                "Requests from other sites are not allowed.",
                "the request comes from a page of another origin",
            )
        return self._caller(environ)

    def _caller(self, environ: WSGIEnvironment) -> Caller:
        """Return the caller of a request.

        :raises Refusal: As for :meth:`writer`, except for pages of other sites.
        """
        token = bearer(environ)
        known = self._callers.get(self._digest(token)) if token else None
        if known is not None:
            if self._guard is not None:
                self._guard.record_valid(client_address(environ)[:_LONGEST_ADDRESS], token)
            return known
        if self._anonymous is not None:
            if not for_loopback(environ):
                raise _not_loopback()
            return self._anonymous
        if token and self._guard is not None:
            self._guard.record_wrong(client_address(environ)[:_LONGEST_ADDRESS], token)
        raise _unknown()

    def check_write(self, environ: WSGIEnvironment, service: str) -> None:
        """Check that the caller of a request may change *service*.

        :raises Refusal: 401, 403 or 429, if it may not.
        """
        self.check_caller(self.writer(environ), service)

    def check_caller(self, caller: Caller, service: object) -> None:
        """Check that *caller* may change *service*.

        :raises Refusal: 403, if it may not.
        """
        if not caller.may(service):
            raise Refusal.of(
                403,
                "The token is another service's!",
                "the token belongs to another service",
            )

    def check_read(self, environ: WSGIEnvironment) -> None:
        """Check that the caller of a request may read.

        :raises Refusal: 401, 403 or 429, if it may not, as for :meth:`writer`.
        """
        if self._anonymous is not None or not self._open_reads:
            self._caller(environ)

    def _digest(self, token: bytes) -> bytes:
        return blake2b(token, key=self._key, digest_size=32).digest()


def _unknown() -> Refusal:
    challenge = (("WWW-Authenticate", 'Bearer realm="registry"'),)
    return Refusal(
        Problem(401, "Registry token required!", headers=challenge),
        "the registry token is missing or wrong",
    )


def _not_loopback() -> Refusal:
    return Refusal.of(
        403,
        "This registry is open to its own machine alone: use localhost or 127.0.0.1, "
        "or send a token.",
        "the Host of the request to an open registry is not a loopback name",
    )


def _check(token: str, what: str) -> None:
    if not _REGISTRY_TOKEN.fullmatch(token):
        raise ValueError(f"{what} is 16 to 1024 visible ASCII characters without spaces")
