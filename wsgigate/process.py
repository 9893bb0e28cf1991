"""This process: which one it is, what it begins anew, and what it has loaded for good."""

from __future__ import annotations

import gc
import os
import weakref
from typing import Protocol

__all__ = ["Renewable", "pid", "processors", "renew_at_fork", "settle"]


class Renewable(Protocol):
    """Something that holds what belongs to one process.

    What the threads of a parent have under way, and the locks that they hold while it forks, are
    nothing to its child, which none of them is in.
    """

    def after_fork(self) -> None:
        """Forget, in the child, what is its parent's."""


pid = os.getpid()
"""The id of this process; to be read as ``process.pid``, since a fork changes it.

Known without asking the system for each request."""

_all: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_at_fork(renewable: Renewable) -> None:
    """Have *renewable* begin anew in each child of this process, for as long as it lives."""
    _all.add(renewable)


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
    for renewable in list(_all):
        renewable.after_fork()


os.register_at_fork(after_in_child=_after_fork)
