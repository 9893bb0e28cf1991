"""Filter expressions of Consul: the selected documents and the rejected expressions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.registry.compat.consul_filter import parse_filter
from wsgigate.rules.registry import Invalid

DOCUMENT: dict[str, Any] = {
    "Service": {
        "ID": "users-1",
        "Port": 8080,
        "Tags": ["v1", "primary", "a b"],
        "Meta": {"version": "1.2", "a-b": "x", "empty": ""},
        "EnableTagOverride": False,
    },
    "Checks": [{"Status": "passing", "CheckID": "one"}, {"Status": "critical", "CheckID": "two"}],
}
SAMPLE: dict[str, Any] = {
    "Service": {"ID": "", "Port": 0, "Tags": [], "Meta": {}, "EnableTagOverride": False},
    "Checks": [{"Status": "", "CheckID": ""}],
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Service.ID == users-1", True),
        ('Service.ID == "users-1"', True),
        ("Service.ID == `users-1`", True),
        ("Service.ID != users-1", False),
        ('Service.ID=="users-1"', True),
        ("Service.ID contains users", True),
        ("Service.Port == 8080", True),
        ('Service.Port == "8080"', True),
        ("Service.Port != 80", True),
        ("Service.EnableTagOverride == false", True),
        ("Service.Tags contains v1", True),
        ("Service.Tags contains v", False),
        ("Service.Tags not contains v1", False),
        ('"a b" in Service.Tags', True),
        ("v1 in Service.Tags", True),
        ("v2 not in Service.Tags", True),
        ("Service.Tags is empty", False),
        ("Service.Tags is not empty", True),
        ("Service.Meta.version == 1.2", True),
        ('Service.Meta["a-b"] == x', True),
        ("Service.Meta.nothing == x", False),
        ("Service.Meta.nothing != x", True),
        ("Service.Meta.nothing is empty", True),
        ("Service.Meta.empty is empty", True),
        ("version in Service.Meta", True),
        ("Service.Meta contains nothing", False),
        ("Service.Meta is not empty", True),
        ('"/Service/Meta/a-b" == x', True),
        ("Checks.Status == critical", True),
        ("Checks.Status == warning", False),
        ("Checks.Status != critical", False),
        ("Checks is not empty", True),
        ("not Service.Port == 80", True),
        ("not (Service.Port == 8080 or Service.Port == 80)", False),
        ("Service.Port == 80 or Service.ID == users-1", True),
        # and binds before or
        ("Service.Port == 8080 or Service.Port == 80 and Service.ID == x", True),
        ("(Service.Port == 8080 or Service.Port == 80) and Service.ID == x", False),
    ],
)
def test_an_expression_selects_documents(text: str, wanted: bool) -> None:
    assert parse_filter(text, SAMPLE)(DOCUMENT) is wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Service", "ends where an operator is expected"),
        ("Service.ID", "ends where an operator"),
        ("Service.ID ==", "ends where a value"),
        ("Service.ID = a", "cannot be read"),
        ("Service.ID == a b", "'b' is not expected there"),
        ("(Service.ID == a", "not closed"),
        ("Service.ID == a)", "is not expected"),
        ("Service.Id == a", "'Service.Id' is not known here"),
        ("Service.ID.x == a", "is not known here"),
        ("Nothing == a", "'Nothing' is not known here"),
        ("Service.Port == eighty", "is a number"),
        ("Service.EnableTagOverride == 1", "true or false"),
        ("Service.Tags == v1", "use in or contains"),
        ("Service.Port contains 8", "has one value"),
        ("Service.Port is empty", "never empty"),
        ("Service.ID is full", "followed by"),
        ("Service.ID matches `.*`", "no regular expressions"),
        ("Service.ID not matches `.*`", "no regular expressions"),
        ("Service.ID like a", "is not a supported operator"),
        ("8080 == Service.Port", "is not a selector"),
        ("== a", "not expected"),
        ("a in", "ends where a selector"),
        ("a in (b)", "is not a selector"),
        ("not " * 20 + "Service.ID == a", "nested deeper"),
        ("(" * 20 + "Service.ID == a" + ")" * 20, "nested deeper"),
        ("Service.ID == a and " * 90 + "Service.ID == a", "more than 256 words"),
        ("a" * 2049, "at most 2048"),
        ('Service.ID == "a', "cannot be read"),
        ("any Checks as c { c.Status == passing }", "cannot be read"),
    ],
)
def test_an_invalid_expression_is_rejected_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(Invalid, match=why) as caught:
        parse_filter(text, SAMPLE)
    assert caught.value.field == "filter"


WORDS = ["Service.ID", "Service.Port", "Checks.Status", "==", "!=", "in", "not", "and", "or", "is"]
WORDS += ["empty", "contains", "(", ")", '"a"', "8080", "`x`", '"/Service/ID"', "matches", "]", "["]


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.text(max_size=10))
def test_any_text_is_an_expression_or_rejected(words: list[str], more: str) -> None:
    for text in (" ".join(words), more, " ".join(words) + more):
        try:
            wanted = parse_filter(text, SAMPLE)(DOCUMENT)
        except Invalid:
            continue
        assert wanted in (True, False)
