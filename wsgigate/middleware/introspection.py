"""Authentication by opaque bearer tokens, which the authorization server is asked about (RFC 7662).

The server's claims about a token become the identity of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import Annotated, Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.bearer import has_other_scheme
from wsgigate.auth.challenge import (
    CredentialsMissing,
    bearer_challenge,
    check_realm,
    check_resource_metadata,
    checked_scopes,
)
from wsgigate.auth.claims import RequiredClaims
from wsgigate.auth.endpoints import RemoteEndpoints
from wsgigate.auth.identity import Identity
from wsgigate.auth.introspection import (
    AUTH_METHODS,
    SCHEME,
    IntrospectionFailed,
    IntrospectionRequest,
    Introspector,
    check_endpoint,
)
from wsgigate.auth.jwt import ClaimRules
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.wsgi import CLAIMS, IDENTITY, is_preflight
from wsgigate.rules.arguments import OneOf, Range, Seconds, Trait, checked
from wsgigate.runtime.clocks import steady, wall

__all__ = ["IntrospectionAuthenticator"]


@checked
class IntrospectionAuthenticator:
    """Authentication: allow requests with a token that the authorization server knows as active.

    For opaque tokens, and where a revoked token must be rejected within seconds: the server is
    asked about each token (OAuth 2.0 token introspection, RFC 7662), and its answer is remembered
    for *cache* seconds at most. The caller is in ``environ["wsgigate.identity"]``; its claims are
    the members of the answer.

    The token is read from the ``Authorization: Bearer`` field only. Every invalid token gets the
    same response; the cause is in ``environ["wsgigate.reason"]``, for the log. If the server does
    not answer, or not with what RFC 7662 requires, tokens get a 503 with ``Retry-After``: nothing
    passes, and no valid token is called invalid. Requests do not wait for a server that keeps
    failing.

    An optional middleware keeps the identity of an authenticator around it if a request has no
    token.

    :param app: The WSGI application to protect.
    :param endpoint: The URL of the introspection endpoint, ``"https://..."``. Plain ``http`` is
        allowed for this machine only.
    :param client_id: The id by which the gateway authenticates to the server.
    :param client_secret: The secret that belongs to it.
    :param auth_method: How it authenticates: ``"client_secret_basic"``, in ``Authorization``, or
        ``"client_secret_post"``, in the form.
    :param bearer_token: A token by which the gateway authenticates, instead of *client_id*.
    :param token_type_hint: The ``token_type_hint`` to send, such as ``"access_token"``. Default:
        none.
    :param ca: A file of trusted certificate authorities. Default: those of the package ``certifi``.
    :param timeout: Maximum time for an answer, in seconds.
    :param max_concurrent: Maximum number of exchanges with the server at a time in each worker.
        Other requests wait for at most a second, and then get a 503.
    :param cache: Maximum time for which a valid token is remembered, in seconds; never beyond its
        ``exp``. A revoked token is accepted for as long.
    :param inactive_cache: Time for which an invalid token is remembered, in seconds.
    :param cache_size: Maximum number of tokens that are remembered, valid and invalid ones each.
    :param issuer: Expected issuer (``"iss"``) of the answers; the comparison is exact.
    :param audience: Expected audience (``"aud"``): one or several names of this gateway, of which
        the token must contain one. Without it, a token that has an audience is rejected.
    :param leeway: Allowed clock skew: the difference to the server's clock, in seconds.
    :param required_claims: Paths of claims that a token must have, or a table of paths and values,
        such as ``token_type`` and ``"Bearer"``: the claim must equal the value, or one of a list
        of values; a claim that is a list must contain one of them.
    :param required: Whether a request without a token is rejected. An invalid token always is.
    :param exempt: Requests that pass unchecked and without an identity: a function of ``environ``,
        or a table of ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a
        :class:`Limiter`.
    :param preflights: Whether CORS preflight requests require a token, which browsers never send.
        Default: they pass without an identity.
    :param scopes: Scopes that the token must grant, all of them; otherwise the response is 403.
    :param realm: The name of the protected area, in ``WWW-Authenticate``.
    :param resource_metadata: The URL of the metadata of this resource (RFC 9728), in
        ``WWW-Authenticate``, by which clients find the authorization server.
    :param hide_credentials: Whether ``Authorization`` is removed before *app* is called.
    :param endpoints: The endpoints that several middlewares share. Default: its own.
    :param clock: Returns the Unix time in seconds.
    :param timer: Returns monotonic seconds.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid or missing; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        endpoint: str,
        *,
        client_id: str | None = None,
        client_secret: Annotated[str, Trait.SECRET] | None = None,
        auth_method: Annotated[str, OneOf(AUTH_METHODS)] = "client_secret_basic",
        bearer_token: Annotated[str, Trait.SECRET] | None = None,
        token_type_hint: str | None = None,
        ca: str | None = None,
        timeout: Seconds = 5.0,
        max_concurrent: Annotated[int, Range(1, 1000)] = 16,
        cache: Annotated[Seconds, Range(0)] = 60.0,
        inactive_cache: Annotated[Seconds, Range(0)] = 5.0,
        cache_size: Annotated[int, Range(0)] = 10_000,
        issuer: str | None = None,
        audience: str | Annotated[Sequence[str], Range(1)] | None = None,
        leeway: Annotated[Seconds, Range(0)] = 30.0,
        required_claims: RequiredClaims = (),
        required: bool = True,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        scopes: Sequence[str] = (),
        realm: str = "api",
        resource_metadata: str | None = None,
        hide_credentials: bool = False,
        endpoints: RemoteEndpoints | None = None,
        clock: Callable[[], float] = wall,
        timer: Callable[[], float] = steady,
        refuse: Refuse = answer_with,
    ) -> None:
        check_endpoint(endpoint)
        if scopes and not required:
            raise ValueError(
                "scopes: cannot be required where a token is optional (required=False)"
            )
        for name, seconds in (("cache", cache), ("inactive_cache", inactive_cache)):
            if not 0 <= seconds <= 86_400:
                raise ValueError(f"{name}: 0 to 86400 seconds, not {seconds!r}")
        request = IntrospectionRequest(
            client_id, client_secret, bearer_token, auth_method, token_type_hint
        )
        rules = ClaimRules(
            issuer=issuer, audience=audience, leeway=leeway, required_claims=required_claims
        )
        check_realm(realm)
        check_resource_metadata(resource_metadata)
        self.app = app
        self._exempt = exempt_of(exempt)
        self._required = required
        self._passes_preflights = required and not preflights
        self._scopes = checked_scopes(scopes)
        self._hides = hide_credentials
        self._owns = endpoints is None
        self._endpoints = RemoteEndpoints() if endpoints is None else endpoints
        self._introspector = Introspector(
            self._endpoints.get(
                endpoint,
                probe=request.probe,
                ca=ca,
                timeout=timeout,
                max_concurrent=max_concurrent,
            ),
            request,
            rules,
            cache=cache,
            inactive_cache=inactive_cache,
            size=cache_size,
            clock=clock,
            timer=timer,
        )
        self._find = self._introspector.find

        def answer(
            status: int, detail: str, error: str = "", scope: Iterable[str] = ()
        ) -> WSGIApplication:
            challenge = bearer_challenge(
                realm, error=error, scope=scope, resource_metadata=resource_metadata
            )
            kind = Problem if error else CredentialsMissing
            return refuse(kind(status, detail, headers=(challenge,)))

        self._missing = answer(401, "Access token required!")
        self._invalid = answer(401, "Invalid or expired token!", "invalid_token")
        self._insufficient = answer(403, "Insufficient scope.", "insufficient_scope", self._scopes)
        self._refuse = refuse

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if IDENTITY in environ and (self._required or not _of_other_kind(environ[IDENTITY])):
            del environ[IDENTITY]
            environ.pop(CLAIMS, None)
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        value: str = environ.get("HTTP_AUTHORIZATION", "")
        scheme, _, token = value.partition(" ")
        if scheme != "Bearer" and scheme.lower() != "bearer":
            if value and not has_other_scheme(value):
                # not shown: what stands in place of a scheme may be a secret
                reason = "bad token: the Authorization field is malformed or has several values"
                return self._rejected(self._invalid, reason, environ, start_response)
            if not self._required or (self._passes_preflights and is_preflight(environ)):
                return self.app(environ, start_response)
            return self._rejected(self._missing, "no token", environ, start_response)
        try:
            found = self._find(token)
        except IntrospectionFailed as error:
            again = (("Retry-After", str(max(1, ceil(error.again_in)))),)
            unknown = Problem(503, "Tokens cannot be checked at the moment.", headers=again)
            return self._rejected(self._refuse(unknown), str(error), environ, start_response)
        caller = found.identity
        if caller is None:
            reason = f"bad token: {found.reason}"
            return self._rejected(self._invalid, reason, environ, start_response)
        if self._scopes and not self._scopes <= caller.scopes:
            missing = ", ".join(sorted(self._scopes - caller.scopes))
            reason = f"the token does not grant {missing}"
            return self._rejected(self._insufficient, reason, environ, start_response)
        environ.pop(CLAIMS, None)  # those of another token
        environ[IDENTITY] = caller
        if self._hides:
            del environ["HTTP_AUTHORIZATION"]
        return self.app(environ, start_response)

    @property
    def hides(self) -> frozenset[str]:
        """The ``environ`` keys that no app behind it gets from a client."""
        return frozenset({"HTTP_AUTHORIZATION"} if self._hides else ())

    def close(self) -> None:
        """Close the idle connections, unless *endpoints* was given."""
        if self._owns:
            self._endpoints.close()

    def _rejected(
        self,
        response: WSGIApplication,
        reason: str,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        refused(environ, "IntrospectionAuthenticator", reason)
        return response(environ, start_response)


def _of_other_kind(caller: object) -> bool:
    """Return whether *caller* is an identity that was verified by another credential."""
    return isinstance(caller, Identity) and caller.scheme != SCHEME
