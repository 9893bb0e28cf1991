"""Builds the client's response: from an instance's response, or from the error in its place.

The head of an instance's response is validated, hop-by-hop fields are removed, and the body streams
as it arrives. An error becomes a problem document, without host names and addresses; its cause goes
to the log.
"""

from __future__ import annotations

import errno
import http.client
import re
import socket
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from time import monotonic
from typing import Any, NamedTuple
from wsgiref.types import StartResponse, WSGIEnvironment

import requests
from requests.exceptions import InvalidHeader, InvalidURL
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError

from wsgigate.client.adapter import LazyResponse
from wsgigate.client.response_reader import BLOCK, NotConnected, PoolFull, SlowResponse
from wsgigate.discovery import Instance
from wsgigate.http.fields import HOP_BY_HOP, FieldRules, connection_tokens, is_token
from wsgigate.http.problem import (
    Problem,
    Refusal,
    Refuse,
    answer_with,
    failed,
    refused,
    status_line,
)
from wsgigate.http.wsgi import FAILURE, REASON, UPSTREAM_SECONDS, ClientLeft, ExcInfo, Headers
from wsgigate.proxy.disconnect import CLIENT_LEFT, ClientWatch
from wsgigate.proxy.request import Outgoing
from wsgigate.proxy.rewriting import ForwardedOrigin, cookie_path, location, refresh

__all__ = [
    "UNSENDABLE",
    "BadResponse",
    "Body",
    "Plan",
    "ResponseMaker",
    "Unanswered",
    "UpstreamCut",
    "content_length",
    "error_type",
    "nothing_sent",
    "plan_for",
    "problem_of",
    "reason_of",
    "without_named",
]


# The handling of each field of a response head, cached per set of names: an instance sends the same
# names again and again, and only their values change.

MOST_LEARNT = 64

LONGEST_LEARNT = 2048
"""Largest set of names that is cached: their number, and their characters together."""

_KEPT = frozenset(("cache-control", "content-length", "content-type", "set-cookie"))


class BadResponse(Exception):
    """The instance sent an invalid response."""


class Plan(NamedTuple):
    """The handling of a head with certain field names."""

    kept: Callable[[Sequence[tuple[str, str]]], Iterable[tuple[str, str]]]
    """Returns the fields for the client, without the framing fields."""
    lengths: tuple[int, ...]
    codings: tuple[int, ...]
    connections: tuple[int, ...]
    own: bool
    """Whether a field contains the instance's own URL or path, such as ``Location``."""
    malformed: bool


def plan_for(names: tuple[str, ...]) -> Plan:
    """Return the handling of a head with these *names*, in this order.

    Cached, except for unusually many or long names, to bound the memory of the cache.
    """
    if len(names) > MOST_LEARNT or len("".join(names)) > LONGEST_LEARNT:
        return _plan_of.__wrapped__(names)
    return _plan_of(names)


@lru_cache(maxsize=1024)
def _plan_of(names: tuple[str, ...]) -> Plan:
    kinds = [_kind(name) for name in names]

    def places(*wanted: str) -> tuple[int, ...]:
        return tuple(at for at, kind in enumerate(kinds) if kind in wanted)

    kept = places("end-to-end", "own")
    if len(kept) > 1:
        pick: Callable[[Any], Any] = itemgetter(*kept)
    else:
        pick = lambda fields: [fields[at] for at in kept]  # noqa: E731
    return Plan(
        pick,
        places("content-length"),
        places("transfer-encoding"),
        places("connection"),
        "own" in kinds,
        "malformed" in kinds,
    )


def _kind(name: str) -> str:
    """Return the kind of the response fields of that name."""
    lower = name.lower()
    if lower in ("content-length", "transfer-encoding", "connection"):
        return lower
    if not is_token(name):
        return "malformed"
    if lower in ("location", "content-location", "refresh", "set-cookie"):
        return "own"
    return "hop-by-hop" if lower in HOP_BY_HOP else "end-to-end"


_NAMELESS = frozenset(("close", "keep-alive"))
"""Values of ``Connection`` that name no field."""


def without_named(headers: Headers, connection: str) -> Headers:
    """Return *headers* without the fields named in *connection*, a value of ``Connection``."""
    learn = _named if len(connection) <= LONGEST_LEARNT else _named.__wrapped__
    try:
        named = learn(connection)
    except ValueError as error:
        raise BadResponse(str(error)) from None
    return [field for field in headers if field[0].lower() not in named] if named else headers


@lru_cache(maxsize=256)
def _named(connection: str) -> frozenset[str]:
    """Return the fields named in a ``Connection`` value, except those dropped in any case."""
    return connection_tokens(connection) - _KEPT - HOP_BY_HOP - _NAMELESS


def content_length(value: str) -> int:
    """Return the length from the *value* of ``Content-Length``.

    :raises BadResponse: The value is malformed.
    """
    digits = value.strip(" \t")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
        raise BadResponse(f"invalid Content-Length {value!r}")
    return int(digits)


def _end_to_end(fields: Headers, plan: Plan) -> tuple[Headers, int | None]:
    """Return the fields for the client, without the framing fields, and the length of the body.

    :raises BadResponse: A field is malformed, or the length is ambiguous.
    """
    if plan.malformed or not _CLEAN.fullmatch("".join(map(_value_of, fields))):
        raise BadResponse("a malformed field")
    headers = list(plan.kept(fields))
    for at in plan.connections:
        connection = fields[at][1]
        if connection not in _NAMELESS:
            headers = without_named(headers, connection)
    if plan.codings:
        codings = [fields[at][1].strip(" \t").lower() for at in plan.codings]
        if plan.lengths or codings != ["chunked"]:
            raise BadResponse(f"invalid Transfer-Encoding {', '.join(codings)!r}")
    length = None
    for at in plan.lengths:
        if length is not None:
            raise BadResponse("several Content-Length fields")
        length = content_length(fields[at][1])
    return headers, length


_CLEAN = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*+")
"""Text without control characters; a third of the price of a search for one."""

_URLS = frozenset(("location", "content-location", "refresh"))

_BODILESS = frozenset((204, 205, 304))

_WRAPPING = re.compile(r"^(?:<[^<>]* object at 0x[0-9a-f]+>|\w*(?:Pool|Connection)\([^()]*\)): ")

_FULL = Problem(
    503,
    "Service unavailable",
    extensions={"error": "Too many connections"},
    headers=(("Retry-After", "1"),),
)

_name_of, _value_of = itemgetter(0), itemgetter(1)

_READ_ERRORS = (HTTPError, OSError, http.client.HTTPException, ValueError)


class UpstreamCut(ConnectionResetError):
    """The instance's response ended early, so the client's response must not look complete.

    A subclass of :exc:`ConnectionResetError`, so that the server closes the client's connection,
    without a final chunk and without a second response.
    """

    def __init__(self, text: str) -> None:
        super().__init__(errno.ECONNRESET, text)


class Body:
    """The body of an instance's response, streamed; closing it releases connection and leases.

    :param response: The response, its head read.
    :param done: Called once, at the end, with the error that ended the body, or ``None``.
    :param watch: Reports whether the client has disconnected.
    :param environ: Gets the time for which the instance was waited for, added to that before.
    :ivar promised: The bytes still expected; ``None`` when the length is unknown.
    :ivar instead: Returns an error response for a body that failed before its first byte; raises if
        the head has been sent already.
    """

    __slots__ = (
        *("_environ", "_watch", "_done", "_other", "_read", "_response", "_waited"),
        *("error", "instead", "promised"),
    )

    def __init__(
        self,
        response: requests.Response,
        done: Callable[[Exception | None], object],
        watch: ClientWatch,
        environ: WSGIEnvironment,
    ) -> None:
        self._response = response
        self._watch = watch
        self._environ = environ
        self._waited = 0.0
        self._read = getattr(response.raw, "read1", None) or response.raw.read
        self.promised: int | None = None
        self._done: Callable[[Exception | None], object] | None = done
        self.error: Exception | None = None
        self.instead: Callable[[Exception], Iterable[bytes]] | None = None
        self._other: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._other is not None:
            return next(self._other)
        began = monotonic()
        try:
            block: bytes = self._read(BLOCK, decode_content=False)
        except SlowResponse as error:
            raise self._cut(f"the response came too slowly: {error}") from error
        except _READ_ERRORS as error:
            return self._ended(f"the response was cut: {type(error).__name__}", error)
        finally:
            self._waited += monotonic() - began
        if block:
            self.instead = None
            if self.promised is not None:
                self.promised -= len(block)
            return block
        if self.promised:
            return self._ended(f"the response ended {self.promised} bytes early", None)
        if self._watch.gone:  # the shutdown may have looked like the end of the response
            raise self._cut("")
        raise StopIteration

    def _ended(self, text: str, error: Exception | None) -> bytes:
        """Return the first bytes of an error response, if the head has not been sent.

        :raises Exception: The head was sent; the error makes the server cut the response.
        """
        cut = self._cut(text)
        cut.__cause__ = error
        instead, self.instead = self.instead, None
        if instead is None or isinstance(cut, ClientLeft):
            raise cut
        try:
            raise cut
        except UpstreamCut:  # the server re-raises it if it has sent the head
            self._other = iter(instead(error or cut))
        return next(self._other)

    def _cut(self, text: str) -> Exception:
        self.error = ClientLeft() if self._watch.gone else UpstreamCut(text)
        return self.error

    def skip(self) -> None:
        """Close an empty body, keeping the connection unless the status is 205.

        A 205 has no body, so nothing is read, and the connection is closed in case the instance
        sends one nevertheless.
        """
        if self._response.status_code != 205:
            try:
                self._read(1, decode_content=False)
            except _READ_ERRORS:
                pass
        self.close()

    def close(self) -> None:
        """Release the response; its connection is closed unless the body was read to its end."""
        done, self._done = self._done, None
        if done is None:
            return
        self._watch.close()
        waited = self._environ.get(UPSTREAM_SECONDS, 0.0)
        self._environ[UPSTREAM_SECONDS] = waited + self._waited
        try:
            self._response.close()
        finally:
            done(self.error)


class ResponseMaker:
    """Builds the client's response from the instance's, or from the failure in its place.

    :param fields: Changes to the response fields, made last.
    :param rewrite_location: Rewrite the instance's own URLs in ``Location``, ``Content-Location``
        and ``Refresh`` to the client's view.
    :param rewrite_cookies: Rewrite the path of a cookie to the client's view.
    :param preserve_host: Whether the instance received the client's ``Host``, so that its URLs may
        use that name.
    :param add_prefix: The prefix that was added to the path for the instance.
    :param refuse: Returns the WSGI app that responds with a given problem.
    """

    def __init__(
        self,
        *,
        fields: FieldRules | None = None,
        rewrite_location: bool = True,
        rewrite_cookies: bool = True,
        preserve_host: bool = False,
        add_prefix: str = "",
        refuse: Refuse = answer_with,
    ) -> None:
        self._fields = fields or None
        self._rewrite_location = rewrite_location
        self._rewrite_cookies = rewrite_cookies
        self._preserve_host = preserve_host
        self._added = add_prefix.rstrip("/")
        self._refuse = refuse

    def respond(
        self,
        response: requests.Response,
        request: Outgoing,
        instance: Instance,
        done: Callable[[Exception | None], object],
        watch: ClientWatch,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        """Start the client's response from the instance's *response*, and return its body.

        :param done: Called once, at the end, with the error that ended the response, or ``None``.
        :param watch: Reports whether the client has disconnected; closed at the end.
        :raises Refusal: The response is invalid, or the client has disconnected.
        """
        if type(response) is LazyResponse and response.whole is not None:
            return self._respond_at_once(
                response.whole, response, request, instance, done, watch, start_response
            )
        body = Body(response, done, watch, environ)
        try:
            status, headers, length = self.head(response, request, instance)
            if length == 0:
                body.skip()
            start_response(status, headers)
        except BadResponse as error:
            body.error = error
            body.close()
            raise Refusal(problem_of(error), str(error)) from error
        except BaseException:
            body.close()
            raise
        if length == 0:
            return []
        body.promised = length
        body.instead = partial(self._respond_with_error, environ, start_response)
        return body

    def _respond_at_once(
        self,
        block: bytes,
        response: requests.Response,
        request: Outgoing,
        instance: Instance,
        done: Callable[[Exception | None], object],
        watch: ClientWatch,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        """Return a body that arrived with its head as a list, the cheapest WSGI response."""
        watch.close()
        error: Exception | None = None
        try:
            if watch.gone:  # the shutdown may have looked like the end of the response
                error = ClientLeft()
                raise Refusal(CLIENT_LEFT, "the client has disconnected")
            status, headers, length = self.head(response, request, instance)
            start_response(status, headers)
        except BadResponse as bad:
            error = bad
            raise Refusal(problem_of(bad), str(bad)) from bad
        finally:
            done(error)
        return [block] if block and length != 0 else []

    def _respond_with_error(
        self, environ: WSGIEnvironment, start_response: StartResponse, error: Exception
    ) -> Iterable[bytes]:
        """Return an error response for a response whose body failed before its first byte.

        :raises Exception: The exception being handled, if the head has been sent already.
        """

        def start(status: str, headers: Headers, _: ExcInfo | None = None) -> Any:
            return start_response(status, headers, sys.exc_info())

        return self.reject(problem_of(error), reason_of(error), environ, start)

    def reject(
        self,
        problem: Problem,
        reason: str,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        """Return a response with *problem*; log *reason*."""
        environ[FAILURE] = problem.extensions.get("error", "")
        if problem.status >= 500:
            failed(environ, "Forwarder", problem.status, reason)
        elif problem.status == 499:
            environ[REASON] = reason  # the client has left, which is nobody's failure
        else:
            refused(environ, "Forwarder", reason)
        return self._refuse(problem)(environ, start_response)

    def head(
        self, response: requests.Response, request: Outgoing, instance: Instance
    ) -> tuple[str, Headers, int | None]:
        """Return the status line, the fields, and the length of the body to come.

        :returns: A length of 0 for a response without a body, ``None`` for an unknown length.
        :raises BadResponse: The head is invalid; the message says why.
        """
        status = response.status_code
        if not 200 <= status <= 599:
            raise BadResponse(f"invalid status {status}")
        reader = response.reader if type(response) is LazyResponse else None
        if reader is not None and reader.length is not None:  # a usual head, checked by the client
            length: int | None = reader.length
            plan = plan_for(reader.names)
            headers = list(plan.kept(reader.fields))
        else:
            fields = list(response.raw.headers.items()) if reader is None else reader.fields
            plan = plan_for(tuple(map(_name_of, fields)))
            headers, length = _end_to_end(fields, plan)
        bodiless = request.method == "HEAD" or status in _BODILESS
        if length is not None and status not in (204, 205):
            headers.append(("Content-Length", str(length)))
        elif status == 205:
            headers.append(("Content-Length", "0"))
        if plan.own and (self._rewrite_location or self._rewrite_cookies):
            headers = self._rewritten(headers, request, instance)
        # a 426 must name the required protocol (RFC 9110, 15.5.22)
        if request.upgrade and status == 426:
            headers += [("Upgrade", "websocket"), ("Connection", "Upgrade")]
        if self._fields is not None:
            headers = self._fields.apply(headers)
        # clients must not stick to a failing instance
        if request.set_cookie is not None and status < 500:
            headers.append(("Set-Cookie", request.set_cookie))
        return status_line(status), headers, 0 if bodiless else length

    def own_fields(self, headers: Headers, request: Outgoing, instance: Instance) -> Headers:
        """Return the client's fields of a response that bypasses :meth:`head`, such as a 101.

        :param headers: The validated end-to-end fields.
        """
        if self._rewrite_location or self._rewrite_cookies:
            headers = self._rewritten(headers, request, instance)
        return headers if self._fields is None else self._fields.apply(headers)

    def _rewritten(self, headers: Headers, request: Outgoing, instance: Instance) -> Headers:
        outside = request.outside
        sent = request.headers
        forwarded = ForwardedOrigin(
            sent.get("X-Forwarded-Proto", request.scheme),
            sent.get("X-Forwarded-Host", ""),
            sent.get("X-Forwarded-Port", ""),
        )
        hosts = (sent["Host"],)
        domain = None if self._preserve_host else instance.authority.partition(":")[0]
        rewritten = []
        for name, value in headers:
            lower = name.lower()
            if self._rewrite_location and lower in _URLS:
                lead = refresh if lower == "refresh" else location
                value = lead(
                    value, instance.origin, outside, self._added, hosts=hosts, forwarded=forwarded
                )
            elif self._rewrite_cookies and lower == "set-cookie":
                value = cookie_path(value, self._added, outside, domain)
            rewritten.append((name, value))
        return rewritten


# Errors in the place of a response.

UNSENDABLE = (InvalidHeader, InvalidURL)
"""The errors of a request that cannot be sent to any instance."""


class Unanswered(Refusal):
    """The instance gave no response, and the client is not the cause; see ``__cause__``."""

    def __init__(self, error: Exception) -> None:
        super().__init__(problem_of(error), reason_of(error))


def problem_of(error: Exception) -> Problem:
    """Return the client's response for *error*, with which a request to an instance failed."""
    if isinstance(error, requests.Timeout):
        return Problem(504, "Service timeout", extensions={"error": "Request timeout"})
    if isinstance(error, PoolFull):
        return _FULL
    causes = list(_chain(error))
    if any(isinstance(each, requests.exceptions.SSLError) for each in causes):
        causes += [each.__cause__ for each in causes if each.__cause__ is not None]
        verified = not any(isinstance(each, ssl.SSLCertVerificationError) for each in causes)
        what = "TLS failed" if verified else "Certificate verification failed"
        return Problem(502, "Bad gateway", extensions={"error": what})
    if _not_connected(causes):
        return Problem(
            503,
            "Service unavailable",
            extensions={"error": _why_not_connected(causes)},
            headers=(("Retry-After", "1"),),
        )
    return Problem(502, "Bad gateway", extensions={"error": "Invalid response"})


def error_type(error: Refusal) -> str:
    """Return the type of the error of an attempt: one of a few words, such as ``tls_failed``."""
    if isinstance(error, Unanswered):
        if isinstance(error.__cause__, requests.ConnectTimeout):
            return "connect_timeout"
        kind = error.problem.extensions.get("error", "Invalid response")
        return str(kind).lower().replace(" ", "_")
    return "client_disconnected" if error.problem.status == 499 else "request_body"


def _why_not_connected(causes: list[BaseException]) -> str:
    """Return the reason why connecting failed, without host names and addresses."""
    for each in causes:
        if isinstance(each, (socket.gaierror, UnicodeError, NameResolutionError)):
            return "Host not found"
        if isinstance(each, OSError) and each.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            return "Host unreachable"
        if isinstance(each, PermissionError) and each.errno is None:  # a Unix socket's has an errno
            return "Address not allowed"
    return "Connection refused"


def nothing_sent(error: BaseException) -> bool:
    """Return whether *error* means that connecting failed, so nothing was sent."""
    return isinstance(error, (requests.ConnectTimeout, PoolFull)) or _not_connected(_chain(error))


def _not_connected(causes: Iterable[BaseException]) -> bool:
    return any(isinstance(each, (NotConnected, NewConnectionError)) for each in causes)


def reason_of(error: BaseException) -> str:
    """Return the message of the innermost error, for the log."""
    *_, inner = _chain(error)
    return f"{type(inner).__name__}: {_WRAPPING.sub('', str(inner))}"[:300]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and the errors it wraps, which ``requests`` and ``urllib3`` keep in args."""
    seen: Any = error
    for _ in range(5):
        yield seen
        wrapped = [arg for arg in seen.args if isinstance(arg, BaseException)]
        seen = getattr(seen, "reason", None) or (wrapped[-1] if wrapped else None)
        if not isinstance(seen, BaseException):
            return
