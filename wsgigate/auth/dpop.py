"""Proofs that the sender of a token has its key: DPoP (RFC 9449). Decisions only, without I/O.

A bearer token that is stolen can be used by the thief. A token that is bound to a key names it
(``cnf.jkt``), and each request has a proof: a small token of the client's own, signed by that key,
for one method, one URL and one moment. The proof contains its public key, which everyone can make,
so it means something only for a token that names the very key: the key is compared with the token
before the signature is verified, and nothing is computed for a key that no issuer has named.

A proof is valid for a short time, and once: its ``jti`` is to be spent by the caller of this
module. A server's nonce in the proof shows that the client has not prepared it in advance. The
nonces here are an HMAC of the current period, so that workers share nothing but a secret.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from wsgigate.auth.jwk import ASYMMETRIC, KeySet, read_jwk, thumbprint
from wsgigate.auth.jwt import TokenRejected, read_compact
from wsgigate.http.bodies import read_object, shown
from wsgigate.http.client_url import normal_url

__all__ = [
    "DEFAULT_ALGORITHMS",
    "LONGEST_PROOF",
    "NonceRequired",
    "Nonces",
    "Proof",
    "ProofRejected",
    "ProofRules",
    "confirmation",
]

DEFAULT_ALGORITHMS = tuple(name for name in ASYMMETRIC if not name.startswith("RS"))
"""Without RSA of PKCS #1 v1.5, which no client needs for new keys."""

LONGEST_PROOF = 4096
"""Maximum length of a proof in characters."""

_LARGEST_RSA = 4096
_LONGEST_ID = 256
_MOST_KEYS = 1000


class ProofRejected(Exception):
    """The proof is invalid; the message is for the operator only."""


class NonceRequired(ProofRejected):
    """The proof is valid, but has no current nonce of this server."""


class Proof(NamedTuple):
    """A valid proof.

    :ivar key: The thumbprint of its key.
    :ivar id: Its ``jti``, which is to be spent.
    :ivar seconds: The time for which it stays valid.
    :ivar nonce: The nonce of the server in it.
    """

    key: str
    id: str
    seconds: float
    nonce: str | None = None


def confirmation(claims: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the key that a token is bound to (``cnf``, RFC 7800); None for a bearer token.

    :raises TokenRejected: ``cnf`` is not an object with members.
    """
    if "cnf" not in claims:
        return None
    cnf = claims["cnf"]
    if not isinstance(cnf, Mapping) or not cnf:
        raise TokenRejected(f"cnf is {shown(cnf)}")
    return cnf


class ProofRules:
    """The rules that a proof must satisfy (RFC 9449 section 4.3).

    :param algorithms: The accepted signature algorithms, all asymmetric.
    :param max_age: Maximum time since a proof was made (``iat``), in seconds.
    :param leeway: Allowed difference of the client's clock, in seconds.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        *,
        algorithms: Sequence[str] = DEFAULT_ALGORITHMS,
        max_age: float = 60.0,
        leeway: float = 30.0,
    ) -> None:
        wrong = [name for name in algorithms if name not in ASYMMETRIC]
        if wrong or not algorithms:
            raise ValueError(
                f"dpop_algorithms: {', '.join(map(repr, wrong)) or 'none'}; a proof is signed by "
                f"one of {', '.join(ASYMMETRIC)}"
            )
        if not 1 <= max_age <= 3600:
            raise ValueError(f"dpop_max_age: 1 to 3600 seconds, not {max_age!r}")
        self.algorithms = tuple(algorithms)
        self._max_age = max_age
        self._leeway = leeway
        # Keys of proofs by thumbprint, each of a token that an issuer has bound to it.
        self._keys: dict[str, KeySet] = {}

    def check(
        self,
        value: str,
        *,
        key: str,
        method: str,
        url: str,
        token: str,
        now: float,
        nonces: Nonces | None = None,
    ) -> Proof:
        """Verify a proof.

        :param value: The ``DPoP`` field.
        :param key: The thumbprint that the token names (``cnf.jkt``).
        :param method: The method of the request.
        :param url: The URL of the request in normal form, without query.
        :param token: The token that is sent with it.
        :param now: Unix time in seconds.
        :param nonces: The nonces of which the proof must have a current one.
        :raises NonceRequired: The proof has no current nonce.
        :raises ProofRejected: It is invalid.
        """
        try:
            claims = self._verified(value, key)
        except (TokenRejected, ValueError) as error:  # includes InvalidJson
            raise ProofRejected(str(error)) from None
        proof_id = claims.get("jti")
        if not isinstance(proof_id, str) or not 0 < len(proof_id) <= _LONGEST_ID:
            raise ProofRejected(f"jti is {shown(proof_id)}")
        if claims.get("htm") != method:
            raise ProofRejected(f"made for the method {shown(claims.get('htm'))}, not {method}")
        self._check_url(claims.get("htu"), url)
        expected = _text(sha256(token.encode("ascii")).digest())
        given = claims.get("ath")
        if not isinstance(given, str) or not given.isascii():
            raise ProofRejected(f"ath is {shown(given)}")
        if not hmac.compare_digest(given, expected):
            raise ProofRejected("made for another token (ath)")
        until = self._check_time(claims, now)
        nonce = claims.get("nonce")
        if nonces is not None and not nonces.is_current(nonce, now):
            raise NonceRequired("no current nonce of this server")
        return Proof(key, proof_id, until - now, nonce if isinstance(nonce, str) else None)

    def _verified(self, value: str, key: str) -> dict[str, Any]:
        if len(value) > LONGEST_PROOF:
            raise ProofRejected(f"a proof of {len(value)} characters")
        if "," in value:
            raise ProofRejected("more than one proof")
        compact = read_compact(value)
        header = compact.header
        typ, algorithm, jwk = header.get("typ"), header.get("alg"), header.get("jwk")
        if not isinstance(typ, str) or typ.lower().removeprefix("application/") != "dpop+jwt":
            raise ProofRejected(f"typ is {shown(typ)}, not dpop+jwt")
        if not isinstance(algorithm, str) or algorithm not in self.algorithms:
            raise ProofRejected(f"alg is {shown(algorithm)}")
        for name in ("crit", "b64"):
            if name in header:
                raise ProofRejected(f"a header with {name}")
        if not isinstance(jwk, Mapping):
            raise ProofRejected(f"jwk is {shown(jwk)}")
        if thumbprint(jwk) != key:
            raise ProofRejected("signed by another key than the token is bound to")
        keys = self._key_set(key, jwk)
        if not keys.verify(algorithm, compact.signed, compact.signature):
            raise ProofRejected("the signature does not match the key")
        return read_object(compact.payload, "payload")

    def _key_set(self, name: str, jwk: Mapping[str, Any]) -> KeySet:
        found = self._keys.get(name)
        # A private member, or another use, is an error each time.
        if found is None or jwk.keys() & _UNUSUAL:
            key = read_jwk(jwk)
            bits = getattr(key.key, "key_size", 0)
            if bits > _LARGEST_RSA:
                raise ProofRejected(f"RSA of {bits} bits; at most {_LARGEST_RSA}")
            found = KeySet([key._replace(kid=None)])
            if len(self._keys) >= _MOST_KEYS:
                self._keys = {}
            if not jwk.keys() & _UNUSUAL:
                self._keys[name] = found
        return found

    def _check_url(self, given: object, url: str) -> None:
        try:
            made_for = normal_url(given) if isinstance(given, str) else None
        except ValueError:
            made_for = None
        if made_for != url:
            raise ProofRejected(f"made for the URL {shown(given)}, not {url[:200]}")

    def _check_time(self, claims: Mapping[str, Any], now: float) -> float:
        """Return the Unix time until which a proof is valid."""
        iat = claims.get("iat")
        if isinstance(iat, bool) or not isinstance(iat, (int, float)) or not 0 <= iat <= 2**53:
            raise ProofRejected(f"iat is {shown(iat)}")
        if iat - self._leeway > now:
            raise ProofRejected(f"made {iat - now:.0f} s in the future")
        until = float(iat) + self._max_age + self._leeway
        if now >= until:
            raise ProofRejected(f"made {now - iat:.0f} s ago")
        return until


_UNUSUAL = frozenset(("alg", "use", "key_ops", "kid", "d", "p", "q", "dp", "dq", "qi", "oth", "k"))
"""Members of a key that its thumbprint does not include, and that can make it unusable."""


class Nonces:
    """The nonces of a server: an HMAC of the current period, the same in all workers.

    One is accepted for its own period and the next, so a client has at least a period to use it.

    :param secret: The shared secret, at least 32 bytes.
    :param period: Seconds for which each is given out.
    :raises ValueError: *secret* is too short.
    """

    def __init__(self, secret: str, *, period: float = 120.0) -> None:
        self._secret = secret.encode("utf-8", "surrogatepass")
        if len(self._secret) < 32:
            raise ValueError(
                f"dpop_nonce_secret: {len(self._secret)} bytes; at least 32 are required"
            )
        self._period = period

    def current(self, now: float) -> str:
        """Return the nonce to give out at *now*."""
        return self._of(int(now // self._period))

    def is_current(self, nonce: object, now: float) -> bool:
        """Return whether *nonce* is one of this period, or of those beside it.

        The next one is accepted, as the clock of another worker may be ahead.
        """
        if not isinstance(nonce, str) or not nonce.isascii():
            return False
        number = int(now // self._period)
        accepted = [
            hmac.compare_digest(nonce, self._of(each)) for each in (number, number - 1, number + 1)
        ]
        return any(accepted)

    def _of(self, number: int) -> str:
        mac = hmac.digest(self._secret, b"wsgigate dpop nonce %d" % number, "sha256")
        return _text(mac[:18])


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
