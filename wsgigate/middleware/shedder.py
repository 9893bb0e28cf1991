"""Refuse what is too much, so that the rest is answered in time."""

from __future__ import annotations

import math
import random as _random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.refusals import refused
from wsgigate.http.wsgi import ExcInfo, Headers, Observed, is_websocket, observe
from wsgigate.rules.arguments import checked
from wsgigate.runtime import fork
from wsgigate.runtime.fork import quiesce_at_fork

__all__ = ["Gradient", "Shedder", "SheddingRules"]


# How many requests may be under way, so that those that are do not take longer than they must.
#
# A server that takes on more than it can do at once does all of it late. So what is too much is
# refused at once, and the rest is as fast as ever.

_LARGEST = 100_000

_MOST_SAMPLES = 500

_ROOM = 16
"""How far above twice of what is under way the limit may be."""


@checked
@dataclass(frozen=True, kw_only=True, slots=True)
class SheddingRules:
    """How the limit of requests under way is found.

    :param least: The limit is never below that, and it is that while the unloaded time is measured.
    :param most: The limit is never above that.
    :param tolerance: By which share an answer may take longer than when there is no load.
    :param window: Seconds after which the limit is worked out again.
    :param window_requests: Answers below which a window goes on.
    :param measure_every: Seconds after which the unloaded time is measured again.
    :param measure_requests: Answers that it is measured by.
    :param jitter: By up to which share that is put off, by chance, so that not all workers measure
        at the same time.
    :raises ValueError: A setting is out of its range; says which.
    """

    least: int = 3
    most: int = 1_000
    tolerance: float = 0.25
    window: float = 0.1
    window_requests: int = 10
    measure_every: float = 60.0
    measure_requests: int = 50
    jitter: float = 0.15

    def __post_init__(self) -> None:
        for name in ("least", "most", "window_requests", "measure_requests"):
            count = getattr(self, name)
            most = _MOST_SAMPLES if name.endswith("requests") else _LARGEST
            if type(count) is not int or not 1 <= count <= most:
                raise ValueError(f"{name} is a whole number from 1 to {most}, got {count!r}")
        for name, least, largest in (
            ("tolerance", 0.0, 100.0),
            ("window", 0.001, 3600.0),
            ("measure_every", 1.0, 86_400.0),
            ("jitter", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if type(value) not in (int, float) or not least <= value <= largest:
                raise ValueError(f"{name} is a number from {least:g} to {largest:g}, got {value!r}")
        if self.most < self.least:
            raise ValueError(f"most is not less than least: {self.most} < {self.least}")


class Gradient:
    """A limit that follows how long answers take, by the gradient of Envoy's adaptive concurrency.

    The time of an answer without load is measured now and then, with few requests under way. The
    limit is multiplied by how that compares with what answers take at present, between a half and
    twice, and may grow by its square root. One that is far from being reached does not grow: it
    would take long to come down.

    It belongs to all threads of a worker, and whoever calls it holds a lock.

    :param rules: The settings.
    :ivar limit: How many requests may be under way.
    :ivar unloaded: Seconds that an answer takes without load; 0 before that was measured.
    """

    def __init__(self, rules: SheddingRules) -> None:
        self._rules = rules
        self._samples: list[float] = []
        self._ends = -math.inf
        self._measuring = True
        self._measures_at = math.inf
        # Where it goes on after measuring: far enough for the first window to say something.
        self._aim = float(min(rules.most, max(rules.least, 16)))
        self._peak = 0
        self.limit = rules.least
        self.unloaded = 0.0

    def answered(self, seconds: float, under_way: int, now: float, chance: float) -> None:
        """Take note that a request was answered.

        :param seconds: How long that took.
        :param under_way: How many were under way at the end of it, itself among them.
        :param chance: A number in [0, 1).
        """
        rules, samples = self._rules, self._samples
        if self._measuring:
            samples.append(seconds)
            if len(samples) >= rules.measure_requests:
                self._measured(now, chance)
            return
        if now >= self._measures_at:
            self._measuring, self._samples = True, []
            self._aim, self.limit = float(self.limit), rules.least
            return  # those under way still are too many: what they take is not counted
        if len(samples) < _MOST_SAMPLES:
            samples.append(seconds)
        if under_way > self._peak:
            self._peak = under_way
        if now >= self._ends and len(samples) >= rules.window_requests:
            self._update(now)

    def _measured(self, now: float, chance: float) -> None:
        rules = self._rules
        # The first to end began under more load; the middle one did not.
        self.unloaded = max(median(self._samples), 1e-6)
        self._measuring, self._samples = False, []
        self._measures_at = now + rules.measure_every * (1 + rules.jitter * chance)
        self._ends = now + rules.window
        self.limit = round(self._aim)

    def _update(self, now: float) -> None:
        rules = self._rules
        taken = max(median(self._samples), 1e-6)
        gradient = min(2.0, max(0.5, self.unloaded * (1 + rules.tolerance) / taken))
        limit = gradient * self.limit + math.sqrt(self.limit)
        if limit > self.limit and self.limit > 2 * self._peak + _ROOM:
            limit = self.limit  # it was not reached, so how fast answers are says nothing of it
        self.limit = int(min(rules.most, max(rules.least, limit)))
        self._peak = 0
        self._samples = []
        self._ends = now + rules.window


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
        quiesce_at_fork(self)
        fork.renew_at_fork(self)

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
