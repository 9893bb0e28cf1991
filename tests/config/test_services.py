"""What a service gets to see when the file says so, on a real socket of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from werkzeug.test import Client

from wsgigate.config.build import build
from wsgigate.config.errors import Errors
from wsgigate.config.load import parse
from wsgigate.config.services import Check, Probe, Services
from wsgigate.discovery import Instance
from wsgigate.gateway import Gateway
from wsgigate.testing.backend import Backend, reply
from wsgigate.tokens import mint

SECRET = "a-secret-of-at-least-thirty-two-bytes"
AUTHENTICATOR = f'{{ use = "authenticator", algorithms = ["HS256"], secret = "{SECRET}" }}'

Make = Callable[[str], Client]


@pytest.fixture
def make(backend: Backend) -> Iterator[Make]:
    """Yield what makes a client of a gateway whose one route goes to the backend."""
    made: list[Gateway] = []

    def make(rest: str) -> Client:
        text = f"""
            [gateway]
            via = "here"
            identity = {{ X-User-Id = "sub" }}
            [store]
            url = "memory:"
            [services.orders]
            instances = ["{backend.url}"]
            [[routes]]
            service = "orders"
            {rest}
        """
        made.append(build(parse(text, environ={})))
        return Client(made[-1])

    yield make
    for gateway in made:
        gateway.close()


@pytest.mark.parametrize(
    ("rest", "asked", "arrives"),
    [
        ('path = "/api"', "/api/a?x=1", "/api/a?x=1"),
        ('path = "/api"\nstrip_prefix = true', "/api/a?x=1", "/a?x=1"),
        ('path = "/api"\nstrip_prefix = true', "/api", "/"),
        ('path = "/api/orders"\nstrip_prefix = "/api"', "/api/orders/7", "/orders/7"),
        ('path = "/api"\nstrip_prefix = true\nadd_prefix = "/v1"', "/api/a", "/v1/a"),
        ('path = "/t/{tenant}"\nstrip_prefix = true', "/t/acme/a", "/a"),
        ('paths = ["/a", "/b"]\nstrip_prefix = true', "/b/c", "/c"),
        ('path = "/"\nencoded_slash = "keep"', "/a%2fb", "/a%2Fb"),
    ],
)
def test_the_path_arrives_as_the_route_says(
    backend: Backend, make: Make, rest: str, asked: str, arrives: str
) -> None:
    response = make(rest).get(asked)
    assert response.status_code == 200
    assert backend.requests[0].line == f"GET {arrives} HTTP/1.1"


def test_fields_are_changed_as_the_route_says(backend: Backend, make: Make) -> None:
    backend.answers = [reply(fields=[("X-Powered-By", "magic"), ("X-Kept", "1")])]
    response = make(
        'path = "/"\n'
        'request_fields = { set = { X-From = "gateway" }, remove = ["X-Less"] }\n'
        'response_fields = { add = { X-More = "2" }, remove = ["X-Powered-By"] }'
    ).get("/", headers={"X-Less": "1", "X-From": "client"})
    request = backend.requests[0]
    assert request.values("X-From") == ["gateway"]
    assert request.value("X-Less") is None
    assert request.value("Via") == "1.1 here"
    assert response.headers["X-More"] == "2"
    assert response.headers["X-Kept"] == "1"
    assert "X-Powered-By" not in response.headers


@pytest.mark.parametrize(
    ("rest", "arrives"), [("", None), ("forward_authorization = true", "Bearer ")]
)
def test_the_service_is_told_who_the_caller_is(
    backend: Backend, make: Make, rest: str, arrives: str | None
) -> None:
    client = make(f'path = "/"\nmiddleware = [{AUTHENTICATOR}]\n{rest}')
    token = mint(SECRET, "HS256", "7")
    client.get("/", headers={"Authorization": f"Bearer {token}", "X-User-Id": "admin"})
    request = backend.requests[0]
    assert request.values("X-User-Id") == ["7"]
    assert request.value("Authorization") == (arrives and arrives + token)


@pytest.mark.parametrize("preserved", [True, False])
def test_the_host_is_the_clients_when_the_route_says_so(
    backend: Backend, make: Make, preserved: bool
) -> None:
    client = make(f'path = "/"\npreserve_host = {"true" if preserved else "false"}')
    client.get("/", headers={"Host": "shop.example"})
    assert (backend.requests[0].value("Host") == "shop.example") is preserved


def test_health_is_asked_for_with_the_tls_settings_of_the_service(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    services = Services(
        parse(
            """
            [services.public]
            instances = ["https://a.example"]
            health = { path = "/health" }
            [services.private]
            instances = ["https://b.example"]
            health = { path = "/health" }
            tls = { ca = "ca.pem" }
            [services.careless]
            instances = ["https://c.example"]
            health = { path = "/health", interval = "1m" }
            tls = { verify = false }
            """
        ),
        via="here",
        identity={},
        folder=tmp_path,
        errors=Errors(),
    )
    assert services.checks == {
        "public": Check("/health", verify=True),
        "private": Check("/health", verify=str(tmp_path / "ca.pem")),
        "careless": Check("/health", interval=60.0, verify=False),
    }


def test_a_health_check_reaches_the_instance(backend: Backend) -> None:
    check = Check("/health")
    outcome = Probe([check])(Instance(backend.url), check)
    assert outcome.ok
    assert backend.requests[0].line == "GET /health HTTP/1.1"
