"""Request targets: equal spellings have one form, ambiguous ones are rejected."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.http.target import (
    MAX_LENGTH,
    BadTarget,
    Target,
    canonical_path,
    canonical_pattern,
    normal_host,
    target_of,
)

SAME = [
    ("/", "/"),
    ("/api/users", "/api/users"),
    ("/api/%75sers", "/api/users"),  # E01
    ("/%61%70%69/users", "/api/users"),  # E02
    ("//api///users", "/api/users"),  # E03
    ("/api/users/", "/api/users/"),
    ("/api/users;x=1", "/api/users;x=1"),  # E10, E11
    ("/api/users.", "/api/users."),  # E12
    ("/api/users%20", "/api/users%20"),
    ("/API/users", "/API/users"),  # E14
    ("/api/%c3%a9", "/api/%C3%A9"),  # E16
    ("/api/%ff", "/api/%FF"),  # E15
    ("/api/%2575sers", "/api/%2575sers"),  # E18
    ("/%252e%252e/api", "/%252e%252e/api"),  # E19
    ("/pub%3fx%23y%3bz", "/pub%3Fx%23y%3Bz"),  # E22
    ('/a|b"<>^`{}', "/a%7Cb%22%3C%3E%5E%60%7B%7D"),  # E24
    ("/%ef%bc%8fapi", "/%EF%BC%8Fapi"),  # E31
    ("/é", "/%E9"),
    ("/.well-known/x", "/.well-known/x"),
    ("/a/.../b", "/a/.../b"),
    ("/a!$&'()*+,;=:@-._~b", "/a!$&'()*+,;=:@-._~b"),
    ("/a%2Fb", "/a%2Fb"),
    ("/a%2fb", "/a%2Fb"),
]

REFUSED = [
    "",
    "api",
    "*",
    "/.",
    "/..",
    "/./api",
    "/api/./users",  # E04
    "/pub/../api/users",  # E05
    "/pub/..",
    "/pub/%2e%2e/api",  # E06
    "/pub/.%2e/api",
    "/pub/%2E./api",
    "/pub/%2e%2e%2fapi",  # E07
    "/pub%2f..%2fapi",
    "/pub/..%2fapi",
    "/pub%2f.%2fapi",
    "/pub\\..\\api",  # E09
    "/pub/%5c..%5capi",
    "/pub;/../api/users",  # E10
    "/pub/..;/api/users",
    "/pub/%2e%2e;x/api",
    "/api/users%00.png",  # E13
    "/api/%01",
    "/api/%7f",
    "/api/%0d%0aX:%20y",
    "/a b",
    "/a\tb",
    "/a\x00b",
    "/api/%zz",  # E17
    "/api/%",
    "/api/%2",
    "/api/users#frag",  # E20
    "/api/users?x",
]


@pytest.mark.parametrize(("raw", "canonical"), SAME)
def test_spellings_of_one_path_become_one_form(raw: str, canonical: str) -> None:
    assert canonical_path(raw) == canonical


@pytest.mark.parametrize("raw", REFUSED)
def test_a_path_with_two_readings_is_refused(raw: str) -> None:
    with pytest.raises(BadTarget):
        canonical_path(raw)


PARTS = st.sampled_from(
    [
        "/",
        "//",
        ".",
        "..",
        "%2e",
        "%2E%2e",
        "%2f",
        "%5c",
        "\\",
        ";",
        "a",
        "%61",
        "api",
        "%25",
        "%c3",
    ]
)


@given(st.lists(PARTS, max_size=12).map(lambda parts: "/" + "".join(parts)))
def test_the_canonical_form_is_its_own_and_has_nothing_to_resolve(raw: str) -> None:
    try:
        path = canonical_path(raw)
    except BadTarget:
        return
    assert canonical_path(path) == path
    assert "//" not in path
    names = {part.partition(";")[0] for part in path.replace("%2F", "/").split("/")}
    assert not {".", ".."} & names


@given(st.text(max_size=40))
def test_any_text_at_all_is_either_canonical_or_refused(raw: str) -> None:
    try:
        path = canonical_path("/" + raw)
    except BadTarget:
        return
    assert re.fullmatch(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-F]{2})+", path)
    assert canonical_path(path) == path


def environ(raw: str | None = "/", path: str | None = None, **more: Any) -> dict[str, Any]:
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/" if path is None else path,
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "a.test",
        **more,
    }
    if raw is not None:
        environ["RAW_URI"] = raw
        if "QUERY_STRING" not in more:
            environ["QUERY_STRING"] = raw.partition("?")[2]
    return {key: value for key, value in environ.items() if value is not None}


TARGETS = [
    # raw, PATH_INFO, more, expected
    ("/api/%75sers?x=%zz&y=a+b", "/api/users", {}, ("/api/users", "x=%zz&y=a+b")),  # E23
    ("/api?", "/api", {}, ("/api", "")),
    ("/api?a?b", "/api", {}, ("/api", "a?b")),
    ("/pub?/../api", "/pub", {}, ("/pub", "/../api")),  # E21
    ("http://a.test/api", "/api", {}, ("/api", None)),  # E25, F09
    ("http://A.test:80//api", "//api", {}, ("/api", None)),
    ("http://a.test", "", {}, ("/", None)),  # F12
    ("http://a.test?x", "", {}, ("/", "x")),
    ("/gw/api", "/api", {"SCRIPT_NAME": "/gw"}, ("/api", None)),  # E34
    ("/%67w/api", "/api", {"SCRIPT_NAME": "/gw"}, ("/api", None)),  # S06
    ("/gw", "", {"SCRIPT_NAME": "/gw"}, ("/", None)),
    ("/gw//api", "//api", {"SCRIPT_NAME": "/gw"}, ("/api", None)),
    ("/api", "/api", {"SCRIPT_NAME": "/gw"}, ("/api", None)),  # a test client's, without the mount
    ("/api", "/api", {"SCRIPT_NAME": "/"}, ("/api", None)),
    ("/gw/api", "/api", {"SCRIPT_NAME": "/gw/"}, ("/api", None)),
    ("//api", "/api", {}, ("/api", None)),  # a server's that merges slashes
    ("HTTP://a.test/api", "/api", {}, ("/api", None)),
    (None, "/caf\xc3\xa9;x", {"REQUEST_URI": "/caf%C3%A9%3bx"}, ("/caf%C3%A9%3Bx", None)),
    (None, "/api/us ers", {"QUERY_STRING": "q=1"}, ("/api/us%20ers", "q=1")),
    (None, "/api/%75", {}, ("/api/%2575", None)),
    (None, "/caf\xc3\xa9", {}, ("/caf%C3%A9", None)),
    (None, "/a;b?c#d", {}, ("/a;b%3Fc%23d", None)),
    (None, "", {"SCRIPT_NAME": "/gw"}, ("/", None)),
    # A middleware further out rewrote the path or the query: the app serves what it made of it.
    ("/v1/users", "/users", {}, ("/users", None)),
    ("/api/users", "/other", {"SCRIPT_NAME": "/admin"}, ("/other", None)),  # D19
    ("/users", "/en/users", {}, ("/en/users", None)),
    ("/v1/a%2Fb", "/a/b", {}, ("/a/b", None)),
    ("/v1/a/b", "/a%2Fb", {}, ("/a%252Fb", None)),
    ("/a%2fb%20", "/a%2fb ", {}, ("/a%2Fb%20", None)),  # cheroot's
    ("/a/b", "/a%2Fb", {}, ("/a%252Fb", None)),
    ("/a%252Fb", "/a%2Fb", {}, ("/a%252Fb", None)),
    ("/v1/a%3fb?x=1", "/a?b", {}, ("/a%3Fb", "x=1")),
    (None, "/index.py/x", {"REQUEST_URI": "/x"}, ("/index.py/x", None)),  # mod_rewrite
    ("/a?token=t&x=1", "/a", {"QUERY_STRING": "x=1"}, ("/a", "x=1")),
    ("/a?token=t", "/a", {"QUERY_STRING": ""}, ("/a", None)),
    ("/a", "/a", {"QUERY_STRING": "x=1"}, ("/a", "x=1")),
    ("/a?x=1", "/a", {"QUERY_STRING": None}, ("/a", "x=1")),  # PEP 3333: may be absent
]


@pytest.mark.parametrize(("raw", "path", "more", "expected"), TARGETS)
def test_the_target_is_read_from_the_environ_keys_of_the_server(
    raw: str | None, path: str, more: dict[str, str], expected: tuple[str, str | None]
) -> None:
    assert target_of(environ(raw, path, **more)) == Target(*expected, "a.test")


BAD_TARGETS = [
    ("/apiadmin", "admin", {"SCRIPT_NAME": "/api"}),  # D20
    ("/pub/../api", "/pub/../api", {}),
    ("/api#x", "/api", {}),
    ("/api?x#y", "/api", {}),
    ("/api?x\x00", "/api", {}),
    ("/" + "a" * 9000, "/" + "a" * 9000, {}),
    ("http://b.test/api", "/api", {}),  # F10
    ("http://a.test:81/api", "/api", {}),
    ("file:///etc/passwd", "/etc/passwd", {}),  # F11
    ("http://u:p@a.test/p", "/p", {}),
    ("a.test:443", "443", {}),
    ("*", "*", {}),
    ("foo", "foo", {}),
    (None, "admin", {}),
    (None, "/a/../b", {}),
    (None, "/a\\b", {}),
    (None, "/a\x00", {}),
    (None, "/a\r\nX: y", {}),
    (None, "/a", {"QUERY_STRING": "a b"}),
    (None, "/" + "a" * 9000, {}),
    (None, "/a", {"QUERY_STRING": "a" * 9000}),
    ("/a", "/a", {"HTTP_HOST": None}),  # F01
    ("/a", "/a", {"HTTP_HOST": ""}),  # F03
    ("/a", "/a", {"HTTP_HOST": "a@evil"}),  # F04
    ("/a", "/a", {"QUERY_STRING": "a b"}),
    # a rewritten path, and what was sent has no single meaning
    ("/v1/../a", "/a", {}),
    ("/v1/a\\b", "/a", {}),
    ("/v1/a", "/b/../a", {}),
    ("/v1/a", "a", {}),
    ("/v1/a#x", "/a", {}),
]


@pytest.mark.parametrize(("raw", "path", "more"), BAD_TARGETS)
def test_a_target_that_could_be_read_in_two_ways_is_refused(
    raw: str | None, path: str, more: dict[str, str]
) -> None:
    with pytest.raises(BadTarget):
        target_of(environ(raw, path, **more))


def _of_length(length: int, *, query: str = "", start: str = "/") -> tuple[str, str]:
    """Return a target that is *length* bytes long with *query*, and its path."""
    path = start + "a" * (length - len(start) - (len(query) + 1 if query else 0))
    return path + (f"?{query}" if query else ""), path


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "decoded"])
@pytest.mark.parametrize("query", ["", "x=1"])
@pytest.mark.parametrize("start", ["/", "//"], ids=["simple", "merged"])
def test_the_longest_target_is_taken_and_no_longer_one(raw: bool, query: str, start: str) -> None:
    """One limit, whatever the server hands on and however the target is read."""
    target, path = _of_length(MAX_LENGTH, query=query, start=start)
    env = environ(target if raw else None, path, QUERY_STRING=query)
    assert target_of(env).path == path.replace("//", "/")
    target, path = _of_length(MAX_LENGTH + 1, query=query, start=start)
    env = environ(target if raw else None, path, QUERY_STRING=query)
    with pytest.raises(BadTarget, match="too long"):
        target_of(env)


def test_the_target_is_made_once() -> None:
    env = environ("/a", "/a")
    first = target_of(env)
    env["wsgi.input"] = object()
    assert target_of(env) is first


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SCRIPT_NAME": "/api", "PATH_INFO": "/admin"}, ("/admin", "x=1", "a.test")),  # a mount
        ({"PATH_INFO": "/admin"}, ("/admin", "x=1", "a.test")),
        ({"PATH_INFO": "/api"}, ("/api", "x=1", "a.test")),
        ({"SCRIPT_NAME": "/shop"}, ("/api/admin", "x=1", "a.test")),  # ProxyFix(x_prefix=1)
        ({"QUERY_STRING": "y=2"}, ("/api/admin", "y=2", "a.test")),
        ({"RAW_URI": "/api/admin?z"}, ("/api/admin", "x=1", "a.test")),
        ({"HTTP_HOST": "b.test:80"}, ("/api/admin", "x=1", "b.test")),  # ProxyFix(x_host=1)
    ],
)
def test_the_target_is_made_anew_when_what_it_was_made_of_has_changed(
    changes: dict[str, Any], expected: tuple[str, str | None, str]
) -> None:
    env = environ("/api/admin?x=1", "/api/admin")
    assert target_of(env) == Target("/api/admin", "x=1", "a.test")
    env.update(changes)
    assert target_of(env) == Target(*expected)
    assert target_of(env) is target_of(env)


def test_a_target_that_has_become_ambiguous_is_refused() -> None:
    env = environ("/api/admin", "/api/admin")
    target_of(env)
    env["PATH_INFO"] = "/api/../admin"
    with pytest.raises(BadTarget):
        target_of(env)


def test_an_http_1_0_request_may_do_without_a_host() -> None:
    env = environ("/a", "/a", HTTP_HOST=None, SERVER_PROTOCOL="HTTP/1.0")
    assert target_of(env).host == ""


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("a.test", "a.test"),
        ("A.TEST", "a.test"),  # E28
        ("a.test.", "a.test"),
        ("a.test:80", "a.test"),
        ("a.test:", "a.test"),
        ("127.0.0.1:3000", "127.0.0.1"),
        ("[::1]:3000", "[::1]"),
        ("my_service", "my_service"),
        ("a" * 253 + ".:65535", "a" * 253),
    ],
)
def test_a_host_is_compared_without_case_port_and_dot(value: str, host: str) -> None:
    assert normal_host(value) == host


@pytest.mark.parametrize(
    "value",
    [
        *("", "a@evil", "evil/foo?", "a b", "a, b", "a:99999x", "a:65536", "a:-1", "[::1"),
        *("a%2ftest", "a\tb", ".", "-", "a..", "é", "a:80:80", "[]", "a" * 261),
    ],
)
def test_a_malformed_host_is_refused(value: str) -> None:
    with pytest.raises(BadTarget):
        normal_host(value)


@pytest.mark.parametrize(
    ("pattern", "canonical"),
    [
        ("/café/{id}/*", "/caf%C3%A9/{id}/*"),
        ("/a b", "/a%20b"),
        ("/caf%c3%a9/", "/caf%C3%A9/"),
        ("/", "/"),
    ],
)
def test_a_pattern_may_be_written_as_people_do(pattern: str, canonical: str) -> None:
    assert canonical_pattern(pattern) == canonical


def test_a_pattern_that_no_request_could_match_is_refused() -> None:
    with pytest.raises(BadTarget):
        canonical_pattern("/a/../b")
