"""The compact form of a token is parsed in one way, or rejected."""

from __future__ import annotations

import base64
import json

import pytest

from wsgigate.auth.jwt import MAX_LENGTH, TokenRejected, read_compact
from wsgigate.http.bodies import InvalidJson, read_object, shown


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_token_is_taken_apart_and_only_its_header_is_read():
    """RFC 7515 section 7.1."""
    token = ".".join(encoded(part) for part in (b'{"alg":"X"}', b"no JSON", b"mark"))
    compact = read_compact(token)
    assert compact.header == {"alg": "X"}
    assert compact.payload == b"no JSON"
    assert compact.signed == token.rpartition(".")[0].encode()
    assert compact.signature == b"mark"


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("a" * (MAX_LENGTH + 1), "a token of 8193 characters"),
        ("", "not three parts"),
        ("e30.e30", "not three parts"),
        ("e30.e30.e30.e30", "not three parts"),
        ("e30..e30", "not three parts"),
        ("e30.e30.e30=", "not three parts"),
        ("e30.e30.e30\n", "not three parts"),
        ("e30.e30.e3+", "not three parts"),
        ("e30.e30.e", "not base64url"),  # 4n + 1 characters are no whole bytes
        ("e30.e30.e31", "trailing bits"),
        ("e31.e30.e30", "trailing bits"),
        ("W10.e30.e30", "a header that is not an object"),
    ],
)
def test_a_malformed_token_is_rejected_with_its_reason(token, reason):
    """RFC 7515 section 2, RFC 4648 section 3.5; security J17, J18."""
    with pytest.raises(TokenRejected, match=reason):
        read_compact(token)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"{}", {}),
        (b' {"a": [1, 2.5, -0.0, true, null, "\\u00e9", {"b": 1}]} ', None),
        (b'{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b'{"a":' + b"9" * 400 + b"}", {"a": int("9" * 400)}),
    ],
)
def test_strict_json_is_read(data, found):
    assert read_object(data, "payload") == (json.loads(data) if found is None else found)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[]", "not an object"),
        (b"", "not strict JSON"),
        (b"{}{}", "not strict JSON"),
        (b"\xff", "not strict JSON"),
        (b"\xef\xbb\xbf{}", "not strict JSON"),
        (b'{"a":1,"a":1}', "a duplicate member"),
        (b'{"x":{"a":1,"\\u0061":2}}', "a duplicate member"),
        (b'{"a":NaN}', "NaN is not a JSON number"),
        (b'{"a":-Infinity}', "-Infinity is not a JSON number"),
        (b'{"a":1e400}', "a number that is not finite"),
        (b'{"a":' + b"9" * 5000 + b"}", "not strict JSON"),
        (b'{"a":"\\ud800"}', "not strict JSON"),
        (b'{"\\udfff":1}', "not strict JSON"),
        (b'{"a":"\x01"}', "not strict JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_ambiguous_json_is_rejected(data, reason):
    """RFC 8725 section 2.4, RFC 7493; security J09, J15, J16, J18, J19."""
    with pytest.raises(InvalidJson, match=f"a payload .*{reason}|nested too deeply") as caught:
        read_object(data, "payload")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\r\nb", r"'a\r\nb'"),
        ("é\u202e", r"'\xe9\u202e'"),
        ("x" * 500, "'" + "x" * 76 + "..."),
        pytest.param(10**5000, "a int", id="huge"),
        (None, "None"),
    ],
)
def test_a_reason_fits_one_line_of_a_log(value, text):
    """Security J04, L08."""
    assert shown(value) == text
