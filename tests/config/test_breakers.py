"""Circuit breakers of services: shared by all routes, reported and reset by the admin endpoints."""

from __future__ import annotations

import pytest
from werkzeug.test import Client

from tests.config.files import built, errors_of
from tests.support.logs import silence
from wsgigate.gateway import Gateway
from wsgigate.testing.backend import Backend, reply

ADMIN = "a-token-of-32-or-more-characters"
BEARER = {"Authorization": f"Bearer {ADMIN}"}
BAD = reply(b"no", status="500 Internal Server Error")


_silent = silence("wsgigate.circuits")


def made(
    backend: Backend, breaker: str, admin: str = f'token = "{ADMIN}"', store: str = ""
) -> Gateway:
    text = f"""
        [admin]
        {admin}
        [services.orders]
        instances = ["{backend.url}"]
        {breaker}
        [services.others]
        instances = ["{backend.url}"]
        [[routes]]
        path = "/orders"
        service = "orders"
        [[routes]]
        path = "/archive"
        service = "orders"
        [[routes]]
        path = "/others"
        service = "others"
    """
    return built(text, store=f'[store]\nurl = "{store or "memory:"}"\n')


def test_routes_of_a_service_share_its_circuit_and_the_admin_can_reset_it(
    backend: Backend,
) -> None:
    backend.answers = [BAD, BAD, BAD, reply(b"well")]
    client = Client(made(backend, 'breaker = { consecutive_failures = 2, open_for = "60s" }'))
    assert client.get("/orders").status_code == client.get("/archive").status_code == 500
    refused = client.get("/orders")
    assert (refused.status_code, refused.get_json()["error"]) == (503, "Circuit breaker open")
    assert client.get("/others").status_code == 500  # a service of its own
    told = client.get("/_gateway/circuit-breakers").get_json()
    assert list(told["circuitBreakers"]) == ["orders"]
    assert told["circuitBreakers"]["orders"]["state"] == "OPEN"
    assert client.get("/_gateway/health").get_json()["circuitBreakers"] == told["circuitBreakers"]
    reset = "/_gateway/circuit-breakers/orders/reset"
    assert client.post(reset).status_code == 401
    assert client.get("/orders").status_code == 503
    assert client.post(reset, headers=BEARER).get_json() == {
        "success": True,
        "message": "Circuit breaker reset for orders",
    }
    assert client.get("/orders").data == b"well"


@pytest.mark.parametrize(
    ("breaker", "opens"),
    [
        ("breaker = {}", False),  # 5 in a row is for connections alone, 50 % needs 20 calls
        ("breaker = { minimum_calls = 5 }", True),
        ("breaker = { minimum_calls = 5, failure_rate = 0 }", False),
        ("breaker = { consecutive_failures = 5 }", True),
        ("breaker = { consecutive_failures = 5, statuses = [503] }", False),
        ("", False),
    ],
)
def test_the_file_sets_which_failures_open_the_circuit(
    backend: Backend, breaker: str, opens: bool
) -> None:
    backend.answers = [BAD]
    client = Client(made(backend, breaker))
    answers = [client.get("/orders").status_code for _ in range(6)]
    assert answers == [500] * 5 + [503 if opens else 500]


def test_workers_share_the_state_of_a_circuit(backend: Backend, tmp_path: object) -> None:
    backend.answers = [BAD]
    breaker, store = "breaker = { consecutive_failures = 2 }", f"lmdb:{tmp_path}/store"
    first, second = (made(backend, breaker, store=store) for _ in range(2))
    for _ in range(2):
        Client(first).get("/orders")
    assert Client(second).get("/orders").status_code == 503
    first.close()
    second.close()


def test_no_circuit_is_reported_without_a_breaker(backend: Backend) -> None:
    client = Client(made(backend, ""))
    assert "circuitBreakers" not in client.get("/_gateway/health").get_json()
    assert client.get("/_gateway/circuit-breakers").status_code == 404


def test_without_an_admin_token_circuits_are_listed_but_cannot_be_reset(backend: Backend) -> None:
    client = Client(made(backend, "breaker = {}", admin=""))
    assert client.get("/_gateway/circuit-breakers").status_code == 200
    assert client.post("/_gateway/circuit-breakers/orders/reset").status_code == 403


def test_the_404_does_not_list_the_circuit_endpoints(backend: Backend) -> None:
    lost = Client(made(backend, "breaker = {}")).get("/nowhere").get_json()
    assert not [line for line in lost["availableRoutes"] if "circuit" in line]


@pytest.mark.parametrize(
    ("breaker", "path", "said"),
    [
        ("breaker = 3", "services.orders.breaker", "expected a table"),
        ("breaker = { failures = 3 }", "services.orders.breaker.failures", "did you mean"),
        ("breaker = { statuses = [404] }", "services.orders.breaker.statuses[0]", "500 to 599"),
        (
            'breaker = { open_for = "60s", open_at_most = "5s" }',
            "services.orders.breaker",
            "open_at_most is not less than open_for",
        ),
    ],
)
def test_errors_are_reported_at_their_key(breaker: str, path: str, said: str) -> None:
    errors = errors_of(f'[services.orders]\ninstances = ["http://a.test"]\n{breaker}\n')
    assert said in dict(errors)[path]
