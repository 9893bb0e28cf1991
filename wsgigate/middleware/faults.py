"""Fault injection: delay or abort a share of the requests, to test how clients cope."""

from __future__ import annotations

import random as _random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.fields import is_token
from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.responses import record_shaping
from wsgigate.http.wsgi import REASON, REJECTED_BY, environ_key
from wsgigate.rules.arguments import Range, Seconds, checked
from wsgigate.runtime import fork
from wsgigate.runtime.fork import quiesce_at_fork
from wsgigate.telemetry.decisions import SHAPING

__all__ = ["Fault", "FaultRules", "Faults"]


LONGEST = 60.0
"""Maximum delay in seconds."""


class Fault(NamedTuple):
    """The fault that is injected into one request.

    :ivar delay: Delay in seconds.
    :ivar status: Status of the error response; ``None`` to call the app.
    """

    delay: float = 0.0
    status: int | None = None


@checked
@dataclass(frozen=True)
class FaultRules:
    """Which faults are injected, and into what share of the requests.

    :param delay: Delay of a request, in seconds, at most 60 s.
    :param delay_percent: Percentage of requests that are delayed.
    :param abort_status: Status of the error response, 400 to 599.
    :param abort_percent: Percentage of requests that get the error response; drawn independently of
        the delay.
    :raises ValueError: An argument is out of range, or no fault would be injected; the message
        names it.
    """

    delay: Seconds = 0.0
    delay_percent: Annotated[float, Range(0, 100)] = 0.0
    abort_status: Annotated[int, Range(400, 599)] = 503
    abort_percent: Annotated[float, Range(0, 100)] = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.delay <= LONGEST:
            raise ValueError(f"delay: 0 to {LONGEST:g} seconds, not {self.delay}")
        for name in ("delay_percent", "abort_percent"):
            if not 0 <= getattr(self, name) <= 100:
                raise ValueError(f"{name}: a number from 0 to 100, not {getattr(self, name)}")
        if not 400 <= self.abort_status <= 599:
            raise ValueError(f"abort_status: a status from 400 to 599, not {self.abort_status}")
        if bool(self.delay) != bool(self.delay_percent):
            raise ValueError("delay_percent: requires delay, and delay requires it, both above 0")
        if not (self.delay_percent or self.abort_percent):
            raise ValueError(
                "abort_percent: no fault would be injected; set it or delay_percent above 0"
            )

    def draw(self, first: float, second: float) -> Fault:
        """Return the fault for one request.

        :param first: A random number in [0, 1) that decides on the delay.
        :param second: A random number in [0, 1) that decides on the error response.
        """
        delay = self.delay if first * 100 < self.delay_percent else 0.0
        status = self.abort_status if second * 100 < self.abort_percent else None
        return Fault(delay, status)


@checked
class Faults:
    """Inject faults: delay some requests, and respond to some with an error.

    It is inactive unless *enabled*. The access log records each fault as ``fault=delay`` or
    ``fault=503``, and an injected error response has ``X-Gateway-Fault: abort``.

    :param app: The WSGI application around which faults are injected.
    :param rules: Which faults are injected, and into what share of the requests.
    :param enabled: Whether faults are injected.
    :param when: Request fields and their values: faults are injected only into requests that have
        all of them.
    :param max_delayed: Maximum number of requests of a worker that are delayed at the same time;
        further ones are not delayed.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :param sleep: Waits for a number of seconds.
    :param random: Returns random numbers in [0, 1).
    :ivar delayed: Number of requests that are currently delayed.
    :ivar undelayed: Number of requests that were not delayed, as *max_delayed* was reached.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        rules: FaultRules,
        *,
        enabled: bool = False,
        when: Mapping[str, str] | None = None,
        max_delayed: Annotated[int, Range(1, 4096)] = 4,
        refuse: Refuse = answer_with,
        sleep: Callable[[float], object] = time.sleep,
        random: Callable[[], float] = _random.random,
    ) -> None:
        if max_delayed < 1:
            raise ValueError(f"max_delayed: 1 or more threads, not {max_delayed}")
        for name in when or ():
            if not is_token(name):
                raise ValueError(f"when: {name!r} is not a valid header field name")
        self.app = app
        self.delayed = 0
        self.undelayed = 0
        self._rules = rules
        self._enabled = enabled
        self._when = tuple((environ_key(name), value) for name, value in (when or {}).items())
        self._most = max_delayed
        self.lock = threading.RLock()
        self._aborted = refuse(
            Problem(
                rules.abort_status,
                "A fault was injected.",
                extensions={"error": "Fault injected"},
                headers=(("X-Gateway-Fault", "abort"),),
            )
        )
        self._sleep = sleep
        self._random = random
        quiesce_at_fork(self)
        fork.renew_at_fork(self)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self._enabled or any(environ.get(key) != value for key, value in self._when):
            return self.app(environ, start_response)
        fault = self._rules.draw(self._random(), self._random())
        if fault.delay:
            self._delay(fault.delay, environ)
        if fault.status is None:
            return self.app(environ, start_response)
        record_shaping(environ, f"fault={fault.status}")
        SHAPING.labels("fault", str(fault.status)).add()
        environ[REASON], environ[REJECTED_BY] = "a fault was injected", "Faults"
        return self._aborted(environ, start_response)

    def after_fork(self) -> None:
        """Reset the counts: delayed requests of the parent process stay there."""
        self.delayed = self.undelayed = 0

    def before_fork(self) -> None:
        """Do nothing: the caller holds the lock, which is enough."""

    def after_unseen_fork(self) -> None:
        """Do nothing: the lock has been replaced."""

    def _delay(self, seconds: float, environ: WSGIEnvironment) -> None:
        with self.lock:
            if self.delayed >= self._most:
                self.undelayed += 1
                return
            self.delayed += 1
        try:
            record_shaping(environ, "fault=delay")
            SHAPING.labels("fault", "delay").add()
            self._sleep(seconds)
        finally:
            with self.lock:
                self.delayed -= 1
