"""The WebDAV ``Destination`` field: checked against the routes, rewritten for the instance.

``Destination`` (RFC 4918, section 10.3) is a URL as the client sees it, while the instance sees
another host and another path. It is matched in the same canonical form as the request target, so
that ``MOVE`` on one route cannot write to resources that another route protects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import quote
from wsgiref.types import WSGIEnvironment

from wsgigate.http.problem import Refusal
from wsgigate.http.target import BadTarget, canonical_path
from wsgigate.proxy.rewriting import ForwardedOrigin, is_at, split_url

__all__ = ["METHODS", "beneath", "destination_path", "instance_destination", "mount_of"]

METHODS = frozenset(("COPY", "MOVE"))

Canonical = Callable[[str], str]


def destination_path(
    environ: WSGIEnvironment, canonical: Canonical = canonical_path
) -> tuple[str, str | None, bool] | None:
    """Return the target of a ``COPY`` or ``MOVE`` request within this host.

    :param canonical: Returns the canonical form of a path.
    :returns: The canonical path as the client sees it, the query, and whether it was an absolute
        URL; ``None`` when the destination is on another host.
    :raises Refusal: The destination is ambiguous.
    """
    value: str = environ["HTTP_DESTINATION"].strip(" \t")
    found = split_url(value)
    if found is None:
        if not value.startswith("/") or value.startswith("//"):
            return None
        rest = value
    else:
        scheme, authority, rest = found
        forwarded = ForwardedOrigin(
            environ["wsgi.url_scheme"], "", environ.get("HTTP_X_FORWARDED_PORT", "")
        )
        hosts = (environ.get("HTTP_HOST", ""), environ.get("HTTP_X_FORWARDED_HOST", ""))
        if not any(host and is_at(authority, scheme, host, forwarded) for host in hosts):
            return None
    path, mark, query = rest.partition("?")
    try:
        return canonical(path or "/"), query if mark else None, found is not None
    except BadTarget as error:
        raise Refusal.of(400, "Malformed Destination field.", f"Destination: {error}") from None


def mount_of(environ: WSGIEnvironment) -> str:
    """Return the gateway's own mount path, percent-encoded; empty at the root."""
    mount: str = environ.get("SCRIPT_NAME", "").rstrip("/")
    return quote(mount.encode("latin-1", "replace"), safe="/~!$&'()*+,;=:@") if mount else ""


def beneath(prefix: str, path: str) -> str | None:
    """Return the part of *path* below *prefix*, by whole segments; ``None`` if it is not below."""
    if path != prefix and not path.startswith(prefix + "/"):
        return None
    return path[len(prefix) :] or "/"


def instance_destination(
    environ: WSGIEnvironment,
    fields: Mapping[str, str],
    scheme: str,
    add: str,
    canonical: Canonical = canonical_path,
) -> str:
    """Return the ``Destination`` of *environ*, rewritten for the instance.

    :param fields: The instance's request fields, with its ``Host`` and the stripped prefix.
    :param scheme: The instance's scheme.
    :param add: The prefix that the gateway adds to the path.
    :raises Refusal: The destination is on this host, but not below the service's prefix.
    """
    found = destination_path(environ, canonical)
    value: str = environ["HTTP_DESTINATION"]
    if found is None:
        return value
    path, query, absolute = found
    rest = beneath(fields.get("X-Forwarded-Prefix", "").rstrip("/"), path)
    if rest is None:
        raise Refusal.of(
            502,
            "Bad gateway",
            "the Destination is not below the prefix of the service",
        )
    path = add + rest
    if query is not None:
        path += f"?{query}"
    return (
        f"{'https' if scheme == 'https' else 'http'}://{fields['Host']}{path}" if absolute else path
    )
