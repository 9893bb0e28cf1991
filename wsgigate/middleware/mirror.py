"""Traffic mirroring: send copies of requests to another app and discard its responses."""

from __future__ import annotations

import io
import logging
import random as _random
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Annotated
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.bodies import BufferedBody
from wsgigate.http.wsgi import (
    CLAIMS,
    CLIENT,
    CLIENT_SOURCE,
    IDENTITIES,
    IDENTITY,
    KEPT_TARGET,
    PARAMS,
    PEER_TRUSTED,
    REQUEST_ID,
    ROUTE,
    SET_FIELDS,
    close_body,
)
from wsgigate.rules.arguments import Bytes, Method, Range, Seconds, checked
from wsgigate.runtime.fork import quiesce_at_fork
from wsgigate.runtime.logs import ThrottledLog
from wsgigate.runtime.threads import BackgroundQueue
from wsgigate.telemetry.metrics import Counter

__all__ = ["Mirror"]

LOG = logging.getLogger("wsgigate.mirror")

COPIES = Counter(
    "wsgigate_mirrored",
    "Copies of requests: sent, failed, or dropped because the queue was full.",
    ("result",),
)

_MARK = "HTTP_X_GATEWAY_MIRROR"
_CREDENTIALS = frozenset(
    (
        "HTTP_AUTHORIZATION",
        "HTTP_COOKIE",
        "HTTP_PROXY_AUTHORIZATION",
        "HTTP_X_API_KEY",
        CLAIMS,
        IDENTITIES,
        IDENTITY,
        SET_FIELDS,
    )
)
_NOT_COPIED = frozenset(("HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_UPGRADE"))
_URL = frozenset(("QUERY_STRING", "RAW_URI", "REQUEST_URI"))
"""The environ keys from which a middleware removes a credential, besides fields."""

_OF_REQUESTS = frozenset(
    (
        *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI"),
        *("CONTENT_TYPE", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "REMOTE_ADDR"),
        *("REMOTE_PORT", "wsgi.version", "wsgi.url_scheme"),
        *(
            REQUEST_ID,
            CLIENT,
            CLIENT_SOURCE,
            PEER_TRUSTED,
            CLAIMS,
            IDENTITIES,
            IDENTITY,
            SET_FIELDS,
            ROUTE,
            PARAMS,
            KEPT_TARGET,
        ),
    )
)
"""The environ keys that describe the request; the others belong to the server or connection."""


@checked
class Mirror:
    """Traffic mirroring: send copies of requests to another app, and discard its responses.

    The original request never waits for its copy and never fails because of it: a few threads send
    the copies from a short queue; if the queue is full, copies are dropped and counted. A copy has
    ``X-Gateway-Mirror: 1``, a field that is removed from client requests. Unless *credentials* is
    set, a copy has none of ``Authorization``, ``Cookie``, ``Proxy-Authorization``, ``X-Api-Key``,
    the fields that a :class:`ForwardAuth` has set, and the verified claims. What a middleware
    inside *app* removes from the fields or the query, as an :class:`ApiKeyAuthenticator` does with
    keys, no copy has. So copies are made once *app* was called.

    :param app: The WSGI application that serves the requests.
    :param other: The app that gets the copies, such as a forwarder, whose timeouts bound them.
    :param percent: Percentage of requests that are mirrored, above 0 to 100.
    :param methods: Methods of requests that are mirrored. Default: all.
    :param max_body: Maximum body size of a copy, in bytes. A request with a larger body is not
        mirrored, nor is one whose body the app has not read to its end.
    :param credentials: Whether copies include the caller's credentials and identity.
    :param max_answer: Maximum number of bytes that are read of a response.
    :param max_time: Maximum time to read a response, in seconds; checked after each chunk.
    :param threads: Number of threads per worker that send copies: the maximum in flight.
    :param queue: Maximum number of copies that wait to be sent.
    :param random: Returns random numbers in [0, 1).
    :param clock: Returns a monotonic time in seconds.
    :ivar sent: Number of copies that got a response, whatever its status.
    :ivar too_large: Number of requests whose body was too large.
    :ivar unread: Number of requests whose body was not read to its end before the response started.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        other: WSGIApplication,
        *,
        percent: Annotated[float, Range(0, 100)] = 100.0,
        methods: Annotated[Collection[Method], Range(1)] = (),
        max_body: Bytes = 64 * 1024,
        credentials: bool = False,
        max_answer: Bytes = 1024 * 1024,
        max_time: Seconds = 30.0,
        threads: Annotated[int, Range(1, 64)] = 2,
        queue: Annotated[int, Range(1, 100_000)] = 100,
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
        self._failures = ThrottledLog(
            LOG.warning,
            "%s copies of requests failed since the last such message; the last: %s: %s",
            clock,
        )
        quiesce_at_fork(self)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.pop(_MARK, None)
        if not self._wanted(environ):
            return self.app(environ, start_response)
        length = environ.get("CONTENT_LENGTH") or ""
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        if not chunked and length in ("", "0"):
            copied = self._copied(environ)
            try:
                return self.app(environ, start_response)
            finally:
                self._put(copied, environ, b"")
        # Python itself refuses to read numbers of thousands of digits.
        if length and not (
            length.isdecimal() and len(length) < 20 and int(length) <= self._largest
        ):
            with self.lock:
                self.too_large += 1
            return self.app(environ, start_response)
        copied = self._copied(environ)
        expected = None if chunked else int(length)
        environ["wsgi.input"] = body = BufferedBody(environ["wsgi.input"], self._largest, expected)
        try:
            return self.app(environ, start_response)
        finally:
            kept = body.whole()
            if kept is not None:
                self._put(copied, environ, kept)
            else:
                with self.lock:
                    self.too_large += body.too_large
                    self.unread += not body.too_large

    @property
    def failed(self) -> int:
        """Number of copies that raised an exception."""
        return self._failures.total

    @property
    def dropped(self) -> int:
        """Number of copies that were dropped, as the queue was full."""
        return self._queue.dropped

    def close(self) -> None:
        """Drop the queued copies and stop the threads."""
        self._queue.close()

    def before_fork(self) -> None:
        """Do nothing: the caller holds the lock, which is enough."""

    def after_unseen_fork(self) -> None:
        """Do nothing: the lock has been replaced."""

    def _wanted(self, environ: WSGIEnvironment) -> bool:
        if self._methods and environ["REQUEST_METHOD"] not in self._methods:
            return False
        if "HTTP_UPGRADE" in environ:
            return False
        return self._share >= 1 or self._random() < self._share

    def _copied(self, environ: WSGIEnvironment) -> WSGIEnvironment:
        """Return a copy of the request's part of *environ*, before the app can change it."""
        left_out = _NOT_COPIED
        if not self._credentials:
            left_out = left_out.union(_CREDENTIALS, environ.get(SET_FIELDS, ()))
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

    def _put(self, copied: WSGIEnvironment, left: WSGIEnvironment, body: bytes) -> None:
        """Put a copy into the queue, with the fields and the query as the app has *left* them."""
        hidden = () if self._credentials else left.get(SET_FIELDS, ())
        for key in [key for key in copied if key in _URL or key.startswith("HTTP_")]:
            if key == _MARK:
                continue
            if key in left and key not in hidden:
                copied[key] = left[key]
            else:
                del copied[key]
        copied["wsgi.input"] = io.BytesIO(body)
        if body:
            copied["CONTENT_LENGTH"] = str(len(body))
        if not self._queue.put(lambda: self._send(copied)):
            COPIES.labels("dropped").add()

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
            COPIES.labels("failed").add()
            self._failures.log(type(error).__name__, error)
            return
        COPIES.labels("sent").add()
        with self.lock:
            self.sent += 1


def _start(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
    return lambda data: None
