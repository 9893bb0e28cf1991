"""To wait in a test until others wait."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Turns"]


class Turns(threading.Condition):
    """A condition that tells each time that somebody begins to wait for it.

    It takes the place of one that the code under test has made.
    """

    def __init__(self, lock: threading.Lock | None = None) -> None:
        super().__init__(lock)
        self._begun = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self._begun.release()
        return super().wait(timeout)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds while all who have begun to wait do so."""
        while True:
            with self:
                if condition():
                    return
            assert self._begun.acquire(timeout=20), "nobody else has begun to wait"
