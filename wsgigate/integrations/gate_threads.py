"""The threads of a worker, none of which keeps its process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

__all__ = ["Threads"]

_Task: TypeAlias = "tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]"


class Threads:
    """A pool as ``concurrent.futures`` has it, of threads that a process does not wait for.

    The interpreter waits at its end for the threads of a ``ThreadPoolExecutor``, whatever they wait
    for themselves: a worker told to quit at once, or whose time to finish is over, would stay as
    long as its slowest backend.

    :param most: How many threads there are at most; they start as they are needed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._started = 0
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have *function* called with *arguments* in one of the threads."""
        future: Future[Any] = Future()
        self._tasks.put((future, function, arguments))
        if not self._idle.acquire(blocking=False) and self._started < self._most:
            self._started += 1
            name = f"gate-worker-{self._started}"
            threading.Thread(target=self._run, name=name, daemon=True).start()
        return future

    def shutdown(self, wait: bool = False) -> None:
        """Let the threads end once nothing is left to do."""
        self._tasks.put(None)

    def _run(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                self._idle.release()
                task = self._tasks.get()
            if task is None:
                self._tasks.put(None)  # for the next one
                return
            future, function, arguments = task
            try:
                result = function(*arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del task, future, function, arguments
