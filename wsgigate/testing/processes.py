"""Processes that swap one value at the same time, for the conformance suite of stores."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack

from wsgigate.store import Store

__all__ = ["count_up", "one_more", "swap_in_processes"]

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


_PROCESS = """
import pickle, sys
from wsgigate.testing.processes import count_up
make_store, key, times = pickle.load(sys.stdin.buffer)
store = make_store()
store.get(key)
print("ready", flush=True)
sys.stdin.buffer.read(1)
count_up(store, key, times)
store.close()
"""


def swap_in_processes(make_store: Callable[[], Store], key: str) -> int:
    """Have two processes count up the number under *key* at once; return how far, in all.

    :raises AssertionError: One of them failed; its own words are on stderr.
    """
    task = pickle.dumps((make_store, key, SWAPS))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with ExitStack() as stack:
        processes = []
        for _ in range(PROCESSES):
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
        for process in processes:
            _tell(process, task)
        for process in processes:  # they begin together, or one would be done before the other
            process.stdout.readline()  # type: ignore[union-attr]
        for process in processes:
            _tell(process, b"\n")
        for process in processes:
            if process.wait(timeout=60):
                raise AssertionError(f"a process ended with {process.returncode}")
    return PROCESSES * SWAPS


def _tell(process: subprocess.Popen[bytes], words: bytes) -> None:
    process.stdin.write(words)  # type: ignore[union-attr]
    process.stdin.flush()  # type: ignore[union-attr]
