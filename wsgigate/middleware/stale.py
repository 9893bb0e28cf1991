"""Keep good answers, and show them again when the app fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import status_line
from wsgigate.http.responses import CopiedBody, answer_instead, marked, shaped
from wsgigate.http.target import BadTarget, kept_target_of
from wsgigate.http.wsgi import CLAIMS, FAILURE, ExcInfo, Headers, environ_key, without
from wsgigate.rules.arguments import checked
from wsgigate.rules.caching import Keeping, Shelf, keeping, may_show, selecting
from wsgigate.rules.fallback import SAFE, FallbackRules, reason_of
from wsgigate.runtime.clocks import steady, wall
from wsgigate.runtime.fork import quiesce_at_fork

__all__ = ["StaleAnswers"]

VARIANTS = 8
"""How many answers to one target are kept that differ in what their ``Vary`` names."""

_OVERHEAD = 1024  # bytes that an answer takes besides its body and its fields' text
_AGE = frozenset(("age", "content-length"))

_Key: TypeAlias = tuple[str, str, str]


class _Answer(NamedTuple):
    status: int
    headers: Headers
    body: bytes
    keeping: Keeping
    selected: tuple[str, ...]
    came: float
    size: int


@checked
class StaleAnswers:
    """Keep good answers to GET, and show them again when the app fails.

    What may be kept follows RFC 9111, strictly: see :mod:`wsgigate.rules.caching`. While the app is
    well every request reaches it. What is kept is each worker's own; those answers that were used
    last stay. An answer that is shown has its ``Age``, and ``stale`` in ``X-Gateway-Fallback``.

    :param app: The WSGI application to stand in front of.
    :param rules: What a failure is; its methods do not count.
    :param max_size: How many bytes are kept.
    :param max_answer: How many bytes the body of one answer may have.
    :param stale_for: For how many seconds an answer may be shown after it was fresh, where it does
        not say so itself by ``stale-if-error``.
    :param now: Tells the Unix time.
    :param clock: Tells seconds that only go forward.
    :ivar shown: How many answers were shown.
    :raises ValueError: One of the numbers is below what makes sense; says which.
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
        self._shelf: Shelf[_Key, tuple[_Answer, ...]] = Shelf(max_size)
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
            return self.app(environ, self._forgetting(key, start_response))
        if method == "OPTIONS" or "HTTP_UPGRADE" in environ:
            return self.app(environ, start_response)
        kept: tuple[int, Headers, Keeping] | None = None
        # An inner middleware may remove a cookie or a credential; the response depends on it still.
        asked = environ.copy()

        def start(
            status: str, headers: Headers, exc_info: ExcInfo | None = None
        ) -> Callable[[bytes], object]:
            nonlocal kept
            kept = self._kept(asked, environ, status, headers) if method == "GET" else None
            if exc_info:
                return start_response(status, headers, exc_info)
            return start_response(status, headers)

        def choose(status: int, error: Exception | None) -> WSGIApplication | None:
            if not self._rules.replaces(status, reason_of(environ.get(FAILURE), error is not None)):
                return None
            found = self._find(key, asked, environ)
            if found is None:
                return None
            return lambda environ, _: self._show(found, environ, start_response)

        body = answer_instead(self.app, environ, start, choose)
        if kept is None:  # or the app starts later: that is not kept either
            return body
        status, headers, how = kept

        def whole(data: bytes) -> None:
            self._put(key, asked, status, headers, data, how)

        if type(body) is list:
            if sum(map(len, body)) <= self._largest:
                whole(b"".join(body))
            return body
        return CopiedBody(body, self._largest, whole)

    def before_fork(self) -> None:
        """Do nothing: that the lock is held is enough."""

    def after_unseen_fork(self) -> None:
        """Do nothing: the lock is another one already."""

    @property
    def size(self) -> int:
        """How many bytes are kept."""
        return self._shelf.used

    def _forgetting(self, key: _Key, start_response: StartResponse) -> StartResponse:
        """Have what changes a target forget what is kept of it (RFC 9111 section 4.4)."""

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
        self, asked: WSGIEnvironment, environ: WSGIEnvironment, status: str, headers: Headers
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
            credentials=_tells_who(asked) or _tells_who(environ),
            asked=asked.get("HTTP_CACHE_CONTROL", ""),
            now=self._now(),
            stale_for=self._stale_for,
        )
        return None if how is None else (int(code), list(headers), how)

    def _put(
        self,
        key: _Key,
        asked: WSGIEnvironment,
        status: int,
        headers: Headers,
        body: bytes,
        how: Keeping,
    ) -> None:
        """Keep an answer whose body has come to its end."""
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        if any(value != str(len(body)) for value in lengths):
            return  # cut short, whatever it looked like
        headers = [*without(headers, _AGE), ("Content-Length", str(len(body)))]
        selected = selecting(how.vary, lambda name: _field(asked, name))
        size = len(body) + sum(len(name) + len(value) for name, value in headers) + _OVERHEAD
        size += sum(map(len, selected))  # what clients send, as much as servers let them
        made = _Answer(status, headers, body, how, selected, self._clock(), size)
        with self.lock:
            others = [
                one
                for one in self._shelf.get(key) or ()
                if one.keeping.vary == how.vary and one.selected != selected
            ]
            answers = (made, *others[: VARIANTS - 1])
            self._shelf.put(key, answers, sum(one.size for one in answers) + len(key[2]))

    def _find(self, key: _Key, asked: WSGIEnvironment, environ: WSGIEnvironment) -> _Answer | None:
        if "HTTP_IF_MATCH" in asked or "HTTP_IF_UNMODIFIED_SINCE" in asked:
            return None  # the service alone knows whether that still holds
        with self.lock:
            answers = self._shelf.get(key) or ()
        now, credentials = self._clock(), _tells_who(asked) or _tells_who(environ)
        for one in answers:
            age = one.keeping.age + now - one.came
            if may_show(one.keeping, age, credentials=credentials) and one.selected == selecting(
                one.keeping.vary, lambda name: _field(asked, name)
            ):
                return one
        return None

    def _show(
        self, found: _Answer, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        with self.lock:
            self.shown += 1
        shaped(environ, "fallback=stale")
        age = max(0, int(found.keeping.age + self._clock() - found.came))
        start = marked(start_response, "stale")
        start(status_line(found.status), [*found.headers, ("Age", str(age))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [found.body]


def _field(environ: WSGIEnvironment, name: str) -> str:
    value: str = environ.get(environ_key(name), "")
    return value


def _tells_who(environ: WSGIEnvironment) -> bool:
    """Return whether the request tells who its caller is, in a way that is known."""
    return any(key in environ for key in _CREDENTIALS) or bool(environ.get(CLAIMS))


_CREDENTIALS = ("HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_X_API_KEY")
