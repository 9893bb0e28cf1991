"""Stores in front of another, in which a test fails, counts or interrupts calls."""

from __future__ import annotations

from collections.abc import Iterator

from wsgigate.store import Store, StoreError

__all__ = ["Fickle", "WrappedStore"]


class WrappedStore:
    """Calls :meth:`before`, and passes each call on to *store*.

    It has no ``update`` of its own: a change is a ``get`` and a ``swap``.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def before(self, call: str, key: str) -> None:
        """Do what a subclass says before a call: ``get``, ``swap`` or ``items``."""

    def get(self, key: str) -> tuple[bytes | None, float]:
        self.before("get", key)
        return self.store.get(key)

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        self.before("swap", key)
        return self.store.swap(key, old, new, ttl)

    def items(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        self.before("items", prefix)
        return self.store.items(prefix)

    def close(self) -> None:
        self.store.close()


class Fickle(WrappedStore):
    """A store that fails while ``broken`` is set."""

    broken = False

    def before(self, call: str, key: str) -> None:
        if self.broken:
            raise StoreError("the disk is full")
