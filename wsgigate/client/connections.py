"""Connections to one instance, kept open between requests and shared by a worker's threads.

A connection is with one request at a time and in nobody's hands but its own until then. One that
has anything to read while no request is under way is closed, be it the instance's farewell or bytes
that nobody asked for: what they are is not worth finding out.

Only names that gevent's monkey patching replaces are used (``socket``, ``ssl``, ``select.poll``,
``threading``), and looked up when they are needed.
"""

from __future__ import annotations

import _socket
import select
import socket
import ssl
import struct
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from wsgigate.client.dial import Dial, Holds
from wsgigate.client.response_reader import PoolFull

__all__ = ["Connection", "ConnectionPool", "Keeper", "Limits"]


# One connection to an instance: bytes both ways, each step within its time.
#
# Only names that gevent's monkey patching replaces are used (``socket``, ``ssl``,
# ``select.poll``), and looked up when they are needed.

_TIMEVAL = struct.Struct("ll")


class Keeper(Protocol):
    """Whom a connection goes back to."""

    def take_back(self, connection: Connection, keep: bool) -> None:
        """Keep *connection* for the next request, or close it."""


def _nothing() -> int:
    return 0


class Connection:
    """One open connection; it knows its pool only while a request has it.

    :ivar reused: Whether another request went over it before, so that it may have ended unseen.
    :ivar pending: Tells how many bytes were read from the socket and not asked for yet.
    :ivar holds: Told ``None`` before it may serve another request.
    """

    __slots__ = (
        *("_kernel", "_poll", "_pool", "_recv", "_timeout"),
        *("holds", "idle_since", "made", "pending", "reused", "sock"),
    )

    def __init__(self, pool: Keeper, sock: socket.socket, now: float) -> None:
        self._pool: Keeper | None = pool
        self.sock = sock
        self._recv = sock.recv
        # With a timeout of Python's own each operation is two system calls, and twice gives up the
        # interpreter to other threads. gevent's sockets and TLS have no other.
        self._kernel = isinstance(sock, _socket.socket) and not isinstance(sock, ssl.SSLSocket)
        self.pending = sock.pending if isinstance(sock, ssl.SSLSocket) else _nothing
        if self._kernel:
            sock.settimeout(None)
        self.holds: Callable[[Any], object] | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._timeout = -1.0
        self.made = now
        self.idle_since = now
        self.reused = False

    def set_timeout(self, seconds: float) -> None:
        """Have operations end within *seconds*; to the percent, as each change is a system call."""
        if not 0.99 * seconds < self._timeout <= 1.01 * seconds:
            if self._kernel:
                whole, rest = divmod(max(seconds, 0.001), 1)
                value = _TIMEVAL.pack(int(whole), int(rest * 1e6))
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            else:
                self.sock.settimeout(seconds)
            self._timeout = seconds

    def recv(self, size: int) -> bytes:
        """Return what comes next, nothing at the end of the connection.

        :raises TimeoutError: Nothing came in time.
        """
        try:
            return self._recv(size)
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    def send_all(self, data: bytes) -> None:
        """Send *data*.

        :raises TimeoutError: It was not taken in time.
        """
        try:
            self.sock.sendall(data)
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    def send_now(self, data: memoryview, seconds: float) -> int:
        """Send what is taken of *data* without waiting, where that can be; return how much.

        :param seconds: How long it may take where it can not.
        """
        if not self._kernel:
            self.set_timeout(seconds)
            return self.sock.send(data)
        try:
            return self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def readable(self) -> bool:
        """Tell whether there is anything to read, the end included."""
        return bool(self._poll.poll(0))

    def wait(self, seconds: float) -> tuple[bool, bool]:
        """Wait until there is something to read, or room to write; tell which."""
        poll = self._poll
        poll.modify(self.sock, select.POLLIN | select.POLLOUT)
        try:
            events = poll.poll(seconds * 1000)
        finally:
            poll.modify(self.sock, select.POLLIN)
        got = events[0][1] if events else 0
        return bool(got & ~select.POLLOUT), bool(got & select.POLLOUT)

    def recv_now(self, size: int) -> bytes | None:
        """Return what there is without waiting, None when it is nothing that concerns us yet."""
        sock = self.sock
        try:
            if self._kernel:
                return sock.recv(size, socket.MSG_DONTWAIT)
            sock.settimeout(0)
            self._timeout = 0.0
            return sock.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None  # in TLS, such as a ticket for the next session

    def give_back(self, keep: bool) -> None:
        """Let the connection go: to the next request if *keep*, else closed."""
        pool, self._pool = self._pool, None
        holds = self.holds
        if holds is not None:
            self.holds = None
            holds(None)
        if pool is not None:
            pool.take_back(self, keep)

    def close(self) -> None:
        """Close it and make room for another."""
        self.give_back(False)

    def lent(self, pool: Keeper) -> Connection:
        """Return it as the next request gets it."""
        self._pool = pool
        self.reused = True
        return self


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
