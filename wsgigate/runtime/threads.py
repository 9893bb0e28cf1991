"""A thread that every process has for itself, as a fork takes none along."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from wsgigate.runtime import fork

__all__ = ["ALARMS", "Alarm", "Alarms", "BackgroundQueue", "ProcessThread"]


# Work that nobody waits for: a few threads, and a short queue that is never waited at.

LOG = logging.getLogger("wsgigate.errands")


class BackgroundQueue:
    """Runs what it is given in the background, and what there is no room for not at all.

    Its threads are started when there is work, in the process that has it, and end when there was
    none for *idle* seconds. They are daemons: no process waits for them at its end.

    :param threads: How many run at most.
    :param queue: How many pieces of work may wait for a thread.
    :param idle: Seconds after which a thread without work ends.
    :param name: What the threads are called.
    :ivar dropped: How many pieces of work there was no room for.
    :raises ValueError: A number is below 1.
    """

    def __init__(
        self, *, threads: int = 2, queue: int = 100, idle: float = 10.0, name: str = "wsgigate"
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads: 1 or more, not {threads}")
        if queue < 1:
            raise ValueError(f"queue: 1 or more, not {queue}")
        self.dropped = 0
        self._most = threads
        self._room = queue
        self._idle = idle
        self._name = name
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Have no threads and no work: those of a parent are not its child's."""
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], object]] = deque()
        self._running = 0
        self._free = 0
        self._closed = False

    def put(self, work: Callable[[], object]) -> bool:
        """Have *work* called soon, by another thread; never waits.

        :returns: Whether it will be; not when the queue is full or no thread is to be had.
        """
        with self._changed:
            self._closed = False
            if len(self._waiting) >= self._room:
                self.dropped += 1
                return False
            if self._free <= len(self._waiting) and self._running < self._most:
                try:
                    threading.Thread(target=self._run, name=self._name, daemon=True).start()
                except RuntimeError:  # no thread is to be had at the moment
                    if not self._running:
                        self.dropped += 1
                        return False
                else:
                    self._running += 1
            self._waiting.append(work)
            self._changed.notify()
        return True

    def close(self) -> None:
        """Drop what waits, and have the threads end after what they are at."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._free += 1
                self._changed.wait_for(lambda: self._waiting or self._closed, self._idle)
                self._free -= 1
                if not self._waiting:
                    self._running -= 1
                    return
                work = self._waiting.popleft()
            try:
                work()
            except (Exception, SystemExit):  # which else would end the thread, and that unseen
                LOG.exception("Work in the background failed")


# What is to be done later, unless somebody says meanwhile that it is not.

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
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Have no threads: those of a parent are not its child's."""
        self._lock = threading.Lock()
        self._shift: _Shift | None = None

    def after(self, seconds: float, call: Callable[[], object]) -> Alarm:
        """Have *call* called in *seconds*."""
        shift = self._shift
        if shift is None or shift.pid != fork.pid:
            with self._lock:
                shift = self._shift
                if shift is None or shift.pid != fork.pid:
                    shift = self._shift = _Shift(self._most, self._clock)
        alarm = Alarm(shift, self._clock() + seconds, call)
        shift.add(alarm)
        return alarm


class _Shift:
    """The alarms of one process, and its threads: one waits for the time, the others for it."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self.pid = fork.pid
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


class ProcessThread:
    """A thread of this process: at most one, started after the fork, ended in good order.

    What a thread of the parent's held when it forked, be it the lock in here, is nothing to the
    child, which begins anew.

    :param name: What it is called.
    :param run: What it does; it is given an event, and ends when that is set.
    :param begin: Called before it starts; forgets what belongs to a thread that ran before, perhaps
        in the process forked from.
    :ivar pid: The process that the rest belongs to.
    :ivar stopping: Set when the thread is to end.
    """

    def __init__(
        self, name: str, run: Callable[[threading.Event], None], begin: Callable[[], None]
    ) -> None:
        self._name = name
        self._run = run
        self._begin = begin
        self._begin_anew()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Have no thread: that of a parent is not its child's."""
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.pid = os.getpid()
        self.stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.pid == os.getpid() and self._thread is not None and self._thread.is_alive()

    def start(self) -> bool:
        """Start it unless it runs; return whether it was started."""
        if self.pid != os.getpid():
            self._begin_anew()
        with self._starting:
            if self.alive:
                return False
            self._begin()
            self.stopping = threading.Event()
            thread = threading.Thread(
                target=self._run, args=(self.stopping,), name=self._name, daemon=True
            )
            thread.start()
            self._thread = thread
        return True

    def end(self) -> None:
        """Tell it to end, without waiting until it has."""
        if self.pid == os.getpid():
            with self._starting:
                self.stopping.set()

    def stop(self, timeout: float) -> None:
        """Tell it to end, and wait until it has.

        :param timeout: Seconds to wait at most; one that hangs is left behind.
        """
        if self.pid != os.getpid():
            return
        with self._starting:
            self.stopping.set()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout)
