"""The verified caller: made from the claims of a token, and never changed afterwards."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from wsgigate import Identity

CLAIMS: dict[str, Any] = {
    "iss": "https://id.example.com/",
    "sub": "u1",
    "azp": "shop",
    "scope": "orders:read orders:write",
    "realm_access": {"roles": ["admin"]},
}


def test_the_identity_of_a_token_is_made_from_its_claims() -> None:
    identity = Identity.from_claims(CLAIMS)
    assert identity == Identity(
        subject="u1",
        scheme="bearer",
        issuer="https://id.example.com/",
        client="shop",
        claims=CLAIMS,
        scopes=frozenset({"orders:read", "orders:write"}),
    )


@pytest.mark.parametrize(
    ("claims", "client"),
    [
        ({"azp": "a", "client_id": "b"}, "a"),
        ({"client_id": "b", "appid": "c"}, "b"),
        ({"appid": "c", "cid": "d"}, "c"),
        ({"cid": "d"}, "d"),
        ({"azp": "", "cid": "d"}, "d"),
        ({"azp": ["a"], "cid": 7}, None),
    ],
)
def test_the_client_is_the_first_claim_that_names_one(
    claims: dict[str, Any], client: str | None
) -> None:
    assert Identity.from_claims(claims).client == client


@pytest.mark.parametrize("value", [None, "", 7, True, ["u1"], {"id": "u1"}])
def test_a_subject_of_another_type_counts_as_missing(value: object) -> None:
    assert Identity.from_claims({"sub": value, "iss": value}) == Identity(
        subject=None, scheme="bearer", claims={"sub": value, "iss": value}
    )


def test_it_cannot_be_changed_at_any_depth() -> None:
    given = {"realm_access": {"roles": ["admin"]}}
    identity: Any = Identity(subject="u1", scheme="bearer", claims=given)
    given["realm_access"]["roles"].append("root")
    with pytest.raises(FrozenInstanceError):
        identity.subject = "u2"
    with pytest.raises(TypeError):
        identity.claims["sub"] = "u2"
    with pytest.raises(TypeError):
        identity.claims["realm_access"]["roles"] = ["root"]
    assert identity.claims["realm_access"]["roles"] == ("admin",)


def test_its_representation_shows_no_claims_and_it_can_be_a_key() -> None:
    identity = Identity(subject="u1", scheme="bearer", claims={"email": "u1@example.com"})
    assert "example.com" not in repr(identity)
    assert {identity: 1}[identity] == 1


@pytest.mark.parametrize("scopes", ["orders:write", "orders:read orders:write", ""])
def test_scopes_in_one_text_are_an_error(scopes: Any) -> None:
    """Its letters would be the scopes, and each rule would reject the caller."""
    with pytest.raises(TypeError, match=r"scopes: expected a set or a list, such as"):
        Identity("ada", "bearer", scopes=scopes)


def test_scopes_may_be_a_list() -> None:
    scopes: Any = ["orders:read", "orders:write"]
    assert Identity("ada", "bearer", scopes=scopes).scopes == {"orders:read", "orders:write"}
