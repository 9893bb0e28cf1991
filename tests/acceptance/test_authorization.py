"""Authorization by a gateway with two workers, and the identity that it passes to a service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests

from wsgigate.auth.jwt import mint
from wsgigate.testing.backend import Backend, Received, reply

SECRET = "0123456789abcdef0123456789abcdef"

GATEWAY = f"""
[gateway]
name = "authorization"
threads = 4
resource = "https://api.example.com"
identity = {{ X-User = "subject", X-Roles = "realm_access.roles" }}
internal_token = {{ secret = "fedcba9876543210fedcba9876543210" }}
[[middleware]]
use = "logger"
format = "json"
[services.orders]
instances = ["%s"]
[[routes]]
path = "/orders/{{customer}}"
service = "orders"
[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "{SECRET}"
issuer = "https://id.example.com"
[[routes.middleware]]
use = "authorizer"
rules = [
  {{ name = "read", methods = ["GET"], roles = ["clerk", "manager"] }},
  {{ name = "write", methods = ["POST"], scopes = ["orders:write"], policy = "rules:own" }},
]
"""

POLICY = """
from wsgigate.auth.authorization import ALLOW, deny

def own(identity, facts):
    if facts.params["customer"] == "broken":
        raise RuntimeError("the secret reason")
    if identity.subject == facts.params["customer"]:
        return ALLOW
    return deny("orders of another customer")
"""


class Gate:
    def __init__(self, served: Any, backend: Backend) -> None:
        self.served = served
        self.backend = backend

    def ask(self, path: str, method: str = "GET", **claims: Any) -> requests.Response:
        """Send one request over a connection of its own, so that any worker answers."""
        headers = {"Connection": "close", "X-User": "forged", "X-Roles": "manager"}
        if claims:
            token = mint(SECRET, "HS256", "ann", iss="https://id.example.com", **claims)
            headers["Authorization"] = f"Bearer {token}"
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.served.url + path, headers=headers, timeout=20)

    def passed(self, path: str, method: str = "GET", **claims: Any) -> Received:
        before = len(self.backend.requests)
        assert self.ask(path, method, **claims).status_code == 200
        [request] = self.backend.requests[before:]
        return request


@pytest.fixture(scope="module")
def gate(
    serve_for_all: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gate]:
    folder: Path = tmp_path_factory.mktemp("policy")
    (folder / "rules.py").write_text(POLICY)
    with Backend() as backend:
        backend.answers = [reply(b"ok")]
        served = serve_for_all(GATEWAY % backend.url, workers=2, env={"PYTHONPATH": str(folder)})
        yield Gate(served, backend)


CLERK = {"realm_access": {"roles": ["clerk"]}}
WRITER = {"scope": "orders:write", **CLERK}


@pytest.mark.parametrize(
    ("method", "path", "claims", "status", "challenge"),
    [
        ("GET", "/orders/ann", {}, 401, 'scope="'),
        ("GET", "/orders/ann", {"scope": "orders:write"}, 403, None),
        ("GET", "/orders/ann", {"realm_access": {"roles": {"clerk": True}}}, 403, None),
        ("HEAD", "/orders/ann", {"roles": ["intern"]}, 403, None),
        ("POST", "/orders/ann", CLERK, 403, 'error="insufficient_scope", scope="orders:write"'),
        ("POST", "/orders/bob", WRITER, 403, None),
        ("POST", "/orders/broken", WRITER, 500, None),
        ("DELETE", "/orders/ann", WRITER, 403, None),
        ("OPTIONS", "/orders/ann", WRITER, 403, None),
    ],
)
def test_what_a_rule_forbids_reaches_no_service(
    method: str, path: str, claims: dict[str, Any], status: int, challenge: str | None, gate: Gate
) -> None:
    before = len(gate.backend.requests)
    answer = gate.ask(path, method, **claims)
    assert answer.status_code == status
    assert len(gate.backend.requests) == before
    found = answer.headers.get("WWW-Authenticate")
    assert (found is None) == (challenge is None)
    if status == 401:
        assert found is not None
        assert "/.well-known/oauth-protected-resource/orders" in found
    elif challenge is not None:
        assert challenge in str(found)
    assert "secret reason" not in answer.text


def test_a_service_gets_the_verified_caller_and_a_token_that_it_can_verify(gate: Gate) -> None:
    """Each request has a connection of its own: the keys of one worker verify for the other."""
    keys = jwt.PyJWKSet.from_dict(json.loads(gate.ask("/.well-known/jwks.json").text))
    for method in ("GET", "HEAD", "POST", "GET", "GET", "POST", "GET", "GET"):
        request = gate.passed("/orders/ann", method, **WRITER)
        assert request.values("X-User") == ["ann"]
        assert request.values("X-Roles") == ["clerk"]
        [value] = request.values("Authorization")
        token = value.removeprefix("Bearer ")
        key = keys[jwt.get_unverified_header(token)["kid"]]
        claims = jwt.decode(token, key, algorithms=["ES256"], audience="orders")
        assert (claims["sub"], claims["scope"]) == ("ann", "orders:write")
        assert claims["iss"] == "https://api.example.com"


def test_a_client_finds_the_issuer_without_a_token(gate: Gate) -> None:
    document = gate.ask("/.well-known/oauth-protected-resource/orders").json()
    assert document["authorization_servers"] == ["https://id.example.com"]
    assert document["scopes_supported"] == ["orders:write"]
