"""The store of one user of it: one that it was given, one by its URL, or one of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any

from wsgigate.store import Store, open_store, update

__all__ = ["OpenedStore"]

_INNER = ("app", "application", "__self__", "__wrapped__", "func")


class OpenedStore:
    """Opens a store when it is first needed, and closes it if it is nobody else's.

    :param store: A store, the URL of one, or None for the private folder of the user who runs this
        program, in which *app* is told from all other apps.
    :param app: Whose counts they are.
    :raises ValueError: *store* is neither.
    """

    def __init__(self, store: Store | str | None, app: object) -> None:
        self._owned = store is None or isinstance(store, str)
        self._store: Store | None = None
        self.prefix = ""
        """What keys begin with, after the user's own prefix."""
        if store is None or store == "lmdb:":  # its folder is not to be made before it is needed
            self.prefix = sha256(_identity(app).encode()).hexdigest()[:16] + "/"
        elif isinstance(store, str):
            self._store = open_store(store)
        elif isinstance(store, Store):
            self._store = store
        else:
            raise ValueError(f"store is a store or the URL of one, not {store!r}")

    def open(self) -> Store:
        """Return the store.

        :raises StoreError: Its folder cannot be had.
        """
        if self._store is None:
            self._store = open_store("lmdb:")
        return self._store

    def updater(self) -> Callable[..., Any]:
        """Return the store's ``update(key, change)``.

        :raises StoreError: Its folder cannot be had.
        """
        store = self.open()
        own: Callable[..., Any] | None = getattr(store, "update", None)
        return partial(update, store) if own is None else own

    def close(self) -> None:
        """Close the store, unless it was given."""
        if self._owned and self._store is not None:
            self._store.close()


def _identity(app: object) -> str:
    """Name the innermost app that *app* wraps: two apps of one process do not share counts."""
    seen = {id(app)}
    while True:
        inner = next((found for name in _INNER if _is_app(found := getattr(app, name, None))), None)
        if inner is None or id(inner) in seen:
            break
        seen.add(id(inner))
        app = inner
    named = app if hasattr(app, "__qualname__") else type(app)
    parts = (named.__module__, named.__qualname__, getattr(app, "import_name", ""))
    return " ".join(map(str, parts))


def _is_app(found: object) -> bool:
    return callable(found) and not isinstance(found, type)
