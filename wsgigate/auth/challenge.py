"""Challenges to clients with a bearer token or without one (RFC 6750 section 3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import ceil
from urllib.parse import urlsplit
from wsgiref.types import WSGIApplication

from wsgigate.http.problem import Problem, Refuse

__all__ = [
    "CredentialsMissing",
    "TokenResponses",
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


_OFFERED = {"off": ("Bearer",), "optional": ("Bearer", "DPoP"), "required": ("DPoP",)}
"""The schemes of challenges by the mode of DPoP."""


class TokenResponses:
    """The responses to requests without a valid token, with a challenge for each accepted scheme.

    :param refuse: A function that turns a problem into the WSGI app that responds with it.
    :param realm: The name of the protected area.
    :param resource_metadata: The URL of the resource's metadata.
    :param scopes: The scopes that a token must grant.
    :param dpop: Whether proofs (DPoP) are checked: ``"off"``, ``"optional"`` or ``"required"``.
    :param algorithms: How proofs may be signed.
    :param invalid_status: The status for an invalid token.
    :raises ValueError: *realm* or *resource_metadata* cannot be in a challenge.
    :ivar missing: The response to a request without a token.
    """

    def __init__(
        self,
        refuse: Refuse,
        *,
        realm: str,
        resource_metadata: str | None = None,
        scopes: Iterable[str] = (),
        dpop: str = "off",
        algorithms: Sequence[str] = (),
        invalid_status: int = 401,
    ) -> None:
        check_realm(realm)
        check_resource_metadata(resource_metadata)
        self._refuse = refuse
        self._realm = realm
        self._metadata = resource_metadata
        self._offered = _OFFERED[dpop]
        self._algorithms = algorithms
        self.missing = self._made(401, "Access token required!")
        self._rejections: dict[tuple[str, str], WSGIApplication] = {}
        for scheme in self._offered:
            for error, status, detail, scope in (
                ("invalid_token", invalid_status, "Invalid or expired token!", ()),
                ("insufficient_scope", 403, "Insufficient scope.", scopes),
                ("invalid_dpop_proof", 401, "Invalid proof (DPoP)!", ()),
            ):
                if error != "invalid_dpop_proof" or scheme == "DPoP":
                    made = self._made(status, detail, error, scope=scope, scheme=scheme)
                    self._rejections[error, scheme] = made

    def of(self, error: str, *, with_proof: bool = False, nonce: str = "") -> WSGIApplication:
        """Return the response to a token that is rejected with the code *error*.

        :param with_proof: Whether it was sent with the scheme ``DPoP``, which is accepted.
        :param nonce: The nonce that a proof must have, for ``use_dpop_nonce``.
        """
        if error == "use_dpop_nonce":
            return self._made(
                401,
                "A nonce is required in the proof (DPoP).",
                error,
                scheme="DPoP",
                headers=(("DPoP-Nonce", nonce), ("Cache-Control", "no-store")),
            )
        return self._rejections[error, "DPoP" if with_proof else self._offered[0]]

    def unknown(self, again_in: float) -> WSGIApplication:
        """Return the response to a token of which it is not known whether it is valid.

        :param again_in: Seconds after which another request may succeed.
        """
        again = (("Retry-After", str(max(1, ceil(again_in)))),)
        return self._refuse(Problem(503, "Tokens cannot be checked at the moment.", headers=again))

    def _made(
        self,
        status: int,
        detail: str,
        error: str = "",
        *,
        scope: Iterable[str] = (),
        scheme: str = "Bearer",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> WSGIApplication:
        """Return a response; *error* is in the challenge of *scheme*, which the client used."""
        challenges = [
            bearer_challenge(
                self._realm,
                scheme=each,
                error=error if each == scheme else "",
                scope=scope,
                resource_metadata=self._metadata,
                algorithms=self._algorithms if each == "DPoP" else (),
            )
            for each in self._offered
        ]
        kind = Problem if error else CredentialsMissing
        return self._refuse(kind(status, detail, headers=(*challenges, *headers)))


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
