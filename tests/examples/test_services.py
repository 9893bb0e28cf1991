"""What the three services of the shop have in common."""

from __future__ import annotations

import re

import pytest

SERVICES = {"users": "user-service", "products": "product-service", "orders": "order-service"}


@pytest.fixture(params=SERVICES)
def service(request, loaded):
    return request.param, loaded[request.param].app.test_client()


def test_health_says_which_service_is_well_and_when(service):
    name, client = service
    answer = client.get("/health")
    assert answer.status_code == 200
    assert list(answer.json) == ["status", "service", "timestamp"]
    assert answer.json["status"] == "healthy"
    assert answer.json["service"] == SERVICES[name]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answer.json["timestamp"])


def test_an_unknown_path_is_a_404_in_json(service):
    _, client = service
    answer = client.get("/nothing/here")
    assert answer.status_code == 404
    assert answer.json["success"] is False
    assert answer.json["message"]


def test_a_wrong_method_is_a_405_that_names_the_right_ones(service):
    _, client = service
    answer = client.delete("/health")
    assert answer.status_code == 405
    assert answer.json["success"] is False
    assert "GET" in answer.headers["Allow"]


def test_a_failure_of_the_service_is_a_500_in_json_that_tells_nothing(load):
    app = load("service").create_app("broken")
    app.logger.disabled = True

    @app.get("/broken")
    def broken():
        raise OSError("/etc/secret")

    answer = app.test_client().get("/broken")
    assert answer.status_code == 500
    assert answer.json["success"] is False
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("body", "content_type", "status", "message"),
    [
        ("{}", "text/plain", 415, "Content-Type"),
        ("{}", None, 415, "Content-Type"),
        ("", "application/json", 400, "JSON"),
        ("{", "application/json", 400, "JSON"),
        ("\xff", "application/json", 400, "JSON"),
        ("[" * 10_000, "application/json", 400, "JSON"),
        ("[]", "application/json", 400, "object"),
        ("null", "application/json", 400, "object"),
        ('{"a": "' + "x" * 20_000 + '"}', "application/json", 413, ""),
    ],
)
@pytest.mark.parametrize(("name", "path"), [("users", "/register"), ("orders", "/")])
def test_a_body_that_is_no_json_object_is_refused(
    loaded, name, path, body, content_type, status, message
):
    client = loaded[name].app.test_client()
    answer = client.post(
        path, data=body.encode("latin-1"), content_type=content_type, headers={"X-User-Id": "1"}
    )
    assert answer.status_code == status
    assert answer.json["success"] is False
    assert message in answer.json["message"]


@pytest.mark.parametrize(
    ("name", "method", "path"),
    [
        ("users", "GET", "/"),
        ("users", "GET", "/users"),
        ("users", "GET", "/1"),
        ("users", "GET", "/users/1"),
        ("users", "GET", "/profile"),
        ("orders", "GET", "/"),
        ("orders", "GET", "/orders"),
        ("orders", "GET", "/1"),
        ("orders", "POST", "/"),
        ("orders", "POST", "/orders"),
    ],
)
@pytest.mark.parametrize("user_id", [None, "", "ada", "-1", "1.0", "\u00b2"])
def test_what_is_not_for_everybody_needs_a_caller(loaded, name, method, path, user_id):
    headers = {} if user_id is None else {"X-User-Id": user_id}
    answer = loaded[name].app.test_client().open(path, method=method, headers=headers, json={})
    assert answer.status_code == 401
    assert answer.json == {"success": False, "message": "Access token required!"}
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="shop"'
