"""Stale-if-error: store responses and serve them again while the app fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import status_line
from wsgigate.http.responses import (
    CopiedBody,
    record_shaping,
    replaceable_response,
    with_fallback_field,
)
from wsgigate.http.target import BadTarget, kept_target_of
from wsgigate.http.wsgi import CLAIMS, FAILURE, ExcInfo, Headers, environ_key, without
from wsgigate.rules.arguments import checked
from wsgigate.rules.caching import Keeping, Shelf, keeping, may_show, selecting
from wsgigate.rules.fallback import SAFE, FallbackRules, reason_of
from wsgigate.runtime.clocks import steady, wall
from wsgigate.runtime.fork import quiesce_at_fork

__all__ = ["StaleAnswers"]

VARIANTS = 8
"""Maximum number of stored responses per target that differ by ``Vary``."""

_OVERHEAD = 1024  # bytes of memory per response besides the text of its body and fields
_AGE = frozenset(("age", "content-length"))

_Key: TypeAlias = tuple[str, str, str]


class _StoredResponse(NamedTuple):
    status: int
    headers: Headers
    body: bytes
    keeping: Keeping
    selected: tuple[str, ...]
    stored_at: float
    size: int


@checked
class StaleAnswers:
    """Store successful responses to GET, and serve them again while the app fails.

    Which responses are stored follows RFC 9111 strictly: see :mod:`wsgigate.rules.caching`. While
    the app works, every request reaches it. Each worker has its own storage, which evicts the least
    recently used responses. A stored response is sent with its ``Age`` and
    ``X-Gateway-Fallback: stale``.

    :param app: The WSGI application to stand in for.
    :param rules: Which responses are failures; the methods of the rules are ignored.
    :param max_size: Maximum size of the storage in bytes.
    :param max_answer: Maximum body size of a stored response in bytes.
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
        max_size: int = 16 * 1024 * 1024,
        max_answer: int = 1024 * 1024,
        stale_for: float = 3600.0,
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
        self._shelf: Shelf[_Key, tuple[_StoredResponse, ...]] = Shelf(max_size)
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
        kept: tuple[int, Headers, Keeping] | None = None
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
        return self._shelf.used

    def _invalidating(self, key: _Key, start_response: StartResponse) -> StartResponse:
        """Return a *start_response* that invalidates *key* on success (RFC 9111 section 4.4)."""

        def start(
            status: str, headers: Headers, exc_info: ExcInfo | None = None
        ) -> Callable[[bytes], object]:
            if status[:1] in ("2", "3"):
                with self.lock:
                    self._shelf.drop(key)
            if exc_info:
                return start_response(status, headers, exc_info)
            return start_response(status, headers)

        return start

    def _kept(
        self, received: WSGIEnvironment, environ: WSGIEnvironment, status: str, headers: Headers
    ) -> tuple[int, Headers, Keeping] | None:
        code = status[:3]
        if not code.isdecimal():
            return None
        length = next((value for name, value in headers if name.lower() == "content-length"), "")
        if length.isdecimal() and int(length) > self._largest:
            return None
        how = keeping(
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
        key: _Key,
        received: WSGIEnvironment,
        status: int,
        headers: Headers,
        body: bytes,
        how: Keeping,
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
                for one in self._shelf.get(key) or ()
                if one.keeping.vary == how.vary and one.selected != selected
            ]
            answers = (made, *others[: VARIANTS - 1])
            self._shelf.put(key, answers, sum(one.size for one in answers) + len(key[2]))

    def _find(
        self, key: _Key, received: WSGIEnvironment, environ: WSGIEnvironment
    ) -> _StoredResponse | None:
        if "HTTP_IF_MATCH" in received or "HTTP_IF_UNMODIFIED_SINCE" in received:
            return None  # only the service can evaluate these conditions
        with self.lock:
            answers = self._shelf.get(key) or ()
        now, credentials = self._clock(), _has_credentials(received) or _has_credentials(environ)
        for one in answers:
            age = one.keeping.age + now - one.stored_at
            if may_show(one.keeping, age, credentials=credentials) and one.selected == selecting(
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


_CREDENTIALS = ("HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_X_API_KEY")
