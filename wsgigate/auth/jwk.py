"""Keys that verify signatures: secrets, PEM keys, certificates, and JSON Web Keys (RFC 7517).

Keys are validated when they are loaded: a weak key, or one that does not fit its algorithm, never
verifies anything. The configuration alone chooses keys and algorithms, never the token: that is
what algorithm confusion attacks abuse. A key has one kind, secret or public, whatever it is named.

Sets of keys come from the configuration or from an issuer. A configured set with a weak, private or
ambiguous key is an error, as the operator can correct it; a weak or private key in the set of an
issuer is left out and reported, as the other keys still serve. Keys for other purposes (encryption,
unknown curves) are left out in both. This module and :mod:`.jwt` alone use a cryptographic library.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from typing import Any, NamedTuple, TypeAlias

import jwt
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256K1,
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import (
    load_der_private_key,
    load_der_public_key,
    load_pem_public_key,
)
from jwt.algorithms import Algorithm, get_default_algorithms

from wsgigate.http.bodies import InvalidJson, read_object, shown

__all__ = [
    "ALGORITHMS",
    "ASYMMETRIC",
    "CURVES",
    "MAX_KEYS",
    "SECRET_BYTES",
    "Jwk",
    "KeySet",
    "KeyText",
    "OtherUse",
    "VerificationKey",
    "VerificationKeys",
    "check_strength",
    "checked_names",
    "configured_keys",
    "fits",
    "kind_of",
    "public_key_of",
    "public_members",
    "read_jwk",
    "read_jwks",
    "secret_of",
    "text_of",
    "thumbprint",
]

KeyText: TypeAlias = str | bytes

Jwk: TypeAlias = Mapping[str, Any]

SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}

CURVES = {"ES256": "secp256r1", "ES256K": "secp256k1", "ES384": "secp384r1", "ES512": "secp521r1"}

RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})

ASYMMETRIC = (*sorted(RSA), *CURVES, "EdDSA")
"""The algorithms with a public key."""

ALGORITHMS = (*SECRET_BYTES, *ASYMMETRIC)
"""All supported algorithms."""

MAX_KEYS = 100
"""Maximum number of keys in a set. A token without a key id is verified by each that fits."""

_ROCA_PRIMES = tuple(n for n in range(3, 168) if all(n % d for d in range(2, n)))

_ROCA_RESIDUES = {p: frozenset(pow(65537, k, p) for k in range(p)) for p in _ROCA_PRIMES}

_LARGEST_RSA = 16384

_LARGEST_EXPONENT = 64
"""In bits. A larger one makes each verification as slow as signing."""

_KID = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{0,256}")


class VerificationKey(NamedTuple):
    """One key.

    :ivar key: The key as the cryptographic library takes it.
    :ivar algorithms: The algorithms that it fits, and that it is for.
    :ivar kid: Its id; None for a key without one.
    """

    key: Any
    algorithms: frozenset[str]
    kid: str | None = None


class KeySet:
    """Keys by algorithm and key id; it cannot be changed.

    A token that names a key is verified by the keys of this id, and by those without an id. A token
    that names none is verified by every key that fits its algorithm.
    """

    def __init__(self, keys: Iterable[VerificationKey]) -> None:
        self.keys = tuple(keys)
        self.names = frozenset(key.kid for key in self.keys if key.kid is not None)
        self._has_unnamed = any(key.kid is None for key in self.keys)
        used = frozenset[str]().union(*(key.algorithms for key in self.keys))
        self._rules: dict[str, Algorithm] = {name: _rules()[name] for name in used}
        self._all = {
            name: tuple(key.key for key in self.keys if name in key.algorithms) for name in used
        }
        self._named = {
            (name, kid): tuple(
                key.key for key in self.keys if name in key.algorithms and key.kid in (kid, None)
            )
            for name in used
            for kid in (*self.names, None)
        }

    def __len__(self) -> int:
        return len(self.keys)

    def verify(
        self, algorithm: str, signed: bytes, signature: bytes, kid: str | None = None
    ) -> bool:
        """Return whether *signature* over *signed* is that of one of the keys.

        :param kid: The key id that the token names.
        """
        if kid is None:
            keys = self._all.get(algorithm, ())
        else:
            found = self._named.get((algorithm, kid))
            keys = self._named.get((algorithm, None), ()) if found is None else found
        if not keys:
            return False
        rule = self._rules[algorithm]
        return any(rule.verify(signed, key, signature) for key in keys)

    def lacks(self, kid: str | None) -> bool:
        """Return whether a newer set could have the key of a token that could not be verified.

        That of a token without a key id only if this set has keys without one: where all keys have
        ids, the token does not tell which key is missing.
        """
        return self._has_unnamed if kid is None else kid not in self.names


@cache
def _rules() -> Mapping[str, Algorithm]:
    return get_default_algorithms()


class VerificationKeys:
    """Configured keys, symmetric or asymmetric, each for the algorithms that it fits.

    Several keys allow rotation. The token never chooses the algorithm, and its key id only selects
    among these keys.

    :param algorithms: Names of algorithms (RFC 7518 section 3.1), all symmetric or all asymmetric.
        Default with *jwks*: all those of the keys.
    :param secret: For ``HS*``: the shared secret, at least as long as the hash.
    :param public_key: For the others: PEM text, ``-----BEGIN PUBLIC KEY-----``, or a certificate,
        of which only the key is used. Bytes may be DER as well.
    :param jwks: A JWK or a JWK set (RFC 7517), as text or as a table, instead of these.
    :raises ValueError: A key is missing, weak, of the wrong type, or fits no algorithm. The message
        never contains a key.
    :ivar set: The keys.
    """

    def __init__(
        self,
        algorithms: Sequence[str] | None,
        *,
        secret: KeyText | Sequence[KeyText] | None = None,
        public_key: KeyText | Sequence[KeyText] | None = None,
        jwks: KeyText | Jwk | None = None,
    ) -> None:
        if jwks is not None:
            for setting, given in (("secret", secret), ("public_key", public_key)):
                if given is not None:
                    raise ValueError(f"{setting}: mutually exclusive with jwks; give one of them")
            keys = configured_keys(jwks, algorithms)
        else:
            keys = _given_keys(checked_names(algorithms), secret, public_key)
        self.set = KeySet(keys)
        self._names = frozenset[str]().union(*(key.algorithms for key in keys))

    def __contains__(self, algorithm: str) -> bool:
        return algorithm in self._names

    def verify(
        self, algorithm: str, signed: bytes, signature: bytes, kid: str | None = None
    ) -> bool:
        """Return whether *signature* over *signed* matches one of the keys for *algorithm*."""
        return self.set.verify(algorithm, signed, signature, kid)


def _given_keys(
    names: Sequence[str],
    secret: KeyText | Sequence[KeyText] | None,
    public_key: KeyText | Sequence[KeyText] | None,
) -> list[VerificationKey]:
    symmetric = names[0] in SECRET_BYTES
    wanted, given = ("secret", secret) if symmetric else ("public_key", public_key)
    other, unwanted = ("public_key", public_key) if symmetric else ("secret", secret)
    if unwanted is not None:
        raise ValueError(f"{other}: not for {', '.join(names)}, which use {wanted}")
    texts = _texts(wanted, given)
    if symmetric:
        for name in names:
            for text in texts:
                secret_of(name, text)
        return [VerificationKey(text, frozenset(names)) for text in texts]
    keys = [public_key_of(text) for text in texts]
    made = [VerificationKey(key, frozenset(n for n in names if fits(n, key))) for key in keys]
    _check_all_used(names, made)
    return made


def checked_names(algorithms: object) -> list[str]:
    """Return the names of *algorithms*, which are all symmetric or all asymmetric.

    :raises ValueError: They are anything else.
    """
    if isinstance(algorithms, str) or not isinstance(algorithms, Iterable):
        raise ValueError(f'algorithms: expected a list such as ["HS256"], not {algorithms!r}')
    names = list(algorithms)
    if not names:
        raise ValueError('algorithms: at least one is required, such as ["RS256"]')
    for name in names:
        if isinstance(name, str) and name.lower() == "none":
            raise ValueError('algorithms: "none" would accept every token')
        if name not in ALGORITHMS:
            raise ValueError(f"algorithms: {name!r} is not one of {', '.join(ALGORITHMS)}")
    if len({name in SECRET_BYTES for name in names}) > 1:
        raise ValueError(
            "algorithms: HS* and others cannot be mixed: a public key could be used as a secret"
        )
    return names


def _texts(setting: str, given: KeyText | Sequence[KeyText] | None) -> list[bytes]:
    if given is None:
        raise ValueError(f"{setting}: required for these algorithms")
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"{setting}: expected a text or a list of texts")
    texts = [given] if isinstance(given, (str, bytes)) else list(given)
    if not texts:
        raise ValueError(f"{setting}: required for these algorithms")
    return [text_of(setting, text) for text in texts]


def text_of(setting: str, text: object) -> bytes:
    """Return the bytes of *text*, which is not empty.

    :raises ValueError: It is anything else; the message names *setting*.
    """
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"{setting}: expected a text or bytes, not {type(text).__name__}")
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise ValueError(f"{setting}: not a valid text") from None
    if not data.strip():
        raise ValueError(f"{setting}: empty")
    return data


def secret_of(algorithm: str, text: KeyText) -> bytes:
    """Return the bytes of a secret for *algorithm*.

    :raises ValueError: It is too short, or a key in another format, which may be public.
    """
    data = text_of("secret", text)
    try:
        _rules()[algorithm].prepare_key(data)
    except jwt.InvalidKeyError:
        raise ValueError(
            "secret: this is a key in another format (PEM, DER, SSH or JWK), "
            "which may be public; HS* needs a secret"
        ) from None
    needed = SECRET_BYTES[algorithm]
    if len(data) < needed:
        raise ValueError(
            f"secret: {len(data)} bytes; {algorithm} needs at least {needed} (RFC 7518 section 3.2)"
        )
    return data


def public_key_of(given: KeyText) -> Any:
    """Return the public key of PEM text or DER bytes; of a certificate only its key is used.

    :raises ValueError: It is something else, or the key is weak.
    """
    text = text_of("public_key", given)
    if b"PRIVATE KEY-----" in text:
        raise ValueError(_PRIVATE_KEY)
    if _is_der(text):
        key = _der_key(text)
        check_strength(key)
        return key
    if text.lstrip().startswith(b"{"):
        raise ValueError(
            "public_key: this is JSON, not PEM text; give a JWK or a JWK set as jwks or jwks_file"
        )
    try:
        if b"-----BEGIN CERTIFICATE-----" in text:
            # The first one is the owner's; those of authorities follow. Its dates do not matter,
            # as it is trusted for being configured.
            key = x509.load_pem_x509_certificate(text).public_key()
        else:
            key = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            "public_key: expected a key as PEM text, which starts with -----BEGIN PUBLIC KEY----- "
            "or -----BEGIN CERTIFICATE-----"
        ) from None
    check_strength(key)
    return key


_PRIVATE_KEY = "public_key: this is a private key; the gateway needs only the public key"


def _is_der(data: bytes) -> bool:
    """Return whether *data* begins as keys and certificates in DER do: a SEQUENCE of its length."""
    if data[:1] != b"\x30" or len(data) < 3:
        return False
    return data[1] in (0x81, 0x82) or data[1] == len(data) - 2


def _der_key(data: bytes) -> Any:
    try:
        return load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        pass
    try:
        return x509.load_der_x509_certificate(data).public_key()
    except (ValueError, UnsupportedAlgorithm):
        pass
    try:
        load_der_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(
            "public_key: these bytes are neither a public key nor a certificate in DER; expected "
            "one of these, or PEM text, which starts with -----BEGIN PUBLIC KEY-----"
        ) from None
    raise ValueError(_PRIVATE_KEY)


def check_strength(key: object) -> None:
    """Check that an RSA key is strong, and not too large to verify tokens with.

    :raises ValueError: It is not.
    """
    if not isinstance(key, RSAPublicKey):
        return
    if key.key_size < 2048:
        raise ValueError(f"public_key: RSA of {key.key_size} bits; at least 2048 are required")
    numbers = key.public_numbers()
    if key.key_size > _LARGEST_RSA or numbers.e.bit_length() > _LARGEST_EXPONENT:
        raise ValueError(
            f"public_key: RSA of {key.key_size} bits and an exponent of {numbers.e.bit_length()}; "
            f"at most {_LARGEST_RSA} and {_LARGEST_EXPONENT} are allowed"
        )
    if all(numbers.n % prime in found for prime, found in _ROCA_RESIDUES.items()):
        raise ValueError("public_key: an RSA key that can be factored (ROCA, CVE-2017-15361)")


def fits(algorithm: str, key: object) -> bool:
    """Return whether a public *key* can verify signatures of *algorithm*."""
    if isinstance(key, RSAPublicKey):
        return algorithm in RSA
    if isinstance(key, EllipticCurvePublicKey):
        return CURVES.get(algorithm) == key.curve.name
    return algorithm == "EdDSA" and isinstance(key, (Ed25519PublicKey, Ed448PublicKey))


def kind_of(key: object) -> str:
    """Return what kind of key this is, for error messages."""
    if isinstance(key, RSAPublicKey):
        return "an RSA key"
    if isinstance(key, EllipticCurvePublicKey):
        return f"a key on the curve {key.curve.name}"
    if isinstance(key, bytes):
        return "a secret"
    return f"a key of the type {type(key).__name__.lstrip('_')}"


def _check_all_used(names: Sequence[str], keys: Sequence[VerificationKey]) -> None:
    for key in keys:
        if not key.algorithms:
            raise ValueError(f"public_key: {kind_of(key.key)} does not fit {', '.join(names)}")
    for name in names:
        if not any(name in key.algorithms for key in keys):
            need = f"a key on the curve {CURVES[name]}" if name in CURVES else "another type of key"
            raise ValueError(f"public_key: none fits {name}, which needs {need}")


# JSON Web Keys (RFC 7517, RFC 7518 section 6, RFC 8037).

_EC: dict[str, tuple[type[EllipticCurve], int]] = {
    "P-256": (SECP256R1, 32),
    "secp256k1": (SECP256K1, 32),  # RFC 8812
    "P-384": (SECP384R1, 48),
    "P-521": (SECP521R1, 66),
}
"""The curves by name, with the size of a coordinate in bytes."""

_OKP: dict[str, type[Ed25519PublicKey] | type[Ed448PublicKey]] = {
    "Ed25519": Ed25519PublicKey,
    "Ed448": Ed448PublicKey,
}

_PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth")

_PUBLIC = ("kty", "kid", "alg", "use", "key_ops", "crv", "n", "e", "x", "y")


class OtherUse(ValueError):
    """The key is not for verifying signatures of a supported algorithm; sets may have such keys."""


def read_jwks(data: KeyText | Jwk, what: str = "JWK set") -> list[Jwk]:
    """Return the keys of a JWK set, or the one JWK that *data* is.

    The keys are not validated: see :func:`read_jwk`.

    :param what: Its name in error messages.
    :raises ValueError: *data* is neither, or has more than :data:`MAX_KEYS` keys.
    """
    if isinstance(data, Mapping):
        document: Mapping[str, Any] = data
    elif isinstance(data, (str, bytes)):
        try:
            document = read_object(data.encode() if isinstance(data, str) else data, what)
        except (InvalidJson, UnicodeEncodeError) as error:
            raise ValueError(str(error)) from None
    else:
        raise ValueError(f"expected a {what} as text or as a table, not {type(data).__name__}")
    if "keys" not in document and "kty" in document:
        return [document]
    keys = document.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, Mapping) for key in keys):
        raise ValueError(f'a {what} without "keys", a list of objects (RFC 7517 section 5)')
    if len(keys) > MAX_KEYS:
        raise ValueError(f"a {what} of {len(keys)} keys; at most {MAX_KEYS} are allowed")
    return list(keys)


def read_jwk(jwk: Jwk, *, symmetric: bool = False) -> VerificationKey:
    """Return the key that *jwk* describes.

    A certificate in it (``x5c``, ``x5u``) is ignored.

    :param symmetric: Whether a secret (``oct``) is expected, rather than a public key.
    :raises OtherUse: The key is for another purpose.
    :raises ValueError: It is invalid, weak, or a private key.
    """
    kid = jwk.get("kid")
    if kid is not None and not (isinstance(kid, str) and _KID.fullmatch(kid)):
        raise ValueError(f"kid is {shown(kid)}, not a short text")
    use, operations = jwk.get("use"), jwk.get("key_ops")
    if use is not None and use != "sig":
        raise OtherUse(f'use is {shown(use)}, not "sig"')
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise OtherUse(f'key_ops is {shown(operations)}, without "verify"')
    key, possible = _secret_key(jwk) if jwk.get("kty") == "oct" else _asymmetric_key(jwk)
    if symmetric is not isinstance(key, bytes):
        raise OtherUse(f"it is {kind_of(key)}; these algorithms need another kind")
    algorithm = jwk.get("alg")
    if algorithm is not None:
        possible &= {algorithm} if isinstance(algorithm, str) else set()
        if not possible:
            raise OtherUse(f"alg is {shown(algorithm)}, for {kind_of(key)}")
    return VerificationKey(key, frozenset(possible), kid)


def public_members(jwk: Jwk) -> dict[str, Any]:
    """Return the members of a public *jwk* that :func:`read_jwk` uses."""
    return {name: jwk[name] for name in _PUBLIC if name in jwk}


_IDENTIFYING = {
    "EC": ("crv", "kty", "x", "y"),
    "OKP": ("crv", "kty", "x"),
    "RSA": ("e", "kty", "n"),
}
"""The required members of a public key by type, in the order of RFC 7638 and RFC 8037."""


def thumbprint(jwk: Jwk) -> str:
    """Return the SHA-256 thumbprint of a public key (RFC 7638), as base64url text.

    :raises ValueError: A member that identifies the key is missing, or not in its only spelling.
    """
    kty = jwk.get("kty")
    names = _IDENTIFYING.get(kty) if isinstance(kty, str) else None
    if names is None:
        raise ValueError(f"kty is {shown(kty)}, not RSA, EC or OKP")
    members: dict[str, Any] = {name: jwk.get(name) for name in names}
    for name in names:
        if name not in ("crv", "kty"):
            data = _octets(jwk, name)
            # the same number in another spelling would be another thumbprint of the same key
            if members[name] != urlsafe_b64encode(data).rstrip(b"=").decode():
                raise ValueError(f"{name} is not in its shortest form")
    digest = sha256(json.dumps(members, separators=(",", ":")).encode()).digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def _secret_key(jwk: Jwk) -> tuple[bytes, set[str]]:
    secret = _octets(jwk, "k")
    possible = {name for name, needed in SECRET_BYTES.items() if len(secret) >= needed}
    if not possible:
        raise ValueError(f"a secret of {len(secret)} bytes; at least 32 are required")
    algorithm = jwk.get("alg")
    if algorithm in SECRET_BYTES and algorithm not in possible:
        raise ValueError(
            f"a secret of {len(secret)} bytes; {algorithm} needs at least {SECRET_BYTES[algorithm]}"
        )
    return secret, possible


def _asymmetric_key(jwk: Jwk) -> tuple[Any, set[str]]:
    kty, crv = jwk.get("kty"), jwk.get("crv")
    if any(name in jwk for name in _PRIVATE):
        raise ValueError(
            "a private key; the gateway needs only the public part, and all who can read the set "
            "can sign tokens: replace the key"
        )
    try:
        if kty == "RSA":
            e, n = (int.from_bytes(_octets(jwk, name)) for name in ("e", "n"))
            if n.bit_length() > _LARGEST_RSA:
                raise ValueError(f"RSA of {n.bit_length()} bits; at most {_LARGEST_RSA}")
            key: Any = RSAPublicNumbers(e, n).public_key()
        elif kty == "EC" and isinstance(crv, str) and crv in _EC:
            curve, size = _EC[crv]
            x, y = (_octets(jwk, name) for name in ("x", "y"))
            if len(x) != size or len(y) != size:
                raise ValueError(f"x and y have {len(x)} and {len(y)} bytes; {crv} has {size}")
            numbers = EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve())
            key = numbers.public_key()
        elif kty == "OKP" and isinstance(crv, str) and crv in _OKP:
            key = _OKP[crv].from_public_bytes(_octets(jwk, "x"))
        elif kty in ("EC", "OKP"):
            raise OtherUse(f"crv is {shown(crv)}, which no supported algorithm uses")
        else:
            raise OtherUse(f"kty is {shown(kty)}, not RSA, EC, OKP or oct")
        check_strength(key)
    except OtherUse:
        raise
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(str(error).removeprefix("public_key: ") or "not a key") from None
    return key, {name for name in ASYMMETRIC if fits(name, key)}


def _octets(jwk: Jwk, name: str) -> bytes:
    value = jwk.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is required, as base64url text")
    if not re.fullmatch(r"[A-Za-z0-9_-]+={0,2}", value):
        raise ValueError(f"{name} is not base64url text")
    try:
        return urlsafe_b64decode(value.rstrip("=") + "=" * (-len(value.rstrip("=")) % 4))
    except ValueError:
        raise ValueError(f"{name} is not base64url text") from None


def configured_keys(
    jwks: KeyText | Jwk, algorithms: Sequence[str] | None, setting: str = "jwks"
) -> list[VerificationKey]:
    """Return the keys of a configured JWK or JWK set.

    :param algorithms: The algorithms to use the keys for; None for all asymmetric ones.
    :param setting: The name of the setting, for error messages.
    :raises ValueError: A key is invalid, weak or private, or none fits *algorithms*.
    """
    names = frozenset(ASYMMETRIC if algorithms is None else checked_names(algorithms))
    symmetric = not names.isdisjoint(SECRET_BYTES)
    try:
        found = read_jwks(jwks)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}{_cure(jwks)}") from None
    if len({jwk.get("kty") == "oct" for jwk in found}) > 1:
        raise ValueError(
            f"{setting}: secrets (oct) and public keys in one set; public keys are given to "
            "others, so keep the secrets in a set of their own"
        )
    keys: list[VerificationKey] = []
    others: list[str] = []
    for number, jwk in enumerate(found):
        kid = jwk.get("kid")
        where = f"keys[{number}]" + (f" (kid {shown(kid)})" if isinstance(kid, str) else "")
        try:
            key = read_jwk(jwk, symmetric=symmetric)
        except OtherUse as error:
            others.append(f"{where}: {error}")
            continue
        except ValueError as error:
            raise ValueError(f"{setting}: {where}: {error}") from None
        usable = key.algorithms & names
        if any(key.kid is not None and key.kid == k.kid and usable & k.algorithms for k in keys):
            raise ValueError(
                f"{setting}: {where}: another key of the same kind has this kid as well; "
                "give each key a kid of its own"
            )
        if usable:
            keys.append(key._replace(algorithms=usable))
        else:
            others.append(f"{where}: {kind_of(key.key)} does not fit {', '.join(sorted(names))}")
    if not keys:
        why = f"; {others[0]}" if others else ""
        raise ValueError(f"{setting}: no key verifies signatures{why}")
    return keys


def _cure(jwks: KeyText | Jwk) -> str:
    text = jwks.encode("utf-8", "replace") if isinstance(jwks, str) else jwks
    if isinstance(text, bytes) and b"-----BEGIN" in text:
        return "; this is PEM text: give it as public_key or public_key_file"
    if isinstance(text, bytes) and re.fullmatch(rb"[^\s{}\[\]]+\.[a-z]+", text):
        return "; give a file as jwks_file, and a URL with https://"
    return ""
