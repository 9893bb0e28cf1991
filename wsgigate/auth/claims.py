"""The claims of verified tokens, as the providers write them: what they grant and must contain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from wsgigate.http.bodies import shown
from wsgigate.rules.arguments import Range
from wsgigate.rules.claims import ClaimPath

__all__ = [
    "DEEPEST",
    "ClaimRequirements",
    "ClaimValue",
    "ClaimValues",
    "RequiredClaims",
    "granted_scopes",
    "is_deeper",
]

DEEPEST = 64
"""Maximum number of levels of claims inside others; no issuer comes near it."""


def is_deeper(value: dict[str, Any] | list[Any], most: int) -> bool:
    """Return whether *value*, parsed JSON, has more than *most* levels."""
    if not most:
        return True
    inner = value.values() if isinstance(value, dict) else value
    return any(isinstance(each, (dict, list)) and is_deeper(each, most - 1) for each in inner)


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
    granted.discard("")
    return frozenset(granted)


ClaimValue: TypeAlias = str | int | float | bool

ClaimValues: TypeAlias = Annotated[Sequence[ClaimValue], Range(1)]

RequiredClaims: TypeAlias = Sequence[str] | Mapping[str, ClaimValue | ClaimValues]
"""Paths of required claims, or paths with the required value or list of allowed values."""


class ClaimRequirements:
    """The claims that a verified caller must have.

    :param given: Paths of claims, or a table of paths and values: the claim must equal the value,
        or one of a list of values. A claim that is a list must contain one of them.
    :param setting: The name of the option, for errors.
    :raises ValueError: *given* is malformed; the message names the option and the claim.
    """

    def __init__(self, given: RequiredClaims, setting: str) -> None:
        self._setting = setting
        if isinstance(given, Mapping):
            claims = [(self._path(path), self._allowed(path, given[path])) for path in given]
        elif isinstance(given, str) or not isinstance(given, Sequence):
            raise ValueError(
                f'{setting}: a list of names, or a table such as {{"token_type": "access"}}, '
                f"not {given!r}"
            )
        else:
            claims = [(self._path(path), ()) for path in given]
        self._claims: tuple[tuple[ClaimPath, tuple[ClaimValue, ...]], ...] = tuple(claims)

    def __bool__(self) -> bool:
        return bool(self._claims)

    def allowed(self, path: str) -> tuple[ClaimValue, ...]:
        """Return the allowed values of the claim *path*; empty if any value or none is required."""
        names = ClaimPath(path).names
        return next((values for known, values in self._claims if known.names == names), ())

    def unmet(self, claims: Mapping[str, Any]) -> str:
        """Return what *claims* lack, for the log; empty if nothing."""
        for path, allowed in self._claims:
            value = path.find(claims, _MISSING)
            if value is _MISSING:
                return f"no {path}"
            if allowed and not _is_one_of(value, allowed):
                return f"{path} is {shown(value)}"
        return ""

    def _path(self, path: object) -> ClaimPath:
        if not isinstance(path, str) or not path:
            raise ValueError(f"{self._setting}: the name of a claim is a text, not {path!r}")
        try:
            return ClaimPath(path)
        except ValueError as error:
            raise ValueError(f"{self._setting}: {error}") from None

    def _allowed(self, path: object, value: object) -> tuple[ClaimValue, ...]:
        values = tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else (value,)
        if not values:
            raise ValueError(f"{self._setting}: {path}: an empty list would reject every token")
        for one in values:
            if isinstance(one, Mapping) and one:
                raise ValueError(
                    f"{self._setting}: {path}: a claim inside another is written as one text in "
                    f'quotes, such as "{path}.{next(iter(one))}"'
                )
            if not isinstance(one, (str, int, float)):
                raise ValueError(
                    f"{self._setting}: {path}: a text, a number, true or false, or a list of "
                    f"these, not {value!r}"
                )
        return values


_MISSING = object()


def _is_one_of(claim: object, allowed: tuple[ClaimValue, ...]) -> bool:
    if isinstance(claim, (list, tuple)):
        return any(
            _is_one_of(item, allowed) for item in claim if not isinstance(item, (list, tuple))
        )
    # 1 is not true, although they are equal in Python
    return any(
        claim == value and isinstance(claim, bool) is isinstance(value, bool) for value in allowed
    )
