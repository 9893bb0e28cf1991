"""C: what concerns one connection only, and what its Connection field may not do."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.testing.backend import reply


def bearer(gate: Any) -> str:
    return f"Authorization: Bearer {gate.token}"


@pytest.mark.parametrize("name", ["authorization", "X-User-Id", "x-user-id", "x_user_id"])
def test_a_client_cannot_remove_identity_fields(name: str, gate: Any) -> None:
    """C01, C02: the token is judged as it came, and the field is set after the removal."""
    request, _ = gate.passed(gate.raw("/api/x", f"Connection: {name}", bearer(gate)))
    assert request.value("X-User-Id") == "7"


def test_a_client_cannot_remove_forwarding_fields(gate: Any) -> None:
    """C03"""
    names = "X-Forwarded-For, X-Forwarded-Proto, X-Real-IP, Forwarded, Via, Host, Cookie, "
    names += "Content-Length, Transfer-Encoding, Content-Type"
    fields = [f"Connection: {names}", "Cookie: a=1", "Content-Length: 3", "Content-Type: text/x"]
    request, _ = gate.passed(gate.raw("/pub", *fields, method="POST", body=b"abc"))
    assert request.value("X-Forwarded-For") == "127.0.0.1"
    assert request.value("X-Forwarded-Proto") == "http"
    assert request.value("Forwarded") == "for=127.0.0.1;host=a.test;proto=http"
    assert request.value("Via") == "1.1 gate"
    assert request.value("Host") == f"127.0.0.1:{gate.backend.port}"
    assert request.value("Cookie") == "a=1"
    assert request.value("Content-Type") == "text/x"
    assert (request.value("Content-Length"), request.body) == ("3", b"abc")


def test_what_connection_names_goes_no_further(gate: Any) -> None:
    """C04"""
    request, _ = gate.passed(gate.raw("/pub", "Connection: close, X-Foo", "X-Foo: 1"))
    assert request.value("X-Foo") is None
    assert "x-foo" not in (request.value("Connection") or "").lower()


@pytest.mark.parametrize("value", [",", "x", ";", '"x"', "close, , ;", "é"])
def test_malformed_names_in_connection_are_ignored(value: str, gate: Any) -> None:
    """C05"""
    gate.passed(gate.raw("/pub", f"Connection: {value}"))


def test_too_many_names_in_connection_are_refused(gate: Any) -> None:
    """C05"""
    names = ",".join(f"a{number}" for number in range(1200))
    gate.refused(gate.raw("/pub", f"Connection: {names}"), 400)


def test_hop_by_hop_fields_stay_where_they_are(gate: Any) -> None:
    """C06, C07, C08: an upgrade that nobody offers is answered as if it were not asked for."""
    fields = [
        "Connection: Upgrade, HTTP2-Settings, TE",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Trailer: X-Sum",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQ",
        "Proxy-Authorization: Basic eA==",
        "Proxy-Authenticate: Basic",
        "Proxy: http://evil.test",
    ]
    request, _ = gate.passed(gate.raw("/pub", *fields))
    sent = {line.partition(":")[0].lower() for line in fields} - {"connection"}
    assert not sent & {name.lower() for name, _ in request.fields}
    assert "upgrade" not in (request.value("Connection") or "").lower()


def test_what_is_the_backends_connections_own_stays_there(gate: Any) -> None:
    """C09, C10"""
    hop = ["Trailer", "Keep-Alive", "Upgrade", "Proxy-Authenticate", "Proxy-Connection", "X-Secret"]
    fields = [("Connection", "X-Secret, close"), *((name, "x") for name in hop)]
    _, back = gate.passed(gate.raw("/pub"), answer=reply(b"ok", fields=fields))
    own = {"Keep-Alive": ["timeout=75"]}  # how long the gateway keeps its own connection
    for name in hop:
        assert back.values(name) in ([], own.get(name))


def test_the_connection_field_of_a_backend_removes_no_end_to_end_field(gate: Any) -> None:
    """C11"""
    kept = [("Content-Type", "text/x"), ("Set-Cookie", "a=1"), ("Cache-Control", "no-store")]
    named = ("Connection", "Content-Length, Content-Type, Set-Cookie, Cache-Control")
    _, back = gate.passed(gate.raw("/pub"), answer=reply(b"ok", fields=[named, *kept]))
    for name, value in kept:
        assert back.values(name) == [value]
    assert back.values("Content-Length") == ["2"]


def test_a_request_that_was_here_before_is_a_loop(gate: Any) -> None:
    """C13"""
    request, _ = gate.passed(gate.raw("/pub", "Via: 1.1 other"))
    assert request.value("Via") == "1.1 other, 1.1 gate"
    gate.refused(gate.raw("/pub", "Via: 1.1 other, 1.1 gate"), 508)
