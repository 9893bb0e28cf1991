"""Detection of client disconnects: frees the upstream connection while an instance still works.

Theory of operation. A WSGI server notices that its client has disconnected only when it writes to
it, too late for a thread that waits for an instance. So while a thread waits, one background thread
polls the sockets of all waiting clients every 0.25 s. When a client has disconnected, that thread
shuts the upstream socket down; the waiting thread wakes with an error and finds ``gone`` set.

Over HTTP/2, GateWorker reads the connection all the time and reports at once that a client has
cancelled a request or has disconnected.

Rules that must hold:

- Only the socket that serves this client's request may be shut down. The socket is cleared, under
  the lock of its :class:`ClientWatch`, before its connection returns to the pool; a late shutdown
  would break another client's request.
- The polling thread shuts a socket down and never closes it: closing would free the file
  descriptor while the waiting thread uses it, and the kernel could reuse the number.
- A disconnect that precedes the upstream socket is not lost: ``set_upstream`` checks ``gone`` under
  the same lock and shuts the new socket down.
- A check may poll the file descriptor of a client whose request has ended meanwhile, and which
  belongs to another socket by now. That is harmless, because closing a watch clears its upstream
  socket before the server can close the client's.

Limits: the server must hand out the client's socket (gunicorn and werkzeug do), and the system
must have ``POLLRDHUP`` (Linux); elsewhere no disconnect is detected. Data that a client sends
ahead, such as its next request, is not a disconnect; closing its sending side is, as for nginx.
"""

from __future__ import annotations

import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from wsgiref.types import WSGIEnvironment

from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import CLIENT_STREAM
from wsgigate.runtime import fork

__all__ = [
    "CLIENT_LEFT",
    "TICK",
    "UNWATCHED",
    "ClientWatch",
    "Disconnects",
    "client_socket",
    "shut",
]


TICK = 0.25
"""Seconds between two checks."""

_HUNG_UP: int = getattr(select, "POLLRDHUP", 0)

_GONE = _HUNG_UP | select.POLLHUP | select.POLLERR | select.POLLNVAL


CLIENT_LEFT = Problem(499)
"""Not sent, only logged; nginx uses the same status."""


class ClientWatch:
    """One client under watch, and the upstream socket to shut down when it disconnects.

    :ivar gone: Whether the client has disconnected.
    """

    __slots__ = ("_close", "_lock", "_upstream", "client", "gone")

    def __init__(
        self, client: socket.socket | None, close: Callable[[ClientWatch], object]
    ) -> None:
        self.client = client
        self.gone = False
        self._close = close
        self._upstream: socket.socket | None = None
        self._lock = threading.Lock()

    def set_upstream(self, upstream: socket.socket | None) -> bool:
        """Set the socket that serves the request; ``None`` before it may serve another.

        :returns: ``False`` if the client has disconnected.
        """
        with self._lock:
            self._upstream = upstream
            if self.gone:
                shut(upstream)
            return not self.gone

    def disconnected(self) -> None:
        """Record the disconnect and shut the upstream socket down."""
        with self._lock:
            self.gone = True
            shut(self._upstream)

    def close(self) -> None:
        """Stop watching."""
        if self._upstream is not None:  # only the request's own thread sets it
            self.set_upstream(None)
        self._close(self)


class _Unwatched(ClientWatch):
    """The watch of a client whose disconnect cannot be detected."""

    __slots__ = ()

    def __init__(self) -> None:
        # shared by all threads and processes, so it has no lock
        self.client = None
        self.gone = False

    def set_upstream(self, upstream: socket.socket | None) -> bool:
        """Do nothing."""
        return True

    def close(self) -> None:
        """Do nothing."""


UNWATCHED = _Unwatched()


class Disconnects:
    """Watches the clients of one process, in a thread that the first watch starts.

    :param tick: Seconds between two checks.
    """

    def __init__(self, *, tick: float = TICK) -> None:
        self._tick = tick
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Drop the watches: the clients are the parent's."""
        self._watched: set[ClientWatch] = set()
        self._lock = threading.Lock()
        self._started = False

    @property
    def watched(self) -> int:
        """The number of clients that are watched by their sockets."""
        return len(self._watched)

    def watch(self, environ: WSGIEnvironment) -> ClientWatch:
        """Start watching the client of *environ*; the caller closes the watch."""
        stream = environ.get(CLIENT_STREAM)
        if stream is not None:
            watch = ClientWatch(None, lambda watch: stream.forget(watch.disconnected))
            stream.watch(watch.disconnected)
            return watch
        client = client_socket(environ) if _HUNG_UP else None
        if client is None:
            return UNWATCHED
        watch = ClientWatch(client, self._watched.discard)
        if not self._started:
            self._start()
        self._watched.add(watch)
        return watch

    def _start(self) -> None:
        with self._lock:
            if not self._started:
                thread = threading.Thread(
                    target=self._run, name="wsgigate-disconnects", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:
                    return  # no thread available: the next watch tries again
                self._started = True

    def _run(self) -> None:
        while True:
            time.sleep(self._tick)
            self.check()

    def check(self) -> None:
        """Check every client once."""
        poll = _poll()
        clients: dict[int, ClientWatch] = {}
        for watch in self._watched.copy():
            number = watch.client.fileno() if watch.client is not None else -1
            if number >= 0:
                clients[number] = watch
                poll.register(number, _HUNG_UP)
        if not clients:
            return
        for number, events in poll.poll(0):
            if events & _GONE:
                # A request that has ended since is safe: closing its watch cleared the socket.
                clients[number].disconnected()


def client_socket(environ: WSGIEnvironment) -> Any:
    """Return the client's socket if the server hands it out, else ``None``.

    Over HTTP/2 several requests share the socket: see ``CLIENT_STREAM``.
    """
    if environ.get("SERVER_PROTOCOL") not in ("HTTP/1.1", "HTTP/1.0"):
        return None
    return environ.get("gunicorn.socket") or environ.get("werkzeug.socket")


def _poll() -> select.poll:
    """Return a new poll object; the original, as gevent's does not support ``POLLRDHUP``."""
    gevent: Any = sys.modules.get("gevent.monkey")
    made: select.poll = (gevent.get_original("select", "poll") if gevent else select.poll)()
    return made


def shut(upstream: socket.socket | None) -> None:
    """Shut *upstream* down, which wakes the thread that waits for it."""
    if upstream is None:
        return
    try:
        # Not SSLSocket.shutdown(), which drops the TLS object that the other thread reads from.
        socket.socket.shutdown(upstream, socket.SHUT_RDWR)
    except (OSError, TypeError):  # already closed, or TLS within TLS, which is not a socket
        pass
