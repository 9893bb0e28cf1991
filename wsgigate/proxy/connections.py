"""Connections to one instance, kept open between requests and shared by a worker's threads.

A connection is with one request at a time and in nobody's hands but its own until then. One that
has anything to read while no request is under way is closed, be it the instance's farewell or bytes
that nobody asked for: what they are is not worth finding out.

Only names that gevent's monkey patching replaces are used (``socket``, ``ssl``, ``select.poll``,
``threading``), and looked up when they are needed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from wsgigate.proxy.connection import Connection
from wsgigate.proxy.dial import Dial, Holds
from wsgigate.proxy.faults import PoolFull

__all__ = ["ConnectionPool", "Limits"]


@dataclass(frozen=True)
class Limits:
    """How many connections an instance gets, and for how long they are kept.

    :param max_idle: Kept open for later, per instance and worker.
    :param max_open: In use and kept together, per instance and worker.
    :param idle_timeout: Seconds; below the 5 s that most servers keep theirs.
    :param max_age: Seconds; so that a name that points elsewhere by now is looked up again.
    """

    max_idle: int = 32
    max_open: int = 1000
    idle_timeout: float = 4.0
    max_age: float = 60.0

    def __post_init__(self) -> None:
        if self.max_idle < 0:
            raise ValueError(f"max_idle is a number of connections, got {self.max_idle}")
        if self.max_open < 1:
            raise ValueError(f"max_open is at least one connection, got {self.max_open}")
        if not self.idle_timeout > 0:
            raise ValueError(f"idle_timeout is a number of seconds, got {self.idle_timeout}")
        if not self.max_age > 0:
            raise ValueError(f"max_age is a number of seconds, got {self.max_age}")


class ConnectionPool:
    """The connections of this process to one instance under one TLS policy; last in, first out.

    :param dial: Opens a connection.
    :param clock: Seconds of a clock that never steps back.
    """

    def __init__(self, dial: Dial, limits: Limits, clock: Callable[[], float]) -> None:
        self._dial = dial
        self._limits = limits
        self._clock = clock
        self._idle: list[Connection] = []
        self._open = 0
        self._waiting = 0
        self._closed = False
        # A response that nobody closed gives its place up when it is collected, which may be in
        # the middle of anything: so this thread may have it already.
        self._lock = threading.RLock()
        self._freed = threading.Condition(self._lock)
        weakref.finalize(self, _close_all, self._idle)  # for those who forget to

    def take(
        self, now: float, until: float, *, fresh: bool = False, holds: Holds | None = None
    ) -> Connection:
        """Return a connection for one request: a kept one, else a new one.

        :param until: When to stop waiting for a place and connecting.
        :param fresh: Want a new one.
        :param holds: Told of the socket of a new one before it is connected.
        :raises PoolFull: There is none, and none became free in time.
        :raises requests.RequestException: None came about.
        """
        idle = self._idle
        while idle and not fresh:
            try:
                connection = idle.pop()
            except IndexError:
                break  # another thread was faster
            if self._usable(connection, now):
                return connection.lent(self)
            self.take_back(connection, False)
        kept = self._await_place(until)
        if kept is not None:
            if not fresh and self._usable(kept, now):
                return kept.lent(self)
            kept.sock.close()  # and a new one in its place
        try:
            dialled = self._dial(until) if holds is None else self._dial(until, holds)
            return Connection(self, dialled, self._clock())
        except BaseException:
            self._count_closed()
            raise

    def take_back(self, connection: Connection, keep: bool) -> None:
        """Keep a connection for the next request, or close it."""
        room = len(self._idle) < self._limits.max_idle and not self._closed
        if keep and room and not connection.pending():
            connection.idle_since = self._clock()
            self._idle.append(connection)
            if self._waiting:
                with self._lock:
                    self._freed.notify()
            if self._closed:  # meanwhile
                self.close()
            return
        connection.sock.close()
        self._count_closed()

    def sweep(self, now: float) -> None:
        """Close what was kept for longer than it may be."""
        for connection in list(self._idle):
            if not self._in_time(connection, now):
                try:
                    self._idle.remove(connection)
                except ValueError:
                    continue  # another thread was faster
                self.take_back(connection, False)

    def close(self) -> None:
        """Close what is idle now, and the rest as soon as it is given back."""
        self._closed = True
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self.take_back(connection, False)

    def abandon(self) -> None:
        """Let go of connections that belong to the parent of this process.

        Nothing is said on them: to close a copy of a socket tells the other side nothing.
        """
        _close_all(self._idle)

    @property
    def open_connections(self) -> int:
        """How many there are, in use or kept."""
        return self._open

    @property
    def idle_connections(self) -> int:
        """How many are kept."""
        return len(self._idle)

    def _in_time(self, connection: Connection, now: float) -> bool:
        limits = self._limits
        return (
            now - connection.idle_since < limits.idle_timeout
            and now - connection.made < limits.max_age
        )

    def _usable(self, connection: Connection, now: float) -> bool:
        return self._in_time(connection, now) and not connection.readable()

    def _await_place(self, until: float) -> Connection | None:
        """Count one more connection as open; None when there was room for it, else one to reuse."""
        with self._lock:
            if self._open < self._limits.max_open:
                self._open += 1
                return None
            self._waiting += 1
            try:
                while True:
                    try:
                        return self._idle.pop()
                    except IndexError:
                        pass
                    if self._open < self._limits.max_open:
                        self._open += 1
                        return None
                    left = until - self._clock()
                    if left <= 0:
                        raise PoolFull(f"all {self._limits.max_open} connections are in use")
                    self._freed.wait(left)  # too late for some may be for us: one more look
            finally:
                self._waiting -= 1

    def _count_closed(self) -> None:
        with self._lock:
            self._open -= 1
            self._freed.notify()


def _close_all(idle: list[Connection]) -> None:
    while idle:
        try:
            idle.pop().sock.close()
        except IndexError:
            return
