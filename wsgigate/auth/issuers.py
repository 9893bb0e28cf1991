"""Issuers of tokens: each with its own keys, algorithms and claim rules.

Theory of operation. A token names its issuer in ``iss``, and nothing in a token can be believed
before its signature is verified. So ``iss`` only selects an issuer; from there on everything is
decided by that issuer alone, the algorithm, the key, and the claims, among them ``iss`` again:

- No key of one issuer ever verifies a token of another, not even if both publish the same key id.
- A verified token is remembered together with the set of keys that verified it. When the issuer's
  keys change, it is verified again: a token of a withdrawn key does not outlive the key.
- Keys that are not known at the moment are no reason to call a token invalid:
  :exc:`.KeysUnavailable` is answered with 503, not with 401.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

from wsgigate.auth.claims import RequiredClaims
from wsgigate.auth.jwk import (
    ALGORITHMS,
    ASYMMETRIC,
    SECRET_BYTES,
    KeySet,
    KeyText,
    VerificationKeys,
    checked_names,
)
from wsgigate.auth.jwks import FileKeys, KeySource, KeySources, StaticKeys
from wsgigate.auth.jwks_fetch import check_url
from wsgigate.auth.jwt import KINDS, ClaimRules, Compact, TokenRejected
from wsgigate.http.bodies import read_object, shown
from wsgigate.rules.arguments import OneOf, Range, Seconds, Trait, checked
from wsgigate.runtime.clocks import steady
from wsgigate.runtime.tls import check_authorities

__all__ = ["ISSUER_OPTIONS", "Issuers", "SecretText", "Signed", "TokenIssuer", "issuers_of"]

SecretText: TypeAlias = Annotated[KeyText, Trait.SECRET]


class Signed(NamedTuple):
    """The claims of a token with a valid signature.

    :ivar until: Unix time at which it expires.
    :ivar source: The keys of its issuer.
    :ivar keys: The set of keys that verified it; valid while it is the current one of *source*.
    """

    claims: dict[str, Any]
    until: float
    source: KeySource
    keys: KeySet


@checked
class TokenIssuer:
    """One issuer of tokens: where its keys are, and the rules that its tokens must satisfy.

    Its keys are *secret*, *public_key*, *jwks* or *jwks_file*. Without any of them they are found
    by the discovery document of *issuer*.

    :param issuer: The issuer (``"iss"``), such as ``"https://id.example.com/realms/shop"``; the
        comparison is exact.
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
    :param jwks_refresh: Time until keys are fetched again, in seconds.
    :param jwks_cooldown: Minimum time between two attempts to fetch keys, in seconds.
    :param audience: Expected audience (``"aud"``): one or several names of this gateway, of which
        the token must contain one. Without it, a token that has an audience is rejected.
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
    :param also_accept: Kinds of tokens that are accepted although they are not access tokens.
    :param key_sources: The key sources to add those of this issuer to. Default: none, which is an
        error for keys that must be fetched.
    :raises ValueError: An argument is invalid, or a key is missing, weak or of the wrong type; the
        message names it.
    :ivar rules: The rules for its claims.
    :ivar source: Its keys.
    """

    def __init__(
        self,
        *,
        issuer: str | None = None,
        algorithms: Annotated[Sequence[Annotated[str, OneOf(ALGORITHMS)]], Range(1)] | None = None,
        secret: SecretText | Annotated[Sequence[SecretText], Range(1)] | None = None,
        public_key: KeyText | Annotated[Sequence[KeyText], Range(1)] | None = None,
        jwks: str | Mapping[str, Any] | None = None,
        jwks_file: str | None = None,
        ca: str | None = None,
        jwks_refresh: Seconds = 600.0,
        jwks_cooldown: Seconds = 30.0,
        audience: str | Annotated[Sequence[str], Range(1)] | None = None,
        leeway: Annotated[Seconds, Range(0)] = 30.0,
        max_lifetime: Seconds | None = None,
        max_age: Seconds | None = None,
        typ: str | None = None,
        required_claims: RequiredClaims = (),
        also_accept: Sequence[Annotated[str, OneOf(KINDS)]] = (),
        key_sources: KeySources | None = None,
    ) -> None:
        self.rules = ClaimRules(
            issuer=issuer,
            audience=audience,
            leeway=leeway,
            max_lifetime=max_lifetime,
            max_age=max_age,
            typ=typ,
            required_claims=required_claims,
            also_accept=also_accept,
        )
        given = {"secret": secret, "public_key": public_key, "jwks": jwks, "jwks_file": jwks_file}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1 and names != ["secret", "public_key"]:
            raise ValueError(
                f"{names[-1]}: mutually exclusive with {names[0]}; give the keys in one way"
            )
        url = jwks if isinstance(jwks, str) and _is_url(jwks) else None
        needs_secret = algorithms is not None and checked_names(algorithms)[0] in SECRET_BYTES
        discovered = not (names or needs_secret) and issuer is not None and _is_url(issuer)
        if ca is not None and url is None and not discovered:
            raise ValueError("ca: only for keys that are fetched, by jwks or by discovery")
        if url is not None or discovered:
            self.algorithms = frozenset(_asymmetric(algorithms))
            setting, where = ("issuer", str(issuer)) if url is None else ("jwks", url)
            check_url(where, setting)
            if discovered:
                _check_is_no_document(where)
            if ca is not None:
                check_authorities(ca)
            if key_sources is None:
                raise ValueError(f"{setting}: keys that are fetched need key_sources")
            self.source: KeySource = key_sources.remote(
                where,
                issuer=issuer,
                discovers=discovered,
                ca=ca,
                refresh=jwks_refresh,
                cooldown=jwks_cooldown,
            )
            return
        if jwks_file is not None:
            self.algorithms = frozenset(
                ASYMMETRIC if algorithms is None else checked_names(algorithms)
            )
            source = FileKeys(
                os.fspath(jwks_file), algorithms, name=issuer or str(jwks_file), clock=steady
            )
            if key_sources is not None:
                key_sources.add(source)
            self.source = source
            return
        if algorithms is None and jwks is None:
            raise ValueError(_no_keys(names, issuer))
        keys = VerificationKeys(algorithms, secret=secret, public_key=public_key, jwks=jwks)
        self.algorithms = frozenset(name for name in ALGORITHMS if name in keys)
        self.source = StaticKeys(keys.set)

    def check(
        self,
        compact: Compact,
        now: float,
        claims: dict[str, Any] | None = None,
    ) -> Signed:
        """Verify a token of this issuer.

        :param compact: The token.
        :param now: Unix time in seconds.
        :param claims: Its claims, if they have been parsed already.
        :raises TokenRejected: The token is invalid.
        :raises InvalidJson: Its payload is malformed.
        :raises KeysUnavailable: The keys of the issuer are not known at the moment.
        """
        algorithm = compact.header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self.algorithms:
            raise TokenRejected(f"alg is {shown(algorithm)}")
        self.rules.check_header(compact.header)
        keys = self._keys_that_verify(algorithm, compact)
        if claims is None:
            claims = read_object(compact.payload, "payload")
        return Signed(claims, self.rules.check(claims, now), self.source, keys)

    def _keys_that_verify(self, algorithm: str, compact: Compact) -> KeySet:
        source, kid = self.source, compact.header.get("kid")
        keys = source.current
        if keys is None:
            keys = source.newer(None)
        if keys is not None and keys.verify(algorithm, compact.signed, compact.signature, kid):
            return keys
        if keys is not None and keys.lacks(kid):
            newer = source.newer(keys)
            if newer is not None:
                keys = newer
                if keys.verify(algorithm, compact.signed, compact.signature, kid):
                    return keys
        if kid is not None and keys is not None and keys.lacks(kid) and not keys.lacks(None):
            raise TokenRejected(f"the issuer has no key with the id (kid) {shown(kid)}")
        raise TokenRejected("the signature does not match any key")


_HOST = re.compile(r"(localhost|[^/:]+\.[^/:.]+)(:[0-9]+)?(/|$)", re.IGNORECASE)
_DOCUMENTS = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")


def _check_is_no_document(issuer: str) -> None:
    for document in _DOCUMENTS:
        if issuer.endswith(document):
            raise ValueError(
                f"issuer: {issuer!r} is the discovery document; give the issuer that it names, "
                f"such as {issuer.removesuffix(document)!r}"
            )


def _is_url(text: str) -> bool:
    return text[:8].lower().startswith(("https://", "http://"))


def _asymmetric(algorithms: Sequence[str] | None) -> Sequence[str]:
    if algorithms is None:
        return ASYMMETRIC
    names = checked_names(algorithms)
    if names[0] in SECRET_BYTES:
        raise ValueError(
            f"algorithms: {', '.join(names)} need a secret, which cannot be fetched; use the "
            'algorithms of public keys, such as ["RS256"]'
        )
    return names


def _no_keys(names: Sequence[str], issuer: str | None) -> str:
    if not names:
        if issuer is not None and _HOST.match(issuer):
            return (
                f"issuer: {issuer!r} is not a URL; give it as the tokens have it in iss, such as "
                f"{'https://' + issuer!r}, or give the keys, such as jwks or jwks_file"
            )
        return (
            "algorithms: required with a secret or a public_key; other keys are given as jwks, "
            'jwks_file or an issuer such as "https://id.example.com"'
        )
    example = "HS256" if names == ["secret"] else "RS256"
    return f'algorithms: required with {names[0]}, such as ["{example}"]'


class Issuers:
    """One or several issuers, of which the token's ``iss`` selects one.

    :param issuers: The issuers. A single one may accept tokens of any ``iss``.
    :raises ValueError: One of several has no ``issuer``, or the same as another.
    """

    def __init__(self, issuers: Sequence[TokenIssuer]) -> None:
        self.all = tuple(issuers)
        self._only = issuers[0] if len(issuers) == 1 else None
        self._by_name: dict[str, TokenIssuer] = {}
        for number, each in enumerate(issuers):
            name = each.rules.issuer
            if name is None and self._only is None:
                raise ValueError(
                    f"issuers[{number}].issuer: required, as it selects the issuer of a token"
                )
            if name in self._by_name:
                raise ValueError(f"issuers[{number}].issuer: {name!r} is given twice")
            if name is not None:
                self._by_name[name] = each

    @property
    def leeway(self) -> float:
        """The largest leeway of any issuer."""
        return max(each.rules.leeway for each in self.all)

    def check(self, compact: Compact, now: float) -> Signed:
        """Verify a token by the rules of its issuer.

        :raises TokenRejected: The token is invalid, or of an unknown issuer.
        :raises InvalidJson: Its payload is malformed.
        :raises KeysUnavailable: The keys of the issuer are not known at the moment.
        """
        if self._only is not None:
            return self._only.check(compact, now)
        claims = read_object(compact.payload, "payload")
        iss = claims.get("iss")
        issuer = self._by_name.get(iss) if isinstance(iss, str) else None
        if issuer is None:
            raise TokenRejected(f"issued by {shown(iss)}, which is none of the issuers")
        return issuer.check(compact, now, claims)


def issuers_of(
    given: Sequence[TokenIssuer | Mapping[str, Any]],
    make: Callable[..., TokenIssuer],
) -> Issuers:
    """Return the issuers that *given* describes.

    :param given: Tables of the arguments of :class:`TokenIssuer`, or issuers.
    :param make: Makes an issuer of these arguments.
    :raises ValueError: One of them is invalid; the message begins with ``issuers[0]``.
    """
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence) or not given:
        raise ValueError(
            f'issuers: expected a list such as [{{"issuer": "https://..."}}], not {shown(given)}'
        )
    made: list[TokenIssuer] = []
    for number, each in enumerate(given):
        if isinstance(each, TokenIssuer):
            made.append(each)
            continue
        if not isinstance(each, Mapping):
            raise ValueError(f"issuers[{number}]: expected a table, not {shown(each)}")
        unknown = [name for name in each if name not in ISSUER_OPTIONS]
        if unknown:
            known = ", ".join(name for name in ISSUER_OPTIONS if name not in each)
            raise ValueError(f"issuers[{number}]: {unknown[0]!r} is not an option; known: {known}")
        try:
            made.append(make(**each))
        except ValueError as error:
            raise ValueError(f"issuers[{number}].{error}") from None
    return Issuers(made)


ISSUER_OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(TokenIssuer).parameters.items()
    if name != "key_sources"
}
"""The options of one issuer by name, with their defaults."""
