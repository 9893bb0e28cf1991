"""The store of middlewares during a test: in memory, and new for each app.

Counts in a folder of the machine would outlive the run, so that the second run of a test suite
fails, and parallel runs would share them. So a middleware without an explicit store counts in
memory while a test runner runs in its process (:func:`wsgigate.runtime.fork.tested`), or while its
Flask app has ``app.testing``.

The workers of a server always share one store: ``app.testing`` alone is ignored where a server with
several workers is loaded.
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import Protocol

from wsgigate.runtime import fork
from wsgigate.store import Store
from wsgigate.store.memory import MemoryStore

__all__ = ["Resettable", "memory_of", "reset_all", "resettable", "under_test"]

SERVERS = ("gunicorn.arbiter", "uwsgi", "mod_wsgi", "granian._granian", "granian.server")
"""Modules that are loaded in the processes of servers with several workers."""


class Resettable(Protocol):
    """A middleware that can reset its counts."""

    def counts_in_memory(self) -> bool:
        """Return whether the counts are in the memory of this process alone."""

    def reset(self) -> None:
        """Reset the counts."""


_all: weakref.WeakSet[Resettable] = weakref.WeakSet()
_stores: weakref.WeakKeyDictionary[object, tuple[str, MemoryStore]] = weakref.WeakKeyDictionary()
_process_wide: list[MemoryStore] = []


def under_test(app: object) -> bool:
    """Return whether *app* runs as a part of a test.

    :param app: The innermost app, or ``None``.
    """
    if fork.tested():
        return True
    return getattr(app, "testing", None) is True and not any(
        name in sys.modules for name in SERVERS
    )


def memory_of(app: object) -> Store:
    """Return the memory store of middlewares around *app* during a test.

    Middlewares of one app share it, as they share a folder outside of tests. Each test of pytest
    has a new one.

    :param app: The innermost app; ``None`` for the store that all apps of this process share.
    """
    if app is None:
        if not _process_wide:
            _process_wide.append(MemoryStore())
        return _process_wide[0]
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    try:
        of_test, store = _stores.get(app, (None, None))
        if store is None or of_test != test:
            store = MemoryStore()
            _stores[app] = test, store
    except TypeError:  # not hashable, or without weak references: it is not shared
        store = MemoryStore()
    return store


def resettable(middleware: Resettable) -> None:
    """Register *middleware* with :func:`reset_all` for as long as it is alive."""
    _all.add(middleware)


def reset_all() -> None:
    """Reset every middleware that counts in memory, and the store shared by all apps."""
    for middleware in list(_all):
        if middleware.counts_in_memory():
            middleware.reset()
    for store in _process_wide:
        for key, value in list(store.items("")):
            store.swap(key, value, None, 0.0)
