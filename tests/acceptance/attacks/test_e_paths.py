"""E: what the rules matched is what the backend gets, or it gets nothing."""

from __future__ import annotations

from typing import Any

import pytest

# Without a token: nothing below /api may be had.
REFUSED = [
    ("E01", "/api/%75sers", 401),
    ("E02", "/%61pi/users", 401),
    ("E02-all", "/%61%70%69/users", 401),
    ("E03", "//api/users", 401),
    ("E03-inside", "/api//users", 401),
    ("E03-three", "///api/users", 401),
    ("E04", "/./api/users", 400),
    ("E04-inside", "/api/./users", 400),
    ("E04-end", "/.", 400),
    ("E05", "/pub/../api/users", 400),
    ("E05-root", "/..", 400),
    ("E05-end", "/pub/..", 400),
    ("E06", "/pub/%2e%2e/api/users", 400),
    ("E06-half", "/pub/.%2e/api", 400),
    ("E06-upper", "/pub/%2E./api", 400),
    ("E07", "/pub/%2e%2e%2fapi/users", 400),
    ("E07-slashes", "/pub%2f..%2fapi", 400),
    ("E07-dots", "/pub/..%2fapi", 400),
    ("E08", "/api%2fusers", 400),
    ("E09", "/pub/..\\api", 400),
    ("E09-both", "/pub\\..\\api", 400),
    ("E09-encoded", "/pub/%5c..%5capi", 400),
    ("E10", "/api;x=1/users", 404),
    ("E10-dots", "/pub;/../api/users", 400),
    ("E10-parameter", "/pub/..;/api/users", 400),
    ("E11", "/api/users;jsessionid=1", 401),
    ("E12-dot", "/api/users.", 401),
    ("E12-space", "/api/users%20", 401),
    ("E12-tab", "/api/users%09", 400),
    ("E12-slash", "/api/users/", 401),
    ("E13-nul", "/api/users%00.png", 400),
    ("E13-control", "/pub/%01", 400),
    ("E13-del", "/pub/%7f", 400),
    ("E13-line", "/pub/%0d%0aX:%20y", 400),
    ("E14", "/API/users", 404),
    ("E15-overlong", "/api/%C0%AF", 401),
    ("E15-surrogate", "/api/%ed%a0%80", 401),
    ("E17", "/pub/%zz", 400),
    ("E17-end", "/pub/%", 400),
    ("E17-half", "/pub/%2", 400),
    ("E18", "/api/%2575sers", 401),
    ("E19", "/%252e%252e/api", 404),
    ("E20", "/pub#frag", 400),
    ("E20-path", "/pub#/../api", 400),
    ("E20-query", "/pub?x#y", 400),
    ("E25", "http://a.test/api/users", 401),
    ("E25-slashes", "http://a.test//api", 401),
    ("E28", "/nothing", 404),
    ("E31", "/%ef%bc%8fapi", 404),
    ("E31-wide", "/%ef%bd%81%ef%bd%90%ef%bd%89", 404),
]


@pytest.mark.parametrize(
    ("target", "status"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_no_spelling_leads_around_the_token(target: str, status: int, gate: Any) -> None:
    """E03: slashes are merged before matching, where the catalogue's default is to refuse them.

    E15: bytes that are no UTF-8 keep their escapes and are matched and sent in them.
    """
    gate.refused(gate.raw(target), status)


SAME = [
    # sent, received
    ("/pub/%75", "/pub/u"),
    ("/pub//x", "/pub/x"),
    ("//pub/x", "/pub/x"),
    ("/pub/;x=1;y", "/pub/;x=1;y"),  # E10
    ("/pub/%c3%a9", "/pub/%C3%A9"),  # E16
    ("/pub/%C3%A9", "/pub/%C3%A9"),
    ("/pub/%ff", "/pub/%FF"),  # E15
    ("/pub/%2575sers", "/pub/%2575sers"),  # E18
    ("/pub/%252e%252e/api", "/pub/%252e%252e/api"),  # E19
    ("/pub?/../api/users", "/pub?/../api/users"),  # E21
    ("/pub?x=%2e%2e/api", "/pub?x=%2e%2e/api"),
    ("/pub/%3f/x", "/pub/%3F/x"),  # E22
    ("/pub/%23x%3bx", "/pub/%23x%3Bx"),
    ("/pub?", "/pub?"),  # E23
    ("/pub?a?b", "/pub?a?b"),
    ("/pub?x=%zz&y=a+b", "/pub?x=%zz&y=a+b"),
    ('/pub/a|b"<>^`{}', "/pub/a%7Cb%22%3C%3E%5E%60%7B%7D"),  # E24
    ("http://a.test/pub?x", "/pub?x"),  # F09
    ("/pub/.../..x/x..", "/pub/.../..x/x.."),
]


@pytest.mark.parametrize(("sent", "received"), SAME)
def test_what_was_matched_is_what_arrives(sent: str, received: str, gate: Any) -> None:
    request, _ = gate.passed(gate.raw(sent))
    assert request.target == received


ROUTES = """
[[routes]]
path = "/strip"
service = "svc"
strip_prefix = true
[[routes]]
path = "/v1"
service = "svc"
strip_prefix = true
add_prefix = "/internal"
[[routes]]
path = "/exact"
service = "svc"
exact = true
[[routes]]
path = "/keep"
service = "svc"
encoded_slash = "keep"
[[routes]]
host = "api.test"
path = "/hosted"
service = "svc"
"""


@pytest.fixture(scope="module")
def rewriting(make_gate: Any) -> Any:
    return make_gate(routes=ROUTES)


REWRITTEN = [
    ("E26-dots", "/strip../secret", 404, None),
    ("E26-encoded", "/strip.%2e/secret", 404, None),
    ("E26-below", "/strip/../secret", 400, None),
    ("E26-joined", "/stripsecret", 404, None),
    ("E26-bare", "/strip", 200, "/"),
    ("E26-slash", "/strip/", 200, "/"),
    ("E26-host", "/strip//evil.test/x", 200, "/evil.test/x"),
    ("E27-dots", "/v1/../internal", 400, None),
    ("E27-slashes", "/v1//internal", 200, "/internal/internal"),
    ("E27", "/v1", 200, "/internal/"),
    ("E12-exact", "/exact/", 404, None),
    ("E12-dot", "/exact.", 404, None),
    ("E12-space", "/exact%20", 404, None),
    ("E08-keep", "/keep/a%2fb", 200, "/keep/a%2Fb"),
    ("E08-dots", "/keep/..%2fb", 400, None),
    ("E08-behind", "/keep%2fa", 400, None),
]


@pytest.mark.parametrize(
    ("target", "status", "received"), [r[1:] for r in REWRITTEN], ids=[r[0] for r in REWRITTEN]
)
def test_a_rewritten_path_goes_to_the_service_of_its_route(
    target: str, status: int, received: str | None, rewriting: Any
) -> None:
    """E26: a prefix is whole segments, so the dots behind one make another route's path."""
    if received is None:
        rewriting.refused(rewriting.raw(target), status)
    else:
        request, _ = rewriting.passed(rewriting.raw(target))
        assert request.target == received


@pytest.mark.parametrize("host", ["api.test", "API.TEST", "api.test.", "api.test:80"])
def test_a_host_is_matched_without_case_port_and_dot(host: str, rewriting: Any) -> None:
    """E28"""
    rewriting.passed(rewriting.raw("/hosted", host=host))
    rewriting.refused(rewriting.raw("/hosted", host="x" + host), 404)


@pytest.mark.parametrize("name", ["X-Original-URL", "X-Rewrite-URL", "X-Original-URI"])
def test_no_field_names_another_path(name: str, gate: Any) -> None:
    """E29"""
    request, _ = gate.passed(gate.raw("/pub", f"{name}: /api/admin"))
    assert request.target == "/pub"
    assert b"/api/admin" not in request.head


def test_no_field_names_another_method(gate: Any) -> None:
    """E30"""
    request, _ = gate.passed(gate.raw("/pub", "X-HTTP-Method-Override: DELETE"))
    assert request.method == "GET"
    assert b"DELETE" not in request.head
