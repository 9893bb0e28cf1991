"""Tokens that the gateway signs for services, verified as a service does, and their keys."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest

from tests.support.tokens import NOW, Clock
from wsgigate import Identity
from wsgigate.auth.internal_token import InternalTokens
from wsgigate.auth.jwt import ClaimRules

SECRET = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"
DAY = 86_400.0

ANN = Identity(
    subject="ann",
    scheme="bearer",
    client="shop",
    claims={"org": {"id": 7, "roles": ["clerk"]}, "exp": NOW + 3600},
    scopes=frozenset({"write", "read"}),
)


def verified(tokens: InternalTokens, token: str, audience: str = "orders") -> dict[str, Any]:
    """Return the claims of *token* as a service reads them from the published keys."""
    keys = jwt.PyJWKSet.from_dict(json.loads(json.dumps(tokens.jwks())))
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(
        token,
        key,
        algorithms=["ES256"],
        audience=audience,
        options={"verify_exp": False, "verify_iat": False},
    )
    return claims


def test_a_service_reads_the_caller_from_the_token() -> None:
    tokens = InternalTokens(secret=SECRET, issuer="https://api.example.com", clock=Clock())
    claims = verified(tokens, tokens.token(ANN, "orders"))
    assert len(claims.pop("jti")) == 32
    assert claims == {
        "iss": "https://api.example.com",
        "aud": "orders",
        "sub": "ann",
        "client_id": "shop",
        "scope": "read write",
        "iat": NOW - 5,
        "exp": NOW + 60,
    }


@pytest.mark.parametrize("behind", [0, 0.05, 1.5, 5])
def test_a_service_whose_clock_is_behind_accepts_a_token_without_leeway(behind: float) -> None:
    tokens = InternalTokens(secret=SECRET, clock=Clock())
    rules = ClaimRules(audience="orders", leeway=0)
    claims = verified(tokens, tokens.token(ANN, "orders"))
    assert rules.check(claims, NOW - behind) == NOW + 60


def test_a_token_is_for_one_service() -> None:
    tokens = InternalTokens(secret=SECRET, clock=Clock())
    token = tokens.token(ANN, "orders")
    with pytest.raises(jwt.InvalidAudienceError):
        verified(tokens, token, "users")
    assert tokens.token(ANN, "users") != token


def test_claims_are_chosen_and_may_be_nested() -> None:
    named = {"sub": "client", "org": "org", "roles": "org.roles", "none": "nothing"}
    tokens = InternalTokens(secret=SECRET, claims=named, clock=Clock())
    claims = verified(tokens, tokens.token(ANN, "orders"))
    assert (claims["sub"], claims["roles"]) == ("shop", ["clerk"])
    assert claims["org"] == {"id": 7, "roles": ["clerk"]}
    assert not {"none", "scope", "client_id"} & claims.keys()


def test_requests_of_one_caller_share_a_token_for_half_of_its_lifetime() -> None:
    clock = Clock()
    tokens = InternalTokens(secret=SECRET, lifetime=60.0, clock=clock)
    first = tokens.token(ANN, "orders")
    clock.now += 30
    assert tokens.token(ANN, "orders") == first
    clock.now += 0.1
    assert tokens.token(ANN, "orders") != first
    clock.now -= 3600
    assert tokens.token(ANN, "orders") != first


def test_an_equal_caller_of_another_request_has_its_own_token() -> None:
    tokens = InternalTokens(secret=SECRET, clock=Clock())
    bob = Identity(subject="bob", scheme="bearer")
    assert verified(tokens, tokens.token(bob, "orders"))["sub"] == "bob"
    assert verified(tokens, tokens.token(ANN, "orders"))["sub"] == "ann"
    for number in range(50):  # an id may be used again
        caller = Identity(subject=str(number), scheme="bearer")
        assert verified(tokens, tokens.token(caller, "orders"))["sub"] == str(number)
        del caller


@pytest.mark.parametrize(("left", "lifetime"), [(3600, 60), (20, 20), (1, 5), (-30, 5)])
def test_a_token_ends_with_that_of_the_caller(left: float, lifetime: int) -> None:
    caller = Identity(subject="ann", scheme="bearer", claims={"exp": NOW + left})
    tokens = InternalTokens(secret=SECRET, clock=Clock())
    assert verified(tokens, tokens.token(caller, "orders"))["exp"] == NOW + lifetime


@pytest.mark.parametrize("exp", [True, "soon", None, float("inf"), [1]])
def test_an_expiry_of_another_type_is_none(exp: object) -> None:
    caller = Identity(subject="ann", scheme="api-key", claims={"exp": exp})
    tokens = InternalTokens(secret=SECRET, clock=Clock())
    assert verified(tokens, tokens.token(caller, "orders"))["exp"] == NOW + 60


# Keys.


def kids(tokens: InternalTokens) -> list[str]:
    published: Any = tokens.jwks()["keys"]
    return [each["kid"] for each in published]


def test_all_gateways_with_the_secret_have_the_same_keys_and_publish_no_private_part() -> None:
    one, other = (InternalTokens(secret=SECRET, clock=Clock()) for _ in range(2))
    assert one.jwks() == other.jwks()
    published: Any = one.jwks()["keys"]
    assert len({*kids(one)}) == 3
    for each in published:
        assert {*each} == {"kty", "crv", "x", "y", "use", "alg", "kid"}
    assert verified(other, one.token(ANN, "orders"))["sub"] == "ann"
    assert {*kids(one)}.isdisjoint(kids(InternalTokens(secret=OTHER, clock=Clock())))


def test_a_key_is_published_a_period_before_it_signs_and_a_period_after() -> None:
    clock = Clock()
    tokens = InternalTokens(secret=SECRET, rotate_every=DAY, clock=clock)
    signing = []
    sets = []
    for _ in range(5):
        signing.append(jwt.get_unverified_header(tokens.token(ANN, "orders"))["kid"])
        sets.append(kids(tokens))
        clock.now += DAY
    assert len({*signing}) == 5
    for number in range(1, 4):
        assert all(signing[number] in sets[each] for each in (number - 1, number, number + 1))
        assert sets[number][0] == signing[number]
    assert signing[0] not in sets[2]


def test_secrets_rotate_with_the_keys_of_both_published() -> None:
    old = InternalTokens(secret=SECRET, clock=Clock())
    both = InternalTokens(secret=[OTHER, SECRET], clock=Clock())
    new = InternalTokens(secret=OTHER, clock=Clock())
    assert verified(both, old.token(ANN, "orders"))["sub"] == "ann"
    assert verified(new, both.token(ANN, "orders"))["sub"] == "ann"
    assert len(kids(both)) == 6
    prepared = InternalTokens(secret=[SECRET, OTHER], clock=Clock())  # before the new one signs
    assert verified(prepared, both.token(ANN, "orders"))["sub"] == "ann"
    assert verified(old, prepared.token(ANN, "orders"))["sub"] == "ann"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"secret": "short"}, "secret: 5 bytes; at least 32 are required"),
        ({"secret": []}, "secret: at least one is required"),
        ({"secret": [SECRET, "short"]}, "secret: 5 bytes"),
        ({"issuer": ""}, "issuer: empty"),
        ({"lifetime": 1}, "lifetime: 5 s to an hour"),
        ({"lifetime": 7200}, "lifetime: 5 s to an hour"),
        ({"rotate_every": 60}, "rotate_every: at least an hour"),
        ({"lifetime": 3600, "rotate_every": 3600}, "rotate_every: at least an hour and two"),
        ({"claims": {"exp": "level"}}, "claims: the gateway sets exp itself"),
        ({"claims": {"a": "b..c"}}, "claims: a: 'b..c' is not the path of a claim"),
        ({"field": "X User"}, "field: 'X User' cannot carry a token"),
        ({"field": "Connection"}, "field: 'Connection' cannot carry a token"),
        ({"field": "host"}, "field: 'host' cannot carry a token"),
    ],
)
def test_an_invalid_option_is_rejected_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        InternalTokens(**{"secret": SECRET, **options})
