"""The tokens of real providers, through the authenticator: who calls, and with which scopes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.providers import NOW, TOKENS, keys, token
from tests.support.tokens import Gate
from wsgigate import Identity
from wsgigate.http.wsgi import IDENTITY

EXPECTED: dict[str, tuple[str, set[str]]] = {
    "auth0": ("my_client_id", {"openid", "profile", "read:orders", "write:orders"}),
    "keycloak": ("storefront", {"openid", "orders:read", "email", "profile"}),
    "entra-v1": ("6e74172b-be56-4843-9ff4-e66a39bb12e3", {"Orders.Read", "Orders.Write"}),
    "entra-v2": ("storefront-app-id", {"Orders.Read"}),
    "cognito": (
        "57cbishk4j24pabc1234567890",
        {"https://orders.example.com/orders.read", "openid"},
    ),
    "okta": ("0oa3kz1storefront", {"orders:read", "openid"}),
    "google": ("1234987819200.apps.googleusercontent.com", set()),
}


@pytest.mark.parametrize("provider", TOKENS)
def test_the_token_of_a_provider_becomes_an_identity(provider: str) -> None:
    claims: dict[str, Any] = TOKENS[provider]
    audience = claims.get("aud")
    gate = Gate(
        algorithms=["RS256"],
        public_key=keys()[1],
        issuer=claims["iss"],
        audience=audience[0] if isinstance(audience, list) else audience,
        clock=lambda: float(NOW),
    )
    assert gate.bearer(token(provider)) == (200, "")
    identity = gate.seen[-1][IDENTITY]
    client, scopes = EXPECTED[provider]
    assert identity == Identity(
        subject=claims["sub"],
        scheme="bearer",
        issuer=claims["iss"],
        client=client,
        claims=claims,
        scopes=frozenset(scopes),
    )
