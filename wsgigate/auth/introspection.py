"""OAuth 2.0 token introspection (RFC 7662): what an authorization server knows of a token.

Theory of operation. Only the server that issued an opaque token knows whether it is valid. Asking
it for each request would make it part of every request, so answers are remembered for a short time.
Rules that must hold:

- A token is accepted only by an answer with ``"active": true``, the JSON value itself. Any other
  answer than a well-formed one leaves it unknown whether the token is valid, which is neither a
  reason to accept nor to call it invalid.
- An answer is remembered from the moment before it was asked for, until the token expires, and for
  *cache* seconds at most: that is how long a revoked token is still accepted. Times are measured by
  a monotonic clock, so that setting the system's clock back prolongs nothing.
- Answers are remembered under a hash of the endpoint, the client and the token; the token itself is
  kept nowhere. Invalid tokens have a cache of their own: anyone can send any number of them, which
  must not displace the valid ones.
- Requests with one token that arrive together make one exchange (:mod:`~.runtime.shared_calls`).
- Every worker asks for itself. Sharing the answers would put the claims of users into the store,
  and saves an exchange per worker and minute.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import quote_plus, urlencode

from wsgigate.auth.claims import DEEPEST, is_deeper
from wsgigate.auth.identity import Identity
from wsgigate.auth.jwt import ClaimRules, TokenRejected, has_control
from wsgigate.auth.token_cache import TokenCache
from wsgigate.client.endpoint import EndpointFailed, RemoteEndpoint, check_url
from wsgigate.http.bodies import InvalidJson, read_object, shown
from wsgigate.runtime.clocks import steady, wall
from wsgigate.runtime.logs import one_line
from wsgigate.runtime.shared_calls import CallAbandoned, SharedCalls

__all__ = [
    "AUTH_METHODS",
    "SCHEME",
    "Introspected",
    "IntrospectionFailed",
    "IntrospectionRequest",
    "Introspector",
    "check_endpoint",
]

SCHEME = "introspection"
"""The ``scheme`` of the identities."""

AUTH_METHODS = ("client_secret_basic", "client_secret_post")
"""How a client authenticates (RFC 6749 section 2.3.1), by the names of OpenID Connect."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 section 2.1

MAX_LENGTH = 8192
"""Maximum length of a token in characters."""

_JSON = re.compile(r"application/(?:[a-z0-9.-]+\+)?json", re.IGNORECASE)


class IntrospectionFailed(Exception):
    """It is not known whether a token is valid; the message is for the operator only.

    :ivar again_in: Seconds after which another request may succeed.
    """

    def __init__(self, why: str, again_in: float = 1.0) -> None:
        super().__init__(why)
        self.again_in = again_in


def check_endpoint(url: str) -> None:
    """Check that tokens may be sent to *url*.

    :raises ValueError: They may not; the message begins with ``endpoint``.
    """
    check_url(
        url,
        "endpoint",
        example="https://id.example.com/oauth2/introspect",
        plain=", as tokens are sent there, and the answer decides; http is allowed for this "
        "machine only",
    )


class IntrospectionRequest:
    """The request about a token, with the credentials by which the gateway itself authenticates.

    :param client_id: The client id of the gateway.
    :param client_secret: Its secret.
    :param bearer_token: A bearer token instead of these.
    :param method: One of :data:`AUTH_METHODS`.
    :param hint: The ``token_type_hint``; None for none.
    :raises ValueError: An argument is invalid or missing; the message names it.
    :ivar client: The client id; empty with a bearer token.
    """

    def __init__(
        self,
        client_id: str | None,
        client_secret: str | None,
        bearer_token: str | None,
        method: str = "client_secret_basic",
        hint: str | None = None,
    ) -> None:
        if method not in AUTH_METHODS:
            listed = " or ".join(f'"{name}"' for name in AUTH_METHODS)
            raise ValueError(f"auth_method is {listed}, not {method!r}")
        if hint is not None and not (isinstance(hint, str) and hint):
            raise ValueError(f'token_type_hint: a text such as "access_token", not {hint!r}')
        self.client = client_id or ""
        self._form = {} if hint is None else {"token_type_hint": hint}
        self._fields = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/x-www-form-urlencoded",
            "User-Agent": "wsgigate",
        }
        if bearer_token is not None:
            if client_id is not None or client_secret is not None:
                raise ValueError("bearer_token: mutually exclusive with client_id")
            if not isinstance(bearer_token, str) or not _TOKEN.fullmatch(bearer_token):
                raise ValueError("bearer_token: not a bearer token (RFC 6750 section 2.1)")
            self._fields["Authorization"] = f"Bearer {bearer_token}"
            return
        if not isinstance(client_id, str) or not client_id:
            raise ValueError(
                "client_id: required, with client_secret, as the server answers authenticated "
                "clients only (RFC 7662 section 2.1); or give bearer_token"
            )
        if not isinstance(client_secret, str) or not client_secret:
            raise ValueError("client_secret: required with client_id")
        if method == "client_secret_post":
            self._form |= {"client_id": client_id, "client_secret": client_secret}
            return
        # Each is form-encoded first (RFC 6749 section 2.3.1): else a colon would end the id.
        pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
        self._fields["Authorization"] = f"Basic {b64encode(pair.encode('ascii')).decode('ascii')}"

    def ask(self, endpoint: RemoteEndpoint, token: str) -> dict[str, Any] | None:
        """Return what *endpoint* answers about *token*; None if the token is not active.

        :raises IntrospectionFailed: It answers nothing that can be relied on.
        """
        form = urlencode({"token": token, **self._form}).encode("ascii")
        try:
            reply = endpoint.ask("POST", self._fields, form, failures=_is_failure)
        except EndpointFailed as error:
            raise IntrospectionFailed(f"the endpoint failed: {error}", error.again_in) from error
        if reply.status != 200:
            raise IntrospectionFailed(f"the endpoint answered {reply.status}")
        kind = ", ".join(reply.values("content-type")).partition(";")[0].strip(" \t")
        if not _JSON.fullmatch(kind):
            raise IntrospectionFailed(f"the endpoint answered with the type {shown(kind)}")
        try:
            claims = read_object(reply.body, "response")
        except InvalidJson as error:
            raise IntrospectionFailed(f"the endpoint sent {one_line(error)}") from None
        active = claims.pop("active", None)
        if active is not True and active is not False:
            raise IntrospectionFailed(f"active is {shown(active)}, neither true nor false")
        if is_deeper(claims, DEEPEST):
            raise IntrospectionFailed(f"the endpoint sent claims of more than {DEEPEST} levels")
        return claims if active else None

    def probe(self, endpoint: RemoteEndpoint) -> str:
        """Ask about a token that does not exist; return why that fails, empty if it does not."""
        try:
            self.ask(endpoint, "wsgigate-check")
        except IntrospectionFailed as error:
            return str(error)
        return ""


_PROVOKED = frozenset((400, 403, 413, 414, 422, 431, 500))
"""Errors that a token may cause, as at a web application firewall in front of the endpoint."""


def _is_failure(status: int) -> bool:
    """Return whether *status* is a failure of the endpoint, whatever the token was."""
    return status != 200 and status not in _PROVOKED


class Introspected(NamedTuple):
    """What is known of a token.

    :ivar until: Time of the monotonic clock until which it is remembered.
    :ivar identity: The caller; None if the token is invalid.
    :ivar reason: Why it is, for the log.
    :ivar bound: What its sender must have (``cnf``), if that is checked.
    """

    until: float
    identity: Identity | None
    reason: str = ""
    bound: Mapping[str, Any] | None = None


class Introspector:
    """Asks one endpoint about tokens, and remembers its answers.

    :param endpoint: The endpoint.
    :param request: The request about a token.
    :param rules: What the claims of a token must satisfy.
    :param confirmation: Returns what the token of the given claims is bound to, and raises
        :class:`~.jwt.TokenRejected` if that is malformed.
    :param cache: Maximum seconds for which a valid token is remembered.
    :param inactive_cache: Seconds for which an invalid token is remembered.
    :param size: Maximum number of tokens that are remembered, of each kind.
    :param clock: Returns the Unix time.
    :param timer: Returns monotonic seconds.
    """

    def __init__(
        self,
        endpoint: RemoteEndpoint,
        request: IntrospectionRequest,
        rules: ClaimRules,
        *,
        confirmation: Callable[[Mapping[str, Any]], Mapping[str, Any] | None],
        cache: float = 60.0,
        inactive_cache: float = 5.0,
        size: int = 10_000,
        clock: Callable[[], float] = wall,
        timer: Callable[[], float] = steady,
    ) -> None:
        self._endpoint = endpoint
        self._request = request
        self._rules = rules
        self._confirmation = confirmation
        self._cache = cache
        self._inactive_cache = inactive_cache
        self._active = TokenCache[Introspected](size)
        self._inactive = TokenCache[Introspected](size)
        self._clock = clock
        self._timer = timer
        self._calls = SharedCalls[Introspected](
            most=endpoint.max_concurrent, brief=endpoint.patience
        )
        self._hash = sha256()
        for part in (endpoint.origin + endpoint.target, request.client):
            self._hash.update(f"{len(part)}:{part}".encode("utf-8", "replace"))

    def find(self, token: str) -> Introspected:
        """Return what is known of *token*, after asking the endpoint if nothing is.

        :raises IntrospectionFailed: It is not known whether the token is valid.
        """
        hashed = self._hash.copy()
        hashed.update(token.encode("utf-8", "replace"))
        name = hashed.digest()
        now = self._timer()
        found = self._active.get(name)
        if found is not None and now < found.until:
            return found
        found = self._inactive.get(name)
        if found is not None and now < found.until:
            return found
        if len(token) > MAX_LENGTH or not _TOKEN.fullmatch(token):
            return Introspected(0.0, None, "not the form of a token (RFC 6750 section 2.1)")
        try:
            return self._calls.make(name, lambda: self._ask(name, token), self._endpoint.timeout)
        except CallAbandoned as error:
            raise IntrospectionFailed(f"no answer about the token: {error}") from error

    def _ask(self, name: bytes, token: str) -> Introspected:
        began = self._timer()
        claims = self._request.ask(self._endpoint, token)
        found = self._judged(claims, began)
        (self._inactive if found.identity is None else self._active).put(name, found)
        return found

    def _judged(self, claims: dict[str, Any] | None, began: float) -> Introspected:
        """Return what *claims* of the server's mean, by the rules; None for an inactive token."""
        until = began + self._inactive_cache
        if claims is None:
            return Introspected(until, None, "the server does not know it as active")
        now = self._clock()
        # Some servers send each member that they know, Ory Hydra an empty audience, for none.
        claims = {name: value for name, value in claims.items() if value is not None}
        if claims.get("aud") == []:
            del claims["aud"]
        try:
            # exp is optional here (section 2.2): without it the answer is valid while it is new
            ends = self._rules.check({"exp": now + max(1.0, self._cache), **claims}, now)
            bound = self._confirmation(claims)
            caller = identity_of(claims)
            if caller.subject is not None and has_control(caller.subject):
                raise TokenRejected(f"username is {shown(caller.subject)}")
        except TokenRejected as error:
            return Introspected(until, None, str(error))
        return Introspected(began + min(self._cache, ends - now), caller, bound=bound)


def identity_of(claims: dict[str, Any]) -> Identity:
    """Return the caller: its subject is ``sub``, else ``username`` (RFC 7662 section 2.2)."""
    username = claims.get("username")
    caller = Identity.from_claims(claims, scheme=SCHEME)
    if caller.subject is None and isinstance(username, str) and username:
        return Identity(username, SCHEME, caller.issuer, caller.client, claims, caller.scopes)
    return caller
