"""Header fields: syntax, hop-by-hop fields, field rules and rate limit values."""

from __future__ import annotations

import pytest

from tests.support.objects import bytes_kept
from wsgigate.http.fields import (
    HOP_BY_HOP,
    FieldRules,
    connection_tokens,
    is_field_value,
    is_token,
    retry_after,
)
from wsgigate.http.limits import rate_limit, rate_limit_policy
from wsgigate.http.wsgi import without


@pytest.mark.parametrize("name", ["Host", "x", "X-A_b.c", "!#$%&'*+-.^_`|~", "9"])
def test_a_token_is_a_field_name(name):
    """RFC 9110 section 5.6.2."""
    assert is_token(name)


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a:", "a\r", "a\n", "ä", "a\x00", "(x)", "x,y", "x/y"]
)
def test_a_name_that_is_not_a_token_is_rejected(name):
    """RFC 9110 section 5.6.2; a trailing newline is no exception."""
    assert not is_token(name)


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ("", True),
        ("a b\tc", True),
        ("caf\xe9", True),
        ("a\r\nSet-Cookie: x=1", False),
        ("a\n", False),
        ("a\x00", False),
        ("a\x7f", False),
        ("\u2028", False),
    ],
)
def test_a_field_value_holds_no_control_characters(value, good):
    """RFC 9110 section 5.5."""
    assert is_field_value(value) is good


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ("", set()),
        ("close", {"close"}),
        ("close, X-Foo", {"close", "x-foo"}),  # C04
        ("x-user-id ,\tX_User_Id", {"x-user-id", "x_user_id"}),  # C02, C12
        (',, ;, "x", a b,ok', {"ok"}),  # C05
        ("Keep-Alive,Keep-Alive", {"keep-alive"}),
    ],
)
def test_malformed_names_in_connection_are_ignored(value, tokens):
    """RFC 9110 section 7.6.1; security C02, C04, C05, C12."""
    assert connection_tokens(value) == tokens


def test_a_connection_field_of_ten_thousand_names_is_refused_at_once():
    """Security C05."""
    for names in ("a," * 1_000_000, ",".join(["a"] * 101)):
        with pytest.raises(ValueError, match="Connection lists more than 100 names"):
            connection_tokens(names)
    assert len(connection_tokens(",".join(f"a{i}" for i in range(100)))) == 100


def test_the_hop_by_hop_fields_are_those_of_the_standards():
    """RFC 9110 section 7.6.1, RFC 7540 section 3.2.1; security C06, C10."""
    assert {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "proxy-authorization",
        "proxy-authenticate",
        "proxy-authentication-info",
    } == HOP_BY_HOP


HEADERS = [("Server", "x"), ("X-A", "1"), ("x-a", "2"), ("X_A", "3"), ("Set-Cookie", "a=1")]


@pytest.mark.parametrize(
    ("rules", "result"),
    [
        (FieldRules(), HEADERS),
        (FieldRules(remove=["server"]), HEADERS[1:]),
        (FieldRules(remove=["X-A"]), [HEADERS[0], HEADERS[4]]),  # D03: the underscore spelling too
        (FieldRules(set={"x-a": "9"}), [HEADERS[0], HEADERS[4], ("x-a", "9")]),
        (FieldRules(add={"Set-Cookie": "b=2"}), [*HEADERS, ("Set-Cookie", "b=2")]),
        (
            FieldRules(set={"Server": "y"}, add={"server": " z\t"}, remove=["Set-Cookie"]),
            [*HEADERS[1:4], ("Server", "y"), ("server", "z")],
        ),
        (FieldRules(set={"X-Empty": ""}), [*HEADERS, ("X-Empty", "")]),
    ],
)
def test_fields_are_removed_then_set_then_added(rules, result):
    before = list(HEADERS)
    applied = rules.apply(HEADERS)
    assert applied == result
    assert applied is not HEADERS
    assert before == HEADERS


def test_rules_are_true_when_they_do_something():
    assert not FieldRules()
    assert FieldRules(remove=["a"])
    assert FieldRules(set={"a": ""})
    assert FieldRules(add={"a": ""})


def test_rules_do_not_change_with_the_mapping_they_were_made_of():
    fields = {"X-A": "1"}
    rules = FieldRules(set=fields)
    fields["X-A"] = "2"
    assert rules == FieldRules(set={"X-A": "1"})
    assert rules.apply([]) == [("X-A", "1")]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"remove": "Server"}, "remove: expected a list of field names"),
        ({"remove": ["a b"]}, "remove: 'a b' is not a valid field name"),
        ({"remove": [3]}, "remove: 3 is not a valid field name"),
        (
            {"remove": ["content-length"]},
            "remove: content-length cannot be changed: it names the host, frames",
        ),
        (
            {"remove": ["Transfer_Encoding"]},
            "remove: Transfer_Encoding cannot be changed: it names the host, frames",
        ),
        ({"set": {"Connection": "x"}}, "set: Connection cannot be changed: it names the host"),
        ({"set": {"Host": "x"}}, "set: Host cannot be changed: it names the host"),
        ({"add": {"Upgrade": "h2c"}}, "add: Upgrade cannot be changed: it names the host"),
        ({"set": {"a\n": "x"}}, "set: 'a\\\\n' is not a valid field name"),
        ({"set": {"": "x"}}, "set: '' is not a valid field name"),
        ({"set": {"A": "x\r\nB: y"}}, "set: A cannot have the value"),
        ({"add": {"A": 5}}, "add: A cannot have the value 5"),
        ({"set": {"A": "\u2028"}}, "set: A cannot have the value"),
        ({"set": {"X-A": "1", "x_a": "2"}}, "set: X-A and x_a are the same field"),
        ({"set": {"A": "1"}, "remove": ["a"]}, "set and remove both name a"),
        ({"set": ["A"]}, "set: expected field names with their values"),
    ],
)
def test_invalid_rules_raise(arguments, text):
    with pytest.raises(ValueError, match=text):
        FieldRules(**arguments)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (rate_limit_policy("default", 100, 900), '"default";q=100;w=900'),
        (rate_limit_policy("burst", 10, 0.5), '"burst";q=10;w=1'),
        (rate_limit_policy('a "b" \\c', 1, 60.0), '"a \\"b\\" \\\\c";q=1;w=60'),
        (rate_limit("default", 50, 29.2), '"default";r=50;t=30'),
        (rate_limit("default", -1, -3.0), '"default";r=0;t=0'),
        (rate_limit("default", 10**20, 0), '"default";r=999999999999999;t=0'),
    ],
)
def test_limits_are_structured_fields(written, expected):
    """draft-ietf-httpapi-ratelimit-headers-11 sections 3 and 4; RFC 9651 sections 3.3.1, 3.3.3."""
    assert written == expected


@pytest.mark.parametrize("name", ["é", "a\n", "a\t"])
def test_a_policy_with_a_name_that_no_field_can_hold_is_refused(name):
    """RFC 9651 section 3.3.3."""
    with pytest.raises(ValueError, match="printable ASCII"):
        rate_limit_policy(name, 1, 1)


@pytest.mark.parametrize(
    ("seconds", "written"), [(-1, "1"), (0, "1"), (0.001, "1"), (1, "1"), (1.01, "2"), (90, "90")]
)
def test_retry_after_is_whole_seconds_and_never_zero(seconds, written):
    """RFC 9110 section 10.2.3; security K12."""
    assert retry_after(seconds) == written


def test_fields_are_removed_by_name_in_any_spelling() -> None:
    names = frozenset(("x-request-id", "age"))
    headers = [("Age", "1"), ("Server", "a"), ("x-REQUEST-id", "2"), ("Server", "b")]
    for _ in range(2):  # the second time, the others are known
        assert without(headers, names) == [("Server", "a"), ("Server", "b")]
        assert without(headers[1:2], names) == [("Server", "a")]
        assert without([("AGE", "1")], names) == []
        assert without(headers[1:2], frozenset(("server",))) == []
    given = [("Server", "a")]
    assert without(given, names) is not given


def test_names_of_fields_are_remembered_up_to_a_number_and_a_length() -> None:
    names = frozenset(("x-any",))
    few = bytes_kept(lambda: [without([(f"X-{n}", "")], names) for n in range(1024)])
    more = bytes_kept(lambda: [without([(f"Y-{n}" + 500 * "y", "")], names) for n in range(3000)])
    more += bytes_kept(lambda: [without([(f"Z-{n}", "")], names) for n in range(3000)])
    assert more < few / 2
