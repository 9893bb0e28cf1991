"""The reads of a gateway that runs: each response has the schema that the gateway describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from jsonschema import Draft202012Validator
from werkzeug.test import Client

import wsgigate
from tests.support.admin import ADMIN, VIEWER, bearer
from wsgigate.gateway import Gateway
from wsgigate.testing.backend import Backend, reply

FILE = f"""
store.url = "memory:"
[gateway]
name = "shop"
version = "1.2.3"
[admin]
token = "{ADMIN}"
viewer_token = "{VIEWER}"
[maintenance]
[registry]
token = "{ADMIN}"
[[middleware]]
use = "limiter"
quota = "1000/h"
[[middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "a-secret-of-at-least-thirty-two-bytes"
deny_list = true
required = false
exempt = {{ paths = ["/*"] }}
[[middleware]]
use = "api-key"
required = false
exempt = {{ paths = ["/*"] }}
[services.orders]
instances = ["URL", {{ url = "http://127.0.0.1:9", weight = 0 }}]
breaker = {{}}
outlier = {{}}
health = {{ path = "/" }}
[services.users]
discover = "registry"
[[routes]]
paths = ["/orders", "/old"]
service = "orders"
methods = ["GET"]
[[routes]]
path = "/users"
host = "api.example.com"
services = [{{ service = "users", weight = 2 }}, {{ service = "orders", weight = 1 }}]
"""


@pytest.fixture
def gateway(tmp_path: Path, backend: Backend) -> Iterator[Gateway]:
    file = tmp_path / "gateway.toml"
    file.write_text(FILE.replace("URL", backend.url))
    made = wsgigate.load(str(file))
    yield made
    made.close()


@pytest.fixture
def client(gateway: Gateway) -> Client:
    return Client(gateway)


def strict(schema: Any) -> Any:
    """Return *schema* with documents that have no further members."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(each) for name, each in schema.items()}
    if "properties" in found and found.get("type") == "object":
        found["additionalProperties"] = False
    return found


def get(client: Client, path: str, token: str = VIEWER) -> Any:
    response = client.get(f"/_gateway{path}", headers=bearer(token))
    assert response.status_code == 200, (path, response.text)
    return response.get_json()


PARAMETERS = {
    "name": "orders",
    "policy": "default",
    "key": "192.0.2.1",
    "address": "127.0.0.1:9",
    "id": "x",
}


def test_each_read_has_the_schema_that_is_described(client: Client) -> None:
    document = get(client, "/openapi.json")
    schemas = strict(document["components"])
    reads = [path for path, methods in document["paths"].items() if "get" in methods]
    assert {"/overview", "/routes", "/services/{name}", "/instances", "/config"} <= {*reads}
    for path in reads:
        operation = document["paths"][path]["get"]
        response = operation["responses"]["200"]
        schema = response["content"]["application/json"]["schema"]
        required = {
            each["name"]: PARAMETERS[each["name"]]
            for each in operation["parameters"]
            if each["in"] == "query" and each["required"]
        }
        query = f"?{urlencode(required)}" if required else ""
        found = get(client, path.format(**PARAMETERS) + query)
        Draft202012Validator({**schema, "components": schemas}).validate(found)


def test_the_document_is_a_valid_description(client: Client) -> None:
    document = get(client, "/openapi.json")
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object", name
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    ids = [each["operationId"] for each in operations]
    assert len(set(ids)) == len(ids)
    references = set(_references(document))
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references == known


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def test_each_endpoint_that_is_not_public_needs_a_token(client: Client) -> None:
    document = get(client, "/openapi.json")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            url = f"/_gateway{path.format(**PARAMETERS)}"
            status = client.open(url, method=method.upper()).status_code
            assert (status != 401) == (operation["security"] == []), (method, path)
            if operation["security"] == [{"admin": []}]:
                viewed = client.open(url, method=method.upper(), headers=bearer(VIEWER))
                assert viewed.status_code == 403, (method, path)


def test_the_overview_says_what_is_not_ok(client: Client) -> None:
    overview = get(client, "/overview")
    assert overview["gateway"]["name"] == "shop"
    assert overview["services"] == {"total": 2, "ok": 0, "warning": 1, "error": 1}
    assert overview["instances"] == {"total": 2, "ok": 1, "warning": 1, "error": 0}
    assert overview["routes"]["total"] == 3
    assert overview["circuitBreakers"] == {"total": 1, "ok": 1, "warning": 0, "error": 0}
    assert overview["state"] == "error"
    assert "Service 'users': it has no instances." in overview["problems"]
    assert overview["workers"] == 1
    assert overview["selfPreservation"] is False
    assert overview["config"]["hash"] == get(client, "/config")["hash"]


def test_routes_name_their_service_and_middlewares(client: Client) -> None:
    found = get(client, "/routes")
    assert found["middlewares"] == ["limiter", "authenticator", "api-key"]
    assert [(each["path"], each["service"]) for each in found["routes"]] == [
        ("/orders", "orders"),
        ("/old", "orders"),
        ("/users", "users"),
    ]
    assert found["routes"][2]["host"] == "api.example.com"


def test_instances_are_those_of_all_services_or_of_one(client: Client) -> None:
    found = get(client, "/instances")["instances"]
    assert [(each["service"], each["share"], each["state"]) for each in found] == [
        ("orders", 1, "ok"),
        ("orders", 0, "warning"),
    ]
    assert get(client, "/instances?service=users")["instances"] == []
    response = client.get("/_gateway/instances?service=x", headers=bearer(VIEWER))
    assert response.status_code == 404
    assert client.get("/_gateway/services/x", headers=bearer(VIEWER)).status_code == 404


def test_a_worker_names_its_process_and_its_configuration(client: Client) -> None:
    [worker] = get(client, "/workers")["workers"]
    assert worker["config"] == get(client, "/config")["hash"]
    assert worker["worker"].endswith(f":{worker['pid']}")


@pytest.mark.usefixtures("measured")
def test_recent_errors_are_found_by_their_request_id(client: Client, backend: Backend) -> None:
    backend.answers = [reply(b"", status="503 Service Unavailable")]
    for path, number in (("/orders?secret=1", "r-1"), ("/old", "r-2"), ("/nowhere", "r-3")):
        client.get(path, headers={"X-Request-ID": number}).close()
    newest, oldest = get(client, "/errors")["errors"]
    assert [newest["status"], oldest["status"]] == [503, 503]
    assert newest["service"] == oldest["service"] == "orders"
    assert newest["instance"] == backend.url.removeprefix("http://")
    assert "secret" not in json.dumps(oldest)
    number = newest["request_id"]
    assert number != oldest["request_id"]
    assert get(client, f"/errors?request_id={number}")["errors"] == [newest]
    assert get(client, "/errors?request_id=unknown")["errors"] == []


def test_recent_errors_require_a_token(client: Client) -> None:
    assert client.get("/_gateway/errors").status_code == 401


def test_no_read_has_a_secret(client: Client) -> None:
    dump = get(client, "/support-dump")
    assert {"overview", "routes", "services", "workers", "configuration"} <= {*dump}
    text = json.dumps(dump) + json.dumps(get(client, "/config"))
    assert not [each for each in (ADMIN, VIEWER, "a-secret-of-at-least") if each in text]
    assert dump["configuration"]["configuration"]["admin"]["token"] == "***"


def test_a_poll_of_an_unchanged_document_is_answered_with_304(client: Client) -> None:
    first = client.get("/_gateway/routes", headers=bearer(VIEWER))
    headers = {**bearer(VIEWER), "If-None-Match": first.headers["ETag"]}
    assert client.get("/_gateway/routes", headers=headers).status_code == 304


def test_a_route_of_the_file_takes_precedence_over_a_read(tmp_path: Path, backend: Backend) -> None:
    file = tmp_path / "gateway.toml"
    text = FILE.replace("URL", backend.url).replace("[admin]", '[admin]\nprefix = ""')
    file.write_text(text + '\n[[routes]]\npath = "/config"\nservice = "orders"\n')
    gateway = wsgigate.load(str(file))
    client = Client(gateway)
    client.get("/config").close()
    assert backend.requests[-1].target == "/config"
    assert client.get("/overview").status_code == 401
    gateway.close()
