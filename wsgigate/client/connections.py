"""The connection pool of the HTTP/1.1 client: persistent connections, shared by all threads.

Theory of operation. A :class:`ConnectionPool` holds the connections of one process to one instance
under one TLS policy. Idle connections are a list used as a stack (last in, first out), so that
surplus connections become old and are closed. Taking and returning an idle connection takes no
lock: ``list.pop`` and ``list.append`` are atomic. The lock guards the number of open connections
and the queue of waiting requests only.

Rules that must hold:

- A connection belongs to one request, or to the idle list, never to both. ``Connection.give_back``
  clears its reference to the pool first, so a second call does nothing.
- A connection that is readable while idle is closed, never reused: it holds the instance's close,
  or bytes that belong to no request and would be read as the next response.
- ``Connection.on_socket(None)`` is called before the connection becomes idle. A disconnecting
  client shuts the registered socket down; a late call would break another client's request.
- The count of open connections changes by one for each connection opened or closed. A leak would
  block all requests to the instance once ``max_open`` is reached. A response that is never closed
  frees its connection when it is garbage-collected. A collection can run at any point of the thread
  that holds the lock, so the lock is reentrant.
- Names that gevent's monkey patching replaces (``socket``, ``ssl``, ``select.poll``,
  ``threading``) are looked up when used; a reference bound at import would block all greenlets.
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
from typing import Protocol

from wsgigate.client.dial import Dial, OnSocket
from wsgigate.client.response_reader import PoolFull
from wsgigate.telemetry.metrics import Counter

__all__ = ["Connection", "ConnectionMeter", "ConnectionOwner", "ConnectionPool", "Limits"]

_TIMEVAL = struct.Struct("ll")


class ConnectionOwner(Protocol):
    """The owner to which a connection is returned: a pool."""

    def release(self, connection: Connection, keep: bool) -> None:
        """Keep *connection* for the next request, or close it."""


class Connection:
    """One open connection; it refers to its pool only while a request uses it.

    :ivar expires: When it is closed unless a request uses it; set while it is idle.
    :ivar timeout: The timeout of each operation, in seconds.
    :ivar reused: Whether it served a request before; the instance may have closed it since.
    :ivar pending: Returns the number of bytes that TLS has decrypted and that are still unread;
        ``None`` without TLS.
    :ivar readable: ``readable(0)`` returns what the socket has to be read: data, or its end; empty
        if nothing.
    :ivar on_socket: Called with ``None`` before the connection may serve another request.
    """

    __slots__ = (
        *("_kernel", "_poll", "_pool", "_recv"),
        *("expires", "made", "on_socket", "pending", "readable", "reused", "sock", "timeout"),
    )

    def __init__(self, pool: ConnectionOwner, sock: socket.socket, now: float) -> None:
        self._pool: ConnectionOwner | None = pool
        self.sock = sock
        self._recv = sock.recv
        # With a Python timeout each operation takes two system calls and releases the GIL twice,
        # so plain sockets use kernel timeouts. gevent's sockets and TLS support Python's only.
        self._kernel = isinstance(sock, _socket.socket) and not isinstance(sock, ssl.SSLSocket)
        self.pending: Callable[[], int] | None = None
        if isinstance(sock, ssl.SSLSocket):
            self.pending = sock.pending
        if self._kernel:
            sock.settimeout(None)
        self.on_socket: OnSocket | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.readable = self._poll.poll
        self.timeout = -1.0
        self.made = now
        self.expires = now
        self.reused = False

    def set_timeout(self, seconds: float) -> None:
        """Set the timeout of each operation; a change below 1 % is skipped to save system calls."""
        if not 0.99 * seconds < self.timeout <= 1.01 * seconds:
            if self._kernel:
                whole, rest = divmod(max(seconds, 0.001), 1)
                value = _TIMEVAL.pack(int(whole), int(rest * 1e6))
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            else:
                self.sock.settimeout(seconds)
            self.timeout = seconds

    def recv(self, size: int) -> bytes:
        """Return the next bytes received; empty at the end of the connection.

        :raises TimeoutError: The timeout passed without data.
        """
        try:
            return self._recv(size)
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    def send_all(self, data: bytes) -> None:
        """Send all of *data*.

        :raises TimeoutError: The timeout passed before all of it was sent.
        """
        try:
            self.sock.sendall(data)
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    def send_now(self, data: memoryview, seconds: float) -> int:
        """Send as much of *data* as fits without blocking; return the number of bytes sent.

        :param seconds: The timeout for TLS and gevent sockets, which block instead.
        """
        if not self._kernel:
            self.set_timeout(seconds)
            return self.sock.send(data)
        try:
            return self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def wait(self, seconds: float) -> tuple[bool, bool]:
        """Wait until the socket is readable or writable; return ``(readable, writable)``."""
        poll = self._poll
        poll.modify(self.sock, select.POLLIN | select.POLLOUT)
        try:
            events = poll.poll(seconds * 1000)
        finally:
            poll.modify(self.sock, select.POLLIN)
        got = events[0][1] if events else 0
        return bool(got & ~select.POLLOUT), bool(got & select.POLLOUT)

    def recv_now(self, size: int) -> bytes | None:
        """Return received bytes without blocking; ``None`` when there are none yet."""
        sock = self.sock
        try:
            if self._kernel:
                return sock.recv(size, socket.MSG_DONTWAIT)
            sock.settimeout(0)
            self.timeout = 0.0
            return sock.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None  # also for TLS records without data, such as a session ticket

    def give_back(self, keep: bool) -> None:
        """Return the connection to its pool: reusable if *keep*, closed otherwise."""
        pool, self._pool = self._pool, None
        on_socket = self.on_socket
        if on_socket is not None:
            self.on_socket = None
            on_socket(None)
        if pool is not None:
            pool.release(self, keep)

    def close(self) -> None:
        """Close the connection and free its slot in the pool."""
        self.give_back(False)


@dataclass(frozen=True)
class Limits:
    """Limits of the connections to one instance, per worker.

    :param max_idle: Maximum idle connections.
    :param max_open: Maximum connections, in use and idle together.
    :param idle_timeout: Seconds an idle connection is kept. Below 5 s, the usual timeout of
        servers.
    :param max_age: Seconds after which a connection is not reused, so that a changed DNS name is
        resolved again.
    """

    max_idle: int = 32
    max_open: int = 1000
    idle_timeout: float = 4.0
    max_age: float = 60.0

    def __post_init__(self) -> None:
        if self.max_idle < 0:
            raise ValueError(f"max_idle must be 0 or more connections, got {self.max_idle}")
        if self.max_open < 1:
            raise ValueError(f"max_open must be 1 or more connections, got {self.max_open}")
        if not self.idle_timeout > 0:
            raise ValueError(f"idle_timeout must be above 0 seconds, got {self.idle_timeout}")
        if not self.max_age > 0:
            raise ValueError(f"max_age must be above 0 seconds, got {self.max_age}")


CONNECTIONS = Counter(
    "wsgigate_upstream_connections",
    "Connections for attempts: opened, reused or failed.",
    ("service", "result"),
)


class ConnectionMeter:
    """Counts the connections over which the requests to a service are sent."""

    __slots__ = ("failed", "opened", "reused")

    def __init__(self, service: str) -> None:
        self.opened = CONNECTIONS.labels(service, "opened")
        self.reused = CONNECTIONS.labels(service, "reused")
        self.failed = CONNECTIONS.labels(service, "failed")


class ConnectionPool:
    """The connections of this process to one instance under one TLS policy; last in, first out.

    :param dial: Opens a socket.
    :param limits: How many connections there may be, and for how long.
    :param clock: Monotonic clock, in seconds.
    """

    def __init__(self, dial: Dial, limits: Limits, clock: Callable[[], float]) -> None:
        self._dial = dial
        self._limits = limits
        self._clock = clock
        self._idle: list[Connection] = []
        self._open = 0
        self._waiting = 0
        self._closed = False
        # An unclosed response frees its slot when it is garbage-collected, which may happen while
        # this very thread holds the lock: so the lock is reentrant.
        self._lock = threading.RLock()
        self._freed = threading.Condition(self._lock)
        weakref.finalize(self, _close_all, self._idle)  # in case close() is not called

    def acquire(
        self,
        now: float,
        until: float,
        *,
        fresh: bool = False,
        on_socket: OnSocket | None = None,
        meter: ConnectionMeter | None = None,
    ) -> Connection:
        """Return a connection for one request: an idle one, or else a new one.

        :param now: The time by the pool's clock.
        :param until: When to give up waiting for a slot and connecting.
        :param fresh: Whether the connection must be new.
        :param on_socket: Called with a new socket before it connects.
        :param meter: Counts the connection.
        :raises PoolFull: The pool is full and no connection became free in time.
        :raises requests.RequestException: Connecting failed.
        """
        idle = self._idle
        kept: Connection | None = None
        while idle and not fresh:
            try:
                kept = idle.pop()
            except IndexError:
                break  # another thread was faster
            if now < kept.expires and not kept.readable(0):
                break
            self.release(kept, False)
            kept = None
        if kept is None:
            kept = self._await_place(until)
            if kept is not None and (fresh or now >= kept.expires or kept.readable(0)):
                kept.sock.close()  # a new connection takes over its slot
                kept = None
        if kept is not None:
            kept._pool = self
            kept.reused = True
            if meter is not None:
                meter.reused.add()
            return kept
        try:
            dialled = self._dial(until) if on_socket is None else self._dial(until, on_socket)
            opened = Connection(self, dialled, self._clock())
        except BaseException:
            self._count_closed()
            if meter is not None:
                meter.failed.add()
            raise
        if meter is not None:
            meter.opened.add()
        return opened

    def release(self, connection: Connection, keep: bool) -> None:
        """Keep *connection* for the next request, or close it."""
        room = len(self._idle) < self._limits.max_idle and not self._closed
        if keep and room and not (connection.pending is not None and connection.pending()):
            limits = self._limits
            connection.expires = min(
                self._clock() + limits.idle_timeout, connection.made + limits.max_age
            )
            self._idle.append(connection)
            if self._waiting:
                with self._lock:
                    self._freed.notify()
            if self._closed:  # by another thread since the check above
                self.close()
            return
        connection.sock.close()
        self._count_closed()

    def sweep(self, now: float) -> None:
        """Close the idle connections whose time is up."""
        for connection in list(self._idle):
            if now >= connection.expires:
                try:
                    self._idle.remove(connection)
                except ValueError:
                    continue  # another thread was faster
                self.release(connection, False)

    def close(self) -> None:
        """Close idle connections now, and the others when they are returned."""
        self._closed = True
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self.release(connection, False)

    def abandon(self) -> None:
        """Close this process's copies of the parent's idle connections.

        Closing a copy of a socket sends nothing to the instance.
        """
        _close_all(self._idle)

    @property
    def open_connections(self) -> int:
        """The number of connections, in use or idle."""
        return self._open

    @property
    def idle_connections(self) -> int:
        """The number of idle connections."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a connection."""
        with self._lock:
            return self._waiting

    def _await_place(self, until: float) -> Connection | None:
        """Reserve a slot: return ``None`` for a new connection, or an idle connection to reuse."""
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
                    self._freed.wait(left)  # also after a timeout: check once more
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
