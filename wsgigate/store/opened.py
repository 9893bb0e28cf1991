"""The store of one user of it: one that it was given, one by its URL, or one of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from typing import Any

from wsgigate import process
from wsgigate.store import Change, R, Store, open_store, update
from wsgigate.store.memory import MemoryStore
from wsgigate.store.under_test import memory_of, under_test

__all__ = ["OpenedStore"]

_INNER = ("app", "application", "__self__", "__wrapped__", "func")


class OpenedStore:
    """Opens a store when it is first needed, and closes it if it is nobody else's.

    It is a store itself, for those who do not mind one call more for each.

    During a test, a store of its own is in memory (:mod:`wsgigate.store.under_test`).

    :param store: A store, the URL of one, or None for the private folder of the user who runs this
        program, in which *app* is told from all other apps.
    :param app: Whose counts they are; None for those that all apps of this program share.
    :raises ValueError: *store* is neither.
    """

    def __init__(self, store: Store | str | None, app: object = None) -> None:
        self._owned = store is None or isinstance(store, str)
        self._store: Store | None = None
        self._default = store is None
        self._app = None if app is None else _innermost(app)
        self._lock: threading.Lock
        process.renewed(self, _lock="Lock")
        self.prefix = ""
        """What keys begin with, after the user's own prefix."""
        if store is None or store == "lmdb:":  # its folder is not to be made before it is needed
            self.prefix = "" if app is None else f"{_identity(app)}/"
        elif isinstance(store, str):
            self._store = open_store(store)
        elif isinstance(store, Store):
            self._store = store
        else:
            raise ValueError(f"store: a store or the URL of one, not {store!r}")

    def open(self) -> Store:
        """Return the store. One that cannot be had is tried again at the next use.

        :raises StoreError: Its folder cannot be had.
        """
        if self._store is None:
            with self._lock:
                if self._store is None:
                    if self._default and under_test(self._app):
                        self._store = memory_of(self._app)
                    else:
                        self._store = open_store("lmdb:")
        return self._store

    @property
    def in_memory(self) -> bool:
        """Whether the values are in the memory of this process alone, as far as is known."""
        return isinstance(self._store, MemoryStore)

    def updater(self) -> Callable[..., Any]:
        """Return the store's ``update(key, change)``.

        :raises StoreError: Its folder cannot be had.
        """
        store = self.open()
        own: Callable[..., Any] | None = getattr(store, "update", None)
        return partial(update, store) if own is None else own

    def get(self, key: str) -> tuple[bytes | None, float]:
        """Return the live value, or None, and the store's own time in seconds."""
        return self.open().get(key)

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        """Replace *old* by *new* if it is still there."""
        return self.open().swap(key, old, new, ttl)

    def update(self, key: str, change: Change[R]) -> R:
        """Replace the value of *key* by what *change* makes of it; return its result."""
        return update(self.open(), key, change)

    def items(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the live items whose key starts with *prefix*."""
        return self.open().items(prefix)

    def close(self) -> None:
        """Close the store, unless it was given."""
        if self._owned and self._store is not None:
            self._store.close()


def _innermost(app: object) -> object:
    """Return the innermost app that *app* wraps."""
    seen = {id(app)}
    while True:
        inner = next((found for name in _INNER if _is_app(found := getattr(app, name, None))), None)
        if inner is None or id(inner) in seen:
            return app
        seen.add(id(inner))
        app = inner


def _identity(app: object) -> str:
    """Name the innermost app that *app* wraps, in every worker the same: two apps of one process
    share nothing by accident."""
    app = _innermost(app)
    named = app if hasattr(app, "__qualname__") else type(app)
    parts = (named.__module__, named.__qualname__, getattr(app, "import_name", ""))
    return sha256(" ".join(map(str, parts)).encode()).hexdigest()[:16]


def _is_app(found: object) -> bool:
    return callable(found) and not isinstance(found, type)
