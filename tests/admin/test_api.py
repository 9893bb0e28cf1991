"""The frame of the gateway's own endpoints: tags, conditional requests, precedence of routes."""

from __future__ import annotations

import json
from typing import Any, TypedDict

import pytest
from werkzeug.test import Client

from tests.support.admin import admin_routes, bearer
from wsgigate.admin.access import AdminAccess
from wsgigate.admin.api import AdminApi, AdminEndpoint, Group, tag_of
from wsgigate.http.json_app import JsonRequest
from wsgigate.http.problem import Problem
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.rules.routing import Route


class Thing(TypedDict):
    n: int


class Things:
    """A resource in memory, with its endpoints."""

    def __init__(self) -> None:
        self.values = {"a": 1}
        endpoints = [
            AdminEndpoint(
                line="GET /things/{name}", answer=self.show, summary="Read", response=Thing
            ),
            AdminEndpoint(
                line="PUT /things/{name}",
                answer=self.change,
                summary="Write",
                body=Thing,
                response=Thing,
            ),
            AdminEndpoint(
                line="POST /things/{name}/reset",
                answer=self.reset,
                summary="Reset",
                response=Thing,
                current=self.show,
            ),
            AdminEndpoint(
                line="POST /new",
                answer=lambda request: {"n": 0},
                summary="Make",
                response=Thing,
            ),
        ]
        self.client = Client(Dispatcher(admin_routes(Group("things", endpoints))))

    def show(self, request: JsonRequest, name: str) -> object:
        if name not in self.values:
            return Problem(404, "Thing not found!")
        return {"n": self.values[name]}

    def change(self, request: JsonRequest, name: str) -> object:
        self.values[name] = request.json()["n"]
        return {"n": self.values[name]}

    def reset(self, request: JsonRequest, name: str) -> object:
        self.values[name] = 0
        return {"n": 0}


def test_a_read_has_the_hash_of_its_body_as_its_tag() -> None:
    things = Things()
    first = things.client.get("/things/a", headers=bearer())
    tag = first.headers["ETag"]
    assert tag == tag_of(first.data) == tag_of({"n": 1})
    assert not tag.startswith("W/")
    things.values["a"] = 2
    assert things.client.get("/things/a", headers=bearer()).headers["ETag"] != tag


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_known_document_is_not_sent_again(form: str, method: str) -> None:
    headers = {**bearer(), "If-None-Match": form.format(tag_of({"n": 1}))}
    response = Things().client.open("/things/a", method=method, headers=headers)
    assert (response.status_code, response.data) == (304, b"")
    assert response.headers["ETag"] == tag_of({"n": 1})


def test_a_problem_has_no_tag() -> None:
    response = Things().client.get("/things/b", headers={**bearer(), "If-None-Match": "*"})
    assert response.status_code == 404
    assert "ETag" not in response.headers


def test_no_tag_is_told_without_a_token() -> None:
    response = Things().client.get("/things/a", headers={"If-None-Match": tag_of({"n": 1})})
    assert response.status_code == 401


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("/things/a", tag_of({"n": 1}), 200),
        ("/things/a", f'"x", {tag_of({"n": 1})}', 200),
        ("/things/a", "*", 200),
        ("/things/a", tag_of({"n": 2}), 412),
        ("/things/a", f"W/{tag_of({'n': 1})}", 412),  # weak tags never match here
        ("/things/b", "*", 412),
        ("/things/a/reset", tag_of({"n": 1}), 200),
        ("/things/a/reset", tag_of({"n": 2}), 412),
        ("/new", "*", 412),
    ],
)
def test_a_write_with_if_match_changes_only_what_was_read(
    path: str, given: str, status: int
) -> None:
    things = Things()
    body: dict[str, Any] = {"json": {"n": 5}} if path.count("/") == 2 else {}
    response = things.client.open(
        path,
        method="PUT" if body else "POST",
        headers={**bearer(), "If-Match": given},
        **body,
    )
    assert response.status_code == status
    if status == 412:
        assert things.values == {"a": 1}
    if status == 412 and "/a" in path:
        assert response.headers["ETag"] == tag_of({"n": 1})


def read(path: str, **options: Any) -> AdminEndpoint:
    return AdminEndpoint(
        line=f"GET {path}",
        answer=lambda request, **_: {"n": 1},
        summary="Read",
        response=Thing,
        **options,
    )


def app(environ: Any, start_response: Any) -> Any:
    start_response("204 No Content", [])
    return []


@pytest.mark.parametrize(
    ("prefix", "route", "hidden"),
    [
        ("/_g", Route("/", app), []),
        ("/_g", Route("/shop", app), []),
        ("/_g", Route("/{a}/config", app), []),
        ("/_g", Route("/_gx", app), []),
        ("/_g", Route("/_g/config", app, exact=True), ["/_g/config"]),
        ("/_g", Route("/_g/config", app), ["/_g/config"]),
        ("/_g", Route("/_g", app, exact=True), []),
        ("/_g", Route("/_g/things/a", app), []),
        ("/_g", Route("/_g/things/{name}", app), ["/_g/things/{name}"]),
        ("/_g", Route("/_g", app), ["/_g/config", "/_g/things/{name}"]),
        ("", Route("/config", app), ["/config"]),
        ("", Route("/shop", app), []),
        ("", Route("/", app), ["/config", "/things/{name}"]),
        ("", Route("/", app, exact=True), []),
    ],
)
def test_a_route_of_the_file_takes_precedence_over_an_endpoint_that_yields(
    prefix: str, route: Route[Any], hidden: list[str]
) -> None:
    group = Group("things", [read("/config"), read("/things/{name}"), read("/old", yields=False)])
    api = AdminApi([group], access=AdminAccess("k" * 32), prefix=prefix)
    assert api.hidden([route]) == hidden
    own = api.routes([route])
    assert {each.path for each in own} == {
        f"{prefix}{path}" for path in ("/config", "/things/{name}", "/old")
    } - {*hidden}
    client = Client(Dispatcher([*own, route]))
    assert client.get(f"{prefix}/old", headers=bearer()).json == {"n": 1}
    for path in hidden:
        assert client.get(path.replace("{name}", "x"), headers=bearer()).status_code == 204


def test_documents_are_ascii_json() -> None:
    group = Group(
        "things",
        [
            AdminEndpoint(
                line="GET /x", answer=lambda request: {"n": "é"}, summary="Read", response=Thing
            )
        ],
    )
    response = Client(Dispatcher(admin_routes(group))).get("/x", headers=bearer())
    assert json.loads(response.data.decode("ascii")) == {"n": "é"}
