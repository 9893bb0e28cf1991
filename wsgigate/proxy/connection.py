"""One connection to an instance: bytes both ways, each step within its time.

Only names that gevent's monkey patching replaces are used (``socket``, ``ssl``, ``select.poll``),
and looked up when they are needed.
"""

from __future__ import annotations

import _socket
import select
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Connection", "Keeper"]

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
