"""A session cookie in front of a service: forgery, and the cookie in both directions."""

from __future__ import annotations

import pytest
from werkzeug.test import create_environ

from wsgigate.auth.session_guard import SessionGuard

GUARD = SessionGuard(["session"], ["https://www.example.com"])
HOST = {"Host": "shop.example"}
WEBSOCKET = {"Upgrade": "websocket", "Connection": "Upgrade"}


@pytest.mark.parametrize(
    ("method", "headers", "forged"),
    [
        ("POST", {}, False),
        ("POST", {"Origin": "https://shop.example"}, False),
        ("POST", {"Origin": "http://shop.example:80"}, False),
        ("POST", {"Sec-Fetch-Site": "same-origin"}, False),
        ("POST", {"Sec-Fetch-Site": "none"}, False),
        ("POST", {"Origin": "https://www.example.com"}, False),
        ("POST", {"Origin": "https://www.example.com", "Sec-Fetch-Site": "same-site"}, False),
        ("POST", {"Origin": "https://evil.example"}, True),
        ("post", {"Origin": "https://evil.example"}, True),
        ("DELETE", {"Origin": "null"}, True),
        ("PUT", {"Origin": ""}, True),
        ("PATCH", {"Origin": "https://shop.example.evil.example"}, True),
        ("POST", {"Origin": "https://shop.example:8443"}, True),
        ("POST", {"Sec-Fetch-Site": "cross-site"}, True),
        ("POST", {"Sec-Fetch-Site": "same-site"}, True),
        ("POST", {"Origin": "https://shop.example", "Sec-Fetch-Site": "cross-site"}, True),
        ("BREW", {"Origin": "https://evil.example"}, True),
        ("GET", {"Origin": "https://evil.example"}, False),
        ("HEAD", {"Sec-Fetch-Site": "cross-site"}, False),
        ("GET", {"Origin": "https://evil.example", **WEBSOCKET}, True),
        ("GET", {"Origin": "https://shop.example", **WEBSOCKET}, False),
    ],
)
def test_a_request_of_another_site_is_a_forgery_if_it_changes_something(method, headers, forged):
    environ = create_environ("/api/orders", method=method, headers={**HOST, **headers})
    environ["REQUEST_METHOD"] = method
    assert bool(GUARD.forgery(environ)) is forged


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        ("session=secret", None),
        ("a=1; session=secret; b=2", "a=1; b=2"),
        ("session=secret; session=other; a=1", "a=1"),
        ("session = secret;a=1", "a=1"),
        ("session", None),
        ("\xc2\xa0session=1; session\xe2\x80\x85=2; \xa0session=3; a=1", "a=1"),
        ("session\xc3\xa0=1; \xff\xa0session=2", "session\xc3\xa0=1; \xff\xa0session=2"),
        ("sessions=1; Session=2; a=session=3", "sessions=1; Session=2; a=session=3"),
        (None, None),
    ],
)
def test_the_service_never_sees_the_session_cookie(sent, forwarded):
    environ = create_environ("/", headers={} if sent is None else {"Cookie": sent})
    GUARD.hide(environ)
    assert environ.get("HTTP_COOKIE") == forwarded


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("Set-Cookie", "session=; Max-Age=0; Path=/", False),
        ("set-cookie", " session =x; Domain=shop.example", False),
        ("Set-Cookie", "=session=evil; Path=/", False),
        ("Set-Cookie", "session; Path=/", False),
        ("Set-Cookie", "\t= session =evil", False),
        # a no-break space and another space, in UTF-8: Django removes them, browsers do not
        ("Set-Cookie", "\xc2\xa0session=evil; Path=/", False),
        ("Set-Cookie", "session\xe2\x80\x85=evil; Path=/", False),
        ("Set-Cookie", "=\xc2\xa0session=evil; Path=/", False),
        ("Set-Cookie", "\xa0session=evil; Path=/", False),
        ("Set-Cookie", "session\xc3\xa0=1", True),
        ("Set-Cookie", "cart", True),
        ("Set-Cookie", "", True),
        ("Clear-Site-Data", '"cache", "cookies"', False),
        ("Clear-Site-Data", '"*"', False),
        ("Clear-Site-Data", '"cache"', True),
        ("Set-Cookie", "cart=session=1; Path=/", True),
        ("Set-Cookie", "Session=1", True),
        ("X-Set-Cookie", "session=1", True),
    ],
)
def test_the_service_cannot_change_the_session(name, value, kept):
    started = []
    start = GUARD.starting(lambda *given: started.append(given))
    start("200 OK", [("Content-Type", "text/plain"), (name, value)])
    [(status, headers)] = started
    assert status == "200 OK"
    assert headers[0] == ("Content-Type", "text/plain")
    assert ((name, value) in headers) is kept


@pytest.mark.parametrize("vary", ["Cookie", "accept, COOKIE", "*"])
def test_a_response_that_varies_by_cookie_is_left_alone(vary):
    started = []
    GUARD.starting(lambda *given: started.append(given))("200 OK", [("Vary", vary)])
    assert started == [("200 OK", [("Vary", vary)])]


def test_no_cache_serves_the_response_to_another_user_and_own_fields_are_added():
    started = []
    own = [("Set-Cookie", "session=renewed")]
    GUARD.starting(lambda *given: started.append(given), own)("200 OK", [("Vary", "Accept")])
    assert started == [("200 OK", [("Vary", "Accept"), ("Vary", "Cookie"), *own])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("session",), "cookies: expected names"),
        ((["a b"],), "cookies: expected names"),
        ((["session"], "https://a.example"), "trusted_origins: expected a list"),
        ((["session"], ["www.example.com"]), "trusted_origins: expected origins"),
        ((["session"], ["https://a.example/path"]), "trusted_origins: expected origins"),
        ((["session"], ["https://a@b.example"]), "trusted_origins: expected origins"),
        ((["session"], ["https://[a"]), "trusted_origins: expected origins"),
        ((["session"], [7]), "trusted_origins: expected origins"),
    ],
)
def test_a_malformed_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SessionGuard(*arguments)
