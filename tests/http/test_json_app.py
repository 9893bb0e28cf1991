"""The app of JSON endpoints: routing, bodies, refusals and responses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
from werkzeug.test import Client

from wsgigate.http.json_app import Endpoint, JsonApp, JsonRequest, JsonResponse
from wsgigate.http.problem import Problem, Refusal
from wsgigate.http.wsgi import REASON, Headers
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.rules.routing import RouteConflict


class OutOfStock(Exception):
    pass


class SoldOut(OutOfStock):
    pass


def show(request: JsonRequest, item: str) -> object:
    if item == "gone":
        return Problem(410, "This item is gone.")
    if item == "sold":
        raise SoldOut("none left")
    if item == "broken":
        raise ZeroDivisionError
    return {"item": item, "color": request.one("color", "red")}


def change(request: JsonRequest, item: str) -> object:
    return JsonResponse({"item": item, **request.json()}, 201, (("X-Item", item),), "no-cache")


def remove(request: JsonRequest, item: str) -> object:
    return JsonResponse(status=204)


def tagged(request: JsonRequest) -> object:
    if request.has_tag('W/"1"'):
        return JsonResponse(status=304, headers=(("ETag", 'W/"1"'),), cache="no-cache")
    return JsonResponse(b"[1]", 200, (("ETag", 'W/"1"'),), content_type="application/x-list")


TABLE = [
    Endpoint("GET /items/{item}", show, "One item"),
    Endpoint("PUT /items/{item}", change),
    Endpoint("DELETE /items/{item}", remove, listed=False),
    Endpoint("GET /tagged", tagged),
]

ERRORS = {OutOfStock: lambda error: Refusal(Problem(409, "Out of stock."), f"stock: {error}")}


def app(**options: Any) -> JsonApp:
    return JsonApp(TABLE, **{"errors": ERRORS, "largest": 50, **options})


def with_reason(app: WSGIApplication) -> WSGIApplication:
    """Return *app* with the reason for the log in the field ``X-Reason``."""

    def wrapped(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
            reason = [("X-Reason", environ[REASON])] if REASON in environ else []
            return start_response(status, [*headers, *reason])

        return app(environ, start)

    return wrapped


@pytest.fixture(params=["alone", "below another prefix", "as routes of a dispatcher"])
def client(request: pytest.FixtureRequest) -> Client:
    if request.param == "alone":
        return Client(with_reason(app()))
    if request.param == "below another prefix":
        return Client(with_reason(app(prefixes=("/api", ""))))
    return Client(with_reason(Dispatcher(app().routes())))


def test_an_endpoint_returns_a_document(client: Client) -> None:
    response = client.get("/items/caf%C3%A9?color=blue")
    assert response.json == {"item": "café", "color": "blue"}
    assert response.headers.to_wsgi_list() == [
        ("Content-Type", "application/json; charset=utf-8"),
        ("Content-Length", str(len(response.data))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    head = client.head("/items/caf%C3%A9?color=blue")
    assert (head.status, head.data, head.headers) == (response.status, b"", response.headers)


def test_an_endpoint_returns_a_status_and_fields(client: Client) -> None:
    response = client.put("/items/a", json={"n": 1})
    assert (response.status_code, response.json) == (201, {"item": "a", "n": 1})
    assert (response.headers["X-Item"], response.headers["Cache-Control"]) == ("a", "no-cache")
    response = client.delete("/items/a")
    assert (response.status_code, response.data) == (204, b"")
    assert not {"Content-Type", "Content-Length"} & set(response.headers.keys())


def test_an_endpoint_returns_304_for_a_known_etag(client: Client) -> None:
    response = client.get("/tagged")
    assert (response.data, response.content_type) == (b"[1]", "application/x-list")
    for known in ('W/"1"', '"1"', '"0", W/"1"', "*"):
        response = client.get("/tagged", headers={"If-None-Match": known})
        assert (response.status_code, response.data) == (304, b"")
        assert response.headers["ETag"] == 'W/"1"'
    assert client.get("/tagged", headers={"If-None-Match": '"11"'}).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "detail", "reason"),
    [
        ("/items/gone", 410, "This item is gone.", "This item is gone."),
        ("/items/sold", 409, "Out of stock.", "stock: none left"),
        ("/items/a?color=1&color=2", 400, "color: at most one.", "color: at most one."),
        ("/items/a?color=%FF", 400, "The query is malformed or too long.", None),
        ("/items/a?" + "a&" * 40, 400, "The query is malformed or too long.", None),
    ],
)
def test_problems_refusals_and_mapped_errors_are_problem_documents(
    client: Client, path: str, status: int, detail: str, reason: str | None
) -> None:
    response = client.get(path)
    assert (response.status_code, response.content_type) == (status, "application/problem+json")
    assert json.loads(response.data)["detail"] == detail
    assert response.headers["X-Reason"] == (reason or detail)


def test_an_unmapped_error_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        Client(app()).get("/items/broken")


@pytest.mark.parametrize(
    ("data", "fields", "status"),
    [
        (b'{"n": 1}', {"Content-Type": "text/plain"}, 415),
        (b'{"n": 1}', {"Content-Encoding": "gzip"}, 415),
        (b'{"n": 1, "n": 2}', {}, 400),
        (b"[1]", {}, 400),
        (b'{"n": "%s"}' % (b"x" * 50), {}, 413),
    ],
)
def test_a_body_is_a_strict_json_object_within_the_limit(
    client: Client, data: bytes, fields: dict[str, str], status: int
) -> None:
    headers = {"Content-Type": "application/json", **fields}
    assert client.put("/items/a", data=data, headers=headers).status_code == status


def test_another_path_is_answered_with_404_and_the_listed_endpoints() -> None:
    response = Client(app(prefixes=("/shop",))).get("/items/a")
    assert response.status_code == 404
    lines = ["GET /shop/items/{item}", "PUT /shop/items/{item}", "GET /shop/tagged"]
    assert response.get_json()["availableRoutes"] == lines
    assert Client(app()).get("/items/a/").status_code == 404


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "PATCH"])
def test_another_method_is_answered_with_405_and_allow(client: Client, method: str) -> None:
    response = client.open("/items/a", method=method)
    assert response.status_code == 405
    assert response.headers["Allow"] == "DELETE, GET, HEAD, PUT"


def test_a_subclass_authorizes_and_mimics_another_api() -> None:
    class Other(JsonApp):
        content_type = "application/json"
        requires_json_type = False
        ignores_trailing_slash = True

        def authorize(self, environ: Any, *, reads: bool) -> Any:
            if not reads and "HTTP_AUTHORIZATION" not in environ:
                raise Refusal.of(401, "A token is required.")
            return environ

        def denied(self, refusal: Refusal) -> Refusal:
            return Refusal.of(403, "Denied.", str(refusal))

        def absent(self) -> Refusal:
            return Refusal.of(501, "Not implemented.")

    client = Client(with_reason(Other(TABLE)))
    assert client.get("/items/a/").content_type == "application/json"
    refused = client.put("/items/a", json={})
    assert (refused.status_code, refused.headers["X-Reason"]) == (403, "A token is required.")
    assert client.put("/items/a", data=b"{}", headers={"Authorization": "x"}).status_code == 201
    assert client.get("/nothing").status_code == 501


@pytest.mark.parametrize("prefix", ["shop", "/shop/", "/"])
def test_a_prefix_that_is_not_a_path_is_rejected(prefix: str) -> None:
    with pytest.raises(ValueError, match='prefix must be "" or a path such as'):
        app(prefixes=(prefix,))


def test_two_equal_lines_of_a_table_are_rejected() -> None:
    with pytest.raises(RouteConflict):
        JsonApp([*TABLE, Endpoint("GET /items/{other}", show)])
