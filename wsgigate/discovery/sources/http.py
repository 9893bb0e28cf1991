"""HTTP client of the sources: one response after a long poll, or an endless stream of lines.

A source mostly waits. Every wait therefore ends soon after the thread is stopped, TCP keepalive
detects dead connections, and the size of every response is bounded.
"""

from __future__ import annotations

import http.client
import io
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from wsgigate.client.tls import context_for
from wsgigate.discovery.sources import SourceError
from wsgigate.runtime.clocks import real

__all__ = ["Answer", "ApiClient", "Lines", "read_json", "refused"]


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


_LOOK_UP = 0.5
"""Seconds after which a wait checks whether the thread is stopped."""

_CONNECT = 5.0

_ANSWER = 10.0

_MOST_BYTES = 32 << 20

_MOST_LINE = 8 << 20

_ALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class Answer(NamedTuple):
    """A response of any status; the names of its header fields are in lower case."""

    status: int
    fields: Mapping[str, str]
    body: bytes


class _StoppableReader(io.RawIOBase):
    """Reads from a socket until a deadline, or until the thread is stopped."""

    def __init__(self, sock: socket.socket, stopping: threading.Event) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)  # http.client may close its own
        self._stopping = stopping
        self.until = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stopping.is_set():
                raise SourceError("it was stopped")
            left = self.until - real()
            if left <= 0:
                raise TimeoutError
            self._sock.settimeout(min(left, _LOOK_UP))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                pass

    def close(self) -> None:
        self._file.close()
        super().close()


class _SocketLike:
    """The one method of a socket that ``http.client`` uses to read a response."""

    def __init__(self, reader: _StoppableReader) -> None:
        self._reader = reader

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._reader)


class Lines:
    """The lines of a streamed response."""

    def __init__(self, response: http.client.HTTPResponse, reader: _StoppableReader) -> None:
        self._response = response
        self._reader = reader

    def next(self, within: float) -> bytes | None:
        """Return the next line, ``None`` at the end.

        :param within: The most seconds to wait for it.
        :raises SourceError: The line does not arrive in time, or is too long.
        """
        self._reader.until = real() + within
        with _source_errors():
            line = self._response.readline(_MOST_LINE)
        if len(line) >= _MOST_LINE:
            raise SourceError("a line of the response is too long")
        return line or None


class ApiClient:
    """An HTTP client for one server: a new connection each time, no redirects, no proxy.

    :param url: ``http://HOST[:PORT]`` or ``https://HOST[:PORT]``.
    :param ca: A file of trusted certificate authorities. Default: those of ``requests``.
    """

    def __init__(self, url: str, *, ca: str | None = None) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._ca = ca

    def get(
        self,
        target: str,
        stopping: threading.Event,
        *,
        fields: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> Answer:
        """Send a GET request and return the response.

        :param wait: Seconds of the long poll that *target* requests; extends the timeout.
        :raises SourceError: There is no valid response.
        """
        with _source_errors(), self._response(target, stopping, fields, wait) as (response, _):
            body = response.read(_MOST_BYTES + 1)
            if len(body) > _MOST_BYTES:
                raise SourceError("the response is too long")
            named = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, named, body)

    @contextmanager
    def lines(
        self,
        target: str,
        stopping: threading.Event,
        *,
        fields: Mapping[str, str] | None = None,
    ) -> Iterator[tuple[int, Lines]]:
        """Send a GET request; yield the status of the response, and its lines as they arrive.

        :raises SourceError: There is no valid response.
        """
        with _source_errors(), self._response(target, stopping, fields, 0.0) as (response, reader):
            yield response.status, Lines(response, reader)

    @contextmanager
    def _response(
        self,
        target: str,
        stopping: threading.Event,
        fields: Mapping[str, str] | None,
        wait: float,
    ) -> Iterator[tuple[http.client.HTTPResponse, _StoppableReader]]:
        sock = self._connect()
        reader = _StoppableReader(sock, stopping)
        response = http.client.HTTPResponse(_SocketLike(reader), method="GET")  # type: ignore[arg-type]
        try:
            reader.until = real() + wait + _ANSWER
            host = f"[{self._host}]" if ":" in self._host else self._host
            head = {
                "Host": f"{host}:{self._port}",
                "User-Agent": "wsgigate",
                "Accept": "application/json",
                "Connection": "close",
                **(fields or {}),
            }
            text = "".join(f"{name}: {value}\r\n" for name, value in head.items())
            sock.sendall(f"GET {target} HTTP/1.1\r\n{text}\r\n".encode("latin-1"))
            response.begin()
            yield response, reader
        finally:
            response.close()
            reader.close()
            sock.close()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection((self._host, self._port), _CONNECT)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _ALIVE:
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            if not self._secure:
                return sock
            try:
                context = context_for(self._ca or True)
            except OSError as error:
                raise SourceError("the file of certificate authorities cannot be used") from error
            return context.wrap_socket(sock, server_hostname=self._host)
        except BaseException:
            sock.close()
            raise


_REASONS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((TimeoutError,), "there was no answer in time"),
    ((socket.gaierror,), "its host name cannot be resolved"),
    ((ssl.SSLCertVerificationError,), "its certificate cannot be verified"),
    ((ssl.SSLError,), "TLS failed"),
    ((ConnectionRefusedError,), "the connection was refused"),
    ((http.client.HTTPException, ValueError), "its answer is not valid HTTP"),
    ((OSError,), "the connection failed"),
)


@contextmanager
def _source_errors() -> Iterator[None]:
    """Raise network and protocol errors as :class:`SourceError`, without the name of a host."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = next(reason for kinds, reason in _REASONS if isinstance(error, kinds))
        raise SourceError(reason) from error
