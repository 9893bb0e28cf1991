"""Stale-if-error: store responses and serve them again while the app fails.

By RFC 9111 (HTTP Caching) and RFC 5861 section 4 (``stale-if-error``); where these leave a choice,
the stricter one: a response that is stored wrongly discloses one user's data to another.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Annotated, Generic, NamedTuple, TypeAlias, TypeVar
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.fields import unix_time
from wsgigate.http.problem import status_line
from wsgigate.http.responses import (
    CopiedBody,
    record_shaping,
    replaceable_response,
    with_fallback_field,
)
from wsgigate.http.target import BadTarget, kept_target_of
from wsgigate.http.wsgi import CLAIMS, FAILURE, IDENTITY, ExcInfo, Headers, environ_key, without
from wsgigate.rules.arguments import Bytes, Range, Seconds, checked
from wsgigate.rules.fallback import FallbackRules, reason_of
from wsgigate.rules.retry import SAFE
from wsgigate.runtime.clocks import steady, wall
from wsgigate.runtime.fork import quiesce_at_fork
from wsgigate.telemetry.decisions import SHAPING

__all__ = ["Freshness", "LruCache", "StaleAnswers", "directives", "may_serve", "storable"]


# An LRU cache bounded by size.

K = TypeVar("K", bound=Hashable)

V = TypeVar("V")


class LruCache(Generic[K, V]):
    """An LRU cache, bounded by the total size of its values.

    :param most: The most bytes of all values.
    :ivar used: The bytes in use.
    """

    def __init__(self, most: int) -> None:
        self.used = 0
        self._most = most
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value of *key*, and mark it as used last; ``None`` without one."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Set the value of *key*, and remove the least recently used ones to make room."""
        self.drop(key)
        self._kept[key] = (value, size)
        self.used += size
        while self.used > self._most:
            _, (_, gone) = self._kept.popitem(last=False)
            self.used -= gone

    def drop(self, key: K) -> None:
        """Remove the value of *key*, if there is one."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.used -= kept[1]

    def __len__(self) -> int:
        return len(self._kept)


# Which responses a shared cache may store, and serve when the service fails: pure functions.

STATUSES = frozenset((200, 203, 301, 308))
"""The statuses of responses that may be stored."""

_LONGEST = 2**31
"""A larger number of seconds counts as this one (RFC 9111 section 1.2.2)."""

_DIRECTIVE = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]*=[ \t]*(\"(?:[^\"\\]|\\.)*\"|[^\s,;\"]*))?"
)

_NEVER = frozenset(("no-store", "private", "no-cache", "must-revalidate", "proxy-revalidate"))


class Freshness(NamedTuple):
    """How a response may be stored.

    :ivar fresh_for: The age in seconds up to which it is fresh.
    :ivar stale_for: Seconds after that for which it may be served when the service fails.
    :ivar age: Its age in seconds when it arrived.
    :ivar vary: The request fields that it depends on, lower case, sorted.
    :ivar shared: Whether it is marked as the same for all users, with credentials or without.
    """

    fresh_for: float
    stale_for: float
    age: float
    vary: tuple[str, ...]
    shared: bool


def directives(value: str) -> dict[str, str]:
    """Return the directives of a ``Cache-Control`` value, names in lower case, quotes removed.

    Of a repeated directive the smaller number counts; a value that is not a number counts first.
    """
    found: dict[str, str] = {}
    for name, text in _DIRECTIVE.findall(value):
        name, text = name.lower(), text.strip('"')
        before, again = _seconds(found.setdefault(name, text)), _seconds(text)
        if before is not None and (again is None or again < before):
            found[name] = text
    return found


def storable(
    status: int,
    headers: Iterable[tuple[str, str]],
    *,
    credentials: bool,
    asked: str = "",
    now: float,
    stale_for: float,
) -> Freshness | None:
    """Return how a response to GET may be stored, ``None`` when it must not be.

    :param status: Its status.
    :param headers: Its fields.
    :param credentials: Whether the request had credentials: then only a response with ``public`` or
        ``s-maxage`` is stored (RFC 9111 section 3.5).
    :param asked: The ``Cache-Control`` of the request.
    :param now: Unix time.
    :param stale_for: Seconds for which it may be served stale, where the response does not set
        that: the operator's permission (RFC 9111 section 4.2.4).
    """
    if status not in STATUSES or "no-store" in directives(asked):
        return None
    fields = _joined(headers)
    if "set-cookie" in fields or "content-range" in fields:
        return None
    control = directives(fields.get("cache-control", ""))
    if not _NEVER.isdisjoint(control):
        return None
    if not control and "no-cache" in fields.get("pragma", "").lower():
        return None
    shared = "public" in control or "s-maxage" in control
    if credentials and not shared:
        return None
    vary = varying(fields.get("vary", ""))
    if "*" in vary:
        return None
    fresh_for = _fresh_for(control, fields, now)
    explicit = _seconds(control.get("stale-if-error"))
    if explicit is None and (fresh_for == 0 or "s-maxage" in control):
        # It is stale at once; or s-maxage forbids serving it stale (section 5.2.2.10).
        if not fresh_for:
            return None
        stale_for = 0.0
    date = _time(fields.get("date"))
    apparent = 0.0 if date is None else max(0.0, now - date)
    return Freshness(
        0.0 if fresh_for is None else fresh_for,
        stale_for if explicit is None else explicit,
        max(apparent, _seconds(fields.get("age")) or 0.0),
        vary,
        shared,
    )


def may_serve(kept: Freshness, age: float, *, credentials: bool) -> bool:
    """Return whether a stored response may be served when the service fails.

    :param age: Its age in seconds.
    :param credentials: Whether the request has credentials.
    """
    if credentials and not kept.shared:
        return False
    return age <= kept.fresh_for + kept.stale_for


def varying(value: str) -> tuple[str, ...]:
    """Return the names in a ``Vary`` value, lower case and sorted."""
    return tuple(sorted({name.strip().lower() for name in value.split(",") if name.strip()}))


def selecting(names: tuple[str, ...], field: Callable[[str], str]) -> tuple[str, ...]:
    """Return the values of the fields *names*: requests with equal ones get the same response.

    White space around commas does not count (RFC 9111 section 4.1).
    """
    return tuple(",".join(part.strip() for part in field(name).split(",")) for name in names)


def _joined(headers: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    fields: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _fresh_for(control: Mapping[str, str], fields: Mapping[str, str], now: float) -> float | None:
    """Return the freshness lifetime, ``None`` when the response has none (section 4.2.1)."""
    for name in ("s-maxage", "max-age"):
        if name in control:
            return _seconds(control[name]) or 0.0  # an invalid number means not fresh
    if "expires" not in fields:
        return None
    expires = _time(fields["expires"])
    if expires is None:
        return 0.0
    date = _time(fields.get("date"))
    return max(0.0, expires - (now if date is None else date))


def _seconds(text: str | None) -> float | None:
    if text is None or not (text.isascii() and text.isdigit()):
        return None
    return float(_LONGEST if len(text) > 10 else min(int(text), _LONGEST))


def _time(text: str | None) -> float | None:
    return None if text is None else unix_time(text)


# The middleware.

VARIANTS = 8
"""Maximum number of stored responses per target that differ by ``Vary``."""

_OVERHEAD = 1024  # bytes of memory per response besides the text of its body and fields
_AGE = frozenset(("age", "content-length"))

_CacheKey: TypeAlias = tuple[str, str, str]


class _StoredResponse(NamedTuple):
    status: int
    headers: Headers
    body: bytes
    keeping: Freshness
    selected: tuple[str, ...]
    stored_at: float
    size: int


@checked
class StaleAnswers:
    """Store successful responses to GET, and serve them again while the app fails.

    Which responses are stored follows RFC 9111 strictly. While
    the app works, every request reaches it. Each worker has its own storage, which evicts the least
    recently used responses. A stored response is sent with its ``Age`` and
    ``X-Gateway-Fallback: stale``.

    :param app: The WSGI application to stand in for.
    :param rules: Which responses are failures; the methods of the rules are ignored.
    :param max_size: Maximum size of the stored responses per worker and route, in bytes.
    :param max_answer: Maximum body size of a stored response, in bytes.
    :param stale_for: How long a response may be served after it is no longer fresh, in seconds, if
        it has no ``stale-if-error``.
    :param now: Returns the Unix time in seconds.
    :param clock: Returns a monotonic time in seconds.
    :ivar shown: Number of stored responses that were served.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        rules: FallbackRules | None = None,
        max_size: Bytes = 16 * 1024 * 1024,
        max_answer: Bytes = 1024 * 1024,
        stale_for: Annotated[Seconds, Range(0)] = 3600.0,
        now: Callable[[], float] = wall,
        clock: Callable[[], float] = steady,
    ) -> None:
        if max_answer < 1:
            raise ValueError(f"max_answer: 1 byte or more, not {max_answer}")
        if max_size < max_answer:
            raise ValueError(f"max_size: no less than max_answer, {max_answer}, not {max_size}")
        if not 0 <= stale_for < float("inf"):
            raise ValueError(f"stale_for: 0 or more seconds, not {stale_for}")
        self.app = app
        self.shown = 0
        self.lock = threading.RLock()
        self._rules = FallbackRules() if rules is None else rules
        self._cache: LruCache[_CacheKey, tuple[_StoredResponse, ...]] = LruCache(max_size)
        self._largest = max_answer
        self._stale_for = stale_for
        self._now = now
        self._clock = clock
        quiesce_at_fork(self)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        try:
            target = kept_target_of(environ)
        except BadTarget:
            return self.app(environ, start_response)
        path = environ.get("SCRIPT_NAME", "") + target.text
        key = (environ["wsgi.url_scheme"], target.host, path)
        if method not in SAFE:
            return self.app(environ, self._invalidating(key, start_response))
        if method == "OPTIONS" or "HTTP_UPGRADE" in environ:
            return self.app(environ, start_response)
        kept: tuple[int, Headers, Freshness] | None = None
        # An inner middleware may remove a cookie or a credential on which the response depends.
        received = environ.copy()

        def start(
            status: str, headers: Headers, exc_info: ExcInfo | None = None
        ) -> Callable[[bytes], object]:
            nonlocal kept
            kept = self._kept(received, environ, status, headers) if method == "GET" else None
            if exc_info:
                return start_response(status, headers, exc_info)
            return start_response(status, headers)

        def choose(status: int, error: Exception | None) -> WSGIApplication | None:
            if not self._rules.replaces(status, reason_of(environ.get(FAILURE), error is not None)):
                return None
            found = self._find(key, received, environ)
            if found is None:
                return None
            return lambda environ, _: self._serve(found, environ, start_response)

        body = replaceable_response(self.app, environ, start, choose)
        if kept is None:  # also for an app that starts its response lazily
            return body
        status, headers, how = kept

        def whole(data: bytes) -> None:
            self._put(key, received, status, headers, data, how)

        if type(body) is list:
            if sum(map(len, body)) <= self._largest:
                whole(b"".join(body))
            return body
        return CopiedBody(body, self._largest, whole)

    def before_fork(self) -> None:
        """Do nothing: the caller holds the lock, which is enough."""

    def after_unseen_fork(self) -> None:
        """Do nothing: the lock has been replaced."""

    @property
    def size(self) -> int:
        """Size of the stored responses in bytes."""
        return self._cache.used

    def _invalidating(self, key: _CacheKey, start_response: StartResponse) -> StartResponse:
        """Return a *start_response* that invalidates *key* on success (RFC 9111 section 4.4)."""

        def start(
            status: str, headers: Headers, exc_info: ExcInfo | None = None
        ) -> Callable[[bytes], object]:
            if status[:1] in ("2", "3"):
                with self.lock:
                    self._cache.drop(key)
            if exc_info:
                return start_response(status, headers, exc_info)
            return start_response(status, headers)

        return start

    def _kept(
        self, received: WSGIEnvironment, environ: WSGIEnvironment, status: str, headers: Headers
    ) -> tuple[int, Headers, Freshness] | None:
        code = status[:3]
        if not code.isdecimal():
            return None
        length = next((value for name, value in headers if name.lower() == "content-length"), "")
        if length.isdecimal() and int(length) > self._largest:
            return None
        how = storable(
            int(code),
            headers,
            credentials=_has_credentials(received) or _has_credentials(environ),
            asked=received.get("HTTP_CACHE_CONTROL", ""),
            now=self._now(),
            stale_for=self._stale_for,
        )
        return None if how is None else (int(code), list(headers), how)

    def _put(
        self,
        key: _CacheKey,
        received: WSGIEnvironment,
        status: int,
        headers: Headers,
        body: bytes,
        how: Freshness,
    ) -> None:
        """Store a response whose body is complete."""
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        if any(value != str(len(body)) for value in lengths):
            return  # truncated
        headers = [*without(headers, _AGE), ("Content-Length", str(len(body)))]
        selected = selecting(how.vary, lambda name: _field(received, name))
        size = len(body) + sum(len(name) + len(value) for name, value in headers) + _OVERHEAD
        size += sum(map(len, selected))  # request fields may be as long as the server allows
        made = _StoredResponse(status, headers, body, how, selected, self._clock(), size)
        with self.lock:
            others = [
                one
                for one in self._cache.get(key) or ()
                if one.keeping.vary == how.vary and one.selected != selected
            ]
            answers = (made, *others[: VARIANTS - 1])
            self._cache.put(key, answers, sum(one.size for one in answers) + len(key[2]))

    def _find(
        self, key: _CacheKey, received: WSGIEnvironment, environ: WSGIEnvironment
    ) -> _StoredResponse | None:
        if "HTTP_IF_MATCH" in received or "HTTP_IF_UNMODIFIED_SINCE" in received:
            return None  # only the service can evaluate these conditions
        with self.lock:
            answers = self._cache.get(key) or ()
        now, credentials = self._clock(), _has_credentials(received) or _has_credentials(environ)
        for one in answers:
            age = one.keeping.age + now - one.stored_at
            if may_serve(one.keeping, age, credentials=credentials) and one.selected == selecting(
                one.keeping.vary, lambda name: _field(received, name)
            ):
                return one
        return None

    def _serve(
        self, found: _StoredResponse, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        with self.lock:
            self.shown += 1
        record_shaping(environ, "fallback=stale")
        SHAPING.labels("fallback", "stale").add()
        age = max(0, int(found.keeping.age + self._clock() - found.stored_at))
        start = with_fallback_field(start_response, "stale")
        start(status_line(found.status), [*found.headers, ("Age", str(age))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [found.body]


def _field(environ: WSGIEnvironment, name: str) -> str:
    value: str = environ.get(environ_key(name), "")
    return value


def _has_credentials(environ: WSGIEnvironment) -> bool:
    """Return whether the request has credentials of a known kind."""
    return any(key in environ for key in _CREDENTIALS) or bool(environ.get(CLAIMS))


_CREDENTIALS = ("HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_X_API_KEY", IDENTITY)
