"""E33: frameworks behind the gateway, which route by the decoded path, guard what it guards."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from django.urls import Resolver404
from django.urls.resolvers import RegexPattern, URLPattern, URLResolver
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

from wsgigate.http.target import BadTarget, canonical_path
from wsgigate.rules.routing import Match, Route, Router

PIECES = [
    *("/", "//", ".", "..", ";", ";x=1", "%", "~", "%2e", "%3f", "%23", "%3b", "%25", "%252f"),
    *("%c3%a9", "%61", "%41", "|", "api", "API", "%61pi", "a%70i", "apis", "pub", "x", "%5c"),
]
TARGETS = st.lists(st.sampled_from(PIECES), max_size=6).map(lambda parts: "/" + "".join(parts))

OURS = Router([Route("/api", "guarded"), Route("/", "open")])
WERKZEUG = Map(
    [
        Rule("/api", endpoint="guarded", merge_slashes=False),
        Rule("/api/", endpoint="guarded", merge_slashes=False),
        Rule("/api/<path:rest>", endpoint="guarded", merge_slashes=False),
        Rule("/", endpoint="open", merge_slashes=False),
        Rule("/<path:rest>", endpoint="open", merge_slashes=False),
    ]
).bind("a.test")
DJANGO = URLResolver(
    RegexPattern(r"^/"),
    [
        URLPattern(RegexPattern(r"^api(?:/|\Z)", name="guarded"), print, name="guarded"),
        URLPattern(RegexPattern(r"", name="open"), print, name="open"),
    ],
)


def ours(target: str) -> tuple[str, str] | None:
    """Return the path that goes on and its route; nothing for one that is refused."""
    try:
        path = canonical_path(target)
    except BadTarget:
        return None
    found = OURS.match("", path, "GET")
    assert isinstance(found, Match)
    return path, found.route.endpoint


def decoded(path: str) -> str:
    return unquote_to_bytes(path).decode("utf-8", "replace")


@given(target=TARGETS)
@settings(max_examples=1000, deadline=None)
def test_frameworks_guard_what_the_gateway_guards(target: str) -> None:
    """E33"""
    found = ours(target)
    if found is None:
        return
    path, route = found
    try:
        assert WERKZEUG.match(decoded(path))[0] == route, path
    except HTTPException as error:
        raise AssertionError(f"{path}: {error}") from None
    try:
        assert DJANGO.resolve(decoded(path)).url_name == route, path
    except Resolver404 as error:
        raise AssertionError(f"{path}: {error}") from None
