"""Authentication by bearer tokens (RFC 6750) that are JSON Web Tokens.

The middleware verifies the token and puts its claims into ``environ`` for the apps behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Annotated, Any, NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.bearer import has_other_scheme
from wsgigate.auth.challenge import TokenResponses, checked_scopes
from wsgigate.auth.claims import DEEPEST, RequiredClaims, is_deeper
from wsgigate.auth.dpop import DEFAULT_ALGORITHMS
from wsgigate.auth.identity import Identity
from wsgigate.auth.issuers import (
    ISSUER_OPTIONS,
    Issuers,
    SecretText,
    TokenIssuer,
    issuers_of,
)
from wsgigate.auth.jwk import ALGORITHMS, ASYMMETRIC, KeySet, KeyText
from wsgigate.auth.jwks import KeySource, KeySources, KeysUnavailable
from wsgigate.auth.jwt import (
    KINDS,
    MAX_LENGTH,
    TokenRejected,
    read_compact,
)
from wsgigate.auth.outcomes import Outcomes
from wsgigate.auth.token_cache import TokenCache
from wsgigate.coordination.denylist import GRACE, DenyList, TokenIdentity, identity
from wsgigate.coordination.sender import (
    MODES,
    ProofNotMarked,
    SenderBinding,
    SenderRejected,
    with_nonce,
)
from wsgigate.http.bodies import InvalidJson
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.problem import Refuse, answer_with, refused
from wsgigate.http.wsgi import CLAIMS, IDENTITY, is_preflight
from wsgigate.rules.arguments import OneOf, Range, Seconds, Trait, checked
from wsgigate.runtime.clocks import wall
from wsgigate.runtime.logs import ThrottledLog
from wsgigate.store import Store, StoreError

__all__ = ["Authenticator"]

_OUTAGE = 5.0
"""Seconds after which a token may be checked again if the store fails."""

_log = logging.getLogger("wsgigate.authenticator")


class Verified(NamedTuple):
    """A token with a valid signature.

    :ivar nested: The names of the claims that hold lists or objects, which are copied for each
        request.
    :ivar until: Unix time at which it expires.
    :ivar missing: The required scopes that it does not grant.
    :ivar identity: The verified caller.
    :ivar entries: The names by which it can be denied.
    :ivar source: The keys of its issuer.
    :ivar keys: Those that verified it: it is verified again once *source* has others.
    :ivar bound: What its sender must have (``cnf``), if that is checked.
    """

    claims: dict[str, Any]
    nested: tuple[str, ...]
    until: float
    missing: frozenset[str]
    identity: Identity
    entries: TokenIdentity
    source: KeySource
    keys: KeySet
    bound: Mapping[str, Any] | None = None


@checked
class Authenticator:
    """Authentication: allow requests with a valid token (JWT) only.

    The caller is in ``environ["wsgigate.identity"]``, the claims in ``environ["wsgigate.claims"]``.

    The token is read from the ``Authorization: Bearer`` field only, or with *dpop* from
    ``Authorization: DPoP``. It must be signed by one of the
    issuer's keys with one of the given algorithms, and have an expiry (``exp``). Every invalid
    token gets the same response; the cause is in ``environ["wsgigate.reason"]``, for the log.

    The keys are *secret*, *public_key*, *jwks* or *jwks_file*. Without any of them, they are those
    that the discovery document of *issuer* names (OpenID Connect Discovery, RFC 8414). Keys are
    fetched in the background, by one worker for all that share the store, and the last good ones
    are used for 24 hours. An unknown key id makes the issuer be asked again, at most once in
    *jwks_cooldown*: the token gets a 401 if the issuer does not list its key, and 503 with
    ``Retry-After`` if the keys cannot be fetched.

    An optional middleware keeps the identity of an authenticator around it, by another credential
    than a token, if a request has no token.

    A verified token is cached by its hash until it expires or the keys of its issuer change. Each
    request gets a copy of the claims, which it may change.

    :param app: The WSGI application to protect.
    :param algorithms: Signature algorithms, such as ``["RS256"]``; symmetric and asymmetric
        algorithms cannot be mixed. Default with *jwks*, *jwks_file* or discovery: every asymmetric
        algorithm that a key is for.
    :param secret: The secret of HS256, HS384 and HS512 tokens, or several during rotation.
    :param public_key: The public key that verifies RS, PS, ES and EdDSA tokens, as PEM text or DER
        bytes, or several during rotation. A certificate is accepted; only its key is used.
    :param jwks: The URL of the issuer's keys (JWK set), ``"https://..."``, or a JWK or JWK set as
        text. Plain ``http`` is allowed for this machine only.
    :param jwks_file: A file that contains a JWK or a JWK set; it is read again when it changes.
    :param ca: A file of trusted certificate authorities, for fetching keys. Default: those of the
        package ``certifi``.
    :param jwks_refresh: Time until keys are fetched again, in seconds; sooner if the issuer's
        ``Cache-Control`` says so, at most once a minute.
    :param jwks_cooldown: Minimum time between two attempts to fetch keys, in seconds.
    :param issuers: Several issuers, each a table of its own *issuer*, keys, *algorithms*,
        *audience*, and claim rules, instead of these options. The token's ``iss`` selects the
        issuer, by whose options alone the token is then verified.
    :param issuer: Expected issuer (``"iss"``); the comparison is exact. Without other keys, an
        ``https://`` URL whose discovery document names the URL of the keys.
    :param audience: Expected audience (``"aud"``): one or several names of this gateway, of which
        the token must contain one. Without it, a token that has an audience is rejected.
    :param required: Whether a request without a token is rejected. An invalid token always is.
    :param exempt: Requests that pass unchecked and without claims: a function of ``environ``, or
        a table of ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a :class:`Limiter`.
    :param preflights: Whether CORS preflight requests require a token, which browsers never send.
        Default: they pass without claims, so that a page can read the response that follows.
    :param scopes: Scopes that the token must grant, all of them; otherwise the response is 403.
    :param invalid_token_status: Status for an invalid token: 401 (RFC 6750) or 403.
    :param leeway: Allowed clock skew: the difference to the issuer's clock, in seconds.
    :param max_lifetime: Maximum lifetime of a token, ``iat`` to ``exp``, in seconds. Default: no
        limit.
    :param max_age: Maximum time since a token was issued (``iat``), in seconds. Default: no limit.
    :param typ: Required type in the token's header (``"typ"``), such as ``"at+jwt"`` for the access
        tokens of RFC 9068.
    :param required_claims: Paths of claims that a token must have, or a table of paths and values,
        such as ``token_type`` and ``"access"``: the claim must equal the value, or one of a list
        of values; a claim that is a list must contain one of them. ``realm_access.roles`` is a
        claim inside another.
    :param also_accept: Kinds of tokens that are accepted although they are not access tokens:
        ``"refresh"`` on the route where tokens are refreshed, ``"id"``, ``"logout"``, ``"action"``
        (password reset, address verification), ``"event"``, ``"proof"``, ``"request"`` or
        ``"introspection"``. By default a token is rejected if
        the ``typ`` of its header, or its claim ``typ``, ``type`` or ``token_type``, names one of
        these (RFC 8725 section 3.11).
    :param realm: The name of the protected area, in ``WWW-Authenticate``.
    :param resource_metadata: The URL of the metadata of this resource (RFC 9728), in
        ``WWW-Authenticate``, by which clients find the authorization server.
    :param dpop: Whether tokens may be bound to a key of the client, which it proves to have by a
        ``DPoP`` field (RFC 9449): ``"optional"`` accepts bearer tokens as well, and rejects a bound
        token without its proof; ``"required"`` accepts bound tokens only. Default: ``"off"``, a
        bound token is accepted as a bearer token.
    :param dpop_algorithms: The signature algorithms of proofs, all asymmetric.
    :param dpop_max_age: Maximum time since a proof was made, in seconds, 1 to 3600. Each is
        accepted once, by all workers that share the store.
    :param dpop_nonce_secret: The secret of which nonces are made that proofs must have
        (``DPoP-Nonce``), at least 32 bytes, the same on all gateways. Default: proofs need none.
    :param certificate_bound: The same as *dpop* for tokens that are bound to the certificate of the
        client's TLS connection (RFC 8705), which is in ``environ["wsgigate.client_certificate"]``.
    :param hide_proof: Whether the ``DPoP`` field is removed before *app* is called.
    :param cache_size: Maximum number of cached tokens.
    :param deny_list: Tokens that are rejected before they expire. It is checked for each request,
        for cached tokens too.
    :param on_store_error: What to do when the store of the deny list, or of used proofs, fails:
        ``"refuse"`` every such token with 503, or ``"allow"`` those that are valid otherwise;
        counted in ``store_errors``.
    :param store: The store through which the workers share fetched keys and used proofs: a store,
        or the URL of one. Default: the private folder of the user that runs this program.
    :param key_sources: The key sources that several authenticators share. Default: its own.
    :param clock: Returns the Unix time in seconds.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid, or a key is missing, weak or of the wrong type; the
        message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        algorithms: Annotated[Sequence[Annotated[str, OneOf(ALGORITHMS)]], Range(1)] | None = None,
        secret: SecretText | Annotated[Sequence[SecretText], Range(1)] | None = None,
        public_key: KeyText | Annotated[Sequence[KeyText], Range(1)] | None = None,
        jwks: str | Mapping[str, Any] | None = None,
        jwks_file: str | None = None,
        ca: str | None = None,
        jwks_refresh: Seconds = 600.0,
        jwks_cooldown: Seconds = 30.0,
        issuers: Sequence[TokenIssuer | Mapping[str, Any]] | None = None,
        issuer: str | None = None,
        audience: str | Annotated[Sequence[str], Range(1)] | None = None,
        required: bool = True,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        scopes: Sequence[str] = (),
        invalid_token_status: Annotated[int, Range(401, 403)] = 401,
        leeway: Annotated[Seconds, Range(0)] = 30.0,
        max_lifetime: Seconds | None = None,
        max_age: Seconds | None = None,
        typ: str | None = None,
        required_claims: RequiredClaims = (),
        also_accept: Sequence[Annotated[str, OneOf(KINDS)]] = (),
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
        cache_size: Annotated[int, Range(0)] = 10_000,
        deny_list: DenyList | None = None,
        on_store_error: Annotated[str, OneOf(("refuse", "allow"))] = "refuse",
        store: Store | str | None = None,
        key_sources: KeySources | None = None,
        clock: Callable[[], float] = wall,
        refuse: Refuse = answer_with,
    ) -> None:
        if invalid_token_status not in (401, 403):
            raise ValueError(f"invalid_token_status is 401 or 403, not {invalid_token_status!r}")
        if scopes and not required:
            raise ValueError(
                "scopes: cannot be required where a token is optional (required=False)"
            )
        if on_store_error not in ("allow", "refuse"):
            raise ValueError(f'on_store_error is "allow" or "refuse", not {on_store_error!r}')
        if deny_list is not None and not isinstance(deny_list, DenyList):
            raise ValueError(f"deny_list: expected a DenyList, not {deny_list!r}")
        self.app = app
        self._outcomes = Outcomes("bearer")
        refuse = self._outcomes.counting(refuse)
        self._exempt = exempt_of(exempt)
        self._passes_preflights = required and not preflights
        self._own_sources = KeySources(store, app) if key_sources is None else None
        make = partial(TokenIssuer, key_sources=key_sources or self._own_sources)
        options: dict[str, Any] = {
            "issuer": issuer,
            "algorithms": algorithms,
            "secret": secret,
            "public_key": public_key,
            "jwks": jwks,
            "jwks_file": jwks_file,
            "ca": ca,
            "jwks_refresh": jwks_refresh,
            "jwks_cooldown": jwks_cooldown,
            "audience": audience,
            "leeway": leeway,
            "max_lifetime": max_lifetime,
            "max_age": max_age,
            "typ": typ,
            "required_claims": required_claims,
            "also_accept": also_accept,
        }
        if issuers is None:
            self._issuers = Issuers([make(**options)])
        else:
            _check_alone(options)
            self._issuers = issuers_of(issuers, make)
        longest = self._issuers.leeway
        if deny_list is not None and longest > GRACE:
            raise ValueError(f"leeway: at most {GRACE:g} s with a deny_list, not {longest:g}")
        self._deny_list = deny_list
        self._allows_on_error = on_store_error == "allow"
        effect = "passed unchecked" if self._allows_on_error else "were rejected"
        self._outages = ThrottledLog(
            _log.error,
            f"the deny-list cannot be read, %s tokens {effect} since the last such message: %s",
            clock,
        )
        self._scopes = checked_scopes(scopes)
        self._cache = TokenCache[Verified](cache_size)
        self._clock = clock
        self._binding = SenderBinding(
            dpop=dpop,
            certificate_bound=certificate_bound,
            algorithms=dpop_algorithms,
            max_age=dpop_max_age,
            nonce_secret=dpop_nonce_secret,
            hide_proof=hide_proof,
            allows_on_error=self._allows_on_error,
            store=store,
            app=app,
            log=_log,
            clock=clock,
        )
        # one question for both, so that a token without either costs nothing more
        self._further = self._binding.active or deny_list is not None
        self._responses = TokenResponses(
            refuse,
            realm=realm,
            resource_metadata=resource_metadata,
            scopes=self._scopes,
            dpop=dpop,
            algorithms=self._binding.algorithms,
            invalid_status=invalid_token_status,
        )
        self._required = required
        self._without_token = self._no_token if required else self._anonymous

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.pop(CLAIMS, None)
        if IDENTITY in environ and (self._required or not _of_other_kind(environ[IDENTITY])):
            del environ[IDENTITY]
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        value: str | None = environ.get("HTTP_AUTHORIZATION")
        if not value:
            if self._passes_preflights and is_preflight(environ):
                return self.app(environ, start_response)
            return self._without_token(environ, start_response)
        try:
            verified = self._verified(value)
        except (InvalidJson, TokenRejected) as error:
            refused(environ, "Authenticator", f"bad token: {error}")
            return self._response("invalid_token", value)(environ, start_response)
        except KeysUnavailable as error:
            refused(environ, "Authenticator", str(error))
            return self._responses.unknown(error.again_in)(environ, start_response)
        if verified is None:
            return self._without_token(environ, start_response)
        if self._further:
            refusal, nonce = self._checked_further(value, verified, environ)
            if refusal is not None:
                return refusal(environ, start_response)
            if nonce is not None:
                start_response = with_nonce(start_response, nonce)
        environ[IDENTITY] = verified.identity  # also of a rejected request, for the access log
        if verified.missing:
            refused(
                environ,
                "Authenticator",
                f"the token does not grant {', '.join(sorted(verified.missing))}",
            )
            return self._response("insufficient_scope", value)(environ, start_response)
        environ[CLAIMS] = claims = verified.claims.copy()
        for name in verified.nested:
            claims[name] = _copied(claims[name])
        self._outcomes.accepted(environ)
        return self.app(environ, start_response)

    def close(self) -> None:
        """Stop fetching keys, unless *key_sources* was given, and close the store of proofs."""
        if self._own_sources is not None:
            self._own_sources.close()
        self._binding.close()

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove what no app behind it gets from a client."""
        self._binding.hide(environ)

    @property
    def store_errors(self) -> int:
        """Number of tokens and proofs that could not be looked up, as the store failed."""
        return self._outages.total + self._binding.store_errors

    def _anonymous(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        self._outcomes.anonymous(environ)
        return self.app(environ, start_response)

    def _no_token(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refused(environ, "Authenticator", "no token")
        return self._responses.missing(environ, start_response)

    def _response(self, error: str, value: str, nonce: str = "") -> WSGIApplication:
        """Return the response for a token of the ``Authorization`` field *value*."""
        return self._responses.of(error, with_proof=self._binding.has_proof(value), nonce=nonce)

    def _checked_further(
        self, value: str, verified: Verified, environ: WSGIEnvironment
    ) -> tuple[WSGIApplication | None, str | None]:
        """Check the sender of a verified token, and that it is not denied.

        :returns: The app that rejects it, and a nonce that its client is to use from now on.
        """
        nonce = None
        if self._binding.active:
            try:
                nonce = self._binding.check(environ, verified.bound, value)
            except SenderRejected as error:
                refused(environ, "Authenticator", f"bad token: {error}")
                return self._response(error.error, value, error.nonce), None
            except ProofNotMarked as error:
                refused(environ, "Authenticator", str(error))
                return self._responses.unknown(_OUTAGE), None
        if self._deny_list is None:
            return None, nonce
        return self._refusal(self._deny_list, value, verified.entries, environ), nonce

    def _refusal(
        self, deny_list: DenyList, value: str, token: TokenIdentity, environ: WSGIEnvironment
    ) -> WSGIApplication | None:
        """Return the app that rejects a denied *token*, or any if the store fails."""
        try:
            reason = deny_list.why_denied(token)
        except StoreError as error:
            deny_list.check_outage(error)
            self._outages.log(error)
            if self._allows_on_error:
                return None
            refused(environ, "Authenticator", f"the deny-list cannot be read: {error}")
            return self._responses.unknown(_OUTAGE)
        if self._outages.ongoing:
            self._outages.resolved(_log.warning, "the deny-list can be read again")
        if not reason:
            return None
        refused(environ, "Authenticator", f"bad token: {reason}")
        return self._response("invalid_token", value)

    def _verified(self, value: str) -> Verified | None:
        """Return the verified token of the ``Authorization`` field; None for another scheme."""
        scheme, _, token = value.partition(" ")
        if scheme != "Bearer" and scheme.lower() != "bearer":
            if self._binding.has_proof(value):
                pass
            elif has_other_scheme(value):
                return None
            else:
                # not shown: what stands in place of a scheme may be a secret
                raise TokenRejected(
                    "the Authorization field is malformed or has more than one value"
                )
        if len(token) > MAX_LENGTH:
            raise TokenRejected(f"a token of {len(token)} characters")
        now = self._clock()
        # The hash covers the whole token and nothing else: two tokens never share an entry.
        name = sha256(token.encode("utf-8", "replace")).digest()
        verified = self._cache.get(name)
        if verified is None or verified.keys is not verified.source.current:
            verified = self._verify(token, now)
            self._cache.put(name, verified)
        elif now >= verified.until:
            raise TokenRejected("expired since it was verified")
        return verified

    def _verify(self, token: str, now: float) -> Verified:
        if "," in token:
            raise TokenRejected("more than one Authorization field")
        compact = read_compact(token)
        found = self._issuers.check(compact, now)
        claims = found.claims
        nested = tuple(name for name, claim in claims.items() if isinstance(claim, (dict, list)))
        if any(is_deeper(claims[name], DEEPEST) for name in nested):
            raise TokenRejected(f"claims of more than {DEEPEST} levels")
        bound = self._binding.confirmation(claims)
        scheme = "dpop" if self._binding.with_key(bound) else "bearer"
        caller = Identity.from_claims(claims, scheme=scheme)
        return Verified(
            claims,
            nested,
            found.until,
            self._scopes - caller.scopes,
            caller,
            identity(compact.signed, claims),
            found.source,
            found.keys,
            bound,
        )


def _of_other_kind(caller: object) -> bool:
    """Return whether *caller* is an identity that was verified by another credential."""
    return isinstance(caller, Identity) and caller.scheme not in ("bearer", "dpop")


def _copied(value: dict[str, Any] | list[Any]) -> dict[str, Any] | list[Any]:
    """Return a copy of parsed JSON, which takes a third of the time of parsing it again."""
    if isinstance(value, dict):
        return {
            name: _copied(each) if isinstance(each, (dict, list)) else each
            for name, each in value.items()
        }
    return [_copied(each) if isinstance(each, (dict, list)) else each for each in value]


def _check_alone(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if value != ISSUER_OPTIONS[name]:
            raise ValueError(f"{name}: with issuers, give it in each of them")
