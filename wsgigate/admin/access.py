"""Access to the gateway's own endpoints: roles by token, and protection against web pages.

Theory of operation. There are two roles: ``viewer`` reads, ``admin`` also writes. A request has a
role by its ``Authorization: Bearer`` alone. A browser sends cookies by itself, so these count for
nothing; a token in the query would end up in histories and logs, so such a request is rejected.

- Both tokens are compared for every request, as digests of one length, so the time reveals neither
  which one nor how much of one was right, and not whether one is configured.
- Wrong tokens are counted per client address (:mod:`wsgigate.auth.throttle`). An address that has
  sent too many gets 429, also for a right token: otherwise an attacker would recognize a correct
  guess by its status, and the limit would be useless against a token from a word list. A right
  token that the address has used before is still accepted, so wrong tokens of a neighbour behind
  the same proxy do not lock out an operator at work. Other addresses are not affected, and a
  missing token is not counted.
- A page of another origin is rejected whatever token it has (``Origin``, ``Sec-Fetch-Site``), also
  one without an origin (``Origin: null``: a sandboxed frame, a file).
- A page can let its own name resolve to a loopback address (DNS rebinding); its requests are then
  same-origin, and only ``Host`` reveals them. So a gateway that listens on a loopback address
  serves loopback names alone, and the names in ``admin.hosts`` and ``gateway.allowed_hosts``.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from enum import IntEnum
from hashlib import sha256
from hmac import compare_digest
from urllib.parse import urlsplit
from wsgiref.types import WSGIEnvironment

from wsgigate.auth.bearer import bearer, from_another_site, names_loopback
from wsgigate.auth.throttle import TokenGuard
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.target import BadTarget, host_of
from wsgigate.http.wsgi import client_address, peer_trusted
from wsgigate.rules.routing import Hosts
from wsgigate.telemetry.audit import audit_denied

__all__ = ["AdminAccess", "Role", "origin_of", "role_of"]


class Role(IntEnum):
    """What a request may do; a higher role may do all that a lower one may."""

    PUBLIC = 0
    VIEWER = 1
    ADMIN = 2


_ROLE = "wsgigate.admin_role"


def role_of(environ: WSGIEnvironment) -> Role:
    """Return the role of a request that was admitted."""
    role: Role = environ.get(_ROLE, Role.PUBLIC)
    return role


_TOKEN = re.compile(r"[\x21-\x7e]{32,1024}")

_IN_QUERY = re.compile(r"(?:^|&)(?:access_token|token|authorization)=", re.IGNORECASE)

_LONGEST_ADDRESS = 64

_CHALLENGE = (("WWW-Authenticate", 'Bearer realm="admin"'),)


def origin_of(text: str) -> str:
    """Return an allowed origin, such as ``https://ops.example.com``, as browsers write it.

    :raises ValueError: It is no origin: ``null``, a path, or another scheme.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = f"{parts.scheme}://{parts.netloc}"
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in text or plain != text:
        raise ValueError(f'an origin is as "https://ops.example.com", got {text!r}')
    default = 443 if parts.scheme == "https" else 80
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{name}" + ("" if port in (None, default) else f":{port}")


class AdminAccess:
    """Decides which role a request has.

    :param token: The token of the role ``admin``, 32 to 1024 visible ASCII characters.
    :param viewer_token: The token of the role ``viewer``.
    :param hosts: The hosts that may be requested beside loopback names. None: any host.
    :param origins: Origins of pages, beside the gateway's own, that may send requests.
    :param guard: Counts wrong tokens by address. None: they are not limited.
    :raises ValueError: An argument is invalid; the message begins with its name.
    """

    def __init__(
        self,
        token: str | None = None,
        viewer_token: str | None = None,
        *,
        hosts: Iterable[str] | None = None,
        origins: Iterable[str] = (),
        guard: TokenGuard | None = None,
    ) -> None:
        if token is not None and token == viewer_token:
            raise ValueError("viewer_token: must differ from the admin token, which may write")
        self._digests = {
            Role.ADMIN: _digest_of("token", "an admin token", token),
            Role.VIEWER: _digest_of("viewer_token", "a viewer token", viewer_token),
        }
        self._has_admin = token is not None
        self._has_any = self._has_admin or viewer_token is not None
        self._hosts = None if hosts is None else Hosts(hosts)
        self._origins = frozenset(map(origin_of, origins))
        self._guard = guard

    def __repr__(self) -> str:
        return "AdminAccess(...)"

    def admit(self, environ: WSGIEnvironment, required: Role) -> Role:
        """Return the role of a request, which is *required* or higher.

        A denied request is in the audit log.

        :raises Refusal: 401 without a valid token; 403 for a page of another origin, a host that is
            not allowed, a lower role, or without a token that has the role; 429 after too many
            wrong tokens; 400 for a token in the query.
        """
        if required is Role.PUBLIC:
            return Role.PUBLIC
        try:
            role = self._admitted(environ, required)
        except Refusal as refusal:
            audit_denied(environ, str(refusal))
            raise
        environ[_ROLE] = role
        return role

    def _admitted(self, environ: WSGIEnvironment, required: Role) -> Role:
        self._check_page(environ)
        if _IN_QUERY.search(environ.get("QUERY_STRING", "")):
            raise Refusal.of(
                400,
                "A token belongs in the Authorization field: a query ends up in logs.",
                "a token in the query",
            )
        if not (self._has_admin if required is Role.ADMIN else self._has_any):
            raise _without_token(required)
        role = self._role(environ)
        if role < required:
            raise Refusal.of(
                403,
                "The viewer token may only read; this requires the admin token.",
                "the viewer token was used to change something",
            )
        return role

    def _role(self, environ: WSGIEnvironment) -> Role:
        token = bearer(environ)
        given = sha256(token).digest()
        found = [role for role, known in self._digests.items() if compare_digest(given, known)]
        address = client_address(environ)[:_LONGEST_ADDRESS]
        if found:
            if self._guard is not None:
                self._guard.record_valid(address, token)
            return found[0]
        if token and self._guard is not None:
            self._guard.record_wrong(address, token)
        raise Refusal(
            Problem(401, "Admin token required!", headers=_CHALLENGE),
            "the admin token is missing or wrong",
        )

    def _check_page(self, environ: WSGIEnvironment) -> None:
        """Check that no page of another site sent the request.

        :raises Refusal: 403.
        """
        if from_another_site(environ) and environ.get("HTTP_ORIGIN") not in self._origins:
            raise Refusal.of(
                403,
                "Requests from other sites are not allowed.",
                "the request comes from a page of another origin, which admin.origins does not "
                "name",
            )
        # a trusted proxy has replaced the Host of its client by what it was configured to send
        if self._hosts is None or peer_trusted(environ):
            return
        try:
            host = host_of(environ)
        except BadTarget:
            host = ""
        if not names_loopback(host) and host not in self._hosts:
            raise Refusal.of(
                403,
                "This host is not one of the gateway's own: admin.hosts names further ones.",
                f"the Host {host[:256]!r} is neither a loopback name nor in admin.hosts",
            )


def _digest_of(name: str, what: str, token: str | None) -> bytes:
    if token is None:
        return secrets.token_bytes(32)  # equals no digest, and takes the same time to compare
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{name}: {what} is 32 to 1024 visible ASCII characters without spaces")
    return sha256(token.encode("ascii")).digest()


def _without_token(required: Role) -> Refusal:
    if required is Role.ADMIN:
        text = "This gateway has no admin token, so changes are disabled; admin.token enables them."
    else:
        text = (
            "This gateway has no admin token, so this cannot be read; admin.token or "
            "admin.viewer_token enables it."
        )
    return Refusal.of(403, text)
