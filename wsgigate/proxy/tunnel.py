"""Bytes both ways between two sockets, and how many threads of a process do that at a time."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from wsgigate import process
from wsgigate.clocks import real

__all__ = ["Tunnels", "relay"]

BLOCK = 65536
TICK = 1.0
"""Seconds after which a silent tunnel sees that it is to end."""

_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Tunnels:
    """How many tunnels a process has, and whether they are to end.

    :param most: How many there may be: each holds a thread for as long as it lasts.
    :param grace: Seconds that they go on for once they are told to end.
    :raises ValueError: *most* is negative.
    """

    def __init__(self, most: int = 8, *, grace: float = 5.0) -> None:
        if most < 0:
            raise ValueError(f"the number of tunnels is 0 or more, got {most}")
        self._most = most
        self._grace = grace
        self.after_fork()
        process.renew_at_fork(self)

    def after_fork(self) -> None:
        """Have none: those of a parent are not its child's."""
        self._lock = threading.Lock()
        self.open = 0
        self.end_at = float("inf")

    def enter(self) -> bool:
        """Count one more in, unless there are as many as there may be, or they are to end."""
        with self._lock:
            if self.open >= self._most or self.end_at < float("inf"):
                return False
            self.open += 1
            return True

    def leave(self) -> None:
        """Count one out."""
        with self._lock:
            self.open -= 1

    def stop(self) -> None:
        """Have all of them end soon, and no other begin; does not wait."""
        self.end_at = real() + self._grace


class _Way:
    """What goes one way, read only as fast as it is taken."""

    __slots__ = ("closed", "held", "moved", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket, first: bytes) -> None:
        self.source = source
        self.sink = sink
        self.held = memoryview(first)
        self.moved = 0
        self.closed = False

    def move(self) -> bool:
        """Move what can be moved without waiting; return whether anything was."""
        moved = False
        while True:
            if self.held:
                try:
                    sent = self.sink.send(self.held)
                except _LATER:
                    return moved
                self.held = self.held[sent:]
                self.moved += sent
                moved = True
                continue
            if self.closed:
                return moved
            try:
                data = self.source.recv(BLOCK)
            except _LATER:
                return moved
            self.closed = not data
            self.held = memoryview(data)


def relay(
    client: socket.socket,
    upstream: socket.socket,
    *,
    idle_timeout: float,
    first: bytes = b"",
    end_at: Callable[[], float] = lambda: float("inf"),
    clock: Callable[[], float] = time.monotonic,
    selector: Callable[[], Any] = selectors.DefaultSelector,
) -> tuple[int, int]:
    """Move bytes both ways until either end closes; return how many went up and down.

    :param idle_timeout: Seconds without a byte either way after which it ends.
    :param first: What the upstream has said already.
    :param end_at: When it ends in any case, by *clock*.
    """
    client.setblocking(False)
    upstream.setblocking(False)
    up, down = _Way(client, upstream, b""), _Way(upstream, client, first)
    idle_at = clock() + idle_timeout
    try:
        with selector() as ready:
            for end in (client, upstream):
                ready.register(end, selectors.EVENT_READ)
            while True:
                # Both are always tried: TLS may hold what no selector sees.
                if up.move() | down.move():
                    idle_at = clock() + idle_timeout
                if (up.closed and not up.held) or (down.closed and not down.held):
                    break
                left = min(idle_at, end_at()) - clock()
                if left <= 0:
                    break
                for end, comes, goes in ((client, up, down), (upstream, down, up)):
                    wanted = (0 if comes.held or comes.closed else selectors.EVENT_READ) | (
                        selectors.EVENT_WRITE if goes.held else 0
                    )
                    _want(ready, end, wanted)
                ready.select(min(left, TICK))
    except OSError:
        pass  # one end is gone
    return up.moved, down.moved


def _want(ready: Any, end: socket.socket, wanted: int) -> None:
    known = ready.get_map().get(end)
    if known is None:
        if wanted:
            ready.register(end, wanted)
    elif not wanted:
        ready.unregister(end)
    elif known.events != wanted:
        ready.modify(end, wanted)
