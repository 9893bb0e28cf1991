"""No request matches a route by one path and reaches the backend by another.

The requests are made as servers make them, with a raw target or without, and mounted or not; the
whole of dispatcher and forwarder runs, up to the transport, which keeps what it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsgigate.discovery import Instance
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.target import BadTarget, canonical_path, target_of
from wsgigate.http.wsgi import PARAMS, ROUTE
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.proxy.request import RequestMaker
from wsgigate.rules.routing import Match, Route, Router
from wsgigate.testing.fakes import Server

INSTANCE = Instance("http://10.0.0.1:8000")

PIECES = [
    *("/", "//", ".", "..", "...", ";", "..;", ";x=1", "\\", "?", "#", "%", "&", "=", "+", "~"),
    *(
        "%2e",
        "%2E",
        "%2f",
        "%2F",
        "%5c",
        "%25",
        "%252e",
        "%252f",
        "%3f",
        "%23",
        "%3b",
        "%00",
        "%0a",
    ),
    *("%zz", "%c3%a9", "%C0%AF", "%ff", "%20", "%7f", "%61", "%41", "|", "é", " ", "\t", "\x00"),
    *("api", "API", "pub", "strip", "v1", "keep", "admin", "a", "x", "%61pi", "p%75b", "s%74rip"),
    *("http://", "a.test", "b.test", "@", ":80", "[::1]"),
]

PATHS = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)
TARGETS = st.one_of(
    PATHS.map(lambda path: "/" + path),
    st.tuples(st.sampled_from(["api", "pub", "strip", "v1", "keep"]), PATHS).map(
        "/{0[0]}/{0[1]}".format
    ),
    PATHS,
    st.text(max_size=20),
)


class Sent:
    """What the transport was given, and what the rules had matched for it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.target: str | None = None
        self.matched = ""
        self.route = ""
        self.params: dict[str, str] = {}


def endpoint(sent: Sent, **options: Any) -> WSGIApplication:
    maker = RequestMaker(**options)

    def forward(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        sent.matched = target_of(environ).text
        sent.route = environ[ROUTE]
        sent.params = environ[PARAMS]
        try:
            request = maker.make(environ, target_of(environ), INSTANCE)
        except Refusal as error:
            return error.problem(environ, start_response)
        assert request.url == INSTANCE.url + request.target
        sent.target = request.path_url
        return Problem(200)(environ, start_response)

    return forward


REWRITES: dict[str, dict[str, str]] = {
    # the route's path: how it is rewritten
    "/pub": {},
    "/keep": {},
    "/api": {},
    "/api/admin": {},
    "/strip": {"strip_prefix": "/strip"},
    "/v1": {"strip_prefix": "/v1", "add_prefix": "/internal/api"},
    "/{tenant}/x": {"strip_prefix": "/{tenant}"},
    "/a": {"add_prefix": "/b"},
}


def rewritten(path: str, route: str) -> str:
    """Return where *route* sends *path*, worked out another way than the forwarder does it."""
    rule = REWRITES[route]
    segments = path.split("/")[1:]
    if "strip_prefix" in rule:
        segments = segments[1:] or [""]
    return rule.get("add_prefix", "") + "/" + "/".join(segments)


SENT = Sent()
GATEWAY = Dispatcher(
    [
        Route(path, endpoint(SENT, **rule), encoded_slash="keep" if path == "/keep" else "reject")
        for path, rule in REWRITES.items()
    ]
)


def environ_of(target: str, server: str, mount: str) -> WSGIEnvironment | None:
    """Return what a server makes of *target*; ``None`` where its parser would not."""
    if re.search(r"[^\x21-\x7e\x80-\xff]", target):
        return None
    path, _, query = target.partition("#")[0].partition("?")
    if not path.startswith("/"):
        path = re.sub(r"^https?://[^/]*", "", path)
    decoded = unquote_to_bytes(path.encode("latin-1")).decode("latin-1")
    if not decoded.startswith(mount):
        return None
    environ: WSGIEnvironment = {
        "REQUEST_METHOD": "GET",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SCRIPT_NAME": mount,
        "PATH_INFO": decoded[len(mount) :],
        "QUERY_STRING": query,
        "HTTP_HOST": "a.test",
        "REMOTE_ADDR": "192.0.2.1",
        "wsgi.url_scheme": "http",
    }
    if server != "none":
        environ[server] = target
    return environ


@pytest.mark.parametrize("mount", ["", "/gw"])
@pytest.mark.parametrize("server", ["RAW_URI", "REQUEST_URI", "none"])
@given(target=TARGETS)
@example(target="/api../admin")
@example(target="/strip../x")
@example(target="/strip/%2e%2e/x")
@example(target="/strip//b.test/x")
@example(target="/v1//..;/x")
@example(target="/keep/a%2f..%2fb")
@example(target="http://a.test/strip/x?y")
@settings(max_examples=200, deadline=None)
def test_the_forwarded_path_is_the_matched_path(server: str, mount: str, target: str) -> None:
    """E32"""
    environ = environ_of(mount + target if target.startswith("/") else target, server, mount)
    if environ is None:
        return
    sent = SENT
    sent.clear()
    answered = Server().serve(GATEWAY, environ)
    if sent.target is None:
        assert answered.status[0] == "4", answered.status
        return
    path, mark, query = sent.matched.partition("?")
    assert sent.target == rewritten(path, sent.route) + mark + query
    arrives = sent.target.partition("?")[0]
    # There is nothing left in it that somebody could read in another way.
    assert arrives.startswith("/")
    assert "//" not in arrives
    assert not re.search(r"[\x00-\x20\x7f-\xff#]", sent.target)
    assert "\\" not in arrives
    for spelling in (arrives, arrives.replace("%2F", "/")):
        assert not {".", ".."} & {part.partition(";")[0] for part in spelling.split("/")}
    assert canonical_path(arrives) == arrives
    assert "%2F" not in arrives or sent.route == "/keep"
    # The same route is found by those who decode the path before they match it, as frameworks do.
    if "%" not in path:
        assert found(path) == sent.route
    if server != "none":
        assert same(path, mount, target)


def same(path: str, mount: str, target: str) -> bool:
    """Return whether *path* is what was asked for, read in the simplest way."""
    raw = re.sub(r"^https?://[^/?]*", "", target).partition("?")[0] or "/"
    plain = re.sub("//+", "/", unquote_to_bytes(raw.encode("latin-1")).decode("latin-1"))
    ours = re.sub("//+", "/", unquote_to_bytes(path).decode("latin-1"))
    return ours == (plain if target.startswith("/") else plain.removeprefix(mount) or "/")


def found(path: str) -> str | None:
    """Return the route of *path* by trying each, the longest first."""
    segments = path.split("/")[1:]
    for route in sorted(REWRITES, key=lambda route: ("{" in route, -len(route))):
        wanted = route.split("/")[1:]
        if len(segments) >= len(wanted) and all(
            there and (want == there or want[0] == "{")
            for want, there in zip(wanted, segments, strict=False)
        ):
            return route
    return None


@given(target=TARGETS, other=TARGETS)
@settings(max_examples=300, deadline=None)
def test_all_spellings_of_a_path_match_the_same_route(target: str, other: str) -> None:
    """What is canonical matches as itself, and matching never depends on the spelling."""
    router = Router([Route(path, path) for path in REWRITES])
    for raw in (target, other):
        try:
            path = canonical_path(raw)
        except BadTarget:
            continue
        assert canonical_path(path) == path
        matched = router.match("", path, "GET")
        escaped = re.sub("[a-z]", lambda match: f"%{ord(match[0]):02x}", path)
        assert router.match("", canonical_path(escaped), "GET") == matched
        doubled = path.replace("/", "//")
        assert router.match("", canonical_path(doubled), "GET") == matched
        if isinstance(matched, Match):
            assert all("/" not in value or "%2F" in path for value in matched.params.values())
