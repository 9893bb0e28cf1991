"""What is to be done later, unless somebody says meanwhile that it is not."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from wsgigate import process

__all__ = ["ALARMS", "Alarm", "Alarms"]

_log = logging.getLogger("wsgigate.alarms")

_FEW = 64
"""Up to so many alarms that nobody wants any more are kept until their time comes."""


class Alarm:
    """Something to be done at a moment."""

    __slots__ = ("call", "moment", "shift")

    def __init__(self, shift: _Shift, moment: float, call: Callable[[], object]) -> None:
        self.shift = shift
        self.moment = moment
        self.call: Callable[[], object] | None = call

    def __lt__(self, other: Alarm) -> bool:
        return self.moment < other.moment

    def cancel(self) -> None:
        """Have it not done, if that has not begun."""
        self.shift.cancel(self)


class Alarms:
    """Does what is due in a few threads of its own, which the first alarm of a process starts.

    When all of them are at work, or no thread is to be had, what is due waits for one.

    :param most: How many threads there are at most.
    :param clock: Tells the time in seconds, from any moment on; a real one, as it is waited by it.
    """

    def __init__(self, most: int = 8, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self.after_fork()
        process.renew_at_fork(self)

    def after_fork(self) -> None:
        """Have no threads: those of a parent are not its child's."""
        self._lock = threading.Lock()
        self._shift: _Shift | None = None

    def after(self, seconds: float, call: Callable[[], object]) -> Alarm:
        """Have *call* called in *seconds*."""
        shift = self._shift
        if shift is None or shift.pid != process.pid:
            with self._lock:
                shift = self._shift
                if shift is None or shift.pid != process.pid:
                    shift = self._shift = _Shift(self._most, self._clock)
        alarm = Alarm(shift, self._clock() + seconds, call)
        shift.add(alarm)
        return alarm


class _Shift:
    """The alarms of one process, and its threads: one waits for the time, the others for it."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self.pid = process.pid
        self._most = most
        self._clock = clock
        self._alarms: list[Alarm] = []
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        self._free = threading.Condition(self._lock)
        self._threads = 0
        self._idle = 0
        self._watched = False
        self._wakes = -math.inf
        self._dead = 0

    def add(self, alarm: Alarm) -> None:
        with self._lock:
            heappush(self._alarms, alarm)
            if not self._threads:
                self._start()
            elif alarm.moment < self._wakes:  # mostly it is a later one, and nobody is woken
                self._due.notify()

    def cancel(self, alarm: Alarm) -> None:
        with self._lock:
            if alarm.call is None:
                return
            alarm.call = None
            self._dead += 1
            if self._dead > _FEW and self._dead * 2 > len(self._alarms):
                self._alarms = [each for each in self._alarms if each.call is not None]
                heapify(self._alarms)
                self._dead = 0

    def _start(self) -> None:
        try:
            threading.Thread(target=self._run, name="wsgigate-alarms", daemon=True).start()
        except RuntimeError:  # no thread is to be had: the next alarm, or the next due, tries again
            return
        self._threads += 1

    def _run(self) -> None:
        while True:
            with self._lock:
                while self._watched:
                    self._idle += 1
                    self._free.wait()
                    self._idle -= 1
                self._watched = True
                call = self._next()
                self._watched = False
                if self._idle:
                    self._free.notify()
                elif self._threads < self._most:
                    self._start()
            try:
                call()
            except Exception:
                _log.exception("an alarm failed")

    def _next(self) -> Callable[[], object]:
        """Return what is to be done, once it is due."""
        while True:
            wait = None
            self._wakes = math.inf
            if self._alarms:
                self._wakes = self._alarms[0].moment
                wait = self._wakes - self._clock()
                if wait <= 0:
                    alarm = heappop(self._alarms)
                    call, alarm.call = alarm.call, None
                    if call is not None:
                        self._wakes = -math.inf
                        return call
                    self._dead -= 1
                    continue
            self._due.wait(wait)


ALARMS = Alarms()
