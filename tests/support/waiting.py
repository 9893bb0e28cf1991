"""Waits of tests: for a condition, and until other threads wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Turns", "until"]


def until(condition: Callable[[], object], *, seconds: float = 20.0) -> Any:
    """Return what *condition* returns as soon as that is true.

    It polls, first often and then every 0.02 s: for what other processes do, where nothing in
    this one can be waited for.
    """
    deadline = time.monotonic() + seconds
    pause = 0.001
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return found


class Turns(threading.Condition):
    """A condition that a test waits on until other threads wait for it.

    It takes the place of one that the code under test has made.
    """

    def __init__(self, lock: threading.Lock | None = None) -> None:
        super().__init__(lock)
        self._begun = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self._begun.release()
        return super().wait(timeout)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* holds while all threads that have begun to wait still wait."""
        while True:
            with self:
                if condition():
                    return
            assert self._begun.acquire(timeout=20), "no other thread has begun to wait"
