"""Questions and answers over one open connection to a Redis, each within its time.

An answer has ``timeout`` seconds in all, however many parts it comes in: a server that sends a byte
now and then must not hold a thread. Only a long answer (pages of values) earns more time, by what
has arrived: ``timeout`` for each 128 KiB. The first part is awaited by the socket's own timeout,
which costs nothing; the clock is looked at again only for answers in several parts.

Only names that gevent's monkey patching replaces are used (``socket``, ``ssl``, ``select.poll``),
and looked up when they are needed.
"""

from __future__ import annotations

import _socket
import math
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from wsgigate.store.redis_wire import SIZE, Answers, integers

__all__ = ["Wire"]

_TIMEVAL = struct.Struct("ll")

SHORT, LONG = 4096, 65536
"""How many bytes are asked for at once: of an answer's beginning, which is most often all of it,
and of the rest."""


class Wire:
    """An open socket, for one exchange at a time; whoever gets an error from it closes it.

    :param sock: With nothing unread.
    :param timeout: Seconds that sending may take, and an answer; None: as long as it takes.
    :param clock: Seconds of a clock that never steps back.
    """

    __slots__ = ("_clock", "_kernel", "_poll", "_recv", "_send", "_sock", "_timeout")

    def __init__(
        self,
        sock: socket.socket,
        timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._sock = sock
        self._timeout = timeout
        # With a timeout of Python's own each operation is two system calls, and twice gives up the
        # interpreter to other threads. gevent's sockets and TLS have no other. (The system's begins
        # anew after a signal, Python's goes on.)
        self._kernel = isinstance(sock, _socket.socket) and not isinstance(sock, ssl.SSLSocket)
        self._recv: Callable[[int], bytes] = sock.recv
        self._send: Callable[[bytes], int] = partial(_send_all, sock)
        if self._kernel:
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)
        if self._kernel and timeout is not None:
            value = _timeval(timeout)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            self._send = sock.send  # once: each further part would have a timeout of its own
        sock.settimeout(None if self._kernel else timeout)

    def ask(self, packed: bytes, expected: int, most: int = SIZE) -> list[Any]:
        """Send *packed* commands and return so many answers as are *expected*.

        :param most: Bytes of all answers at most.
        :raises OSError: They are not to be had, or not in time.
        :raises Malformed: What came is not they, or is more than they.
        """
        try:
            if self._send(packed) != len(packed):
                raise TimeoutError  # it came in the middle
        except (BlockingIOError, TimeoutError):
            raise TimeoutError("Timeout writing to socket") from None
        began = self._clock()
        data = self._part(SHORT)
        if expected == 1:
            numbers = integers(data)
            if numbers is not None:
                return [numbers]
        return self._rest(expected, data, began, most)

    def read(self) -> Any:
        """Return the next answer; the caller has sent the command."""
        began = self._clock()
        return self._rest(1, self._part(SHORT), began, SIZE)[0]

    def spoilt(self) -> bool:
        """Return whether anything came in that nobody asked for, or the end."""
        if self._kernel:
            return bool(self._poll.poll(0))
        sock = self._sock
        try:
            sock.settimeout(0)
            try:
                sock.recv(1)
            finally:
                sock.settimeout(self._timeout)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False  # nothing; or in TLS, what is not for us, such as a ticket
        except OSError:
            pass
        return True

    def _rest(self, expected: int, data: bytes, began: float, most: int) -> list[Any]:
        answers, size = Answers(expected, most), 0
        while not answers.feed(data):
            size += len(data)
            data = self._part_by(began, 1 + size // SIZE)
        return answers.got

    def _part_by(self, began: float, times: int) -> bytes:
        """Return the next part, if it comes within so many *times* the timeout since *began*."""
        if self._timeout is None:
            return self._part(LONG)
        left = began + self._timeout * times - self._clock()
        if left <= 0:
            raise TimeoutError("Timeout reading from socket")
        if self._kernel:
            if not self._poll.poll(math.ceil(left * 1000)):
                raise TimeoutError("Timeout reading from socket")
            return self._part(LONG)
        try:
            self._sock.settimeout(left)
            return self._part(LONG)
        finally:
            self._sock.settimeout(self._timeout)

    def _part(self, size: int) -> bytes:
        try:
            data = self._recv(size)
        except (BlockingIOError, TimeoutError):
            raise TimeoutError("Timeout reading from socket") from None
        if not data:
            raise ConnectionError("Connection closed by server.")
        return data


def _send_all(sock: socket.socket, packed: bytes) -> int:
    sock.sendall(packed)
    return len(packed)


def _timeval(seconds: float) -> bytes:
    """Return *seconds* as the system takes them; rounded up, since none at all is for ever."""
    whole, micros = divmod(max(1, math.ceil(seconds * 1e6)), 1_000_000)
    return _TIMEVAL.pack(whole, micros)
