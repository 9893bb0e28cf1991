"""Routes that keep parts of a path: no reading of it leaves the route."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import EnvironBuilder

from wsgigate.client.adapter import Sessions
from wsgigate.coordination.api_keys import ApiKeys
from wsgigate.discovery import Instance
from wsgigate.http.target import (
    BadTarget,
    canonical_path,
    kept_target_of,
    leaves,
    readings,
    target_of,
)
from wsgigate.http.wsgi import REASON, ROUTE
from wsgigate.middleware.api_key import ApiKeyAuthenticator
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.rules.routing import Route
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.backend import Backend, reply
from wsgigate.testing.fakes import Server

ALL: dict[str, Any] = dict.fromkeys(
    ("encoded_slash", "encoded_backslash", "double_slash", "dot_segments"), "keep"
)


def seen(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the route, and what would be forwarded."""
    target = kept_target_of(environ)
    start_response("200 OK", [])
    return [f"{environ.get(ROUTE)} {target.text}".encode()]


def ask(routes: list[Any], path: str, raw: bool = True, **more: Any) -> str:
    """Return what is seen, or the status of a refusal and the reason for it."""
    environ = EnvironBuilder("/").get_environ() | more
    environ |= {"PATH_INFO": path_info(path), "QUERY_STRING": path.partition("?")[2]}
    environ |= {"RAW_URI": path, "REQUEST_URI": path} if raw else {}
    if not raw:
        environ.pop("RAW_URI", None)
        environ.pop("REQUEST_URI", None)
    server = Server()
    body = b"".join(Dispatcher(routes)(environ, server.start_response))
    return body.decode() if server.status == "200 OK" else f"{server.status[:3]} {environ[REASON]}"


def path_info(path: str) -> str:
    return unquote_to_bytes(path.partition("?")[0]).decode("latin-1")


def route(path: str, name: str = "kept", **options: Any) -> Any:
    return Route(path, seen, name=name, **options)


@pytest.mark.parametrize(
    ("path", "option", "forwarded"),
    [
        ("/s3/a//b", "double_slash", "/s3/a//b"),
        ("/s3//key", "double_slash", "/s3//key"),
        ("/s3/https://x.test//y?z=//", "double_slash", "/s3/https://x.test//y?z=//"),
        ("/s3/%61//b%3b", "double_slash", "/s3/a//b%3B"),
        ("/s3/a%5cb", "encoded_backslash", "/s3/a%5Cb"),
        ("/s3/a/./b", "dot_segments", "/s3/a/./b"),
        ("/s3/a/../b", "dot_segments", "/s3/a/../b"),
        ("/s3/a/%2e%2E/b", "dot_segments", "/s3/a/../b"),
        ("/s3/a/..;x=1/b", "dot_segments", "/s3/a/..;x=1/b"),
        ("/s3/.", "dot_segments", "/s3/."),
        ("/s3/a%2fb", "encoded_slash", "/s3/a%2Fb"),
    ],
)
@pytest.mark.parametrize("raw", [True, False])
def test_a_route_keeps_only_the_configured_parts_of_a_path(
    path: str, option: str, forwarded: str, raw: bool
) -> None:
    others = {name: value for name, value in ALL.items() if name != option}
    if not raw and ("%3b" in path or option == "encoded_slash"):
        return  # the server has decoded it
    assert ask([route("/s3", **{option: "keep"})], path, raw) == f"kept {forwarded}"
    without = ask([route("/s3", **others)], path, raw)
    if option == "double_slash":
        assert without == f"kept {canonical_path(path.partition('?')[0])}" + path.removeprefix(
            path.partition("?")[0]
        )
    else:
        assert without.startswith("400 ")


@pytest.mark.parametrize(
    "path",
    [
        # to another route
        "/s3/private/x",
        "/s3//private/x",
        "/s3/private//x",
        "/s3/./private/x",
        "/s3/a/../private/x",
        "/s3/a/%2e%2e/private/x",
        "/s3/a/..;/private/x",
        "/s3/a//../../private/x",
        "/s3/a//../private/x",
        "/s3/%2Fprivate/x",
        "/s3%2Fprivate/x",
        "/s3/x%2F..%2Fprivate",
        "/s3/private%2Fx",
        "/s3/%5Cprivate/x",
        "/s3/a%5C..%5Cprivate",
        "/s3//%2F%5C/private",
        "/s3/./private/..",
        "/s3/./private/..;x/b",
        "/s3/a/a/../..;/private%2F..;",
        # and to none
        "/s3/../x",
        "/s3/..",
        "/s3//..//x",
        "/s3//../../x",
        "/s3/a/../../s3/x",
        "/s3/a%2F..%2F..%2Fx",
        "/s3/a%5C..%5C..%5Cx",
        "/s3/a%2Fb/../..",
        "/s3/a%5Cb/../..",
        "/s3/%5C/a%5Ca/../..;",
        "/../s3/x",
        "/x/../s3/x",
        "//s3//private",
    ],
)
def test_no_reading_of_a_path_leaves_the_route(path: str) -> None:
    routes = [route("/s3", **ALL), route("/s3/private", "private"), route("/other", "other")]
    answer = ask(routes, path)
    assert not answer.startswith("kept "), answer
    assert answer.startswith(("400 ", "private ")), answer


def test_no_reading_of_a_path_avoids_the_method_check() -> None:
    routes = [route("/s3", **ALL), route("/s3/private", "private", methods=["GET"], exact=True)]
    assert ask(routes, "/s3/./private", REQUEST_METHOD="POST") == "kept /s3/./private"
    assert ask(routes, "/s3/./private").startswith("400 ")


def test_control_characters_and_invalid_escapes_are_always_rejected() -> None:
    for path in ("/s3/a%00", "/s3/a%zz", "/s3/a\\b", "/s3/a#b"):
        assert ask([route("/s3", **ALL)], path).startswith("400 ")


def test_a_path_with_too_many_interpretations_is_rejected() -> None:
    """Their number grows faster than the path."""
    path = "/s3/a/b/c%5C..%5Cd//e%5C..%2F..//f%2Fg%5Ch//..;x/.;x%5C..%2F..;x"
    assert ask([route("/s3", **ALL)], path) == "400 a path with too many interpretations"
    usual = "/s3/a%2Fb%5Cc//../d/./e%2F..;x%2Fd"
    assert ask([route("/s3", **ALL)], usual).startswith("kept ")


@given(
    st.lists(
        st.sampled_from(["a", "private", "s3", "..", ".", "", "%2F", "%5C", "..;", "%2e%2e", "b"]),
        max_size=7,
    ),
    st.lists(st.sampled_from(["/", "/", "//", "%2F", "%5c"]), min_size=8, max_size=8),
)
def test_every_reading_of_a_forwarded_path_is_inside_the_route(
    parts: list[str], separators: list[str]
) -> None:
    """A backend may decode, merge and resolve in any order, as often as it likes."""
    text = "".join(map("".join, zip(separators, parts, strict=False)))
    routes = [route("/s3", **ALL), route("/s3/private", "private")]
    answer = ask(routes, "/s3" + text)
    if not answer.startswith("kept "):
        return
    for each in readings(answer.partition(" ")[2]):
        merged = [segment for segment in each.split("/") if segment not in ("", ".")]
        assert merged[:1] == ["s3"], each
        assert merged[:2] != ["s3", "private"], each


@pytest.mark.parametrize(
    ("path", "strip", "add", "status", "sent"),
    [
        ("/s3//key", "/s3", "", 200, "//key"),
        ("/s3/a//b", "/s3", "/bucket", 200, "/bucket/a//b"),
        ("/s3//key", "/s3", "/bucket", 200, "/bucket//key"),
        ("/s3/a/../b", "/s3", "/bucket", 200, "/bucket/a/../b"),
        ("/s3/a%5Cb", "/s3", "", 200, "/a%5Cb"),
        ("/s3/public/../private", "/s3/public", "", 400, ""),
        ("/s3/public/a/../../private", "/s3/public", "/bucket", 400, ""),
    ],
)
def test_no_reading_leaves_the_added_prefix(
    path: str, strip: str, add: str, status: int, sent: str, sessions: Sessions
) -> None:
    with Backend(reply(b"ok")) as backend:
        forwarder = Forwarder(
            Pool("s3", [Instance(backend.url)]),
            sessions=sessions,
            strip_prefix=strip,
            add_prefix=add,
        )
        environ = EnvironBuilder("/").get_environ() | {
            "PATH_INFO": path_info(path),
            "RAW_URI": path,
            "REQUEST_URI": path,
        }
        server = Server()
        list(Dispatcher([Route("/s3", forwarder, **ALL)])(environ, server.start_response))
        assert server.status[:3] == str(status)
        assert [each.target for each in backend.requests] == ([sent] if sent else [])


def test_a_mounted_gateway_keeps_the_path() -> None:
    inner = Dispatcher([route("/s3", double_slash="keep")])
    outer: Any = DispatcherMiddleware(seen, {"/gate": inner})
    environ = EnvironBuilder("/gate/s3/a//b").get_environ()
    environ |= {"RAW_URI": "/gate/s3/a//b", "REQUEST_URI": "/gate/s3/a//b"}
    assert b"".join(outer(environ, Server().start_response)) == b"kept /s3/a//b"


@pytest.mark.parametrize("path", ["/s3/a//b", "/s3/./b", "/s3/a%5Cb", "/s3/a%2Fb"])
@pytest.mark.parametrize("raw", [True, False])
def test_a_middleware_of_the_route_may_rewrite_the_query(path: str, raw: bool) -> None:
    keys = ApiKeys(MemoryStore())
    guarded = ApiKeyAuthenticator(seen, keys, query="key")
    routes = [Route("/s3", guarded, name="kept", **ALL)]
    kept = path if raw else path_info(path).replace("\\", "%5C")
    assert ask(routes, f"{path}?a=1&key={keys.create('acme').key}", raw) == f"kept {kept}?a=1"


def test_a_gateway_within_a_route_decides_by_its_own_routes() -> None:
    inner = Dispatcher([route("/s3", "inner")])
    outer = [Route("/s3", inner, **ALL)]
    assert ask(outer, "/s3/a//b") == "inner /s3/a/b"
    environ = EnvironBuilder("/").get_environ() | {"PATH_INFO": "/s3/../x", "RAW_URI": "/s3/../x"}
    with pytest.raises(BadTarget):
        target_of(environ)


@pytest.mark.parametrize(
    ("path", "base", "result"),
    [
        ("/a/../b", 0, False),
        ("/a/../b", 1, True),
        ("/..", 0, True),
        ("/a//../..", 0, True),
        ("/./a", 0, False),
        ("/a%2F..%2Fb", 0, False),
        ("/%2F..", 0, True),
        ("/a/b;/..;x/c", 1, False),
    ],
)
def test_leaves_is_true_if_dot_segments_leave_the_base(path: str, base: int, result: bool) -> None:
    assert leaves(path, base) is result


@pytest.mark.parametrize("name", list(ALL))
def test_an_invalid_setting_is_rejected_by_name(name: str) -> None:
    options: dict[str, Any] = {name: "resolve"}
    with pytest.raises(ValueError, match=name):
        route("/s3", **options)
    assert readings("/a") == {"/a"}
