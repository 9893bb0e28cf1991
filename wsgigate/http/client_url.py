"""The URL that the client used, for proofs and signatures over it.

A client signs the URL that it sees: the scheme, host and path in front of all proxies. What a
trusted proxy reports of these is used (see ``ClientAddress``), and nothing that another peer sends.
The path is the canonical one, which is forwarded: so a signature over another spelling of it does
not verify, rather than verify for another path than the service gets.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit
from wsgiref.types import WSGIEnvironment

from wsgigate.http.target import BadTarget, canonical_path, kept_target_of, mount_of
from wsgigate.http.wsgi import PEER_TRUSTED, peer_trusted

__all__ = ["ClientUrl", "client_target", "client_url", "normal_url"]

_DEFAULT_PORTS = {"http": "80", "https": "443"}

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::([0-9]*))?")

_PRINTABLE = re.compile(r"[\x21-\x7e]{1,8192}")


class ClientUrl(NamedTuple):
    """A URL in normal form (RFC 3986 section 6.2).

    :ivar scheme: ``http`` or ``https``.
    :ivar authority: The host in lower case, with the port unless it is the default of *scheme*.
    :ivar path: The canonical path.
    :ivar query: The part after the ``?``, byte for byte; None without one.
    """

    scheme: str
    authority: str
    path: str
    query: str | None

    @property
    def without_query(self) -> str:
        """The URL without its query."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def text(self) -> str:
        """The whole URL."""
        return self.without_query if self.query is None else f"{self.without_query}?{self.query}"


def client_url(environ: WSGIEnvironment) -> ClientUrl:
    """Return the URL of a request as its client knows it.

    :raises BadTarget: The target or the host is ambiguous or malformed, or there is no host.
    """
    path, query = _path_and_query(environ)
    scheme, host = environ["wsgi.url_scheme"], environ.get("HTTP_HOST", "")
    port = ""
    if PEER_TRUSTED in environ and peer_trusted(environ):
        host = environ.get("HTTP_X_FORWARDED_HOST") or host
        port = environ.get("HTTP_X_FORWARDED_PORT", "")
    return ClientUrl(scheme, _authority(scheme, host, port), path, query)


def client_target(environ: WSGIEnvironment) -> str:
    """Return the path and query of that URL, also of a request without a host (HTTP/1.0).

    :raises BadTarget: The target or the host is ambiguous or malformed.
    """
    path, query = _path_and_query(environ)
    return path if query is None else f"{path}?{query}"


def _path_and_query(environ: WSGIEnvironment) -> tuple[str, str | None]:
    target = kept_target_of(environ)
    prefix = mount_of(environ) if environ.get("SCRIPT_NAME") else ""
    if PEER_TRUSTED in environ and peer_trusted(environ):
        prefix = environ.get("HTTP_X_FORWARDED_PREFIX", "").rstrip("/") + prefix
    path = target.path
    if prefix:  # a request for the mount itself has no path below it
        path = canonical_path(prefix) + (path if environ.get("PATH_INFO") else "")
    return path, target.query


def normal_url(url: str) -> str:
    """Return *url* in normal form, without query and fragment.

    :raises ValueError: It is not an ``http`` or ``https`` URL, or its path is ambiguous.
    """
    if not _PRINTABLE.fullmatch(url):
        raise ValueError("not a URL")
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS or "@" in parts.netloc:
        raise ValueError("not an http or https URL of a host")
    return f"{scheme}://{_authority(scheme, parts.netloc)}{canonical_path(parts.path or '/')}"


def _authority(scheme: str, host: str, other_port: str = "") -> str:
    """Return *host* in normal form; *other_port* is its port if it names none."""
    found = _AUTHORITY.fullmatch(host)
    if found is None:
        raise BadTarget("a malformed or missing host")
    name, port = found[1].lower().rstrip("."), (found[2] or other_port).lstrip("0")
    return name if not port or port == _DEFAULT_PORTS.get(scheme) else f"{name}:{port}"
