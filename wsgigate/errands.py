"""Work that nobody waits for: a few threads, and a short queue that is never waited at."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from wsgigate import process

__all__ = ["Errands"]

LOG = logging.getLogger("wsgigate.errands")


class Errands:
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
        process.renew_at_fork(self)

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
