"""The verified caller of a request, whichever way it was authenticated.

A middleware that authenticates removes what ``environ`` holds under :data:`IDENTITY` before it
decides anything, and sets it only for a caller that it has verified. Everything behind it reads the
caller there: authorization, limits, the identity fields of the backend, and applications.

An identity is shared by the requests of one token and by threads, so it cannot be changed: its
claims are read-only all the way down, with tuples for lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from wsgigate.auth.claims import granted_scopes
from wsgigate.http.wsgi import IDENTITY

__all__ = ["IDENTITY", "Identity"]

_CLIENTS = (
    "azp",  # OpenID Connect: Auth0, Keycloak, Entra v2, Google
    "client_id",  # RFC 9068 section 2.2: Cognito and others
    "appid",  # Entra v1
    "cid",  # Okta
)


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified caller, in ``environ["wsgigate.identity"]``.

    :param subject: The user or service that the credential speaks of, such as the ``sub`` of a
        token or the owner of an API key; None if the credential names none.
    :param scheme: How it was verified: ``"bearer"`` for tokens (JWT), ``"dpop"`` for those with a
        proof of their key, ``"introspection"`` for tokens that the authorization server was asked
        about, ``"forward-auth"`` for callers that another service names, ``"basic"`` for passwords,
        ``"api-key"`` for API keys, ``"signature"`` for signed requests, ``"session"`` for the login
        of an app, ``"mtls"`` for client certificates, ``"webhook"`` for signed webhooks.
    :param issuer: The issuer of the credential, such as the ``iss`` of a token.
    :param client: The application that sends the request: ``azp``, ``client_id``, ``appid`` or
        ``cid`` of a token, the id of an API key.
    :param claims: All that is known of the caller, by name. They are copied and read-only; a list
        becomes a tuple.
    :param scopes: What the credential permits.
    :raises TypeError: *scopes* is a single text, whose letters would count as scopes.
    """

    subject: str | None
    scheme: str
    issuer: str | None = None
    client: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    scopes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "claims", _read_only(self.claims))
        if self.scopes.__class__ is not frozenset:
            scopes: Any = self.scopes  # a set or a list of a caller without a type checker
            if isinstance(scopes, str):
                example = scopes.split() or ["orders:read"]
                raise TypeError(
                    f"scopes: expected a set or a list, such as {example!r}, got {scopes!r}"
                )
            object.__setattr__(self, "scopes", frozenset(scopes))

    @classmethod
    def from_claims(cls, claims: Mapping[str, Any], *, scheme: str = "bearer") -> Identity:
        """Return the identity of a verified token with these *claims*.

        A claim of another type than a text counts as missing.
        """
        return cls(
            subject=_text(claims, "sub"),
            scheme=scheme,
            issuer=_text(claims, "iss"),
            client=next((found for name in _CLIENTS if (found := _text(claims, name))), None),
            claims=claims,
            scopes=granted_scopes(claims),
        )


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    return value if isinstance(value, str) and value else None


def _read_only(value: Any) -> Any:
    kind = value.__class__
    if kind in _IMMUTABLE:  # most claims: one look-up instead of the questions below
        return value
    if kind is dict or isinstance(value, Mapping):
        return MappingProxyType({name: _read_only(each) for name, each in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple([_read_only(each) for each in value])
    return value


_IMMUTABLE = frozenset((str, int, float, bool, type(None)))
