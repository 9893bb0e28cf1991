"""F: hosts, forms of the target, methods."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.testing.backend import reply

BAD_HOSTS = ["", "a@evil", "evil/foo?", "a b", "a, b", "a:99999x", "a:-1", "[::1", "a%2ftest"]


def test_a_request_without_host_is_refused(gate: Any) -> None:
    """F01"""
    gate.refused(gate.raw("/pub", host=None), 400)


@pytest.mark.parametrize("second", ["a.test", "b.test"])
def test_two_hosts_are_refused(second: str, gate: Any) -> None:
    """F02"""
    gate.refused(gate.raw("/pub", f"Host: {second}"), 400)


@pytest.mark.parametrize("host", [*BAD_HOSTS, "a\tb"])
def test_a_malformed_host_is_refused(host: str, gate: Any) -> None:
    """F03, F04"""
    gate.refused(gate.raw("/pub", host=host), 400)


@pytest.fixture(scope="module")
def hosts(make_gate: Any) -> Any:
    return make_gate(gateway='allowed_hosts = ["a.test", "*.shop.test"]')


@pytest.mark.parametrize("host", ["a.test", "A.test:80", "eu.shop.test"])
def test_an_allowed_host_is_served(host: str, hosts: Any) -> None:
    hosts.passed(hosts.raw("/pub", host=host))


@pytest.mark.parametrize("host", ["b.test", "shop.test", "a.test.evil", "169.254.169.254"])
def test_another_host_is_not(host: str, hosts: Any) -> None:
    """F05"""
    hosts.refused(hosts.raw("/pub", host=host), 421)
    hosts.refused(hosts.raw("*", host=host, method="OPTIONS"), 421)


def test_no_location_is_built_from_a_strangers_word(gate: Any) -> None:
    """F06"""
    moved = reply(b"", status="302 Found", fields=[("Location", f"{gate.backend.url}/pub/x")])
    data = gate.raw("/pub", "X-Forwarded-Host: evil.test", "X-Forwarded-Proto: https")
    _, back = gate.passed(data, 302, answer=moved)
    assert "evil" not in back.values("Location")[0]


@pytest.mark.parametrize("host", ["169.254.169.254", "localhost:22", "a.test"])
def test_the_backend_is_the_one_of_the_route(host: str, gate: Any) -> None:
    """F07, F08: and it is asked under its own name."""
    request, _ = gate.passed(gate.raw("/pub", host=host))
    assert request.value("Host") == f"127.0.0.1:{gate.backend.port}"


@pytest.mark.parametrize("target", ["http://a.test/pub", "HTTP://A.test:80/pub"])
def test_an_absolute_target_arrives_in_origin_form(target: str, gate: Any) -> None:
    """F09"""
    request, _ = gate.passed(gate.raw(target))
    assert request.target == "/pub"


@pytest.mark.parametrize(
    "target",
    [
        "http://b.test/pub",  # F10
        "http://a.test:81/pub",
        "file:///pub",  # F11
        "ftp://a.test/pub",
        "http://u:p@a.test/pub",
        "//u@a.test/../pub",
    ],
)
def test_an_absolute_target_of_another_host_is_rejected(target: str, gate: Any) -> None:
    gate.refused(gate.raw(target), 400)


def test_an_absolute_target_without_a_path_is_the_root(gate: Any) -> None:
    """F12: where there is no route."""
    gate.refused(gate.raw("http://a.test"), 404)


@pytest.mark.parametrize("target", ["a.test:443", "/pub", "/", "http://a.test/pub"])
def test_there_is_no_tunnel(target: str, gate: Any) -> None:
    """F13"""
    gate.refused(gate.raw(target, method="CONNECT"), 400, 405)


@pytest.mark.parametrize("method", ["TRACE", "TRACK"])
def test_there_is_no_echo(method: str, gate: Any) -> None:
    """F14"""
    gate.refused(gate.raw("/pub", "Cookie: secret=1", method=method), 405)


def test_options_may_end_here(gate: Any) -> None:
    """F14"""
    seen = len(gate.backend.requests)
    assert gate.ask(gate.raw("*", method="OPTIONS"), method="OPTIONS").status == 204
    assert gate.ask(gate.raw("/pub", "Max-Forwards: 0", method="OPTIONS")).status == 204
    assert len(gate.backend.requests) == seen
    request, _ = gate.passed(gate.raw("/pub", "Max-Forwards: 5", method="OPTIONS"))
    assert request.value("Max-Forwards") == "4"


@pytest.mark.parametrize("method", ["GET\x00", "A" * 21, "G@T", "get"])
def test_a_method_that_is_none_is_refused(method: str, gate: Any) -> None:
    """F15"""
    gate.refused(gate.raw("/pub", method=method), 400, 405)


def test_methods_are_the_routes_to_limit(make_gate: Any) -> None:
    """F15"""
    routes = '[[routes]]\npath = "/read"\nservice = "svc"\nmethods = ["GET"]\n'
    gate = make_gate(routes=routes)
    for method in ("FOOBAR", "POST", "PROPFIND"):
        gate.refused(gate.raw("/read", method=method), 405)
    request, _ = gate.passed(gate.raw("/read", method="HEAD"), method="HEAD")
    assert request.method == "HEAD"


def test_head_is_get_without_the_body(gate: Any) -> None:
    """F16"""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX-Kept: 1\r\n\r\n"
    request, back = gate.passed(gate.raw("/pub", method="HEAD"), method="HEAD", answer=answer)
    assert request.method == "HEAD"
    assert (back.body, back.values("Content-Length"), back.values("X-Kept")) == (b"", ["9"], ["1"])
    seen = len(gate.backend.requests)
    assert gate.ask(gate.raw("/api/x", method="HEAD"), method="HEAD").status == 401
    assert len(gate.backend.requests) == seen
