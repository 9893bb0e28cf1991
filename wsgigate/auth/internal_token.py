"""Tokens that the gateway signs for the services behind it.

A service that gets the caller's own token must trust every issuer, and could use the token against
other services. Instead it gets a token of the gateway: short-lived, for this service only, and
verified by any library from the gateway's published keys.

The keys are derived from a secret and the number of the current period. So all workers and machines
with the secret have the same keys without sharing anything else, and none is ever stored. The keys
of the previous, the current and the next period are published, so a service that caches the set for
less than a period has each key before the first token that it signs.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    derive_private_key,
)

from wsgigate.auth.jwk import thumbprint
from wsgigate.http.fields import HOP_BY_HOP, is_token
from wsgigate.rules.arguments import FieldName, Range, Seconds, Trait, checked
from wsgigate.rules.claims import CallerValue, VerifiedCaller
from wsgigate.runtime.clocks import wall

__all__ = ["InternalTokens"]

SECRET_BYTES = 32

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256, FIPS 186-5

_RESERVED = frozenset(("iss", "aud", "exp", "iat", "nbf", "jti"))

_CLAIMS = {"sub": "subject", "client_id": "client", "scope": "scopes"}

_NOT_FOR_TOKENS = HOP_BY_HOP | {"content-length", "content-type", "cookie", "host", "via"}

_MOST_CACHED = 10_000

_SHORTEST = 5.0
"""Least lifetime in seconds, for a token of a caller whose own token has expired just now."""


_SKEW = 5.0
"""Seconds by which ``iat`` is in the past: libraries reject a token that was issued in the future,
and the clock of a service may be behind."""


class _SigningKey(NamedTuple):
    private: EllipticCurvePrivateKey
    jwk: dict[str, str]


class _CachedToken(NamedTuple):
    caller: VerifiedCaller
    token: str
    renewed_at: float


@checked
class InternalTokens:
    """Short-lived tokens (JWT, ES256) that carry the verified caller to services.

    :param secret: The secret from which the keys are derived, at least 32 bytes, the same on all
        gateways. Several during its rotation: the first signs, the keys of all are published. So
        add a new one at the end, and put it first once services have read the keys again.
    :param issuer: The ``iss`` of the tokens.
    :param lifetime: The lifetime of a token, in seconds. It ends with the caller's own token.
    :param rotate_every: The period of a key, in seconds.
    :param claims: The claims of a token by name: ``subject``, ``client``, ``issuer``, ``scheme``,
        ``scopes``, or the path of a claim of the caller. Default: ``sub``, ``client_id`` and
        ``scope``.
    :param field: The request field that carries the token; ``Authorization`` as a bearer token,
        in place of the caller's own.
    :param clock: Returns the Unix time in seconds.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        *,
        secret: Annotated[str, Trait.SECRET]
        | Annotated[Sequence[Annotated[str, Trait.SECRET]], Range(1)],
        issuer: str = "wsgigate",
        lifetime: Seconds = 60.0,
        rotate_every: Seconds = 7 * 86_400.0,
        claims: Mapping[str, str] | None = None,
        field: FieldName = "Authorization",
        clock: Callable[[], float] = wall,
    ) -> None:
        secrets = [secret] if isinstance(secret, str) else list(secret)
        if not secrets:
            raise ValueError("secret: at least one is required")
        self._secrets = [_checked(each) for each in secrets]
        if not issuer:
            raise ValueError("issuer: empty")
        if not _SHORTEST <= lifetime <= 3600:
            raise ValueError(f"lifetime: {_SHORTEST:g} s to an hour, not {lifetime!r}")
        if not rotate_every >= max(3600, 2 * lifetime):
            raise ValueError(
                f"rotate_every: at least an hour and two lifetimes, not {rotate_every!r}"
            )
        if not is_token(field) or field.lower() in _NOT_FOR_TOKENS:
            raise ValueError(
                f"field: {field!r} cannot carry a token; use Authorization or one such as "
                "X-Internal-Token"
            )
        self.field = field
        self._issuer = issuer
        self._lifetime = lifetime
        self._period = rotate_every
        self._claims = tuple(
            (name, _value(name, text)) for name, text in (claims or _CLAIMS).items()
        )
        self._clock = clock
        self._keys: dict[tuple[int, int], _SigningKey] = {}
        self._signed: dict[tuple[int, str], _CachedToken] = {}  # bounded

    def value(self, caller: VerifiedCaller, audience: str) -> str:
        """Return the value of the field for a request of *caller* to the service *audience*."""
        token = self.token(caller, audience)
        return f"Bearer {token}" if self.field.lower() == "authorization" else token

    def token(self, caller: VerifiedCaller, audience: str) -> str:
        """Return a token for the service *audience* that carries the *caller*.

        The requests of one caller share a token for half of its lifetime.
        """
        now = self._clock()
        # by object: comparing all claims would cost more than a signature; the entry keeps the
        # caller alive, so that no other object gets its id
        key = (id(caller), audience)
        known = self._signed.get(key)
        fresh = known is not None and 0 <= known.renewed_at - now <= self._lifetime
        if known is not None and known.caller is caller and fresh:
            return known.token
        until = now + self._lifetime
        own = caller.claims.get("exp")
        if isinstance(own, (int, float)) and not isinstance(own, bool) and own < until:
            until = max(own, now + _SHORTEST)
        payload: dict[str, Any] = {
            "iss": self._issuer,
            "aud": audience,
            "iat": int(now - _SKEW),
            "exp": int(until),
            "jti": uuid4().hex,
        }
        for name, value in self._claims:
            found = value.find(caller)
            if found is not None:
                payload[name] = " ".join(found) if value.text == "scopes" else _plain(found)
        signing = self._key(0, int(now // self._period))
        token = jwt.encode(payload, signing.private, "ES256", {"kid": signing.jwk["kid"]})
        if len(self._signed) >= _MOST_CACHED:
            self._signed.clear()
        self._signed[key] = _CachedToken(caller, token, now + (until - now) / 2)
        return token

    def jwks(self) -> dict[str, object]:
        """Return the JWK set (RFC 7517) of the public keys that verify the tokens."""
        current = int(self._clock() // self._period)
        periods = (current, current + 1, current - 1)
        return {
            "keys": [
                self._key(place, number).jwk
                for number in periods
                for place in range(len(self._secrets))
            ]
        }

    def _key(self, place: int, number: int) -> _SigningKey:
        known = self._keys.get((place, number))
        if known is None:
            known = _derived(self._secrets[place], number)
            # a copy, as another thread may iterate; old periods are dropped
            kept = {each: key for each, key in self._keys.copy().items() if each[1] >= number - 3}
            self._keys = {**kept, (place, number): known}
        return known


def _derived(secret: bytes, number: int) -> _SigningKey:
    """Return the key of a period: 512 bits of HMAC, reduced to the order (FIPS 186-5, A.2.1)."""
    seed = hmac.digest(secret, b"wsgigate internal token ES256 %d" % number, "sha512")
    private = derive_private_key(int.from_bytes(seed, "big") % (_ORDER - 1) + 1, SECP256R1())
    numbers = private.public_key().public_numbers()
    x, y = (_text(each.to_bytes(32, "big")) for each in (numbers.x, numbers.y))
    members = {"crv": "P-256", "kty": "EC", "x": x, "y": y}
    kid = thumbprint(members)[:22]
    return _SigningKey(private, {**members, "use": "sig", "alg": "ES256", "kid": kid})


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _plain(value: Any) -> Any:
    """Return a read-only value as one that JSON has."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def _checked(secret: object) -> bytes:
    data = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else b""
    if len(data) < SECRET_BYTES:
        raise ValueError(f"secret: {len(data)} bytes; at least {SECRET_BYTES} are required")
    return data


def _value(name: str, text: str) -> CallerValue:
    if name in _RESERVED:
        raise ValueError(f"claims: the gateway sets {name} itself")
    try:
        return CallerValue(text)
    except ValueError as error:
        raise ValueError(f"claims: {name}: {error}") from None
