"""Probes for machines: when a gateway gets requests, and how it answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from werkzeug.test import Client

from wsgigate.admin.probes import ReadinessFacts, livez, readiness, readyz

NEEDS_TWO = {"available": {"orders": 1}, "required": {"orders": 2}}


@pytest.mark.parametrize(
    ("facts", "failed"),
    [
        ({}, {}),
        ({"stopping": True}, {"running": "the server stops"}),
        ({"maintenance": True}, {"in-service": "the gateway is in maintenance"}),
        (
            {"unanswered": ("users", "orders")},
            {"discovery": "no answer yet about the instances of users, orders"},
        ),
        (NEEDS_TWO, {"service:orders": "1 of 2 instances are available"}),
        ({"required": {"orders": 1}}, {"service:orders": "0 of 1 instances are available"}),
        ({"available": {"orders": 2}, "required": {"orders": 2}}, {}),
        ({"available": {"orders": 0}}, {}),  # a dead service alone makes no gateway unready
    ],
)
def test_the_conditions_of_readiness(facts: dict[str, Any], failed: dict[str, str]) -> None:
    conditions = readiness(ReadinessFacts(**facts))
    assert {name: why for name, why in conditions.items() if why} == failed


def client(**facts: Any) -> Client:
    return Client(readyz(lambda: ReadinessFacts(**facts)))


def test_a_ready_gateway_answers_ok() -> None:
    response = client().get("/readyz")
    assert (response.status_code, response.text) == (200, "ok\n")
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-store"


def test_a_gateway_that_is_not_ready_names_the_failed_conditions() -> None:
    response = client(stopping=True, **NEEDS_TWO).get("/readyz")
    assert response.status_code == 503
    assert response.text == (
        "[-] running: the server stops\n"
        "[-] service:orders: 1 of 2 instances are available\n"
        "failed\n"
    )


def test_verbose_lists_all_conditions() -> None:
    response = client(**NEEDS_TWO).get("/readyz?verbose")
    assert response.text.splitlines() == [
        "[+] running",
        "[+] in-service",
        "[+] discovery",
        "[-] service:orders: 1 of 2 instances are available",
        "failed",
    ]


def test_json_is_sent_where_it_is_accepted() -> None:
    response = client(**NEEDS_TWO).get("/readyz", headers={"Accept": "application/json"})
    assert json.loads(response.data) == {
        "status": "failed",
        "conditions": {"service:orders": "1 of 2 instances are available"},
    }


@pytest.mark.parametrize("app", [livez, readyz(ReadinessFacts)])
def test_a_probe_by_head_has_no_body(app: Any) -> None:
    response = Client(app).head("/x")
    assert (response.status_code, response.data) == (200, b"")
    assert response.headers["Content-Length"] == "3"


@pytest.mark.parametrize("app", [livez, readyz(ReadinessFacts)])
def test_other_methods_are_rejected(app: Any) -> None:
    response = Client(app).post("/x")
    assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")
