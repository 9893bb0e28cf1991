"""The path of a claim, and the values of a verified caller that have names."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate import Identity
from wsgigate.rules.claims import CallerValue, ClaimPath, names_one_of

CLAIMS: dict[str, Any] = {
    "sub": "u1",
    "realm_access": {"roles": ["admin"]},
    "resource_access": {"my-client": {"roles": ["a"]}, "orders.api": {"roles": ["b"]}},
    "https://example.com/roles": ["clerk"],
    "cognito:groups": ["staff"],
    'a "b" \\c': {"d e": 7},
    "grüße": "ja",
    "nothing": None,
    "text": "sub",
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sub", "u1"),
        ("realm_access.roles", ["admin"]),
        ("resource_access.my-client.roles", ["a"]),
        ('resource_access."my-client".roles', ["a"]),
        ('resource_access."orders.api".roles', ["b"]),
        ('"https://example.com/roles"', ["clerk"]),
        ("https://example.com/roles", ["clerk"]),
        ("cognito:groups", ["staff"]),
        (r'"a \"b\" \\c"."d e"', 7),
        ("grüße", "ja"),
        ("nothing", None),
    ],
)
def test_a_path_leads_to_a_claim(path: str, value: object) -> None:
    found = object()
    assert ClaimPath(path).find(CLAIMS, found) == value
    assert str(ClaimPath(path)) == path


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_every_claim_without_control_characters_has_a_path(names: list[str]) -> None:
    claims: Any = "found"
    for name in reversed(names):
        claims = {name: claims}
    quoted = ['"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names]
    if re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(names)):
        with pytest.raises(ValueError, match="is not the path of a claim"):
            ClaimPath(".".join(quoted))
    else:
        assert ClaimPath(".".join(quoted)).names == tuple(names)
        assert ClaimPath(".".join(quoted)).find(claims) == "found"


@given(st.text(alphabet='ab."\\ :/\n\x85', max_size=12))
def test_any_text_is_a_path_or_a_value_error(text: str) -> None:
    try:
        path = ClaimPath(text)
    except ValueError:
        return
    assert path.names
    assert all(path.names)
    assert path.find({}) is None


@pytest.mark.parametrize(
    "path",
    [
        *("email", "sub.length", "realm_access.roles.0", "realm_access.admin", "nothing.at.all"),
        *("resource_access.orders.api.roles", "text.sub", "https://example.com/groups"),
    ],
)
def test_a_claim_that_is_not_there_is_missing_whatever_stands_on_the_way(path: str) -> None:
    assert ClaimPath(path).find(CLAIMS) is None
    assert ClaimPath(path).find(Identity.from_claims(CLAIMS).claims, 0) == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "expected the path of a claim, such as \"realm_access.roles\", not ''"),
        (7, "expected the path of a claim, .* not 7"),
        (["sub"], "expected the path of a claim"),
        (".sub", "a name is empty"),
        ("a..b", "a name is empty"),
        ("a.", "a name is empty"),
        ('a."".b', "a quotation mark is not closed"),
        ('"a', "a quotation mark is not closed"),
        (r'"a\n"', "a quotation mark is not closed"),
        ('"a"b', "'b' is not allowed outside double quotes"),
        ('a"b"', "'\"' is not allowed outside double quotes"),
        ("a b", "' ' is not allowed outside double quotes"),
        (" a", "' ' is not allowed outside double quotes"),
        ("a\x00", r"'\\x00' is not allowed"),
    ],
)
def test_a_malformed_path_is_rejected_with_its_cause(path: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClaimPath(path)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("admin", True),
        ("order clerk", True),
        ("order", False),
        ("admin clerk", False),
        (["a", "order clerk", 7, None], True),
        (("admin",), True),
        ([["admin"], {"admin": 1}, 7, None, "Admin", ""], False),
        ("", False),
        ({"admin": True}, False),
        (True, False),
        (None, False),
    ],
)
def test_a_text_is_one_name_and_a_list_has_several(value: object, found: bool) -> None:
    assert names_one_of(value, {"admin", "order clerk"}) is found


CALLER = Identity(
    subject="u1",
    scheme="bearer",
    issuer="https://id.example.com",
    client="shop",
    claims={"sub": "other", "subject": "claimed", "org": {"id": 7}},
    scopes=frozenset({"write", "read"}),
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("subject", "u1"),
        ("client", "shop"),
        ("issuer", "https://id.example.com"),
        ("scheme", "bearer"),
        ("scopes", ("read", "write")),
        ("sub", "other"),
        ("claim:subject", "claimed"),
        ("org.id", 7),
        ("claim:org.id", 7),
        ("plan", None),
    ],
)
def test_a_value_of_the_caller_is_a_field_of_its_identity_or_a_claim(
    text: str, value: object
) -> None:
    assert CallerValue(text).find(CALLER) == value


@pytest.mark.parametrize("text", ["claim:", "claim:a..b", "", None, 7])
def test_a_malformed_value_is_rejected(text: Any) -> None:
    with pytest.raises(ValueError, match="the path of a claim"):
        CallerValue(text)
