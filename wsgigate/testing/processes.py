"""Processes that do something at the same time, for the conformance suites of stores."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from wsgigate.store import Store

__all__ = ["count_up", "in_processes", "one_more", "swap_in_processes"]

PROCESSES, SWAPS = 2, 200


def one_more(old: bytes | None, now: float) -> tuple[bytes, float, None]:
    """Add one to the number *old*: a change for ``update``."""
    return b"%d" % (int(old or 0) + 1), 60.0, None


def count_up(store: Store, key: str, times: int) -> None:
    """Add *times* to the number under *key*, one by one."""
    for _ in range(times):
        while True:
            old, now = store.get(key)
            if store.swap(key, old, one_more(old, now)[0], 60):
                break


def _count_up(make_store: Callable[[], Store], key: str, begin: Callable[[], None]) -> None:
    store = make_store()
    store.get(key)
    begin()
    count_up(store, key, SWAPS)
    store.close()


def swap_in_processes(make_store: Callable[[], Store], key: str) -> int:
    """Have two processes count up the number under *key* at once; return how far, in all.

    :raises AssertionError: One of them failed; its own words are on stderr.
    """
    in_processes([(_count_up, make_store, key)] * PROCESSES)
    return PROCESSES * SWAPS


_PROCESS = """
import os, pickle, sys
results = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
function, *arguments = pickle.load(sys.stdin.buffer)
def begin():
    results.write(b"ready\\n")
    results.flush()
    sys.stdin.buffer.read(1)
result = function(*arguments, begin)
results.write(b"done\\n")
pickle.dump(result, results)
results.close()
"""


def in_processes(tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call each ``(function, *arguments)`` in a process of its own; return what they returned.

    All of it is pickled. Each function gets one argument more: it calls that when it is ready, and
    that returns when all of them are. It may do so again, if all do as often.

    :raises AssertionError: One of them failed; its own words are on stderr.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with ExitStack() as stack:
        processes = []
        for _ in tasks:
            # started anew, not forked: a fork takes the locks of this process's threads along
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _PROCESS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process, task in zip(processes, tasks, strict=True):
            _tell(process, pickle.dumps(task))
        # they begin together, or one would be done before the other
        while {process.stdout.readline() for process in processes} == {b"ready\n"}:  # type: ignore[union-attr]
            for process in processes:
                _tell(process, b"\n")
        for process in processes:
            process.stdin.close()  # type: ignore[union-attr]
        results = [process.stdout.read() for process in processes]  # type: ignore[union-attr]
        for process in processes:
            if process.wait(timeout=60):
                raise AssertionError(f"a process ended with {process.returncode}")
        return [pickle.loads(result) for result in results]  # noqa: S301 (it is our own)


def _tell(process: subprocess.Popen[bytes], words: bytes) -> None:
    process.stdin.write(words)  # type: ignore[union-attr]
    process.stdin.flush()  # type: ignore[union-attr]
