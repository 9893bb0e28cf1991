"""From a WSGI request to the request an instance gets: no I/O, the order of steps is the safety.

What the client sent is copied first, without what concerns only its own connection, what only a
trusted proxy may say, and what only the gateway may say; then the gateway's own fields are set.
So nothing that a client names in ``Connection`` can take away what the gateway adds (RFC 9110
section 7.6.1), and no spelling of an identity field survives: what is deleted is an environ key,
not a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote
from wsgiref.types import WSGIEnvironment

import requests

from wsgigate.discovery import Instance
from wsgigate.fields import (
    HOP_BY_HOP,
    FieldRules,
    connection_tokens,
    is_field_value,
    is_token,
)
from wsgigate.forwarding import CLIENT_FORGED, FAMILY, format_forwarded
from wsgigate.problem import Refusal
from wsgigate.proxy.client_body import client_body
from wsgigate.proxy.hops import NEVER, hops_left
from wsgigate.proxy.sending import Fields
from wsgigate.target import BadTarget, Target, canonical_path, canonical_pattern
from wsgigate.wsgi import CLAIMS, PEER_TRUSTED, REQUEST_ID, environ_key

__all__ = ["Outgoing", "RequestMaker"]

_PROTECTED = frozenset(
    ("authorization", "content-length", "content-type", "cookie", "host", "x-request-id")
)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}")
_MOST_NAMES = 2048
_BODY_METHODS = frozenset(("POST", "PUT", "PATCH"))


class Outgoing(requests.PreparedRequest):
    """A request filled by hand: preparing one would rewrite its target and guess its framing."""

    target: str
    origin: str
    """The instance's URL."""
    scheme: str
    """The one the client came by."""
    outside: str
    """What the client's path begins with and the instance does not see: mount and prefix."""

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
            if not is_token(name) or name.lower() in HOP_BY_HOP | _PROTECTED:
                raise ValueError(f"{name!r} can not be an identity field")
        self._identity = tuple(identity.items())
        self._forward_authorization = forward_authorization
        if not is_token(via):
            raise ValueError(f"via is a word such as wsgigate, got {via!r}")
        self._via = via
        self._names: dict[str, str | None] = {}  # bounded
        self._dropped = (
            frozenset(environ_key(name) for name in HOP_BY_HOP)
            | frozenset(environ_key(name) for name in identity)
            | CLIENT_FORGED
            | {"HTTP_EXPECT", "HTTP_HOST", "HTTP_HTTP2_SETTINGS", "HTTP_VIA"}
            | {"HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"}
        )

    def make(self, environ: WSGIEnvironment, target: Target, instance: Instance) -> Outgoing:
        """Return the request for *instance*.

        :raises Refusal: It can not be forwarded; carries the answer.
        """
        method = environ["REQUEST_METHOD"]
        if not _METHOD.fullmatch(method):
            raise Refusal.of(400, "Malformed method.")
        if method in NEVER:
            raise Refusal.of(405, "Method not allowed.")
        if environ.get("SERVER_PROTOCOL", "HTTP/1.1") not in ("HTTP/1.1", "HTTP/1.0", "HTTP/2.0"):
            raise Refusal.of(505, "HTTP version not supported.")
        fields = self._copied(environ)
        request = Outgoing()
        body = client_body(environ)
        request.body = body  # type: ignore[assignment]  # a reader is what requests streams
        if body is not None and body.length is not None:
            fields["Content-Length"] = str(body.length)
        elif body is None and (method in _BODY_METHODS or environ.get("CONTENT_LENGTH")):
            fields["Content-Length"] = "0"
        if method == "OPTIONS" and "Max-Forwards" in fields:
            fields["Max-Forwards"] = str(hops_left(fields["Max-Forwards"]) - 1)
        self._tell_identity(environ, fields)
        path, stripped = self._rewritten(target.path)
        request.scheme = environ["wsgi.url_scheme"]
        request.outside = _mount(environ) + stripped
        self._tell_way(environ, fields, request.outside)
        host = environ.get("HTTP_HOST") if self._preserve_host else None
        fields["Host"] = host or instance.authority
        if self._fields is not None:
            fields = Fields.joined(self._fields.apply(list(fields.items())))
        request.method = method
        request.origin = instance.url
        request.target = path if target.query is None else f"{path}?{target.query}"
        request.url = instance.url + request.target
        fields.target = request.target
        request.headers = fields  # type: ignore[assignment]
        return request

    def _copied(self, environ: WSGIEnvironment) -> Fields:
        names = self._names
        fields = Fields()
        for key, value in environ.items():
            try:
                name = names[key]
            except KeyError:
                name = self._name(key)
            if name is not None:
                fields[name] = value
        content_type = environ.get("CONTENT_TYPE")
        if content_type:
            fields["Content-Type"] = content_type
        if "" in fields:
            raise Refusal.of(400, "Malformed request field.", "a request field without a name")
        if _CONTROL.search("".join(fields.values())):
            raise Refusal.of(
                400, "Malformed request field.", "a control character in a request field"
            )
        connection = environ.get("HTTP_CONNECTION")
        if connection and connection.lower() not in ("keep-alive", "close"):
            try:
                named = connection_tokens(connection) - _PROTECTED
            except ValueError as error:
                raise Refusal.of(400, "Malformed Connection field.", str(error)) from None
            request_id = environ.get(REQUEST_ID)
            for name in [name for name in fields if name.lower() in named]:
                if request_id is None or fields[name] != request_id:
                    del fields[name]
        return fields

    def _name(self, key: str) -> str | None:
        """Return the field that an environ key stands for; None when there is none to copy."""
        name = None
        if key[:5] == "HTTP_" and key not in self._dropped and not key.startswith(FAMILY):
            name = _field_name(key)
        if len(self._names) < _MOST_NAMES and len(key) <= 64:
            self._names[key] = name
        return name

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

    def _rewritten(self, path: str) -> tuple[str, str]:
        """Return the path for the instance, and what was stripped off the client's."""
        stripped = ""
        if self._strip:
            stripped = self._match(path)
            path = path[len(stripped) :] or "/"
        if self._add:
            path = self._add + path if path != "/" else self._add + "/"
        if (stripped or self._add) and canonical_path(path) != path:
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

    def _tell_way(self, environ: WSGIEnvironment, fields: Fields, outside: str) -> None:
        """Say which way the request came: ``X-Forwarded-*``, ``Forwarded`` (RFC 7239), ``Via``."""
        peer = environ.get("REMOTE_ADDR") or "unknown"
        scheme = environ["wsgi.url_scheme"]
        host = environ.get("HTTP_HOST", "")
        before: Mapping[str, str] = environ if environ.get(PEER_TRUSTED) else {}
        chain = before.get("HTTP_X_FORWARDED_FOR")
        fields["X-Forwarded-For"] = f"{chain}, {peer}" if chain else peer
        fields["X-Forwarded-Proto"] = before.get("HTTP_X_FORWARDED_PROTO") or scheme
        known_host = before.get("HTTP_X_FORWARDED_HOST") or host
        if known_host:
            fields["X-Forwarded-Host"] = known_host
        fields["X-Forwarded-Port"] = before.get("HTTP_X_FORWARDED_PORT") or _port(host, scheme)
        element = format_forwarded(peer, host, scheme)
        chain = before.get("HTTP_FORWARDED")
        fields["Forwarded"] = f"{chain}, {element}" if chain else element
        prefix = before.get("HTTP_X_FORWARDED_PREFIX", "").rstrip("/") + outside
        if prefix:
            fields["X-Forwarded-Prefix"] = prefix
        via = environ.get("HTTP_VIA")
        if via and self._via in via and self._via in re.split(r"[\s,]+", via):
            raise Refusal.of(508, "Loop detected.", f"{self._via} is in Via already")
        version = environ.get("SERVER_PROTOCOL", "HTTP/1.1").partition("/")[2]
        fields["Via"] = f"{via}, {version} {self._via}" if via else f"{version} {self._via}"


def _field_name(key: str) -> str:
    """Return the field name of an environ key, ``X-Api-Key``; empty when it is no field name."""
    name = key[5:].replace("_", "-").title()
    return name if is_token(name) else ""


def _mount(environ: WSGIEnvironment) -> str:
    """Return where the gateway itself is mounted, percent-encoded; empty at the root."""
    mount: str = environ.get("SCRIPT_NAME", "").rstrip("/")
    return quote(mount.encode("latin-1", "replace"), safe="/~!$&'()*+,;=:@") if mount else ""


def _claim_text(value: object) -> str | None:
    """Return a claim as one line of text; ``None`` for what has no plain one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int)):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return None


def _port(host: str, scheme: str) -> str:
    port = host.rpartition(":")[2] if not host.endswith("]") and ":" in host else ""
    return port or ("443" if scheme == "https" else "80")


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
