"""Clients that leave while an instance is still at work: its connection is freed at once.

A server written for WSGI learns that its client has left when it writes to it, which is too late
for a thread that waits for an instance. So while one does, its client's socket is looked at a few
times a second; once the client has hung up, the connection to the instance is shut down, and what
waits for it fails.

Looking needs the client's socket, which gunicorn and werkzeug hand out, and ``POLLRDHUP``, which
Linux has; elsewhere nobody is seen leaving. What a client has sent ahead, such as its next request,
does not count as leaving; closing its sending side does, as it does for nginx.

Over HTTP/2 GateWorker reads the connection all the time, and tells at once that a client has
cancelled a request or has left.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from wsgiref.types import WSGIEnvironment

from wsgigate.http.wsgi import CLIENT_STREAM
from wsgigate.runtime import fork

__all__ = ["ClientLeft", "Departure", "Departures", "TICK", "UNSEEN", "client_socket", "shut"]


TICK = 0.25
"""Seconds between two looks."""

_HUNG_UP: int = getattr(select, "POLLRDHUP", 0)

_GONE = _HUNG_UP | select.POLLHUP | select.POLLERR | select.POLLNVAL


class ClientLeft(ConnectionResetError):
    """The client has left, so what was being done for it is not."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the client has left")


class Departure:
    """Whether one client has left, and the socket that it takes along when it does.

    :ivar gone: Whether it has.
    """

    __slots__ = ("_close", "_lock", "_upstream", "client", "gone")

    def __init__(self, client: socket.socket | None, close: Callable[[Departure], object]) -> None:
        self.client = client
        self.gone = False
        self._close = close
        self._upstream: socket.socket | None = None
        self._lock = threading.Lock()

    def set_upstream(self, upstream: socket.socket | None) -> bool:
        """Say which socket the request is served by now; ``None`` before it may serve another.

        :returns: Whether anybody still waits for the answer.
        """
        with self._lock:
            self._upstream = upstream
            if self.gone:
                shut(upstream)
            return not self.gone

    def happened(self) -> None:
        """Take note that the client has left."""
        with self._lock:
            self.gone = True
            shut(self._upstream)

    def close(self) -> None:
        """Stop looking."""
        self.set_upstream(None)
        self._close(self)


class _Unseen(Departure):
    """The departure of a client that nobody can see: it never happens."""

    __slots__ = ()

    def __init__(self) -> None:
        # one for all processes, so without a lock
        self.client = None
        self.gone = False

    def set_upstream(self, upstream: socket.socket | None) -> bool:
        """Do nothing."""
        return True

    def close(self) -> None:
        """Do nothing."""


UNSEEN = _Unseen()


class Departures:
    """Looks after the clients of one process, in a thread that the first of them starts.

    :param tick: Seconds between two looks.
    """

    def __init__(self, *, tick: float = TICK) -> None:
        self._tick = tick
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Watch no client: those of a parent are not its child's."""
        self._watched: dict[int, Departure] = {}
        self._lock = threading.Lock()
        self._pid = 0

    def watch(self, environ: WSGIEnvironment) -> Departure:
        """Return what tells whether the client of *environ* has left; to be closed."""
        stream = environ.get(CLIENT_STREAM)
        if stream is not None:
            departure = Departure(None, lambda departure: stream.forget(departure.happened))
            stream.watch(departure.happened)
            return departure
        client = client_socket(environ) if _HUNG_UP else None
        if client is None:
            return UNSEEN
        departure = Departure(client, self._forget)
        if self._pid != fork.pid:
            self._start()
        self._watched[id(departure)] = departure
        return departure

    def _forget(self, departure: Departure) -> None:
        self._watched.pop(id(departure), None)

    def _start(self) -> None:
        with self._lock:
            if self._pid != fork.pid:
                thread = threading.Thread(target=self._run, name="wsgigate-departures", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return  # no thread is to be had: nobody is seen leaving until one is
                self._pid = fork.pid

    def _run(self) -> None:
        while True:
            time.sleep(self._tick)
            self.look()

    def look(self) -> None:
        """Look at every client once."""
        poll = _poll()
        clients: dict[int, Departure] = {}
        for departure in self._watched.copy().values():
            number = departure.client.fileno() if departure.client is not None else -1
            if number >= 0:
                clients[number] = departure
                poll.register(number, _HUNG_UP)
        if not clients:
            return
        for number, events in poll.poll(0):
            if events & _GONE:
                # What has ended since is out of its own hands: closing took the lock before.
                clients[number].happened()


def client_socket(environ: WSGIEnvironment) -> Any:
    """Return the client's socket where the server hands it out, else ``None``.

    With HTTP/2 it is several requests' own: see ``CLIENT_STREAM``.
    """
    if environ.get("SERVER_PROTOCOL") not in ("HTTP/1.1", "HTTP/1.0"):
        return None
    return environ.get("gunicorn.socket") or environ.get("werkzeug.socket")


def _poll() -> select.poll:
    """Return what looks without waiting; gevent's in its place knows no ``POLLRDHUP``."""
    gevent: Any = sys.modules.get("gevent.monkey")
    made: select.poll = (gevent.get_original("select", "poll") if gevent else select.poll)()
    return made


def shut(upstream: socket.socket | None) -> None:
    """Have whoever waits for something on *upstream* wait no longer."""
    if upstream is None:
        return
    try:
        # Not SSLSocket.shutdown(), which takes the TLS away from under the thread that reads.
        socket.socket.shutdown(upstream, socket.SHUT_RDWR)
    except (OSError, TypeError):  # closed already, or TLS within TLS, which is no socket
        pass
