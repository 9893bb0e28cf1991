"""The claims of verified tokens, as the providers write them: which scopes a token grants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["granted_scopes"]

_SCOPES = (
    "scope",  # RFC 8693 section 4.2, RFC 9068: Keycloak, Cognito, Auth0
    "scp",  # Entra (a text), Okta (a list)
    "scopes",
    "permissions",  # Auth0, with role-based access control
)


def granted_scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the scopes in ``scope`` (RFC 8693 section 4.2), ``scp``, ``scopes``, ``permissions``.

    Each is a text of names separated by spaces, or a list of names; anything else grants nothing.
    """
    granted: set[str] = set()
    for name in _SCOPES:
        value = claims.get(name)
        if isinstance(value, str):
            granted.update(value.split(" "))
        elif isinstance(value, (list, tuple)):
            granted.update(item for item in value if isinstance(item, str))
    return frozenset(granted - {""})
