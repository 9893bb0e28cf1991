"""A service that sends events, the second of them when the first has been taken."""

from __future__ import annotations

import socket
import threading

from wsgigate.testing.backend import Received

__all__ = ["TwoEvents"]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


class TwoEvents:
    """An answer of a backend: ``data: 1``, and after ``taken`` is set ``data: 2``, as chunks."""

    def __init__(self) -> None:
        self.taken = threading.Event()

    def __call__(self, connection: socket.socket, _request: Received) -> bool:
        head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"9\r\ndata: 1\n\n\r\n")
        assert self.taken.wait(30)
        connection.sendall(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        return True
