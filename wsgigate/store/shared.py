"""The environments that this process has, one per folder."""

from __future__ import annotations

import os
import threading
import weakref

from wsgigate import process
from wsgigate.store.environment import Environment

__all__ = ["environment_on", "folders_in_use"]

_environments: weakref.WeakValueDictionary[str, Environment] = weakref.WeakValueDictionary()


class _Guard:
    """The lock of the table above."""

    def __init__(self) -> None:
        self.lock: threading.Lock
        process.renewed(self, lock="Lock")


_guard = _Guard()


def environment_on(folder: str, map_size: int, user: object) -> Environment:
    """Return this process's environment on *folder*, with *user* among its users.

    LMDB may not be opened twice by one process: closing one would drop the locks of the other.
    """
    parent, name = os.path.split(folder)
    real = os.path.join(os.path.realpath(parent), name)  # a link in its place is refused later
    with _guard.lock:
        environment = _environments.get(real)
        if environment is None:
            environment = _environments[real] = Environment(real, map_size)
        environment.users.add(user)
    return environment


def folders_in_use() -> frozenset[str]:
    """Return the folders that this process has environments on, open or not."""
    with _guard.lock:
        return frozenset(_environments)
