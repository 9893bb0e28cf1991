"""The main thread of a GateWorker: its loop, accepting, lingering closes, and the stop.

Theory of operation
-------------------

The loop

- One selector reports the listeners, the lingering connections, HTTP/2 connections, and a pipe by
  which other threads have the loop call something (:meth:`LoopWorker.defer`). All that a loop has
  of its own is changed by the main thread only. It never blocks on a client.
- HTTP/1.1 connections are not the loop's: see ``gunicorn_threads``.

Accepting

- A worker whose threads are all busy leaves new connections to the other workers, for :data:`TURN`
  seconds: after that all workers are busy, and it accepts them, or clients with persistent
  connections would keep all others out. A connection that it has just accepted counts as a busy
  thread (:class:`~wsgigate.servers.gunicorn_threads.NewConnections`): otherwise the worker that
  wakes first would accept a burst of connections alone, before a thread has looked at them, and
  keep them for as long as they persist.
- At ``worker_connections`` the worker closes the connection that has been silent for longest. Out
  of file descriptors it pauses accepting for :data:`REST` seconds.

The stop

- A stopping worker closes its listeners first: the kernel completes handshakes for as long as any
  process has the listener open, and such a connection would hang and be reset at exit. While the
  master listens (reload, ``max_requests``), the backlog belongs to the other workers. When the
  master has closed its copies, the last worker to close one would reset the backlog, so each worker
  accepts it first.
- Idle connections then end within :data:`STOP_LINGER` seconds, HTTP/2 clients get GOAWAY, and the
  application is notified by its ``stopping`` method. Threads are daemons: a worker that must exit
  at once does so, whatever they wait for.

Lingering close

A connection whose last response was sent is half-closed, and what the client still sends is read
and discarded (RFC 9112 section 9.6): closing at once would reset the connection, and the client
would lose the response. Here the poller does this, as a waiting accept loop would block the worker.
``_lingering`` is ordered by deadline, so that expiry stops at the first one that is not due.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.workers.base import Worker

from wsgigate.http.problem import Problem

__all__ = ["LOOK", "STOP_LINGER", "LoopWorker", "nothing"]


STOP_LINGER = 2.0
"""Seconds for which a stopping worker keeps idle connections: a request may be on its way."""

REST = 1.0
"""Seconds without accepting after the system ran out of file descriptors or memory."""

LOOK = 0.25
"""Seconds between two scans for expired connections: each scan visits every connection."""

TURN = 0.02
"""Seconds for which a new connection is left to the other workers while all threads are busy."""

MOST_DRAINED = 64 << 20
"""Bytes read and discarded from a client that goes on sending a rejected body.

Most clients send the whole body before they read the response. Closing earlier resets the
connection, and the response is lost: the client sees a broken pipe instead of the 413.
"""

LONGEST = 30.0
"""Seconds for which a client may go on sending, in all."""

_BROKEN = (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK)

_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class LoopWorker(Worker):  # type: ignore[misc]
    """A gunicorn worker whose main thread accepts connections and serves none.

    :cvar linger_timeout: Seconds for a client to close a half-closed connection, or to send more
        data, which is discarded.
    """

    alive: bool
    cfg: Any
    log: Any
    sockets: list[Any]
    ppid: int
    linger_timeout = 2.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.worker_connections = int(self.cfg.worker_connections)
        self._calls: deque[Callable[[], object]] = deque()
        self._accepting = False
        self._rests_until = 0.0
        self._untaken_since: float | None = None  # since when a connection waits in the backlog
        # By socket: the deadline for more data, the deadline in all, the bytes discarded. Ordered
        # by the first, as each that is renewed is moved to the end.
        self._lingering: dict[socket.socket, tuple[float, float, int]] = {}

    # What a subclass decides.

    def opened(self, client: socket.socket, address: Any, listener: Any) -> None:
        """Take over a connection that was accepted."""
        raise NotImplementedError

    def connections(self) -> int:
        """Return the number of connections that are open."""
        return len(self._lingering)

    def is_crowded(self) -> bool:
        """Return whether every thread is busy while other workers may have a free one."""
        raise NotImplementedError

    def pause(self) -> float:
        """Return how many seconds the loop may wait for an event."""
        return LOOK

    def turn(self) -> float:
        """Return how many seconds the loop may wait until it looks whether it can accept again."""
        return TURN

    def make_room(self) -> None:
        """Close the connection that has been silent for longest, if any is idle."""
        raise NotImplementedError

    def expire(self, now: float) -> None:
        """Close the connections whose time is over."""
        self.end_lingering(now)

    def begin_stop(self, deadline: float) -> None:
        """Have idle connections end by *deadline*; called once."""
        for client, (until, longest, drained) in self._lingering.items():
            self._lingering[client] = (min(until, deadline), min(longest, deadline), drained)

    def end(self) -> None:
        """Close all connections that are left."""

    def release(self, conn: Any) -> None:
        """Close *conn*, which is open, in steps; runs in the loop."""
        raise NotImplementedError

    def abort(self, conn: Any) -> None:
        """Close *conn*, which is open, at once."""
        raise NotImplementedError

    def refusal(
        self, problem: Problem, reason: str, client: Any, method: str = "", target: str = ""
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the status, fields and body of the response to a request that is rejected."""
        raise NotImplementedError

    # The loop.

    def init_process(self) -> None:
        """Load the app and serve it."""
        self.prepare()
        super().init_process()

    def prepare(self) -> None:
        """Make what belongs to this process."""
        self.poller = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
            os.set_inheritable(end, False)
        self.poller.register(self._wake_read, selectors.EVENT_READ, self._run_deferred)

    def defer(self, call: Callable[..., object], *arguments: Any) -> None:
        """Have the loop call *call*; for other threads and signal handlers."""
        self._calls.append(partial(call, *arguments) if arguments else call)
        try:
            os.write(self._wake_write, b"!")
        except OSError:  # the pipe is full: the loop is about to read it; or the loop has ended
            pass

    def _run_deferred(self, _pipe: object) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
        for _ in range(len(self._calls)):  # what these add has its turn after other events
            self._calls.popleft()()
        if self._calls:
            self.defer(nothing)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to stop."""
        if self.alive:
            self.alive = False
            self.defer(nothing)

    def run(self) -> None:
        """Accept connections until a signal, or the end of the master, stops the worker."""
        for listener in self.sockets:
            listener.setblocking(False)
        while self.alive:
            self.notify()
            crowded = self.is_crowded()
            now = time.monotonic()
            room = self.connections() < self.worker_connections
            self.accept_while(room and not crowded and now >= self._rests_until)
            # a thread that becomes free does not wake the loop
            self.dispatch(self.turn() if room and not self._accepting else self.pause())
            if crowded:
                self._take_turn()
            else:
                self._untaken_since = None
            if not self._has_master():
                break
            self.expire(time.monotonic())
        self._stop()

    def dispatch(self, seconds: float) -> None:
        """Wait up to *seconds* for events of sockets, and for what was deferred; handle them."""
        for key, _ in self.poller.select(seconds):
            key.data(key.fileobj)

    def _has_master(self) -> bool:
        if self.ppid == os.getppid():
            return True
        self.log.info("Parent changed, shutting down: %s", self)
        return False

    def _stop(self) -> None:
        self.accept_while(False)
        self._stop_listening()
        began = time.monotonic()
        self.begin_stop(began + STOP_LINGER)
        stopping = getattr(self.wsgi, "stopping", None)
        if callable(stopping):
            stopping()
        while self.connections() and time.monotonic() - began <= self.cfg.graceful_timeout:
            self.notify()
            self.dispatch(LOOK)
            self.expire(time.monotonic())
        self.end()
        for client in list(self._lingering):
            self._end_lingering(client)

    # Accepting.

    def accept_while(self, wanted: bool) -> None:
        """Watch the listeners, or stop watching them."""
        if wanted == self._accepting:
            return
        for listener in self.sockets:
            if wanted:
                self.poller.register(listener, selectors.EVENT_READ, self._accept_unless_crowded)
            else:
                self.poller.unregister(listener)
        self._accepting = wanted

    def _accept_unless_crowded(self, listener: Any) -> None:
        if self.is_crowded():
            self.accept_while(False)
        elif self.alive:  # else _stop_listening() decides which worker accepts it
            self._accept(listener)

    def _accept(self, listener: Any) -> bool:
        """Accept a connection; return whether there was one."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in _BROKEN:
                raise
            if error.errno in _SHORT:
                self.log.warning("Accepting paused for %g s: %s", REST, error)
                self._rests_until = time.monotonic() + REST
                self.accept_while(False)
                self.make_room()
            return False
        self.opened(client, address, listener)
        if self.connections() >= self.worker_connections and not self.end_oldest_lingering():
            self.make_room()
        return True

    def _take_turn(self) -> None:
        """Accept what no other worker has accepted for :data:`TURN` seconds: all are busy.

        Persistent connections must not keep other clients from connecting.
        """
        now = time.monotonic()
        if not self.alive or not self.is_crowded() or not self._has_backlog():
            self._untaken_since = None
        elif self._untaken_since is None:
            self._untaken_since = now
        elif now - self._untaken_since >= TURN and self.connections() < self.worker_connections:
            self._untaken_since = None
            for listener in self.sockets:
                for _ in range(self.cfg.threads):
                    if not self._accept(listener):
                        break

    def _has_backlog(self) -> bool:
        """Return whether a connection waits to be accepted."""
        poll = select.poll()
        for listener in self.sockets:
            poll.register(listener.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _stop_listening(self) -> None:
        """Close this process's listeners: the kernel accepts for as long as one is open.

        A connection accepted for a worker that ends would hang, and be reset when it exits.

        While the master listens, on SIGHUP or when a worker has served ``max_requests``, the
        connections in the backlog belong to the other workers, which are not ending. When the
        gateway stops, the master has closed its listeners before it signals the workers. Closing
        the last copy of a listener resets its backlog, so the worker first accepts the backlog, and
        serves it with ``Connection: close``.
        """
        for listener in self.sockets:
            if not self._master_has(listener):
                while self.connections() < self.worker_connections and self._accept(listener):
                    pass
            listener.close()

    def _master_has(self, listener: Any) -> bool:
        """Return whether the master has *listener* open; False where /proc does not show it."""
        try:
            wanted = f"socket:[{os.fstat(listener.fileno()).st_ino}]"
            folder = f"/proc/{self.ppid}/fd/"
            return self.ppid == os.getppid() and any(
                _link(folder + number) == wanted for number in os.listdir(folder)
            )
        except OSError:
            return False

    # Lingering close.

    def linger(self, client: socket.socket) -> None:
        """Close *client* in steps (RFC 9112 section 9.6), without blocking.

        It counts as a connection until then: a stopping worker that exited earlier could lose the
        end of the response.
        """
        try:
            client.setblocking(False)
            if isinstance(client, ssl.SSLSocket):
                _send_close_notify(client)
            client.shutdown(socket.SHUT_WR)
            self.poller.register(client, selectors.EVENT_READ, self._drain)
        except (OSError, ValueError, KeyError):
            util.close(client)
            return
        now = time.monotonic()
        longest = LONGEST if self.alive else self.linger_timeout
        self._lingering[client] = (now + self.linger_timeout, now + longest, 0)

    def _drain(self, client: Any) -> None:
        if client not in self._lingering:
            return
        try:
            data = socket.socket.recv(client, 65536)  # raw bytes of TLS, too: nothing decrypts them
        except BlockingIOError:
            return
        except OSError:
            data = b""
        _, longest, drained = self._lingering.pop(client)
        now = time.monotonic()
        drained += len(data)
        # re-inserted at the end, which keeps the table ordered by deadline
        self._lingering[client] = (min(now + self.linger_timeout, longest), longest, drained)
        if not data or drained > MOST_DRAINED or now >= longest:
            self._end_lingering(client)

    def _end_lingering(self, client: socket.socket) -> None:
        del self._lingering[client]
        try:
            self.poller.unregister(client)
        except (OSError, KeyError, ValueError):
            pass
        util.close(client)

    def end_lingering(self, now: float) -> None:
        """Close the lingering connections that are due."""
        for client, (until, *_) in list(self._lingering.items()):
            if until > now:
                break
            self._end_lingering(client)

    def end_oldest_lingering(self) -> bool:
        """Close the lingering connection that is due first; return whether there was one."""
        for client in self._lingering:
            self._end_lingering(client)
            return True
        return False


def _send_close_notify(client: ssl.SSLSocket) -> None:
    """Send the TLS close_notify alert (RFC 8446 section 6.1) without blocking."""
    try:
        client.unwrap()
    except (OSError, ValueError):
        pass


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # the master has just closed it
        return ""


def nothing() -> None:
    """Do nothing: deferring this wakes the loop, which then looks at what has changed."""
