"""Tokens for services from the file: what a service gets, and the keys that verify it."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from werkzeug.test import Client

from tests.config.files import built, errors_of
from wsgigate.auth.jwt import mint
from wsgigate.testing import Backend

SECRET = "0123456789abcdef0123456789abcdef"
INTERNAL = "fedcba9876543210fedcba9876543210"

FILE = f"""
[gateway]
resource = "https://api.example.com"
[gateway.internal_token]
secret = "{INTERNAL}"
%s
[services.orders]
instances = ["%s"]
[[routes]]
path = "/orders"
service = "orders"
[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "{SECRET}"
required = false
[[routes]]
path = "/open"
service = "orders"
[[routes]]
path = "/own"
service = "orders"
forward_authorization = true
[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "{SECRET}"
"""

OWN = f"Bearer {mint(SECRET, 'HS256', 'ann', scope='orders:read')}"


def asked(more: str, path: str, **fields: str) -> tuple[Any, Client]:
    """Return the request that the service gets, and a client of the gateway."""
    with Backend() as backend:
        client = Client(built(FILE % (more, backend.url)))
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        assert client.get(path, headers=headers, buffered=True).status_code == 200
    return backend.requests[0], client


def verified(client: Client, token: str, path: str = "/.well-known/jwks.json") -> dict[str, Any]:
    answer = client.get(path)
    assert answer.headers["Content-Type"] == "application/jwk-set+json"
    keys = jwt.PyJWKSet.from_dict(json.loads(answer.data))
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=["ES256"], audience="orders")
    return claims


def test_the_token_of_the_caller_is_replaced_by_one_of_the_gateway() -> None:
    request, client = asked("", "/orders", Authorization=OWN)
    scheme, _, token = request.value("Authorization").partition(" ")
    claims = verified(client, token)
    assert (scheme, claims["iss"]) == ("Bearer", "https://api.example.com")
    assert (claims["sub"], claims["scope"]) == ("ann", "orders:read")
    assert OWN.removeprefix("Bearer ").encode() not in request.head


def test_a_route_that_forwards_the_own_token_replaces_nothing() -> None:
    request, _ = asked("", "/own", Authorization=OWN)
    assert request.value("Authorization") == OWN


def test_nothing_is_signed_or_forwarded_without_a_verified_caller() -> None:
    """A client that knows a token of the gateway cannot use it where nothing authenticates."""
    request, _ = asked("", "/orders")
    assert request.value("Authorization") is None
    replayed, _ = asked("", "/open", Authorization="Bearer leaked")
    assert replayed.value("Authorization") is None


def test_another_field_is_the_gateways_alone() -> None:
    more = 'field = "X-Internal-Token"\nissuer = "gate"\njwks_path = "/keys"'
    forged, _ = asked(more, "/orders", X_Internal_Token="forged")
    assert forged.value("X-Internal-Token") is None
    request, client = asked(
        more, "/orders", Authorization=OWN, X_Internal_Token="forged", Connection="x-internal-token"
    )
    assert verified(client, request.value("X-Internal-Token"), "/keys")["iss"] == "gate"
    assert request.value("Authorization") is None
    kept, _ = asked(more, "/own", Authorization=OWN)
    assert kept.value("Authorization") == OWN
    assert kept.value("X-Internal-Token")


def test_the_keys_are_public_whatever_authenticates() -> None:
    everywhere = (
        f"[[middleware]]\nuse = 'authenticator'\nalgorithms = ['HS256']\nsecret = '{SECRET}'\n"
    )
    client = Client(built(FILE % ("", "http://127.0.0.1:1") + everywhere))
    assert client.get("/orders").status_code == 401
    published: Any = client.get("/.well-known/jwks.json").json
    assert len(published["keys"]) == 3
    assert client.head("/.well-known/jwks.json").data == b""
    assert client.post("/.well-known/jwks.json").status_code == 405


@pytest.mark.parametrize(
    ("more", "path", "said"),
    [
        ("lifetime = '1s'", "gateway.internal_token.lifetime", "5 s to an hour"),
        ("rotate_every = '1m'", "gateway.internal_token.rotate_every", "at least an hour"),
        ("claims = { exp = 'level' }", "gateway.internal_token.claims", "sets exp itself"),
        ("jwks_path = 'keys'", "gateway.internal_token.jwks_path", "a path"),
        ("secrets = 'a'", "gateway.internal_token.secrets", '"secret"'),
    ],
)
def test_an_invalid_option_is_an_error_at_its_key(more: str, path: str, said: str) -> None:
    assert said in dict(errors_of(FILE % (more, "http://127.0.0.1:1")))[path]


def test_a_short_secret_is_an_error_that_does_not_show_it() -> None:
    text = (FILE % ("", "http://127.0.0.1:1")).replace(INTERNAL, "hunter2")
    found = dict(errors_of(text))["gateway.internal_token.secret"]
    assert "at least 32 are required" in found
    assert "hunter2" not in found
