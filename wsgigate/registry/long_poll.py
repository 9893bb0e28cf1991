"""Long polling: many threads wait for a version to change, and one of them reads the store."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from wsgigate.runtime import fork
from wsgigate.store import StoreError

__all__ = ["LongPoll"]


class LongPoll:
    """Threads that wait for the versions of services, with one read of the store for all of them.

    :param look: Returns the current version of a service, with ``None`` of all services together.
    :param every: Seconds between two reads of the same version; a change made in this process
        wakes the waiting threads at once.
    :param clock: Returns monotonic seconds.
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
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Start without waiting threads: those of the parent do not exist in the child."""
        self._changed = threading.Condition()
        self._waiting: Counter[str | None] = Counter()
        self._seen: dict[str | None, tuple[float, int]] = {}
        self._looking: set[str | None] = set()
        self._stopped = False

    def wait(self, service: str | None, version: int, timeout: float) -> int:
        """Return the version of *service* as soon as it is not *version*, or after *timeout*.

        While the store fails, the version counts as unchanged.
        """
        end = self._clock() + timeout
        with self._changed:
            self._waiting[service] += 1
            try:
                while True:
                    now = self._clock()
                    looked, found = self._seen.get(service, (float("-inf"), version))
                    if now - looked >= self._every and service not in self._looking:
                        found = self._look_again(service, found)
                    if found != version or now >= end or self._stopped:
                        return found
                    self._changed.wait(min(self._every, end - now))
            finally:
                self._waiting[service] -= 1
                if not self._waiting[service]:
                    del self._waiting[service]
                    self._seen.pop(service, None)

    def notify(self, service: str) -> None:
        """Wake the threads that wait for *service*; they read the version again."""
        if self._waiting:
            with self._changed:
                self._seen.pop(service, None)
                self._seen.pop(None, None)
                self._changed.notify_all()

    def stop(self) -> None:
        """End all waits, and start no more: the process is stopping."""
        self._stopped = True
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
