"""The dispatcher: each request gets its route's app, or an error before any route."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from wsgigate.http.problem import Problem
from wsgigate.http.target import BadTarget
from wsgigate.http.wsgi import PARAMS, REASON, ROUTE
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.rules.routing import Match, Route, RouteConflict
from wsgigate.testing.fakes import Server


def app(name: str) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("X-Path", environ["PATH_INFO"]), ("X-App", name)])
        seen = f"{name} {environ.get(ROUTE)} {environ.get(PARAMS)}"
        return [seen.encode(), environ.get("HTTP_X_USER_ID", "").encode()]

    return answer


ROUTES = [
    Route("/café/{id}", app("cafe"), name="cafés"),
    Route("/api", app("api"), methods=["GET", "POST"]),
    Route("/files", app("files"), encoded_slash="keep"),
    Route("/login", app("login"), listed=["POST /login"]),
]


def dispatcher(**options: Any) -> Client:
    return Client(Dispatcher(ROUTES, **options))


def test_the_app_of_the_matching_route_gets_its_name_and_parameters() -> None:
    answer = dispatcher().get("/caf%C3%A9/7%208")
    assert answer.text == "cafe cafés {'id': '7 8'}"


def test_a_request_that_no_route_matches_gets_a_404_with_the_routes() -> None:
    answer = dispatcher(notes={"/api": "auth required"}).get("/nothing")
    assert answer.status_code == 404
    assert answer.json == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "Route not found!",
        "success": False,
        "message": "Route not found!",
        "availableRoutes": [
            "ANY /caf%C3%A9/{id}",
            "GET /api (auth required)",
            "POST /api (auth required)",
            "ANY /files",
            "POST /login",
        ],
    }


def test_the_404_can_omit_the_routes() -> None:
    assert "availableRoutes" not in (dispatcher(list_routes=False).get("/x").json or {})


def test_a_method_that_no_route_accepts_gets_a_405_with_allow() -> None:
    answer = dispatcher().delete("/api")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "TRACK"])
def test_some_methods_are_never_dispatched(method: str) -> None:
    """F13, F14"""
    assert dispatcher(fallback=app("old")).open("/api", method=method).status_code == 405


@pytest.mark.parametrize(
    ("method", "served_by"), [("post", "api"), ("Get", "api"), ("delete", "old"), ("trace", None)]
)
def test_a_method_in_small_letters_reaches_the_route_of_the_method(
    method: str, served_by: str | None
) -> None:
    """Flask and Django serve it as the method in capitals: the route's checks must see it."""
    given = {"REQUEST_METHOD": method}
    answer = dispatcher(fallback=app("old")).get("/api", environ_overrides=given)
    assert answer.headers.get("X-App") == served_by
    found = Dispatcher(ROUTES).find(EnvironBuilder("/api", environ_overrides=given).get_environ())
    assert isinstance(found, Match) is (served_by == "api")


def test_options_asterisk_is_answered_by_the_dispatcher() -> None:
    """F14"""
    environ = {"PATH_INFO": "*", "RAW_URI": "*", "REQUEST_URI": "*"}
    answer = dispatcher().open("/", method="OPTIONS", environ_overrides=environ)
    assert answer.status_code == 204
    assert "GET" in answer.headers["Allow"]


def test_other_requests_go_to_the_fallback() -> None:
    client = dispatcher(fallback=app("old"))
    assert client.get("/old/page").headers["X-App"] == "old"
    assert client.get("/api/x").headers["X-App"] == "api"


def test_the_fallback_serves_methods_that_no_route_accepts() -> None:
    client = dispatcher(fallback=app("old"))
    assert client.post("/api/x").headers["X-App"] == "api"
    assert client.delete("/api/x").headers["X-App"] == "old"
    assert client.delete("/api/x").text.startswith("old None None")
    found = Dispatcher(ROUTES, fallback=app("old")).find(
        EnvironBuilder("/api", method="DELETE").get_environ()
    )
    assert found is None


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/old/a%2Fb", 200),
        ("/old/a%2fb/c", 200),
        ("/old//a%2Fb", 200),
        ("/apix%2Fb", 200),
        ("/api%2Fb", 400),
        ("/%2Fapi", 400),
        ("/%2Fapi%2Fb", 400),
        ("/x%2F..%2Fapi", 400),
        ("/old%2F..%2Fb", 400),
        ("/login%2Fx", 400),
    ],
)
def test_the_fallback_gets_encoded_slashes_of_paths_without_a_route(path: str, status: int) -> None:
    """The app decodes them, so a path that would be a route's then is none of the app's."""
    given = {"RAW_URI": path, "REQUEST_URI": path, "PATH_INFO": EnvironBuilder(path).path}
    answer = dispatcher(fallback=app("old")).get("/", environ_overrides=given)
    assert answer.status_code == status
    assert status != 200 or answer.headers["X-App"] == "old"
    assert dispatcher().get("/", environ_overrides=given).status_code == 400


@pytest.mark.parametrize("fallback", [None, app("old")])
@pytest.mark.parametrize(
    "path",
    [
        "/pub/../api",
        "/pub/%2e%2e/api",
        "/api%2fusers",  # E08
        "/api%2Fusers",
        "/x%00",
        "/x%5cy",
        "/x%zz",
        "/x;/..;/api",
    ],
)
def test_an_ambiguous_target_reaches_no_app(path: str, fallback: WSGIApplication | None) -> None:
    answer = dispatcher(fallback=fallback).get(
        "/", environ_overrides={"RAW_URI": path, "PATH_INFO": EnvironBuilder(path).path}
    )
    assert answer.status_code == 400
    assert (answer.json or {})["message"] == "Malformed request target."


def test_a_route_may_keep_encoded_slashes() -> None:
    assert dispatcher().get("/files/a%2Fb").status_code == 200
    assert dispatcher().get("/files/%2E%2E%2Fapi").status_code == 400


def test_the_reason_of_a_rejected_target_is_only_logged() -> None:
    environ = EnvironBuilder("/a/../b").get_environ()
    answered = b"".join(Dispatcher(ROUTES)(environ, Server().start_response))
    assert environ[REASON] == "a dot segment in the path"
    assert b"segment" not in answered


def test_identity_fields_of_clients_are_removed_on_every_route() -> None:
    """D01, D03: by environ key, so that no spelling survives."""
    client = dispatcher(identity_fields=["X-User-Id"], fallback=app("old"))
    for path in ("/api", "/old"):
        answer = client.get(path, environ_overrides={"HTTP_X_USER_ID": "admin"})
        assert "admin" not in answer.text


def test_the_error_responses_can_be_replaced() -> None:
    def as_text(problem: Problem) -> WSGIApplication:
        def answer(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            start_response(f"{problem.status} X", [("Content-Type", "text/plain")])
            return [problem.detail.encode()]

        return answer

    client = dispatcher(refuse=as_text)
    assert client.get("/nothing").text == "Route not found!"
    assert client.delete("/api").text == "Method not allowed."
    assert client.get("/a/../b").text == "Malformed request target."


def test_a_route_can_be_matched_without_calling_its_app() -> None:
    table = Dispatcher(ROUTES)
    found = table.find(EnvironBuilder("/api/x").get_environ())
    assert isinstance(found, Match)
    assert found.route.name == "/api"
    with pytest.raises(BadTarget):
        table.find(EnvironBuilder("/api%2Fx").get_environ())


def test_conflicting_routes_are_rejected_by_the_constructor() -> None:
    with pytest.raises(RouteConflict):
        Dispatcher([*ROUTES, Route("/caf%c3%a9/{name}", app("again"))])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("api.test", 200),
        ("API.test.:8080", 200),
        ("eu.shop.test", 200),
        ("shop.test", 421),
        ("169.254.169.254", 421),
        ("api.test.evil", 421),
    ],
)
def test_only_allowed_hosts_are_served(host: str, status: int) -> None:
    """F05"""
    client = dispatcher(allowed_hosts=["api.test", "*.shop.test"], fallback=app("old"))
    for path in ("/api/x", "/old"):
        answer = client.get(path, environ_overrides={"HTTP_HOST": host})
        assert answer.status_code == status
        if status == 421:
            assert (answer.json or {})["message"] == "Misdirected request."


def test_a_request_without_a_host_is_rejected_with_allowed_hosts() -> None:
    environ = EnvironBuilder("/api/x").get_environ() | {"SERVER_PROTOCOL": "HTTP/1.0"}
    del environ["HTTP_HOST"]
    _, status, _ = run_wsgi_app(Dispatcher(ROUTES, allowed_hosts=["api.test"]), environ)
    assert status.startswith("421")


@pytest.mark.parametrize(("host", "status"), [("api.test", 204), ("b.test", 421), ("a b", 400)])
def test_options_asterisk_requires_an_allowed_host(host: str, status: int) -> None:
    environ = {"PATH_INFO": "*", "RAW_URI": "*", "REQUEST_URI": "*", "HTTP_HOST": host}
    client = dispatcher(allowed_hosts=["api.test"])
    assert client.open("/", method="OPTIONS", environ_overrides=environ).status_code == status


def test_an_invalid_allowed_host_is_rejected_by_the_constructor() -> None:
    with pytest.raises(ValueError, match=r"got 'api\.test:80'"):
        Dispatcher(ROUTES, allowed_hosts=["api.test:80"])
