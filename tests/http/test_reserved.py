"""Paths that are answered before the stack of middlewares, by the listener of the request."""

from __future__ import annotations

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
from werkzeug.test import Client

from wsgigate.http.reserved import OWN_LISTENER, ReservedPaths, is_listener


def answering(text: str) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [text.encode()]

    return app


APP = ReservedPaths(
    answering("stack"),
    {"/_gateway/metrics": answering("metrics")},
    listener_paths={"/metrics": answering("own metrics"), "/livez": answering("own livez")},
    bind="127.0.0.1:9464",
)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/_gateway/metrics", "metrics"),
        ("/_gateway/%6detrics", "metrics"),
        *((path, "stack") for path in ("/metrics", "/livez", "/", "/_gateway/metrics/")),
        *((path, "stack") for path in ("/_gateway", "//_gateway/metrics", "/_GATEWAY/metrics")),
    ],
)
def test_a_reserved_path_is_answered_before_the_stack(path: str, text: str) -> None:
    assert Client(APP).get(path).text == text


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        *(("/metrics", 200, "own metrics"), ("/livez", 200, "own livez")),
        *((path, 404, "Not Found") for path in ("/", "/orders", "/_gateway/metrics", "/metrics/")),
    ],
)
def test_the_listener_of_its_own_serves_nothing_else(path: str, status: int, text: str) -> None:
    response = Client(APP).get(path, environ_overrides={"wsgigate.listener": OWN_LISTENER})
    assert response.status_code == status
    assert text in response.text
    assert "stack" not in response.text


def test_a_client_cannot_name_the_listener() -> None:
    sent = {"wsgigate.listener": OWN_LISTENER, "Wsgigate-Listener": OWN_LISTENER}
    assert Client(APP).get("/livez", headers=sent).text == "stack"


@pytest.mark.parametrize(
    ("bind", "name", "matches"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464), True),
        ("0.0.0.0:9464", ("10.0.0.4", 9464), True),
        ("[::]:9464", ("::1", 9464, 0, 0), True),
        ("127.0.0.1:9464", ("127.0.0.1", 8000), False),
        ("127.0.0.1:9464", ("127.0.0.1", 94640), False),
        ("127.0.0.1:9464", "/run/metrics.sock", False),
        ("unix:/run/metrics.sock", "/run/metrics.sock", True),
        ("unix:/run/metrics.sock", "/run/gateway.sock", False),
        ("unix:/run/metrics.sock", ("127.0.0.1", 9464), False),
        (None, ("127.0.0.1", 9464), False),
    ],
)
def test_a_listener_is_recognized_by_its_port_or_path(
    bind: str | None, name: object, matches: bool
) -> None:
    assert is_listener(bind, name) == matches


class ClientSocket:
    def __init__(self, port: int) -> None:
        self._port = port

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self._port


@pytest.mark.parametrize(("port", "text"), [(9464, "own livez"), (8000, "stack")])
def test_the_socket_tells_the_listener_under_other_workers_of_gunicorn(
    port: int, text: str
) -> None:
    overrides = {"gunicorn.socket": ClientSocket(port)}
    assert Client(APP).get("/livez", environ_overrides=overrides).text == text
