"""Metadata of protected resources (RFC 9728): how clients find the authorization server.

A client that gets a 401 reads the URL of the metadata in ``WWW-Authenticate``, or makes it from the
URL of the resource. The document names the issuers whose tokens are accepted, the scopes, and
whether tokens are to be bound to their client (RFC 9449, RFC 8705).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from wsgigate.auth.challenge import checked_scopes

__all__ = ["WELL_KNOWN", "ProtectedResource", "check_url"]

WELL_KNOWN = "/.well-known/oauth-protected-resource"

_WITH_KEY_PAIR = re.compile(r"(?:ES|PS|RS)[0-9]{3}K?|Ed[A-Z0-9]+")  # neither "none" nor "HS256"


@dataclass(frozen=True, slots=True)
class ProtectedResource:
    """A resource that requires access tokens.

    :param url: The URL that clients use, such as ``https://api.example.com/orders``.
    :param authorization_servers: The issuers of the tokens that it accepts: URLs.
    :param scopes: The scopes that requests may require.
    :param name: A name for people.
    :param documentation: The URL of a page for developers.
    :param dpop_algorithms: The signature algorithms of proofs (DPoP) that it accepts, as
        ``dpop_algorithms`` of an :class:`~wsgigate.Authenticator`.
    :param dpop_required: Whether it accepts tokens with a proof only.
    :param certificate_bound: Whether it accepts tokens that are bound to the client's certificate.
    :raises ValueError: An argument is invalid; the message names it.
    """

    url: str
    authorization_servers: tuple[str, ...] = ()
    scopes: frozenset[str] = frozenset()
    name: str = ""
    documentation: str = ""
    dpop_algorithms: tuple[str, ...] = ()
    dpop_required: bool = False
    certificate_bound: bool = False

    def __post_init__(self) -> None:
        check_url("url", self.url)
        object.__setattr__(self, "url", self.url.removesuffix("/"))
        object.__setattr__(self, "authorization_servers", tuple(self.authorization_servers))
        object.__setattr__(self, "scopes", checked_scopes(tuple(self.scopes)))
        for issuer in self.authorization_servers:
            check_url("authorization_servers", issuer)
        object.__setattr__(self, "dpop_algorithms", tuple(self.dpop_algorithms))
        for algorithm in self.dpop_algorithms:
            if not isinstance(algorithm, str) or not _WITH_KEY_PAIR.fullmatch(algorithm):
                raise ValueError(
                    "dpop_algorithms: expected signature algorithms of key pairs, such as "
                    f'"ES256", not {algorithm!r}'
                )
        if self.dpop_required and not self.dpop_algorithms:
            raise ValueError('dpop_required: requires dpop_algorithms, such as ["ES256"]')

    @property
    def metadata_path(self) -> str:
        """The path of the document: the well-known path comes before that of the resource."""
        return WELL_KNOWN + urlsplit(self.url).path

    @property
    def metadata_url(self) -> str:
        """The URL of the document, for challenges."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{self.metadata_path}"

    def document(self) -> dict[str, object]:
        """Return the document, without members that are not known, or false."""
        members: dict[str, object] = {
            "resource": self.url,
            "resource_name": self.name,
            "authorization_servers": list(self.authorization_servers),
            "scopes_supported": sorted(self.scopes),
            "bearer_methods_supported": ["header"],
            "resource_documentation": self.documentation,
            "tls_client_certificate_bound_access_tokens": self.certificate_bound,
            "dpop_signing_alg_values_supported": list(self.dpop_algorithms),
            "dpop_bound_access_tokens_required": self.dpop_required,
        }
        return {name: value for name, value in members.items() if value}


def check_url(setting: str, url: object) -> None:
    """Check that *url* identifies a resource or an issuer.

    :raises ValueError: It is not an ``https`` URL without query and fragment, nor an ``http`` URL
        of this machine.
    """
    if not _identifies(url):
        raise ValueError(
            f"{setting}: expected an https URL without a query, such as "
            f'"https://api.example.com", not {url!r}; http only for localhost'
        )


def _identifies(url: object) -> bool:
    if not isinstance(url, str) or not url.isascii() or not url.isprintable():
        return False
    if not _SPECIAL.isdisjoint(url):
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or port == 0:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_local(host))


_SPECIAL = frozenset(' "\\<>{}?#@')


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
