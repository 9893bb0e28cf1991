"""The threads that a test has started, told from those that earlier tests have left."""

from __future__ import annotations

import threading

__all__ = ["begin", "started"]

_before: frozenset[threading.Thread] = frozenset()


def begin() -> None:
    """Take the threads that run now for those of earlier tests; each test begins with it."""
    global _before
    _before = frozenset(threading.enumerate())


def started(name: str) -> list[threading.Thread]:
    """Return the running threads that the test has started and whose names contain *name*."""
    return [each for each in threading.enumerate() if name in each.name and each not in _before]
