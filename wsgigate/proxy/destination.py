"""Where a WebDAV client wants something copied or moved to, as its instance must read it.

``Destination`` (RFC 4918 section 10.3) is a URL of the client's view, while the instance sees
another host and another path. It is matched in the same canonical form as the request target: what
a route protects cannot be written to by another route's ``MOVE``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import quote
from wsgiref.types import WSGIEnvironment

from wsgigate.http.problem import Refusal
from wsgigate.http.target import BadTarget, canonical_path
from wsgigate.proxy.rewriting import Told, is_at, split_url

__all__ = ["METHODS", "beneath", "destination_path", "led_to_instance", "mount_of"]

METHODS = frozenset(("COPY", "MOVE"))

Canonical = Callable[[str], str]


def destination_path(
    environ: WSGIEnvironment, canonical: Canonical = canonical_path
) -> tuple[str, str | None, bool] | None:
    """Return where a request for this host wants something copied or moved to.

    :param canonical: Brings a path to canonical form.
    :returns: The canonical path as the client sees it, the query, and whether it was an absolute
        URL; ``None`` when the destination is on another host.
    :raises Refusal: It has no single meaning.
    """
    value: str = environ["HTTP_DESTINATION"].strip(" \t")
    found = split_url(value)
    if found is None:
        if not value.startswith("/") or value.startswith("//"):
            return None
        rest = value
    else:
        scheme, authority, rest = found
        told = Told(environ["wsgi.url_scheme"], "", environ.get("HTTP_X_FORWARDED_PORT", ""))
        hosts = (environ.get("HTTP_HOST", ""), environ.get("HTTP_X_FORWARDED_HOST", ""))
        if not any(host and is_at(authority, scheme, host, told) for host in hosts):
            return None
    path, mark, query = rest.partition("?")
    try:
        return canonical(path or "/"), query if mark else None, found is not None
    except BadTarget as error:
        raise Refusal.of(400, "Malformed Destination field.", f"Destination: {error}") from None


def mount_of(environ: WSGIEnvironment) -> str:
    """Return where the gateway itself is mounted, percent-encoded; empty at the root."""
    mount: str = environ.get("SCRIPT_NAME", "").rstrip("/")
    return quote(mount.encode("latin-1", "replace"), safe="/~!$&'()*+,;=:@") if mount else ""


def beneath(prefix: str, path: str) -> str | None:
    """Return what of *path* is beneath *prefix*, by whole segments; ``None`` when it is not."""
    if path != prefix and not path.startswith(prefix + "/"):
        return None
    return path[len(prefix) :] or "/"


def led_to_instance(
    environ: WSGIEnvironment,
    fields: Mapping[str, str],
    scheme: str,
    add: str,
    canonical: Canonical = canonical_path,
) -> str:
    """Return the ``Destination`` of *environ* as the instance must read it.

    :param fields: Those that the instance gets: its ``Host``, and the prefix it does not see.
    :param scheme: The instance's.
    :param add: The prefix that the gateway puts before the path.
    :raises Refusal: It is on this host, but not beneath the prefix that leads to the service.
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
            "the Destination is not beneath the prefix that leads to the service",
        )
    path = add + rest
    if query is not None:
        path += f"?{query}"
    return (
        f"{'https' if scheme == 'https' else 'http'}://{fields['Host']}{path}" if absolute else path
    )
