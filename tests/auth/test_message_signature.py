"""HTTP message signatures (RFC 9421): which keys there are, and which signatures mean something."""

from __future__ import annotations

import base64
import datetime
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.support.signing import COVERED, SECRET, Requester, digest_of, pem_of
from tests.support.tokens import NOW
from wsgigate.auth.message_signature import (
    ALGORITHMS,
    LONGEST_FIELD,
    ReceivedSignature,
    SignatureRejected,
    SignatureRules,
    Signer,
    check_digest,
    digests_of,
)
from wsgigate.http.client_url import ClientUrl

ANN = Requester()
URL = ClientUrl("http", "api.example", "/orders", "page=2")
RULES = SignatureRules([ANN.signer()])
TARGET = "@target-uri (or @scheme, @path and @query)"


def candidate(
    fields: dict[str, str], rules: SignatureRules = RULES, *, body: bool = False, now: float = NOW
) -> ReceivedSignature:
    return rules.candidate(fields["Signature-Input"], fields["Signature"], has_body=body, now=now)


def reason(fields: dict[str, str], rules: SignatureRules = RULES, **facts: Any) -> str:
    with pytest.raises(SignatureRejected) as caught:
        candidate(fields, rules, **facts)
    return str(caught.value)


def verified(
    fields: dict[str, str], rules: SignatureRules = RULES, **values: str
) -> ReceivedSignature:
    found = candidate(fields, rules, body=bool(values))
    rules.verify(found, "GET", URL, {name.replace("_", "-"): each for name, each in values.items()})
    return found


def test_a_valid_signature() -> None:
    found = verified(ANN.fields())
    assert found.key.identity.subject == "ann"
    assert found.key.identity.client == "ann-1"
    assert found.key.identity.scheme == "signature"
    assert (found.nonce, found.seconds) == (None, 65.0)


@pytest.mark.parametrize(
    "covers",
    [
        ("@method", "@target-uri"),
        ("@target-uri", "@method", "@authority"),
        ("@method", "@authority", "@scheme", "@path", "@query"),
        ("@method", "@authority", "@scheme", "@request-target"),
    ],
)
def test_what_covers_a_request(covers: tuple[str, ...]) -> None:
    assert verified(ANN.fields(covers=covers))


@pytest.mark.parametrize(
    ("covers", "missing"),
    [
        ((), "@method, @authority, @target-uri (or @scheme, @path and @query)"),
        (("@target-uri",), "@method"),
        (("@method", "@authority"), TARGET),
        (("@method", "@authority", "@path", "@query"), TARGET),
        (("@method", "@authority", "@scheme", "@path"), TARGET),
        (("@method", "@scheme", "@path", "@query"), "@authority"),
        (("@method", '"@query-param";name="page"', "@authority"), TARGET),
    ],
)  # fmt: skip
def test_what_does_not_cover_a_request(covers: tuple[str, ...], missing: str) -> None:
    values = {'"@query-param";name="page"': "2"}
    assert reason(ANN.fields(covers=covers, values=values)) == f"it does not cover {missing}"


def test_a_body_needs_its_digest() -> None:
    assert reason(ANN.fields(), body=True) == "it does not cover content-digest"
    part = '"content-digest";key="sha-256"'
    fields = ANN.fields(covers=(*COVERED, part), values={part: "x"})
    assert reason(fields, body=True) == "it does not cover content-digest"
    digest = digest_of(b"x")
    fields = ANN.fields(covers=(*COVERED, "content-digest"), values={"content-digest": digest})
    assert verified(fields, content_digest=digest).covers_digest


def test_further_components_may_be_required() -> None:
    rules = SignatureRules([ANN.signer()], components=["date", "@query-param"])
    assert reason(ANN.fields(), rules) == "it does not cover @query-param, date"
    assert rules.accepted == (
        'sig=("@method" "@target-uri" "content-digest" "@query-param" "date");created;keyid'
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"created": int(NOW) - 66}, "created 66 s ago, or expired"),
        ({"created": int(NOW) + 6}, "created 6 s in the future"),
        ({"created": ...}, "it does not say when it was created"),
        ({"created": "1"}, "created is '1', not a time"),
        ({"created": float(NOW)}, "created is"),
        ({"created": -1}, "created is -1, not a time"),
        ({"created": 10**14}, "not a time"),
        ({"expires": int(NOW) - 6}, "or expired"),
        ({"expires": "x"}, "expires is 'x', not a time"),
        ({"keyid": "eve-1"}, "no signature by a known key"),
        ({"keyid": ...}, "no signature by a known key"),
        ({"keyid": 1}, "no signature by a known key"),
        ({"alg": "hmac-sha256"}, "alg is 'hmac-sha256', and the key is for ed25519"),
        ({"alg": "none"}, "alg is 'none'"),
        ({"alg": 1}, "alg is not a text"),
        ({"nonce": 1}, "nonce is not a text"),
        ({"nonce": "x" * 257}, "the nonce has 257 characters"),
        ({"tag": 1}, "tag is not a text"),
        ({"critical": "yes"}, "the unknown parameter 'critical'"),
    ],
)
def test_parameters(changes: dict[str, Any], why: str) -> None:
    assert why in reason(ANN.fields(**changes))


def test_other_times_and_algorithms() -> None:
    assert verified(ANN.fields(created=int(NOW) - 64, alg="ed25519", nonce="n", tag="t")).nonce
    assert candidate(ANN.fields(expires=int(NOW) + 10)).seconds == 15
    assert candidate(ANN.fields(expires=int(NOW) + 1000)).seconds == 65
    rules = SignatureRules([ANN.signer()], max_age=300, leeway=0)
    assert reason(ANN.fields(created=int(NOW) + 1), rules)
    assert candidate(ANN.fields(created=int(NOW) - 299), rules).seconds == 1


def test_a_nonce_may_be_required() -> None:
    rules = SignatureRules([ANN.signer()], require_nonce=True)
    assert reason(ANN.fields(), rules) == "the nonce has 0 characters"
    assert verified(ANN.fields(nonce="n"), rules).nonce == "n"
    assert ";nonce" in rules.accepted


def test_signatures_with_another_tag_are_ignored() -> None:
    rules = SignatureRules([ANN.signer()], tag="shop")
    assert verified(ANN.fields(tag="shop"), rules)
    for changes in ({}, {"tag": "other"}, {"tag": 1}):
        why = "no signature by a known key with the tag 'shop'"
        assert reason(ANN.fields(**changes), rules) == why
    assert rules.accepted.endswith(';created;keyid;tag="shop"')


def joined(*each: dict[str, str]) -> dict[str, str]:
    return {name: ", ".join(one[name] for one in each) for name in each[0]}


def test_one_signature_of_several_counts() -> None:
    proxy = Requester("proxy-9").fields(label="proxy")
    assert verified(joined(ANN.fields(), proxy)).key.id == "ann-1"
    assert verified(joined(proxy, ANN.fields())).key.id == "ann-1"
    forged = joined(Requester("ann-1").fields(label="a"), ANN.fields(label="b"))
    assert reason(forged) == "signatures by several known keys"
    bob = Requester("bob-1")
    rules = SignatureRules([ANN.signer(), bob.signer(subject="bob")])
    assert "several known keys" in reason(joined(ANN.fields(), bob.fields(label="b")), rules)
    rules = SignatureRules([ANN.signer(), bob.signer(subject="bob")], tag="shop")
    both = joined(ANN.fields(), bob.fields(label="b", tag="shop"))
    assert verified(both, rules).key.id == "bob-1"


def test_many_signatures_cost_nothing() -> None:
    many = [Requester(f"key-{number}").fields(label=f"s{number}") for number in range(9)]
    assert reason(joined(*many)) == "9 signatures; at most 8"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("Signature-Input", "", "different labels"),
        ("Signature-Input", 'sig=("@method"' + ' "a"' * 161 + ")", "more than 160 items"),
        ("Signature-Input", "sig=()" + ";a" * 161, "more than 160 items"),
        ("Signature-Input", "sig", "sig is not a list of components"),
        ("Signature-Input", 'sig=("@method"', "malformed"),
        ("Signature-Input", 'sig=("@method"), sig=("@method")', "occurs twice"),
        ("Signature-Input", "é=()", "malformed"),
        ("Signature-Input", "sig=()," * 2000, "Signature-Input has 14000 characters"),
        ("Signature-Input", "sig=1", "sig is not a list of components"),
        ("Signature-Input", 'sig=("@method");keyid="ann-1";keyid="eve-1"', "occurs twice"),
        ("Signature-Input", 'sig=("@method");created=1;created=2', "occurs twice"),
        ("Signature", "", "not a list of byte sequences"),
        ("Signature", "sig", "not a list of byte sequences"),
        ("Signature", "sig=:AAAA:,", "not a list of byte sequences"),
        ("Signature", "other=:AAAA:", "different labels"),
        ("Signature", "sig=:AAAA:, sig=:AAAA:", "occurs twice"),
        ("Signature", "sig=:AAAA:, other=:AAAA:", "different labels"),
        ("Signature", 'sig="AAAA"', "not a list of byte sequences"),
        ("Signature", "sig=(:AAAA:)", "not a list of byte sequences"),
        ("Signature", "sig=:AAAA:;x=1", "not a list of byte sequences"),
        ("Signature", "sig=:$:", "not a list of byte sequences"),
        ("Signature", "sig=:A:", "malformed"),
        ("Signature", "sig=:" + "A" * LONGEST_FIELD, "characters"),
    ],
)  # fmt: skip
def test_malformed_fields(name: str, value: str, why: str) -> None:
    fields = {**ANN.fields(), name: value}
    assert why in reason(fields)


@pytest.mark.parametrize(
    ("component", "why"),
    [
        ("@status", "the unknown component '@status'"),
        ("@signature-params", "the unknown component"),
        ("@other", "the unknown component"),
        ("Date", "not in lower case"),
        ("x_user", "has an underscore"),
        ("a b", "not in lower case"),
        ("", "not in lower case"),
        ("connection", "cannot be covered"),
        ("transfer-encoding", "cannot be covered"),
        ("signature", "cannot be covered"),
        ("signature-input", "cannot be covered"),
        (1, "a component that is not a text"),
        ("token", "a component that is not a text"),
    ],
)
def test_components(component: Any, why: str) -> None:
    text = {1: "1", "token": "token"}.get(component, f'"{component}"')
    written = f'("@method" "@target-uri" {text});created={int(NOW)};keyid="ann-1"'
    assert why in reason(ANN.fields(input=written))


def test_components_are_bounded_and_occur_once() -> None:
    many = " ".join(f'"x-{number}"' for number in range(65))
    written = f'({many});created={int(NOW)};keyid="ann-1"'
    assert reason(ANN.fields(input=written)) == "65 components; at most 64"
    twice = ANN.fields(covers=("@method", "@method", "@target-uri"))
    with pytest.raises(SignatureRejected, match="appeared multiple times"):
        verified(twice)


@pytest.mark.parametrize(
    "parameters", [';req', ';tr', ';bs', ';sf', ';key="x"', ';other', ';bs;sf', ";key=1"]
)  # fmt: skip
def test_a_parameter_of_a_component_is_understood_or_an_error(parameters: str) -> None:
    name = f'"x-one"{parameters}'
    fields = ANN.fields(covers=(*COVERED, name), values={name: "a=1"})
    with pytest.raises(SignatureRejected):
        RULES.verify(candidate(fields), "GET", URL, {"x-one": "a=2"})


PARTS = ("@method", "@authority", "@scheme", "@path", "@query")


@pytest.mark.parametrize("covers", [COVERED, PARTS], ids=["uri", "parts"])
@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("POST", URL),
        ("get", URL),
        ("GET", URL._replace(scheme="https")),
        ("GET", URL._replace(authority="evil.example")),
        ("GET", URL._replace(authority="api.example:8080")),
        ("GET", URL._replace(path="/orders/")),
        ("GET", URL._replace(path="/admin")),
        ("GET", URL._replace(query="page=3")),
        ("GET", URL._replace(query=None)),
        ("GET", URL._replace(query="")),
    ],
)
def test_another_request_does_not_verify(method: str, url: ClientUrl, covers: Any) -> None:
    found = candidate(ANN.fields(covers=covers))
    with pytest.raises(SignatureRejected):
        RULES.verify(found, method, url, {})


def test_another_key_does_not_verify() -> None:
    with pytest.raises(SignatureRejected) as caught:
        verified(Requester("ann-1").fields())
    assert str(caught.value) == (
        "it does not verify: it is not for GET 'http://api.example/orders', or not by the key"
    )


def test_what_is_signed_is_hashed_without_the_signature() -> None:
    one, other = ANN.fields(), ANN.fields(nonce="n")
    first = RULES.verify(candidate(one), "GET", URL, {})
    assert first == RULES.verify(candidate(one), "GET", URL, {})
    assert first != RULES.verify(candidate(other), "GET", URL, {})
    assert len(first) == 32


def test_a_query_may_have_characters_that_a_strict_url_has_not() -> None:
    url = URL._replace(query="filter[a]=b|c{d}")
    fields = ANN.fields(url="http://api.example/orders?filter[a]=b|c{d}")
    RULES.verify(candidate(fields), "GET", url, {})


def test_the_hmac_with_a_public_key_is_no_signature() -> None:
    """Algorithm confusion: the text of the key is public."""
    pem = ANN.public_key
    for secret in (pem, pem.strip(), pem.replace("\n", "")):
        for changes in ({}, {"alg": "hmac-sha256"}, {"alg": "ed25519"}):
            with pytest.raises(SignatureRejected):
                verified(Requester.with_secret("ann-1", secret).fields(**changes))
    with pytest.raises(ValueError, match="key in another format"):
        Signer(subject="ann", id="a", secret=pem)
    with pytest.raises(ValueError, match="does not fit hmac-sha256"):
        Signer(subject="ann", id="a", public_key=pem, algorithm="hmac-sha256")


EC256, EC384 = (ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1()))
ED, RSA = ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)


def jwk(algorithm: Any, private: Any, **members: Any) -> dict[str, Any]:
    made = json.loads(algorithm.to_jwk(private.public_key()))
    made.pop("key_ops", None)
    return {**made, **members}


OCT = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")}
SIGNERS: dict[str, dict[str, Any]] = {
    "hmac-sha256": {"secret": SECRET},
    "rsa-v1_5-sha256": {"public_key": pem_of(RSA.public_key()), "algorithm": "rsa-v1_5-sha256"},
    "rsa-pss-sha512": {"jwks": jwk(RSAAlgorithm, RSA, alg="PS512")},
    "ecdsa-p256-sha256": {"jwks": {"keys": [jwk(ECAlgorithm, EC256)]}},
    "ecdsa-p384-sha384": {"public_key": pem_of(EC384.public_key())},
    "ed25519": {"jwks": json.dumps(jwk(OKPAlgorithm, ED))},
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_library_signs_what_is_verified_here(algorithm: str) -> None:
    import requests
    from http_message_signatures import HTTPMessageSigner, MappingKeyResolver, algorithms

    private: Any = {
        "hmac-sha256": SECRET.encode(),
        "rsa-v1_5-sha256": RSA,
        "rsa-pss-sha512": RSA,
        "ecdsa-p256-sha256": EC256,
        "ecdsa-p384-sha384": EC384,
        "ed25519": ED,
    }[algorithm]
    kinds = [each for each in vars(algorithms).values() if isinstance(each, type)]
    kind = next(each for each in kinds if getattr(each, "algorithm_id", "") == algorithm)
    signer = HTTPMessageSigner(
        signature_algorithm=kind,
        key_resolver=MappingKeyResolver(public_keys={}, private_keys={"k": private}),
    )
    request = requests.Request("GET", URL.text).prepare()
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    signer.sign(request, key_id="k", created=moment, nonce="n-1", tag="shop")
    rules = SignatureRules([Signer(subject="ann", id="k", **SIGNERS[algorithm])], tag="shop")
    found = candidate(dict(request.headers), rules)
    assert found.key.algorithm == algorithm
    assert rules.verify(found, "GET", URL, {})
    with pytest.raises(SignatureRejected):
        rules.verify(found, "PUT", URL, {})


def test_several_keys_of_one_signer() -> None:
    keys = [jwk(ECAlgorithm, EC256, kid="old"), jwk(OKPAlgorithm, ED, kid="new")]
    signer = Signer(subject="ann", jwks={"keys": keys}, scopes=["read"])
    assert [(key.id, key.algorithm) for key in signer.keys] == [
        ("old", "ecdsa-p256-sha256"),
        ("new", "ed25519"),
    ]
    assert signer.keys[1].identity.scopes == {"read"}


PUBLIC = {"public_key": ANN.public_key}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subject": "", **PUBLIC}, "subject: a printable text"),
        ({"id": "", **PUBLIC}, "id: up to 256 printable"),
        ({"id": 'a"b', **PUBLIC}, "id: up to 256 printable"),
        ({"id": None, **PUBLIC}, "id: required, as signatures name"),
        ({}, "public_key: one of secret, public_key and jwks, which is missing"),
        ({"secret": SECRET, **PUBLIC}, "jwks, not secret and public_key"),
        ({"secret": "short"}, "secret: 5 bytes"),
        ({"public_key": "x"}, "public_key: expected a key as PEM"),
        ({"public_key": pem_of(RSA.public_key())}, "algorithm: required for an RSA key: rsa-"),
        ({"algorithm": "ecdsa-p256-sha256", **PUBLIC}, "does not fit ecdsa-p256-sha256"),
        ({"algorithm": "md5", **PUBLIC}, "algorithm: 'md5' is not one of"),
        ({"jwks": jwk(ECAlgorithm, EC256, kid="other")}, "id: the keys in jwks have ids"),
        ({"jwks": {**jwk(ECAlgorithm, EC256), "d": "AAAA"}}, "private key"),
        ({"jwks": OCT}, "no key verifies"),
        ({"jwks": "x"}, "jwks: "),
        ({"jwks": jwk(ECAlgorithm, EC256), "id": None}, "id: required"),
        ({"scopes": "read", **PUBLIC}, "scopes: expected a list"),
    ],
)  # fmt: skip
def test_invalid_signers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Signer(**{"subject": "ann", "id": "a", **options})


def test_a_secret_in_a_jwk() -> None:
    signer = Signer(subject="ann", id="a", jwks=OCT, algorithm="hmac-sha256")
    assert signer.keys[0].key == SECRET.encode()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signers": []}, "signers: at least one"),
        ({"signers": [ANN.signer(), ANN.signer()]}, "signers\\[1\\].id: 'ann-1' is the id"),
        ({"tag": ""}, "tag: printable ASCII"),
        ({"components": ["Date"]}, "components: a field in lower case"),
        ({"components": ["@status"]}, "components: a field in lower case"),
        ({"max_age": 0}, "max_age: 1 to 86400"),
        ({"leeway": -1}, "leeway: 0 to 300"),
    ],
)
def test_invalid_rules(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SignatureRules(**{"signers": [ANN.signer()], **options})


def blocks(*parts: bytes) -> Any:
    return iter([*parts, b""]).__next__


def test_the_digest_of_a_body() -> None:
    both = f"{digest_of(b'hello')}, {digest_of(b'hello', 'sha-512')}, md5=:AAAA:"
    assert digests_of(both).keys() == {"sha-256", "sha-512"}
    check_digest(digests_of(both), blocks(b"hel", b"lo"))
    for wrong in (
        f"{digest_of(b'hello')}, {digest_of(b'other', 'sha-512')}",
        f"{digest_of(b'other')}, {digest_of(b'hello', 'sha-512')}",
        "sha-256=:AAAA:",
        "sha-256=::",
    ):
        with pytest.raises(SignatureRejected, match="the body has another digest"):
            check_digest(digests_of(wrong), blocks(b"hello"))


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ("", "neither sha-256 nor sha-512"),
        ("md5=:AAAA:", "neither sha-256 nor sha-512"),
        ("sha-256=x", "not a sequence of bytes"),
        ("sha-256", "not a sequence of bytes"),
        ("sha-256=(:AAAA:)", "not a sequence of bytes"),
        ("sha-256=:AAAA:, sha-256=:AAAA:", "occurs twice"),
        ("sha-256=:A", "malformed"),
    ],
)
def test_malformed_digests(field: str, why: str) -> None:
    with pytest.raises(SignatureRejected, match=why):
        digests_of(field)


pieces = st.sampled_from(
    ['"@method"', '"@target-uri"', '"@path";sf', '"x";key="a"', " ", "(", ")", ";created=17",
     ';keyid="ann-1"', ';nonce=""', ';tag=@1', ";alg=?1", "sig=", "sig2=", ",", ":AAAA:", "%", '"']
)  # fmt: skip
text = st.lists(pieces, max_size=14).map("".join) | st.text(max_size=60)


@given(text, text, st.booleans())
@settings(max_examples=200)
def test_any_fields_are_rejected_cleanly(given: str, signature: str, body: bool) -> None:
    fields = {"Signature-Input": given, "Signature": signature}
    try:
        found = candidate(fields, body=body)
    except SignatureRejected:
        return
    with pytest.raises(SignatureRejected):
        RULES.verify(found, "GET", URL, dict.fromkeys(found.fields, "x"))


@given(st.text(max_size=60) | st.lists(pieces, max_size=8).map("".join))
@settings(max_examples=100)
def test_any_digest_is_rejected_cleanly(field: str) -> None:
    with pytest.raises(SignatureRejected):
        check_digest(digests_of(field), blocks(b"hello"))
