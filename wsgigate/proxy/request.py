"""From a WSGI request to the request an instance gets: no I/O, the order of steps is the safety.

What the client sent is copied first, without what concerns only its own connection, what only a
trusted proxy may say, and what only the gateway may say; then the gateway's own fields are set.
So nothing that a client names in ``Connection`` can take away what the gateway adds (RFC 9110
section 7.6.1), and no spelling of an identity field survives: what is deleted is an environ key,
not a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple
from wsgiref.types import WSGIEnvironment

import requests

from wsgigate.client.http11 import Fields
from wsgigate.discovery import Instance
from wsgigate.http.bodies import client_body
from wsgigate.http.fields import (
    HOP_BY_HOP,
    FieldRules,
    connection_tokens,
    is_field_value,
    is_token,
    without_cookies,
)
from wsgigate.http.forwarded import CLIENT_FORGED, FAMILY, address_of, format_forwarded
from wsgigate.http.problem import Refusal
from wsgigate.http.target import (
    BadTarget,
    OddTarget,
    Target,
    canonical_path,
    canonical_pattern,
    leaves,
)
from wsgigate.http.wsgi import CLAIMS, CLIENT_SOURCE, REQUEST_ID, environ_key, peer_trusted
from wsgigate.proxy.destination import METHODS, led_to_instance, mount_of

__all__ = [
    "FieldCopier",
    "NEVER",
    "Outgoing",
    "PROTECTED",
    "RequestMaker",
    "Way",
    "hops_left",
    "is_last_hop",
]


# Which fields of a client's request go along, found out once for each set of environ keys.
#
# Not those that concern only its own connection, nor what only a proxy or the gateway may say.
# What is left out is an environ key, not a name: no other spelling of the field survives.

PROTECTED = frozenset(
    (
        *("authorization", "cdn-loop", "content-length", "content-type", "cookie", "host"),
        "x-request-id",
    )
)
"""What a client can not have dropped by naming it in ``Connection``."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_SET_ANEW = frozenset(("HTTP_EXPECT", "HTTP_HOST", "HTTP_HTTP2_SETTINGS", "HTTP_VIA"))

_FRAMING = frozenset(("HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"))

_MOST_SHAPES = 512

_LONGEST_SHAPE = 8192
"""Characters of all keys together: what costs more to remember is found out again."""


class _Shape(NamedTuple):
    """What goes along of an environ that has certain keys."""

    names: tuple[str, ...]
    values: Callable[[WSGIEnvironment], tuple[str, ...]]
    nameless: bool
    """Whether there is a request field without a name among them."""


class FieldCopier:
    """Copies what goes along of a request's fields.

    :param identity: Names of the fields that only the gateway may set.
    """

    def __init__(self, identity: Iterable[str] = ()) -> None:
        self._dropped = (
            frozenset(environ_key(name) for name in HOP_BY_HOP)
            | frozenset(environ_key(name) for name in identity)
            | CLIENT_FORGED
            | _SET_ANEW
            | _FRAMING
        )
        self._shapes: dict[tuple[str, ...], _Shape] = {}  # bounded

    def copied(self, environ: WSGIEnvironment) -> Fields:
        """Return the fields of *environ* that go along.

        :raises Refusal: One of them is malformed.
        """
        keys = tuple(environ)
        shape = self._shapes.get(keys) or self._learn(keys)
        if shape.nameless:
            raise Refusal.of(400, "Malformed request field.", "a request field without a name")
        values = shape.values(environ)
        if _CONTROL.search("".join(values)):
            raise Refusal.of(
                400, "Malformed request field.", "a control character in a request field"
            )
        fields = Fields(zip(shape.names, values, strict=True))
        content_type = environ.get("CONTENT_TYPE")
        if content_type:
            if _CONTROL.search(content_type):
                raise Refusal.of(
                    400, "Malformed request field.", "a control character in a request field"
                )
            fields["Content-Type"] = content_type
        connection = environ.get("HTTP_CONNECTION")
        if connection and connection.lower() not in ("keep-alive", "close"):
            _drop_named(connection, fields, environ.get(REQUEST_ID))
        return fields

    def _learn(self, keys: tuple[str, ...]) -> _Shape:
        copied = [
            key
            for key in keys
            if key[:5] == "HTTP_" and key not in self._dropped and not key.startswith(FAMILY)
        ]
        names = tuple(map(_field_name, copied))
        shape = _Shape(names, _getter(copied), "" in names)
        if sum(map(len, keys)) <= _LONGEST_SHAPE:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes = {}  # somebody makes them up
            self._shapes[keys] = shape
        return shape


def _getter(keys: list[str]) -> Callable[[WSGIEnvironment], tuple[str, ...]]:
    if len(keys) < 2:
        return lambda environ: tuple([environ[key] for key in keys])
    getter: Any = itemgetter(*keys)
    return getter  # type: ignore[no-any-return]


def _field_name(key: str) -> str:
    """Return the field name of an environ key, ``X-Api-Key``; empty when it is no field name."""
    name = key[5:].replace("_", "-").title()
    return name if is_token(name) else ""


def _drop_named(connection: str, fields: Fields, request_id: str | None) -> None:
    """Remove what the client's ``Connection`` names, but for what is not its to take away."""
    try:
        named = connection_tokens(connection) - PROTECTED
    except ValueError as error:
        raise Refusal.of(400, "Malformed Connection field.", str(error)) from None
    for name in [name for name in fields if name.lower() in named]:
        if request_id is None or fields[name] != request_id:
            del fields[name]


# How far a request may go: methods that end here, and Max-Forwards (RFC 9110 section 7.6.2).

NEVER = frozenset(("CONNECT", "TRACE", "TRACK"))
"""Methods that are never passed on: a tunnel, and echoes of fields that a script must not read."""


def is_last_hop(environ: WSGIEnvironment) -> bool:
    """Return whether the request may go no further and is answered here.

    That is OPTIONS with ``Max-Forwards: 0`` (RFC 9110 section 7.6.2); the other method that the
    field is for, TRACE, never goes on.

    :raises Refusal: What it holds is no number.
    """
    if environ["REQUEST_METHOD"] != "OPTIONS" or "HTTP_MAX_FORWARDS" not in environ:
        return False
    return hops_left(environ["HTTP_MAX_FORWARDS"]) == 0


def hops_left(value: str) -> int:
    """Return how many times the request may be passed on, as its Max-Forwards field says.

    :raises Refusal: The *value* is no number.
    """
    value = value.strip(" \t")
    if not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise Refusal.of(400, "Malformed Max-Forwards field.")
    return int(value)


# Which way a request came: ``X-Forwarded-*``, ``Forwarded`` (RFC 7239) and ``Via`` (RFC 9110).


class Way:
    """Tells the next hop which way a request came.

    :param via: The gateway's name in ``Via`` (RFC 9110 section 7.6.3).
    :param loop_field: The field that names it to itself, so that it sees a loop: ``via``, or
        ``cdn-loop`` (RFC 8586) for services that treat requests with a ``Via`` differently.
    :raises ValueError: An argument is not of its form; the message names it.
    """

    def __init__(self, via: str, loop_field: str = "via") -> None:
        if not is_token(via):
            raise ValueError(f"via is a word such as wsgigate, got {via!r}")
        if loop_field not in ("via", "cdn-loop"):
            raise ValueError(f'loop_field is "via" or "cdn-loop", got {loop_field!r}')
        self._via = via
        self._in_via = loop_field == "via"

    def tell(
        self, environ: WSGIEnvironment, fields: dict[str, str], protocol: str, outside: str
    ) -> None:
        """Add to *fields* the way that the request of *environ* came.

        :param protocol: The client's, ``HTTP/1.1``.
        :param outside: What the client's path begins with and the next hop does not see.
        :raises Refusal: It came by here already.
        """
        peer = environ.get("REMOTE_ADDR") or "unknown"
        trusted = peer_trusted(environ)
        if trusted:  # a proxy fix inside of ClientAddress has replaced it by the client's
            source = environ.get(CLIENT_SOURCE) or (peer,)
            peer = source[0] if source[0] != "unix" else "unknown"
        scheme = environ["wsgi.url_scheme"]
        host = environ.get("HTTP_HOST", "")
        told = _first_hop(peer, scheme, host)
        if trusted:
            told = _next_hop(environ, told)
        fields.update(told)
        before = environ.get("HTTP_X_FORWARDED_PREFIX") if trusted else None
        if outside or before:
            prefix = (before or "").rstrip("/") + outside
            if prefix:
                fields["X-Forwarded-Prefix"] = prefix
        name = self._via
        if self._in_via:
            field, before, mine = "Via", environ.get("HTTP_VIA"), f"{protocol[5:]} {name}"
        else:
            field, before, mine = "Cdn-Loop", environ.get("HTTP_CDN_LOOP"), name
        if before:
            if name in before and name in re.split(r"[\s,;]+", before):
                raise Refusal.of(508, "Loop detected.", f"{name} is in {field} already")
            mine = f"{before}, {mine}"
        fields[field] = mine


@lru_cache(maxsize=4096)
def _first_hop(peer: str, scheme: str, host: str) -> Mapping[str, str]:
    """Return what is told of a request that nobody passed on before."""
    # An IPv4 client of an IPv6 socket is ::ffff:192.0.2.1 to the server: one spelling for all.
    told = {
        "X-Forwarded-For": address_of(peer.partition("%")[0]) or peer,
        "X-Forwarded-Proto": scheme,
    }
    if host:
        told["X-Forwarded-Host"] = host
    told["X-Forwarded-Port"] = _port(host, scheme)
    told["Forwarded"] = format_forwarded(peer, host, scheme)
    return told


def _next_hop(environ: WSGIEnvironment, told: Mapping[str, str]) -> Mapping[str, str]:
    """Return *told* behind what the trusted proxies before this one told.

    Scheme, host and port are one statement about the client's view: a port that the proxy did not
    tell is the one of the host and the scheme it told, never the one that this hop came by.
    """
    merged = dict(told)
    for name, key in (
        ("X-Forwarded-For", "HTTP_X_FORWARDED_FOR"),
        ("Forwarded", "HTTP_FORWARDED"),
    ):
        chain = environ.get(key)
        if chain:
            merged[name] = f"{chain}, {told[name]}"
    for name, key in (
        ("X-Forwarded-Proto", "HTTP_X_FORWARDED_PROTO"),
        ("X-Forwarded-Host", "HTTP_X_FORWARDED_HOST"),
    ):
        value = environ.get(key)
        if value:
            merged[name] = value
    port = environ.get("HTTP_X_FORWARDED_PORT", "")
    host, scheme = merged.get("X-Forwarded-Host", ""), merged["X-Forwarded-Proto"]
    merged["X-Forwarded-Port"] = _port(host, scheme, port)
    return merged


def _port(host: str, scheme: str, told: str = "") -> str:
    """Return the port of *host*; where that has none, the one *told*, or the scheme's own."""
    port = host.rpartition(":")[2] if not host.endswith("]") and ":" in host else ""
    return port or told or ("443" if scheme == "https" else "80")


_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}")

_BODY_METHODS = frozenset(("POST", "PUT", "PATCH"))

_USUAL_METHODS = _BODY_METHODS | {"DELETE", "GET", "HEAD", "OPTIONS"}

_PROTOCOLS = frozenset(("HTTP/1.0", "HTTP/1.1", "HTTP/2.0"))


class Outgoing(requests.PreparedRequest):
    """A request filled by hand: preparing one would rewrite its target and guess its framing."""

    # What a prepared request has besides, and nobody here fills or changes.
    _cookies = None
    _body_position = None
    hooks: Mapping[str, list[object]] = {"response": []}

    target: str
    origin: str
    """The instance's URL."""
    scheme: str
    """The one the client came by."""
    outside: str
    """What the client's path begins with and the instance does not see: mount and prefix."""
    upgrade: bool = False
    """Whether it asks to become a WebSocket."""
    set_cookie: str | None = None
    """What the gateway has the client keep with the answer, if anything."""

    def __init__(self) -> None:
        self.body = None

    @property
    def path_url(self) -> str:
        """The request target, exactly."""
        return self.target


class RequestMaker:
    """Makes the request for an instance out of the client's.

    :param strip_prefix: What to take off the front of the path; ``{name}`` and ``*`` stand for a
        segment.
    :param add_prefix: What to put in front of it then.
    :param preserve_host: Send the client's ``Host`` instead of the instance's own.
    :param fields: Changes to the request fields, made last.
    :param identity: Field name to claim name: who the caller is, told by verified claims. The
        fields are removed from what the client sent, claims or not.
    :param forward_authorization: Whether the client's ``Authorization`` goes along; when ``None``,
        unless verified claims are told by *identity* instead.
    :param via: The gateway's name in ``Via`` (RFC 9110 section 7.6.3).
    :param loop_field: ``via``, or ``cdn-loop`` to send ``CDN-Loop`` (RFC 8586) instead of ``Via``.
    :param hidden_cookies: The names of cookies that are the gateway's own, and do not go along.
    :raises ValueError: A setting is not of its form.
    """

    def __init__(
        self,
        *,
        strip_prefix: str = "",
        add_prefix: str = "",
        preserve_host: bool = False,
        fields: FieldRules | None = None,
        identity: Mapping[str, str] | None = None,
        forward_authorization: bool | None = None,
        via: str = "wsgigate",
        loop_field: str = "via",
        hidden_cookies: Collection[str] = (),
    ) -> None:
        self._strip = _prefix(strip_prefix, "strip_prefix")
        self._strip_segments = tuple(self._strip.split("/")[1:]) if self._strip else ()
        self._strip_varies = "{" in self._strip or "*" in self._strip_segments
        self._add = _prefix(add_prefix, "add_prefix")
        if "{" in self._add or "*" in self._add.split("/"):
            raise ValueError("add_prefix holds no parameters")
        self._preserve_host = preserve_host
        self._fields = fields or None
        identity = dict(identity or {})
        for name in identity:
            if not is_token(name) or name.lower() in HOP_BY_HOP | PROTECTED:
                raise ValueError(f"{name!r} can not be an identity field")
        self._identity = tuple(identity.items())
        self._forward_authorization = forward_authorization
        self._way = Way(via, loop_field)
        self._copier = FieldCopier(identity)
        self._hidden_cookies = frozenset(hidden_cookies)

    def make(self, environ: WSGIEnvironment, target: Target, instance: Instance) -> Outgoing:
        """Return the request for *instance*.

        :raises Refusal: It can not be forwarded; carries the answer.
        """
        method = environ["REQUEST_METHOD"]
        if method not in _USUAL_METHODS:
            _check_method(method)
        protocol = environ.get("SERVER_PROTOCOL", "HTTP/1.1")
        if protocol not in _PROTOCOLS:
            raise Refusal.of(505, "HTTP version not supported.")
        fields = self._copier.copied(environ)
        if self._hidden_cookies and "Cookie" in fields:
            cookies = without_cookies(fields.pop("Cookie"), self._hidden_cookies)
            if cookies:
                fields["Cookie"] = cookies
        request = Outgoing()
        body = client_body(environ)
        if body is not None:
            request.body = body  # type: ignore[assignment]  # a reader is what requests streams
            if body.length is not None:
                fields["Content-Length"] = str(body.length)
        elif method in _BODY_METHODS or environ.get("CONTENT_LENGTH"):
            fields["Content-Length"] = "0"
        if method == "OPTIONS" and "Max-Forwards" in fields:
            fields["Max-Forwards"] = str(hops_left(fields["Max-Forwards"]) - 1)
        if self._identity or self._forward_authorization is False:
            self._tell_identity(environ, fields)
        path = target.path
        stripped = ""
        if self._strip or self._add:
            path, stripped = self._rewritten(path, kept=isinstance(target, OddTarget))
        request.scheme = environ["wsgi.url_scheme"]
        request.outside = outside = mount_of(environ) + stripped
        self._way.tell(environ, fields, protocol, outside)
        host = environ.get("HTTP_HOST") if self._preserve_host else None
        fields["Host"] = host or instance.authority
        if "Destination" in fields and method in METHODS:
            fields["Destination"] = led_to_instance(environ, fields, instance.scheme, self._add)
        if self._fields is not None:
            fields = Fields.joined(self._fields.apply(list(fields.items())))
        request.method = method
        request.origin = instance.url
        request.target = path if target.query is None else f"{path}?{target.query}"
        request.url = instance.url + request.target
        fields.target = request.target
        request.headers = fields  # type: ignore[assignment]
        return request

    def _tell_identity(self, environ: WSGIEnvironment, fields: Fields) -> None:
        claims: Mapping[str, object] | None = environ.get(CLAIMS)
        told = bool(self._identity) and claims is not None
        for name, claim in self._identity if claims is not None else ():
            value = _claim_text((claims or {}).get(claim))
            if value is None:
                continue
            if not is_field_value(value) or len(value) > 4096:
                raise Refusal.of(403, "Forbidden.", f"the claim {claim} can not be told in a field")
            fields[name] = value
        forward = self._forward_authorization
        if (not told) if forward is None else forward:
            return
        fields.pop("Authorization", None)

    def _rewritten(self, path: str, *, kept: bool) -> tuple[str, str]:
        """Return the path for the instance, and what was stripped off the client's.

        :param kept: Whether the path may hold what most routes refuse.
        """
        stripped = ""
        if self._strip:
            stripped = self._match(path)
            path = path[len(stripped) :] or "/"
        if self._add:
            path = self._add + path if path != "/" else self._add + "/"
        if (stripped or self._add) and not _stays(path, self._add, kept):
            raise Refusal.of(
                400, "Malformed request target.", "a rewritten path that is not canonical"
            )
        return path, stripped

    def _match(self, path: str) -> str:
        if not self._strip_varies:
            strip = self._strip
            return strip if path == strip or path.startswith(strip + "/") else ""
        parts = path.split("/")[1 : len(self._strip_segments) + 1]
        fits = len(parts) == len(self._strip_segments) and all(
            wanted == "*" or wanted[0] == "{" or wanted == part
            for wanted, part in zip(self._strip_segments, parts, strict=True)
        )
        return "/" + "/".join(parts) if fits else ""


def _stays(path: str, add: str, kept: bool) -> bool:
    """Return whether a rewritten *path* is still one that is read as it was matched."""
    if kept and not leaves(path, add.count("/")):
        return True
    return canonical_path(path) == path


def _check_method(method: str) -> None:
    if not _METHOD.fullmatch(method):
        raise Refusal.of(400, "Malformed method.")
    if method in NEVER:
        raise Refusal.of(405, "Method not allowed.")


def _claim_text(value: object) -> str | None:
    """Return a claim as one line of text; ``None`` for what has no plain one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return None


def _prefix(value: str, setting: str) -> str:
    value = value.rstrip("/")
    if not value:
        return ""
    try:
        canonical = canonical_pattern(value)
    except BadTarget as error:
        raise ValueError(f"{setting} {value!r}: {error}") from None
    if not canonical.startswith("/") or "//" in canonical:
        raise ValueError(f"{setting} is a path such as /api, got {value!r}")
    return canonical
