"""Adaptive load shedding: reject requests beyond the limit at which response times grow.

A server that accepts more requests than it can serve concurrently serves all of them late. So the
excess is rejected at once, and the response times of the others stay low.
"""

from __future__ import annotations

import math
import random as _random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Annotated
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.wsgi import ExcInfo, Headers, Observed, is_websocket, observe
from wsgigate.rules.arguments import Count, Fraction, Range, Seconds, checked
from wsgigate.runtime import fork
from wsgigate.runtime.fork import quiesce_at_fork

__all__ = ["Gradient", "Shedder", "SheddingRules"]


_LARGEST = 100_000

_MOST_SAMPLES = 500

_ROOM = 16
"""How far the limit may exceed twice the peak of requests in flight."""


@checked
@dataclass(frozen=True, kw_only=True, slots=True)
class SheddingRules:
    """How the limit of requests in flight is computed.

    :param least: Minimum limit of requests in flight per worker; also used while the response time
        without load is measured.
    :param most: Maximum limit of requests in flight per worker.
    :param tolerance: By which fraction a response may take longer than without load.
    :param window: Time between two updates of the limit, in seconds.
    :param window_requests: Minimum number of responses in a window; until then it is extended.
    :param measure_every: Time between two measurements of the response time without load, in
        seconds.
    :param measure_requests: Number of responses in a measurement.
    :param jitter: Maximum random delay of a measurement, as a fraction of *measure_every*, so that
        workers do not measure at the same time.
    :raises ValueError: An argument is out of range; the message names it.
    """

    least: Count = 3
    most: Count = 1_000
    tolerance: Annotated[float, Range(0, 100)] = 0.25
    window: Seconds = 0.1
    window_requests: Annotated[int, Range(1, 500)] = 10
    measure_every: Seconds = 60.0
    measure_requests: Annotated[int, Range(1, 500)] = 50
    jitter: Fraction = 0.15

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
    """A limit that adapts to response times, like the gradient of Envoy's adaptive concurrency.

    The response time without load is measured from time to time, with few requests in flight. Each
    window multiplies the limit by the ratio of the unloaded to the present response time, between
    0.5 and 2, and adds the square root of the limit. A limit far above the peak of requests in
    flight does not grow: it would take long to come down.

    All threads of a worker share the object; the caller holds a lock.

    :param rules: The settings.
    :ivar limit: Maximum number of requests in flight.
    :ivar unloaded: Response time without load in seconds; 0 before the first measurement.
    """

    def __init__(self, rules: SheddingRules) -> None:
        self._rules = rules
        self._samples: list[float] = []
        self._ends = -math.inf
        self._measuring = True
        self._measures_at = math.inf
        # The limit after a measurement, large enough for the first window to be meaningful.
        self._aim = float(min(rules.most, max(rules.least, 16)))
        self._peak = 0
        self.limit = rules.least
        self.unloaded = 0.0

    def answered(self, seconds: float, in_flight: int, now: float, chance: float) -> None:
        """Record the response time of a request.

        :param seconds: The response time.
        :param in_flight: Number of requests in flight at its end, including this one.
        :param chance: A random number in [0, 1).
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
            return  # requests in flight started under load: their response times do not count
        if len(samples) < _MOST_SAMPLES:
            samples.append(seconds)
        if in_flight > self._peak:
            self._peak = in_flight
        if now >= self._ends and len(samples) >= rules.window_requests:
            self._update(now)

    def _measured(self, now: float, chance: float) -> None:
        rules = self._rules
        # The first responses of a measurement started under more load; the median did not.
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
            limit = (
                self.limit
            )  # the limit was not reached, so response times are no evidence for it
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
    """Load shedding: limit the requests in flight per worker to what the app serves in time.

    The limit is computed from response times, up to the start of the response. The worker needs
    more threads than the app can use: a request that waits for a thread is not yet in flight. The
    attribute *enabled* can be changed at any time.

    :param app: The WSGI application to protect.
    :param rules: How the limit is computed.
    :param enabled: Whether the shedder is active; false passes every request on.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :param clock: Returns a monotonic time in seconds.
    :param random: Returns random numbers in [0, 1).
    :ivar in_flight: Number of requests in flight.
    :ivar refused: Number of requests that this worker has rejected.
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
        # A WebSocket may last for hours: it is not counted.
        lasting = "HTTP_UPGRADE" in environ and is_websocket(environ)
        with self.lock:
            limit = self._gradient.limit
            busy = self.in_flight >= limit
            if busy:
                self.refused += 1
            elif not lasting:
                self.in_flight += 1
        if busy:
            refused(environ, "Shedder", f"{limit} requests are in flight already")
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
            answered = clock()  # the time that the client takes to read the response does not count
            if exc_info:
                return start_response(status, headers, exc_info)
            return start_response(status, headers)

        def done(response: Observed) -> None:
            with self.lock:
                # Failures are faster or slower than a typical response: they do not count.
                if answered is not None and response.status[:1] != "5" and not response.error:
                    self._gradient.answered(
                        answered - began, self.in_flight, clock(), self._random()
                    )
                self.in_flight -= 1

        return observe(self.app, environ, start, done)

    @property
    def limit(self) -> int:
        """Maximum number of requests in flight."""
        return self._gradient.limit

    def after_fork(self) -> None:
        """Reset the counts: requests of the parent process end there."""
        self.in_flight = self.refused = 0

    def before_fork(self) -> None:
        """Do nothing: the caller holds the lock, which is enough."""

    def after_unseen_fork(self) -> None:
        """Do nothing: the lock has been replaced."""
