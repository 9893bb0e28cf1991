"""Rewrites URLs in fields between the client's view and the instance's.

A response's ``Location``, ``Content-Location`` and ``Refresh``, and the paths of its cookies, are
rewritten to what the client sees. A request's WebDAV ``Destination`` (RFC 4918, section 10.3) is
rewritten for the instance, which sees another host and another path. It is matched in the same
canonical form as the request target, so that ``MOVE`` on one route cannot write to resources that
another route protects.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple
from wsgiref.types import WSGIEnvironment

from wsgigate.http.problem import Refusal
from wsgigate.http.target import BadTarget, canonical_path

__all__ = [
    "DESTINATION_METHODS",
    "ForwardedOrigin",
    "beneath",
    "cookie_path",
    "destination_path",
    "instance_destination",
    "location",
    "refresh",
]


_URL = re.compile(r"(?:(https?):)?//([^/?#@]+)([/?#].*)?", re.IGNORECASE | re.DOTALL)

_ODD = re.compile(r"[\x00-\x1f\x7f\\]")  # browsers drop these or read them as a slash

_REFRESH = re.compile(
    r"""\s*[0-9.]+\s*[;,]\s*(?:url\s*=\s*)?(["']?)(?P<url>.+?)\1\s*""", re.IGNORECASE | re.DOTALL
)

_PORTS = {"http": "80", "https": "443"}


class ForwardedOrigin(NamedTuple):
    """The client's view of the gateway, as sent to the instance in ``X-Forwarded-*``.

    :ivar scheme: ``http`` or ``https``.
    :ivar host: ``HOST[:PORT]``; empty if not sent.
    :ivar port: A number; empty if not sent.
    """

    scheme: str
    host: str = ""
    port: str = ""


class _Authority(NamedTuple):
    name: str
    port: str
    """Empty for the scheme's default port."""


def _authority(text: str, scheme: str) -> _Authority:
    text = text.lower()
    name, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        return _Authority(text, "")
    return _Authority(name, "" if port == _PORTS.get(scheme) else port)


def _split_url(value: str) -> tuple[str, str, str] | None:
    """Return scheme, authority and the rest of an ``http`` URL; ``None`` for other values.

    :returns: The scheme in lower case, empty where the URL omits it (``//host/path``).
    """
    if _ODD.search(value):
        return None
    found = _URL.fullmatch(value)
    return None if found is None else ((found[1] or "").lower(), found[2], found[3] or "")


def _is_at(authority: str, scheme: str, host: str, forwarded: ForwardedOrigin) -> bool:
    """Return whether *authority*, of a URL with *scheme*, is the *host* that a client requested.

    :param host: ``HOST[:PORT]`` of a ``Host`` field or ``X-Forwarded-Host``.
    :param forwarded: The scheme and the port of the client's request.
    """
    named = _authority(authority, scheme or forwarded.scheme)
    known = _authority(host, forwarded.scheme)
    if named.name != known.name:
        return False
    # A host without a port has the forwarded port, or the scheme's default port: clients omit the
    # latter.
    ports = {
        known.port,
        *(_authority(f":{forwarded.port}", forwarded.scheme).port,) * bool(forwarded.port),
    }
    return named.port in ports


def _replace_prefix(path: str, old: str, new: str) -> str | None:
    """Return *path* with the prefix *old* replaced by *new*; ``None`` without that prefix.

    ``None`` also for a path that begins with *new* already: its service reads
    ``X-Forwarded-Prefix``.
    """
    if not _starts_below(path, old) or (new and not old and _starts_below(path, new)):
        return None
    return new + path[len(old) :]


def _starts_below(path: str, prefix: str) -> bool:
    return path.startswith(prefix) and path[len(prefix) :][:1] in ("", "/", "?", "#")


def location(
    value: str,
    origin: str,
    strip: str = "",
    add: str = "",
    *,
    hosts: Collection[str] = (),
    forwarded: ForwardedOrigin | None = None,
) -> str:
    """Return a URL that an instance sent, such as a ``Location``, as the client must see it.

    A URL of the instance itself becomes a path, because its client must use the gateway. A path
    gets back the prefix that the gateway stripped, unless it begins with it already. A URL belongs
    to the instance when it names the instance's address, the ``Host`` that was sent to it, or the
    forwarded host; with any scheme, because the instance may use the client's. A redirect
    from ``http`` to ``https`` is kept. URLs with other hosts or schemes, and relative references,
    are returned unchanged.

    :param value: The value that the instance sent.
    :param origin: ``http://HOST[:PORT]`` of the instance.
    :param strip: The prefix that the gateway removed from the client's path.
    :param add: The prefix that the gateway added instead.
    :param hosts: Values of ``Host`` that were sent to the instance.
    :param forwarded: The ``X-Forwarded-*`` values sent to the instance; ``None`` for none.
    """
    found = _split_url(value)
    if found is None:
        if _ODD.search(value) or not value.startswith("/") or value.startswith("//"):
            return value
        return _as_reference(_client_path(value, strip, add))
    scheme, authority, rest = found
    path = rest if rest.startswith("/") else "/" + rest
    own_scheme, _, own = origin.partition("://")
    if forwarded is None:
        known = _is_instance(scheme or own_scheme, authority, own_scheme, own, hosts)
        return (
            _as_reference(_client_path(path, strip, add))
            if known and scheme in ("", own_scheme)
            else value
        )
    public = bool(forwarded.host) and _is_at(authority, scheme, forwarded.host, forwarded)
    if not public and not _is_instance(scheme, authority, own_scheme, own, hosts, forwarded):
        return value
    path_seen = _client_path(path, strip, add)
    if scheme == "https" != forwarded.scheme and (public or own_scheme != "https"):
        if public:
            return f"https://{authority}{path_seen}"
        # The port belongs to http, so it is dropped.
        return (
            f"https://{_authority(forwarded.host, 'http').name}{path_seen}"
            if forwarded.host
            else value
        )
    return _as_reference(path_seen)


def _is_instance(
    scheme: str,
    authority: str,
    own_scheme: str,
    own: str,
    hosts: Collection[str],
    forwarded: ForwardedOrigin | None = None,
) -> bool:
    for host in (own, *hosts):
        schemes = {own_scheme} if scheme in ("", own_scheme) else {own_scheme, scheme}
        # A URL built from the Host that was sent: it has a port only if the Host has one.
        if any(_authority(authority, scheme or own_scheme) == _authority(host, s) for s in schemes):
            return True
        # A URL built from the name of the Host and the forwarded port.
        if forwarded is not None and forwarded.port:
            name = _authority(host, own_scheme).name
            if _is_at(authority, scheme, f"{name}:{forwarded.port}", forwarded):
                return True
    return False


def _client_path(path: str, strip: str, add: str) -> str:
    moved = _replace_prefix(path, add.rstrip("/"), strip.rstrip("/"))
    if moved is None:
        moved = path
    return moved if moved.startswith("/") else "/" + moved


def _as_reference(path: str) -> str:
    # "//x" would be another host: RFC 3986 section 5.3 writes such a path with a dot.
    return "/." + path if path.startswith("//") else path


def refresh(
    value: str,
    origin: str,
    strip: str = "",
    add: str = "",
    *,
    hosts: Collection[str] = (),
    forwarded: ForwardedOrigin | None = None,
) -> str:
    """Return a ``Refresh`` value, ``5; url=/next``, with its URL as :func:`location` returns it."""
    found = _REFRESH.fullmatch(value)
    if found is None:
        return value
    begin, end = found.span("url")
    path_seen = location(found["url"], origin, strip, add, hosts=hosts, forwarded=forwarded)
    return value[:begin] + path_seen + value[end:]


def cookie_path(
    value: str, old_prefix: str = "", new_prefix: str = "", drop_domain: str | None = None
) -> str:
    """Return a ``Set-Cookie`` value with its ``Path`` rewritten to the client's view.

    All other bytes are unchanged. A ``__Host-`` cookie keeps its path, because browsers accept it
    only with the path ``/`` (RFC 6265bis, section 4.1.3.2).

    :param value: The value that the instance sent.
    :param old_prefix: The prefix that the gateway added to the path.
    :param new_prefix: The prefix that the gateway removed from the path.
    :param drop_domain: The instance's host without port: a ``Domain`` that names it is dropped, so
        that the cookie belongs to the host that the client requested.
    """
    pair, *attributes = value.split(";")
    old, new = old_prefix.rstrip("/"), new_prefix.rstrip("/")
    movable = not pair.lstrip().lower().startswith("__host-")
    kept = [pair]
    for attribute in attributes:
        name, equals, text = attribute.partition("=")
        kind, stated = name.strip().lower(), text.strip()
        if kind == "path" and movable and stated.startswith("/"):
            path = "" if stated == "/" and not old else stated
            moved = _replace_prefix(path, old, new)
            if moved is not None:
                kept.append(f"{name}{equals}{text.replace(stated, moved or '/', 1)}")
                continue
        elif kind == "domain" and drop_domain and _same_host(stated, drop_domain):
            continue
        kept.append(attribute)
    return ";".join(kept)


def _same_host(domain: str, host: str) -> bool:
    return domain.lower().removeprefix(".") == host.lower()


# The Destination of a COPY or MOVE request.

DESTINATION_METHODS = frozenset(("COPY", "MOVE"))


def destination_path(environ: WSGIEnvironment) -> tuple[str, str | None, bool] | None:
    """Return the target of a ``COPY`` or ``MOVE`` request within this host.

    :returns: The canonical path as the client sees it, the query, and whether it was an absolute
        URL; ``None`` when the destination is on another host.
    :raises Refusal: The destination is ambiguous.
    """
    value: str = environ["HTTP_DESTINATION"].strip(" \t")
    found = _split_url(value)
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
        if not any(host and _is_at(authority, scheme, host, forwarded) for host in hosts):
            return None
    path, mark, query = rest.partition("?")
    try:
        return canonical_path(path or "/"), query if mark else None, found is not None
    except BadTarget as error:
        raise Refusal.of(400, "Malformed Destination field.", f"Destination: {error}") from None


def beneath(prefix: str, path: str) -> str | None:
    """Return the part of *path* below *prefix*, by whole segments; ``None`` if it is not below."""
    if path != prefix and not path.startswith(prefix + "/"):
        return None
    return path[len(prefix) :] or "/"


def instance_destination(
    environ: WSGIEnvironment, fields: Mapping[str, str], scheme: str, add: str
) -> str:
    """Return the ``Destination`` of *environ*, rewritten for the instance.

    :param fields: The instance's request fields, with its ``Host`` and the stripped prefix.
    :param scheme: The instance's scheme.
    :param add: The prefix that the gateway adds to the path.
    :raises Refusal: The destination is on this host, but not below the service's prefix.
    """
    found = destination_path(environ)
    value: str = environ["HTTP_DESTINATION"]
    if found is None:
        return value
    path, query, absolute = found
    rest = beneath(fields.get("X-Forwarded-Prefix", "").rstrip("/"), path)
    if rest is None:
        raise Refusal.of(
            502, "Bad gateway", "the Destination is not below the prefix of the service"
        )
    path = add + rest
    if query is not None:
        path += f"?{query}"
    return (
        f"{'https' if scheme == 'https' else 'http'}://{fields['Host']}{path}" if absolute else path
    )
