"""The endpoints that change a running gateway: who may, what they answer, and what is recorded."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

import wsgigate
from tests.support.admin import ADMIN, VIEWER, bearer
from wsgigate.gateway import Gateway

FILE = f"""
store.url = "memory:"
[admin]
prefix = "/_gateway"
token = "{ADMIN}"
viewer_token = "{VIEWER}"
[services.orders]
instances = ["http://10.0.0.4:8000", "http://10.0.0.5:8000"]
breaker = {{}}
[[routes]]
path = "/orders"
service = "orders"
[[routes.middleware]]
use = "limiter"
quota = "10 per hour"
name = "orders"
[[routes.middleware]]
use = "concurrency-limiter"
limit = 3
name = "at-once"
[[routes.middleware]]
use = "authenticator"
secret = "{"s" * 32}"
algorithms = ["HS256"]
deny_list = true
"""

INSTANCE = "/services/orders/instances/10.0.0.4:8000"
UNTIL = time.time() + 3600
DENIED = f"/tokens/denied/jti:{'0' * 64}"

WRITES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("PUT", INSTANCE, {"state": "drained"}),
    ("PUT", "/circuit-breakers/orders", {"state": "open"}),
    ("POST", "/circuit-breakers/orders/reset", None),
    ("PUT", "/services/orders/instances?address=10.0.0.4:8000", {"state": "drained"}),
    ("DELETE", "/limits/orders/192.0.2.1", None),
    ("DELETE", "/limits/orders?key=192.0.2.1", None),
    ("DELETE", DENIED, None),
    ("POST", "/tokens/deny", {"jti": "a", "until": UNTIL}),
    ("POST", "/reload", None),
]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    (tmp_path / "gateway.toml").write_text(FILE)
    built = wsgigate.load(str(tmp_path / "gateway.toml"))
    yield built
    built.close()


PEER = {"REMOTE_ADDR": "127.0.0.1"}


class Operator:
    """Sends requests with a token."""

    def __init__(self, gateway: Gateway, token: str = ADMIN) -> None:
        self._client = Client(gateway)
        self._token = token

    def __call__(
        self, method: str, path: str, body: object = None, **fields: str
    ) -> tuple[int, Any]:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        response = self.response(method, path, body, **headers)
        return response.status_code, response.json

    def response(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        options: dict[str, Any] = {} if body is None else {"json": body}
        return self._client.open(
            f"/_gateway{path}",
            method=method,
            headers=bearer(self._token) | headers,
            environ_base=PEER,
            **options,
        )


@pytest.fixture
def operator(gateway: Gateway) -> Operator:
    return Operator(gateway)


@pytest.mark.parametrize(
    ("write", "how"),
    list(product(WRITES, ["no token", "a wrong token", "the viewer token", "wrong Host", "page"])),
    ids=lambda each: each if isinstance(each, str) else f"{each[0]} {each[1][:20]}",
)
def test_each_write_requires_the_admin_token_and_is_for_no_other_site(
    gateway: Gateway, write: tuple[str, str, Any], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    method, path, body = write
    fields: dict[str, dict[str, str]] = {
        "no token": {},
        "a wrong token": bearer("w" * 32),
        "the viewer token": bearer(VIEWER),
        "wrong Host": bearer() | {"Host": "evil.example"},
        "page": bearer() | {"Origin": "null"},
    }
    status = {"no token": 401, "a wrong token": 401}.get(how, 403)
    with caplog.at_level(logging.WARNING, "wsgigate.audit"):
        response = Client(gateway).open(
            f"/_gateway{path}", method=method, json=body, headers=fields[how]
        )
    assert response.status_code == status
    audited = [each for each in caplog.records if each.name == "wsgigate.audit"]
    assert all(each.wsgigate["result"] == "denied" for each in audited)  # type: ignore[attr-defined]
    pool = gateway.pools["orders"]
    assert len(pool.available()) == 2


# Instances.


def test_an_instance_is_drained_and_active_again(gateway: Gateway, operator: Operator) -> None:
    status, document = operator("PUT", INSTANCE, {"state": "drained", "for": "10m"})
    assert (status, document["state"], document["url"]) == (
        200,
        "drained",
        "http://10.0.0.4:8000",
    )
    assert document["until"] > document["since"]
    assert document["by"] == "admin token 127.0.0.1"
    assert document["appliesTo"] == "this worker"  # the store is memory:
    assert gateway.pools["orders"].shares() == {
        "http://10.0.0.4:8000": 0,
        "http://10.0.0.5:8000": 1,
    }
    assert operator("GET", INSTANCE) == (200, document)
    assert operator("PUT", INSTANCE, {"state": "active"})[1]["until"] is None
    assert len(gateway.pools["orders"].available()) == 2


def test_an_instance_gets_another_weight(gateway: Gateway, operator: Operator) -> None:
    assert operator("PUT", INSTANCE, {"weight": 7})[1]["weight"] == 7
    assert gateway.pools["orders"].shares()["http://10.0.0.4:8000"] == 7


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"state": "up"}, "state: must be one of active, drained, ejected."),
        ({"state": None}, "state: must be one of"),
        ({"state": "drained", "for": "soon"}, "for: expected a duration"),
        ({"state": "drained", "for": "11000d"}, "for: more than 0 seconds and at most ten years"),
        ({"state": "active", "weight": 0}, "weight: a whole number from 1 to 65535, not 0"),
        ({"state": "active", "weight": "9"}, "weight: a whole number"),
        ({"stat": "drained"}, "'stat': unknown field; known are state, weight, for."),
    ],
)
def test_errors_of_an_instance_name_the_member(
    operator: Operator, body: dict[str, Any], error: str
) -> None:
    status, document = operator("PUT", INSTANCE, body)
    assert status == 400
    assert document["message"].startswith(error)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/services/orders/instances/10.0.0.9:8000",
            "address: the service has no such instance; its instances are: "
            "10.0.0.4:8000, 10.0.0.5:8000.",
        ),
        ("/services/users/instances/10.0.0.4:8000", "Service not found!"),
        ("/circuit-breakers/users", "Circuit breaker not found!"),
        (
            "/limits/users/192.0.2.1",
            "There is no such policy; the policies are: at-once, orders.",
        ),
    ],
)
def test_what_does_not_exist_is_404_and_names_what_does(
    operator: Operator, path: str, message: str
) -> None:
    status, document = operator("GET", path)
    assert (status, document["message"]) == (404, message)


def test_an_instance_that_has_left_can_be_made_active(gateway: Gateway, operator: Operator) -> None:
    operator("PUT", INSTANCE, {"state": "drained"})
    pool = gateway.pools["orders"]
    pool.renew([each for each in pool.instances if each.address != "10.0.0.4:8000"])
    assert operator("GET", INSTANCE)[1]["state"] == "drained"
    assert operator("PUT", INSTANCE, {"state": "active"})[0] == 200
    assert operator("GET", INSTANCE)[0] == 404


# If-Match.


@pytest.mark.parametrize(
    ("path", "first", "second"),
    [
        (INSTANCE, {"state": "drained"}, {"state": "ejected"}),
        ("/circuit-breakers/orders", {"state": "open"}, {"state": "closed"}),
    ],
)
def test_a_change_of_what_has_changed_since_is_rejected(
    operator: Operator, path: str, first: Any, second: Any
) -> None:
    tag = operator.response("GET", path).headers["ETag"]
    assert operator("PUT", path, first, If_Match=tag)[0] == 200
    assert operator("PUT", path, second, If_Match=tag)[0] == 412
    assert operator("PUT", path, second, If_Match='"other"')[0] == 412
    now = operator.response("GET", path).headers["ETag"]
    assert now != tag
    again = operator.response("PUT", path, first)
    assert again.headers["ETag"] == operator.response("GET", path).headers["ETag"]
    now = again.headers["ETag"]
    assert operator("PUT", path, second, If_Match=f'"other", {now}')[0] == 200
    assert operator("PUT", path, first, If_Match="*")[0] == 200


# Circuits.


def test_a_circuit_is_forced_and_released(operator: Operator) -> None:
    path = "/circuit-breakers/orders"
    status, document = operator("PUT", path, {"state": "open", "for": "10m"})
    assert (status, document["state"], document["forced"]) == (200, "OPEN", True)
    assert document["until"] is not None
    listed = operator("GET", "/circuit-breakers")[1]["circuitBreakers"]["orders"]
    assert (listed["state"], listed["forced"], listed["reason"]) == (
        "OPEN",
        True,
        "forced open by the operator",
    )
    document = operator("PUT", path, {"state": "closed"})[1]
    assert (document["state"], document["until"]) == ("CLOSED", None)
    document = operator("PUT", path, {"state": "auto"})[1]
    assert (document["state"], document["forced"], document["reason"]) == (
        "CLOSED",
        False,
        "released by the operator",
    )
    assert operator("PUT", path, {"state": "half"})[0] == 400
    assert operator("PUT", path, {"state": "auto", "for": "1m"})[0] == 400


# Limits.


def test_a_caller_gets_its_full_quota_again(gateway: Gateway, operator: Operator) -> None:
    for _ in range(3):
        Client(gateway).get("/orders", environ_base=PEER).close()
    status, document = operator("GET", "/limits/orders/127.0.0.1")
    assert (status, document["key"]) == (200, "=127.0.0.1")
    [quota] = document["quotas"]
    assert (quota["limit"], quota["remaining"], quota["plan"]) == (10, 7, None)
    assert operator("GET", "/limits/orders/=127.0.0.1")[1]["quotas"][0]["remaining"] == 7
    document = operator("DELETE", "/limits/orders/127.0.0.1")[1]
    assert document["quotas"][0]["remaining"] == 10
    assert operator("GET", "/limits/at-once/127.0.0.1")[1]["quotas"] == [
        {"name": "at-once", "plan": None, "limit": 3, "remaining": 3, "resetAfter": 0.0}
    ]


@pytest.mark.parametrize("key", ["2001%3Adb8%3A%3A%2F64", "2001:db8::/64", "=2001:db8::/64"])
def test_a_key_with_a_slash_is_named_in_the_query(
    gateway: Gateway, operator: Operator, key: str
) -> None:
    six = {"REMOTE_ADDR": "2001:db8::7"}
    Client(gateway).get("/orders", environ_base=six).close()
    path = f"/limits/orders?key={key}"
    status, document = operator("GET", path)
    assert (status, document["key"]) == (200, "=2001:db8::/64")
    assert document["quotas"][0]["remaining"] == 9
    assert operator("DELETE", path, If_Match='"other"')[0] == 412
    status, document = operator("DELETE", path)
    assert (status, document["quotas"][0]["remaining"]) == (200, 10)


def test_an_instance_is_named_by_its_url_in_the_query(operator: Operator) -> None:
    path = "/services/orders/instances?address=http://10.0.0.4:8000"
    assert operator("PUT", path, {"state": "drained"})[0] == 200
    assert operator("GET", path) == operator("GET", INSTANCE)
    assert operator("GET", INSTANCE)[1]["state"] == "drained"


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/limits/orders", 400, "key: is required in the query."),
        ("/limits/orders?key=a&key=b", 400, "key: at most one."),
        ("/limits/orders?key=%ff", 400, "The query is malformed or too long."),
        ("/services/orders/instances", 400, "address: is required in the query."),
        ("/services/orders/instances?address=a&address=b", 400, "address: at most one."),
    ],
)
def test_a_query_that_names_no_one_thing_is_rejected(
    operator: Operator, path: str, status: int, message: str
) -> None:
    found = operator("GET", path)
    assert (found[0], found[1]["message"]) == (status, message)


# Tokens.


def test_denials_are_listed_by_hash_and_can_be_removed(operator: Operator) -> None:
    operator("POST", "/tokens/deny", {"jti": "secret-id", "until": UNTIL})
    operator("POST", "/tokens/deny", {"sub": "alice", "until": UNTIL, "before": 1e9})
    status, document = operator("GET", "/tokens/denied")
    assert (status, document["complete"]) == (200, True)
    assert [each["kind"] for each in document["denied"]] == ["jti", "sub"]
    assert document["denied"][1]["before"] == "2001-09-09T01:46:40.000Z"
    assert "secret-id" not in str(document)
    assert "alice" not in str(document)
    id = document["denied"][0]["id"]
    assert operator("DELETE", f"/tokens/denied/{id}")[0] == 200
    assert operator("DELETE", f"/tokens/denied/{id}")[0] == 404
    assert operator("DELETE", "/tokens/denied/jti:1")[0] == 400
    assert len(operator("GET", "/tokens/denied")[1]["denied"]) == 1


# Reload.


class Server:
    """A server that reloads, as its worker sees it."""

    def __init__(self, *errors: str, main: bool = True) -> None:
        self.signals = 0
        self._errors = list(errors)
        self._main = main

    def hash(self) -> str:
        return "0" * 64

    def errors(self) -> list[str]:
        return self._errors

    def signal(self) -> bool:
        self.signals += self._main
        return self._main


def test_a_valid_file_is_reloaded_by_the_server(gateway: Gateway, operator: Operator) -> None:
    gateway.reloads = server = Server()
    status, document = operator("POST", "/reload")
    assert (status, document["hash"], server.signals) == (202, "0" * 64, 1)


def test_an_invalid_file_is_answered_with_all_errors(gateway: Gateway, operator: Operator) -> None:
    gateway.reloads = server = Server("gateway.workers: expected", "routes: none")
    status, document = operator("POST", "/reload")
    assert (status, document["errors"]) == (422, ["gateway.workers: expected", "routes: none"])
    assert server.signals == 0


def test_without_a_server_that_reloads_it_says_why(gateway: Gateway, operator: Operator) -> None:
    status, document = operator("POST", "/reload")
    assert status == 409
    assert document["message"].startswith("No server process reloads this gateway")
    gateway.reloads = Server(main=False)
    assert "has ended" in operator("POST", "/reload")[1]["message"]


# What is recorded.


def test_each_change_is_in_the_audit_log_with_what_it_was_before(
    gateway: Gateway, operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.reloads = Server()
    operator("POST", "/tokens/deny", {"jti": "a", "until": UNTIL})
    id = operator("GET", "/tokens/denied")[1]["denied"][0]["id"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "wsgigate.audit"):
        operator("PUT", INSTANCE, {"state": "drained"})
        operator("PUT", "/circuit-breakers/orders", {"state": "open"})
        operator("DELETE", "/limits/orders/192.0.2.1")
        operator("DELETE", f"/tokens/denied/{id}")
        operator("POST", "/reload")
        operator("PUT", INSTANCE, {"state": "up"})  # invalid: nothing was changed
    records = [
        record.wsgigate  # type: ignore[attr-defined]
        for record in caplog.records
        if record.name == "wsgigate.audit"
    ]
    assert [(each["operation"], each["target"], each["result"]) for each in records] == [
        ("instance.change", "http://10.0.0.4:8000 of orders", "done"),
        ("circuit.open", "orders", "done"),
        ("limit.clear", "=192.0.2.1 of orders", "done"),
        ("token.allow", id, "done"),
        ("gateway.reload", "file", "done"),
    ]
    assert records[0]["from"] == {"state": "active", "weight": None, "until": None}
    assert records[0]["to"] == {"state": "drained", "weight": None, "until": None}


def test_a_change_of_another_worker_is_known_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(FILE.replace("memory:", "lmdb:data"))
    workers = [wsgigate.load(str(tmp_path / "gateway.toml")) for _ in range(2)]
    one, other = map(Operator, workers)
    tag = one.response("PUT", INSTANCE, {"state": "drained"}).headers["ETag"]
    assert other("GET", INSTANCE)[1]["state"] == "drained"
    one("PUT", INSTANCE, {"state": "ejected"})
    assert other("PUT", INSTANCE, {"state": "active"}, If_Match=tag)[0] == 412
    assert other("PUT", INSTANCE, {"state": "active"})[1]["appliesTo"] == "all workers"
    for worker in workers:
        worker.close()
