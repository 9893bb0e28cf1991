"""Forks only while no store is in the middle of anything.

A lock that another thread holds at the moment of a fork stays locked in the child for ever, and an
LMDB environment must not cross a fork at all. So each store is brought to rest before a fork.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from wsgigate import process

__all__ = ["Forkable", "rest_at_fork"]


class Forkable(Protocol):
    """Something with a lock that has to be at rest when its process forks."""

    lock: threading.RLock

    def before_fork(self) -> None:
        """Let go, with the lock held, of what must not cross a fork."""

    def after_unseen_fork(self) -> None:
        """Put right, in the child, what crossed a fork that ``before_fork`` was not told of."""


_guard = threading.Lock()
_all: weakref.WeakSet[Forkable] = weakref.WeakSet()
_resting: list[Forkable] | None = None


def rest_at_fork(forkable: Forkable) -> None:
    """Have *forkable* brought to rest before each fork of this process, for as long as it lives."""
    with _guard:
        _all.add(forkable)


def _before() -> None:
    global _resting
    _guard.acquire()
    _resting = list(_all)
    for forkable in _resting:
        forkable.lock.acquire()
        forkable.before_fork()


def _after() -> None:
    global _resting
    resting, _resting = _resting or [], None
    for forkable in resting:
        forkable.lock.release()
    _guard.release()


def _after_in_child() -> None:
    global _guard
    if _resting is not None:
        _after()
        return
    # a server written in C (uWSGI) forked by itself and told Python only afterwards
    _guard = threading.Lock()
    for forkable in list(_all):
        forkable.lock = threading.RLock()
        forkable.after_unseen_fork()


def _after_patching() -> None:
    """Have locks that gevent's greenlets can wait for; nothing is under way while it patches."""
    global _guard
    _guard = threading.Lock()
    for forkable in list(_all):
        forkable.lock = threading.RLock()


process.after_patching(_after_patching)
process.after_unseen_fork(_after_in_child)
os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
