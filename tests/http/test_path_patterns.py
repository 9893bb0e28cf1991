"""The spellings of a path that a pattern matches, as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.http.caller import PathPatterns

LOGIN = [
    # PATH_INFO, whether it is /login
    ("/login", True),
    ("/login/", True),
    ("login", True),
    ("//login", True),
    ("//login//", True),
    ("/login;x=1", True),
    ("/login;x=1/", True),
    ("/;a/login", True),
    ("/./login", True),
    ("/login/.", True),
    ("/x/../login", True),
    ("/../login", True),
    ("\\login", True),
    ("/login\\", True),
    ("/login%2f", True),
    ("%2Flogin", True),
    ("/Login", False),
    ("/LOGIN/", False),
    ("/login2", False),
    ("/login/x", False),
    ("/x/login", False),
    ("/log/in", False),
    ("/", False),
    ("", False),
]


@pytest.mark.parametrize(("path", "is_login"), LOGIN)
def test_every_spelling_that_an_app_may_serve_is_the_path(path, is_login):
    for pattern in ("/login", "/login/", "//login"):
        assert (PathPatterns([pattern]).find(path) == pattern) is is_login


@pytest.mark.parametrize(
    "path",
    [
        *("/LOGIN", "/Login/", "//lOGIN", "/x/../LOGIN", "/login"),
        *(f"/log{letter}n".encode().decode("latin-1") for letter in "\u0130\u0131"),
    ],
)
def test_ignore_case_ignores_the_case(path):
    assert PathPatterns(["/Login"], ignore_case=True).find(path) == "/Login"


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/", "/", True),
        ("/", "", True),
        ("/", "//", True),
        ("/", "/a", False),
        ("/*", "/", True),
        ("/*", "/a/b", True),
        ("/auth/*", "/auth", True),
        ("/auth/*", "/auth/", True),
        ("/auth/*", "/auth/login", True),
        ("/auth/*", "//auth//login/x", True),
        ("/auth/*", "/auth/..", True),  # an app that resolves nothing serves it there
        ("/auth/*", "/x/../auth/login", True),
        ("/auth/*", "/authors", False),
        ("/users/{id}/password", "/users/7/password/", True),
        ("/users/*/password", "/users/a b/password", True),
        ("/users/*/password", "/users/a/b/password", False),
        ("/users/*/password", "/users//password", False),
        ("/users/{id}/*", "/users/7", True),
        ("/users/{id}/*", "/users/7/x/y", True),
        ("/users/{id}/*", "/users", False),
        ("/users/{id}", "/users/7\n", True),
        ("/café", "/caf\xc3\xa9", True),
        ("/café", "/caf\xe9", False),
        ("/a.b", "/a.b", True),
        ("/a.b/{x}", "/aXb/c", False),
    ],
)
def test_a_pattern_matches_its_paths_and_no_others(pattern, path, matches):
    assert (PathPatterns([pattern]).find(path) == pattern) is matches


def test_letters_beyond_ascii_are_folded():
    patterns = PathPatterns(["/CAFÉ"], ignore_case=True)
    assert patterns.find("/café".encode().decode("latin-1")) == "/CAFÉ"
    assert patterns.find("/\xff") is None


def test_an_exact_pattern_is_found_before_others():
    patterns = PathPatterns(["/*", "/a/*", "/a/b"])
    assert [patterns.find(path) for path in ("/a/b", "/a/c", "/d")] == ["/a/b", "/*", "/*"]
    assert not PathPatterns([])
    assert patterns


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("login", "expected a path"),
        ("", "expected a path"),
        (7, "expected a path"),
        ("/a%20b", "without escapes"),
        ("/a?b", "without a query"),
        ("/a/../b", "no dot segments"),
        ("/a*", "stand for a whole segment"),
        ("/a*/b", "stand for a whole segment"),
        ("/{a}b", "stand for a whole segment"),
        ("/{a-b}", "stand for a whole segment"),
    ],
)
def test_a_malformed_pattern_is_refused(pattern, text):
    with pytest.raises(ValueError, match=text):
        PathPatterns([pattern])
    with pytest.raises(ValueError, match="not the text"):
        PathPatterns("/login")


@given(st.text(alphabet="/.;\\%2faLOGIN\xc3\xa9 ", max_size=30))
def test_no_path_raises(path):
    for ignore_case in (False, True):
        patterns = PathPatterns(["/login", "/a/*", "/{x}/login"], ignore_case=ignore_case)
        patterns.find(path)
