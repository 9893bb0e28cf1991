"""A client's HTTP/1.1 connection to a GateWorker, with its deadlines.

- Head: the loop shuts the socket down at the worker's deadline, which wakes the thread that reads.
- Body: ``_Reader`` measures the time spent waiting for the client, and bounds each wait and their
  sum. The time that the application takes does not count.
- Response: sent in slices, each with the socket's timeout. A client that does not read one in time
  has its connection reset (``SO_LINGER`` 0), which discards what the system has buffered.
- A plain socket uses the kernel's timeouts (``SO_RCVTIMEO``, ``SO_SNDTIMEO``) and stays blocking:
  Python's own timeouts cost two system calls, and release the GIL twice, for each operation.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any, NoReturn

from gunicorn.http.unreader import SocketUnreader
from gunicorn.http2.errors import HTTP2ConnectionError
from gunicorn.workers.gthread import TConn

from wsgigate.servers.gunicorn_http2 import Http2Connection

__all__ = ["ClientStalled", "Connection"]


ABANDONED = struct.pack("ii", 1, 0)
"""``SO_LINGER`` for a connection that is reset instead of closed."""

_TIMEVAL = struct.Struct("ll")

GRACE = 1.0
"""Seconds for which an idle connection is kept beyond the ``Keep-Alive`` timeout it announced."""

SLICE = 65536
"""Bytes of a response that the client must read within the idle timeout."""


class ClientStalled(ConnectionResetError, TimeoutError):
    """The client sends or reads too slowly; its connection is given up.

    A ``ConnectionResetError``, because gunicorn closes the connection on one without logging it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(errno.ECONNRESET, text)


class Connection(TConn):  # type: ignore[misc]
    """A client's connection with the deadlines of its worker.

    :param worker: The worker that serves it.
    """

    timeout: float

    def __init__(self, worker: Any, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._worker = worker

    def init(self) -> None:
        """Do the TLS handshake where the port has TLS, and prepare for reading requests."""
        if self.initialized:
            return
        try:
            super().init()
        except HTTP2ConnectionError as error:  # the client left before the preface was sent
            raise ConnectionResetError(errno.ECONNRESET, str(error)) from error
        if self.is_http2:
            self.parser = self._worker.begin_http2(self)
            return
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.__class__ = _SlicingTLSSocket
        else:
            self.sock.__class__ = _KernelTimeoutSocket
            self.sock.wait_at_most(self._worker.idle_timeout)
        reader = _Reader(self.sock, self._worker.body_rate)
        reader.unread(self.parser.unreader.take_buffered())
        self.parser.unreader = reader

    def set_timeout(self) -> None:
        """Set the deadline for the next request: :data:`GRACE` after the announced keep-alive
        timeout, so that a request sent at the last moment is served."""
        self.timeout = time.monotonic() + self.cfg.keepalive + GRACE

    def begin_head(self) -> None:
        """Prepare for reading a head, whose deadline the worker's loop enforces."""
        if self.initialized and not self.is_http2:
            self.parser.unreader.patience = None

    def begin_body(self, patience: float) -> None:
        """Prepare for a body and a response that may stall for at most *patience* seconds."""
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(patience)
        self.parser.unreader.begin(patience)

    def has_read_ahead(self) -> bool:
        """Return whether data of a further request was read already."""
        if self.parser.unreader.buf.getvalue():
            return True
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    def cut(self) -> None:
        """Interrupt the thread that reads or writes the connection."""
        try:
            # Not SSLSocket.shutdown(), which drops the TLS state that the other thread uses.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        except OSError:
            pass

    def cut_if_silent(self) -> None:
        """Interrupt the thread that reads the connection, unless there is unread data.

        Unread data means that the machine is overloaded, not that the client is slow.
        """
        poll = select.poll()
        try:
            poll.register(self.sock, select.POLLIN)
        except ValueError:  # closed already
            return
        if not poll.poll(0):
            self.cut()

    def close(self, graceful: bool = False) -> None:
        """Close the connection; with *graceful*, by a lingering close that does not block."""
        if isinstance(self.parser, Http2Connection):
            self.parser.close()
        if graceful and not self._abandoned():
            self._worker.linger(self.sock)
        else:
            super().close()

    def _abandoned(self) -> bool:
        try:
            setting: bytes = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        except OSError:  # closed already
            return True
        return setting == ABANDONED


class _Reader(SocketUnreader):  # type: ignore[misc]
    """Reads a request's body; each wait for the client, and the sum of all waits, is bounded.

    The sum is bounded by the patience, plus one second for each *rate* bytes received: so a client
    that sends single bytes is cut off, too. Only the time spent waiting for the client counts, not
    the time that the application takes between two reads.
    """

    max_body_chunk = 65536
    """Bytes read at a time. With more, gunicorn copies the rest of the chunk at each read."""

    def __init__(
        self, sock: socket.socket, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(sock)
        self._clock = clock
        self.patience: float | None = None
        self._rate = rate
        self._waited = 0.0
        self._received = 0

    def begin(self, patience: float) -> None:
        self.patience = patience
        self._waited, self._received = 0.0, 0

    def chunk(self, size_hint: int | None = None) -> bytes:
        if self.patience is None:
            try:
                head: bytes = super().chunk(size_hint)
            except BlockingIOError:
                raise ClientStalled("the request head came too slowly") from None
            return head
        usual = self.sock.gettimeout()
        left = self.patience + self._received / self._rate - self._waited
        if left <= 0:
            raise ClientStalled("the request body came too slowly")
        short = left < self.patience  # else the socket's usual timeout is the right one
        if short:
            self.sock.settimeout(left)
        began = self._clock()
        try:
            data: bytes = super().chunk(size_hint)
        except (TimeoutError, BlockingIOError):
            raise ClientStalled("the request body came too slowly") from None
        finally:
            if short:
                self.sock.settimeout(usual)
        self._waited += self._clock() - began
        self._received += len(data)
        return data


class _Slices:
    """Sends in slices, because a socket's timeout covers the whole of one ``sendall``."""

    __slots__ = ()

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        try:
            for start in range(0, len(view), SLICE):
                super().sendall(view[start : start + SLICE], flags)  # type: ignore[misc]
        except (TimeoutError, BlockingIOError):
            self._abandon()

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        try:
            sent: int = super().sendfile(file, offset, count)  # type: ignore[misc]
        except TimeoutError:
            self._abandon()
        return sent

    def _abandon(self) -> NoReturn:
        """Make the close of the socket a reset, which discards the data in the system's buffers."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABANDONED)  # type: ignore[attr-defined]
        raise ClientStalled("the client did not read the response in time")


class _KernelTimeoutSocket(_Slices, socket.socket):
    """A blocking socket with the kernel's timeouts.

    With Python's own timeouts each operation makes two system calls and releases the GIL twice.
    """

    __slots__ = ()

    def wait_at_most(self, seconds: float) -> None:
        """Make each operation raise ``BlockingIOError`` after *seconds*."""
        whole, rest = divmod(seconds, 1)
        value = _TIMEVAL.pack(int(whole), int(rest * 1e6))
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def setblocking(self, flag: bool) -> None:
        """Set the mode, without a system call where it is set already."""
        if not flag or self.gettimeout() is not None:
            super().setblocking(flag)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        # It polls the socket, and respects Python's timeout only.
        value = self.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.size)
        whole, rest = _TIMEVAL.unpack(value)
        self.settimeout(whole + rest / 1e6)
        try:
            return super().sendfile(file, offset, count)
        finally:
            self.settimeout(None)


class _SlicingTLSSocket(_Slices, ssl.SSLSocket):
    __slots__ = ()
