"""D: who the client is, as it says itself and as others may."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.testing.backend import reply

SPOOFED = ["X-User-Id: admin", "X-Plan: gold"]


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


def test_identity_fields_of_a_client_are_not_forwarded(gate: Any) -> None:
    """D01: on open routes too."""
    request, _ = gate.passed(gate.raw("/pub", *SPOOFED))
    assert b"admin" not in request.head
    assert b"gold" not in request.head


def test_only_the_token_identifies_the_caller(gate: Any) -> None:
    """D02, D04: a claim that is not there leaves its field away, whatever the client sent."""
    request, _ = gate.passed(gate.raw("/api/x", bearer(gate.token), *SPOOFED))
    assert request.value("X-User-Id") == "7"
    assert request.value("X-Plan") is None
    assert request.value("Authorization") is None  # J34


@pytest.mark.parametrize("field", ["X_User_Id: evil", "X-User_Id: evil", "HTTP_X_USER_ID: evil"])
def test_an_underscore_bypasses_no_rule(field: str, gate: Any) -> None:
    """D03: gunicorn refuses it, as it is told to."""
    gate.refused(gate.raw("/api/x", bearer(gate.token), field), 400)


@pytest.mark.parametrize("path", ["/pub", "/api/x"])
@pytest.mark.parametrize(
    "fields",
    [
        ["Remote-User: evil", "REMOTE-USER: evil", "X-Roles: evil"],
        ["remote-user: evil", "Connection: close, Remote-User, remote_user, X-Roles"],
        ["Connection: remote-user", "remote-User: evil", "x-rOles: evil"],
    ],
)
def test_an_identity_field_is_removed_with_and_without_a_caller(
    path: str, fields: list[str], gate: Any
) -> None:
    """Also one for which the caller has no value: deleting must not depend on setting."""
    sent = [bearer(gate.token), *fields] if path == "/api/x" else fields
    request, _ = gate.passed(gate.raw(path, *sent))
    assert b"evil" not in request.head
    assert request.value("Remote-User") == ("7" if path == "/api/x" else None)
    assert request.value("X-Roles") is None


@pytest.mark.parametrize("path", ["/pub", "/api/x"])
@pytest.mark.parametrize("name", ["Remote_User", "REMOTE_USER", "Remote_user", "X_Roles"])
def test_an_identity_field_with_an_underscore_is_refused(path: str, name: str, gate: Any) -> None:
    """A backend that reads CGI names would take it for the field."""
    gate.refused(gate.raw(path, bearer(gate.token), f"{name}: evil"), 400)


def test_an_identity_field_in_a_trailer_is_not_forwarded(gate: Any) -> None:
    body = b"1\r\na\r\n0\r\nRemote-User: evil\r\nX-Roles: evil\r\n\r\n"
    data = gate.raw("/pub", "Transfer-Encoding: chunked", "Trailer: Remote-User", method="POST")
    request, _ = gate.passed(data + body)
    assert b"evil" not in request.head + request.body


def test_two_credentials_are_none(gate: Any) -> None:
    """D05"""
    gate.refused(gate.raw("/api/x", bearer(gate.token), bearer("evil")), 400, 401)


@pytest.mark.parametrize(
    "value", ["Bearer", "Bearer ", "Bearer x y", "Basic eDp5", "Bearer\tx", "", "bearer x"]
)
def test_malformed_credentials_are_refused(value: str, gate: Any) -> None:
    """D06"""
    gate.refused(gate.raw("/api/x", f"Authorization: {value}"), 401)


def test_the_scheme_is_read_without_case(gate: Any) -> None:
    """D06"""
    gate.passed(gate.raw("/api/x", f"Authorization: bEARER {gate.token}"))
    gate.refused(gate.raw("/api/x", f"Authorization: Bearer {gate.token} x"), 401)


def test_a_token_elsewhere_is_no_token(gate: Any) -> None:
    """D07"""
    gate.refused(gate.raw(f"/api/x?access_token={gate.token}"), 401)
    gate.refused(gate.raw("/api/x", f"Cookie: access_token={gate.token}"), 401)


def test_a_route_requires_its_scope(gate: Any) -> None:
    gate.refused(gate.raw("/api/admin", bearer(gate.token)), 403)
    request, _ = gate.passed(gate.raw("/api/admin", bearer(gate.admin)))
    assert request.value("X-User-Id") == "1"


FORGED = [
    "X-Forwarded-For: 6.6.6.6",
    "X-Forwarded-For: 6.6.6.7",
    "Forwarded: for=6.6.6.6",
    *(
        f"{name}: 6.6.6.6"
        for name in (
            *("X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Prefix"),
            *("X-Real-IP", "Client-IP", "True-Client-IP", "CF-Connecting-IP", "X-Original-URL"),
            *("X-Rewrite-URL", "X-HTTP-Method-Override", "X-Forwarded-Anything"),
        )
    ),
]


def test_forwarding_fields_of_an_untrusted_client_are_ignored(gate: Any) -> None:
    """D08, D11, D13"""
    request, _ = gate.passed(gate.raw("/pub", *FORGED))
    assert b"6.6.6" not in request.head
    assert request.value("X-Forwarded-For") == "127.0.0.1"
    assert gate.log()[-1]["client"] == "127.0.0.1"


@pytest.fixture(scope="module")
def behind(make_gate: Any) -> Any:
    """Return a gateway that believes its peer, and the network behind that."""
    return make_gate(gateway='trusted_proxies = ["127.0.0.1", "10.0.0.0/8"]')


CHAINS = [
    # X-Forwarded-For, the client
    ("6.6.6.6, 1.2.3.4", "1.2.3.4"),  # D09
    ("1.2.3.4, 10.0.0.5", "1.2.3.4"),
    ("6.6.6.6, 1.2.3.4, ::ffff:10.0.0.1", "1.2.3.4"),  # D12
    ("junk, 1.2.3.4:55", "1.2.3.4"),  # D10
    ("1.2.3.4, junk", "127.0.0.1"),
    ("[2001:db8::1]:1", "2001:db8::1"),
    ("unknown", "127.0.0.1"),
    ('"', "127.0.0.1"),
    (", ,", "127.0.0.1"),
]


@pytest.mark.parametrize(("chain", "client"), CHAINS)
def test_forwarding_fields_of_a_trusted_proxy_are_used(
    chain: str, client: str, behind: Any
) -> None:
    behind.passed(behind.raw("/pub", f"X-Forwarded-For: {chain}"))
    assert behind.log()[-1]["client"] == client


def test_two_fields_are_one_chain(behind: Any) -> None:
    """D11"""
    fields = ["X-Forwarded-For: 1.2.3.4", "X-Forwarded-For: 10.0.0.5"]
    request, _ = behind.passed(behind.raw("/pub", *fields))
    assert behind.log()[-1]["client"] == "1.2.3.4"
    assert request.value("X-Forwarded-For") == "1.2.3.4, 10.0.0.5, 127.0.0.1"


def test_a_chain_of_hundreds_is_refused(behind: Any) -> None:
    """D10"""
    chain = ", ".join(["10.0.0.1"] * 500)
    answer = behind.ask(behind.raw("/pub", f"X-Forwarded-For: {chain}"))
    assert answer.status == 400


@pytest.mark.parametrize("value", ['for=a,for="b;c\\"d",;;', "for=6.6.6.6", 'for="'])
def test_the_field_that_is_not_the_source_is_not_read(value: str, behind: Any) -> None:
    """D15, D16, D17"""
    request, _ = behind.passed(behind.raw("/pub", f"Forwarded: {value}"))
    assert behind.log()[-1]["client"] == "127.0.0.1"
    assert request.value("Forwarded") == "for=127.0.0.1;host=a.test;proto=http"


@pytest.mark.parametrize("target", ["/pub", "/apiadmin", "/api/x"])
@pytest.mark.parametrize("field", ["SCRIPT_NAME: /api", "PATH_INFO: /pub", "SCRIPT-NAME: /api"])
def test_no_field_sets_where_the_gateway_is_mounted(target: str, field: str, gate: Any) -> None:
    """D19, D20"""
    before = len(gate.backend.requests)
    answer = gate.ask(gate.raw(target, field))
    assert answer.status == {"/pub": 200, "/apiadmin": 404, "/api/x": 401}[target] or (
        answer.status == 400 and "_" in field
    )
    assert [request.target for request in gate.backend.requests[before:]] in ([], ["/pub"])


def test_two_cookie_fields_never_become_another_cookie(gate: Any) -> None:
    """D21: by a comma, as the server joins them, they would."""
    before = len(gate.backend.requests)
    answer = gate.ask(gate.raw("/pub", "Cookie: a=1", "Cookie: b=2"))
    cookies = [request.value("Cookie") for request in gate.backend.requests[before:]]
    assert (answer.status, cookies) == (200, ["a=1; b=2"])


@pytest.mark.parametrize("fields", [["Content-Type: a/b", "Content-Type: c/d"], ["Host: a.test"]])
def test_fields_that_come_once_are_refused_when_they_come_twice(
    fields: list[str], gate: Any
) -> None:
    """D22"""
    gate.refused(gate.raw("/pub", *fields), 400)


def test_cookies_of_the_backend_stay_apart(gate: Any) -> None:
    """D23, D24: three of one user, and none of them for the next."""
    cookies = [("Set-Cookie", f"{name}=1; Path=/pub") for name in "abc"]
    _, back = gate.passed(gate.raw("/pub"), answer=reply(b"", fields=cookies))
    assert [value[:3] for value in back.values("Set-Cookie")] == ["a=1", "b=1", "c=1"]
    request, _ = gate.passed(gate.raw("/pub"))
    assert request.value("Cookie") is None
