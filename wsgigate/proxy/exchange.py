"""One request over one connection, until the head of its response is in."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable

import requests

from wsgigate.proxy.connection import Connection
from wsgigate.proxy.sending import Upload
from wsgigate.proxy.wire import BLOCK, ResponseReader

__all__ = ["Deadline", "exchange"]

_HEAD_BLOCK = 16384
_SINGLE = 16384
"""Up to this many bytes go out in one piece: every socket's buffer takes them at once."""


class Deadline:
    """Until when the head of the response has to be in, and how long one step may take.

    The time that a body takes on its way is not part of it: once it has been sent, the whole of
    the time is there for the response again.

    :param step: Seconds for each step; no more than for all.
    :param total: Seconds for all of them together.
    """

    __slots__ = ("_clock", "_total", "step", "until")

    def __init__(
        self, step: float, total: float, now: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.step = min(step, total)
        self._total = total
        self._clock = clock
        self.until = now + total

    def left(self) -> float:
        """Return the seconds that the next step has.

        :raises TimeoutError: There are none.
        """
        left = self.until - self._clock()
        if left <= 0:
            raise TimeoutError("the response did not begin in time")
        return min(left, self.step)

    def restart(self) -> None:
        """Count anew, as the body has been sent."""
        self.until = self._clock() + self._total


def exchange(
    connection: Connection,
    head: bytes,
    upload: Upload | None,
    reader: ResponseReader,
    deadline: Deadline,
) -> None:
    """Send a request and read the head of its response into *reader*.

    :raises requests.RequestException: There is none; the connection is to be closed.
    """
    try:
        hung_up = False
        try:
            answered = _send(connection, head, upload, reader, deadline)
        except (BrokenPipeError, ConnectionResetError):
            answered, hung_up = False, True  # it may have answered before it did
        if not answered:
            _read_head(connection, reader, deadline, fresh=_at_once(connection, upload))
        if hung_up:
            reader.keep = False  # whatever the head says
    except TimeoutError as error:
        raise requests.ReadTimeout(error) from error
    except ssl.SSLError as error:
        raise requests.exceptions.SSLError(error) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, requests.RequestException):
            raise
        raise requests.ConnectionError(error) from error


def _at_once(connection: Connection, upload: Upload | None) -> bool:
    """Return whether nothing took any of the time so far: no connecting, and no body."""
    return upload is None and connection.reused


def _read_head(
    connection: Connection, reader: ResponseReader, deadline: Deadline, *, fresh: bool
) -> None:
    """Read until the head is in.

    :param fresh: Whether a step's time is set already and as good as all there: the usual case, in
        which the clock need not be asked.
    """
    while True:
        if not fresh:
            connection.set_timeout(deadline.left())
        fresh = False
        try:
            data = connection.recv(_HEAD_BLOCK)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            data = b""
        if not data:
            if reader.begun:
                reader.feed_end()
            raise http.client.RemoteDisconnected("Remote end closed connection without response")
        if reader.feed_head(data):
            return


def _send(
    connection: Connection,
    head: bytes,
    upload: Upload | None,
    reader: ResponseReader,
    deadline: Deadline,
) -> bool:
    """Send it all; tell whether the response was there before the end of that."""
    connection.set_timeout(deadline.step if _at_once(connection, upload) else deadline.left())
    if upload is None:
        connection.send_all(head)
        return False
    block = upload.first
    if len(head) + len(block) <= _SINGLE:
        connection.send_all(head + block)
    else:
        connection.send_all(head)
        if _push(connection, block, reader, deadline):
            return True
    if upload.ended:
        return False
    for block in upload.rest():
        if _push(connection, block, reader, deadline):
            return True
    deadline.restart()
    return False


def _push(connection: Connection, block: bytes, reader: ResponseReader, deadline: Deadline) -> bool:
    """Send a block; stop at a response, which then is the last on this connection."""
    view = memoryview(block)
    while view:
        answered, writable = connection.wait(deadline.step)
        if answered:
            data = connection.recv_now(BLOCK)
            if data is not None:
                if not data:
                    if reader.begun:
                        reader.feed_end()
                    raise http.client.RemoteDisconnected("closed while the body was being sent")
                if reader.feed_head(data):
                    reader.keep = False
                    return True
        elif not writable:
            raise TimeoutError("the body was not taken in time")
        if writable:
            view = view[connection.send_now(view, deadline.step) :]
    return False
