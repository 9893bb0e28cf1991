"""The URL that a client signs is the one that it used, in normal form, and as it is forwarded."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.http.client_url import client_url, normal_url
from wsgigate.http.target import BadTarget
from wsgigate.middleware.client_address import ClientAddress
from wsgigate.testing.fakes import new_environ


def environ_of(raw: str = "/orders", **changes: Any) -> dict[str, Any]:
    path, _, query = raw.partition("?")
    given = {"PATH_INFO": path, "QUERY_STRING": query, "RAW_URI": raw, "HTTP_HOST": "api.example"}
    return {**new_environ(), **given, **changes}


def seen(trusted: bool = False, **environ: Any) -> str:
    """Return the URL behind a ClientAddress that trusts the peer or not."""
    found: list[str] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        found.append(client_url(environ).text)
        return []

    proxies = ["192.0.2.1"] if trusted else []
    given = environ_of(**{"REMOTE_ADDR": "192.0.2.1", **environ})
    list(ClientAddress(app, trusted_proxies=proxies)(given, lambda *args: print))
    return found[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "http://api.example/orders"),
        ({"raw": "/orders?a=b&c=%7e"}, "http://api.example/orders?a=b&c=%7e"),
        ({"wsgi.url_scheme": "https"}, "https://api.example/orders"),
        ({"HTTP_HOST": "API.Example.:80"}, "http://api.example/orders"),
        ({"HTTP_HOST": "api.example:443"}, "http://api.example:443/orders"),
        ({"HTTP_HOST": "api.example:443", "wsgi.url_scheme": "https"}, "https://api.example/orders"),
        ({"HTTP_HOST": "[2001:DB8::1]:8080"}, "http://[2001:db8::1]:8080/orders"),
        ({"raw": "/%7Eann//x", "PATH_INFO": "/~ann//x"}, "http://api.example/~ann/x"),
        ({"SCRIPT_NAME": "/app", "raw": "/app/orders", "PATH_INFO": "/orders"}, "http://api.example/app/orders"),
        ({"SCRIPT_NAME": "/app", "raw": "/app", "PATH_INFO": ""}, "http://api.example/app"),
        ({"SCRIPT_NAME": "/app", "raw": "/app/", "PATH_INFO": "/"}, "http://api.example/app/"),
    ],
)  # fmt: skip
def test_the_url_is_in_normal_form(changes: dict[str, Any], expected: str) -> None:
    assert client_url(environ_of(**changes)).text == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"raw": "/a/../b", "PATH_INFO": "/a/../b"},
        {"HTTP_HOST": "api.example, evil.example"},
        {"HTTP_HOST": "api.example/x"},
        {"HTTP_HOST": ""},
        {"HTTP_HOST": "user@api.example"},
    ],
)
def test_an_ambiguous_request_has_no_url(changes: dict[str, Any]) -> None:
    with pytest.raises(BadTarget):
        client_url(environ_of(**changes))


FORWARDED = {
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_HOST": "shop.example",
    "HTTP_X_FORWARDED_PREFIX": "/v1/",
}


def test_a_trusted_proxy_tells_what_the_client_used() -> None:
    assert seen(True, **FORWARDED) == "https://shop.example/v1/orders"
    assert seen(True, HTTP_X_FORWARDED_PORT="8443") == "http://api.example:8443/orders"
    assert seen(True, HTTP_X_FORWARDED_PORT="80") == "http://api.example/orders"


def test_no_other_peer_does() -> None:
    assert seen(**FORWARDED, HTTP_X_FORWARDED_PORT="8443") == "http://api.example/orders"
    assert client_url(environ_of(**FORWARDED)).text == "http://api.example/orders"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTPS://API.example:443/a?b#c", "https://api.example/a"),
        ("https://api.example", "https://api.example/"),
        ("http://api.example:8080/%7eann/%c3%a9", "http://api.example:8080/~ann/%C3%A9"),
        ("http://[::1]:80/", "http://[::1]/"),
    ],
)
def test_other_spellings_of_a_url_are_the_same(url: str, expected: str) -> None:
    assert normal_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("", "/orders", "api.example/a", "ftp://api.example/a", "https://", "https:///a"),
        *("https://user@api.example/", "https://api.example/a/../b", "https://[::1/"),
        *("https://a b/", "https://api.example/\n", "https://api.exämple/"),
        "https://a/" + "x" * 9000,
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_host_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|host|path|Invalid|segment"):
        normal_url(url)
