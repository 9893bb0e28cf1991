"""This process: which one it is, and what it has loaded for good."""

from __future__ import annotations

import gc
import os

__all__ = ["pid", "processors", "settle"]

pid = os.getpid()
"""The id of this process; to be read as ``process.pid``, since a fork changes it.

Known without asking the system for each request."""


def processors() -> int:
    """Return how many processors this process may use, which is fewer in many containers."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def settle() -> None:
    """Have the garbage collector look no more at what a worker has loaded before it serves.

    That is there to stay; to look through it now and then would hold up every request meanwhile,
    and longer than any of them takes.
    """
    gc.collect()
    gc.freeze()


def _after_fork() -> None:
    global pid
    pid = os.getpid()


os.register_at_fork(after_in_child=_after_fork)
