"""Builds the request to an instance from a WSGI request, without I/O.

The order of steps is a security property. First the client's fields are copied, except hop-by-hop
fields, fields that only a trusted proxy may set, and fields that only the gateway may set. Then
the gateway sets its own fields. So a client cannot remove a field of the gateway's by naming it in
``Connection`` (RFC 9110, section 7.6.1), and no spelling of an identity field passes, because
environ keys are deleted, not field names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, Protocol
from wsgiref.types import WSGIEnvironment

import requests

from wsgigate.client.connections import ConnectionMeter
from wsgigate.client.http11 import Fields
from wsgigate.discovery import Instance
from wsgigate.http.bodies import client_body
from wsgigate.http.caller import verified_caller
from wsgigate.http.fields import (
    CONTROLS,
    HOP_BY_HOP,
    FieldRules,
    connection_tokens,
    is_token,
    without_cookies,
)
from wsgigate.http.forwarded import CLIENT_FORGED, FAMILY
from wsgigate.http.forwarding import forwarding_fields
from wsgigate.http.problem import Refusal
from wsgigate.http.target import (
    BadTarget,
    OddTarget,
    Target,
    canonical_path,
    canonical_pattern,
    leaves,
    mount_of,
)
from wsgigate.http.wsgi import (
    PEER_TRUSTED,
    REQUEST_ID,
    SET_FIELDS,
    environ_key,
    peer_trusted,
)
from wsgigate.proxy.rewriting import DESTINATION_METHODS, instance_destination
from wsgigate.rules.claims import CallerValue, VerifiedCaller

__all__ = [
    "NEVER",
    "PROTECTED",
    "FieldCopier",
    "ForwardingFields",
    "Outgoing",
    "RequestMaker",
    "TokenSigner",
    "hops_left",
    "is_last_hop",
]


# Copying the client's fields. Which fields are copied is cached per set of environ keys. Fields are
# excluded by environ key, not by name, so that no other spelling of a field passes.

PROTECTED = frozenset(
    (
        *("authorization", "cdn-loop", "content-length", "content-type", "cookie", "host"),
        *("baggage", "traceparent", "tracestate", "x-request-id"),
    )
)
"""Fields that a client cannot remove by naming them in ``Connection``."""

_CLEAN = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*+")
"""Text without control characters; a third of the price of a search for one."""

_SET_ANEW = frozenset(("HTTP_EXPECT", "HTTP_HOST", "HTTP_HTTP2_SETTINGS", "HTTP_VIA"))

_FRAMING = frozenset(("HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"))

_MOST_SHAPES = 512

_LONGEST_SHAPE = 8192
"""Longest set of keys, in characters, that is cached; bounds the memory of the cache."""


class _Shape(NamedTuple):
    """The fields to copy from an environ with a certain set of keys."""

    names: tuple[str, ...]
    values: Callable[[WSGIEnvironment], tuple[str, ...]]
    nameless: bool
    """Whether one of the keys is a request field without a name."""


class FieldCopier:
    """Copies the fields of a client's request that are forwarded.

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
        """Return the fields of *environ* to forward.

        :raises Refusal: A field is malformed.
        """
        keys = tuple(environ)
        shape = self._shapes.get(keys) or self._learn(keys)
        if shape.nameless:
            raise Refusal.of(400, "Malformed request field.", "a request field without a name")
        values = shape.values(environ)
        joined = "".join(values).encode("utf-8", "surrogatepass")
        if len(joined.translate(None, CONTROLS)) != len(joined):
            raise Refusal.of(
                400, "Malformed request field.", "a control character in a request field"
            )
        fields = Fields(zip(shape.names, values, strict=True))
        content_type = environ.get("CONTENT_TYPE")
        if content_type:
            if not _CLEAN.fullmatch(content_type):
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
                self._shapes = {}  # some client varies its fields; start anew
            self._shapes[keys] = shape
        return shape


def _getter(keys: list[str]) -> Callable[[WSGIEnvironment], tuple[str, ...]]:
    if len(keys) < 2:
        return lambda environ: tuple([environ[key] for key in keys])
    getter: Any = itemgetter(*keys)
    return getter  # type: ignore[no-any-return]


def _field_name(key: str) -> str:
    """Return the field name of an environ key, ``X-Api-Key``; empty if it is not a valid name."""
    name = key[5:].replace("_", "-").title()
    return name if is_token(name) else ""


def _drop_named(connection: str, fields: Fields, request_id: str | None) -> None:
    """Remove the fields named in the client's ``Connection``, except protected ones."""
    try:
        named = connection_tokens(connection) - PROTECTED
    except ValueError as error:
        raise Refusal.of(400, "Malformed Connection field.", str(error)) from None
    for name in [name for name in fields if name.lower() in named]:
        if request_id is None or fields[name] != request_id:
            del fields[name]


# Methods that are never forwarded, and Max-Forwards (RFC 9110, section 7.6.2).

NEVER = frozenset(("CONNECT", "TRACE", "TRACK"))
"""Methods that are never forwarded: a tunnel, and echoes of fields that scripts must not read."""


def is_last_hop(environ: WSGIEnvironment) -> bool:
    """Return whether the gateway must respond itself, because of ``Max-Forwards: 0``.

    That is the case for OPTIONS (RFC 9110, section 7.6.2); TRACE, the other method with that field,
    is never forwarded.

    :raises Refusal: The value of the field is not a number.
    """
    if environ["REQUEST_METHOD"] != "OPTIONS" or "HTTP_MAX_FORWARDS" not in environ:
        return False
    return hops_left(environ["HTTP_MAX_FORWARDS"]) == 0


def hops_left(value: str) -> int:
    """Return the number of times the request may be forwarded, from its Max-Forwards field.

    :raises Refusal: *value* is not a number.
    """
    value = value.strip(" \t")
    if not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise Refusal.of(400, "Malformed Max-Forwards field.")
    return int(value)


# Forwarding fields: ``X-Forwarded-*``, ``Forwarded`` (RFC 7239) and ``Via`` (RFC 9110).


class ForwardingFields:
    """Adds the fields that describe the path of a request to the next hop.

    :param via: The gateway's name in ``Via`` (RFC 9110, section 7.6.3).
    :param loop_field: The field for loop detection: ``via``, or ``cdn-loop`` (RFC 8586) for
        services that treat requests with a ``Via`` differently.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(self, via: str, loop_field: str = "via") -> None:
        if not is_token(via):
            raise ValueError(f"via must be a token such as wsgigate, got {via!r}")
        if loop_field not in ("via", "cdn-loop"):
            raise ValueError(f'loop_field must be "via" or "cdn-loop", got {loop_field!r}')
        self._via = via
        self._in_via = loop_field == "via"

    def add_to(
        self, environ: WSGIEnvironment, fields: dict[str, str], protocol: str, outside: str
    ) -> None:
        """Add the forwarding fields of the request of *environ* to *fields*.

        :param protocol: The client's protocol, ``HTTP/1.1``.
        :param outside: The part of the client's path that is removed for the next hop.
        :raises Refusal: The request passed this gateway before: a forwarding loop.
        """
        trusted = PEER_TRUSTED in environ and peer_trusted(environ)
        fields.update(forwarding_fields(environ, trusted))
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


_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}")

_BODY_METHODS = frozenset(("POST", "PUT", "PATCH"))

_USUAL_METHODS = _BODY_METHODS | {"DELETE", "GET", "HEAD", "OPTIONS"}

_PROTOCOLS = frozenset(("HTTP/1.0", "HTTP/1.1", "HTTP/2.0"))


class Outgoing(requests.PreparedRequest):
    """A prepared request with attributes set directly.

    ``requests``' own preparation would rewrite the target and guess the framing.
    """

    # Attributes of a prepared request that the gateway does not use.
    _cookies = None
    _body_position = None
    hooks: Mapping[str, list[object]] = {"response": []}

    target: str
    origin: str
    """The instance's URL."""
    scheme: str
    """The scheme of the client's request."""
    outside: str
    """The part of the client's path that the instance does not see: mount and prefix."""
    fresh: bool = False
    """Whether it must be sent on a new connection."""
    upgrade: bool = False
    """Whether it requests a WebSocket upgrade."""
    connections: ConnectionMeter | None = None
    """Counts the connections over which it is sent."""
    set_cookie: str | None = None
    """A ``Set-Cookie`` value that the gateway adds to the response, if any."""

    body = None

    @property
    def path_url(self) -> str:
        """The request target, exactly."""
        return self.target


_new_request: Callable[[], Outgoing] = partial(Outgoing.__new__, Outgoing)
"""Skips the constructor of ``requests``, which sets attributes that are set here anyway."""


class RequestMaker:
    """Builds the request to an instance from the client's request.

    :param strip_prefix: Prefix to remove from the path; ``{name}`` and ``*`` stand for a segment.
    :param add_prefix: Prefix to add to the path afterwards.
    :param preserve_host: Send the client's ``Host`` instead of the instance's own.
    :param fields: Changes to the request fields, made last.
    :param identity: Field names and the verified claims they carry. These fields are always removed
        from the client's request, with or without claims.
    :param forward_authorization: Whether to forward the client's ``Authorization``. ``None``: only
        when *identity* sends no verified claims instead.
    :param via: The gateway's name in ``Via`` (RFC 9110, section 7.6.3).
    :param loop_field: ``via``, or ``cdn-loop`` to send ``CDN-Loop`` (RFC 8586) instead of ``Via``.
    :param hidden_cookies: Names of the gateway's own cookies, which are not forwarded.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        *,
        strip_prefix: str = "",
        add_prefix: str = "",
        preserve_host: bool = False,
        fields: FieldRules | None = None,
        identity: Mapping[str, str] | None = None,
        internal_tokens: TokenSigner | None = None,
        audience: str = "",
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
            raise ValueError(f"add_prefix cannot contain {{name}} or *, got {add_prefix!r}")
        self._preserve_host = preserve_host
        self._fields = fields or None
        identity = dict(identity or {})
        for name in identity:
            if not is_token(name) or name.lower() in HOP_BY_HOP | PROTECTED:
                raise ValueError(f"{name!r} cannot be an identity field; use one such as X-User-Id")
        self._identity = tuple((name, _caller_value(name, text)) for name, text in identity.items())
        self._forward_authorization = forward_authorization
        # a route that forwards the caller's own token has no place for another in its field
        replaces = internal_tokens is not None and internal_tokens.field.lower() == "authorization"
        self._signer = None if replaces and forward_authorization else internal_tokens
        if replaces and forward_authorization is None:
            # not even without a caller: a client could send a token that a service has leaked
            self._forward_authorization = False
        self._audience = audience
        self._forwarding = ForwardingFields(via, loop_field)
        signed = () if internal_tokens is None or replaces else (internal_tokens.field,)
        self._copier = FieldCopier((*identity, *signed))
        self._hidden_cookies = frozenset(hidden_cookies)

    def make(self, environ: WSGIEnvironment, target: Target, instance: Instance) -> Outgoing:
        """Return the request for *instance*.

        :raises Refusal: The request cannot be forwarded; carries the client's response.
        """
        method = environ["REQUEST_METHOD"]
        if method not in _USUAL_METHODS:
            _check_method(method)
        protocol = environ.get("SERVER_PROTOCOL", "HTTP/1.1")
        if protocol not in _PROTOCOLS:
            raise Refusal.of(505, "HTTP version not supported.")
        fields = self._copier.copied(environ)
        if SET_FIELDS in environ:
            # after the client's Connection was obeyed, which could else name them
            for key in environ[SET_FIELDS]:
                if key in environ:
                    fields[_field_name(key)] = environ[key]
        if self._hidden_cookies and "Cookie" in fields:
            cookies = without_cookies(fields.pop("Cookie"), self._hidden_cookies)
            if cookies:
                fields["Cookie"] = cookies
        request = _new_request()
        length = environ.get("CONTENT_LENGTH")
        body = client_body(environ) if length or "HTTP_TRANSFER_ENCODING" in environ else None
        if body is not None:
            request.body = body  # type: ignore[assignment]  # a reader is what requests streams
            if body.length is not None:
                fields["Content-Length"] = str(body.length)
        elif length or method in _BODY_METHODS:
            fields["Content-Length"] = "0"
        if method == "OPTIONS" and "Max-Forwards" in fields:
            fields["Max-Forwards"] = str(hops_left(fields["Max-Forwards"]) - 1)
        if self._identity or self._forward_authorization is False or self._signer is not None:
            self._add_identity(environ, fields)
        path = target.path
        stripped = ""
        if self._strip or self._add:
            path, stripped = self._rewritten(path, kept=isinstance(target, OddTarget))
        request.scheme = environ["wsgi.url_scheme"]
        mount = mount_of(environ) if environ.get("SCRIPT_NAME") else ""
        request.outside = outside = mount + stripped
        self._forwarding.add_to(environ, fields, protocol, outside)
        host = environ.get("HTTP_HOST") if self._preserve_host else None
        fields["Host"] = host or instance.authority
        if "Destination" in fields and method in DESTINATION_METHODS:
            fields["Destination"] = instance_destination(
                environ, fields, instance.scheme, self._add
            )
        if self._fields is not None:
            fields = Fields.joined(self._fields.apply(list(fields.items())))
        request.method = method
        request.origin = instance.url
        request.target = path if target.query is None else f"{path}?{target.query}"
        request.url = instance.url + request.target
        fields.target = request.target
        request.headers = fields  # type: ignore[assignment]
        return request

    def _add_identity(self, environ: WSGIEnvironment, fields: Fields) -> None:
        caller = verified_caller(environ)
        sends_identity = bool(self._identity) and caller is not None
        if caller is not None:
            for name, value in self._identity:
                try:
                    text = _identity_text(value.find(caller))
                except ValueError as error:
                    reason = f"the caller's {value.text} cannot be sent in a field: {error}"
                    raise Refusal.of(403, "Forbidden.", reason) from None
                if text is not None:
                    fields[name] = text
        forward = self._forward_authorization
        signer = self._signer
        if signer is not None and caller is not None:
            sends_identity = True
        if not ((not sends_identity) if forward is None else forward):
            fields.pop("Authorization", None)
        if signer is not None and caller is not None:
            fields[signer.field] = signer.value(caller, self._audience)

    def _rewritten(self, path: str, *, kept: bool) -> tuple[str, str]:
        """Return the path for the instance, and the prefix stripped from the client's path.

        :param kept: Whether the path may contain what routes reject by default.
        """
        stripped = ""
        if self._strip:
            stripped = self._match(path)
            path = path[len(stripped) :] or "/"
        if self._add:
            path = self._add + path if path != "/" else self._add + "/"
        if (stripped or self._add) and not _stays(path, self._add, kept):
            raise Refusal.of(
                400, "Malformed request target.", "the rewritten path is not canonical"
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
    """Return whether a rewritten *path* still has the reading that was matched."""
    if kept and not leaves(path, add.count("/")):
        return True
    return canonical_path(path) == path


def _check_method(method: str) -> None:
    if not _METHOD.fullmatch(method):
        raise Refusal.of(400, "Malformed method.")
    if method in NEVER:
        raise Refusal.of(405, "Method not allowed.")


class TokenSigner(Protocol):
    """Signs tokens for services, such as :class:`~wsgigate.auth.internal_token.InternalTokens`."""

    @property
    def field(self) -> str:
        """The request field that carries a token."""

    def value(self, caller: VerifiedCaller, audience: str) -> str:
        """Return the value of that field for a request of *caller* to the service *audience*."""


_LONGEST_IDENTITY = 4096
"""Maximum length of an identity field in bytes: more is rejected by many servers."""

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]|^ | $")
"""What ends a line, or is removed by a backend, which would read another name."""


def _caller_value(name: str, text: str) -> CallerValue:
    try:
        return CallerValue(text)
    except ValueError as error:
        raise ValueError(f"the identity field {name}: {error}") from None


def _identity_text(value: object) -> str | None:
    """Return a value of the caller as the text of a field; ``None`` for other types.

    It is UTF-8, one byte a character, as header fields are read. Items of a list are separated by
    spaces, so a space within one is sent as ``%20``: a group named "a b" is not two groups.

    :raises ValueError: The value cannot be sent in a field.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        text = str(value)
    elif isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        text = " ".join(item.replace("%", "%25").replace(" ", "%20") for item in value)
    else:
        return None
    if _UNSAFE.search(text):
        raise ValueError("it has control characters or spaces at its ends")
    encoded = text.encode("utf-8")  # a lone surrogate is a ValueError, too
    if len(encoded) > _LONGEST_IDENTITY:
        raise ValueError(f"it has more than {_LONGEST_IDENTITY} bytes")
    return encoded.decode("latin-1")


def _prefix(value: str, setting: str) -> str:
    value = value.rstrip("/")
    if not value:
        return ""
    try:
        canonical = canonical_pattern(value)
    except BadTarget as error:
        raise ValueError(f"{setting} {value!r}: {error}") from None
    if not canonical.startswith("/") or "//" in canonical:
        raise ValueError(f"{setting} must be a path such as /api, got {value!r}")
    return canonical
