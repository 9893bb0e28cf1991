"""JSON Web Keys and sets of them: which verify what, and which are refused."""

from __future__ import annotations

import base64
import json
import re

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.support.certificates import Authority
from tests.support.issuer import octets, signing_key
from wsgigate.auth.jwk import (
    MAX_KEYS,
    KeySet,
    OtherUse,
    VerificationKeys,
    public_members,
    read_jwk,
    read_jwks,
)

SECRET = b"0123456789abcdef" * 4
OCT = {"kty": "oct", "k": octets(SECRET), "kid": "s"}
RSA, EC, OKP = PUBLIC = [signing_key(name) for name in ("RS256", "ES256", "EdDSA")]
SPKI = PublicFormat.SubjectPublicKeyInfo


def parts(token: str) -> tuple[bytes, bytes]:
    signed, _, signature = token.rpartition(".")
    return signed.encode(), base64.urlsafe_b64decode(signature + "==")


@pytest.mark.parametrize(
    "algorithm",
    ["RS256", "RS512", "PS256", "PS512", "ES256", "ES256K", "ES384", "ES512", "EdDSA", "Ed448"],
)
def test_a_jwk_of_every_kind_verifies_its_signatures(algorithm):
    key = signing_key(algorithm)
    keys = VerificationKeys(None, jwks=json.dumps({"keys": [key.jwk()]}))
    signed, signature = parts(key.token({"sub": "a"}))
    assert keys.verify(key.algorithm, signed, signature, key.kid)
    assert keys.verify(key.algorithm, signed, signature)
    assert not keys.verify(key.algorithm, signed + b"x", signature, key.kid)
    assert not keys.verify(key.algorithm, signed, signature, "another")


def test_a_single_jwk_stands_for_a_set_and_a_table_for_its_text():
    for jwks in (RSA.jwk(), json.dumps(RSA.jwk()), {"keys": [RSA.jwk()]}):
        assert len(VerificationKeys(["RS256"], jwks=jwks).set) == 1


def test_a_secret_jwk_verifies_hmac_and_has_a_key_id():
    keys = VerificationKeys(["HS256"], jwks=OCT)
    signed, signature = parts(jwt.encode({"sub": "a"}, SECRET, "HS256"))
    assert keys.verify("HS256", signed, signature, "s")
    assert not keys.verify("HS256", signed, signature, "t")
    assert "RS256" not in keys


def test_a_key_without_an_id_serves_every_key_id():
    keys = KeySet([read_jwk(RSA.jwk(kid=...)), read_jwk(EC.jwk())])
    signed, signature = parts(RSA.token({}))
    assert keys.verify("RS256", signed, signature, "whatever")
    assert keys.verify("RS256", signed, signature, EC.kid)
    assert keys.lacks("whatever")
    assert keys.lacks(None)


def test_where_all_keys_have_ids_a_token_without_one_does_not_ask_for_newer_keys():
    keys = KeySet([read_jwk(RSA.jwk()), read_jwk(EC.jwk())])
    assert not keys.lacks(None)
    assert not keys.lacks(RSA.kid)
    assert keys.lacks("whatever")


def test_of_two_keys_with_one_id_either_verifies():
    one, two = signing_key("ES256", 1), signing_key("ES256", 2)
    keys = KeySet([read_jwk(one.jwk(kid="k")), read_jwk(two.jwk(kid="k"))])
    for key in (one, two):
        assert keys.verify("ES256", *parts(key.token({})), "k")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"use": "enc"}, 'use is .enc., not "sig"'),
        ({"use": 1}, "use is "),
        ({"key_ops": ["encrypt"]}, "key_ops is "),
        ({"key_ops": "verify"}, "key_ops is "),
        ({"alg": "RSA-OAEP"}, "alg is .RSA-OAEP., for an RSA key"),
        ({"alg": "ES256"}, "alg is .ES256., for an RSA key"),
        ({"alg": "HS256"}, "alg is .HS256., for an RSA key"),
        ({"alg": ["RS256"]}, "alg is "),
        ({"kty": "X"}, "kty is .X., not RSA, EC, OKP or oct"),
        ({"kty": ...}, "kty is "),
        ({"kty": "EC", "crv": "P-224"}, "crv is .P-224., which no supported algorithm uses"),
        ({"kty": "OKP", "crv": "X25519"}, "crv is .X25519."),
        ({"kty": "OKP", "crv": ["Ed25519"]}, "crv is "),
    ],
)
def test_a_key_for_another_purpose_is_none_for_signatures(changes, why):
    """Security J06."""
    with pytest.raises(OtherUse, match=why):
        read_jwk(RSA.jwk(**changes))


@pytest.mark.parametrize(
    ("jwk", "why"),
    [
        (signing_key("RS256-1024").jwk(), "RSA of 1024 bits; at least 2048 are required"),
        (RSA.jwk(e="AQ"), "e must be"),
        (RSA.jwk(e=octets(b"\x01" * 32)), "an exponent of 249"),
        (RSA.jwk(n=octets(b"\xff" * 4096)), "RSA of 32768 bits"),
        (RSA.jwk(n=...), "n is required"),
        (RSA.jwk(n="AQ AB"), "n is not base64url text"),
        (RSA.jwk(n="A+/B"), "n is not base64url text"),
        (RSA.jwk(n=7), "n is required"),
        (RSA.jwk(d="AQAB"), "a private key"),
        (EC.jwk(d="AQAB"), "a private key"),
        (OKP.jwk(d="AQAB"), "a private key"),
        (EC.jwk(x=octets(b"\x01" * 32)), "curve"),
        (EC.jwk(x=octets(b"\x01" * 31)), "x and y have 31 and 32 bytes; P-256 has 32"),
        (EC.jwk(crv="P-384"), "x and y have 32 and 32 bytes; P-384 has 48"),
        (OKP.jwk(x=octets(b"\x01" * 31)), "32 bytes"),
        (RSA.jwk(kid=7), "kid is"),
        (RSA.jwk(kid="a\nb"), "kid is"),
        (RSA.jwk(kid="x" * 257), "kid is"),
    ],
)
def test_a_weak_or_broken_key_is_refused(jwk, why):
    """Security J21."""
    with pytest.raises(ValueError, match=why) as found:
        read_jwk(jwk)
    assert not isinstance(found.value, OtherUse)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"k": octets(b"x" * 31)}, "a secret of 31 bytes; at least 32"),
        ({"k": octets(b"x" * 40), "alg": "HS512"}, "a secret of 40 bytes; HS512 needs at least 64"),
        ({"k": ...}, "k is required"),
    ],
)
def test_a_weak_secret_is_refused(changes, why):
    jwk = {name: value for name, value in {**OCT, **changes}.items() if value is not ...}
    with pytest.raises(ValueError, match=why):
        read_jwk(jwk, symmetric=True)


def test_a_secret_is_no_public_key_and_a_public_key_no_secret():
    """Security J02: a set of an issuer is public, so a secret in it is none."""
    with pytest.raises(OtherUse, match="it is a secret"):
        read_jwk(OCT)
    with pytest.raises(OtherUse, match="it is an RSA key"):
        read_jwk(RSA.jwk(), symmetric=True)


@pytest.mark.parametrize("name", ["x5c", "x5u", "x5t", "jku"])
def test_certificates_and_references_in_a_key_are_ignored(name):
    jwk = RSA.jwk(**{name: "https://evil.example/"})
    assert read_jwk(jwk) == read_jwk(RSA.jwk())
    assert name not in public_members(jwk)


def test_padding_in_a_key_is_harmless():
    jwk = RSA.jwk()
    assert read_jwk({**jwk, "e": jwk["e"] + "==", "n": jwk["n"] + "="}).key == read_jwk(jwk).key


SETS = [
    ("{}", "jwks: a JWK set without .keys., a list of objects"),
    ('{"keys": {}}', "without .keys."),
    ('{"keys": [7]}', "without .keys."),
    ('{"keys": []}', "jwks: no key verifies signatures$"),
    ("[]", "jwks: a JWK set that is not an object"),
    ("x", "jwks: a JWK set that is not strict JSON"),
    ('{"keys": [], "keys": []}', "a duplicate member"),
    ('{"keys": ' + "[" * 100_000, "jwks: a JWK set that is"),
    (json.dumps({"keys": [{}] * (MAX_KEYS + 1)}), "of 101 keys; at most 100 are allowed"),
    (json.dumps({"keys": [RSA.jwk(use="enc")]}), r"no key verifies signatures; keys\[0\] \(kid "),
    (
        json.dumps({"keys": [RSA.jwk(), RSA.jwk(d="AQ")]}),
        r"jwks: keys\[1\] \(kid .RS256-0.\): a pri",
    ),
    ({"keys": [OCT, RSA.jwk()]}, r"jwks: secrets \(oct\) and public keys in one set"),
    ({"keys": [RSA.jwk(), RSA.jwk()]}, r"keys\[1\] .*: another key of the same kind has this kid"),
    ("-----BEGIN PUBLIC KEY-----", "this is PEM text: give it as public_key or public_key_file"),
    (7, "jwks: expected a JWK set as text or as a table, not int"),
]


@pytest.mark.parametrize(("text", "why"), SETS)
def test_a_set_that_cannot_be_used_names_the_key_and_the_reason(text, why):
    with pytest.raises(ValueError, match=why):
        VerificationKeys(None, jwks=text)


def test_a_configured_set_may_have_other_keys_besides():
    jwks = {"keys": [RSA.jwk(use="enc"), {"kty": "X"}, EC.jwk(), OKP.jwk()]}
    assert [key.kid for key in VerificationKeys(["ES256"], jwks=jwks).set.keys] == [EC.kid]
    with pytest.raises(ValueError, match="does not fit RS256"):
        VerificationKeys(["RS256"], jwks={"keys": [EC.jwk()]})
    with pytest.raises(ValueError, match="secret: mutually exclusive with jwks"):
        VerificationKeys(["HS256"], jwks=OCT, secret="x" * 32)


def test_more_than_a_set_is_not_read():
    assert read_jwks({"keys": [], "next": "https://evil.example"}) == []


def test_a_certificate_stands_for_its_key(tmp_path):
    authority = Authority(tmp_path)
    files = authority.issue("signer", []).read_text() + authority.path.read_text()
    pem = "\n".join(
        re.findall(r"-----BEGIN CERTIFICATE-.*?-END CERTIFICATE-----", files, re.DOTALL)
    )
    keys = VerificationKeys(["ES256"], public_key=pem)
    assert len(keys.set) == 1
    with pytest.raises(ValueError, match="public_key: expected a key as PEM text"):
        VerificationKeys(["ES256"], public_key="-----BEGIN CERTIFICATE-----\nAAAA\n")


def test_a_key_and_a_certificate_may_be_der(tmp_path):
    authority = Authority(tmp_path)
    certificate = x509.load_pem_x509_certificate(authority.path.read_bytes())
    given = [
        ("ES256", certificate.public_bytes(Encoding.DER)),
        *((k.algorithm, k.private.public_key().public_bytes(Encoding.DER, SPKI)) for k in PUBLIC),
    ]
    for algorithm, data in given:
        assert len(VerificationKeys([algorithm], public_key=data).set) == 1
    for key in PUBLIC:
        secret = key.private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        with pytest.raises(ValueError, match="public_key: this is a private key"):
            VerificationKeys([key.algorithm], public_key=secret)
    weak = signing_key("RS256-1024").private.public_key().public_bytes(Encoding.DER, SPKI)
    with pytest.raises(ValueError, match="public_key: RSA of 1024 bits"):
        VerificationKeys(["RS256"], public_key=weak)
    with pytest.raises(ValueError, match="neither a public key nor a certificate in DER"):
        VerificationKeys(["RS256"], public_key=given[0][1][:100])


def test_json_given_as_a_public_key_names_the_cure():
    with pytest.raises(ValueError, match=r"public_key: this is JSON, not PEM .* jwks or jwks_file"):
        VerificationKeys(["RS256"], public_key=json.dumps(RSA.jwk()))
