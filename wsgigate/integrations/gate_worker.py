"""A gthread worker that slow clients can not hold.

gunicorn's own has no deadline for a client once its first byte has come: as many clients as it has
threads that send half a head, half a body, or never read, block it for ever; and each client that
keeps its socket open after ``Connection: close`` stops it from accepting for two seconds. Here

- a new connection waits in the poller, and takes a thread only when there is something to read;
- a request head must be complete ``HEAD_TIMEOUT`` seconds after its first byte;
- a body that stalls, or a response that is not taken, ends after ``IDLE_TIMEOUT`` seconds;
- a connection that was answered for the last time lingers in the poller, not in the accept loop;
- a worker whose threads are all busy leaves new connections to the other workers.

It builds on the inside of ``gunicorn.workers.gthread``, no public interface: see ``TESTED``.
"""

from __future__ import annotations

import errno
import socket
import time
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.workers import gthread

__all__ = ["TESTED", "GateWorker"]

TESTED = ((27, 0), (28, 0))
"""The gunicorn releases it was tested with: from the first, before the second."""

HEAD_TIMEOUT = 10.0
IDLE_TIMEOUT = 30.0
LINGER = 2.0
MOST_DRAINED = 65536


class _Connection(gthread.TConn):  # type: ignore[misc]
    def __init__(self, worker: GateWorker, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._worker = worker

    def close(self, graceful: bool = False) -> None:
        if graceful:
            self._worker.linger(self.sock)
        else:
            super().close()


class GateWorker(gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker with deadlines for clients; ``--worker-class`` takes its path."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._busy = 0  # connections given to the threads
        self._heads: dict[Any, float] = {}  # connections whose head is being read: until when
        self._lingering: dict[socket.socket, tuple[float, list[int]]] = {}

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept while a thread is free; a connection that would wait is another worker's."""
        super().set_accept_enabled(enabled and self._busy < self.cfg.threads)

    def enqueue_req(self, conn: Any) -> None:
        """Give *conn* to the threads."""
        self._busy += 1
        super().enqueue_req(conn)
        if self._busy >= self.cfg.threads:
            self.set_accept_enabled(False)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Take *conn* back from the threads."""
        self._busy -= 1
        super().finish_request(conn, fs)

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection and wait for its first byte in the poller."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        connection = _Connection(self, self.cfg, client, address, listener.getsockname())
        connection.timeout = time.monotonic() + HEAD_TIMEOUT
        self.pending_conns.append(connection)
        readable = partial(self.on_pending_socket_readable, connection)
        self.poller.register(client, gthread.selectors.EVENT_READ, readable)

    def handle(self, conn: Any) -> Any:
        """Serve what has begun to arrive on *conn*, in a thread of the pool."""
        self._heads[conn] = time.monotonic() + HEAD_TIMEOUT
        try:
            return super().handle(conn)
        finally:
            self._heads.pop(conn, None)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Serve a request whose head has been read."""
        self._heads.pop(conn, None)
        conn.sock.settimeout(IDLE_TIMEOUT)
        try:
            return super().handle_request(req, conn)
        except TimeoutError:
            # A stalled client is gone as far as anybody here is concerned, and no news.
            raise ConnectionResetError(errno.ECONNRESET, "the client stalled") from None

    def handle_http2(self, conn: Any) -> Any:
        """Serve an HTTP/2 connection, which has deadlines of its own."""
        self._heads.pop(conn, None)
        return super().handle_http2(conn)

    def linger(self, client: socket.socket) -> None:
        """Close *client* as RFC 9112 section 9.6 says, without waiting for it."""
        try:
            client.shutdown(socket.SHUT_WR)
            client.setblocking(False)
            if len(self._lingering) >= self.worker_connections:
                raise OSError("too many lingering connections")
            self.poller.register(client, gthread.selectors.EVENT_READ, partial(self._drain, client))
        except (OSError, ValueError, KeyError):
            util.close(client)
            return
        self._lingering[client] = (time.monotonic() + LINGER, [0])

    def _drain(self, client: socket.socket, _fileobj: object) -> None:
        drained = self._lingering[client][1]
        try:
            data = client.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        drained[0] += len(data)
        if not data or drained[0] > MOST_DRAINED:
            self._end(client)

    def _end(self, client: socket.socket) -> None:
        del self._lingering[client]
        try:
            self.poller.unregister(client)
        except (OSError, KeyError, ValueError):
            pass
        util.close(client)

    def murder_pending(self) -> None:
        """Close what has waited too long; called by the loop, at least once a second."""
        super().murder_pending()
        now = time.monotonic()
        for client, (until, _) in list(self._lingering.items()):
            if until > now:
                break  # they are in the order of their deadlines
            self._end(client)
        for connection, until in list(self._heads.items()):
            if until < now:
                try:
                    connection.sock.shutdown(socket.SHUT_RDWR)  # ends the read in its thread
                except OSError:
                    pass

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        for connection in self.pending_conns:
            connection.timeout = min(connection.timeout, deadline)
