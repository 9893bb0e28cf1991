"""JSON Web Tokens (RFC 7519): strict parsing, and claim rules.

A token is parsed strictly before its signature is verified, so that malformed input never reaches a
cryptographic library (:mod:`.jwk`); its claims are checked afterwards.
"""

from __future__ import annotations

import math
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from wsgigate.auth.claims import ClaimRequirements, RequiredClaims
from wsgigate.auth.jwk import (
    SECRET_BYTES,
    KeyText,
    check_strength,
    checked_names,
    fits,
    kind_of,
    secret_of,
    text_of,
)
from wsgigate.http.bodies import InvalidJson, read_object, shown

__all__ = [
    "KINDS",
    "MAX_LENGTH",
    "ClaimRules",
    "Compact",
    "TokenRejected",
    "has_control",
    "mint",
    "read_compact",
]


class TokenRejected(Exception):
    """The token is invalid; the message is for the operator only."""


# Claims: the rules that they must satisfy (RFC 7519).
#
# A signature proves who issued a token, not what the token is for. Issuers sign refresh tokens,
# ID tokens and logout tokens with the same key as access tokens, and mark them in the header's
# ``typ`` (RFC 8725 section 3.11, RFC 9068 section 2.1) or in a claim. A token that is marked as
# something else than an access token is rejected; a token without a mark, or with an unknown mark,
# is not.

_ACTIONS = dict.fromkeys(
    (
        *("passwordreset", "resetpassword", "emailverification", "verifyemail"),
        *("emailconfirmation", "confirmemail", "activation"),
        *("resetcredentials", "executeactions", "updateemail", "idpverifyaccountviaemail"),
    ),
    "action",
)
"""Marks of single-use tokens that are sent by mail."""

_KIND_OF_MARK = {
    "refresh": "refresh",
    "rt": "refresh",
    "id": "id",
    "serializedid": "id",
    "logout": "logout",
    "backchannellogout": "logout",
    "secevent": "event",
    "dpop": "proof",
    "kb": "proof",
    "clientauthentication": "proof",
    "oauthauthzreq": "request",
    "tokenintrospection": "introspection",
    **_ACTIONS,
}
"""The kind of token by mark, in lower case and without separators."""

KINDS = tuple(sorted(set(_KIND_OF_MARK.values())))
"""Kinds of tokens that are not access tokens."""

# In a claim, "DPoP" is the type of an access token that is bound to a key (RFC 9449 section 5).
_KIND_OF_CLAIM = {mark: kind for mark, kind in _KIND_OF_MARK.items() if mark != "dpop"}

_MARKS = {
    "type": _KIND_OF_CLAIM,  # flask-jwt-extended
    "token_type": _KIND_OF_CLAIM,  # djangorestframework-simplejwt, RFC 7662 section 2.2
    "typ": {**_KIND_OF_CLAIM, "offline": "refresh"},  # Keycloak
    # Gateways accept the ID tokens of AWS Cognito, which are marked "id" here.
    "token_use": {"refresh": "refresh"},
    "tokenType": _KIND_OF_CLAIM,
    "tokenUse": {"refresh": "refresh"},
    "purpose": {"refresh": "refresh", **_ACTIONS},
}
"""The claims in which issuers mark a token, with the known marks."""

_URN = "urn:ietf:params:oauth:token-type:"  # RFC 8693 section 3

_LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
"""Marks logout tokens of issuers that leave ``typ`` out (OpenID Back-Channel Logout 1.0, 2.4)."""

_SEPARATORS = str.maketrans("", "", "-_+ .")

_LARGEST = 2.0**53  # largest time; beyond it a float cannot represent every second

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class ClaimRules:
    """The required issuer, audience, validity period and type of a token.

    ``exp`` is required, and ``sub``, if present, must be a text. A token is valid from
    ``nbf - leeway`` until right before ``exp + leeway`` (RFC 7519 sections 4.1.4, 4.1.5). A token
    with an audience is rejected if none is expected (section 4.1.3).

    :param issuer: Required value of ``iss``; the comparison is exact. None accepts any.
    :param audience: One or several names of this gateway: ``aud`` must contain one of them.
    :param leeway: Allowed clock difference in seconds.
    :param max_lifetime: Maximum time between ``iat`` and ``exp`` in seconds; None for no limit.
    :param max_age: Maximum time since ``iat`` in seconds; None for no limit.
    :param typ: Required ``typ`` of the header, such as ``at+jwt``; None accepts any.
    :param required_claims: Paths of claims that a token must have, or a table of paths and values;
        see :class:`~wsgigate.auth.claims.ClaimRequirements`.
    :param also_accept: Kinds of tokens that are accepted although they are not access tokens:
        names from :data:`KINDS`.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        *,
        issuer: str | None = None,
        audience: str | Sequence[str] | None = None,
        leeway: float = 30.0,
        max_lifetime: float | None = None,
        max_age: float | None = None,
        typ: str | None = None,
        required_claims: RequiredClaims = (),
        also_accept: Sequence[str] = (),
    ) -> None:
        self.issuer = None if issuer is None else _text("issuer", issuer)
        names = [audience] if isinstance(audience, str) else audience
        if names is not None and not names:
            raise ValueError("audience: an empty list would reject every token")
        self.audience = frozenset(_text("audience", name) for name in names or ())
        self._audiences = " or ".join(repr(name) for name in sorted(self.audience))
        if not (_is_number(leeway) and leeway >= 0):
            raise ValueError(f"leeway: seconds, 0 or more, not {leeway!r}")
        self.leeway = float(leeway)
        if max_lifetime is not None and not (_is_number(max_lifetime) and max_lifetime > 0):
            raise ValueError(f"max_lifetime: seconds, more than 0, not {max_lifetime!r}")
        self.max_lifetime = max_lifetime
        if max_age is not None and not (_is_number(max_age) and max_age > 0):
            raise ValueError(f"max_age: seconds, more than 0, not {max_age!r}")
        self.max_age = max_age
        self.typ = None if typ is None else _media_type(_text("typ", typ))
        self.required_claims = ClaimRequirements(required_claims, "required_claims")
        if isinstance(also_accept, str) or not set(also_accept) <= set(KINDS):
            listed = ", ".join(f'"{kind}"' for kind in KINDS)
            raise ValueError(f"also_accept: a list of {listed}, not {also_accept!r}")
        self.also_accept = frozenset(also_accept)
        # A mark that is explicitly required, as on the route for token refresh, is accepted.
        self._marks = {
            name: known for name, known in _MARKS.items() if not self.required_claims.allowed(name)
        }

    def check_header(self, header: Mapping[str, Any]) -> None:
        """Check the header of a token.

        Keys that the token contains or refers to (``jwk``, ``jku``, ``x5c``, ``x5u``) are ignored.

        :raises TokenRejected: The header is not that of a plain signed access token.
        """
        for name in ("crit", "b64"):
            if name in header:
                raise TokenRejected(f"a header with {name}")
        kid = header.get("kid", "")
        if not isinstance(kid, str) or len(kid) > 256 or _CONTROL.search(kid):
            raise TokenRejected(f"a kid that is not a short text: {shown(kid)}")
        typ = header.get("typ")
        if self.typ is not None:
            if not isinstance(typ, str) or _media_type(typ) != self.typ:
                raise TokenRejected(f"typ is {shown(typ)}")
        elif isinstance(typ, str):
            kind = _KIND_OF_MARK.get(_mark(typ))
            if kind is not None and kind not in self.also_accept:
                raise TokenRejected(f"no access token: typ is {shown(typ)}")

    def check(self, claims: Mapping[str, Any], now: float) -> float:
        """Return the time at which the verified *claims* expire, including the leeway.

        With ``max_age`` that is the end of the maximum age, if it is earlier.

        :param now: Unix time in seconds.
        :raises TokenRejected: The claims do not satisfy the rules at *now*.
        """
        exp = _moment(claims, "exp")
        if exp is None:
            raise TokenRejected("no exp")
        until = exp + self.leeway
        if now >= until:
            raise TokenRejected(f"expired {now - exp:.0f} s ago")
        nbf, iat = _moment(claims, "nbf"), _moment(claims, "iat")
        if nbf is not None and nbf - self.leeway > now:
            raise TokenRejected(f"not valid for another {nbf - now:.0f} s")
        if iat is not None and iat - self.leeway > now:
            raise TokenRejected(f"issued {iat - now:.0f} s in the future")
        if self.max_lifetime is not None:
            if iat is None:
                raise TokenRejected("no iat, which max_lifetime requires")
            if exp - iat > self.max_lifetime:
                raise TokenRejected(f"valid for {exp - iat:.0f} s, longer than max_lifetime")
        if self.max_age is not None:
            if iat is None:
                raise TokenRejected("no iat, which max_age requires")
            until = min(until, iat + self.max_age + self.leeway)
            if now >= until:
                raise TokenRejected(f"issued {now - iat:.0f} s ago, longer than max_age")
        self._check_names(claims)
        for name, known in self._marks.items():
            mark = claims.get(name)
            if isinstance(mark, str):
                kind = known.get(_mark(mark))
                if kind is not None and kind not in self.also_accept:
                    raise TokenRejected(f"no access token: {name} is {shown(mark)}")
        events = claims.get("events")
        is_logout = isinstance(events, dict) and _LOGOUT_EVENT in events
        if is_logout and "logout" not in self.also_accept:
            raise TokenRejected("no access token: events holds a logout")
        unmet = self.required_claims.unmet(claims)
        if unmet:
            raise TokenRejected(unmet)
        return until

    def _check_names(self, claims: Mapping[str, Any]) -> None:
        if self.issuer is not None and claims.get("iss") != self.issuer:
            raise TokenRejected(f"issued by {shown(claims.get('iss'))}, not by {self.issuer!r}")
        if self.audience or "aud" in claims:
            aud = claims.get("aud")
            if aud is None and self.audience:
                raise TokenRejected(f"no audience (aud), which must be {self._audiences}")
            names = [aud] if isinstance(aud, str) else aud
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise TokenRejected(f"aud is {shown(aud)}")
            if self.audience.isdisjoint(names):
                wanted = f"not {self._audiences}" if self.audience else "and none is configured"
                raise TokenRejected(f"for the audience {shown(aud)}, {wanted}")
        if "sub" in claims:
            sub = claims["sub"]
            if not isinstance(sub, str) or not sub or has_control(sub):
                raise TokenRejected(f"sub is {shown(sub)}")


def has_control(text: str) -> bool:
    """Return whether *text* has control characters, which no name of a caller may have."""
    return _CONTROL.search(text) is not None


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    if not _is_number(value) or abs(value) > _LARGEST:
        raise TokenRejected(f"{name} is {shown(value)}")
    return float(value)


def _is_number(value: object) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
    )


def _mark(text: str) -> str:
    """Return the mark *text* in normal form: ``REFRESH_TOKEN`` becomes ``refresh``."""
    mark = text.lower().removeprefix(_URN).removeprefix("application/").translate(_SEPARATORS)
    return mark.removesuffix("jwt").removesuffix("token")


def _text(setting: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{setting}: expected a text, not {value!r}")
    return value


def _media_type(typ: str) -> str:
    return typ.lower().removeprefix("application/")


# The compact serialization of a signed token (RFC 7515 section 7.1), parsed more strictly than
# required.
#
# Input that two parsers could interpret differently is rejected: duplicate members, padding,
# numbers that JSON does not have.

MAX_LENGTH = 8192
"""Maximum length of a token in characters."""

_PARTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class Compact(NamedTuple):
    """The parts of a token that is not verified yet."""

    header: dict[str, Any]
    payload: bytes
    signed: bytes
    signature: bytes


def read_compact(token: str) -> Compact:
    """Return the parts of *token*; only the header is decoded as JSON.

    :raises TokenRejected: *token* is malformed.
    """
    if len(token) > MAX_LENGTH:
        raise TokenRejected(f"a token of {len(token)} characters")
    parts = _PARTS.fullmatch(token)
    if parts is None:
        raise TokenRejected("not three parts of base64url")
    header, payload, signature = map(_decoded, parts.groups())
    signed = token[: parts.end(2)].encode("ascii")
    try:
        return Compact(read_object(header, "header"), payload, signed, signature)
    except InvalidJson as error:
        raise TokenRejected(str(error)) from None


def _decoded(part: str) -> bytes:
    try:
        data = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise TokenRejected("a part that is not base64url") from None
    # Non-zero trailing bits would allow several spellings of one token.
    if urlsafe_b64encode(data).rstrip(b"=") != part.encode("ascii"):
        raise TokenRejected("a part with trailing bits")
    return data


def mint(
    key: KeyText,
    algorithm: str,
    subject: str,
    expires_in: float = 3600.0,
    now: float | None = None,
    /,
    **claims: object,
) -> str:
    """Return a new signed token, for tests and experiments.

    :param key: The secret, or for asymmetric algorithms the private key as PEM text.
    :param algorithm: One of :data:`ALGORITHMS`.
    :param subject: The ``sub`` claim.
    :param expires_in: Lifetime in seconds.
    :param now: Unix time in seconds. Default: the current time.
    :param claims: Further claims; they replace those above.
    :raises ValueError: The key does not fit the algorithm, or *expires_in* is not positive.
    """
    (name,) = checked_names([algorithm])
    if not expires_in > 0:
        raise ValueError(f"expires_in: seconds, more than 0, not {expires_in!r}")
    issued = int(time.time() if now is None else now)
    payload = {"sub": subject, "iat": issued, "exp": issued + max(1, int(expires_in)), **claims}
    if name in SECRET_BYTES:
        return jwt.encode(payload, secret_of(name, key), name)
    try:
        private = load_pem_private_key(text_of("key", key), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("key: expected a private key without password as PEM text") from None
    public: Any = private.public_key()
    check_strength(public)
    if not fits(name, public):
        raise ValueError(f"key: {kind_of(public)} does not fit {name}")
    return jwt.encode(payload, private, name)  # type: ignore[arg-type]
