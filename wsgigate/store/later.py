"""A store that is made when it is first used, and not before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from wsgigate.store import Change, R, Store, update

__all__ = ["LaterStore"]


class LaterStore:
    """Stands for a store whose folder is not to be made before it is needed.

    One that can not be made is tried again at the next use.

    :param make: Makes it; raises ``StoreError`` when it can not.
    """

    def __init__(self, make: Callable[[], Store]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._store: Store | None = None

    def get(self, key: str) -> tuple[bytes | None, float]:
        """Return the live value, or None, and the store's own time in seconds."""
        return (self._store or self._opened()).get(key)

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        """Replace *old* by *new* if it is still there."""
        return (self._store or self._opened()).swap(key, old, new, ttl)

    def update(self, key: str, change: Change[R]) -> R:
        """Replace the value of *key* by what *change* makes of it; return its result."""
        return update(self._store or self._opened(), key, change)

    def items(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the live items whose key starts with *prefix*."""
        return (self._store or self._opened()).items(prefix)

    def close(self) -> None:
        """Release what is held open, if anything is."""
        if self._store is not None:
            self._store.close()

    def _opened(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = self._make()
            return self._store
