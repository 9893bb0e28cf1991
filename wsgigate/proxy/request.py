"""From a WSGI request to the request an instance gets: no I/O, the order of steps is the safety.

What the client sent is copied first, without what concerns only its own connection, what only a
trusted proxy may say, and what only the gateway may say; then the gateway's own fields are set.
So nothing that a client names in ``Connection`` can take away what the gateway adds (RFC 9110
section 7.6.1), and no spelling of an identity field survives: what is deleted is an environ key,
not a name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from wsgiref.types import WSGIEnvironment

import requests

from wsgigate.cookies import without_cookies
from wsgigate.discovery import Instance
from wsgigate.fields import HOP_BY_HOP, FieldRules, is_field_value, is_token
from wsgigate.problem import Refusal
from wsgigate.proxy.client_body import client_body
from wsgigate.proxy.copying import PROTECTED, FieldCopier
from wsgigate.proxy.destination import METHODS, led_to_instance, mount_of
from wsgigate.proxy.hops import NEVER, hops_left
from wsgigate.proxy.sending import Fields
from wsgigate.proxy.way import Way
from wsgigate.target import BadTarget, OddTarget, Target, canonical_path, canonical_pattern, leaves
from wsgigate.wsgi import CLAIMS

__all__ = ["Outgoing", "RequestMaker"]

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
