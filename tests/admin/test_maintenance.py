"""The endpoints of maintenance: the admin token is required, an invalid member is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from tests.support.admin import admin_routes
from wsgigate import MaintenanceSwitch
from wsgigate.admin.operations import maintenance_group
from wsgigate.coordination.maintenance import Notice
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock

NOW = 1_764_547_200.0
ADMIN = "k" * 32
SCOPES = ["gateway", "service:orders"]


@pytest.fixture
def switch() -> MaintenanceSwitch:
    return MaintenanceSwitch(MemoryStore(clock=FakeClock(NOW)))


def send(
    switch: MaintenanceSwitch,
    body: object = None,
    *,
    method: str = "POST",
    token: str | None = ADMIN,
    given: str = ADMIN,
    fields: dict[str, str] | None = None,
) -> TestResponse:
    routes = admin_routes(maintenance_group(switch, SCOPES), prefix="/_gateway", token=token)
    headers = {"Authorization": f"Bearer {given}", "Content-Type": "application/json"}
    return Client(Dispatcher(routes)).open(
        "/_gateway/maintenance",
        method=method,
        data=body if isinstance(body, bytes) else json.dumps(body).encode(),
        headers={**headers, **(fields or {})},
    )


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"on": True}, {"gateway": Notice(NOW)}),
        ({"on": True, "scope": "service:orders"}, {"service:orders": Notice(NOW)}),
        ({"on": True, "for": 90}, {"gateway": Notice(NOW, NOW + 90)}),
        ({"on": True, "for": "30m"}, {"gateway": Notice(NOW, NOW + 1800)}),
        ({"on": True, "message": "Soon."}, {"gateway": Notice(NOW, None, "Soon.")}),
    ],
)
def test_a_scope_is_switched_on_and_off(
    switch: MaintenanceSwitch, body: dict[str, Any], found: dict[str, Notice]
) -> None:
    assert send(switch, body).status_code == 200
    assert switch.status() == found
    assert send(switch, {"on": False, "scope": body.get("scope", "gateway")}).status_code == 200
    assert switch.status() == {}


def test_get_lists_the_notices(switch: MaintenanceSwitch) -> None:
    switch.on("service:orders", lasts=60, message="Soon.")
    told = {
        "service:orders": {
            "since": "2025-12-01T00:00:00.000Z",
            "until": "2025-12-01T00:01:00.000Z",
            "message": "Soon.",
        }
    }
    answer = send(switch, method="GET")
    assert answer.json == {"success": True, "scopes": SCOPES, "maintenance": told}
    assert answer.headers["Cache-Control"] == "no-store"
    answer = send(switch, {"on": True})
    assert answer.json["maintenance"] == {
        **told,
        "gateway": {"since": "2025-12-01T00:00:00.000Z", "until": None, "message": ""},
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "on"),
        ({"on": "yes"}, "on"),
        ({"on": True, "scope": "service:other"}, "scope"),
        ({"on": True, "scope": 7}, "scope"),
        ({"on": True, "for": "soon"}, "for"),
        ({"on": True, "for": 0}, "for"),
        ({"on": True, "for": []}, "for"),
        ({"on": True, "message": "two\nlines"}, "message"),
        ({"on": True, "message": 7}, "message"),
        ({"on": True, "why": "x"}, "why"),
        ({"on": False, "for": 5}, "on"),
        ({"on": False, "scope": "everything"}, "scope"),
    ],
)
def test_an_invalid_member_is_rejected_by_name(
    switch: MaintenanceSwitch, body: dict[str, Any], field: str
) -> None:
    answer = send(switch, body)
    assert (answer.status_code, answer.json["field"]) == (400, field)
    assert switch.status() == {}


def test_a_removed_scope_can_be_switched_off(switch: MaintenanceSwitch) -> None:
    switch.on("service:gone")
    assert send(switch, {"on": False, "scope": "service:gone"}).status_code == 200
    assert switch.status() == {}


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[]", 400), (b"x" * 20_000, 413)])
def test_a_body_that_is_not_an_object_is_rejected(
    switch: MaintenanceSwitch, body: bytes, status: int
) -> None:
    assert send(switch, body).status_code == status


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_admin_token_is_required_and_other_sites_are_rejected(
    switch: MaintenanceSwitch, method: str
) -> None:
    body = {"on": True}
    assert send(switch, body, method=method, given="x" * 32).status_code == 401
    assert send(switch, body, method=method, token=None).status_code == 403
    elsewhere = {"Origin": "https://evil.example"}
    assert send(switch, body, method=method, fields=elsewhere).status_code == 403
    assert switch.status() == {}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_failing_store_is_answered_with_503(method: str) -> None:
    answer = send(MaintenanceSwitch(BrokenStore()), {"on": True}, method=method)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"
    assert "is down" not in answer.text
