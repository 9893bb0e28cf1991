"""Whether this server has been asked to stop, as all of its processes know it.

A balancer needs a moment to learn that a gateway stops. Until then the gateway goes on accepting
connections, while its readiness probe fails. The signal reaches the master only, so the mark is a
byte of memory that its workers inherit: it must exist before they are forked, and it is set once,
for good. A worker that ends because of a reload, or because it has served its requests, is not
marked: its successor serves.
"""

from __future__ import annotations

import mmap

__all__ = ["SERVER", "DrainMark"]


class DrainMark:
    """A mark that processes share with those that are forked from them after :meth:`prepare`."""

    def __init__(self) -> None:
        self._shared: mmap.mmap | bytearray = bytearray(1)

    def prepare(self) -> None:
        """Share the mark with the processes that are forked from now on, and unset it."""
        self._shared = mmap.mmap(-1, 1)

    def set(self) -> None:
        """Mark the server as stopping."""
        self._shared[0] = 1

    def __bool__(self) -> bool:
        return self._shared[0] != 0


SERVER = DrainMark()
"""The mark of the server that this process belongs to."""
