"""A client's connection to a GateWorker and the client's end of it."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any

from wsgigate.servers.gunicorn_body import Deadlines
from wsgigate.servers.gunicorn_connection import ClientConnection, Request
from wsgigate.servers.http1_request import HeadParser, HeadRules

__all__ = ["MakePeer", "Peer"]


class Peer:
    """Both ends of a connection."""

    def __init__(self, **options: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname(), timeout=20)
            self.sock, address = listener.accept()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.waits: dict[ClientConnection, float] = {}
        self.watched: list[ClientConnection] = []  # connections to be flushed
        rules = options.pop("rules", HeadRules())
        deadlines = Deadlines(
            head=options.pop("head", 10.0),
            idle=options.pop("idle", 10.0),
            rate=options.pop("rate", 500.0),
            keep_alive=5.0,
        )
        template = {"REMOTE_ADDR": address[0]}
        self.ours = ClientConnection(
            self.sock,
            address,
            template,
            HeadParser(rules),
            rules,
            deadlines,
            waits=self.waits,
            watch=self.watched.append,
            **options,
        )

    def say(self, data: bytes) -> Request | None:
        """Send *data*, and have it read once it has arrived."""
        self.client.sendall(data)
        return self.advance()

    def advance(self) -> Request | None:
        assert self.ours.wait(select.POLLIN, 10)
        return self.ours.advance()

    def received(self, size: int) -> bytes:
        with self.client.makefile("rb", buffering=0) as file:
            data = b""
            while len(data) < size and (part := file.read(size - len(data))):
                data += part
            return data


MakePeer = Callable[..., Peer]
