"""The shared parts of all middlewares: environ keys, key functions, and observed responses.

The middlewares never import each other. They communicate through ``environ``, by the keys listed
here, and each of them works if a key is missing.
"""

from __future__ import annotations

import errno
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import sha256
from operator import itemgetter
from types import TracebackType
from typing import Any, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.runtime import fork

__all__ = [
    "ATTEMPT",
    "ATTEMPTS",
    "CLAIMS",
    "CLIENT",
    "CLIENT_CERTIFICATE",
    "CLIENT_SOURCE",
    "CLIENT_STREAM",
    "FAILURE",
    "FORWARDED_CERTIFICATES",
    "IDENTITIES",
    "IDENTITY",
    "INSTANCE",
    "KEPT_TARGET",
    "LEND_THREAD",
    "LIMITS",
    "LISTENER",
    "LOGGED",
    "PARAMS",
    "PEER_TRUSTED",
    "PROPAGATE",
    "READ_AHEAD",
    "REASON",
    "REJECTED_BY",
    "REQUEST_ID",
    "ROUTE",
    "RULE",
    "SERVICE",
    "SET_FIELDS",
    "SHAPED",
    "TARGET",
    "TRACE",
    "TUNNELLED",
    "UPSTREAM_SECONDS",
    "VERIFYING",
    "BodyError",
    "BodyTooLarge",
    "ClientLeft",
    "ExcInfo",
    "Headers",
    "Key",
    "Observed",
    "address_key",
    "api_key",
    "client_address",
    "close_body",
    "combined",
    "environ_key",
    "header",
    "is_preflight",
    "is_websocket",
    "observe",
    "path_parameter",
    "peer",
    "peer_trusted",
    "route",
    "subject",
    "without",
]


REQUEST_ID = "wsgigate.request_id"
"""``str``: the request id, for logs; set by RequestId."""

CLIENT = "wsgigate.client"
"""``str``: the client's address behind trusted proxies, without port; set by ClientAddress."""

PEER_TRUSTED = "wsgigate.peer_trusted"
"""``True``: the peer is a trusted proxy; its forwarding fields are kept; set by ClientAddress."""

CLIENT_SOURCE = "wsgigate.client_source"
"""``tuple[str, ...]``: the ``REMOTE_ADDR`` and the forwarded addresses from which the client's
address was determined; set by ClientAddress."""

CLAIMS = "wsgigate.claims"
"""``dict``: the verified claims of the caller's token; set by Authenticator."""

IDENTITY = "wsgigate.identity"
"""``Identity``: the verified caller, from a token or another credential; set by the middleware that
authenticates."""

IDENTITIES = "wsgigate.identities"
"""``tuple[Identity, ...]``: the callers of all authenticators of an AllOf, in their order; set by
AllOf."""

CLIENT_CERTIFICATE = "wsgigate.client_certificate"
"""``VerifiedCertificate``: the verified certificate of the client's TLS connection; its
``thumbprint`` is the SHA-256 hash of the certificate as base64url text (``x5t#S256`` of RFC 8705);
set by ClientCertificate."""

FORWARDED_CERTIFICATES = "wsgigate.forwarded_certificates"
"""``dict[str, str]``: the fields with client certificates of a trusted proxy that ClientAddress
removes with the other forwarding fields, by their ``environ`` keys; set by ClientAddress."""

ATTEMPT = "wsgigate.attempt"
"""``object``: what the authenticators of an AnyOf have decided so far; set by AnyOf until one of
them has accepted the request."""

VERIFYING = "wsgigate.verifying"
"""``object``: the callers that the authenticators of an AllOf have verified so far; set by AllOf
until all of them have."""

SET_FIELDS = "wsgigate.set_fields"
"""``tuple[str, ...]``: the ``environ`` keys of the request fields that the gateway has set. They
are forwarded whatever the client's ``Connection`` names, also those that clients forge, such as
``X-Forwarded-User``; set by ForwardAuth."""

TRACE = "wsgigate.trace"
"""``TraceContext``: the trace of the request: its ``trace_id`` and ``span_id`` as hexadecimal text,
and whether it is ``sampled``; set by Tracing."""

TARGET = "wsgigate.target"
"""``Target``: the canonical request target as of the last call of ``target_of(environ)``, which
computes it again if a mount or a rewrite has changed the path."""

KEPT_TARGET = "wsgigate.kept_target"
"""``tuple``: the target that is forwarded instead, and the values from which it was computed, if
the route keeps path forms that are rejected by default; set by Dispatcher."""

ROUTE = "wsgigate.route"
"""``str``: the name of the matching route; set by Dispatcher."""

PARAMS = "wsgigate.params"
"""``dict[str, str]``: the path parameters of that route, percent-decoded; set by Dispatcher."""

SERVICE = "wsgigate.service"
"""``str``: the service to which the request was forwarded; set by Forwarder."""

INSTANCE = "wsgigate.instance"
"""``str``: the address of the instance that responded; set by Forwarder."""

ATTEMPTS = "wsgigate.attempts"
"""``int``: how often the request was sent to a service, hedged attempts included; set by
Forwarder."""

UPSTREAM_SECONDS = "wsgigate.upstream_seconds"
"""``float``: the seconds for which the request has waited for services, until they began their
responses or failed; set by Forwarder."""

LIMITS = "wsgigate.limits"
"""``list[tuple]``: the decisions of the limiters around the app about this request, outermost
first, each as ``(standings, now, terms)``: for each quota whether it allowed the request, the
limit, the remaining units, the seconds until it resets and until the next request is allowed; the
store's time in seconds; and the quota's name and header fields. Set by Limiter and
ConcurrencyLimiter."""

LISTENER = "wsgigate.listener"
"""``str``: ``metrics`` if the request came to the listener for metrics and probes, ``clients`` if
it came to another one; set by GateWorker where there is such a listener."""

LOGGED = "wsgigate.logged"
"""``True``: an outer Logger logs the response and its reason; set by Logger."""

REASON = "wsgigate.reason"
"""``str``: why a request was rejected, for the log only: it may contain what clients must not
see."""

REJECTED_BY = "wsgigate.rejected_by"
"""``str``: what has rejected the request: a middleware, such as ``Limiter``, or the kind of failure
if the proxy has not sent it to a service, such as ``Circuit breaker open``; set with the reason."""

RULE = "wsgigate.rule"
"""``str``: the name of the authorization rule that decided about the request; set by Authorizer."""

FAILURE = "wsgigate.failure"
"""``str``: the kind of failure if the service did not respond, as in the ``error`` of a problem
document; set by Forwarder."""

PROPAGATE = "wsgigate.propagate"
"""``True``: the exception that the app raised is meant for the server, such as a debugger or a test
client, so Guard raises it again; set by the Flask integration."""

SHAPED = "wsgigate.shaped"
"""``str``: the traffic shaping applied to the request, such as ``split=beta fallback=stale``."""

CLIENT_STREAM = "wsgigate.client_stream"
"""``object``: ``watch(callback)`` calls *callback* when the client cancels the request or
disconnects, ``forget(callback)`` removes it; set by GateWorker over HTTP/2."""

READ_AHEAD = "wsgigate.read_ahead"
"""``True``: the server has read bytes that follow the request; set by GateWorker."""

LEND_THREAD = "wsgigate.lend_thread"
"""``Callable``: starts one more thread of the server in place of one that a WebSocket holds, and
returns a function that ends one again; set by GateWorker."""

TUNNELLED = "wsgigate.tunnelled"
"""``tuple[int, int]``: bytes from and to the client of a WebSocket; set by Forwarder at the end."""

Headers: TypeAlias = list[tuple[str, str]]

ExcInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
)

Key: TypeAlias = Callable[[WSGIEnvironment], str | None]
"""Identifies a caller; ``None`` exempts the request."""


class BodyError(Exception):
    """The client's request body could not be read to its end."""


class BodyTooLarge(BodyError):
    """The client's request body is longer than allowed; answered with 413."""


class ClientLeft(ConnectionResetError):
    """The client has disconnected, so its request was aborted."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the client has disconnected")


def close_body(body: object) -> None:
    """Close a response body, if it has a ``close`` method (PEP 3333)."""
    close = getattr(body, "close", None)
    if close is not None:
        close()


class Observed:
    """A response that records its status, its size, and how it ended.

    ``close()`` is the only end that PEP 3333 guarantees, so it calls *done*, once.
    """

    __slots__ = (
        *("_chunks", "_done", "_start_response", "_write"),
        *("body", "complete", "error", "sent", "status", "taken_over"),
    )

    def __init__(self, start_response: StartResponse, done: Callable[[Observed], object]) -> None:
        self.status = ""
        self.sent = 0
        self.complete = False
        self.taken_over = False
        """Whether an inner app has taken over the client's socket; the status is 101 then."""
        self.error: BaseException | None = None
        self.body: Iterable[bytes] = ()
        self._chunks: Iterator[bytes] | None = None
        self._write: Callable[[bytes], object] | None = None
        self._start_response = start_response
        self._done: Callable[[Observed], object] | None = done

    def start_response(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        self.status = status
        if exc_info:
            self._write = self._start_response(status, headers, exc_info)
        else:
            self._write = self._start_response(status, headers)
        return self._counted

    def _counted(self, data: bytes) -> object:
        self.sent += len(data)
        return self._write(data) if self._write is not None else None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunks = self._chunks
            if chunks is None:
                chunks = self._chunks = iter(self.body)
            chunk = next(chunks)
        except StopIteration:
            self.complete = True  # otherwise the client has disconnected, or the app failed
            raise
        except BaseException as error:
            self.error = error
            raise
        self.sent += len(chunk)
        return chunk

    def close(self) -> None:
        done, self._done = self._done, None
        if done is None:  # some servers and test clients close twice
            return
        try:
            close_body(self.body)
        finally:
            done(self)


def _of_websocket(
    environ: WSGIEnvironment, done: Callable[[Observed], object]
) -> Callable[[Observed], object]:
    """Return a *done* that detects a socket that was taken over, which is not a failure."""

    def ended(response: Observed) -> None:
        if isinstance(response.error, StopIteration):
            taken = not response.status
        elif response.error is None and response.complete and not response.sent:
            taken = not response.status or (
                response.status[:3] == "200" and "werkzeug.socket" in environ
            )
        else:
            taken = False
        if taken:
            response.taken_over, response.complete, response.error = True, True, None
            response.status = "101 Switching Protocols"
        done(response)

    return ended


class _Delivered(Observed):
    """A response that also ends when its last byte has been returned.

    For tests: test clients close a response late, if at all.
    """

    __slots__ = ("_closed", "_length")

    def __init__(self, start_response: StartResponse, done: Callable[[Observed], object]) -> None:
        super().__init__(start_response, done)
        self._closed = False
        self._length = -1

    def start_response(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        self._length = int(lengths[0]) if lengths and lengths[0].isdecimal() else -1
        return super().start_response(status, headers, exc_info)

    def __next__(self) -> bytes:
        try:
            chunk = super().__next__()
        except StopIteration:
            self._end()
            raise
        if self.sent == self._length:
            self.complete = True
            self._end()
        return chunk

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            close_body(self.body)
        finally:
            self._end()

    def _end(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(self)


_kind: type[Observed] | None = None


def _observing() -> type[Observed]:
    """Return the kind of response to observe in this process."""
    global _kind
    _kind = _Delivered if fork.tested() else Observed
    return _kind


def observe(
    app: WSGIApplication,
    environ: WSGIEnvironment,
    start_response: StartResponse,
    done: Callable[[Observed], object],
) -> Iterable[bytes]:
    """Call *app*, and call *done* once when its response has ended or failed.

    A body that is a list has ended when it is returned: it cannot fail any more, and has nothing to
    close. It is returned unchanged, and counts as sent.

    :param done: Called with the :class:`Observed` response: its ``status`` line (empty if it never
        started), the bytes ``sent``, whether it is ``complete``, and the ``error`` that ended it,
        or None.
    """
    if "HTTP_UPGRADE" in environ and is_websocket(environ):
        done = _of_websocket(environ, done)
    response = (_observing() if _kind is None else _kind)(start_response, done)
    try:
        response.body = body = app(environ, response.start_response)
    except BaseException as error:
        response.error = error
        done(response)
        raise
    if type(body) is list:
        response.sent += sum(map(len, body))
        response.complete = True
        done(response)
        return body
    return response


_name_of = itemgetter(0)


_MOST_OTHERS = 1024

_LONGEST_OTHER = 40

_others: dict[frozenset[str], set[str]] = {}
"""By *names* of :func:`without` the spellings of other names that were seen; bounded."""


def without(headers: Headers, names: frozenset[str]) -> Headers:
    """Return a copy of *headers* without the fields called *names*.

    Usually none is, and apps send the same names again and again: known ones need no lower case.

    :param names: Field names in lower case; few different sets, which are kept for ever.
    """
    others = _others.get(names)
    if others is not None and others.issuperset(map(_name_of, headers)):
        return headers.copy()
    others = _others.setdefault(names, set())
    kept = [field for field in headers if field[0].lower() not in names]
    others.update(
        name for name, _ in kept[: _MOST_OTHERS - len(others)] if len(name) <= _LONGEST_OTHER
    )
    return kept


_NOT_OF_A_PREFLIGHT = (
    "HTTP_X_HTTP_METHOD_OVERRIDE",
    "HTTP_X_HTTP_METHOD",
    "HTTP_X_METHOD_OVERRIDE",
    "HTTP_TRANSFER_ENCODING",
)

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")


def is_preflight(environ: WSGIEnvironment) -> bool:
    """Return whether the request is a CORS preflight, as browsers send it (Fetch section 4.8).

    A browser sends it without a body, and without a field that makes an application use another
    method than OPTIONS: a request with one of these is not a preflight.
    """
    if (
        environ["REQUEST_METHOD"] != "OPTIONS"
        or "HTTP_ORIGIN" not in environ
        or not _TOKEN.fullmatch(environ.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD", ""))
        or environ.get("CONTENT_LENGTH") not in (None, "", "0")
    ):
        return False
    return not any(name in environ for name in _NOT_OF_A_PREFLIGHT)


def is_websocket(environ: WSGIEnvironment) -> bool:
    """Return whether the request asks for a WebSocket (RFC 6455 section 4.1).

    An app that accepts it takes over the client's socket. How the server and the middlewares notice
    depends on the library and the server: a ``StopIteration`` from the app (gunicorn), no call of
    ``start_response`` (gevent), or a 200 without a body that is never sent (werkzeug).
    """
    upgrade: str = environ.get("HTTP_UPGRADE", "")
    return upgrade.strip().lower() == "websocket" and environ["REQUEST_METHOD"] == "GET"


def peer(environ: WSGIEnvironment) -> str:
    """Return the client address: as reported by a trusted proxy, else the peer's.

    For a peer without an address (a Unix socket) it is ``"unix"``, never the empty string. If other
    code has replaced ``REMOTE_ADDR`` since :class:`~wsgigate.ClientAddress` decided, by an address
    that it did not see, the new one is the client's.
    """
    get = environ.get
    address: str = get("REMOTE_ADDR") or "unix"
    client: str | None = get(CLIENT)
    if client is None:
        return address
    source: tuple[str, ...] | None = get(CLIENT_SOURCE)
    # A proxy fix inside of ClientAddress sets one of the addresses of the checked fields.
    return client if source is None or address in source else address


def peer_trusted(environ: WSGIEnvironment) -> bool:
    """Return whether the peer is a trusted proxy, whose forwarding fields are trustworthy."""
    if environ.get(PEER_TRUSTED) is not True:
        return False
    source: tuple[str, ...] | None = environ.get(CLIENT_SOURCE)
    return source is None or (environ.get("REMOTE_ADDR") or "unix") in source


@lru_cache(maxsize=4096)
def address_key(address: str, ipv6_prefix: int = 64) -> str:
    """Return the key by which a limit counts *address*.

    An IPv6 client has a whole network, so it is counted by its first *ipv6_prefix* bits; an
    IPv4-mapped address (``::ffff:192.0.2.1``) counts as the IPv4 address.
    """
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, ipv6_prefix), strict=False))


def client_address(environ: WSGIEnvironment) -> str:
    """Return the caller's address: IPv4 as it is, IPv6 as its /64 network."""
    return address_key(peer(environ))


def subject(environ: WSGIEnvironment) -> str | None:
    """Return the subject of the verified caller, such as the ``sub`` of its token; else None."""
    identity = environ.get(IDENTITY)
    if identity is None:  # a middleware of the user's may set the claims only
        claims: dict[str, Any] = environ.get(CLAIMS) or {}
        sub = claims.get("sub")
    else:
        sub = identity.subject
    return sub if isinstance(sub, str) and sub else None


def route(environ: WSGIEnvironment) -> str | None:
    """Return the name of the matching route, so that each route has its own count."""
    name: str | None = environ.get(ROUTE)
    return name


def path_parameter(name: str) -> Key:
    """Return a key function that identifies the caller by the path parameter *name*."""

    def key(environ: WSGIEnvironment) -> str | None:
        params: dict[str, str] = environ.get(PARAMS) or {}
        return params.get(name)

    return key


def environ_key(name: str) -> str:
    """Return the environ key of the request field *name*: ``X-Api-Key`` is ``HTTP_X_API_KEY``."""
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


def header(name: str) -> Key:
    """Return a key function that identifies the caller by the request field *name*.

    The client chooses the value, so it is hashed: the store sees neither its length nor its
    characters, and no secret.
    """
    key_name = environ_key(name)

    def key(environ: WSGIEnvironment) -> str | None:
        value: str = environ.get(key_name, "")
        return sha256(value.encode("utf-8", "replace")).hexdigest()[:32] if value else None

    return key


_api_key_field = header("X-API-Key")


def api_key(environ: WSGIEnvironment) -> str | None:
    """Return the caller's API key: the id of a verified one, else its ``X-API-Key`` field, hashed.

    A verified key is no longer in its field, and keeps its id when it is rotated.
    """
    identity = environ.get(IDENTITY)
    if identity is not None and identity.scheme == "api-key":
        return f"id:{identity.client}"
    return _api_key_field(environ)


def combined(*keys: Key) -> Key:
    """Return a key function that combines *keys*; None if one of them returns None."""

    def key(environ: WSGIEnvironment) -> str | None:
        parts = [part(environ) for part in keys]
        if any(part is None for part in parts):
            return None
        texts = [str(part) for part in parts]  # a whole number is a valid key, too
        return "|".join(f"{len(text)}:{text}" for text in texts)

    return key
