"""HTTP client of the sources: one response after a long poll, or an endless stream of lines.

A source mostly waits. Every wait therefore ends soon after the thread is stopped, and the size of
every response is bounded; :mod:`wsgigate.client.exchange` has the rules of its exchanges.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from wsgigate.client.exchange import HttpClient, Reply, Stopped, reason_for
from wsgigate.discovery.sources import SourceError
from wsgigate.runtime.tls import context_for

__all__ = ["ApiClient", "ApiResponse", "Lines", "read_json", "refused"]


def read_json(body: bytes) -> object:
    """Parse *body* as JSON.

    :raises SourceError: *body* is not JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SourceError("its answer is not JSON") from error


def refused(status: int) -> SourceError:
    """Return the error for a response whose status is not 200."""
    if status in (401, 403):
        return SourceError(f"it answered {status}: the token is missing or lacks permission")
    return SourceError(f"it answered {status}")


class ApiResponse(NamedTuple):
    """A response of any status; the names of its header fields are in lower case."""

    status: int
    fields: Mapping[str, str]
    body: bytes


class Lines:
    """The lines of a streamed response.

    :param most: The largest number of bytes of a line.
    :ivar status: The status of the response.
    """

    def __init__(self, reply: Reply, most: int) -> None:
        self.status = reply.status
        self._most = most
        self.close = reply.close
        self._reply = reply

    def next(self, within: float) -> bytes | None:
        """Return the next line, ``None`` at the end.

        :param within: The most seconds to wait for it.
        :raises SourceError: The line does not arrive in time, or is too long.
        """
        with _source_errors():
            return self._reply.line(self._most, within)


class ApiClient:
    """An HTTP client for one server: a new connection each time, no redirects, no proxy.

    :param url: ``http://HOST[:PORT]`` or ``https://HOST[:PORT]``.
    :param ca: A file of trusted certificate authorities. Default: those of ``requests``.
    :param timeout: Seconds for a response, besides the time that a long poll waits.
    :param most: The largest number of bytes of a body.
    :param most_line: The largest number of bytes of a line.
    """

    def __init__(
        self,
        url: str,
        *,
        ca: str | None = None,
        timeout: float = 10.0,
        most: int = 32 << 20,
        most_line: int = 8 << 20,
    ) -> None:
        self._client = HttpClient(url, self._context)
        self._ca = ca
        self._timeout = timeout
        self._most = most
        self._most_line = most_line

    def get(
        self,
        target: str,
        stopping: threading.Event,
        *,
        fields: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> ApiResponse:
        """Send a GET request and return the response.

        :param wait: Seconds of the long poll that *target* requests; extends the timeout.
        :raises SourceError: There is no valid response.
        """
        with _source_errors(), self._send(target, stopping, fields, wait) as reply:
            body = reply.body(self._most + 1)
        if len(body) > self._most:
            raise SourceError("the response is too long")
        return ApiResponse(reply.status, reply.fields, body)

    def lines(
        self, target: str, stopping: threading.Event, *, fields: Mapping[str, str] | None = None
    ) -> Lines:
        """Send a GET request and return the lines of the response; the caller closes them.

        :raises SourceError: There is no valid response.
        """
        with _source_errors():
            return Lines(self._send(target, stopping, fields, 0.0), self._most_line)

    def _send(
        self,
        target: str,
        stopping: threading.Event,
        fields: Mapping[str, str] | None,
        wait: float,
    ) -> Reply:
        own = {"User-Agent": "wsgigate", "Accept": "application/json"}
        timeout = wait + self._timeout
        all_fields = {**own, **(fields or {})}
        return self._client.send("GET", target, all_fields, timeout=timeout, stopping=stopping)

    def _context(self) -> ssl.SSLContext:
        """Return a new context for each connection, as the file may be replaced meanwhile."""
        try:
            return context_for(self._ca or True)
        except OSError as error:
            raise SourceError("the file of certificate authorities cannot be used") from error


@contextmanager
def _source_errors() -> Iterator[None]:
    """Raise the errors of a request as :class:`SourceError`, without the name of a host."""
    try:
        yield
    except Stopped:
        raise SourceError("it was stopped") from None
    except (OSError, ValueError) as error:
        raise SourceError(reason_for(error)) from error
