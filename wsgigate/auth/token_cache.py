"""A bounded cache of what is known of tokens, by their hashes."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["TokenCache"]

V = TypeVar("V")


class TokenCache(Generic[V]):
    """A cache of at most *size* tokens, in two generations; the older one is dropped.

    Every step is one atomic operation on a dict, so no lock is needed. The worst result of a race
    between two threads is that a token is verified twice.

    :param size: Maximum number of tokens; 0 for no cache.
    :raises ValueError: *size* is negative or not a whole number.
    """

    def __init__(self, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"cache_size: a whole number of tokens, 0 or more, not {size!r}")
        self._half = size // 2
        self._young: dict[bytes, V] = {}
        self._old: dict[bytes, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, name: bytes) -> V | None:
        """Return what is known of the token whose hash is *name*."""
        found = self._young.get(name)
        if found is None:
            found = self._old.get(name)
            if found is not None:
                self.put(name, found)
        return found

    def put(self, name: bytes, value: V) -> None:
        """Remember *value* for the token whose hash is *name*."""
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        if self._half:
            self._young[name] = value
