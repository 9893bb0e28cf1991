"""Challenges to clients with a bearer token or without one (RFC 6750 section 3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from wsgigate.http.problem import Problem

__all__ = [
    "CredentialsMissing",
    "bearer_challenge",
    "check_realm",
    "check_resource_metadata",
    "checked_scopes",
]

_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749 section 3.3

_QUOTED = re.compile(r"[ !\x23-\x5b\x5d-\x7e]+")


class CredentialsMissing(Problem):
    """The problem of a request that has no credential, as opposed to an invalid one.

    Middlewares that authenticate reject a request with it if the request has nothing for them to
    verify. That is how :class:`~wsgigate.AnyOf` tells an anonymous request from one whose
    credential is invalid.
    """


def bearer_challenge(
    realm: str,
    *,
    scheme: str = "Bearer",
    error: str = "",
    scope: Iterable[str] = (),
    resource_metadata: str | None = None,
    algorithms: Iterable[str] = (),
) -> tuple[str, str]:
    """Return the ``WWW-Authenticate`` field of a response with 401 or 403.

    :param realm: The name of the protected area.
    :param scheme: The scheme; others, such as ``ApiKey``, use the parameters of ``Bearer``.
    :param error: An error code of RFC 6750 section 3.1; without one, the request had no token.
    :param scope: The scopes that the request needs.
    :param resource_metadata: The URL of the resource's metadata (RFC 9728 section 5.1).
    :param algorithms: For the scheme ``DPoP``: how proofs may be signed (RFC 9449 section 7.1).
    """
    parameters = (
        ("realm", realm),
        ("error", error),
        ("scope", " ".join(sorted(scope))),
        ("resource_metadata", resource_metadata or ""),
        ("algs", " ".join(algorithms)),
    )
    listed = ", ".join(f'{name}="{value}"' for name, value in parameters if value)
    return ("WWW-Authenticate", f"{scheme} {listed}")


def checked_scopes(scopes: Sequence[str]) -> frozenset[str]:
    """Return *scopes* as a set.

    :raises ValueError: They are not a list, or one is no scope name.
    """
    if isinstance(scopes, str):
        raise ValueError(f'scopes: expected a list such as ["read"], not {scopes!r}')
    for scope in scopes:
        if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
            raise ValueError(f"scopes: {scope!r} is not a scope name (RFC 6749 section 3.3)")
    return frozenset(scopes)


def check_realm(realm: str) -> None:
    """Check that *realm* can be quoted in a challenge.

    :raises ValueError: It cannot.
    """
    if not isinstance(realm, str) or not _QUOTED.fullmatch(realm):
        raise ValueError(f"realm: printable ASCII without quotes and backslashes, not {realm!r}")


def check_resource_metadata(url: str | None) -> None:
    """Check that *url* is an absolute URL that can be quoted in a challenge.

    :raises ValueError: It is not.
    """
    if url is None:
        return
    try:
        parts = urlsplit(url) if isinstance(url, str) and _QUOTED.fullmatch(url) else None
    except ValueError:  # such as a bracket that is not closed
        parts = None
    if parts is None or parts.scheme not in ("https", "http") or not parts.netloc or " " in url:
        raise ValueError(
            f"resource_metadata: expected a URL such as "
            f'"https://api.example.com/.well-known/oauth-protected-resource", not {url!r}'
        )
