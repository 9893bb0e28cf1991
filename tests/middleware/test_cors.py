"""CORS: allowed origins, preflights, and the fields of the app."""

from __future__ import annotations

import json
import re

import pytest

from wsgigate.http.wsgi import REASON
from wsgigate.middleware.cors import Cors
from wsgigate.testing.fakes import Server, new_environ

APP = "https://app.example.com"


def app(environ, start_response):
    environ["test.called"] = True
    start_response("200 OK", [("Content-Type", "text/plain"), *environ.get("test.fields", [])])
    return [b"hello"]


def request(middleware, method="GET", origin=None, fields=(), **more):
    environ = {**new_environ(method), "test.fields": list(fields), **more}
    if origin is not None:
        environ["HTTP_ORIGIN"] = origin
    server = Server().serve(middleware, environ)
    return server, environ


def preflight(middleware, origin=APP, method="PUT", fields=None, **more):
    more["HTTP_ACCESS_CONTROL_REQUEST_METHOD"] = method
    if fields is not None:
        more["HTTP_ACCESS_CONTROL_REQUEST_HEADERS"] = fields
    return request(middleware, "OPTIONS", origin, **more)


def all_of(server, name):
    return [value for each, value in server.headers if each.lower() == name.lower()]


PATTERN = "https://*.example.com"


@pytest.mark.parametrize(
    ("allowed", "origin", "may"),
    [
        (APP, APP, True),
        (APP, "https://app.example.com:443", False),
        (APP, "http://app.example.com", False),
        (APP, "https://app.example.com.evil.test", False),
        (APP, "https://evil.test/https://app.example.com", False),
        (APP, "https://app.example.com, https://evil.test", False),
        (APP, "", False),
        (APP, "null", False),
        ("https://APP.example.com:443", APP, True),
        ("http://localhost:3000", "http://localhost:3000", True),
        ("http://localhost:3000", "http://localhost", False),
        ("http://[::1]:8080", "http://[::1]:8080", True),
        ("capacitor://localhost", "capacitor://localhost", True),
        (PATTERN, "https://a.example.com", True),
        (PATTERN, "https://a.b.example.com", True),
        (PATTERN, "https://example.com", False),
        (PATTERN, "https://.example.com", False),
        (PATTERN, "https://evilexample.com", False),
        (PATTERN, "https://a.example.com.evil.test", False),
        (PATTERN, "https://a.example.com:8443", False),
        (PATTERN, "http://a.example.com", False),
        (PATTERN, "https://evil.test/.example.com", False),
        (PATTERN, "https://evil.test#.example.com", False),
        (PATTERN, "https://u@a.example.com", False),
        (PATTERN, "https://aXexample.com", False),
        (PATTERN, "https://a.exampleXcom", False),
        (PATTERN, "https://a.example.com\n", False),
        ("https://*.example.com:8443", "https://a.example.com:8443", True),
        ("null", "null", True),
        ("null", APP, False),
        ("*", APP, True),
        ("*", "null", True),
    ],
)
def test_allowed_origins_get_the_allow_origin_field(allowed, origin, may):
    server, environ = request(Cors(app, origins=[allowed]), origin=origin)
    expected = ["*" if allowed == "*" else origin] if may else []
    assert all_of(server, "Access-Control-Allow-Origin") == expected
    assert environ["test.called"]  # the browser decides, not we
    server, environ = preflight(Cors(app, origins=[allowed]), origin)
    assert server.status == ("204 No Content" if may else "403 Forbidden")
    assert "test.called" not in environ


def test_a_preflight_is_answered_without_the_app():
    middleware = Cors(
        app, origins=[APP], headers=["Authorization", "X-Thing"], credentials=True, max_age=60
    )
    server, environ = preflight(middleware, fields="authorization, x-thing,content-type")
    assert server.status == "204 No Content"
    assert server.chunks == []
    assert server.headers == [
        ("Access-Control-Allow-Origin", APP),
        ("Access-Control-Allow-Headers", "Authorization, X-Thing"),
        ("Access-Control-Allow-Credentials", "true"),
        ("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE"),
        ("Access-Control-Max-Age", "60"),
        ("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ]
    assert "test.called" not in environ


@pytest.mark.parametrize(
    ("settings", "asked", "reason"),
    [
        ({}, {"origin": "https://evil.test"}, "origin 'https://evil.test'"),
        ({}, {"method": "TRACE"}, "method 'TRACE'"),
        ({}, {"method": "put"}, "method 'put'"),
        ({"methods": ["GET"]}, {"method": "PUT"}, "method 'PUT'"),
        ({}, {"fields": "authorization"}, "a field"),
        ({"headers": ["X-A"]}, {"fields": "x-a, x-b"}, "a field"),
        ({"headers": ["*"]}, {"fields": "x-a\r\nx: y"}, "a field"),
        ({"headers": ["*"]}, {"fields": ",".join(f"x-{n}" for n in range(200))}, "a field"),
    ],
)
def test_a_preflight_for_a_method_or_field_that_is_not_allowed_is_rejected(settings, asked, reason):
    server, environ = preflight(Cors(app, origins=[APP], **settings), **asked)
    assert server.status == "403 Forbidden"
    assert json.loads(b"".join(server.chunks))["detail"] == (
        "This cross-origin request is not allowed."
    )
    assert all_of(server, "Access-Control-Allow-Origin") == []
    assert "Origin" in all_of(server, "Vary")[0]
    assert environ[REASON].startswith(reason)
    assert "test.called" not in environ


@pytest.mark.parametrize(
    ("headers", "asked", "told"),
    [
        ([], None, []),
        ([], "content-type", []),
        ([], " ,, ", []),
        (["X-A", "X-B"], None, ["X-A, X-B"]),
        (["X-A"], "X-A", ["X-A"]),
        (["*"], "authorization,X-Any", ["authorization, x-any"]),
        (["*"], None, []),
    ],
)
def test_which_fields_a_preflight_response_has(headers, asked, told):
    server, _ = preflight(Cors(app, origins=[APP], headers=headers), fields=asked)
    assert server.status == "204 No Content"
    assert all_of(server, "Access-Control-Allow-Headers") == told


@pytest.mark.parametrize(
    "more",
    [
        {"origin": None},
        {"origin": APP},
        {"origin": None, "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "PUT"},
    ],
)
def test_other_options_requests_are_the_apps(more):
    server, environ = request(Cors(app, origins=[APP]), "OPTIONS", **more)
    assert server.status == "200 OK"
    assert environ["test.called"]


def test_private_networks_are_not_opened():
    server, _ = preflight(
        Cors(app, origins=[APP]), HTTP_ACCESS_CONTROL_REQUEST_PRIVATE_NETWORK="true"
    )
    assert server.status == "204 No Content"
    assert not [name for name, _ in server.headers if "private" in name.lower()]


def test_the_apps_own_policy_is_replaced():
    own = [("access-control-allow-origin", "*"), ("Access-Control-Allow-Credentials", "true")]
    middleware = Cors(app, origins=[APP], expose=["X-Total", "Link"])
    server, _ = request(middleware, origin=APP, fields=own)
    assert [field for field in server.headers if field[0].lower().startswith("access-")] == [
        ("Access-Control-Allow-Origin", APP),
        ("Access-Control-Expose-Headers", "X-Total, Link"),
    ]
    for origin in (None, "https://evil.test"):
        server, _ = request(middleware, origin=origin, fields=own)
        assert not [name for name, _ in server.headers if name.lower().startswith("access-")]


def test_credentials_are_allowed_to_allowed_origins_only():
    middleware = Cors(app, origins=[APP], credentials=True)
    server, _ = request(middleware, origin=APP)
    assert all_of(server, "Access-Control-Allow-Credentials") == ["true"]
    server, _ = request(middleware, origin="https://evil.test")
    assert all_of(server, "Access-Control-Allow-Credentials") == []


@pytest.mark.parametrize(
    ("own", "vary"),
    [
        ([], ["Origin"]),
        (["Accept-Encoding"], ["Accept-Encoding, Origin"]),
        (["Accept", "Cookie"], ["Accept", "Cookie, Origin"]),
        (["accept, ORIGIN"], ["accept, ORIGIN"]),
        (["*"], ["*"]),
        ([""], ["Origin"]),
    ],
)
@pytest.mark.parametrize("origin", [APP, "https://evil.test", None])
def test_the_response_varies_by_origin(origin, own, vary):
    fields = [("Vary", value) for value in own]
    server, _ = request(Cors(app, origins=[APP]), origin=origin, fields=fields)
    assert all_of(server, "Vary") == vary


@pytest.mark.parametrize("origin", [APP, None])
def test_a_response_for_any_origin_does_not_vary(origin):
    server, _ = request(Cors(app, origins=["*"]), origin=origin)
    assert all_of(server, "Access-Control-Allow-Origin") == ["*"]
    assert all_of(server, "Vary") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"origins": []}, "at least one origin"),
        ({"origins": APP}, "origins is a list"),
        ({"origins": ["https://a.test/"]}, "origins: expected"),
        ({"origins": ["a.test"]}, "origins: expected"),
        ({"origins": ["https://*"]}, "origins: expected"),
        ({"origins": ["https://a.*.test"]}, "origins: expected"),
        ({"origins": ["*.example.com"]}, "origins: expected"),
        ({"origins": ["https://a b.test"]}, "origins: expected"),
        ({"origins": ["https://u@a.test"]}, "origins: expected"),
        ({"origins": ["*"], "credentials": True}, "credentials"),
        ({"origins": [APP, "null"], "credentials": True}, "credentials"),
        ({"origins": [APP], "expose": ["*"], "credentials": True}, "expose"),
        ({"origins": [APP], "methods": "GET"}, "methods is a list"),
        ({"origins": [APP], "methods": ["G T"]}, "methods: 'G T'"),
        ({"origins": [APP], "headers": ["X-A\r\n"]}, "headers: 'X-A"),
        ({"origins": [APP], "expose": ["a b"]}, "expose: 'a b'"),
        ({"origins": [APP], "max_age": -1}, "max_age"),
        ({"origins": [APP], "max_age": 90000}, "max_age"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Cors(app, **settings)


def test_a_long_origin_costs_nothing():
    """M09."""
    middleware = Cors(app, origins=[PATTERN])
    request(middleware, origin="https://" + "a." * 4000 + "x")
    request(middleware, origin="https://" + "a" * 8000)


@pytest.mark.parametrize(
    ("allowed", "origin", "may"),
    [
        ("http://localhost:*", "http://localhost:5173", True),
        ("http://localhost:*", "http://localhost", True),
        ("http://localhost:*", "http://localhost:5173.evil.test", False),
        ("http://localhost:*", "http://localhost.evil.test:80", False),
        ("https://*.example.com:*", "https://a.example.com:8443", True),
        (re.compile(r"https://pr-[0-9]+\.example\.com"), "https://pr-7.example.com", True),
        (re.compile(r"https://pr-[0-9]+\.example\.com"), "https://pr-7.example.com.evil.t", False),
        (re.compile(r"https://pr-[0-9]+\.example\.com"), "xhttps://pr-7.example.com", False),
        (lambda origin: origin.endswith(".test"), "https://a.test", True),
        (lambda origin: origin.endswith(".test"), "https://a.example", False),
    ],
)
def test_origins_by_port_pattern_and_function(allowed, origin, may):
    alone = [allowed] if isinstance(allowed, str) else allowed
    for origins in ([allowed], ["https://other.example", allowed], alone):
        for headers in (preflight(Cors(app, origins=origins), origin=origin)[0],):
            assert (headers.status[:3] == "204") is may
        server, _ = request(Cors(app, origins=origins), origin=origin)
        assert all_of(server, "Access-Control-Allow-Origin") == ([origin] if may else [])


def test_no_pattern_and_no_function_allows_pages_without_an_origin_the_users_credentials():
    rules = [re.compile("https://a.test|null"), lambda origin: True]
    for credentials, allowed in ((False, ["null"]), (True, [])):
        origins = rules if not credentials else rules[1:]
        server, _ = request(Cors(app, origins=origins, credentials=credentials), origin="null")
        assert all_of(server, "Access-Control-Allow-Origin") == allowed


def test_any_method_is_allowed_by_its_name_which_holds_with_credentials_too():
    cors = Cors(app, origins=[APP], methods=["*"], credentials=True)
    server, _ = preflight(cors, method="PROPFIND")
    assert all_of(server, "Access-Control-Allow-Methods") == ["PROPFIND"]
    assert preflight(cors, method="NOT ONE")[0].status[:3] == "403"


def test_methods_are_written_in_any_case():
    server, _ = preflight(Cors(app, origins=[APP], methods=["get", "Put"]), method="PUT")
    assert all_of(server, "Access-Control-Allow-Methods") == ["GET, PUT"]


async def an_async_function(origin):
    return True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"origins": ["app.example.com"]}, 'the scheme too: "https://app.example.com"'),
        ({"origins": ["https://app.example.com/"]}, 'no path: "https://app.example.com"'),
        ({"origins": ["https://a.test/x/y"]}, 'no path: "https://a.test"'),
        ({"origins": ["https://münchen.example"]}, "'https://xn--mnchen-3ya.example'"),
        ({"origins": ["https://a.test:0"]}, "expected"),
        ({"origins": ["https://a.test:65536"]}, "expected"),
        ({"origins": None}, "origins is a list"),
        ({"origins": 1}, "origins is a list"),
        ({"origins": [1]}, "origins: 1 is not a text"),
        ({"origins": [re.compile(b"x")]}, "is not a text"),
        ({"origins": an_async_function}, "is asynchronous"),
        ({"origins": [re.compile(".*")], "credentials": True}, "matches any origin"),
        ({"origins": [re.compile("https://.*")], "credentials": True}, "matches any origin"),
        ({"origins": [APP], "methods": ["TRACE"]}, "no page can use TRACE"),
        ({"origins": [APP], "methods": ["GET,POST"]}, "is not a name"),
        ({"origins": [APP], "methods": 1}, "methods is a list"),
        ({"origins": [APP], "headers": [1]}, "headers: 1"),
        ({"origins": [APP], "max_age": None}, "max_age"),
        ({"origins": [APP], "max_age": 1.5}, "max_age"),
        ({"origins": [APP], "max_age": "60"}, "max_age"),
    ],
)
def test_settings_that_could_never_match_raise_an_error_with_the_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        Cors(app, **settings)
