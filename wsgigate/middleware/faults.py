"""Spoil requests on purpose, to see how those fare who made them."""

from __future__ import annotations

import random as _random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.http.fields import is_token
from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.responses import shaped
from wsgigate.http.wsgi import REASON, environ_key
from wsgigate.rules.arguments import checked
from wsgigate.runtime import fork
from wsgigate.runtime.fork import quiesce_at_fork

__all__ = ["Fault", "FaultRules", "Faults"]


# Which requests are spoiled on purpose, and in which way.

LONGEST = 60.0
"""Seconds of the longest delay."""


class Fault(NamedTuple):
    """What is done to one request.

    :ivar delay: Seconds for which it waits.
    :ivar status: What it is answered with instead; ``None`` to pass it on.
    """

    delay: float = 0.0
    status: int | None = None


@checked
@dataclass(frozen=True)
class FaultRules:
    """What is done to how many requests.

    :param delay: Seconds for which a request waits, at most 60.
    :param delay_percent: How many in a hundred wait.
    :param abort_status: What a request is answered with, 400 to 599.
    :param abort_percent: How many in a hundred are answered so; whether it also waits is drawn
        apart from that.
    :raises ValueError: One of them is out of its range, or nothing would ever be done; says which.
    """

    delay: float = 0.0
    delay_percent: float = 0.0
    abort_status: int = 503
    abort_percent: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.delay <= LONGEST:
            raise ValueError(f"delay: 0 to {LONGEST:g} seconds, not {self.delay}")
        for name in ("delay_percent", "abort_percent"):
            if not 0 <= getattr(self, name) <= 100:
                raise ValueError(f"{name}: a number from 0 to 100, not {getattr(self, name)}")
        if not 400 <= self.abort_status <= 599:
            raise ValueError(f"abort_status: one from 400 to 599, not {self.abort_status}")
        if bool(self.delay) != bool(self.delay_percent):
            raise ValueError("delay_percent: goes together with delay, both above 0")
        if not (self.delay_percent or self.abort_percent):
            raise ValueError("abort_percent: nothing would ever be done; or give delay_percent")

    def draw(self, first: float, second: float) -> Fault:
        """Return what is done to a request.

        :param first: A number in [0, 1) that decides about the delay.
        :param second: One that decides about the abort.
        """
        delay = self.delay if first * 100 < self.delay_percent else 0.0
        status = self.abort_status if second * 100 < self.abort_percent else None
        return Fault(delay, status)


@checked
class Faults:
    """Let some requests wait, and answer some with an error, for drills.

    It does nothing at all unless *enabled*. What was done is in the log, as ``fault=delay`` or
    ``fault=503``, and an answer that was made up has ``X-Gateway-Fault: abort``.

    :param app: The WSGI application to stand in front of.
    :param rules: What is done to how many.
    :param enabled: Whether anything is done.
    :param when: Request fields and their values: only requests that have all of them are spoiled.
    :param max_delayed: How many threads of a worker may wait at a time; further requests do not.
    :param refuse: Turns the problem into the app that answers it.
    :param sleep: Waits so many seconds.
    :param random: Gives numbers in [0, 1).
    :ivar delayed: How many requests wait at the moment.
    :ivar undelayed: How many did not wait since too many did.
    :raises ValueError: One of the settings is wrong; says which.
    """

    def __init__(
        self,
        app: WSGIApplication,
        rules: FaultRules,
        *,
        enabled: bool = False,
        when: Mapping[str, str] | None = None,
        max_delayed: int = 4,
        refuse: Refuse = answer_with,
        sleep: Callable[[float], object] = time.sleep,
        random: Callable[[], float] = _random.random,
    ) -> None:
        if max_delayed < 1:
            raise ValueError(f"max_delayed: 1 or more threads, not {max_delayed}")
        for name in when or ():
            if not is_token(name):
                raise ValueError(f"when: {name!r} cannot be the name of a field")
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
        shaped(environ, f"fault={fault.status}")
        environ[REASON] = "a fault was injected"
        return self._aborted(environ, start_response)

    def after_fork(self) -> None:
        """Count none: those of the parent wait there."""
        self.delayed = self.undelayed = 0

    def before_fork(self) -> None:
        """Do nothing: that the lock is held is enough."""

    def after_unseen_fork(self) -> None:
        """Do nothing: the lock is another one already."""

    def _delay(self, seconds: float, environ: WSGIEnvironment) -> None:
        with self.lock:
            if self.delayed >= self._most:
                self.undelayed += 1
                return
            self.delayed += 1
        try:
            shaped(environ, "fault=delay")
            self._sleep(seconds)
        finally:
            with self.lock:
                self.delayed -= 1
