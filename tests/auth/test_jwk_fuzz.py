"""Parsers of keys and sets get anything at all, and raise nothing but their own errors."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.issuer import signing_key
from wsgigate.auth.jwk import KeySet, VerificationKeys, public_members, read_jwk, read_jwks
from wsgigate.auth.jwks_fetch import usable_keys
from wsgigate.auth.jwks_record import decoded

GOOD = [signing_key(name).jwk() for name in ("RS256", "ES256", "ES512", "EdDSA", "Ed448")]
NAMES = ["kty", "kid", "alg", "use", "key_ops", "crv", "n", "e", "x", "y", "k", "d", "x5c", "keys"]
TEXTS = [
    "RSA",
    "EC",
    "OKP",
    "oct",
    "P-256",
    "Ed25519",
    "sig",
    "enc",
    "ES256",
    "AQAB",
    "A",
    "=",
    "é",
]

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(TEXTS)
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=9,
)
members = st.dictionaries(st.sampled_from(NAMES) | st.text(), values, max_size=6)


@st.composite
def changed_keys(draw: st.DrawFn) -> dict[str, Any]:
    """Return a good key with some members replaced or left out."""
    key = {**draw(st.sampled_from(GOOD)), **draw(members)}
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        key.pop(name, None)
    return key


@settings(max_examples=300, deadline=None)
@given(changed_keys() | members, st.booleans())
def test_any_members_are_a_key_or_a_value_error(jwk: dict[str, Any], symmetric: bool) -> None:
    try:
        key = read_jwk(jwk, symmetric=symmetric)
    except ValueError:
        return
    assert key.algorithms
    for algorithm in key.algorithms:
        assert not KeySet([key]).verify(algorithm, b"signed", b"\x00" * 64, key.kid)


@settings(max_examples=200, deadline=None)
@given(st.binary() | st.text() | values | st.lists(changed_keys()).map(lambda k: {"keys": k}))
def test_any_data_is_a_set_or_a_value_error(data: Any) -> None:
    try:
        keys = read_jwks(data)
    except ValueError:
        return
    usable, left_out = usable_keys(keys)
    assert len(usable) + len(left_out) <= len(keys)
    for jwk in usable:
        assert not {"d", "p", "q", "k"} & jwk.keys()
        assert public_members(jwk) == jwk
        read_jwk(jwk)


@settings(max_examples=100, deadline=None)
@given(st.lists(changed_keys(), max_size=3))
def test_a_configured_set_is_usable_or_a_value_error_that_names_the_setting(keys: Any) -> None:
    said = "jwks: "
    try:
        VerificationKeys(None, jwks=json.dumps({"keys": keys}))
    except ValueError as error:
        said = str(error)
    assert said.startswith("jwks: ")


@settings(max_examples=200, deadline=None)
@given(st.binary() | values.map(lambda value: json.dumps(value).encode()))
def test_any_value_of_the_store_is_a_record(value: bytes) -> None:
    assert decoded(value).failures >= 0
