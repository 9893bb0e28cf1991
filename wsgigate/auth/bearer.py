"""Who sends a request that changes something: the token it presents, and the page it comes from."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from hashlib import blake2b, sha256
from hmac import compare_digest
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.throttle import TokenGuard
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.http.wsgi import CLIENT, PEER_TRUSTED, REASON, client_address
from wsgigate.rules.registry import check_service

__all__ = ["Access", "Caller", "bearer", "for_loopback", "from_another_site", "require_token"]


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


# Who may change something: whoever presents the operator's token, and no page of another site.

_ADMIN_TOKEN = re.compile(r"[\x21-\x7e]{32,1024}")


def require_token(
    app: WSGIApplication, token: str, *, refuse: Refuse = answer_with
) -> WSGIApplication:
    """Return *app* for requests with ``Authorization: Bearer`` and *token* alone.

    The token is taken from that field only: one in a query would end up in logs and histories. A
    browser says where a request comes from (``Origin``, ``Sec-Fetch-Site``): one that comes from a
    page of another origin is refused whatever it presents.

    :param token: The operator's secret, at least 32 visible characters.
    :raises ValueError: *token* is too short or has characters that no field value has.
    """
    if not _ADMIN_TOKEN.fullmatch(token):
        raise ValueError("an admin token is 32 to 1024 visible ASCII characters without spaces")
    digest = sha256(token.encode("ascii")).digest()
    elsewhere = refuse(Problem(403, "Requests from other sites are not allowed."))
    challenge = (("WWW-Authenticate", 'Bearer realm="admin"'),)
    unknown = refuse(Problem(401, "Admin token required!", headers=challenge))

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if from_another_site(environ):
            environ[REASON] = "the request comes from a page of another origin"
            return elsewhere(environ, start_response)
        # digests are of one length, so the time taken tells nothing of the token, not even that
        if not compare_digest(sha256(bearer(environ)).digest(), digest):
            environ[REASON] = "the admin token is missing or wrong"
            return unknown(environ, start_response)
        return app(environ, start_response)

    return guarded


# Who may change what in the registry, and who may read it.
#
# A registry that is open to everyone on its machine is also asked by browsers on that machine,
# and a page of any site can have its own host name resolve to 127.0.0.1 (DNS rebinding): its
# requests are same-origin then. What gives them away is the ``Host`` field. So without a token an
# open registry serves loopback names and addresses alone.

_LONGEST_ADDRESS = 64

_REGISTRY_TOKEN = re.compile(r"[\x21-\x7e]{16,1024}")


class Caller(NamedTuple):
    """Whoever presented a token: what it may change.

    :ivar everything: It may change every service.
    :ivar services: The names of those that it may change.
    """

    everything: bool
    services: frozenset[str] = frozenset()

    def may(self, service: object) -> bool:
        """Tell whether it may change *service*."""
        return self.everything or (isinstance(service, str) and service in self.services)


class Access:
    """Tells callers by their tokens.

    Tokens are looked up by a hash under a key of this process alone, so the time that takes tells
    nothing of them, however many there are.

    :param token: Whoever presents it may change every service.
    :param tokens: By service, what it presents to change itself alone.
    :param open_reads: Whether anybody may read; else whoever has any of the tokens.
    :param open_writes: Whether anybody may change everything: for a machine with one user. Requests
        without a token are then served for loopback names and addresses alone (``localhost``,
        ``127.0.0.1``, ``[::1]``).
    :param guard: Counts wrong tokens, so that they cannot be guessed at full speed; that of the
        first registry that is served with this, unless given.
    :raises ValueError: A token can be guessed or sent by nobody, or a name is no service's; without
        a token nobody could change anything.
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
            raise ValueError("a token is missing: without one nobody could register anything")
        self._key = secrets.token_bytes(32)
        self._callers: dict[bytes, Caller] = {}
        self._open_reads = open_reads
        self._guard = guard
        self._anybody = Caller(everything=True) if open_writes else None
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
        """Have *guard* count wrong tokens, unless another one does."""
        if self._guard is None:
            self._guard = guard

    def __repr__(self) -> str:
        return "Access(...)"

    def caller_of(self, token: bytes) -> Caller | None:
        """Return what whoever presents *token* may do, None when it is nobody's."""
        return self._callers.get(self._digest(token)) or self._anybody

    def writer(self, environ: WSGIEnvironment) -> Caller:
        """Return who wants to change something.

        :raises Refusal: Nobody who may: 401; a page of another site in a browser, or a host that an
            open registry does not serve: 403; too many wrong tokens: 429.
        """
        if from_another_site(environ):
            raise Refusal.of(
                403,
                "Requests from other sites are not allowed.",
                "the request comes from a page of another origin",
            )
        return self._caller(environ)

    def _caller(self, environ: WSGIEnvironment) -> Caller:
        """Return whoever sent a request.

        :raises Refusal: As :meth:`writer` does.
        """
        token = bearer(environ)
        known = self._callers.get(self._digest(token)) if token else None
        if known is not None:
            if self._guard is not None:
                self._guard.right(client_address(environ)[:_LONGEST_ADDRESS], token)
            return known
        if self._anybody is not None:
            if not for_loopback(environ):
                raise _not_here()
            return self._anybody
        if token and self._guard is not None:
            self._guard.wrong(client_address(environ)[:_LONGEST_ADDRESS], token)
        raise _unknown()

    def check_write(self, environ: WSGIEnvironment, service: str) -> None:
        """See that the caller may change *service*.

        :raises Refusal: It may not: 401 or 403.
        """
        self.check_caller(self.writer(environ), service)

    def check_caller(self, caller: Caller, service: object) -> None:
        """See that *caller* may change *service*.

        :raises Refusal: It may not: 403.
        """
        if not caller.may(service):
            raise Refusal.of(
                403,
                "The token is another service's!",
                "the token presented is that of another service",
            )

    def check_read(self, environ: WSGIEnvironment) -> None:
        """See that the caller may read.

        :raises Refusal: It may not: 401, 403 or 429, as for :meth:`writer`.
        """
        if self._anybody is not None or not self._open_reads:
            self._caller(environ)

    def _digest(self, token: bytes) -> bytes:
        return blake2b(token, key=self._key, digest_size=32).digest()


def _unknown() -> Refusal:
    challenge = (("WWW-Authenticate", 'Bearer realm="registry"'),)
    return Refusal(
        Problem(401, "Registry token required!", headers=challenge),
        "the registry token is missing or wrong",
    )


def _not_here() -> Refusal:
    return Refusal.of(
        403,
        "This registry is open to its own machine alone: ask it as localhost or 127.0.0.1, "
        "or present a token.",
        "an open registry was asked by a name that is not loopback's",
    )


def _check(token: str, what: str) -> None:
    if not _REGISTRY_TOKEN.fullmatch(token):
        raise ValueError(f"{what} is 16 to 1024 visible ASCII characters without spaces")
