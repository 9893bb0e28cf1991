"""A store for one process: a dict, a lock, and a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import TypeAlias, TypeVar, cast

from wsgigate.store import Change
from wsgigate.store.forking import rest_at_fork
from wsgigate.store.limits import KEY_BYTES, VALUE_BYTES, check_value, encoded

__all__ = ["MemoryStore"]

R = TypeVar("R")

SWEPT_PER_WRITE = 2
"""More than the one item a write can add, so that the expired ones never pile up."""


_Item: TypeAlias = tuple[bytes, float, float]
"""A value, when it expires, and under which moment it stands in the queue: its expiry when it was
last looked at. A plain tuple, as one is made at every write."""


class MemoryStore:
    """Keeps values in this process only: for tests, and where there is one worker.

    A full store forgets the values nearest to their end, so a flood of new callers pushes itself
    out before it pushes out those who have used up most of their quota.

    :param max_items: How many values it holds at most.
    :param clock: Tells the time in seconds.
    :raises ValueError: *max_items* is less than 1.
    """

    def __init__(self, *, max_items: int = 100_000, clock: Callable[[], float] = time.time) -> None:
        if max_items < 1:
            raise ValueError(f"max_items is at least 1, got {max_items}")
        self.max_items = max_items
        self.lock = threading.RLock()
        self._clock = clock
        self._items: dict[str, _Item] = {}
        # Each item stands in the queue once, under an expiry that was true at some time. A later
        # expiry is only put right when its turn comes, so renewing an item costs nothing here.
        self._queue: list[tuple[float, str]] = []
        rest_at_fork(self)

    def get(self, key: str) -> tuple[bytes | None, float]:
        _check(key)
        now = self._clock()
        item = self._items.get(key)
        return (item[0] if item is not None and item[1] > now else None), now

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        # a copy, because update() leaves the value alone when it is given the same object again
        fresh = None if new is None else cast("bytes", bytearray(new))

        def change(live: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            return (fresh, ttl, True) if live == old else (live, ttl, False)

        return self.update(key, change)

    def update(self, key: str, change: Change[R]) -> R:
        if len(key) > KEY_BYTES or not key.isascii():
            encoded(key)
        with self.lock:
            now = self._clock()
            item = self._items.get(key)
            old = item[0] if item is not None and item[1] > now else None
            new, ttl, result = change(old, now)
            if new is old:
                return result
            if new is None:
                del self._items[key]
            else:
                if len(new) > VALUE_BYTES:
                    check_value(new)
                # a copy: only the *old* handed out is that very object, never a caller's constant
                value, expires = b"%b" % (new,), now + ttl
                if item is not None and item[2] <= expires:
                    self._items[key] = (value, expires, item[2])
                else:
                    self._items[key] = (value, expires, expires)
                    heappush(self._queue, (expires, key))
            held = len(self._items)
            if (
                self._queue[0][0] <= now  # it has this key at least
                or held > self.max_items
                or len(self._queue) > 2 * held + 64
            ):
                self._sweep(now)
            return result

    def items(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        _check(prefix)
        with self.lock:
            now = self._clock()
            live = [
                (key, value)
                for key, (value, expires, _) in self._items.items()
                if expires > now and key.startswith(prefix)
            ]
        live.sort()
        yield from live

    def usage(self) -> dict[str, int]:
        """Return how many ``items`` there are, the expired included, and how many at most."""
        return {"items": len(self._items), "maxItems": self.max_items}

    def close(self) -> None:
        """Do nothing: the values are the store, and there is nothing to open again."""

    def before_fork(self) -> None:
        """Do nothing: it is enough that the lock is held."""

    def after_unseen_fork(self) -> None:
        """Queue every item anew, as the fork may have fallen between an item and its queueing."""
        self._requeue()

    def _sweep(self, now: float) -> None:
        """Remove a few expired items, and whatever there is too much of."""
        for _ in range(SWEPT_PER_WRITE):
            if not self._queue or self._queue[0][0] > now:
                break
            self._forget_next(now)
        while len(self._items) > self.max_items:
            self._forget_next(None)
        if len(self._queue) > 2 * len(self._items) + 64:
            self._requeue()

    def _forget_next(self, now: float | None) -> None:
        """Take the head of the queue; forget its item if it is expired at *now* (None: anyway)."""
        queued, key = heappop(self._queue)
        item = self._items.get(key)
        if item is None or item[2] != queued:
            return  # left behind by an item that is gone or stands elsewhere
        value, expires, _ = item
        if expires > queued:
            self._items[key] = (value, expires, expires)
            heappush(self._queue, (expires, key))
        elif now is None or expires <= now:
            del self._items[key]

    def _requeue(self) -> None:
        self._items = {
            key: (value, expires, expires) for key, (value, expires, _) in self._items.items()
        }
        self._queue = [(expires, key) for key, (_, expires, _) in self._items.items()]
        heapify(self._queue)


def _check(key: str) -> None:
    if len(key) > KEY_BYTES or not key.isascii():
        encoded(key)
