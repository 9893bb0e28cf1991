"""A thread that every process has for itself, as a fork takes none along."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from wsgigate import process

__all__ = ["ProcessThread"]


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
        process.renew_at_fork(self)

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
