"""A backend on a real socket with scripted responses: late, truncated, or with a wrong length.

The faults of a proxy are on the wire, where a fake HTTP client does not show them.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import quote

__all__ = ["Backend", "Received", "ScriptedAnswer", "cut", "reply"]


@dataclass
class Received:
    """One request as it arrived over the wire.

    :ivar head: The bytes up to and including the empty line.
    :ivar body: The body, without its framing.
    :ivar complete: Whether the body arrived up to the end that its framing announced.
    """

    head: bytes
    body: bytes = b""
    complete: bool = False
    connection: int = 0
    fields: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        lines = self.head.decode("latin-1").split("\r\n")
        self.line = lines[0]
        self.method, self.target, self.protocol = [*lines[0].split(" "), "", ""][:3]
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                self.fields.append((name, value.strip()))

    def values(self, name: str) -> list[str]:
        """Return the values of every field of that name, in order."""
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def value(self, name: str) -> str | None:
        """Return the value of the field of that name, or None.

        :raises AssertionError: There are several.
        """
        values = self.values(name)
        if len(values) > 1:
            raise AssertionError(f"{name} came {len(values)} times: {values}")
        return values[0] if values else None


ScriptedAnswer: TypeAlias = bytes | Callable[[socket.socket, Received], object]
"""Bytes to send, after which the connection stays open; or a callable that uses the socket. If it
returns ``False``, the connection is closed."""


def reply(
    body: bytes = b"",
    *,
    status: str = "200 OK",
    fields: Iterable[tuple[str, str]] = (),
) -> bytes:
    """Return a well-formed response with a ``Content-Length``."""
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return (
        f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body
    )


def cut(data: bytes) -> ScriptedAnswer:
    """Return a callable that sends *data* and closes the connection."""

    def answer(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(data)
        return False

    return answer


class Backend:
    """A server on loopback; use it as a context manager.

    :param answers: The responses to the first request, the second and so on, on any connection; the
        last one is the response to all further requests.
    :param tls: Wraps each accepted socket, for a backend with TLS.
    :param unix: Path of a socket to listen on, instead of a loopback port.
    :ivar requests: The received requests, in order.
    """

    def __init__(
        self,
        *answers: ScriptedAnswer,
        tls: Callable[[socket.socket], socket.socket] | None = None,
        unix: str | None = None,
    ) -> None:
        self.answers: list[ScriptedAnswer] = list(answers) or [reply(b"ok")]
        self.requests: list[Received] = []
        self._tls = tls
        self._unix = unix
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepted = 0

    def __enter__(self) -> Self:
        self.port = 0
        if self._unix is not None:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(self._unix)
            self._listener.listen()
            self.url = f"http+unix://{quote(self._unix, safe='')}"
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port = self._listener.getsockname()[1]
            self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            still_open = list(self._open)
        for connection in still_open:
            _shut(connection)
        for thread in self._threads:
            thread.join(timeout=30)

    @property
    def connections(self) -> int:
        """The number of connections accepted so far."""
        return self._accepted

    @property
    def open_connections(self) -> int:
        """The number of connections that are open now at this end."""
        with self._changed:
            return len(self._open)

    def wait(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait until *condition* holds; it is called whenever something was received or closed.

        :raises AssertionError: It did not hold within *timeout* seconds.
        """
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise AssertionError("the backend waited in vain")

    def wait_for_requests(self, number: int, timeout: float = 30.0) -> None:
        """Wait until *number* requests have been received, bodies aside."""
        self.wait(lambda: len(self.requests) >= number, timeout)

    def wait_until_closed(self, timeout: float = 30.0) -> None:
        """Wait until every connection has been closed."""
        self.wait(lambda: not self._open, timeout)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(30)
            if self._unix is None:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self._accepted += 1
                self._open.add(connection)
                number = self._accepted
                self._changed.notify_all()
            self._start(self._serve, connection, number)

    def _serve(self, connection: socket.socket, number: int) -> None:
        plain = connection
        try:
            if self._tls is not None:
                connection = self._tls(plain)  # replaces the plain socket
                with self._changed:
                    self._open.discard(plain)
                    self._open.add(connection)
            with connection, connection.makefile("rb") as stream:
                while self._serve_one(connection, stream.readline, stream.read, number):
                    pass
        except (OSError, ValueError):
            pass
        finally:
            plain.close()
            connection.close()
            with self._changed:
                self._open -= {plain, connection}
                self._changed.notify_all()

    def _serve_one(
        self,
        connection: socket.socket,
        readline: Callable[[], bytes],
        read: Callable[[int], bytes],
        number: int,
    ) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = readline()
            if not line:
                return False
            head += line
        request = Received(head, connection=number)
        with self._changed:
            self.requests.append(request)
            answers = self.answers  # a test may replace them while the body is read
            answer = answers[min(len(self.requests), len(answers)) - 1]
            self._changed.notify_all()
        _read_body(request, readline, read)
        with self._changed:
            self._changed.notify_all()
        if isinstance(answer, bytes):
            connection.sendall(answer)
            return True
        return answer(connection, request) is not False


def _read_body(
    request: Received, readline: Callable[[], bytes], read: Callable[[int], bytes]
) -> None:
    coding = request.values("Transfer-Encoding")
    if coding:
        while True:
            size = int(readline().strip() or b"-1", 16)
            if size < 0:
                return
            block = read(size)
            request.body += block
            if len(block) < size or readline() != b"\r\n":
                break
            if size == 0:
                request.complete = True
                return
        return
    length = int((request.values("Content-Length") or ["0"])[0])
    request.body = read(length)
    request.complete = len(request.body) == length


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
