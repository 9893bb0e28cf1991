"""Verification keys: weak keys and keys of the wrong kind are rejected."""

from __future__ import annotations

import base64
import json
import math
import random
from functools import cache

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from wsgigate.auth.jwk import ALGORITHMS, CURVES, SECRET_BYTES, VerificationKeys
from wsgigate.auth.jwt import mint

SECRET = "0123456789abcdef" * 4

KINDS = {
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "rsa-1024": lambda: rsa.generate_private_key(65537, 1024),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES256K": lambda: ec.generate_private_key(ec.SECP256K1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "P-224": lambda: ec.generate_private_key(ec.SECP224R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
}


@cache
def key(kind, number=0):
    """Return one key of that kind, always the same: the private and the public PEM."""
    private = KINDS[kind]()
    return (
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),  # type: ignore[attr-defined]
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),  # type: ignore[attr-defined]
    )


def der(tag, content):
    size = len(content)
    more = size.to_bytes((size.bit_length() + 7) // 8, "big")
    length = bytes([size]) if size < 128 else bytes([0x80 | len(more)]) + more
    return bytes([tag]) + length + content


def rsa_pem(modulus, exponent):
    """Return a public RSA key that no library would make."""
    numbers = [n.to_bytes(n.bit_length() // 8 + 1, "big") for n in (modulus, exponent)]
    body = der(0x30, b"".join(der(2, number) for number in numbers))
    text = base64.encodebytes(body).decode()
    return f"-----BEGIN RSA PUBLIC KEY-----\n{text}-----END RSA PUBLIC KEY-----\n"


def signed_by(private, algorithm):
    parts = jwt.encode({"sub": "a"}, private, algorithm).rsplit(".", 1)
    return parts[0].encode(), base64.urlsafe_b64decode(parts[1] + "==")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_verifies_its_own_signatures_and_no_others(algorithm):
    if algorithm in SECRET_BYTES:
        private, keys = SECRET, VerificationKeys([algorithm], secret=SECRET)
    else:
        kind = {"EdDSA": "ed25519"}.get(algorithm, algorithm if algorithm in CURVES else "rsa")
        private, public = key(kind)
        keys = VerificationKeys([algorithm], public_key=public.decode())
    signed, signature = signed_by(private, algorithm)
    assert algorithm in keys
    assert "none" not in keys
    assert keys.verify(algorithm, signed, signature)
    assert not keys.verify(algorithm, signed + b"x", signature)
    assert not keys.verify(algorithm, signed, signature[:-1] + bytes([signature[-1] ^ 1]))
    for wrong in (b"", b"\x00", b"\x00" * len(signature), signature + b"\x00", signature[:-1]):
        assert not keys.verify(algorithm, signed, wrong)


def test_ed448_is_eddsa_too():
    private, public = key("ed448")
    assert VerificationKeys(["EdDSA"], public_key=public).verify(
        "EdDSA", *signed_by(private, "EdDSA")
    )


@pytest.mark.parametrize("kind", ["rsa", "ES256", "secret"])
def test_during_a_rotation_the_old_and_the_new_key_are_good(kind):
    """Security J26."""
    if kind == "secret":
        name, old, new, other = "HS256", SECRET, "n" * 32, "o" * 32
        keys = VerificationKeys([name], secret=[old, new.encode()])
    else:
        name = "RS256" if kind == "rsa" else "ES256"
        (old, old_public), (new, new_public), (other, _) = (key(kind, n) for n in range(3))
        keys = VerificationKeys([name], public_key=[old_public, new_public])
    assert keys.verify(name, *signed_by(old, name))
    assert keys.verify(name, *signed_by(new, name))
    assert not keys.verify(name, *signed_by(other, name))


def test_keys_of_several_kinds_serve_each_its_own_algorithm():
    """Security J02: the key decides what it can be used for."""
    keys = VerificationKeys(["RS256", "ES256"], public_key=[key("rsa")[1], key("ES256")[1]])
    assert keys.verify("RS256", *signed_by(key("rsa")[0], "RS256"))
    assert keys.verify("ES256", *signed_by(key("ES256")[0], "ES256"))
    assert not keys.verify("ES256", *signed_by(key("rsa")[0], "RS256"))


@pytest.mark.parametrize("form", ["raw", "der"])
def test_an_ecdsa_signature_has_one_form(form):
    """Security J22: r or s of zero, and the DER form, are no signatures (RFC 7518 section 3.4)."""
    keys = VerificationKeys(["ES256"], public_key=key("ES256")[1])
    signed, signature = signed_by(key("ES256")[0], "ES256")
    r, s = signature[:32], signature[32:]
    if form == "raw":
        for wrong in (b"\x00" * 32 + s, r + b"\x00" * 32, b"\x00" + r + b"\x00" + s):
            assert not keys.verify("ES256", signed, wrong)
    else:
        numbers = (int.from_bytes(part, "big") for part in (r, s))
        body = b"".join(der(2, n.to_bytes(n.bit_length() // 8 + 1, "big")) for n in numbers)
        assert not keys.verify("ES256", signed, der(0x30, body))


def broken_chip_key():
    """Return an RSA modulus as the chips of CVE-2017-15361 made them."""
    dice = random.Random(1)
    product = math.prod(n for n in range(3, 168) if all(n % d for d in range(2, n)))
    modulus = 0
    while modulus.bit_length() != 2048 or modulus % 2 == 0:
        factor = dice.getrandbits(2049 - product.bit_length())
        modulus = factor * product + pow(65537, dice.randrange(10**6), product)
    return modulus


MODULUS = 2**2047 + 2**1000 + 1

WRONG = [
    # algorithms
    ([], {"secret": SECRET}, "algorithms: at least one is required"),
    ("HS256", {"secret": SECRET}, "algorithms: expected a list"),
    (None, {"secret": SECRET}, "algorithms: expected a list"),
    (["hs256"], {"secret": SECRET}, "algorithms: 'hs256' is not one of HS256, HS384"),
    (["HS256", ["RS256"]], {"secret": SECRET}, "is not one of"),
    (["none"], {"secret": SECRET}, '"none" would accept every token'),
    (["HS256", "None"], {"secret": SECRET}, '"none" would accept every token'),
    (["HS256", "RS256"], {"secret": SECRET}, r"HS\* and others cannot be mixed"),  # J03
    # J33: a key that is not there is an error, never a pass
    (["HS256"], {}, "secret: required for these algorithms"),
    (["HS256"], {"secret": []}, "secret: required for these algorithms"),
    (["HS256"], {"secret": ""}, "secret: empty"),
    (["HS256"], {"secret": b" \n"}, "secret: empty"),
    (["HS256"], {"secret": [SECRET, ""]}, "secret: empty"),
    (["HS256"], {"secret": [SECRET, None]}, "secret: expected a text or bytes, not NoneType"),
    (["HS256"], {"secret": 17}, "secret: expected a text"),
    (["HS256"], {"secret": {"a": SECRET}}, "secret: expected a text"),
    (["HS256"], {"secret": "\udc80" * 40}, "secret: not a valid text"),
    (["RS256"], {}, "public_key: required for these algorithms"),
    (["RS256"], {"public_key": ""}, "public_key: empty"),
    (["RS256"], {"secret": SECRET}, "secret: not for RS256, which use public_key"),
    (["HS256"], {"public_key": "x"}, "public_key: not for HS256, which use secret"),
    (["HS256"], {"secret": SECRET, "public_key": "x"}, "public_key: not for HS256"),
    # J21: weak ones
    (["HS256"], {"secret": "x" * 31}, "secret: 31 bytes; HS256 needs at least 32"),
    (["HS384"], {"secret": "x" * 47}, "secret: 47 bytes; HS384 needs at least 48"),
    (["HS256", "HS512"], {"secret": "x" * 63}, "secret: 63 bytes; HS512 needs at least 64"),
    (["HS256"], {"secret": [SECRET, "short"]}, "secret: 5 bytes"),
    (["RS256"], {"public_key": key("rsa-1024")[1]}, "RSA of 1024 bits; at least 2048"),
    (["RS256"], {"public_key": rsa_pem(MODULUS, 1)}, "public_key: expected a key as PEM text"),
    (["RS256"], {"public_key": rsa_pem(MODULUS, 2)}, "public_key: expected a key as PEM text"),
    (["RS256"], {"public_key": rsa_pem(broken_chip_key(), 65537)}, "CVE-2017-15361"),
    (["ES256"], {"public_key": key("ES384")[1]}, "a key on the curve secp384r1 does not fit ES256"),
    (["ES256"], {"public_key": key("P-224")[1]}, "a key on the curve secp224r1 does not fit ES256"),
    # of another kind
    (["RS256"], {"public_key": key("ES256")[1]}, "a key on the curve secp256r1 does not fit RS256"),
    (["ES256"], {"public_key": key("rsa")[1]}, "an RSA key does not fit ES256"),
    (["ES256"], {"public_key": key("ed25519")[1]}, "Ed25519PublicKey does not fit ES256"),
    (["RS256", "ES384"], {"public_key": key("rsa")[1]}, "none fits ES384, which needs a key on"),
    (["RS256", "EdDSA"], {"public_key": key("rsa")[1]}, "none fits EdDSA, which needs another"),
    (
        ["RS256"],
        {"public_key": key("rsa")[0]},
        "this is a private key; the gateway needs only the public",
    ),
    (["RS256"], {"public_key": "ssh-rsa AAAA"}, "public_key: expected a key as PEM text"),
    (["RS256"], {"public_key": SECRET}, "public_key: expected a key as PEM text"),
    (["HS256"], {"secret": key("rsa")[1]}, "secret: this is a key in another format"),  # J02
    (["HS256"], {"secret": key("rsa")[0].decode()}, "secret: this is a key in another format"),
    (
        ["HS256"],
        {"secret": json.dumps({"kty": "oct", "k": "x" * 40})},
        "this is a key in another format",
    ),
]


@pytest.mark.parametrize(("algorithms", "options", "text"), WRONG)
def test_a_key_that_cannot_protect_anything_is_refused_at_once(algorithms, options, text):
    """Security J02, J03, J21, J33."""
    with pytest.raises(ValueError, match=text) as caught:
        VerificationKeys(algorithms, **options)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("HS256", None), ("RS256", "rsa"), ("ES384", "ES384")]
)
def test_a_minted_token_is_one_that_others_can_read(algorithm, kind):
    private, public = key(kind) if kind else (SECRET, SECRET)
    token = mint(private, algorithm, "user-1", 60, 1000.9, role="admin")
    assert jwt.decode(token, public, [algorithm], options={"verify_exp": False}) == {
        "sub": "user-1",
        "iat": 1000,
        "exp": 1060,
        "role": "admin",
    }


def test_a_claim_may_have_any_name():
    names = {"key": "k", "algorithm": "a", "subject": "s", "expires_in": 1, "now": 2, "sub": "b"}
    assert (
        names.items() <= jwt.decode(mint(SECRET, "HS256", "a", **names), SECRET, ["HS256"]).items()
    )


def test_a_minted_token_is_valid_from_now_by_default():
    assert jwt.decode(mint(SECRET, "HS256", "a"), SECRET, ["HS256"])["sub"] == "a"


@pytest.mark.parametrize(
    ("key", "algorithm", "expires_in", "text"),
    [
        ("short", "HS256", 60, "secret: 5 bytes"),
        (SECRET, "none", 60, '"none" would accept'),
        (SECRET, "RS256", 60, "key: expected a private key without password"),
        (key("rsa")[1], "RS256", 60, "key: expected a private key without password"),
        (key("rsa")[0], "ES256", 60, "key: an RSA key does not fit ES256"),
        (key("rsa-1024")[0], "RS256", 60, "RSA of 1024 bits"),
        (SECRET, "HS256", 0, "expires_in: seconds, more than 0"),
        (SECRET, "HS256", math.nan, "expires_in: seconds, more than 0"),
    ],
)
def test_minting_a_token_that_could_not_be_accepted_raises(key, algorithm, expires_in, text):
    with pytest.raises(ValueError, match=text):
        mint(key, algorithm, "a", expires_in)
