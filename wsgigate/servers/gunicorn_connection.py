"""A client's connection to a GateWorker, with its deadlines."""

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

from wsgigate.servers.gunicorn_http2 import Http2Client

__all__ = ["ClientStalled", "Connection"]


ABANDONED = struct.pack("ii", 1, 0)
"""``SO_LINGER`` for a connection that is reset, not closed."""

_TIMEVAL = struct.Struct("ll")

GRACE = 1.0
"""Seconds for which a connection is kept beyond what its client was told."""

SLICE = 65536
"""Bytes of a response that must be taken within the idle timeout."""


class ClientStalled(ConnectionResetError, TimeoutError):
    """The client sends or takes too slowly, and is gone as far as anybody here is concerned.

    A kind of connection reset, as that is no news to gunicorn: it closes and says nothing.
    """

    def __init__(self, text: str) -> None:
        super().__init__(errno.ECONNRESET, text)


class Connection(TConn):  # type: ignore[misc]
    """A connection whose client may not keep a thread waiting for longer than its worker says.

    :param worker: The worker it is served by.
    """

    timeout: float

    def __init__(self, worker: Any, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._worker = worker

    def init(self) -> None:
        """Speak TLS if that is what the port speaks, and get ready to read requests."""
        if self.initialized:
            return
        try:
            super().init()
        except HTTP2ConnectionError as error:  # it left before it was told the first thing
            raise ConnectionResetError(errno.ECONNRESET, str(error)) from error
        if self.is_http2:
            self.parser = self._worker.begin_http2(self)
            return
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.__class__ = _PatientTLS
        else:
            self.sock.__class__ = _Patient
            self.sock.wait_at_most(self._worker.idle_timeout)
        reader = _Reader(self.sock, self._worker.body_rate)
        reader.unread(self.parser.unreader.take_buffered())
        self.parser.unreader = reader

    def set_timeout(self) -> None:
        """Say until when the next request is waited for: a little longer than the client was told,
        so that one sent at the last moment is served."""
        self.timeout = time.monotonic() + self.cfg.keepalive + GRACE

    def begin_head(self) -> None:
        """Say that a head is to be read, whose deadline is the worker's to keep."""
        if self.initialized and not self.is_http2:
            self.parser.unreader.patience = None

    def begin_body(self, patience: float) -> None:
        """Say that a head has been read, and what follows is to stall no longer than *patience*."""
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(patience)
        self.parser.unreader.begin(patience)

    def has_read_ahead(self) -> bool:
        """Return whether more of what the client sent was read than has been served."""
        if self.parser.unreader.buf.getvalue():
            return True
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    def cut(self) -> None:
        """End what another thread reads or writes on the connection."""
        try:
            # Not SSLSocket.shutdown(), which takes the TLS away from under that thread.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        except OSError:
            pass

    def cut_if_silent(self) -> None:
        """End what another thread reads, unless there is more that it only has not come to read.

        On a machine that has too much to do, that is not the client's fault.
        """
        poll = select.poll()
        try:
            poll.register(self.sock, select.POLLIN)
        except ValueError:  # closed already
            return
        if not poll.poll(0):
            self.cut()

    def close(self, graceful: bool = False) -> None:
        """Close the connection; gracefully without waiting for the client to do so."""
        if isinstance(self.parser, Http2Client):
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
    """What a request's body is read by: the client is waited for so long, and so long in all.

    In all it is the patience once, and a second more for each *rate* bytes that have come: a client
    that sends a byte now and then is let go too. Only the time spent waiting for the client counts:
    an application that takes its time is not the client's fault.
    """

    max_body_chunk = 65536
    """As much as is read at a time. Of more, gunicorn copies all that is left at each read."""

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
        short = left < self.patience  # else what the socket waits anyway is as good
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
    """Sends slice by slice, because a timeout is one for all that is sent by one call."""

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
        """Have what is left in the system's buffers thrown away when the socket is closed."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABANDONED)  # type: ignore[attr-defined]
        raise ClientStalled("the response was not taken")


class _Patient(_Slices, socket.socket):
    """A socket whose timeouts are the kernel's: with Python's own each operation is two system
    calls, and twice gives up the interpreter to other threads."""

    __slots__ = ()

    def wait_at_most(self, seconds: float) -> None:
        """Have each operation end after *seconds*, with a ``BlockingIOError``."""
        whole, rest = divmod(seconds, 1)
        value = _TIMEVAL.pack(int(whole), int(rest * 1e6))
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def setblocking(self, flag: bool) -> None:
        """Do as is said, without a system call when that is so already."""
        if not flag or self.gettimeout() is not None:
            super().setblocking(flag)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        # It waits by itself, and for Python's timeout only.
        value = self.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.size)
        whole, rest = _TIMEVAL.unpack(value)
        self.settimeout(whole + rest / 1e6)
        try:
            return super().sendfile(file, offset, count)
        finally:
            self.settimeout(None)


class _PatientTLS(_Slices, ssl.SSLSocket):
    __slots__ = ()
