"""What an instance says of its own address, said again as its client must see it; and back."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

__all__ = ["Told", "cookie_path", "is_at", "location", "refresh", "split_url"]


_URL = re.compile(r"(?:(https?):)?//([^/?#@]+)([/?#].*)?", re.IGNORECASE | re.DOTALL)

_ODD = re.compile(r"[\x00-\x1f\x7f\\]")  # what browsers drop or take for a slash

_REFRESH = re.compile(
    r"""\s*[0-9.]+\s*[;,]\s*(?:url\s*=\s*)?(["']?)(?P<url>.+?)\1\s*""", re.IGNORECASE | re.DOTALL
)

_PORTS = {"http": "80", "https": "443"}


class Told(NamedTuple):
    """What an instance was told of where its client is: the values of ``X-Forwarded-*``.

    :ivar scheme: ``http`` or ``https``.
    :ivar host: ``HOST[:PORT]``; empty when it was told none.
    :ivar port: A number; empty when it was told none.
    """

    scheme: str
    host: str = ""
    port: str = ""


class _Authority(NamedTuple):
    name: str
    port: str
    """Empty when it is the scheme's own, and not written."""


def _authority(text: str, scheme: str) -> _Authority:
    text = text.lower()
    name, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        return _Authority(text, "")
    return _Authority(name, "" if port == _PORTS.get(scheme) else port)


def split_url(value: str) -> tuple[str, str, str] | None:
    """Return scheme, authority and the rest of an ``http`` URL, None of anything else.

    :returns: The scheme in lower case, empty where the URL leaves it out (``//host/path``).
    """
    if _ODD.search(value):
        return None
    found = _URL.fullmatch(value)
    return None if found is None else ((found[1] or "").lower(), found[2], found[3] or "")


def is_at(authority: str, scheme: str, host: str, told: Told) -> bool:
    """Return whether *authority*, of a URL with *scheme*, is where a client asked for *host*.

    :param host: ``HOST[:PORT]`` of a ``Host`` field or ``X-Forwarded-Host``.
    :param told: The scheme by which the client came, and the port.
    """
    named = _authority(authority, scheme or told.scheme)
    known = _authority(host, told.scheme)
    if named.name != known.name:
        return False
    # A host without a port is at the told one; that it is at the scheme's own, clients say by
    # leaving the port out.
    ports = {known.port, *(_authority(f":{told.port}", told.scheme).port,) * bool(told.port)}
    return named.port in ports


def _moved(path: str, old: str, new: str) -> str | None:
    """Return *path* with its leading segments *old* replaced by *new*; None when it has others.

    A path with *new* before it already comes from a service that read ``X-Forwarded-Prefix``.
    """
    if not _beneath(path, old) or (new and not old and _beneath(path, new)):
        return None
    return new + path[len(old) :]


def _beneath(path: str, prefix: str) -> bool:
    return path.startswith(prefix) and path[len(prefix) :][:1] in ("", "/", "?", "#")


def location(
    value: str,
    origin: str,
    strip: str = "",
    add: str = "",
    *,
    hosts: Collection[str] = (),
    told: Told | None = None,
) -> str:
    """Return a URL that an instance sent, such as a ``Location``, as the client must see it.

    A URL of the instance itself becomes a path, as its client has to come by the gateway; a path
    gets back the prefix that the gateway stripped, unless it has it already. A URL is the
    instance's own when it names the instance's address, the ``Host`` that the instance was sent, or
    the host that it was told the client asked for; by any scheme, as it may have been told that of
    the client. Where it sends clients that came by ``http`` on to ``https``, that is kept. Other
    hosts, other schemes and relative references are the service's own business and returned as they
    are.

    :param value: The value that the instance sent.
    :param origin: ``http://HOST[:PORT]`` of the instance.
    :param strip: The prefix that the gateway took off the client's path.
    :param add: The prefix that the gateway put before it instead.
    :param hosts: Values of ``Host`` that the instance was sent.
    :param told: What it was told of its client's view; ``None`` for nothing.
    """
    found = split_url(value)
    if found is None:
        if _ODD.search(value) or not value.startswith("/") or value.startswith("//"):
            return value
        return _path(_led(value, strip, add))
    scheme, authority, rest = found
    path = rest if rest.startswith("/") else "/" + rest
    own_scheme, _, own = origin.partition("://")
    if told is None:
        known = _is_instance(scheme or own_scheme, authority, own_scheme, own, hosts)
        return _path(_led(path, strip, add)) if known and scheme in ("", own_scheme) else value
    public = bool(told.host) and is_at(authority, scheme, told.host, told)
    if not public and not _is_instance(scheme, authority, own_scheme, own, hosts, told):
        return value
    led = _led(path, strip, add)
    if scheme == "https" != told.scheme and (public or own_scheme != "https"):
        if public:
            return f"https://{authority}{led}"
        # The port is that of http, which does not speak https.
        return f"https://{_authority(told.host, 'http').name}{led}" if told.host else value
    return _path(led)


def _is_instance(
    scheme: str,
    authority: str,
    own_scheme: str,
    own: str,
    hosts: Collection[str],
    told: Told | None = None,
) -> bool:
    for host in (own, *hosts):
        schemes = {own_scheme} if scheme in ("", own_scheme) else {own_scheme, scheme}
        # Built of the Host that it was sent, the port is left out where the Host has none.
        if any(_authority(authority, scheme or own_scheme) == _authority(host, s) for s in schemes):
            return True
        # Built of the Host's name and the port that it was told.
        if told is not None and told.port:
            name = _authority(host, own_scheme).name
            if is_at(authority, scheme, f"{name}:{told.port}", told):
                return True
    return False


def _led(path: str, strip: str, add: str) -> str:
    moved = _moved(path, add.rstrip("/"), strip.rstrip("/"))
    if moved is None:
        moved = path
    return moved if moved.startswith("/") else "/" + moved


def _path(path: str) -> str:
    # "//x" would be another host: RFC 3986 section 5.3 writes such a path with a dot.
    return "/." + path if path.startswith("//") else path


def refresh(
    value: str,
    origin: str,
    strip: str = "",
    add: str = "",
    *,
    hosts: Collection[str] = (),
    told: Told | None = None,
) -> str:
    """Return a ``Refresh`` value, ``5; url=/next``, with its URL as :func:`location` returns it."""
    found = _REFRESH.fullmatch(value)
    if found is None:
        return value
    begin, end = found.span("url")
    led = location(found["url"], origin, strip, add, hosts=hosts, told=told)
    return value[:begin] + led + value[end:]


def cookie_path(
    value: str, old_prefix: str = "", new_prefix: str = "", drop_domain: str | None = None
) -> str:
    """Return a ``Set-Cookie`` value whose ``Path`` is the client's, not the instance's.

    Everything else stays as it is, to the byte. A ``__Host-`` cookie keeps its path, without which
    it would be none (RFC 6265bis section 4.1.3.2).

    :param value: The value that the instance sent.
    :param old_prefix: The prefix that the gateway put before the path.
    :param new_prefix: The prefix that the gateway took off the path.
    :param drop_domain: The instance's host without port: a ``Domain`` that names it is dropped, so
        that the cookie belongs to the host the client asked.
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
            moved = _moved(path, old, new)
            if moved is not None:
                kept.append(f"{name}{equals}{text.replace(stated, moved or '/', 1)}")
                continue
        elif kind == "domain" and drop_domain and _same_host(stated, drop_domain):
            continue
        kept.append(attribute)
    return ";".join(kept)


def _same_host(domain: str, host: str) -> bool:
    return domain.lower().removeprefix(".") == host.lower()
