"""The ``Destination`` field of WebDAV: rewritten to the instance, and checked."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.discovery import Instance
from wsgigate.http.problem import Refusal
from wsgigate.http.target import target_of
from wsgigate.http.wsgi import PEER_TRUSTED, REASON
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.proxy.request import RequestMaker
from wsgigate.rules.routing import Route
from wsgigate.testing.fakes import Server, new_environ

INSTANCE = Instance("http://10.0.0.5:8000")


def environ_of(destination: str, path: str = "/dav/a", **more: Any) -> dict[str, Any]:
    return {
        **new_environ(),
        "REQUEST_METHOD": "MOVE",
        "HTTP_HOST": "shop.test",
        "PATH_INFO": path,
        "RAW_URI": path,
        "HTTP_DESTINATION": destination,
        **more,
    }


def led(destination: str, maker: RequestMaker | None = None, **more: Any) -> str | None:
    environ = environ_of(destination, **more)
    maker = maker or RequestMaker(strip_prefix="/dav", add_prefix="/files")
    request = maker.make(environ, target_of(environ), INSTANCE)
    return request.headers["Destination"]


THERE = "http://10.0.0.5:8000/files/b"
FRONT = {PEER_TRUSTED: True, "HTTP_HOST": "127.0.0.1:3000", "HTTP_X_FORWARDED_HOST": "shop.test"}


@pytest.mark.parametrize(
    ("destination", "expected", "more"),
    [
        ("http://shop.test/dav/b", THERE, {}),
        ("HTTP://Shop.Test/dav/b", THERE, {}),
        ("http://shop.test:80/dav/b", THERE, {}),
        (" http://shop.test/dav/b ", THERE, {}),
        ("http://shop.test/dav/b?x=1", THERE + "?x=1", {}),
        ("http://shop.test/dav", THERE[:-1], {}),
        ("http://shop.test//dav//b", THERE, {}),
        ("http://shop.test/d%61v/%62%3b", THERE + "%3B", {}),
        ("/dav/b", "/files/b", {}),
        ("//shop.test/dav/b", THERE, {}),
        ("https://shop.test/dav/b", THERE, {"wsgi.url_scheme": "https"}),
        ("http://shop.test:8080/dav/b", THERE, {"HTTP_HOST": "shop.test:8080"}),
        # behind a proxy
        ("https://shop.test/dav/b", THERE, {**FRONT, "wsgi.url_scheme": "https"}),
        (
            "https://shop.test:8443/dav/b",
            THERE,
            {**FRONT, "wsgi.url_scheme": "https", "HTTP_X_FORWARDED_PORT": "8443"},
        ),
        (
            "https://shop.test/eu/dav/b",
            THERE,
            {**FRONT, "wsgi.url_scheme": "https", "HTTP_X_FORWARDED_PREFIX": "/eu"},
        ),
        # on another server, or for another method
        ("http://other.test/dav/b", "http://other.test/dav/b", {}),
        ("http://shop.test:81/dav/b", "http://shop.test:81/dav/b", {}),
        ("http://shop.test@evil/dav/b", "http://shop.test@evil/dav/b", {}),
        ("container/object", "container/object", {}),
        ("/elsewhere", "/elsewhere", {"REQUEST_METHOD": "GET"}),
    ],
)
def test_destination_is_rewritten_to_the_instance(
    destination: str, expected: str, more: Any
) -> None:
    assert led(destination, **more) == expected


def test_the_mount_path_is_removed_from_destination() -> None:
    more = {"SCRIPT_NAME": "/gate", "PATH_INFO": "/dav/a", "path": "/gate/dav/a"}
    environ = environ_of("http://shop.test/gate/dav/b", **more) | {"PATH_INFO": "/dav/a"}
    request = RequestMaker(strip_prefix="/dav").make(environ, target_of(environ), INSTANCE)
    assert request.headers["Destination"] == "http://10.0.0.5:8000/b"


@pytest.mark.parametrize(
    ("destination", "status"),
    [
        ("http://shop.test/other/b", 502),
        ("/davx", 502),
        ("http://shop.test/dav/../other", 400),
        ("http://shop.test/dav/%2e%2e/other", 400),
        ("http://shop.test/dav/a%00", 400),
        ("http://shop.test/dav/a%5cb", 400),
        ("http://shop.test/dav/%zz", 400),
    ],
)
def test_a_destination_outside_of_the_prefix_or_ambiguous_is_rejected(
    destination: str, status: int
) -> None:
    with pytest.raises(Refusal) as refused:
        led(destination)
    assert refused.value.problem.status == status


def dispatched(destination: str, **more: Any) -> tuple[str, str]:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("201 Created", [])
        return []

    routes = [Route("/dav", app), Route("/dav/private", app), Route("/x", app, methods=["GET"])]
    environ = environ_of(destination, **more)
    server = Server()
    list(Dispatcher(routes)(environ, server.start_response))
    return server.status, environ.get(REASON, "")


@pytest.mark.parametrize(
    ("destination", "status"),
    [
        ("http://shop.test/dav/b", "201 Created"),
        ("http://other.test/dav/private/b", "201 Created"),  # not here
        ("http://shop.test/dav/private/b", "403 Forbidden"),
        ("/dav/private/b", "403 Forbidden"),
        ("http://shop.test/dav//private/b", "403 Forbidden"),
        ("http://shop.test/nowhere", "403 Forbidden"),
        ("http://shop.test/x", "403 Forbidden"),
        ("http://shop.test/dav/./private/b", "400 Bad Request"),
        ("http://shop.test/dav/a%2Fb", "400 Bad Request"),
    ],
)
def test_a_destination_in_another_route_is_rejected(destination: str, status: str) -> None:
    assert dispatched(destination)[0] == status
    assert dispatched(destination, REQUEST_METHOD="COPY")[0] == status
    assert dispatched(destination, REQUEST_METHOD="PROPFIND")[0] == "201 Created"


def test_routes_below_a_mount_are_matched_without_the_mount() -> None:
    mounted = {"SCRIPT_NAME": "/gate", "RAW_URI": "/gate/dav/a"}
    assert dispatched("http://shop.test/gate/dav/b", **mounted)[0] == "201 Created"
    assert dispatched("http://shop.test/gate/dav/private", **mounted)[0] == "403 Forbidden"
    assert dispatched("http://shop.test/dav/b", **mounted)[0] == "403 Forbidden"
