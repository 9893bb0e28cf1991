"""What an instance says of its own address, said again as its client must see it."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["cookie_path", "location"]

_URL = re.compile(r"(https?)://([^/?#@]+)([/?#].*)?", re.IGNORECASE | re.DOTALL)
_ODD = re.compile(r"[\x00-\x1f\x7f\\]")  # what browsers drop or take for a slash
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _origin(scheme: str, authority: str) -> str:
    scheme = scheme.lower()
    return f"{scheme}://{authority.lower().removesuffix(_DEFAULT_PORTS[scheme])}"


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
    value: str, origin: str, strip: str = "", add: str = "", *, aliases: Collection[str] = ()
) -> str:
    """Return a ``Location`` value of an instance as the client must see it.

    A URL of the instance's own origin becomes a path, as its client has to come by the gateway;
    a path gets back the prefix that the gateway stripped, unless it has it already. Other hosts,
    other schemes, ``//host`` and relative references are the service's own business and returned
    as they are.

    :param value: The value that the instance sent.
    :param origin: ``http://HOST[:PORT]`` of the instance.
    :param strip: The prefix that the gateway took off the client's path.
    :param add: The prefix that the gateway put before it instead.
    :param aliases: Further origins that the instance knows itself by, such as the client's ``Host``
        when the gateway passes it on.
    """
    path = _own_path(value, (origin, *aliases))
    if path is None:
        return value
    moved = _moved(path, add.rstrip("/"), strip.rstrip("/"))
    if moved is None:
        moved = path
    if not moved.startswith("/"):
        moved = "/" + moved
    # "//x" would be another host: RFC 3986 section 5.3 writes such a path with a dot.
    return "/." + moved if moved.startswith("//") else moved


def _own_path(value: str, origins: Collection[str]) -> str | None:
    """Return the path, query and fragment of a URL at one of *origins*; None of any other."""
    if _ODD.search(value):
        return None
    found = _URL.fullmatch(value)
    if found is None:
        return value if value.startswith("/") and not value.startswith("//") else None
    named = _origin(found[1], found[2])
    if not any(_same_origin(named, known) for known in origins):
        return None
    path = found[3] or ""
    return path if path.startswith("/") else "/" + path


def _same_origin(named: str, known: str) -> bool:
    found = _URL.fullmatch(known)
    return found is not None and named == _origin(found[1], found[2])


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
