"""The registry's HTTP API: the responses of the lesson, member by member, and the further ones."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.examples.lesson import TIME, difference
from tests.registry.served import DEMO, TOKEN, Served
from tests.support.objects import texts_kept
from wsgigate.rules.registry import Status
from wsgigate.testing import Script


@pytest.fixture
def served() -> Served:
    return Served()


INSTANCE = {
    **DEMO,
    "url": "http://localhost:3001",
    "registeredAt": TIME,
    "lastHeartbeat": TIME,
    "healthy": True,
    "healthCheckPath": "/health",
}
ABSENT = {"success": False, "message": "Service instance not found!"}
MISSING = {"success": False, "message": "serviceName, instanceId, host, and port are required!"}

LESSON: list[tuple[str, object, int, dict[str, object]]] = [
    (
        "GET /health",
        None,
        200,
        {
            "service": "service-discovery",
            "version": "1.0.0",
            "status": "healthy",
            "timestamp": TIME,
            "uptime": float,
            "registry": {
                "totalServices": 0,
                "totalInstances": 0,
                "healthyInstances": 0,
                "healthPercentage": 0,
            },
        },
    ),
    ("GET /services", None, 200, {"success": True, "services": {}, "serviceCount": 0}),
    (
        "GET /discover/user-service",
        None,
        200,
        {"success": True, "serviceName": "user-service", "instances": [], "count": 0},
    ),
    (
        "GET /instance/user-service",
        None,
        404,
        {"success": False, "message": "No healthy instances found!"},
    ),
    ("POST /heartbeat/user-service/user-1", None, 404, ABSENT),
    ("DELETE /register/user-service/user-1", None, 404, ABSENT),
    ("POST /register", {}, 400, MISSING),
    ("POST /register", {**DEMO, "port": 0}, 400, MISSING),
    (
        "POST /register",
        DEMO,
        201,
        {
            "success": True,
            "message": "Service registered successfully!",
            "instance": {
                "serviceName": "user-service",
                "instanceId": "user-1",
                "url": "http://localhost:3001",
                "registeredAt": TIME,
                "heartbeatInterval": 10.0,  # is more: how often a heartbeat is expected
            },
        },
    ),
    (
        "POST /heartbeat/user-service/user-1",
        None,
        200,
        {"success": True, "message": "Heartbeat updated successfully!"},
    ),
    (
        "GET /instance/user-service?strategy=round-robin",
        None,
        200,
        {
            "success": True,
            "instance": {
                "serviceName": "user-service",
                "instanceId": "user-1",
                "url": "http://localhost:3001",
                "healthy": True,
                "lastHeartbeat": TIME,
            },
        },
    ),
    (
        "GET /health",
        None,
        200,
        {
            "registry": {
                "totalServices": 1,
                "totalInstances": 1,
                "healthyInstances": 1,
                "healthPercentage": "100.00",
            }
        },
    ),
    (
        "DELETE /register/user-service/user-1",
        None,
        200,
        {"success": True, "message": "Service deregistered successfully!"},
    ),
]


def test_responses_are_those_of_the_lesson(served: Served) -> None:
    for line, document, status, expected in LESSON:
        method, path = line.split()
        answer = served.send(method, path, document)
        assert (line, answer.status_code) == (line, status)
        assert not difference(answer.json, expected), line
        if status < 400:
            assert answer.content_type == "application/json; charset=utf-8"
        else:
            assert answer.content_type == "application/problem+json"


def test_an_instance_has_the_members_of_the_lesson_and_more(served: Served) -> None:
    served.send("POST", "/register", DEMO)
    for path, members in (
        ("/discover/user-service", ["instances"]),
        ("/services", ["services", "user-service"]),
    ):
        found: Any = served.send("GET", path).json
        for member in members:
            found = found[member]
        [told] = found
        assert list(told)[: len(INSTANCE)] == [
            *("serviceName", "instanceId", "host", "port", "url", "metadata"),
            *("registeredAt", "lastHeartbeat", "healthy", "healthCheckPath"),
        ]
        more = {name: told.pop(name) for name in list(told)[len(INSTANCE) :]}
        assert not difference(told, INSTANCE, "instance")
        assert more == {"status": "UP", "weight": 1, "version": "1.0.0", "tags": []}


def test_times_are_those_of_the_store(served: Served) -> None:
    served.send("POST", "/register", DEMO)
    served.clock.now += 12.5
    for moment in ("12.500", "12.750"):  # what this worker was told, it tells at once
        served.send("POST", "/heartbeat/user-service/user-1")
        found: Any = served.send("GET", "/discover/user-service").json
        [told] = found["instances"]
        assert told["registeredAt"] == "2025-12-01T00:00:00.000Z"
        assert told["lastHeartbeat"] == f"2025-12-01T00:00:{moment}Z"
        served.clock.now += 0.25


def test_unhealthy_instances_are_listed_on_request(served: Served) -> None:
    served.register("silent")
    served.clock.now += 31
    served.register("well")
    served.register("starting", status=Status.STARTING)
    assert served.names() == ["well"]
    assert served.names("onlyHealthy=true") == ["well"]
    assert served.names("onlyHealthy=false") == ["silent", "starting", "well"]
    found: Any = served.send("GET", "/discover/users?onlyHealthy=false").json
    assert [each["healthy"] for each in found["instances"]] == [False, False, True]
    health: Any = served.send("GET", "/health").json
    assert health["registry"] == {
        "totalServices": 1,
        "totalInstances": 3,
        "healthyInstances": 1,
        "healthPercentage": "33.33",
    }


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("tag=blue", ["a", "b"]),
        ("tag=blue&tag=canary", ["b"]),
        ("zone=eu", ["a"]),
        ("version=2", ["b"]),
        ("meta.team=x", ["a"]),
        ("meta.team=x&meta.size=3", ["a"]),
        ("meta.team=x&zone=us", []),
        ("status=draining&onlyHealthy=false", ["c"]),
        ("status=UP&onlyHealthy=false", ["a", "b"]),
    ],
)
def test_a_query_filters(served: Served, query: str, names: list[str]) -> None:
    served.register("a", tags=("blue",), zone="eu", metadata={"team": "x", "size": 3})
    served.register("b", tags=("blue", "canary"), version="2", metadata={"team": "y"})
    served.register("c", status=Status.DRAINING)
    assert served.names(query) == names


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("onlyHealthy=1", "onlyHealthy"),
        ("status=GONE", "status"),
        ("zone=a&zone=b", "zone"),
        ("surprise=1", "surprise"),
        ("wait=soon", "wait"),
        ("index=-1", "index"),
        ("index=" + "9" * 30, "index"),
        ("strategy=magic", "strategy"),
        ("meta.=1", "meta."),
        ("&".join(f"tag={n}" for n in range(40)), "query"),
    ],
)
def test_an_invalid_query_field_is_rejected_by_name(served: Served, query: str, field: str) -> None:
    answer = served.send("GET", f"/discover/users?{query}")
    assert answer.status_code == 400
    assert answer.json
    assert answer.json["field"] == field
    assert answer.json["message"].startswith(f"{field}: ")


def test_a_status_can_be_set(served: Served) -> None:
    served.register("a")
    answer = served.send("PUT", "/status/users/a", {"status": "DRAINING"})
    assert answer.status_code == 200
    assert answer.json
    assert answer.json["message"] == "Status updated successfully!"
    assert (answer.json["instance"]["status"], answer.json["instance"]["healthy"]) == (
        "DRAINING",
        False,
    )
    assert served.names() == []
    served.send("POST", "/heartbeat/users/a")
    assert served.names() == []  # a heartbeat alone changes nothing of that
    served.send("POST", "/heartbeat/users/a", {"status": "UP"})
    assert served.names() == ["a"]
    for document, field in (
        ({}, "status"),
        ({"status": "AWAY"}, "status"),
        ({"state": "UP"}, "state"),
    ):
        refused = served.send("PUT", "/status/users/a", document)
        assert (refused.status_code, (refused.json or {}).get("field")) == (400, field)
    assert served.send("PUT", "/status/users/b", {"status": "UP"}).status_code == 404


def test_one_instance_is_picked_by_the_strategy() -> None:
    chances = Script([0.0, 0.0, 0.5, 0.99])
    served = Served(random=chances)
    for name, weight in (("a", 1), ("b", 8), ("c", 1), ("d", 0)):
        served.register(name, weight=weight)

    def chosen(strategy: str = "") -> str:
        answer = served.send("GET", f"/instance/users{strategy}")
        assert answer.json
        return str(answer.json["instance"]["instanceId"])

    assert [chosen() for _ in range(4)] == ["b", "c", "a", "b"]
    assert [chosen("?strategy=random") for _ in range(3)] == ["a", "b", "c"]
    assert [chosen("?strategy=first") for _ in range(2)] == ["a", "a"]
    assert chances.left == 0


def test_the_number_of_round_robin_positions_is_bounded(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgigate.registry.api.MOST", 3)
    for n in range(9):
        served.register("a", service=f"s{n}")
        assert served.send("GET", f"/instance/s{n}").status_code == 200
    names = texts_kept(served.app, but=[served.registry]) & {f"s{n}" for n in range(9)}
    assert 0 < len(names) <= 3


def test_the_api_can_be_below_a_prefix() -> None:
    served = Served(prefix="/_registry")
    assert served.send("POST", "/_registry/register", DEMO).status_code == 201
    assert served.send("GET", "/_registry/discover/user-service").status_code == 200
    assert served.send("GET", "/discover/user-service").status_code == 404


@pytest.mark.parametrize("prefix", ["registry", "/registry/", "/"])
def test_a_prefix_that_is_not_a_path_is_rejected(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        Served(prefix=prefix)


def test_an_unknown_path_is_answered_with_the_available_routes(served: Served) -> None:
    answer = served.send("GET", "/nothing")
    assert answer.status_code == 404
    assert answer.json
    assert answer.json["availableRoutes"][:2] == [
        "POST /register",
        "DELETE /register/{service}/{instance}",
    ]
    refused = served.send("POST", "/discover/users")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")


def test_head_is_answered_as_get_without_a_body(served: Served) -> None:
    served.register("a")
    answer = served.send("HEAD", "/discover/users")
    assert (answer.status_code, answer.data) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 100


def test_reads_have_an_age_during_a_store_outage(served: Served) -> None:
    served.register("a")
    served.send("GET", "/services")
    served.store.broken = True
    served.later = 7.0
    found: Any = served.send("GET", "/discover/users").json
    assert found["count"] == 1
    assert found["age"] >= 7
    health: Any = served.send("GET", "/health").json
    assert health["status"] == "degraded"
    assert health["registry"]["age"] >= 7
    for method, path, document in (
        ("GET", "/discover/others", None),
        ("POST", "/register", DEMO),
        ("POST", "/heartbeat/users/a", None),
        ("DELETE", "/register/users/a", None),
    ):
        refused = served.send(method, path, document)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert "disk" not in refused.text


def test_self_preservation_is_reported(served: Served) -> None:
    for n in range(4):
        served.register(f"u{n}")
    sweeper = served.registry.expiry
    for _ in range(40):
        served.clock.now += 1
        sweeper.step()
    found: Any = served.send("GET", "/discover/users?onlyHealthy=false").json
    assert (found["count"], found["preserving"]) == (4, True)
    health: Any = served.send("GET", "/health").json
    assert health["registry"]["preserving"]


def test_services_are_listed_with_their_version(served: Served) -> None:
    served.register("a", zone="eu")
    served.register("b", service="orders")
    answer = served.send("GET", "/services?zone=eu")
    assert answer.json
    assert list(answer.json["services"]) == ["users"]
    assert answer.json["serviceCount"] == 1
    index = answer.headers["X-Registry-Index"]
    assert re.fullmatch(r"\d{13}", index)
    assert index == str(served.registry.version())


def test_the_removal_of_an_instance_from_another_address_is_audited(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("own", "other"):
        served.register(name)
    for name, address in (("own", "10.0.0.1"), ("other", "10.0.0.9")):
        done = served.client.delete(
            f"/register/users/{name}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            environ_overrides={"REMOTE_ADDR": address},
        )
        assert done.status_code == 200
    (record,) = [each for each in caplog.records if each.name == "wsgigate.audit"]
    assert record.getMessage() == (
        "instance.remove of other of users by registry client from 10.0.0.9: done, from "
        '{"host": "10.0.0.1", "port": 3001, "status": "UP"} to null'
    )
