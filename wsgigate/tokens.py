"""The keys that tokens are signed with: checked when they are given, so that none is weak.

This is the one file that knows a cryptographic library.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)
from jwt.algorithms import Algorithm, get_default_algorithms

__all__ = ["ALGORITHMS", "Keys", "mint"]

Text: TypeAlias = str | bytes

SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
CURVES = {"ES256": "secp256r1", "ES256K": "secp256k1", "ES384": "secp384r1", "ES512": "secp521r1"}
RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
ALGORITHMS = (*SECRET_BYTES, *sorted(RSA), *CURVES, "EdDSA")
"""Every algorithm that can be asked for."""

_ROCA_PRIMES = tuple(n for n in range(3, 168) if all(n % d for d in range(2, n)))
_ROCA_RESIDUES = {p: frozenset(pow(65537, k, p) for k in range(p)) for p in _ROCA_PRIMES}


class Keys:
    """The keys of one kind, each for the algorithms that it fits.

    Several keys of one kind are for their rotation: a signature by any of them is good. Which key
    and which algorithm is never the token's to choose.

    :param algorithms: Names of algorithms (RFC 7518 section 3.1), all with secrets or all without.
    :param secret: For ``HS*``: what both sides know, at least as long as the hash.
    :param public_key: For the others: PEM text, ``-----BEGIN PUBLIC KEY-----``.
    :raises ValueError: A key is missing, weak, of the wrong kind, or fits no algorithm. The text
        never shows a key.
    """

    def __init__(
        self,
        algorithms: Sequence[str],
        *,
        secret: Text | Sequence[Text] | None = None,
        public_key: Text | Sequence[Text] | None = None,
    ) -> None:
        names = _checked_names(algorithms)
        symmetric = names[0] in SECRET_BYTES
        wanted, given = ("secret", secret) if symmetric else ("public_key", public_key)
        other, unwanted = ("public_key", public_key) if symmetric else ("secret", secret)
        if unwanted is not None:
            raise ValueError(f"{other}: not for {', '.join(names)}, which use {wanted}")
        known = get_default_algorithms()
        texts = _texts(wanted, given)
        if symmetric:
            pairs = [(name, _secret(name, text)) for name in names for text in texts]
        else:
            keys = [_public_key(text) for text in texts]
            pairs = [(name, key) for name in names for key in keys if _fits(name, key)]
            _check_all_used(names, keys, pairs)
        self._keys: dict[str, tuple[Algorithm, list[Any]]] = {
            name: (known[name], [key for wanted, key in pairs if wanted == name]) for name in names
        }

    def __contains__(self, algorithm: str) -> bool:
        return algorithm in self._keys

    def verify(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Tell whether *signature* over *signed* is by one of the keys for *algorithm*."""
        rule, keys = self._keys[algorithm]
        return any(rule.verify(signed, key, signature) for key in keys)


def mint(
    key: Text,
    algorithm: str,
    subject: str,
    expires_in: float = 3600.0,
    now: float | None = None,
    /,
    **claims: object,
) -> str:
    """Return a new signed token, for trying things out.

    :param key: The secret, or for asymmetric algorithms the private key as PEM text.
    :param algorithm: One of :data:`ALGORITHMS`.
    :param subject: The ``sub`` claim.
    :param expires_in: In how many seconds it ends.
    :param now: Unix time in seconds; None is the present.
    :param claims: Further claims; they replace those above.
    :raises ValueError: The key is not one for this algorithm, or the token would be over already.
    """
    (name,) = _checked_names([algorithm])
    if not expires_in > 0:
        raise ValueError(f"expires_in: seconds, more than 0, not {expires_in!r}")
    issued = int(time.time() if now is None else now)
    payload = {"sub": subject, "iat": issued, "exp": issued + max(1, int(expires_in)), **claims}
    if name in SECRET_BYTES:
        return jwt.encode(payload, _secret(name, key), name)
    try:
        private = load_pem_private_key(_bytes("key", key), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("key: no PEM text of a private key without password") from None
    public: Any = private.public_key()
    _check_strength(public)
    if not _fits(name, public):
        raise ValueError(f"key: {_kind(public)} does not fit {name}")
    return jwt.encode(payload, private, name)  # type: ignore[arg-type]


def _checked_names(algorithms: object) -> list[str]:
    if isinstance(algorithms, str) or not isinstance(algorithms, Iterable):
        raise ValueError(f'algorithms: expected a list such as ["HS256"], not {algorithms!r}')
    names = list(algorithms)
    if not names:
        raise ValueError("algorithms: at least one is needed")
    for name in names:
        if isinstance(name, str) and name.lower() == "none":
            raise ValueError('algorithms: "none" would believe every token')
        if name not in ALGORITHMS:
            raise ValueError(f"algorithms: {name!r} is not one of {', '.join(ALGORITHMS)}")
    if len({name in SECRET_BYTES for name in names}) > 1:
        raise ValueError(
            "algorithms: HS* and others cannot be mixed, "
            "else a public key could be used as a secret"
        )
    return names


def _texts(setting: str, given: Text | Sequence[Text] | None) -> list[bytes]:
    if given is None:
        raise ValueError(f"{setting}: missing")
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"{setting}: expected a text or a list of texts")
    texts = [given] if isinstance(given, (str, bytes)) else list(given)
    if not texts:
        raise ValueError(f"{setting}: missing")
    return [_bytes(setting, text) for text in texts]


def _bytes(setting: str, text: object) -> bytes:
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"{setting}: expected a text or bytes, not {type(text).__name__}")
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise ValueError(f"{setting}: no valid text") from None
    if not data.strip():
        raise ValueError(f"{setting}: empty")
    return data


def _secret(algorithm: str, text: Text) -> bytes:
    data = _bytes("secret", text)
    try:
        get_default_algorithms()[algorithm].prepare_key(data)
    except jwt.InvalidKeyError:
        raise ValueError(
            "secret: this is a key of another kind (PEM, DER, SSH or JWK), "
            "which others may know; HS* needs a secret"
        ) from None
    needed = SECRET_BYTES[algorithm]
    if len(data) < needed:
        raise ValueError(
            f"secret: {len(data)} bytes; {algorithm} needs at least {needed} (RFC 7518 section 3.2)"
        )
    return data


def _public_key(text: bytes) -> Any:
    if b"PRIVATE KEY-----" in text:
        raise ValueError("public_key: this is a private key; the gateway needs the public one only")
    try:
        key = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            "public_key: no usable key in PEM text, which begins with -----BEGIN PUBLIC KEY-----"
        ) from None
    _check_strength(key)
    return key


def _check_strength(key: object) -> None:
    if not isinstance(key, RSAPublicKey):
        return
    if key.key_size < 2048:
        raise ValueError(f"public_key: RSA of {key.key_size} bits; at least 2048 are needed")
    modulus = key.public_numbers().n
    if all(modulus % prime in found for prime, found in _ROCA_RESIDUES.items()):
        raise ValueError("public_key: RSA of a chip whose keys can be broken (CVE-2017-15361)")


def _fits(algorithm: str, key: object) -> bool:
    if isinstance(key, RSAPublicKey):
        return algorithm in RSA
    if isinstance(key, EllipticCurvePublicKey):
        return CURVES.get(algorithm) == key.curve.name
    return algorithm == "EdDSA" and isinstance(key, (Ed25519PublicKey, Ed448PublicKey))


def _kind(key: object) -> str:
    if isinstance(key, RSAPublicKey):
        return "an RSA key"
    if isinstance(key, EllipticCurvePublicKey):
        return f"a key on the curve {key.curve.name}"
    return f"a key of the kind {type(key).__name__.lstrip('_')}"


def _check_all_used(
    names: Sequence[str], keys: Sequence[object], pairs: Sequence[tuple[str, object]]
) -> None:
    for key in keys:
        if not any(key is used for _, used in pairs):
            raise ValueError(f"public_key: {_kind(key)} does not fit {', '.join(names)}")
    for name in names:
        if not any(name == used for used, _ in pairs):
            need = f"a key on the curve {CURVES[name]}" if name in CURVES else "another kind of key"
            raise ValueError(f"public_key: none fits {name}, which needs {need}")
