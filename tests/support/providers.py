"""Access tokens as the large providers issue them, claim by claim, signed by a key of the tests."""

from __future__ import annotations

from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from wsgigate.auth.jwt import mint

NOW = 1_700_000_000

_TIMES = {"iat": NOW - 60, "nbf": NOW - 60, "exp": NOW + 3540}

TENANT = "9122040d-6c67-4c5b-b112-36a304b66dad"

TOKENS: dict[str, dict[str, Any]] = {
    "auth0": {
        "iss": "https://shop.eu.auth0.com/",
        "sub": "auth0|65f1c0ffee00000000000001",
        "aud": ["https://orders.example.com", "https://shop.eu.auth0.com/userinfo"],
        "iat": NOW - 60,
        "exp": NOW + 86340,
        "azp": "my_client_id",
        "scope": "openid profile read:orders",
        "permissions": ["read:orders", "write:orders"],
        "https://example.com/roles": ["clerk"],
    },
    "keycloak": {
        **{name: value for name, value in _TIMES.items() if name != "nbf"},
        "jti": "onrtro:6d5ab3a9-0d1f-4a0e-93a1-55fa04c1b0cc",
        "iss": "https://id.example.com/realms/shop",
        "aud": ["orders", "account"],
        "sub": "8a5cbbd9-4e9d-4a7e-b8ef-0a11d0b9b7e4",
        "typ": "Bearer",
        "azp": "storefront",
        "sid": "ee0d6bb0-b0c2-4a7e-9b59-1c6b0f2a7d0d",
        "acr": "1",
        "allowed-origins": ["https://shop.example.com"],
        "realm_access": {"roles": ["offline_access", "uma_authorization", "clerk"]},
        "resource_access": {
            "orders.api": {"roles": ["refund"]},
            "account": {"roles": ["manage-account", "view-profile"]},
        },
        "scope": "openid orders:read email profile",
        "groups": ["/staff/berlin"],
        "email_verified": True,
        "preferred_username": "ada",
    },
    "entra-v1": {
        **_TIMES,
        "aud": "api://orders",
        "iss": f"https://sts.windows.net/{TENANT}/",
        "aio": "E2NgYJi/2HKfwrgtDw==",
        "appid": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
        "appidacr": "1",
        "groups": ["3be36a4e-9b7a-4d0f-8f0c-d0e7c3bb1a11"],
        "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474",
        "roles": ["Orders.Clerk"],
        "scp": "Orders.Read Orders.Write",
        "sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
        "tid": TENANT,
        "ver": "1.0",
    },
    "entra-v2": {
        **_TIMES,
        "aud": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
        "iss": f"https://login.microsoftonline.com/{TENANT}/v2.0",
        "azp": "storefront-app-id",
        "azpacr": "1",
        "name": "Ada Lovelace",
        "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474",
        "preferred_username": "ada@example.com",
        "roles": ["Orders.Clerk"],
        "scp": "Orders.Read",
        "sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
        "tid": TENANT,
        "uti": "nEEgxG-2WkS2QsNDXxYjAA",
        "ver": "2.0",
        # more than 200 groups: the token has a link instead of them
        "_claim_names": {"groups": "src1"},
        "_claim_sources": {"src1": {"endpoint": "https://graph.example.com/getMemberObjects"}},
    },
    "cognito": {
        "sub": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
        "cognito:groups": ["clerks", "berlin"],
        "iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_example",
        "version": 2,
        "client_id": "57cbishk4j24pabc1234567890",
        "origin_jti": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
        "token_use": "access",
        "scope": "https://orders.example.com/orders.read openid",
        "auth_time": NOW - 60,
        "exp": NOW + 3540,
        "iat": NOW - 60,
        "jti": "cccccccc-bbbb-cccc-dddd-eeeeeeeeeeee",
        "username": "ada",
    },
    "okta": {
        "ver": 1,
        "jti": "AT.0mP4JKAZX1iACIT4vbEDF7LpvDVjxypPMf0D7uX39RE",
        "iss": "https://shop.okta.com/oauth2/default",
        "aud": "api://default",
        "iat": NOW - 60,
        "exp": NOW + 3540,
        "cid": "0oa3kz1storefront",
        "uid": "00uid4BxXw6I6TV4m0g3",
        "scp": ["orders:read", "openid"],
        "auth_time": NOW - 60,
        "sub": "ada@example.com",
        "groups": ["Order Clerks", "Everyone"],
    },
    "google": {
        "iss": "https://accounts.google.com",
        "azp": "1234987819200.apps.googleusercontent.com",
        "aud": "1234987819200.apps.googleusercontent.com",
        "sub": "10769150350006150715113082367",
        "at_hash": "HK6E_P6Dh8Y93mRNtsDB1Q",
        "hd": "example.com",
        "email": "ada@example.com",
        "email_verified": True,
        "iat": NOW - 60,
        "exp": NOW + 3540,
    },
}
"""The claims of each provider's token; Google's is an ID token, which is what services verify."""


@cache
def keys() -> tuple[str, str]:
    """Return the private and the public key of the tests, as PEM text."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


@cache
def token(provider: str) -> str:
    """Return the signed token of *provider*."""
    return mint(keys()[0], "RS256", "", **TOKENS[provider])
