"""Waiting for a version to change: many wait, and one of them looks."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from wsgigate.runtime import fork
from wsgigate.store import StoreError

__all__ = ["WaitSlots", "Waiting"]


class Waiting:
    """Threads that wait for the versions of services, with one look at the store for all of them.

    :param look: Returns the version of a service at the moment, of all together for None.
    :param every: Seconds between two looks at the same one; a change made in this process is
        seen at once.
    :param clock: Tells seconds that only go forward.
    """

    def __init__(
        self,
        look: Callable[[str | None], int],
        *,
        every: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._every = every
        self._clock = clock
        self._begin_anew()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Have no request wait: those of a parent are not its child's."""
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = fork.pid
        self._changed = threading.Condition()
        self._waiting: Counter[str | None] = Counter()
        self._seen: dict[str | None, tuple[float, int]] = {}
        self._looking: set[str | None] = set()
        self._ended = False

    def wait(self, service: str | None, version: int, timeout: float) -> int:
        """Return the version of *service* as soon as it is not *version*, or after *timeout*.

        While the store fails, that is the version that it was.
        """
        if self._pid != fork.pid:
            self._begin_anew()
        end = self._clock() + timeout
        with self._changed:
            self._waiting[service] += 1
            try:
                while True:
                    now = self._clock()
                    looked, found = self._seen.get(service, (float("-inf"), version))
                    if now - looked >= self._every and service not in self._looking:
                        found = self._look_again(service, found)
                    if found != version or now >= end or self._ended:
                        return found
                    self._changed.wait(min(self._every, end - now))
            finally:
                self._waiting[service] -= 1
                if not self._waiting[service]:
                    del self._waiting[service]
                    self._seen.pop(service, None)

    def tell(self, service: str) -> None:
        """Have those who wait for *service* look again at once."""
        if self._pid == fork.pid and self._waiting:
            with self._changed:
                self._seen.pop(service, None)
                self._seen.pop(None, None)
                self._changed.notify_all()

    def end(self) -> None:
        """Have all who wait go on now, and nobody wait from now on: the process is stopping."""
        self._ended = True
        if self._pid == fork.pid:
            with self._changed:
                self._changed.notify_all()

    def _look_again(self, service: str | None, known: int) -> int:
        self._looking.add(service)
        self._changed.release()
        try:
            found = self._look(service)
        except StoreError:
            found = known
        finally:
            self._changed.acquire()
            self._looking.discard(service)
        self._seen[service] = (self._clock(), found)
        self._changed.notify_all()
        return found


class WaitSlots:
    """How many requests may wait at a time, through whatever door they came.

    :param most: Beyond it nobody waits, and is answered at once.
    :raises ValueError: *most* is negative.
    """

    def __init__(self, most: int) -> None:
        if most < 0:
            raise ValueError(f"waiting is 0 or more requests, got {most}")
        self._most = most
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Have all places free: those who wait in a parent wait there."""
        self._free = threading.BoundedSemaphore(self._most)

    def take(self) -> bool:
        """Take one of the places; return whether there was one."""
        return self._free.acquire(blocking=False)

    def leave(self) -> None:
        """Give a place back."""
        self._free.release()
