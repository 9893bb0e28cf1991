"""Proofs of possession (RFC 9449), as a table: what is a valid proof, and what is none."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.support.dpop import Prover
from tests.support.tokens import NOW, encoded, signed
from wsgigate.auth.dpop import (
    LONGEST_PROOF,
    NonceRequired,
    Nonces,
    Proof,
    ProofRejected,
    ProofRules,
    confirmation,
)
from wsgigate.auth.jwk import thumbprint
from wsgigate.auth.jwt import TokenRejected

URL = "http://127.0.0.1/"
ANN = Prover()
RULES = ProofRules()


def check(value: str, key: str = ANN.key, *, rules: ProofRules = RULES, **changes: Any) -> Proof:
    facts = {"method": "GET", "url": URL, "token": "token", "now": NOW, **changes}
    return rules.check(value, key=key, **facts)


def reason(value: str, **changes: Any) -> str:
    with pytest.raises(ProofRejected) as caught:
        check(value, **changes)
    return str(caught.value)


def test_a_valid_proof() -> None:
    assert check(ANN.proof()) == Proof(ANN.key, "proof-1", 90.0)


def test_the_example_of_rfc_7638() -> None:
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJ"
        "ECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2"
        "QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh"
        "6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    jwk = {"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}
    assert thumbprint(jwk) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_the_key_of_rfc_9449_has_the_thumbprint_of_its_example() -> None:
    jwk = {
        "kty": "EC",
        "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
        "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
        "crv": "P-256",
    }
    assert thumbprint(jwk) == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


def test_the_example_of_rfc_9449() -> None:
    value = (
        "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0"
        "VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10N"
        "nY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR"
        "0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MT"
        "U2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP"
        "35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
    )
    found = RULES.check(
        value,
        key="0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
        method="GET",
        url="https://resource.example.org/protectedresource",
        token="Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU",
        now=1_562_262_620.0,
    )
    assert found.id == "e1j3V_bKic8-LAEB"


def test_keys_of_all_kinds() -> None:
    one = ed25519.Ed25519PrivateKey.generate()
    ed = Prover(one, "EdDSA", json.loads(OKPAlgorithm.to_jwk(one.public_key())))
    assert check(ed.proof(), ed.key).key == ed.key
    two = rsa.generate_private_key(65537, 2048)
    ps = Prover(two, "PS256", json.loads(RSAAlgorithm.to_jwk(two.public_key())))
    assert check(ps.proof(), ps.key).key == ps.key
    three = ec.generate_private_key(ec.SECP384R1())
    es = Prover(three, "ES384", json.loads(ECAlgorithm.to_jwk(three.public_key())))
    assert check(es.proof(), es.key).key == es.key


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"htm": "POST"}, "made for the method 'POST'"),
        ({"htm": "get"}, "made for the method"),
        ({"htm": ...}, "made for the method None"),
        ({"htu": "http://127.0.0.1/other"}, "made for the URL"),
        ({"htu": "https://127.0.0.1/"}, "made for the URL"),
        ({"htu": "http://127.0.0.1:8080/"}, "made for the URL"),
        ({"htu": "http://evil.example/"}, "made for the URL"),
        ({"htu": "/"}, "made for the URL"),
        ({"htu": 1}, "made for the URL 1"),
        ({"htu": ...}, "made for the URL None"),
        ({"ath": "x"}, "another token"),
        ({"ath": ...}, "ath is None"),
        ({"ath": "é"}, "ath is"),
        ({"iat": NOW - 91}, "made 91 s ago"),
        ({"iat": NOW + 31}, "31 s in the future"),
        ({"iat": ...}, "iat is None"),
        ({"iat": True}, "iat is True"),
        ({"iat": "1"}, "iat is '1'"),
        ({"iat": 10**400}, "iat is"),
        ({"jti": ...}, "jti is None"),
        ({"jti": ""}, "jti is ''"),
        ({"jti": 7}, "jti is 7"),
        ({"jti": "x" * 257}, "jti is"),
    ],
)
def test_claims_of_a_proof(changes: dict[str, Any], why: str) -> None:
    assert why in reason(ANN.proof(**changes))


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"typ": "JWT"}, "typ is 'JWT'"),
        ({"typ": ...}, "typ is"),
        ({"jwk": ...}, "jwk is None"),
        ({"jwk": "x"}, "jwk is 'x'"),
        ({"jwk": {}}, "kty is None"),
        ({"jwk": {"kty": "oct", "k": "AAAA"}}, "kty is 'oct'"),
        ({"jwk": {**ANN.jwk, "y": ...}}, ""),
        ({"jwk": Prover().jwk}, "another key than the token is bound to"),
        ({"jwk": {**ANN.jwk, "d": "AAAA"}}, "private key"),
        ({"jwk": {**ANN.jwk, "use": "enc"}}, "use is 'enc'"),
        ({"jwk": {**ANN.jwk, "x": ANN.jwk["x"] + "="}}, "not in its shortest form"),
        ({"crit": ["exp"]}, "a header with crit"),
        ({"b64": False}, ""),
    ],
)
def test_headers_of_a_proof(header: dict[str, Any], why: str) -> None:
    for jwk in header.values():
        if isinstance(jwk, dict):
            for name in [name for name, value in jwk.items() if value is ...]:
                del jwk[name]
    assert check(ANN.proof())  # its key is known by now, which makes nothing laxer
    try:
        value = ANN.proof(header=header)
    except jwt.exceptions.PyJWTError:
        pytest.fail("the test cannot make the proof")
    assert why in reason(value)


def test_no_proof_without_asymmetric_signature() -> None:
    header = {"typ": "dpop+jwt", "jwk": ANN.jwk}
    payload = {"jti": "1", "htm": "GET", "htu": URL, "iat": NOW}
    for algorithm in ("none", "None", "HS256"):
        value = signed(payload, {**header, "alg": algorithm})
        assert f"alg is '{algorithm}'" in reason(value)
    with pytest.raises(ValueError, match="dpop_algorithms: 'HS256'"):
        ProofRules(algorithms=["HS256"])


def test_the_public_key_as_a_secret_signs_nothing() -> None:
    """Algorithm confusion: the text of the key is public."""
    pem = ANN.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    payload = jwt.decode(ANN.proof(), options={"verify_signature": False})
    header = {"typ": "dpop+jwt", "jwk": ANN.jwk, "alg": "ES256"}
    assert "does not match" in reason(signed(payload, header, secret=pem.decode()))


def test_another_signature_and_another_payload() -> None:
    head, payload, signature = ANN.proof().split(".")
    other = ANN.proof(jti="proof-2").split(".")
    assert "does not match" in reason(f"{head}.{other[1]}.{signature}")
    assert "does not match" in reason(f"{head}.{payload}.{other[2]}")


def test_one_proof_of_a_bounded_length() -> None:
    proof = ANN.proof()
    assert reason(f"{proof},{proof}") == "more than one proof"
    assert reason(f"{proof}, {proof}") == "more than one proof"
    assert reason("x" * (LONGEST_PROOF + 1)) == "a proof of 4097 characters"
    assert reason("") == "not three parts of base64url"
    assert reason(f" {proof}") == "not three parts of base64url"


def test_duplicate_members_are_no_claims() -> None:
    head = encoded(json.dumps({"typ": "dpop+jwt", "alg": "ES256", "jwk": ANN.jwk}).encode())
    payload = b'{"jti":"a","jti":"b"}'
    body = f"{head}.{encoded(payload)}"
    signature = ECAlgorithm(ECAlgorithm.SHA256).sign(body.encode(), ANN.private)
    assert "duplicate member" in reason(f"{body}.{encoded(signature)}")


def test_large_keys_are_rejected() -> None:
    number = (1 << 8191) + 1
    n = base64.urlsafe_b64encode(number.to_bytes(1024, "big")).rstrip(b"=").decode()
    jwk = {"kty": "RSA", "n": n, "e": "AQAB"}
    value = ANN.proof(header={"jwk": jwk})
    assert "at most 4096" in reason(value, key=thumbprint(jwk))


def test_other_spellings_of_the_url() -> None:
    for url in ("HTTP://127.0.0.1:80", "http://127.0.0.1/?a=b#c", "http://127.0.0.1:0080/"):
        assert check(ANN.proof(url=url))


@pytest.mark.parametrize("typ", ["DPoP+JWT", "application/dpop+jwt"])
def test_other_spellings_of_the_type(typ: str) -> None:
    assert check(ANN.proof(header={"typ": typ}))


def test_a_nonce_of_the_server() -> None:
    nonces = Nonces("a secret of thirty-two bytes, or so")
    current = nonces.current(NOW)
    assert check(ANN.proof(nonce=current), nonces=nonces).nonce == current
    assert check(ANN.proof(nonce="any")).nonce == "any"
    for nonce in (..., "", 1, "é", current[:-1], Nonces("x" * 32).current(NOW)):
        with pytest.raises(NonceRequired):
            check(ANN.proof(nonce=nonce), nonces=nonces)


def test_a_nonce_lives_for_two_periods() -> None:
    nonces = Nonces("a secret of thirty-two bytes, or so", period=100)
    nonce = nonces.current(1000)
    assert nonces.current(1099) == nonce != nonces.current(1100)
    assert [at for at in range(800, 1400, 50) if nonces.is_current(nonce, at)] == [
        *(900, 950, 1000, 1050, 1100, 1150)
    ]


def test_arguments() -> None:
    with pytest.raises(ValueError, match="dpop_max_age: 1 to 3600"):
        ProofRules(max_age=0)
    with pytest.raises(ValueError, match="dpop_nonce_secret: 5 bytes; at least 32"):
        Nonces("short")


def test_what_a_token_is_bound_to() -> None:
    assert confirmation({}) is None
    assert confirmation({"cnf": {"jkt": "x"}}) == {"jkt": "x"}
    for cnf in (None, {}, [], "x", 1):
        with pytest.raises(TokenRejected, match="cnf is"):
            confirmation({"cnf": cnf})


segment = st.text("abcABC012-_=.", max_size=40)
member = st.text(max_size=10) | st.sampled_from(
    [None, True, False, 0, -1, 10**30, 1.5, float("inf"), [], ["x"], {}, {"kty": "EC"}, NOW, URL]
)
names = st.sampled_from(["typ", "alg", "jwk", "crit", "kid", "x"])
keys = st.sampled_from(["kty", "crv", "x", "y", "n", "e", "d", "use"])


@given(st.text(max_size=200) | st.builds("{}.{}.{}".format, segment, segment, segment))
@settings(max_examples=100)
def test_any_text_is_rejected_cleanly(value: str) -> None:
    with pytest.raises(ProofRejected):
        check(value)


@given(st.dictionaries(names, member, max_size=4), st.dictionaries(keys, member, max_size=5))
@settings(max_examples=100)
def test_any_header_is_rejected_cleanly(header: dict[str, Any], jwk: dict[str, Any]) -> None:
    made = {"typ": "dpop+jwt", "alg": "ES256", "jwk": {**ANN.jwk, **jwk}, **header}
    value = signed({"jti": "1"}, json.dumps(made, default=str))
    with pytest.raises(ProofRejected):
        check(value)


@given(st.dictionaries(st.sampled_from(["jti", "htm", "htu", "iat", "ath", "nonce"]), member))
@settings(max_examples=100)
def test_any_claims_are_accepted_or_rejected_cleanly(claims: dict[str, Any]) -> None:
    try:
        value = ANN.proof(**claims)
    except (TypeError, ValueError, jwt.exceptions.PyJWTError):
        return
    try:
        check(value)
    except ProofRejected:
        return
    assert claims.get("htm", "GET") == "GET"
    assert claims.get("htu", URL) == URL
    assert "ath" not in claims
