"""Locations and cookies that name the instance are rewritten for the client."""

from __future__ import annotations

import pytest

from wsgigate.proxy.rewriting import ForwardedOrigin, cookie_path, location, refresh

ORIGIN = "http://10.0.0.1:8000"


@pytest.mark.parametrize(
    ("value", "strip", "add", "result"),
    [
        # the instance's own origin becomes a path
        ("http://10.0.0.1:8000/x?y#z", "", "", "/x?y#z"),
        ("http://10.0.0.1:8000/x", "/api/users", "", "/api/users/x"),
        ("http://10.0.0.1:8000/v2/x", "/api", "/v2", "/api/x"),
        ("http://10.0.0.1:8000", "", "", "/"),
        ("http://10.0.0.1:8000", "/api", "", "/api/"),
        ("http://10.0.0.1:8000?x", "/api", "", "/api/?x"),
        ("HTTP://10.0.0.1:8000/X", "", "", "/X"),
        ("http://10.0.0.1:8000/other", "/api", "/v2", "/other"),
        # a path gets its prefix back, by whole segments
        ("/7", "/api/users", "", "/api/users/7"),
        ("/7", "/api/users/", "", "/api/users/7"),
        ("/", "/api", "", "/api/"),
        ("/v2", "/api", "/v2", "/api"),
        ("/v2?x", "", "/v2", "/?x"),
        ("/v2/7", "/api", "/v2", "/api/7"),
        ("/v2x", "/api", "/v2", "/v2x"),
        ("/7", "", "", "/7"),
        # a service that reads X-Forwarded-Prefix has put it there itself
        ("/api/users/7", "/api/users", "", "/api/users/7"),
        ("/api/users", "/api/users", "", "/api/users"),
        ("/api/users2", "/api/users", "", "/api/users/api/users2"),
        ("http://10.0.0.1:8000/api/7", "/api", "", "/api/7"),
        ("/api/7", "/api", "/v2", "/api/7"),
        ("/v2/api/7", "/api", "/v2", "/api/api/7"),
        # no rewriting makes another host of a path
        ("http://10.0.0.1:8000//evil/x", "", "", "/.//evil/x"),
        ("http://10.0.0.1:8000//evil/x", "/api", "", "/api//evil/x"),
        ("/v2//evil", "", "/v2", "/.//evil"),
        # everything else is the service's own business
        ("//evil", "/api", "", "//evil"),
        ("/\\evil", "/api", "", "/\\evil"),
        ("/\t/evil", "/api", "", "/\t/evil"),
        ("http://evil/x", "/api", "", "http://evil/x"),
        ("http://10.0.0.1:8000@evil/", "/api", "", "http://10.0.0.1:8000@evil/"),
        ("http://10.0.0.1:8000.evil/", "/api", "", "http://10.0.0.1:8000.evil/"),
        ("http://u:p@10.0.0.1:8000/", "/api", "", "http://u:p@10.0.0.1:8000/"),
        ("http:/10.0.0.1:8000/", "/api", "", "http:/10.0.0.1:8000/"),
        ("http:///x", "/api", "", "http:///x"),
        ("https://10.0.0.1:8000/x", "/api", "", "https://10.0.0.1:8000/x"),
        ("http://10.0.0.1/x", "/api", "", "http://10.0.0.1/x"),
        ("http://10.0.0.1:8000\\@evil/", "/api", "", "http://10.0.0.1:8000\\@evil/"),
        ("file:///etc/passwd", "/api", "", "file:///etc/passwd"),
        ("javascript:alert(1)", "/api", "", "javascript:alert(1)"),
        ("next", "/api", "", "next"),
        ("../x", "/api", "", "../x"),
        ("?page=2", "/api", "", "?page=2"),
        ("", "/api", "", ""),
    ],
)
def test_a_location_is_rewritten_only_if_it_points_to_the_instance(value, strip, add, result):
    """Security G33."""
    assert location(value, ORIGIN, strip, add) == result


@pytest.mark.parametrize(
    ("value", "origin", "result"),
    [
        ("http://Host:80/x", "http://host", "/x"),
        ("http://host/x", "http://host:80", "/x"),
        ("https://host:443/x", "https://host", "/x"),
        ("https://host:80/x", "https://host", "https://host:80/x"),
        ("http://[::1]:8000/x", "http://[::1]:8000", "/x"),
    ],
)
def test_a_default_port_may_be_written_or_not(value, origin, result):
    """RFC 3986 section 6.2.3."""
    assert location(value, origin) == result


def test_a_location_with_the_forwarded_public_host_is_rewritten():
    value = "https://shop.example/login"
    assert location(value, ORIGIN, "/api") == value
    assert (
        location(value, ORIGIN, "/api", forwarded=ForwardedOrigin("https", "shop.example"))
        == "/api/login"
    )


TLS = ForwardedOrigin("https", "shop.example", "443")
PLAIN = ForwardedOrigin("http", "shop.example:8080", "8080")


@pytest.mark.parametrize(
    ("value", "told", "result"),
    [
        # the service knows the scheme and not the host
        ("https://10.0.0.1:8000/items/", TLS, "/api/items/"),
        ("https://10.0.0.1:8000", TLS, "/api/"),
        ("https://10.0.0.1:8000?a=1", TLS, "/api/?a=1"),
        ("//10.0.0.1:8000/items/", TLS, "/api/items/"),
        ("//10.0.0.1:8000//evil", TLS, "/api//evil"),
        # of the Host's name and the port it was told, or the scheme's own
        ("https://10.0.0.1/items/", TLS, "/api/items/"),
        ("https://10.0.0.1:443/items/", TLS, "/api/items/"),
        ("http://10.0.0.1:8080/items/", PLAIN, "/api/items/"),
        ("http://10.0.0.1:9999/items/", PLAIN, "http://10.0.0.1:9999/items/"),
        # it does not know the scheme
        ("http://10.0.0.1:8000/items/", TLS, "/api/items/"),
        ("http://shop.example/items/", TLS, "/api/items/"),
        # it knows the host
        ("https://shop.example/items/", TLS, "/api/items/"),
        ("https://shop.example:443/items/", TLS, "/api/items/"),
        ("HTTPS://Shop.Example/items/", TLS, "/api/items/"),
        ("//shop.example/items/", TLS, "/api/items/"),
        ("https://shop.example/api/items/", TLS, "/api/items/"),
        ("http://shop.example:8080/items/", PLAIN, "/api/items/"),
        ("http://shop.example/", ForwardedOrigin("http", "shop.example", "8080"), "/api/"),
        ("http://shop.example:8080/", ForwardedOrigin("http", "shop.example", "8080"), "/api/"),
        # on to TLS: as a path it would be a loop
        (
            "https://shop.example/x",
            ForwardedOrigin("http", "shop.example", "80"),
            "https://shop.example/api/x",
        ),
        ("https://10.0.0.1:8000/x", PLAIN, "https://shop.example/api/x"),
        ("https://10.0.0.1:8000/x", ForwardedOrigin("http"), "https://10.0.0.1:8000/x"),
        # others
        ("https://shop.example:8443/x", TLS, "https://shop.example:8443/x"),
        ("https://pay.example/x", TLS, "https://pay.example/x"),
        ("https://10.0.0.1:8000.evil/", TLS, "https://10.0.0.1:8000.evil/"),
        ("https://10.0.0.1:8000@evil/", TLS, "https://10.0.0.1:8000@evil/"),
        ("https://shop.example@evil/", TLS, "https://shop.example@evil/"),
        ("//evil/x", TLS, "//evil/x"),
        ("ftp://10.0.0.1:8000/x", TLS, "ftp://10.0.0.1:8000/x"),
    ],
)
def test_a_location_is_rewritten_if_it_matches_the_forwarded_origin(value, told, result):
    assert location(value, ORIGIN, "/api", forwarded=told) == result
    assert refresh(f"5; url={value}", ORIGIN, "/api", forwarded=told) == f"5; url={result}"


def test_a_location_at_a_tls_instance_is_rewritten_for_a_plain_client():
    origin = "https://10.0.0.1"
    assert location("https://10.0.0.1/x", origin, forwarded=PLAIN) == "/x"


def test_a_location_with_the_configured_host_is_rewritten():
    told = ForwardedOrigin("https", "shop.example", "443")
    for value in ("http://users.internal/x", "https://users.internal/x", "//users.internal/x"):
        assert location(value, ORIGIN, "/api", hosts=["users.internal"], forwarded=told) == "/api/x"


def test_an_ipv6_instance_is_recognized_with_and_without_a_port():
    for authority in ("[::1]:8000", "[::1]"):
        value, origin = f"https://{authority}/x", f"http://{authority}"
        assert location(value, origin, forwarded=TLS) == "/x"


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("0;URL=/x", "0;URL=/api/x"),
        ("5; url='http://10.0.0.1:8000/x?y=1'", "5; url='/api/x?y=1'"),
        ('1.5 , Url = "/x" ', '1.5 , Url = "/api/x" '),
        ("3; /x", "3; /api/x"),
        ("3; url=next", "3; url=next"),
        ("3", "3"),
        ("3;", "3;"),
        ("3; url=", "3; url="),
        ("soon; url=/x", "soon; url=/x"),
    ],
)
def test_the_url_of_refresh_is_rewritten_like_a_location(value, result):
    assert refresh(value, ORIGIN, "/api") == result


@pytest.mark.parametrize(
    ("value", "old", "new", "result"),
    [
        ("a=1; Path=/", "", "/api", "a=1; Path=/api"),
        ("a=1; Path=/x", "", "/api/", "a=1; Path=/api/x"),
        ("a=1;path = /v2/x ;HttpOnly", "/v2", "/api", "a=1;path = /api/x ;HttpOnly"),
        ("a=1; Path=/v2", "/v2", "", "a=1; Path=/"),
        ("a=1; Path=/v2/", "/v2", "/api", "a=1; Path=/api/"),
        ("a=1; Path=/", "", "", "a=1; Path=/"),
        ("a=1; Path=/api", "", "/api", "a=1; Path=/api"),
        # not beneath the prefix, or not a path at all
        ("a=1; Path=/v2x", "/v2", "/api", "a=1; Path=/v2x"),
        ("a=1; Path=/", "/v2", "/api", "a=1; Path=/"),
        ('a=1; Path="/v2"', "/v2", "/api", 'a=1; Path="/v2"'),
        ("a=1; Path", "", "/api", "a=1; Path"),
        ("a=1; Path=x", "", "/api", "a=1; Path=x"),
        # never the cookie itself, nor what looks alike
        ("path=/; x-path=/; HttpOnly", "", "/api", "path=/; x-path=/; HttpOnly"),
        ("__Host-a=1; Path=/; Secure", "", "/api", "__Host-a=1; Path=/; Secure"),
        (
            " a = b=c ;  Max-Age=1;;SameSite=Lax;",
            "",
            "/api",
            " a = b=c ;  Max-Age=1;;SameSite=Lax;",
        ),
        ("a=1; Path=/; Path=/x", "", "/api", "a=1; Path=/api; Path=/api/x"),
        ("", "", "/api", ""),
    ],
)
def test_only_the_path_of_a_cookie_is_rewritten(value, old, new, result):
    """RFC 6265 section 5.2."""
    assert cookie_path(value, old, new) == result


@pytest.mark.parametrize(
    ("value", "host", "result"),
    [
        ("a=1; Domain=users.internal; Secure", "users.internal", "a=1; Secure"),
        ("a=1; domain=.Users.Internal", "users.internal", "a=1"),
        ("a=1; Domain=internal", "users.internal", "a=1; Domain=internal"),
        ("a=1; Domain=example.com", "users.internal", "a=1; Domain=example.com"),
        ("a=1; Domain=", "users.internal", "a=1; Domain="),
        ("a=1; Domain=x", None, "a=1; Domain=x"),
        ("domain=users.internal", "users.internal", "domain=users.internal"),
    ],
)
def test_a_domain_that_names_the_instance_is_dropped(value, host, result):
    """RFC 6265 section 5.2.3: such a cookie would be refused by the client."""
    assert cookie_path(value, drop_domain=host) == result
