"""Equal calls that threads make at the same time, made once: their result is shared.

Theory of operation. The first thread that calls for a key makes the call; others that come before
it has returned wait for its result. Rules that must hold:

- No lock is held during the call: threads with other keys are not delayed by it.
- Every waiting thread gets the end of the call, whatever it is: a result, an exception, or that the
  thread was ended by its server. It waits for a bounded time only.
- Not all threads of a server wait for a call that hangs: a bounded number waits for long.
- A result is shared by the threads that waited for it, and is not kept.
- After a fork nothing is in progress: the thread that made a call does not exist in the child.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from wsgigate.runtime import fork

__all__ = ["CallAbandoned", "SharedCalls"]

T = TypeVar("T")


class CallAbandoned(Exception):
    """The thread that made the call was ended, or the call took too long to be waited for."""


class _Call(Generic[T]):
    __slots__ = ("done", "error", "result")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: Exception | None = None
        self.result: T


class SharedCalls(Generic[T]):
    """Calls in progress, by key.

    :param most: Maximum number of threads that wait for as long as they are patient.
    :param brief: Maximum seconds for which further ones wait.
    """

    def __init__(self, *, most: int = 16, brief: float = 1.0) -> None:
        self._most = most
        self._brief = brief
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Forget the calls that the parent has in progress."""
        self._calls: dict[bytes, _Call[T]] = {}
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._calls)

    def make(self, key: bytes, call: Callable[[], T], patience: float) -> T:
        """Return the result of *call*, or that of an equal call in progress.

        :param key: Calls with the same key are equal.
        :param patience: Maximum seconds to wait for another thread's call.
        :raises CallAbandoned: The other thread's call had no result in time.
        :raises Exception: What *call* raises, in every thread that waits.
        """
        with self._lock:
            other = self._calls.get(key)
            if other is None:
                mine = self._calls[key] = _Call[T]()
            else:
                long = self._waiting < self._most
                self._waiting += long
        if other is not None:
            try:
                ended = other.done.wait(patience if long else min(patience, self._brief))
            finally:
                if long:
                    with self._lock:
                        self._waiting = max(0, self._waiting - 1)  # none is counted after a fork
            if not ended:
                raise CallAbandoned("an equal call took too long")
            if other.error is not None:
                raise copy.copy(other.error)  # a raised object collects the frames of its thread
            return other.result
        try:
            mine.error = CallAbandoned("the thread that made the call was ended")
            mine.result = call()
            mine.error = None
            return mine.result
        except Exception as error:
            mine.error = error
            raise
        finally:
            with self._lock:
                if self._calls.get(key) is mine:
                    del self._calls[key]
            mine.done.set()
