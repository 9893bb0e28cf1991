"""``python -m benchmarks.identity``: the cost of identities, authorization and tokens for services.

Microseconds of processor time, the least of many rounds that alternate between the cases, as other
work of the machine only adds. ``PyJWT signs`` is the library alone, beside the gateway's token that
is signed; requests of one caller share a token for half of its lifetime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from benchmarks.meter import least_costs
from benchmarks.table import aligned
from wsgigate import AuthorizationRule, Identity, InternalTokens
from wsgigate.auth.authorization import ALLOW, Authorization, PolicyDecision, RequestFacts

__all__ = ["costs"]

CLAIMS: dict[str, Any] = {
    "iss": "https://id.example.com/realms/shop",
    "aud": ["orders", "account"],
    "sub": "8a5cbbd9-4e9d-4a7e-b8ef-0a11d0b9b7e4",
    "azp": "storefront",
    "scope": "openid orders:read email profile",
    "realm_access": {"roles": ["offline_access", "uma_authorization", "clerk"]},
    "resource_access": {"orders": {"roles": ["refund"]}},
}

ENVIRON = {"REQUEST_METHOD": "GET", "PATH_INFO": "/orders/7"}


def _facts(environ: dict[str, Any]) -> RequestFacts:
    return RequestFacts(environ["REQUEST_METHOD"], environ["PATH_INFO"])


def _policy(identity: Identity, facts: RequestFacts) -> PolicyDecision:
    return ALLOW


def _cases() -> dict[str, Callable[[], object]]:
    caller = Identity.from_claims(CLAIMS)
    tokens = InternalTokens(secret="x" * 32)
    rules = {
        "read": AuthorizationRule(methods=["GET"], scopes=["orders:read"]),
        "write": AuthorizationRule(methods=["POST"], scopes=["orders:write"]),
    }
    roles = Authorization(rules, ("all", AuthorizationRule(roles=["clerk"])))
    policy = Authorization({}, ("all", AuthorizationRule(policy=_policy)))
    key = generate_private_key(SECP256R1())
    payload = {"iss": "a", "aud": "orders", "sub": caller.subject, "iat": 0, "exp": 60, "jti": "x"}
    return {
        "identity of a token": lambda: Identity.from_claims(CLAIMS),
        "rules": lambda: roles.decide(caller, ENVIRON, _facts),
        "policy": lambda: policy.decide(caller, ENVIRON, _facts),
        "token, shared": lambda: tokens.value(caller, "orders"),
        "token, signed": lambda: tokens.value(Identity("ann", "bearer"), "orders"),
        "PyJWT signs": lambda: jwt.encode(payload, key, "ES256", {"kid": "x"}),
    }


def costs(*, calls: int = 200, rounds: int = 50) -> dict[str, float]:
    """Return by name how many microseconds each case takes.

    :param calls: The calls of a case in each round.
    :param rounds: The number of rounds; the least counts.
    """
    return least_costs(_cases(), calls=calls, rounds=rounds)


if __name__ == "__main__":
    rows = [(name, f"{cost:.2f}") for name, cost in costs().items()]
    print(aligned([("", "CPU µs"), *rows]))
