"""What an operator reads: the states of instances and services, and why they are not ok."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.admin.reads import EjectionDocument, instance_state, service_state

WELL = {"healthy": True, "lastCheck": "2025-12-01T00:00:00.000Z", "status": 200}
ILL = {**WELL, "healthy": False, "error": "Connection refused"}
EJECTED: EjectionDocument = {
    "since": "",
    "until": "",
    "reason": "5 failures in a row",
    "workers": 1,
}


@pytest.mark.parametrize(
    ("changed", "state", "reason"),
    [
        ({}, "ok", ""),
        ({"health": WELL}, "ok", ""),
        ({"health": {"healthy": False, "error": "Not checked yet"}}, "ok", ""),
        ({"health": ILL}, "error", "health check: Connection refused"),
        ({"health": {**WELL, "error": "Status 500"}}, "warning", "health check: Status 500"),
        ({"ejection": EJECTED}, "error", "ejected: 5 failures in a row"),
        ({"override": "drained", "share": 0}, "warning", "drained by an operator"),
        ({"share": 0}, "warning", "draining: its weight is 0"),
        ({"health": ILL, "override": "drained", "share": 0}, "error", "health check: Connection"),
    ],
)
def test_the_state_of_an_instance(changed: dict[str, Any], state: str, reason: str) -> None:
    facts: dict[str, Any] = {"share": 1, "override": "active", "health": {}, "ejection": None}
    found = instance_state(**{**facts, **changed})
    assert (found[0], found[1].startswith(reason)) == (state, True)


def instance(state: str = "ok", share: int = 1, reason: str = "") -> Any:
    return {"state": state, "share": share, "reason": reason}


@pytest.mark.parametrize(
    ("instances", "circuit", "off", "state", "reason"),
    [
        ([instance()], None, False, "ok", ""),
        ([instance()], {"state": "CLOSED"}, False, "ok", ""),
        ([], None, False, "error", "it has no instances"),
        ([instance("error", 1, "ill")], None, False, "error", "no instance takes requests: ill"),
        ([instance("warning", 0, "drained")], None, False, "error", "no instance takes requests"),
        ([instance(), instance("error")], None, False, "warning", "1 of 2 instances are not ok"),
        ([instance()], {"state": "OPEN", "reason": "3 failures"}, False, "error", "its circuit"),
        ([instance()], {"state": "HALF_OPEN"}, False, "warning", "its circuit breaker is half"),
        ([instance()], None, True, "warning", "it is in maintenance"),
    ],
)
def test_the_state_of_a_service(
    instances: list[Any], circuit: Any, off: bool, state: str, reason: str
) -> None:
    found = service_state(instances, circuit, off)
    assert (found[0], found[1].startswith(reason)) == (state, True)
