"""Refuse what is too much, so that the rest is answered in time."""

from __future__ import annotations

import random as _random
import threading
import time
from collections.abc import Callable, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate import process
from wsgigate.problem import Problem, Refuse, answer_with
from wsgigate.refusals import refused
from wsgigate.rules.arguments import checked
from wsgigate.rules.shedding import Gradient, SheddingRules
from wsgigate.store.forking import rest_at_fork
from wsgigate.wsgi import ExcInfo, Headers, Observed, is_websocket, observe

__all__ = ["Shedder"]

_BUSY = Problem(
    503,
    "Service temporarily unavailable",
    extensions={"error": "Overloaded"},
    headers=(("Retry-After", "1"),),
)


@checked
class Shedder:
    """Let no more requests of this worker be under way than the app can answer in good time.

    How many that are is found out from how long answers take, until they begin. It needs a worker
    with more threads than the app can make use of: what waits for a thread is not under way yet.

    :param app: The WSGI application to keep fast.
    :param rules: How the limit is found.
    :param enabled: Whether the shedder does anything; the attribute can be set at any time.
    :param refuse: Turns the problem into the app that answers it.
    :param clock: Tells the time in seconds, from any moment on.
    :param random: Gives numbers in [0, 1).
    :ivar in_flight: How many requests are under way.
    :ivar refused: How many this worker has refused.
    """

    enabled = True

    def __init__(
        self,
        app: WSGIApplication,
        rules: SheddingRules | None = None,
        *,
        enabled: bool = True,
        refuse: Refuse = answer_with,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        if not enabled:
            self.enabled = False
        self.app = app
        self.in_flight = 0
        self.refused = 0
        self.lock = threading.RLock()
        self._rules = SheddingRules() if rules is None else rules
        self._gradient = Gradient(self._rules)
        self._busy = refuse(_BUSY)
        self._clock = clock
        self._random = random
        rest_at_fork(self)
        process.renew_at_fork(self)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self.enabled:
            return self.app(environ, start_response)
        # a WebSocket lasts, and is no answer that could come in good time
        lasting = "HTTP_UPGRADE" in environ and is_websocket(environ)
        with self.lock:
            limit = self._gradient.limit
            busy = self.in_flight >= limit
            if busy:
                self.refused += 1
            elif not lasting:
                self.in_flight += 1
        if busy:
            refused(environ, "Shedder", f"{limit} requests are under way already")
            return self._busy(environ, start_response)
        if lasting:
            return self.app(environ, start_response)
        clock = self._clock
        began = clock()
        answered: float | None = None

        def start(
            status: str, headers: Headers, exc_info: ExcInfo | None = None
        ) -> Callable[[bytes], object]:
            nonlocal answered
            answered = clock()  # what the client takes to read it says nothing of the app
            if exc_info:
                return start_response(status, headers, exc_info)
            return start_response(status, headers)

        def done(response: Observed) -> None:
            with self.lock:
                # Failures come too fast or too late to tell what an answer takes.
                if answered is not None and response.status[:1] != "5" and not response.error:
                    self._gradient.answered(
                        answered - began, self.in_flight, clock(), self._random()
                    )
                self.in_flight -= 1

        return observe(self.app, environ, start, done)

    @property
    def limit(self) -> int:
        """How many requests may be under way."""
        return self._gradient.limit

    def after_fork(self) -> None:
        """Count none: those of the parent end there."""
        self.in_flight = self.refused = 0

    def before_fork(self) -> None:
        """Do nothing: that the lock is held is enough."""

    def after_unseen_fork(self) -> None:
        """Do nothing: the lock is another one already."""
