"""Authentication by opaque bearer tokens, which the authorization server is asked about (RFC 7662).

The server's claims about a token become the identity of the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.bearer import has_other_scheme
from wsgigate.auth.challenge import TokenResponses, checked_scopes
from wsgigate.auth.claims import RequiredClaims
from wsgigate.auth.dpop import DEFAULT_ALGORITHMS
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
from wsgigate.auth.jwk import ASYMMETRIC
from wsgigate.auth.jwt import ClaimRules
from wsgigate.auth.outcomes import Outcomes
from wsgigate.coordination.sender import (
    MODES,
    ProofNotMarked,
    SenderBinding,
    SenderRejected,
    with_nonce,
)
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.problem import Refuse, answer_with, refused
from wsgigate.http.wsgi import CLAIMS, IDENTITY, is_preflight
from wsgigate.rules.arguments import OneOf, Range, Seconds, Trait, checked
from wsgigate.runtime.clocks import steady, wall
from wsgigate.store import Store

__all__ = ["IntrospectionAuthenticator"]

_NAME = "IntrospectionAuthenticator"

_OUTAGE = 5.0
"""Seconds after which a proof may be checked again if the store fails."""

_log = logging.getLogger("wsgigate.introspection")


@checked
class IntrospectionAuthenticator:
    """Authentication: allow requests with a token that the authorization server knows as active.

    For opaque tokens, and where a revoked token must be rejected within seconds: the server is
    asked about each token (OAuth 2.0 token introspection, RFC 7662), and its answer is remembered
    for *cache* seconds at most. The caller is in ``environ["wsgigate.identity"]``; its claims are
    the members of the answer.

    The token is read from the ``Authorization: Bearer`` field only, or with *dpop* from
    ``Authorization: DPoP``. Every invalid token gets the
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
        ``exp`` and *leeway*. A revoked token is accepted for as long.
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
    :param dpop: Whether tokens may be bound to a key of the client (``cnf.jkt`` of the answer),
        which it proves to have by a ``DPoP`` field (RFC 9449): ``"optional"`` accepts bearer tokens
        as well, and rejects a bound token without its proof; ``"required"`` accepts bound tokens
        only. Default: ``"off"``, a bound token is accepted as a bearer token.
    :param dpop_algorithms: The signature algorithms of proofs, all asymmetric.
    :param dpop_max_age: Maximum time since a proof was made, in seconds, 1 to 3600. Each is
        accepted once, by all workers that share the store.
    :param dpop_nonce_secret: The secret of which nonces are made that proofs must have
        (``DPoP-Nonce``), at least 32 bytes, the same on all gateways. Default: proofs need none.
    :param certificate_bound: The same as *dpop* for tokens that are bound to the certificate of the
        client's TLS connection (``cnf.x5t#S256``, RFC 8705), which is in
        ``environ["wsgigate.client_certificate"]``.
    :param hide_proof: Whether the ``DPoP`` field is removed before *app* is called.
    :param on_store_error: What to do when the store of used proofs fails: ``"refuse"`` every proof
        with 503, or ``"allow"`` those that are valid otherwise; counted in ``store_errors``.
    :param store: The store through which the workers share used proofs: a store, or the URL of
        one. Default: the private folder of the user that runs this program.
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
        dpop: Annotated[str, OneOf(MODES)] = "off",
        dpop_algorithms: Annotated[
            Sequence[Annotated[str, OneOf(ASYMMETRIC)]], Range(1)
        ] = DEFAULT_ALGORITHMS,
        dpop_max_age: Seconds = 60.0,
        dpop_nonce_secret: Annotated[str, Trait.SECRET] | None = None,
        certificate_bound: Annotated[str, OneOf(MODES)] = "off",
        hide_proof: bool = True,
        on_store_error: Annotated[str, OneOf(("refuse", "allow"))] = "refuse",
        store: Store | str | None = None,
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
        if on_store_error not in ("allow", "refuse"):
            raise ValueError(f'on_store_error is "allow" or "refuse", not {on_store_error!r}')
        self.app = app
        self._outcomes = Outcomes(SCHEME)
        refuse = self._outcomes.counting(refuse)
        self._binding = SenderBinding(
            dpop=dpop,
            certificate_bound=certificate_bound,
            algorithms=dpop_algorithms,
            max_age=dpop_max_age,
            nonce_secret=dpop_nonce_secret,
            hide_proof=hide_proof,
            allows_on_error=on_store_error == "allow",
            store=store,
            app=app,
            log=_log,
            clock=clock,
        )
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
            confirmation=self._binding.confirmation,
            cache=cache,
            inactive_cache=inactive_cache,
            size=cache_size,
            clock=clock,
            timer=timer,
        )
        self._find = self._introspector.find

        self._responses = TokenResponses(
            refuse,
            realm=realm,
            resource_metadata=resource_metadata,
            scopes=self._scopes,
            dpop=dpop,
            algorithms=self._binding.algorithms,
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if IDENTITY in environ and (self._required or not _of_other_kind(environ[IDENTITY])):
            del environ[IDENTITY]
            environ.pop(CLAIMS, None)
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        value: str = environ.get("HTTP_AUTHORIZATION", "")
        scheme, _, token = value.partition(" ")
        if scheme != "Bearer" and scheme.lower() != "bearer" and not self._binding.has_proof(value):
            if value and not has_other_scheme(value):
                # not shown: what stands in place of a scheme may be a secret
                reason = "bad token: the Authorization field is malformed or has several values"
                return self._rejected("invalid_token", reason, environ, start_response)
            if not self._required or (self._passes_preflights and is_preflight(environ)):
                self._outcomes.anonymous(environ)
                return self.app(environ, start_response)
            refused(environ, _NAME, "no token")
            return self._responses.missing(environ, start_response)
        try:
            found = self._find(token)
        except IntrospectionFailed as error:
            refused(environ, _NAME, str(error))
            return self._responses.unknown(error.again_in)(environ, start_response)
        caller = found.identity
        if caller is None:
            reason = f"bad token: {found.reason}"
            return self._rejected("invalid_token", reason, environ, start_response)
        if self._binding.active:
            try:
                nonce = self._binding.check(environ, found.bound, value)
            except SenderRejected as error:
                reason = f"bad token: {error}"
                return self._rejected(error.error, reason, environ, start_response, error.nonce)
            except ProofNotMarked as error:
                refused(environ, _NAME, str(error))
                return self._responses.unknown(_OUTAGE)(environ, start_response)
            if nonce is not None:
                start_response = with_nonce(start_response, nonce)
        if self._scopes and not self._scopes <= caller.scopes:
            missing = ", ".join(sorted(self._scopes - caller.scopes))
            reason = f"the token does not grant {missing}"
            return self._rejected("insufficient_scope", reason, environ, start_response)
        environ.pop(CLAIMS, None)  # those of another token
        environ[IDENTITY] = caller
        if self._hides:
            del environ["HTTP_AUTHORIZATION"]
        self._outcomes.accepted(environ)
        return self.app(environ, start_response)

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove what no app behind it gets from a client."""
        self._binding.hide(environ)
        scheme = environ.get("HTTP_AUTHORIZATION", "").partition(" ")[0].lower()
        if self._hides and scheme in ("bearer", "dpop"):
            del environ["HTTP_AUTHORIZATION"]

    @property
    def store_errors(self) -> int:
        """Number of proofs that could not be marked as used, as the store failed."""
        return self._binding.store_errors

    def close(self) -> None:
        """Close the store of proofs, and the idle connections unless *endpoints* was given."""
        self._binding.close()
        if self._owns:
            self._endpoints.close()

    def _rejected(
        self,
        error: str,
        reason: str,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        nonce: str = "",
    ) -> Iterable[bytes]:
        """Reject the token of a request with the code *error*, for *reason*."""
        refused(environ, _NAME, reason)
        with_proof = self._binding.has_proof(environ.get("HTTP_AUTHORIZATION", ""))
        response = self._responses.of(error, with_proof=with_proof, nonce=nonce)
        return response(environ, start_response)


def _of_other_kind(caller: object) -> bool:
    """Return whether *caller* is an identity that was verified by another credential."""
    return isinstance(caller, Identity) and caller.scheme != SCHEME
