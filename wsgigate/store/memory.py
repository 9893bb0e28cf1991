"""The store for one process: a dict, a lock, and a bound on the number of values."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import TypeAlias, TypeVar, cast

from wsgigate.runtime.clocks import wall
from wsgigate.runtime.fork import quiesce_at_fork
from wsgigate.store import COUNTERS, KEY_BYTES, VALUE_BYTES, Change, check_value, encoded

__all__ = ["MemoryStore"]

R = TypeVar("R")

SWEPT_PER_WRITE = 2
"""More than the one item that a write adds, so that expired items do not accumulate."""


_Item: TypeAlias = tuple[bytes, float, float]
"""A value, its expiry, and the time under which it is queued: its expiry when it was queued. A
plain tuple, because every write makes one."""


class MemoryStore:
    """Stores values in this process only: for tests, and for servers with one worker.

    A full store evicts counters first, those nearest to their expiry: a flood of new callers evicts
    itself before callers that have used most of their quota, and never the health of an instance, a
    lease or a denied token. See :mod:`wsgigate.store`.

    :param max_items: Maximum number of values. Default: 100,000.
    :param clock: Returns the time in seconds.
    :raises ValueError: *max_items* is below 1.
    """

    def __init__(self, *, max_items: int = 100_000, clock: Callable[[], float] = wall) -> None:
        if max_items < 1:
            raise ValueError(f"max_items is at least 1, got {max_items}")
        self.max_items = max_items
        self.lock = threading.RLock()
        self._clock = clock
        self._items: dict[str, _Item] = {}
        # Each item is queued once, under an expiry that was true at some time. A later expiry is
        # corrected when the item reaches the head, so renewing an item costs nothing here.
        self._counters: list[tuple[float, str]] = []
        self._others: list[tuple[float, str]] = []
        self._due = float("inf")  # time at which the first item may expire
        quiesce_at_fork(self)

    def get(self, key: str) -> tuple[bytes | None, float]:
        _check(key)
        now = self._clock()
        item = self._items.get(key)
        return (item[0] if item is not None and item[1] > now else None), now

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        # a copy: update() writes nothing when it gets back the very object that it passed in
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
                # a copy, so that no later change returns this very object but *old* itself
                value, expires = b"%b" % (new,), now + ttl
                if item is not None and item[2] <= expires:
                    self._items[key] = (value, expires, item[2])
                else:
                    self._items[key] = (value, expires, expires)
                    queue = self._counters if key.startswith(COUNTERS) else self._others
                    heappush(queue, (expires, key))
                    if expires < self._due:
                        self._due = expires
                    while len(self._items) > self.max_items:
                        if self._due <= now:
                            self._sweep(now)
                            continue
                        self._pop_next(self._counters or self._others, None)
                    if len(queue) > 2 * len(self._items) + 64:
                        self._requeue()
            if self._due <= now:
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
        """Return the number of ``items``, including expired ones, and the maximum."""
        return {"items": len(self._items), "maxItems": self.max_items}

    def close(self) -> None:
        """Do nothing: the values exist in memory only, and nothing is open."""

    def before_fork(self) -> None:
        """Do nothing: holding the lock is enough."""

    def after_unseen_fork(self) -> None:
        """Queue every item again: the fork may have come between a write and its queueing."""
        self._requeue()

    def _sweep(self, now: float) -> None:
        """Remove a few expired items."""
        due = float("inf")
        for queue in (self._counters, self._others):
            if queue:
                if queue[0][0] <= now:
                    for _ in range(SWEPT_PER_WRITE):
                        self._pop_next(queue, now)
                        if not queue or queue[0][0] > now:
                            break
                if queue and queue[0][0] < due:
                    due = queue[0][0]
        self._due = due

    def _pop_next(self, queue: list[tuple[float, str]], now: float | None) -> None:
        """Pop the head of *queue*; remove its item if expired at *now* (None: in any case)."""
        queued, key = heappop(queue)
        item = self._items.get(key)
        if item is None or item[2] != queued:
            return  # the item was removed, or is queued elsewhere
        value, expires, _ = item
        if expires > queued:
            self._items[key] = (value, expires, expires)
            heappush(queue, (expires, key))
        elif now is None or expires <= now:
            del self._items[key]

    def _requeue(self) -> None:
        self._items = {
            key: (value, expires, expires) for key, (value, expires, _) in self._items.items()
        }
        self._counters, self._others = [], []
        for key, (_, expires, _) in self._items.items():
            counter = key.startswith(COUNTERS)
            (self._counters if counter else self._others).append((expires, key))
        heapify(self._counters)
        heapify(self._others)
        self._due = float("-inf")


def _check(key: str) -> None:
    if len(key) > KEY_BYTES or not key.isascii():
        encoded(key)
