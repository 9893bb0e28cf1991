"""Background threads: a bounded queue, a timer and a supervised loop.

Theory of operation
-------------------

``fork()`` copies only the thread that calls it. The other threads are missing in the child, while
the locks that they held and the work that they had queued are copied. A server with ``--preload``
makes every object of the gateway before it forks its workers. Hence four rules:

1. A constructor starts no thread. The first use in a process does, so the master of a preloading
   server has no thread that its workers would miss.
2. Every object here registers itself with :mod:`wsgigate.runtime.fork`, and ``after_fork`` replaces
   its locks, its queue and its thread. Work queued by the parent is done by the parent alone.
3. All threads are daemons: the end of a process waits for none of them. What must happen at the end
   (deregistration, the last lines of a log) is done by an explicit ``stop`` or ``flush``.
4. A request never waits for a thread here. The queue is bounded, ``put`` drops what exceeds it and
   counts that, and a thread that cannot be started (``RuntimeError``: the limit of the container is
   reached) is started by a later call.

A lock kept across a fork, or a thread started in a constructor, would break them: the child would
wait for ever, or do nothing in the background.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from wsgigate.runtime import fork

__all__ = ["TIMER", "BackgroundQueue", "ScheduledCall", "SupervisedThread", "Timer"]


LOG = logging.getLogger("wsgigate.threads")


class BackgroundQueue:
    """A bounded background queue; :meth:`put` never blocks.

    :param threads: Maximum number of threads. A thread starts when work is queued and no other is
        free.
    :param queue: Maximum number of calls that wait for a thread; more are dropped.
    :param idle: Seconds after which a thread without work ends.
    :param name: Name of the threads.
    :ivar dropped: Number of calls that were dropped.
    :raises ValueError: *threads* or *queue* is below 1.
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
        """Forget the threads and the queued work: they belong to the parent process."""
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], object]] = deque()
        self._running = 0
        self._free = 0
        self._closed = False

    @property
    def free(self) -> int:
        """The number of threads that wait for work."""
        with self._changed:
            return self._free

    def put(self, work: Callable[[], object]) -> bool:
        """Queue *work* to be called by a background thread, without waiting.

        :returns: Whether it was queued: not if the queue is full or no thread can be started.
        """
        with self._changed:
            self._closed = False
            if len(self._waiting) >= self._room:
                self.dropped += 1
                return False
            if self._free <= len(self._waiting) and self._running < self._most:
                try:
                    threading.Thread(target=self._run, name=self._name, daemon=True).start()
                except RuntimeError:  # the system grants no further thread at the moment
                    if not self._running:
                        self.dropped += 1
                        return False
                else:
                    self._running += 1
            self._waiting.append(work)
            self._changed.notify()
        return True

    def close(self) -> None:
        """Drop all queued work; each thread ends after its current call."""
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
            except (Exception, SystemExit):  # either would end the thread without a log record
                LOG.exception("A background task failed")


_MAX_CANCELLED = 64
"""Number of cancelled calls that may stay in the heap before it is rebuilt without them."""


class ScheduledCall:
    """A call scheduled by :meth:`Timer.after`."""

    __slots__ = ("call", "moment", "schedule")

    def __init__(self, schedule: _TimerThreads, moment: float, call: Callable[[], object]) -> None:
        self.schedule = schedule
        self.moment = moment
        self.call: Callable[[], object] | None = call

    def __lt__(self, other: ScheduledCall) -> bool:
        return self.moment < other.moment

    def cancel(self) -> None:
        """Cancel the call, unless it has begun."""
        self.schedule.cancel(self)


class Timer:
    """Runs calls after a delay, in a few threads that the first call of a process starts.

    While all threads are busy, or none can be started, due calls wait.

    :param threads: Maximum number of threads.
    :param clock: Returns monotonic seconds. It must be a real clock, as threads wait by it.
    """

    def __init__(self, threads: int = 8, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max = threads
        self._clock = clock
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Forget the schedule and its threads: they belong to the parent process."""
        self._lock = threading.Lock()
        self._schedule: _TimerThreads | None = None

    @property
    def running(self) -> bool:
        """Whether a thread waits for the scheduled calls.

        It is false before the first call, and while no thread can be started.
        """
        schedule = self._schedule
        return schedule is not None and schedule.threads > 0

    def after(self, seconds: float, call: Callable[[], object]) -> ScheduledCall:
        """Schedule *call* to run after *seconds*."""
        schedule = self._schedule
        if schedule is None:
            with self._lock:
                schedule = self._schedule
                if schedule is None:
                    schedule = self._schedule = _TimerThreads(self._max, self._clock)
        scheduled = ScheduledCall(schedule, self._clock() + seconds, call)
        schedule.add(scheduled)
        return scheduled


class _TimerThreads:
    """The scheduled calls of one process, and its threads.

    One thread at a time waits for the moment of the first call (``_watched``). When that moment
    comes it wakes or starts another to wait in its place, and runs the call itself. So a call that
    takes long delays no other while there is a free thread.
    """

    def __init__(self, threads: int, clock: Callable[[], float]) -> None:
        self._max = threads
        self._clock = clock
        self._calls: list[ScheduledCall] = []
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        self._free = threading.Condition(self._lock)
        self.threads = 0
        self._idle = 0
        self._watched = False
        self._wakes_at = -math.inf
        self._cancelled = 0

    def add(self, scheduled: ScheduledCall) -> None:
        with self._lock:
            heappush(self._calls, scheduled)
            if not self.threads:
                self._start()
            elif scheduled.moment < self._wakes_at:  # usually it is later, and no thread is woken
                self._due.notify()

    def cancel(self, scheduled: ScheduledCall) -> None:
        with self._lock:
            if scheduled.call is None:
                return
            scheduled.call = None
            self._cancelled += 1
            if self._cancelled > _MAX_CANCELLED and self._cancelled * 2 > len(self._calls):
                self._calls = [each for each in self._calls if each.call is not None]
                heapify(self._calls)
                self._cancelled = 0

    def _start(self) -> None:
        try:
            threading.Thread(target=self._run, name="wsgigate-timer", daemon=True).start()
        except RuntimeError:  # the next scheduled or due call tries again
            return
        self.threads += 1

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
                elif self.threads < self._max:
                    self._start()
            try:
                call()
            except Exception:
                LOG.exception("A scheduled call failed")

    def _next(self) -> Callable[[], object]:
        """Wait until the first call is due, and return it."""
        while True:
            wait = None
            self._wakes_at = math.inf
            if self._calls:
                self._wakes_at = self._calls[0].moment
                wait = self._wakes_at - self._clock()
                if wait <= 0:
                    scheduled = heappop(self._calls)
                    call, scheduled.call = scheduled.call, None
                    if call is not None:
                        self._wakes_at = -math.inf
                        return call
                    self._cancelled -= 1
                    continue
            self._due.wait(wait)


TIMER = Timer()


class SupervisedThread:
    """A supervised loop: at most one thread per process, started on demand and stopped in order.

    Nothing is inherited over a fork: a child has no thread until it calls :meth:`start`, even if
    the parent's thread, or the lock in here, was in use when it forked.

    :param name: Name of the thread.
    :param run: The loop. It receives an event, and returns when the event is set.
    :param begin: Called before the thread starts, to discard the state of an earlier thread, which
        may be that of the parent process.
    :ivar stopping: Set when the thread is to end.
    """

    def __init__(
        self, name: str, run: Callable[[threading.Event], None], begin: Callable[[], None]
    ) -> None:
        self._name = name
        self._run = run
        self._begin = begin
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Forget the thread: it belongs to the parent process."""
        self.stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether the thread is running in this process."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> bool:
        """Start the thread unless it is running; return whether it was started."""
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
        """Signal the thread to end, without waiting for it."""
        with self._starting:
            self.stopping.set()

    def stop(self, timeout: float) -> None:
        """Signal the thread to end, and wait for it.

        :param timeout: Maximum seconds to wait; a thread that hangs is abandoned.
        """
        with self._starting:
            self.stopping.set()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout)
