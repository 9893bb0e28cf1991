"""Spoil requests on purpose, to see how those fare who made them."""

from __future__ import annotations

import random as _random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate import process
from wsgigate.fields import is_token
from wsgigate.instead import shaped
from wsgigate.problem import Problem, Refuse, answer_with
from wsgigate.rules.arguments import checked
from wsgigate.rules.faults import FaultRules
from wsgigate.store.forking import rest_at_fork
from wsgigate.wsgi import REASON, environ_key

__all__ = ["Faults"]


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
        rest_at_fork(self)
        process.renew_at_fork(self)

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
