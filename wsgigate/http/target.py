"""The request target: one canonical form, computed once, that is both matched and forwarded.

Most attacks on the rules of a gateway use a path that the rules interpret in one way and the
backend in another. So there is one canonical form. A different spelling of the same path is
converted to it; an ambiguous path is rejected:

=====================================================  =========================================
in the path                                            result
=====================================================  =========================================
escape of an unreserved character, ``%73``             decoded, ``s``
any other escape, ``%3b``                              kept, with upper-case digits, ``%3B``
``//``                                                 one ``/``, unless a route keeps it
a dot segment, plain, encoded or before a ``;``        rejected, unless a route keeps it
``%2f``; ``%5c``                                       rejected, unless a route keeps it
a backslash; control bytes, ``%00``; ``#``             rejected
a broken escape, ``%zz``                               rejected
a character that must be escaped, such as ``|``        escaped
=====================================================  =========================================

The query is not parsed: it is passed byte for byte. The decisions follow RFC 3986 section 6.2.2
and RFC 9112 section 3.2, except that dot segments are not resolved, because a resolved dot segment
is how a path leaves the prefix that it was matched in.

A route may keep forms that are rejected by default, for keys of object stores, URLs within paths
and the like. A backend can interpret such a path in several ways: with or without decoding,
merging slashes and resolving dot segments. :func:`readings` returns all interpretations, and a
route serves a path only if none of them belongs to another route or leaves the route's own path.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes
from wsgiref.types import WSGIEnvironment

from wsgigate.http.wsgi import KEPT_TARGET, TARGET

__all__ = [
    "BadTarget",
    "OddTarget",
    "Target",
    "any_target_of",
    "canonical_path",
    "canonical_pattern",
    "has_dot_segments",
    "host_of",
    "keep_target",
    "kept_target_of",
    "leaves",
    "mount_of",
    "normal_host",
    "readings",
    "target_of",
]


MAX_LENGTH = 8190
"""Maximum length of a request target in bytes, which fits gunicorn's maximum request line."""

_SIMPLE = re.compile(r"(?:/(?!\.\.?(?:[/;]|\Z))[A-Za-z0-9._~!$&'()*+,;=:@-]+)+/?|/")

_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")

_SLASHES = re.compile(r"//+")

_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)

_DOTS = re.compile(r"/\.\.?(?:[/;]|\Z)")

_RAW = re.compile(r"""[^A-Za-z0-9._~!$&'()*+,;=:@/%-]""")

_REFUSED_RAW = re.compile(r"[\x00-\x20\x7f\\#?]")

_QUERY = re.compile(r"[\x21\x22\x24-\x7e]*")

_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

_SAFE = "!$&'()*+,;=:@/~"

_ABSOLUTE = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)

_HOST = re.compile(
    r"([A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?|\[[0-9A-Fa-f:.]+\])(?::(\d{0,5}))?"
)

_LONGEST_HOST = 260
"""A name of 253 characters (RFC 1035 section 2.3.4), the root's dot, a colon and a port. Longer
ones are rejected, as values derived from hosts are cached in several places."""

_MOST_READINGS = 64
"""Paths that hold all of ``%2F``, ``%5C``, ``//`` and ``..`` have about thirty."""

_SOURCE = "wsgigate.target_source"
"""The values of ``environ`` from which the target was computed."""


class BadTarget(ValueError):
    """The request target or its host is ambiguous or malformed."""


class Target(NamedTuple):
    """A canonical request target.

    :ivar path: The canonical path, relative to where the gateway is mounted; starts with ``/``.
    :ivar query: The part after the ``?``, byte for byte; ``None`` without one.
    :ivar host: The requested host: lower case, no port, no trailing dot; empty without one.
    """

    path: str
    query: str | None
    host: str

    @property
    def text(self) -> str:
        """The target in origin form."""
        return self.path if self.query is None else f"{self.path}?{self.query}"


class OddTarget(Target):
    """A target whose path has a form that a route may keep. It equals a target with the same path.

    :ivar kept: The path without merged slashes.
    :ivar refused: Why the path is rejected unless a route keeps its form; empty for ``//``, which
        is merged.
    """

    kept: str
    refused: str


_target: Callable[[tuple[str, str | None, str]], Target] = partial(tuple.__new__, Target)
"""Takes half the time of ``Target(...)``."""


def canonical_path(path: str) -> str:
    """Return *path* in canonical form.

    :param path: A raw path: percent-encoded, starting with ``/``.
    :raises BadTarget: The path is ambiguous or malformed; the message says why.
    """
    path, _, refused = _read(path)
    if refused:
        raise BadTarget(refused)
    return path


def _read(path: str) -> tuple[str, str, str]:
    """Return the canonical form of a raw path, its form without merged slashes, and a rejection.

    :returns: The second is empty if it equals the first, the third if the path is not rejected.
    :raises BadTarget: The path is malformed or ambiguous in a way that no route may keep.
    """
    if _SIMPLE.fullmatch(path):
        return path, "", ""
    if not path.startswith("/"):
        raise BadTarget("a path that does not start with /")
    refused = _REFUSED_RAW.search(path)
    if refused:
        raise BadTarget(f"{refused[0]!r} in the path")
    if "%" in path:
        path = _ESCAPE.sub(_escape_of, path)
    kept = _RAW.sub(_escaped, path)
    path = _SLASHES.sub("/", kept)
    why = ""
    if "%5C" in path:
        why = "an encoded backslash in the path"
    elif has_dot_segments(path):
        why = "a dot segment in the path"
    return path, "" if kept == path else kept, why


def has_dot_segments(path: str) -> bool:
    """Return whether a canonical *path* has a dot segment after decoding."""
    if "%" in path:
        path = path.replace("%2F", "/").replace("%5C", "/")
    return _DOTS.search(path) is not None


def readings(path: str) -> set[str]:
    """Return how a backend may interpret a canonical *path*, including *path* itself.

    Escaped slashes and backslashes may be decoded to slashes, slashes may be merged, and dot
    segments resolved, in any order: both kinds or only ``.``, with or without parameters, as
    RFC 3986 reads ``..;x`` as a name and servlet containers as ``..``.

    :raises BadTarget: There are more of them than a path needs that is no attack.
    """
    found = {path}
    unread = [path]
    while unread:
        if len(found) > _MOST_READINGS:
            raise BadTarget("a path with too many interpretations")
        each = unread.pop()
        further = {each.replace("%2F", "/"), each.replace("%5C", "/"), _SLASHES.sub("/", each)}
        for parents in (False, True):
            further |= {_resolved(each, parents, named) for named in (False, True)}
        unread += further - found
        found |= further
    return found


def _resolved(path: str, parents: bool, parameters: bool) -> str:
    """Return *path* without dot segments (RFC 3986 section 5.2.4).

    :param parents: Whether ``..`` is resolved too, not ``.`` alone.
    :param parameters: Whether dots with parameters, ``..;x``, are dot segments.
    """
    kept: list[str] = []
    name = ""
    for segment in path.split("/")[1:]:
        name = segment.partition(";")[0] if parameters else segment
        if name == ".." and parents:
            del kept[-1:]
        elif name != ".":
            kept.append(segment)
    if name == "." or (name == ".." and parents):
        kept.append("")
    return "/" + "/".join(kept)


def leaves(path: str, base: int = 0) -> bool:
    """Return whether a dot segment in a canonical *path* leaves its first *base* segments.

    One of an interpretation (:func:`readings`) counts too.

    :param base: Number of leading segments that dot segments must not leave.
    :raises BadTarget: There are too many interpretations.
    """
    for each in readings(path):
        depth = 0
        for segment in each.split("/"):
            name = segment.partition(";")[0]
            if name == "..":
                depth -= 1
                if depth < base:
                    return True
            elif segment and name != ".":
                depth += 1
    return False


def _escape_of(match: re.Match[str]) -> str:
    digits = match[1]
    if digits is None:
        raise BadTarget("a broken escape in the path")
    code = int(digits, 16)
    if code < 0x20 or code == 0x7F:
        raise BadTarget("an encoded control character in the path")
    character = chr(code)
    return character if character in _UNRESERVED else f"%{digits.upper()}"


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("latin-1", "replace"))


def canonical_pattern(path: str) -> str:
    """Return a route's *path* with its literal segments in canonical form, ``/caf%C3%A9``.

    :raises BadTarget: A literal segment can never match; the message says why.
    """
    return "/".join(
        segment
        if segment in ("", "*") or "{" in segment or "}" in segment
        else canonical_path("/" + quote(segment, safe=_SAFE + "%"))[1:]
        for segment in path.split("/")
    )


@lru_cache(maxsize=1024)
def normal_host(value: str) -> str:
    """Return the name in a ``Host`` field value: lower case, without port and trailing dot.

    :raises BadTarget: The value is not ``name[:port]`` or ``[address][:port]``.
    """
    match = _HOST.fullmatch(value) if len(value) <= _LONGEST_HOST else None
    if match is None or (match[2] and int(match[2]) > 65535):
        raise BadTarget("a malformed Host")
    return match[1].lower().rstrip(".")


def target_of(environ: WSGIEnvironment) -> Target:
    """Return the request's canonical target, which is both matched and served.

    The target is cached in ``environ`` together with the values from which it was computed, and is
    computed again if one of them has changed: a mount moves a part of ``PATH_INFO`` to
    ``SCRIPT_NAME``, a rewriting middleware replaces it, a proxy fix replaces the host.

    The raw target is used if the server provides it (``RAW_URI``, ``REQUEST_URI``) and it matches
    the path in ``PATH_INFO``. Otherwise an outer app has rewritten the path, and ``PATH_INFO`` is
    encoded again, as on servers without a raw target. An encoded slash is then indistinguishable
    from a plain one.

    :raises BadTarget: The target or the host is ambiguous or malformed; the message says why.
    """
    target = any_target_of(environ)
    if isinstance(target, OddTarget) and target.refused:
        raise BadTarget(target.refused)
    return target


def keep_target(environ: WSGIEnvironment, path: str) -> None:
    """Forward the request with *path*, as its route keeps a form that is rejected by default."""
    target = any_target_of(environ)
    kept = OddTarget(path, target.query, target.host)
    kept.kept, kept.refused = path, ""
    environ[KEPT_TARGET] = environ[_SOURCE], kept


def kept_target_of(environ: WSGIEnvironment) -> Target:
    """Return the target to forward: the canonical one, or the one that the route keeps.

    :raises BadTarget: The target is ambiguous or malformed.
    """
    target = any_target_of(environ)  # updates the cached source values
    if KEPT_TARGET in environ:
        source, kept = environ[KEPT_TARGET]
        if source == environ[_SOURCE]:
            return kept  # type: ignore[no-any-return]
        if _without_query(source) == _without_query(environ[_SOURCE]):
            keep_target(environ, kept.path)  # the query was rewritten, which the route ignores
            return environ[KEPT_TARGET][1]  # type: ignore[no-any-return]
    if isinstance(target, OddTarget) and target.refused:
        raise BadTarget(target.refused)
    return target


def _without_query(source: tuple[str | None, ...]) -> tuple[str | None, ...]:
    raw, mount, below, _, host = source
    return raw and raw.partition("?")[0], mount, below, host


def any_target_of(environ: WSGIEnvironment) -> Target:
    """Return the target like :func:`target_of`, also for a path that only some routes accept.

    :returns: An :class:`OddTarget` if the path has a form that a route may keep.
    :raises BadTarget: No route accepts the path.
    """
    get = environ.get
    source: tuple[str | None, ...] = (
        get("RAW_URI") or get("REQUEST_URI"),
        get("SCRIPT_NAME"),
        get("PATH_INFO"),
        get("QUERY_STRING"),
        get("HTTP_HOST"),
    )
    if _SOURCE in environ and environ[_SOURCE] == source:
        known: Target | None = get(TARGET)
        if known is not None:
            return known
    raw, mount, below, query_string, host = source
    if (  # fast path
        raw is not None
        and raw == below
        and host
        and not (mount or query_string)
        and len(raw) <= MAX_LENGTH
        and _SIMPLE.fullmatch(raw)
    ):
        made = _target((raw, None, normal_host(host)))
    else:
        made = _make(environ, raw, mount, below, query_string, host)
    environ[TARGET] = made
    environ[_SOURCE] = source
    return made


def _make(
    environ: WSGIEnvironment,
    raw: str | None,
    mount: str | None,
    below: str | None,
    query_string: str | None,
    host_field: str | None,
) -> Target:
    host = host_of(environ)
    mount, below = mount or "", below or ""
    if raw is None:
        return _encoded(below, query_string or "", host)
    if len(raw) > MAX_LENGTH:
        raise BadTarget("a request target that is too long")
    if not raw.startswith("/"):
        raw = _origin_form(raw, host_field or "")
    path, mark, query = raw.partition("?")
    if query and not _QUERY.fullmatch(query):
        raise BadTarget("a character in the query that must be escaped")
    if query_string is not None and query != query_string:  # the query was rewritten
        mark = query = query_string
        if query and not _QUERY.fullmatch(query):
            raise BadTarget("a character in the query that must be escaped")
    whole = path == below and not mount
    if not whole:
        whole = _same(path, mount + below or "/")
        # Some test clients, and proxies that strip a prefix, omit the mount from the raw target.
        if not whole and not _same(path, below):
            # The raw path is checked as well, as the outer server may interpret it differently.
            canonical_path(path)
            return _encoded(below, query, host)
    path, kept, refused = _read(path)
    if whole and mount and mount != "/":
        path = _below(mount, path)
        kept = _below(mount, kept) if kept else ""
    return _made(path, query if mark else None, host, kept, refused)


def mount_of(environ: WSGIEnvironment) -> str:
    """Return the gateway's own mount path, percent-encoded; empty at the root."""
    mount: str = environ.get("SCRIPT_NAME", "").rstrip("/")
    return quote(mount.encode("latin-1", "replace"), safe=_SAFE) if mount else ""


def _made(path: str, query: str | None, host: str, kept: str, refused: str) -> Target:
    if not refused and (not kept or kept == path) and "%2F" not in path:
        return _target((path, query, host))
    odd = OddTarget(path, query, host)
    odd.kept, odd.refused = kept or path, refused
    return odd


def _same(raw: str, decoded: str) -> bool:
    """Return whether a server decodes the path *raw* to *decoded*."""
    if raw == decoded or _unquoted(raw) == _SLASHES.sub("/", decoded):
        return True
    if "%2" not in decoded:
        return False
    # cheroot decodes every escape except an encoded slash
    kept = _unquoted(_ENCODED_SLASH.sub("%252F", raw))
    return kept == _SLASHES.sub("/", _ENCODED_SLASH.sub("%2F", decoded))


def _unquoted(raw: str) -> str:
    read = unquote_to_bytes(raw.encode("latin-1", "replace")).decode("latin-1")
    return _SLASHES.sub("/", read)


def _encoded(path: str, query: str, host: str) -> Target:
    """Return the target of a decoded *path*."""
    path = path or "/"
    if query and not _QUERY.fullmatch(query):
        raise BadTarget("a character in the query that must be escaped")
    room = MAX_LENGTH - (len(query) + 1 if query else 0)  # including the question mark
    if len(path) <= room and _SIMPLE.fullmatch(path):
        return Target(path, query or None, host)
    if not path.startswith("/"):
        raise BadTarget("a path that does not start with /")
    refused = re.search(r"[\x00-\x1f\x7f]", path)
    if refused:
        raise BadTarget(f"{refused[0]!r} in the path")
    path = quote(path.encode("latin-1", "replace"), safe=_SAFE)
    if len(path) > room:
        raise BadTarget("a request target that is too long")
    path, kept, why = _read(path)
    return _made(path, query or None, host, kept, why)


def host_of(environ: WSGIEnvironment) -> str:
    """Return the host of the request; empty for an HTTP/1.0 request without a Host.

    :raises BadTarget: The Host is missing or malformed (RFC 9112 section 3.2).
    """
    value: str | None = environ.get("HTTP_HOST")
    if value is None:
        if environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
            return ""
        raise BadTarget("no Host")
    return normal_host(value)


def _origin_form(raw: str, host_field: str) -> str:
    absolute = _ABSOLUTE.fullmatch(raw)
    if absolute is None or "@" in absolute[2]:
        raise BadTarget("a request target that is neither a path nor an http URL")
    default = "443" if absolute[1].lower() == "https" else "80"
    if _authority(absolute[2], default) != _authority(host_field, default):
        raise BadTarget("a request target for another host than the Host field's")
    rest = absolute[3]
    return rest if rest.startswith("/") else "/" + rest


def _authority(value: str, default_port: str) -> tuple[str, str]:
    match = _HOST.fullmatch(value)
    if match is None:
        raise BadTarget("a malformed Host")
    return match[1].lower().rstrip("."), match[2] or default_port


def _below(mount: str, path: str) -> str:
    """Return the part of the canonical *path* below *mount*, a decoded ``SCRIPT_NAME``."""
    prefix = canonical_path(quote(mount.encode("latin-1", "replace"), safe=_SAFE).rstrip("/"))
    if path == prefix:
        return "/"
    if not path.startswith(prefix + "/"):
        raise BadTarget("a path outside of where the gateway is mounted")
    return path[len(prefix) :]
