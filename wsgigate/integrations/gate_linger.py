"""Connections that were answered for the last time, closed without anybody waiting for them."""

from __future__ import annotations

import socket
import ssl
import time
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.workers import gthread

__all__ = ["LingeringWorker"]

MOST_DRAINED = 65536


class LingeringWorker(gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker, whose last word to a client does not hold up its accept loop.

    :cvar linger_timeout: Seconds for a client to close a connection that was answered.
    """

    linger_timeout = 2.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lingering: dict[socket.socket, tuple[float, list[int]]] = {}

    def linger(self, client: socket.socket) -> None:
        """Close *client* as RFC 9112 section 9.6 says, without waiting for it.

        A stopping worker waits for it as for a request, or what was sent last could be lost.
        """
        try:
            client.setblocking(False)
            if isinstance(client, ssl.SSLSocket):
                _say_goodbye(client)
            client.shutdown(socket.SHUT_WR)
            self.poller.register(client, gthread.selectors.EVENT_READ, partial(self._drain, client))
        except (OSError, ValueError, KeyError):
            util.close(client)
            return
        self.nr_conns += 1
        self._lingering[client] = (time.monotonic() + self.linger_timeout, [0])

    def _drain(self, client: socket.socket, _fileobj: object) -> None:
        if client not in self._lingering:
            return
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
        self.nr_conns -= 1
        try:
            self.poller.unregister(client)
        except (OSError, KeyError, ValueError):
            pass
        util.close(client)

    def end_lingering(self, now: float) -> None:
        """Close those whose clients have taken too long."""
        for client, (until, _) in list(self._lingering.items()):
            if until > now:
                break  # they are in the order of their deadlines
            self._end(client)

    def end_oldest_lingering(self) -> bool:
        """Close the one that has lingered for longest; return whether there was one."""
        for client in self._lingering:
            self._end(client)
            return True
        return False


def _say_goodbye(client: ssl.SSLSocket) -> None:
    """Tell the client that nothing was cut off (RFC 8446 section 6.1) without waiting."""
    try:
        client.unwrap()
    except (OSError, ValueError):
        pass
