"""Several issuers on one route: each with its own keys, algorithms, audience and rules."""

from __future__ import annotations

import inspect
import json

import pytest

from tests.support.issuer import signing_key
from tests.support.logs import silence
from tests.support.tokens import INVALID, NOW, SECRET, Gate, claims, signed
from wsgigate.auth.issuers import ISSUER_OPTIONS, TokenIssuer
from wsgigate.http.wsgi import CLAIMS, IDENTITY
from wsgigate.middleware.authenticator import Authenticator

quiet = silence("wsgigate.jwks")

SHOP, BANK = "https://shop.example/", "https://bank.example"
RSA, EC, OTHER = signing_key("RS256"), signing_key("ES256"), signing_key("ES256", 1)


def both(**changes):
    return [
        {"issuer": SHOP, "jwks": RSA.jwk(), "algorithms": ["RS256"], "audience": "api"},
        {"issuer": BANK, "jwks": EC.jwk(kid=RSA.kid), "required_claims": ["amr"], **changes},
    ]


def of_shop(**changes):
    return claims(**{"iss": SHOP, "aud": "api", **changes})


def of_bank(**changes):
    return claims(**{"iss": BANK, "amr": ["pwd"], **changes})


def test_each_issuer_has_its_own_rules():
    gate = Gate(issuers=both())
    assert gate.bearer(RSA.token(of_shop())) == (200, "")
    assert gate.identity.issuer == SHOP
    assert gate.bearer(EC.token(of_bank(), kid=RSA.kid)) == (200, "")
    assert gate.identity.issuer == BANK
    for token, why in (
        (RSA.token(of_shop(), kid="old"), "the issuer has no key with the id (kid) 'old'"),
        (RSA.token(of_shop(aud="other")), "for the audience 'other', not 'api'"),
        (RSA.token(of_shop(aud=...)), "no audience (aud), which must be 'api'"),
        (EC.token(of_bank(amr=...), kid=RSA.kid), "no amr"),
        (EC.token(of_bank(aud="api"), kid=RSA.kid), "and none is configured"),
    ):
        assert gate.bearer(token) == INVALID
        assert why in str(gate.reason)


def test_no_key_of_one_issuer_verifies_a_token_of_another():
    """Neither by the same key id, nor without one, nor with the other's algorithm."""
    another = signing_key("RS256", 1)
    gate = Gate(issuers=both(jwks={"keys": [EC.jwk(kid=RSA.kid), another.jwk(kid=RSA.kid)]}))
    gate.bearer(RSA.token(of_shop()))
    gate.bearer(EC.token(of_bank(), kid=RSA.kid))
    wrong, unknown = "the signature does not match any key", "the issuer has no key with the id"
    for kid, why in ((RSA.kid, wrong), (EC.kid, unknown), (None, wrong)):
        assert gate.bearer(RSA.token(of_bank(), kid=kid)) == INVALID
        assert f"bad token: {why}" in str(gate.reason)
        assert gate.bearer(EC.token(of_shop(), kid=kid)) == INVALID
        assert gate.reason == "bad token: alg is 'ES256'"


@pytest.mark.parametrize("iss", [..., None, "", "https://evil.example", SHOP[:-1], [SHOP], {}, 7])
def test_a_token_of_no_known_issuer_is_refused(iss):
    gate = Gate(issuers=both())
    assert gate.bearer(RSA.token(claims(iss=iss, aud="api"))) == INVALID
    assert "issued by" in str(gate.reason)


def test_the_cache_mixes_no_issuers():
    gate = Gate(issuers=both())
    good, forged = RSA.token(of_shop()), RSA.token(of_bank())
    for _ in range(3):
        assert gate.bearer(good) == (200, "")
        assert gate.bearer(forged) == INVALID


def test_a_symmetric_and_an_asymmetric_issuer_stay_apart():
    """Security J02: what one issuer publishes is no secret of another."""
    hs = {"issuer": "https://own.example", "algorithms": ["HS256"], "secret": SECRET}
    gate = Gate(issuers=[*both(), hs])
    own = claims(iss="https://own.example")
    assert gate.bearer(signed(own)) == (200, "")
    public = json.dumps(RSA.jwk())
    for secret in (public, RSA.jwk()["n"], SECRET):
        assert gate.bearer(signed(of_shop(), secret=secret)) == INVALID
    assert gate.bearer(RSA.token(own)) == INVALID


def test_the_largest_leeway_and_the_age_are_of_each_issuer():
    gate = Gate(issuers=[{**both()[0], "max_age": 3600, "leeway": 0}, both()[1]])
    assert gate.bearer(RSA.token(of_shop(iat=NOW - 3599))) == (200, "")
    assert gate.bearer(RSA.token(of_shop(iat=NOW - 3600))) == INVALID
    assert gate.reason == "bad token: issued 3600 s ago, longer than max_age"
    assert gate.bearer(RSA.token(of_shop())) == INVALID
    assert gate.reason == "bad token: no iat, which max_age requires"
    assert gate.bearer(EC.token(of_bank(iat=NOW - 7200), kid=RSA.kid)) == (200, "")


def test_a_cached_token_ends_at_its_maximum_age():
    gate = Gate(max_age=100, leeway=0)
    token = signed(claims(iat=NOW - 90, exp=NOW + 3600))
    assert gate.bearer(token) == (200, "")
    gate.clock.now += 10
    assert gate.bearer(token) == INVALID


@pytest.mark.parametrize(
    ("issuers", "why"),
    [
        ([], "issuers: expected a list such as"),
        ("https://a.example", "issuers: expected a list such as"),
        ([7], r"issuers\[0\]: expected a table, not"),
        ([{"issuer": SHOP, "jwks": "x"}], r"issuers\[0\].jwks: a JWK set that is not strict"),
        ([*both(), {"jwks": EC.jwk()}], r"issuers\[2\].issuer: required, as it selects"),
        ([*both(), both()[0]], r"issuers\[2\].issuer: .* is given twice"),
        ([{"isuer": SHOP}], r"issuers\[0\]: .isuer. is not an option; known: issuer, "),
        ([{"issuer": SHOP, "secret": SECRET}], r"issuers\[0\].algorithms: required with secret"),
        ([{"issuer": "shop"}], r"issuers\[0\].algorithms: required with a secret or"),
        ([{"issuer": "http://a.example"}], r"issuers\[0\].issuer: .* must begin with https"),
        (
            [{"issuer": SHOP, "jwks": RSA.jwk(), "public_key": "x"}],
            r"issuers\[0\].jwks: mutually exclusive with public_key",
        ),
        (
            [{"issuer": SHOP, "jwks": "https://a.example", "algorithms": ["HS256"]}],
            r"issuers\[0\].algorithms: HS256 need a secret, which cannot be fetched",
        ),
        ([{"issuer": SHOP, "jwks": RSA.jwk(), "ca": "x"}], r"issuers\[0\].ca: only for keys that"),
        ([{"issuer": SHOP, "ca": "/nowhere"}], r"issuers\[0\].ca: cannot load CA certificates"),
        ([{"issuer": SHOP, "jwks_file": "/nowhere"}], r"issuers\[0\].jwks_file: /nowhere cannot"),
    ],
)
def test_an_issuer_that_cannot_be_used_is_named(issuers, why):
    with pytest.raises(ValueError, match=why):
        Authenticator(None, issuers=issuers)


@pytest.mark.parametrize(
    "option",
    [{"issuer": SHOP}, {"audience": "a"}, {"leeway": 1}, {"secret": SECRET}, {"max_age": 9}],
)
def test_options_of_one_issuer_do_not_go_with_several(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}: with issuers, give it in each"):
        Authenticator(None, issuers=both(), **option)


def test_the_options_of_an_issuer_are_those_of_an_authenticator():
    issuer = inspect.signature(TokenIssuer).parameters
    authenticator = inspect.signature(Authenticator).parameters
    assert set(ISSUER_OPTIONS) == set(issuer) - {"key_sources"}
    for name in ISSUER_OPTIONS:
        assert issuer[name].default == authenticator[name].default
        assert issuer[name].annotation == authenticator[name].annotation


def test_a_file_that_cannot_be_used_names_itself_and_the_cure(tmp_path):
    file = tmp_path / "keys.json"
    for content, why in (
        ("-----BEGIN PUBLIC KEY-----", "give it as public_key or public_key_file"),
        ("{}", "without .keys., a list of objects"),
        (json.dumps(RSA.jwk(d="AQ")), "a private key; the gateway needs only the public part"),
        (" " * 300_000, "is larger than 262144 bytes"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=why) as found:
            Authenticator(None, jwks_file=str(file))
        assert str(found.value).startswith(f"jwks_file: {file}")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        Authenticator(None, jwks_file=str(tmp_path))


# The identity.


def test_the_identity_is_that_of_the_token():
    gate = Gate(scopes=["read"])
    scopes = "read write"
    assert gate.bearer(signed(claims(iss=SHOP, azp="web", scope=scopes, x=[{"y": 1}]))) == (200, "")
    identity = gate.identity
    assert (identity.subject, identity.scheme, identity.issuer) == ("user-1", "bearer", SHOP)
    assert (identity.client, identity.scopes) == ("web", frozenset({"read", "write"}))
    assert identity.claims["x"][0]["y"] == 1
    with pytest.raises(TypeError):
        identity.claims["x"][0]["y"] = 2
    gate.claims["x"][0]["y"] = 2
    gate.bearer(signed(claims(iss=SHOP, azp="web", scope=scopes, x=[{"y": 1}])))
    assert gate.identity.claims["x"][0]["y"] == gate.claims["x"][0]["y"] == 1


@pytest.mark.parametrize("token", [None, "bad", signed(claims(exp=1))])
def test_an_identity_from_outside_is_removed(token):
    gate = Gate(required=False)
    outside = {IDENTITY: "admin", CLAIMS: {"sub": "admin"}}
    gate.ask(f"Bearer {token}" if token else None, **outside)
    for environ in gate.seen:
        assert IDENTITY not in environ
        assert CLAIMS not in environ
