"""Have a copy of requests answered by another app, of which nobody hears."""

from __future__ import annotations

import io
import logging
import random as _random
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.bodies import KeptBody
from wsgigate.http.wsgi import (
    CLAIMS,
    CLIENT,
    CLIENT_SOURCE,
    KEPT_TARGET,
    PARAMS,
    PEER_TRUSTED,
    REQUEST_ID,
    ROUTE,
    close_body,
)
from wsgigate.rules.arguments import checked
from wsgigate.runtime.fork import quiesce_at_fork
from wsgigate.runtime.threads import BackgroundQueue

__all__ = ["Mirror"]

LOG = logging.getLogger("wsgigate.mirror")

COMPLAIN = 60.0
"""Seconds for which failing mirrors are logged once."""

_MARK = "HTTP_X_GATEWAY_MIRROR"
_CREDENTIALS = frozenset(
    ("HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_PROXY_AUTHORIZATION", "HTTP_X_API_KEY", CLAIMS)
)
_NOT_COPIED = frozenset(("HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_UPGRADE"))
_OF_REQUESTS = frozenset(
    (
        *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI"),
        *("CONTENT_TYPE", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "REMOTE_ADDR"),
        *("REMOTE_PORT", "wsgi.version", "wsgi.url_scheme"),
        *(REQUEST_ID, CLIENT, CLIENT_SOURCE, PEER_TRUSTED, CLAIMS, ROUTE, PARAMS, KEPT_TARGET),
    )
)
"""What of an environ speaks of the request; the rest is the server's or the connection's."""


@checked
class Mirror:
    """Have a share of the requests answered a second time by another app, and drop those answers.

    The client's own request never waits for that and never fails by it: copies go through a short
    queue to a few threads, and are dropped and counted when that is full. A copy has
    ``X-Gateway-Mirror: 1``, which is taken off what clients send, and unless *credentials* are
    mirrored, none of ``Authorization``, ``Cookie``, ``Proxy-Authorization``, ``X-Api-Key`` and the
    claims that were verified.

    :param app: The WSGI application to stand in front of.
    :param other: The one that gets the copies, such as a forwarder; its timeouts are what bounds
        them.
    :param percent: Of how many requests in a hundred there is a copy, above 0 to 100.
    :param methods: The methods of requests that are mirrored; all when empty.
    :param max_body: The largest body that is copied, in bytes; a request with a larger one is not
        mirrored, nor is one whose body the app has not read to its end.
    :param credentials: Whether copies have what tells who the caller is.
    :param max_answer: How many bytes of an answer are read before it is let go.
    :param max_time: Seconds after which an answer is let go, looked at with each part of it.
    :param threads: How many copies are under way at a time, in each worker.
    :param queue: How many may wait for that.
    :param random: Gives numbers in [0, 1).
    :param clock: Tells seconds that only go forward.
    :ivar sent: How many copies were answered, whatever with.
    :ivar failed: How many ended in an exception.
    :ivar too_large: How many requests had too large a body.
    :ivar unread: How many had one that was not read to its end before the answer began.
    :raises ValueError: One of the settings is wrong; says which.
    """

    def __init__(
        self,
        app: WSGIApplication,
        other: WSGIApplication,
        *,
        percent: float = 100.0,
        methods: Collection[str] = (),
        max_body: int = 64 * 1024,
        credentials: bool = False,
        max_answer: int = 1024 * 1024,
        max_time: float = 30.0,
        threads: int = 2,
        queue: int = 100,
        random: Callable[[], float] = _random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < percent <= 100:
            raise ValueError(f"percent: a number above 0, at most 100, not {percent}")
        if max_body < 0:
            raise ValueError(f"max_body: 0 or more bytes, not {max_body}")
        if not 0 < max_time < float("inf"):
            raise ValueError(f"max_time: a number of seconds above 0, not {max_time}")
        self.app = app
        self.sent = 0
        self.failed = 0
        self.too_large = 0
        self.unread = 0
        self._queue = BackgroundQueue(threads=threads, queue=queue, name="wsgigate-mirror")
        self._other = other
        self._share = percent / 100
        self._methods = frozenset(methods)
        self._largest = max_body
        self._credentials = credentials
        self._most = max_answer
        self._longest = max_time
        self._random = random
        self._clock = clock
        self.lock = threading.RLock()
        self._complained = float("-inf")
        quiesce_at_fork(self)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.pop(_MARK, None)
        if not self._wanted(environ):
            return self.app(environ, start_response)
        length = environ.get("CONTENT_LENGTH") or ""
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        if not chunked and length in ("", "0"):
            self._put(self._copied(environ), b"")
            return self.app(environ, start_response)
        # Python itself refuses to read numbers of thousands of digits.
        if length and not (
            length.isdecimal() and len(length) < 20 and int(length) <= self._largest
        ):
            with self.lock:
                self.too_large += 1
            return self.app(environ, start_response)
        copied = self._copied(environ)
        expected = None if chunked else int(length)
        environ["wsgi.input"] = body = KeptBody(environ["wsgi.input"], self._largest, expected)
        try:
            return self.app(environ, start_response)
        finally:
            kept = body.whole()
            if kept is not None:
                self._put(copied, kept)
            else:
                with self.lock:
                    self.too_large += body.too_large
                    self.unread += not body.too_large

    @property
    def dropped(self) -> int:
        """How many copies there was no room for in the queue."""
        return self._queue.dropped

    def close(self) -> None:
        """Drop what waits, and let the threads end."""
        self._queue.close()

    def before_fork(self) -> None:
        """Do nothing: that the lock is held is enough."""

    def after_unseen_fork(self) -> None:
        """Do nothing: the lock is another one already."""

    def _wanted(self, environ: WSGIEnvironment) -> bool:
        if self._methods and environ["REQUEST_METHOD"] not in self._methods:
            return False
        if "HTTP_UPGRADE" in environ:
            return False
        return self._share >= 1 or self._random() < self._share

    def _copied(self, environ: WSGIEnvironment) -> WSGIEnvironment:
        """Return what of *environ* speaks of the request, before anybody changes it."""
        left_out = _NOT_COPIED if self._credentials else _NOT_COPIED | _CREDENTIALS
        copied: WSGIEnvironment = {
            key: value
            for key, value in environ.items()
            if (key in _OF_REQUESTS or key.startswith("HTTP_")) and key not in left_out
        }
        copied[_MARK] = "1"
        copied["wsgi.errors"] = sys.stderr
        copied["wsgi.multithread"] = True
        copied["wsgi.multiprocess"] = environ.get("wsgi.multiprocess", True)
        copied["wsgi.run_once"] = False
        return copied

    def _put(self, copied: WSGIEnvironment, body: bytes) -> None:
        copied["wsgi.input"] = io.BytesIO(body)
        if body:
            copied["CONTENT_LENGTH"] = str(len(body))
        self._queue.put(lambda: self._send(copied))

    def _send(self, environ: WSGIEnvironment) -> None:
        try:
            until, left = self._clock() + self._longest, self._most
            answer = self._other(environ, _start)
            try:
                for chunk in answer:
                    left -= len(chunk)
                    if left < 0 or self._clock() >= until:
                        break
            finally:
                close_body(answer)
        except Exception as error:
            self._complain(error)
            return
        with self.lock:
            self.sent += 1

    def _complain(self, error: Exception) -> None:
        now = self._clock()
        with self.lock:
            self.failed += 1
            if now - self._complained < COMPLAIN:
                return
            self._complained = now
        LOG.warning("A copy of a request failed: %s: %s", type(error).__name__, error)


def _start(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
    return lambda data: None
