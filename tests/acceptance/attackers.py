"""Clients that hold on to a worker, and apps for them to try it on."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from typing import Any

import requests

from tests.support.sockets import read_to_end

__all__ = [
    "APP",
    "DEFAULTS",
    "HEAD",
    "KINDS",
    "OPTIONS",
    "PLAIN",
    "QUICK",
    "THREADS",
    "Attackers",
    "HeldRequest",
    "get",
]

THREADS = 4
OPTIONS = ("--workers", "1", "--threads", str(THREADS), "--keep-alive", "2")
QUICK = (*OPTIONS, "--worker-class", "served0.Quick")
DEFAULTS = ("--threads", "16", "--worker-class", "wsgigate.servers.gunicorn_worker.GateWorker")
PLAIN = (*OPTIONS, "--worker-class", "gthread", "--graceful-timeout", "1")

APP = """
import sys, time
from wsgigate.servers.gunicorn_worker import GateWorker

class Steady(GateWorker):
    idle_timeout = 3.0

class Patient(GateWorker):
    head_timeout = 60.0

class Late(GateWorker):
    def accept_while(self, wanted):  # all connections stay in the backlog until it stops
        pass

class Quick(GateWorker):
    head_timeout = idle_timeout = linger_timeout = 1.0

def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        try:
            body = environ["wsgi.input"].read()
        except Exception as error:
            sys.stderr.write(f"BROKEN {type(error).__name__}\\n")
            raise
        sys.stderr.write(f"WHOLE {len(body)}\\n")
    if environ["PATH_INFO"] == "/big":
        start_response("200 OK", [("Content-Length", str(1 << 28))])
        return (bytes(1 << 20) for _ in range(1 << 8))
    if environ["PATH_INFO"] == "/one-piece":
        start_response("200 OK", [("Content-Length", str(1 << 25))])
        return [bytes(1 << 25)]
    if environ["PATH_INFO"] == "/exit":
        sys.exit("an application's whim")
    if environ["PATH_INFO"] == "/own-timeout":
        raise TimeoutError("the application's own")
    if environ["QUERY_STRING"]:
        sys.stderr.write("BEGAN\\n")
        time.sleep(float(environ["QUERY_STRING"]))
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

HEAD = b" HTTP/1.1\r\nHost: a\r\n"
KINDS = {
    "one byte": b"G",
    "half a head": b"GET /" + HEAD,
    "half a body": b"POST /" + HEAD + b"Content-Length: 100\r\n\r\nhalf",
    "half a chunk": b"POST /" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\nhalf",
    "half a large body": b"POST /" + HEAD + b"Content-Length: 200000\r\n\r\n" + bytes(70000),
    "a body in drops": b"POST /" + HEAD + b"Content-Length: 100000\r\n\r\n",
    "a head in drops": b"GET /" + HEAD + b"X: ",
    "never reads": b"GET /big" + HEAD + b"\r\n",
    "lingers": b"GET /" + HEAD + b"Connection: close\r\n\r\n",
    "says nothing": b"",
    "keeps its connection and half a head": b"GET /" + HEAD + b"\r\nGET /" + HEAD,
}
DRIPS = {"a body in drops", "a head in drops"}


class Attackers:
    """Clients of one kind; those that send in drops do so in a thread."""

    def __init__(
        self, port: int, kind: str, *, tls: ssl.SSLContext | None = None, count: int = THREADS
    ) -> None:
        self.sockets: list[socket.socket] = []
        self._reads = kind != "never reads"
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", port), timeout=20)
            if kind == "never reads":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            if tls is not None:
                client = tls.wrap_socket(client, server_hostname="127.0.0.1")
            client.sendall(KINDS[kind])
            self.sockets.append(client)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drip)
        if kind in DRIPS:
            self._thread.start()

    def _drip(self) -> None:
        while not self._stop.wait(0.1):
            for client in self.sockets:
                try:
                    client.sendall(b"1")
                except OSError:
                    pass

    def __enter__(self) -> Attackers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for client in self.sockets:
            client.close()

    def are_all_connected(self) -> bool:
        """Return whether the server has closed no connection, and sent nothing."""
        poll = select.poll()
        for client in self.sockets:
            poll.register(client, select.POLLIN)
        return not poll.poll(0)

    def all_let_go(self) -> bool:
        """Wait until the server has closed every connection; what it says before does not count."""
        for client in self.sockets:
            if not self._reads:  # such a client gets a reset, which is seen without reading
                poll = select.poll()
                poll.register(client, 0)
                if not poll.poll(20_000):
                    return False
                continue
            try:
                while client.recv(1 << 20):
                    pass
            except TimeoutError:
                return False
            except OSError:
                pass
        return True


class HeldRequest:
    """A request that the app has begun to serve, and serves until :meth:`finish`."""

    def __init__(self, port: int) -> None:
        self._client = socket.create_connection(("127.0.0.1", port), timeout=20)
        fields = b"Content-Length: 1\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n"
        self._client.sendall(b"POST /" + HEAD + fields)
        assert self._client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"

    def finish(self) -> bytes:
        """Send the rest of the request; return its response."""
        with self._client:
            self._client.sendall(b"x")
            return read_to_end(self._client)


def get(url: str, **options: Any) -> requests.Response:
    return requests.get(url, **{"timeout": 20, **options})
