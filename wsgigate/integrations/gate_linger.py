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

MOST_DRAINED = 64 << 20
"""Bytes that are read, and thrown away, of a client that goes on sending what was refused.

Most clients send a body as a whole before they read the response. Closing meanwhile resets the
connection, and the response is lost: they see a broken pipe instead of the 413.
"""

LONGEST = 30.0
"""Seconds for which that may last in all."""


class LingeringWorker(gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker, whose last word to a client does not hold up its accept loop.

    :cvar linger_timeout: Seconds for a client to close a connection that was answered, or to send
        more of what is thrown away.
    """

    alive: bool
    linger_timeout = 2.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lingering: dict[socket.socket, tuple[float, float, int]] = {}
        # until when each may be silent, and go on sending, and what it has sent

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
        now = time.monotonic()
        longest = LONGEST if self.alive else self.linger_timeout
        self._lingering[client] = (now + self.linger_timeout, now + longest, 0)

    def _drain(self, client: socket.socket, _fileobj: object) -> None:
        if client not in self._lingering:
            return
        try:
            data = socket.socket.recv(client, 65536)  # of TLS as well: nobody is to understand it
        except BlockingIOError:
            return
        except OSError:
            data = b""
        _, longest, drained = self._lingering.pop(client)
        now = time.monotonic()
        drained += len(data)
        # the last of the table, which is in the order of these deadlines
        self._lingering[client] = (min(now + self.linger_timeout, longest), longest, drained)
        if not data or drained > MOST_DRAINED or now >= longest:
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
        for client, (until, *_) in list(self._lingering.items()):
            if until > now:
                break
            self._end(client)

    def hurry_lingering(self, deadline: float) -> None:
        """Close all that linger by *deadline* at the latest."""
        for client, (until, longest, drained) in self._lingering.items():
            self._lingering[client] = (min(until, deadline), min(longest, deadline), drained)

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
