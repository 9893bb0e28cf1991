"""A GateWorker without a master and without its loop, and clients that are connected to it."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from typing import Any

from gunicorn.config import Config

from wsgigate.servers.gunicorn_worker import GateWorker

KEPT = 5
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Log:
    """gunicorn's log, which keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.accesses: list[tuple[Any, ...]] = []

    def _record(self, text: str, *arguments: object) -> None:
        self.lines.append(text % arguments if arguments else text)

    exception = error = warning = info = _record

    def debug(self, text: str, *arguments: object) -> None:
        pass

    def access(self, *what: Any) -> None:
        self.accesses.append(what)


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


class Gate:
    """A worker, and clients that are connected to it."""

    def __init__(
        self, app: Any = hello, kind: type[GateWorker] = GateWorker, **settings: Any
    ) -> None:
        cfg = Config()
        for name, value in {"threads": 4, "keepalive": KEPT, **settings}.items():
            cfg.set(name, value)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.log = Log()
        self.worker = kind(1, 1, [self.listener], None, 30, cfg, self.log)
        self.worker.prepare()
        self.worker.wsgi = app
        self.worker.tpool.start = lambda: None  # the test is the only thread
        self.clients: list[socket.socket] = []

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), timeout=20)
        self.clients.append(client)
        self.worker.opened(*self.listener.accept(), self.listener)
        return client

    def step(self) -> None:
        self.worker.serve_next()

    def loop(self) -> None:
        """Have the loop do what was deferred to it."""
        self.worker.dispatch(0)

    def ask(self, data: bytes = GET, client: socket.socket | None = None) -> bytes:
        client = client or self.connect()
        client.sendall(data)
        self.step()
        return client.recv(1 << 16)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.worker.end()
        self.worker.end_lingering(math.inf)
        self.worker.poller.close()
        self.worker.tmp.close()
        self.listener.close()


Make = Callable[..., Gate]
