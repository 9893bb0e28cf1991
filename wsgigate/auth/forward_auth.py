"""Forward authentication: another HTTP service is asked about each request.

Theory of operation. The service gets the fields of the client's request and a description of it in
``X-Forwarded-*``, and answers whether it may pass, and with which fields. Rules that must hold:

- The fields that the service sets belong to it alone. Those of the client are removed from
  ``environ`` by their CGI keys, so in every spelling, before anything is decided, and whatever the
  answer is: the answer may lack one of them, may not be asked for at all, or may not arrive.
- The description is the gateway's own: the canonical target that is matched and forwarded, and of
  ``X-Forwarded-*`` only what a trusted proxy sent.
- An answer is remembered only under everything that the service got: with a cache, it gets the
  fields of the cache's key and no others. Otherwise a client could get the answer of another one.
- Only a 2xx is a permission. An answer that cannot be relied on is none.

Caddy (GHSA-7r4p-vjf4-gxv4) and Traefik (CVE-2026-33433, CVE-2026-71326) had advisories about the
first and the third of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import urljoin
from wsgiref.types import WSGIEnvironment

from wsgigate.auth.identity import Identity
from wsgigate.auth.token_cache import TokenCache
from wsgigate.client.endpoint import EndpointFailed, EndpointReply, RemoteEndpoint, check_url
from wsgigate.http.client_url import client_target
from wsgigate.http.fields import HOP_BY_HOP, connection_tokens, is_field_value, is_token
from wsgigate.http.forwarded import CLIENT_FORGED, FAMILY
from wsgigate.http.forwarding import forwarding_fields
from wsgigate.http.problem import Refusal
from wsgigate.http.target import BadTarget
from wsgigate.http.wsgi import SET_FIELDS, Headers, environ_key, peer_trusted
from wsgigate.rules.circuit import Outcome
from wsgigate.runtime.logs import one_line
from wsgigate.runtime.shared_calls import CallAbandoned, SharedCalls

__all__ = [
    "SCHEME",
    "AuthAnswer",
    "AuthRejection",
    "AuthRequestFields",
    "AuthResponseFields",
    "AuthService",
    "AuthUnavailable",
    "cache_key",
    "cacheable_for",
    "check_address",
    "field_names",
    "passed_on",
    "probe",
    "with_cookies",
]

SCHEME = "forward-auth"
"""The ``scheme`` of the identities."""


def check_address(address: str) -> None:
    """Check that requests may be sent to *address*.

    :raises ValueError: They may not; the message begins with ``address``.
    """
    check_url(
        address,
        "address",
        example="http://authelia:9091/api/authz/forward-auth",
        plain=", or http:// with a private address",
        private=True,
    )


def field_names(setting: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return *names*; None for None.

    :raises ValueError: One is not the name of a field; the message begins with *setting*.
    """
    if names is None:
        return None
    if isinstance(names, str):
        raise ValueError(f"{setting}: expected a list of field names, not {names!r}")
    for name in names:
        if not isinstance(name, str) or not is_token(name):
            raise ValueError(f"{setting}: {name!r} is not the name of a field")
    return tuple(names)


# What the service gets.

_NEVER = frozenset(("CONNECT", "TRACE", "TRACK"))
"""Methods that the service is not asked with, but with GET."""

_CREDENTIALS = ("HTTP_AUTHORIZATION", "HTTP_COOKIE")
"""Fields that the service needs to see although it may replace them."""

_NOT_SENT = frozenset(
    (
        *map(environ_key, HOP_BY_HOP),
        *("HTTP_HOST", "HTTP_EXPECT", "HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"),
        # the answer is about the request, not a part or a version of a document
        *("HTTP_RANGE", "HTTP_IF_MATCH", "HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH"),
        *("HTTP_IF_RANGE", "HTTP_IF_UNMODIFIED_SINCE"),
        "HTTP_ACCEPT_ENCODING",  # it may be kept for other clients
        *("HTTP_SEC_WEBSOCKET_KEY", "HTTP_SEC_WEBSOCKET_VERSION"),
        *("HTTP_SEC_WEBSOCKET_EXTENSIONS", "HTTP_SEC_WEBSOCKET_PROTOCOL"),
    )
)

_PROTECTED = frozenset(("authorization", "cookie"))
"""Fields that a client cannot hide from the service by naming them in ``Connection``."""


class AuthRequestFields:
    """The fields of a request that the service gets.

    :param names: The names of the client's fields; None for all.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names: dict[str, str] | None = None
        if names is not None:
            self._names = {environ_key(name): name for name in names}

    def of(self, environ: WSGIEnvironment, credentials: Mapping[str, str]) -> dict[str, str]:
        """Return the fields for the request of *environ*.

        :param credentials: Credentials that have been removed from *environ*.
        :raises Refusal: A field or the target is malformed.
        """
        try:
            target = client_target(environ)
            named = connection_tokens(environ.get("HTTP_CONNECTION", "")) - _PROTECTED
        except BadTarget as error:
            raise Refusal.of(400, "Malformed request target.", str(error)) from None
        except ValueError as error:
            raise Refusal.of(400, "Malformed Connection field.", str(error)) from None
        fields: dict[str, str] = {}
        own = frozenset(environ.get(SET_FIELDS, ()))  # of the gateway, such as another ForwardAuth
        for key, name, value in self._given(environ, credentials, own):
            if name.lower() in named and key not in own:
                continue
            if not is_token(name) or not is_field_value(value):
                raise Refusal.of(400, "Malformed request field.", "a malformed request field")
            fields[name] = value
        fields |= forwarding_fields(environ, peer_trusted(environ))
        fields["X-Forwarded-Method"] = environ["REQUEST_METHOD"]
        fields["X-Forwarded-Uri"] = target
        fields["Accept-Encoding"] = "identity"
        return fields

    def _given(
        self, environ: WSGIEnvironment, credentials: Mapping[str, str], own: frozenset[str]
    ) -> Iterator[tuple[str, str, str]]:
        """Yield the keys, names and values of the client's fields and of the gateway's *own*."""
        if self._names is None:
            for key, value in (*environ.items(), *credentials.items()):
                if key[:5] == "HTTP_" and (key in own or not _is_dropped(key)):
                    yield key, key[5:].replace("_", "-").title(), value
            return
        for key, name in self._names.items():
            value = credentials.get(key) or environ.get(key)
            if value is not None and (key in own or not _is_dropped(key)):
                yield key, name, value


def _is_dropped(key: str) -> bool:
    return key in _NOT_SENT or key in CLIENT_FORGED or key.startswith(FAMILY)


def cache_key(
    fields: Mapping[str, str], names: Sequence[str], *, per_request: bool
) -> bytes | None:
    """Return the key under which the answer to a request with *fields* is remembered.

    :param names: The names of the fields with the client's credential, as in *fields*.
    :param per_request: Whether the answer is for this method, URL and client address only.
    :returns: None if the request has none of *names*, and so no credential.
    """
    values = [fields.get(name) for name in names]
    if not any(value is not None for value in values):
        return None
    if per_request:
        values += [fields.get(name) for name in _OF_REQUEST]
    # Lengths first: no value can pass for another one and a part of the next.
    text = ";".join(["-" if value is None else f"{len(value)}:{value}" for value in values])
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


_OF_REQUEST = (
    *("X-Forwarded-Method", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port"),
    *("X-Forwarded-Uri", "X-Forwarded-For", "Forwarded"),
)


# What it answers.

_UNSETTABLE = HOP_BY_HOP | {
    *("content-length", "content-type", "host", "via", "forwarded", "expect", "set-cookie"),
    *("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port"),
    *("x-forwarded-uri", "x-forwarded-method", "x-forwarded-prefix", "x-forwarded-server"),
}

_LONGEST = 8192
"""Maximum length of a field that is set, in bytes: more is rejected by many servers."""

_LISTS = frozenset(("groups", "permissions", "roles"))
"""Claims whose fields are lists, separated by commas (Authelia, oauth2-proxy) or ``|`` (Authentik).
"""


class AuthAnswer(NamedTuple):
    """The permission to pass.

    :ivar fields: The fields to set, by their ``environ`` keys.
    :ivar identity: The caller; None if the answer names none.
    :ivar cookies: The ``Set-Cookie`` fields for the client.
    """

    fields: Mapping[str, str]
    identity: Identity | None
    cookies: tuple[tuple[str, str], ...]


class AuthResponseFields:
    """The fields that the service sets on a request, and what they say of the caller.

    :param names: The names of the fields that are set.
    :param subject: The name of the field with the user; None for none.
    :param claims: Names of claims, with the fields that have their values.
    :param cookies: The names of the cookies for the client.
    :raises ValueError: A name is invalid; the message names it.
    :ivar keys: The ``environ`` keys that clients cannot set.
    """

    def __init__(
        self,
        names: Sequence[str],
        subject: str | None,
        claims: Mapping[str, str],
        cookies: Sequence[str],
    ) -> None:
        self._names = _settable("auth_response_headers", names)
        self._subject = None
        if subject is not None:
            [self._subject] = _settable("header_field", [subject]).values()
        if claims and subject is None:
            raise ValueError("claim_headers: requires header_field, which names the caller")
        if not isinstance(claims, Mapping):
            raise ValueError(f"claim_headers: expected claims with their fields, not {claims!r}")
        self._claims: dict[str, str] = {}
        for claim, field in claims.items():
            if not isinstance(claim, str) or claim in ("", "sub", "iss"):
                raise ValueError(f"claim_headers: {claim!r} cannot be the name of a claim")
            [self._claims[claim]] = _settable(f"claim_headers: {claim}", [field]).values()
        if isinstance(cookies, str) or not all(
            isinstance(each, str) and is_token(each) for each in cookies
        ):
            raise ValueError(
                f"add_auth_cookies_to_response: expected names of cookies, not {cookies!r}"
            )
        self.cookies = frozenset(cookies)
        read = {*self._claims.values(), *filter(None, [self._subject])}
        self.keys = frozenset({*self._names, *map(environ_key, read)})

    def remove(self, environ: WSGIEnvironment) -> dict[str, str]:
        """Remove the client's own fields; return the credentials among them."""
        removed = {key: environ.pop(key) for key in self.keys if key in environ}
        return {key: removed[key] for key in _CREDENTIALS if key in removed}

    def read(self, reply: EndpointReply) -> AuthAnswer:
        """Return what the 2xx *reply* permits.

        :raises EndpointFailed: A field cannot be passed on.
        """
        values: dict[str, list[str]] = {}
        for name, value in reply.fields:
            values.setdefault(name.lower(), []).append(value.strip(" \t"))
        fields = {}
        for key, name in self._names.items():
            if name in values:
                fields[key] = _checked(name, ", ".join(values[name]))
        return AuthAnswer(fields, self._identity(values), self._cookies(values))

    def _identity(self, values: Mapping[str, list[str]]) -> Identity | None:
        if self._subject is None or not any(values.get(self._subject, ())):
            return None  # such as an anonymous caller of a public page
        claims: dict[str, Any] = {"sub": _one(self._subject, values)}
        for claim, field in self._claims.items():
            if any(values.get(field, ())):
                text = ", ".join(values[field]) if claim in _LISTS else _one(field, values)
                claims[claim] = _split(_checked(field, text)) if claim in _LISTS else text
        return Identity.from_claims(claims, scheme=SCHEME)

    def _cookies(self, values: Mapping[str, list[str]]) -> tuple[tuple[str, str], ...]:
        return tuple(
            ("Set-Cookie", value)
            for value in values.get("set-cookie", ())
            if _cookie_name(value) in self.cookies
        )


def _one(name: str, values: Mapping[str, list[str]]) -> str:
    """Return the only value of the field *name*, which is UTF-8 in most services."""
    if len(values[name]) > 1:
        raise EndpointFailed(f"its answer has {name} more than once")
    value = _checked(name, values[name][0])
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return value


def _checked(name: str, value: str) -> str:
    if len(value) > _LONGEST or not is_field_value(value):
        raise EndpointFailed(f"{name} of its answer cannot be passed on")
    return value


def _split(text: str) -> list[str]:
    try:
        text = text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        pass
    return [item for each in re.split(r"[,|]", text) if (item := each.strip(" \t"))]


def _cookie_name(value: str) -> str:
    return value.partition(";")[0].partition("=")[0].strip(" \t")


def with_cookies(headers: Headers, cookies: Sequence[tuple[str, str]]) -> Headers:
    """Return *headers* with *cookies*, which replace those of the same names."""
    names = {_cookie_name(value) for _, value in cookies}
    kept = [
        field
        for field in headers
        if field[0].lower() != "set-cookie" or _cookie_name(field[1]) not in names
    ]
    return [*kept, *cookies]


def _settable(setting: str, names: Sequence[str]) -> dict[str, str]:
    """Return *names* in lower case by their ``environ`` keys."""
    if isinstance(names, str):
        raise ValueError(f"{setting}: expected a list of field names, not {names!r}")
    found: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not is_token(name):
            raise ValueError(f"{setting}: {name!r} is not the name of a field")
        folded = name.lower().replace("_", "-")
        if folded in _UNSETTABLE:
            raise ValueError(
                f"{setting}: {name} cannot be set: it describes the connection, the body or the "
                "client's request"
            )
        found[environ_key(name)] = name.lower()
    return found


def cacheable_for(reply: EndpointReply, most: float) -> float:
    """Return the seconds for which the 2xx *reply* may be remembered; 0 for not at all.

    :param most: Maximum number of seconds.
    """
    if reply.values("set-cookie"):
        return 0.0  # it is for one request
    directives = ",".join(reply.values("cache-control")).lower().split(",")
    for directive in directives:
        name, _, value = directive.strip(" \t").partition("=")
        if name in ("no-cache", "no-store"):
            return 0.0
        if name == "max-age":
            seconds = value.strip('" ')
            known = seconds.isascii() and seconds.isdigit() and len(seconds) <= 10
            most = min(most, float(seconds)) if known else 0.0
    return most


_REPLACED = HOP_BY_HOP | {"alt-svc", "content-length", "date", "server", "via"}


def passed_on(reply: EndpointReply, address: str, *, keep_location: bool) -> Headers:
    """Return the fields of *reply* for the client, which it rejects.

    :param address: The URL of the service.
    :param keep_location: Whether ``Location`` is passed on as it is, not resolved by *address*.
    :raises EndpointFailed: A field cannot be passed on.
    """
    try:
        named = connection_tokens(", ".join(reply.values("connection")))
    except ValueError as error:
        raise EndpointFailed(f"its answer is malformed: {one_line(error)}") from None
    dropped = _REPLACED | (named - {"content-type", "set-cookie", "www-authenticate"})
    headers: Headers = []
    for name, value in reply.fields:
        folded = name.lower()
        if folded in dropped:
            continue
        if not is_token(name) or not is_field_value(value):
            raise EndpointFailed("a field of its answer cannot be passed on")
        if folded == "location" and not keep_location:
            value = urljoin(address, value)
        headers.append((name, value))
    if not reply.values("cache-control"):
        headers.append(("Cache-Control", "no-store"))  # it is about one client
    return headers


# The service.


class AuthRejection(NamedTuple):
    """The answer of the service to a client that may not pass.

    :ivar headers: Its fields for the client, without the length of the body.
    :ivar anonymous: Whether the request had no credential that the service knows of.
    """

    status: int
    headers: Headers
    body: bytes
    anonymous: bool


class AuthUnavailable(Exception):
    """The service has given no answer that can be relied on; the message is for the operator only.

    :ivar again_in: Seconds after which another request may succeed.
    :ivar timed_out: Whether the answer took too long.
    :ivar answered: Whether there is one that cannot be passed on, which may be a rejection.
    """

    def __init__(
        self,
        why: str,
        again_in: float = 1.0,
        timed_out: bool = False,
        answered: bool = False,
    ) -> None:
        super().__init__(why)
        self.again_in = again_in
        self.timed_out = timed_out
        self.answered = answered


class _Remembered(NamedTuple):
    answer: AuthAnswer
    until: float


class AuthService:
    """Asks one service about requests, and remembers its permissions if it may.

    :param endpoint: Its endpoint.
    :param request: The fields that it gets.
    :param response: The fields that it sets.
    :param keep_location: Whether ``Location`` is passed on as it is.
    :param keep_method: Whether it is asked with the method of the request.
    :param cache: Maximum seconds for which a permission is remembered; 0 for not at all.
    :param cache_keys: The names of the fields with the client's credential.
    :param per_request: Whether a permission is for the same method, URL and client address only.
    :param size: Maximum number of permissions that are remembered.
    :param timer: Returns monotonic seconds.
    """

    def __init__(
        self,
        endpoint: RemoteEndpoint,
        request: AuthRequestFields,
        response: AuthResponseFields,
        *,
        keep_location: bool,
        keep_method: bool,
        cache: float,
        cache_keys: Sequence[str],
        per_request: bool,
        size: int,
        timer: Callable[[], float],
    ) -> None:
        self._endpoint = endpoint
        self._request = request
        self._response = response
        self._keeps_location = keep_location
        self._keeps_method = keep_method
        self._for = cache
        self._cache_keys = tuple(cache_keys)
        self._per_request = per_request
        self._cache = TokenCache[_Remembered](size)
        self._calls = SharedCalls[AuthAnswer | AuthRejection](
            most=endpoint.max_concurrent, brief=endpoint.patience
        )
        self._timer = timer

    def ask(
        self, environ: WSGIEnvironment, credentials: Mapping[str, str], body: bytes | None
    ) -> AuthAnswer | AuthRejection:
        """Return the service's answer about the request of *environ*.

        :param credentials: Credentials that have been removed from *environ*.
        :param body: The body that the service gets.
        :raises Refusal: The request is malformed.
        :raises AuthUnavailable: There is no answer that can be relied on.
        """
        fields = self._request.of(environ, credentials)
        method = environ["REQUEST_METHOD"] if self._keeps_method else "GET"
        if method in _NEVER:
            method = "GET"
        if body is not None and environ.get("CONTENT_TYPE"):
            fields["Content-Type"] = environ["CONTENT_TYPE"]
        try:
            key = None
            if self._for:
                key = cache_key(fields, self._cache_keys, per_request=self._per_request)
            if key is None:
                return self._judged(self._exchange(method, fields, body), fields)
            return self._remembered(key, method, fields)
        except EndpointFailed as error:
            answered = error.outcome is Outcome.OK  # such as one that is too large
            raise AuthUnavailable(
                str(error), error.again_in, error.timed_out, answered=answered
            ) from error
        except CallAbandoned as error:
            raise AuthUnavailable(str(error), timed_out=True) from error

    def _remembered(
        self, key: bytes, method: str, fields: dict[str, str]
    ) -> AuthAnswer | AuthRejection:
        found = self._cache.get(key)
        if found is not None and self._timer() < found.until:
            return found.answer

        def ask() -> AuthAnswer | AuthRejection:
            began = self._timer()
            reply = self._exchange(method, fields, None)
            answer = self._judged(reply, fields)
            if isinstance(answer, AuthAnswer):
                seconds = cacheable_for(reply, self._for)
                if seconds > 0:
                    self._cache.put(key, _Remembered(answer, began + seconds))
            return answer

        # A rejection is for one request, such as a redirect to a login that leads back to its URL.
        same = key
        if not self._per_request:
            same = cache_key(fields, self._cache_keys, per_request=True) or key
        return self._calls.make(same, ask, self._endpoint.timeout)

    def _exchange(self, method: str, fields: dict[str, str], body: bytes | None) -> EndpointReply:
        return self._endpoint.ask(method, fields, body, failures=_is_failure)

    def _judged(
        self, reply: EndpointReply, fields: Mapping[str, str]
    ) -> AuthAnswer | AuthRejection:
        if 200 <= reply.status < 300:
            return self._response.read(reply)
        if not 300 <= reply.status < 500 or reply.status == 304:
            raise EndpointFailed(f"it answered {reply.status}")
        try:
            headers = passed_on(reply, self._endpoint.url, keep_location=self._keeps_location)
        except EndpointFailed as error:
            raise AuthUnavailable(str(error), answered=True) from error
        anonymous = not any(name.lower() in _PROTECTED for name in fields)
        return AuthRejection(reply.status, headers, reply.body, anonymous)


def _is_failure(status: int) -> bool:
    return status in (502, 503, 504)


def probe(endpoint: RemoteEndpoint) -> str:
    """Ask *endpoint* about a request without credentials; return why that fails."""
    fields = {
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Host": "localhost",
        "X-Forwarded-Method": "GET",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Uri": "/",
        "User-Agent": "wsgigate",
    }
    try:
        reply = endpoint.ask("GET", fields)
    except EndpointFailed as error:
        return str(error)
    if reply.status in (404, 405) or reply.status >= 500:
        return f"it answered {reply.status}"
    return ""
