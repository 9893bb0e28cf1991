"""Values under keys, as many as there is room for: those that were used last stay."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Shelf"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Shelf(Generic[K, V]):
    """Values under keys, bounded by their size together.

    :param most: The size of all of them together, in bytes.
    :ivar used: How much of that is used.
    """

    def __init__(self, most: int) -> None:
        self.used = 0
        self._most = most
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value of *key*, which now was used last; ``None`` without one."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Put *value* in the place of what *key* had, and drop what there is no room for."""
        self.drop(key)
        self._kept[key] = (value, size)
        self.used += size
        while self.used > self._most:
            _, (_, gone) = self._kept.popitem(last=False)
            self.used -= gone

    def drop(self, key: K) -> None:
        """Forget the value of *key*, if there is one."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.used -= kept[1]

    def __len__(self) -> int:
        return len(self._kept)
