"""The endpoints that list the states of circuits, and that reset one with the admin token."""

from __future__ import annotations

from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.admin import admin_routes
from tests.support.logs import silence
from wsgigate import Dispatcher
from wsgigate.admin.operations import circuit_group, circuit_statuses
from wsgigate.coordination.circuit import Circuit, Permit
from wsgigate.rules.circuit import CircuitRules, Outcome
from wsgigate.testing import BrokenStore, FakeClock

TOKEN = "an operator's token that is long enough".replace(" ", "-")
BEARER = {"Authorization": f"Bearer {TOKEN}"}
CLOSED = {
    "serviceName": "users",
    "state": "CLOSED",
    "failureCount": 0,
    "successCount": 0,
    "lastFailureTime": None,
}


UNTIL = "2023-11-14T22:13:25.000Z"


_silent = silence("wsgigate.circuits")


@pytest.fixture
def circuits(clock: FakeClock) -> list[Circuit]:
    rules = CircuitRules(consecutive_failures=2, jitter=0)
    made = [Circuit(name, rules, clock=clock) for name in ("orders", "users")]
    for outcome in (Outcome.OK, Outcome.FAILED, Outcome.FAILED):
        permit = made[0].admit()
        assert isinstance(permit, Permit)
        permit.done(outcome)
    clock.advance(1.5)
    return made


def client(circuits: list[Circuit], **options: Any) -> Client:
    given = {"token": TOKEN, "prefix": ""} | options
    frame = {name: given.pop(name) for name in ("token", "prefix")}
    group = circuit_group(circuits, now=lambda: 1_700_000_001.5, **given)
    return Client(Dispatcher(admin_routes(group, **frame)))


def test_get_lists_the_states(circuits: list[Circuit]) -> None:
    answer = client(circuits).get("/circuit-breakers")
    assert answer.json == {
        "success": True,
        "circuitBreakers": {
            "orders": {
                "serviceName": "orders",
                "state": "OPEN",
                "failureCount": 2,
                "successCount": 1,
                "lastFailureTime": "2023-11-14T22:13:20.000Z",
                "since": "2023-11-14T22:13:20.000Z",
                "reason": "2 failures in a row",
                "until": UNTIL,
            },
            "users": CLOSED,
        },
    }
    assert circuit_statuses(circuits[1:]) == {"users": CLOSED}


def test_a_reset_closes_the_circuit(circuits: list[Circuit]) -> None:
    answer = client(circuits).post("/circuit-breakers/orders/reset", headers=BEARER)
    assert (answer.status_code, answer.json) == (
        200,
        {"success": True, "message": "Circuit breaker reset for orders"},
    )
    told = client(circuits).get("/circuit-breakers").json
    assert told["circuitBreakers"]["orders"] == {
        **CLOSED,
        "serviceName": "orders",
        "successCount": 1,
        "since": "2023-11-14T22:13:21.500Z",
        "reason": "reset by the operator",
        "until": None,
    }


@pytest.mark.parametrize(
    ("method", "path", "fields", "status"),
    [
        ("POST", "/circuit-breakers/orders/reset", {}, 401),
        ("POST", "/circuit-breakers/orders/reset", {"Authorization": "Bearer x"}, 401),
        (
            "POST",
            "/circuit-breakers/orders/reset",
            {**BEARER, "Origin": "https://evil.example"},
            403,
        ),
        ("POST", "/circuit-breakers/nobody/reset", BEARER, 404),
        ("GET", "/circuit-breakers/orders/reset", BEARER, 405),
        ("POST", "/circuit-breakers", BEARER, 405),
        ("GET", "/circuit-breakers/orders", {}, 401),
    ],
)
def test_invalid_resets_are_rejected(
    circuits: list[Circuit], method: str, path: str, fields: dict[str, str], status: int
) -> None:
    answer = client(circuits).open(path, method=method, headers=fields)
    assert answer.status_code == status
    assert circuits[0].status().failures == 2


def test_there_is_no_reset_without_an_admin_token(circuits: list[Circuit]) -> None:
    answer = client(circuits, token=None).post("/circuit-breakers/orders/reset", headers=BEARER)
    assert answer.status_code == 403
    assert "admin.token enables them" in answer.json["detail"]
    assert circuits[0].status().failures == 2


def test_a_reset_of_this_worker_only_is_answered_with_503(clock: FakeClock) -> None:
    alone = Circuit("orders", store=BrokenStore(), clock=clock)
    answer = client([alone]).post("/circuit-breakers/orders/reset", headers=BEARER)
    assert answer.status_code == 503
    assert answer.json["message"] == "The circuit breaker was reset in this worker only."


def test_the_endpoints_are_below_their_prefix(circuits: list[Circuit]) -> None:
    below = client(circuits, prefix="/_gateway")
    assert below.get("/_gateway/circuit-breakers").status_code == 200
    assert below.get("/circuit-breakers").status_code == 404


def test_two_circuits_of_one_name_are_rejected() -> None:
    with pytest.raises(ValueError, match="two circuits have the same name"):
        circuit_group([Circuit("a"), Circuit("a")])


def test_the_counts_are_summed_and_listed_by_worker(circuits: list[Circuit]) -> None:
    at = 1_700_000_000.0
    reports = {
        "m:1": {"orders": [1, 2, 1, at], "users": [0, 0, 4, None]},
        "m:2": {"orders": [1, 3, 5, at + 1]},
        "m:3": {},
    }
    told = client(circuits, workers=lambda: reports).get("/circuit-breakers").json
    orders, users = told["circuitBreakers"]["orders"], told["circuitBreakers"]["users"]
    assert (orders["failureCount"], orders["successCount"]) == (5, 6)
    assert orders["lastFailureTime"] == "2023-11-14T22:13:21.000Z"
    assert (orders["state"], orders["reason"]) == ("OPEN", "2 failures in a row")
    assert users == {**CLOSED, "successCount": 4}
    assert told["workers"]["m:2"] == {
        "orders": {
            "failureCount": 3,
            "successCount": 5,
            "lastFailureTime": "2023-11-14T22:13:21.000Z",
        }
    }


def test_the_counts_of_a_worker_that_has_not_seen_the_reset_are_ignored(
    circuits: list[Circuit],
) -> None:
    circuits[0].reset()
    reports = {"m:1": {"orders": [2, 0, 1, None]}, "m:2": {"orders": [1, 3, 5, 1.0]}}
    told = client(circuits, workers=lambda: reports).get("/circuit-breakers").json
    orders = told["circuitBreakers"]["orders"]
    assert (orders["failureCount"], orders["successCount"]) == (0, 6)
    assert orders["lastFailureTime"] is None
