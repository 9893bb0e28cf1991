"""Connections that wait for their clients, under clients of all kinds at once."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.certificates import make_certificate
from tests.support.servers import Served

Serve = Callable[..., Served]

APP = """
from wsgigate.servers.gunicorn_worker import GateWorker

class Brief(GateWorker):
    head_timeout = idle_timeout = 10.0
    linger_timeout = 0.5

def app(environ, start_response):
    told = environ["QUERY_STRING"].encode()
    start_response("200 OK", [("Content-Length", str(len(told)))])
    return [told]
"""
OPTIONS = ("--worker-class", "served0.Brief", "--threads", "3", "--keep-alive", "1")
EACH = 40


class Client:
    """A client that asks over one connection, and opens another when that was closed between."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._port = port
        self._tls = tls
        self._sock: socket.socket | None = None

    def open(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        return self._tls.wrap_socket(client, server_hostname="127.0.0.1") if self._tls else client

    def ask(self, names: list[str], fields: str = "") -> None:
        """Ask for each of the *names* at once; see that the answers are theirs, in order."""
        request = "".join(f"GET /?{name} HTTP/1.1\r\nHost: a\r\n{fields}\r\n" for name in names)
        for fresh in (False, True, True, True):  # at its limit it closes those that are silent
            if self._sock is None or fresh:
                self.close()
                self._sock = self.open()
            try:
                self._sock.sendall(request.encode())
                if self._answers(self._sock, names):
                    return
            except (ConnectionResetError, BrokenPipeError):
                pass  # closed while it was idle, as any server may
        raise AssertionError("a connection that was just opened was closed without an answer")

    @staticmethod
    def _answers(sock: socket.socket, names: list[str]) -> bool:
        with sock.makefile("rb") as answers:
            for name in names:
                line = answers.readline()
                if not line and name == names[0]:
                    return False
                assert line == b"HTTP/1.1 200 OK\r\n"
                while (line := answers.readline()) not in (b"\r\n", b""):
                    pass
                assert answers.read(len(name)) == name.encode()
        return True

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def keeps(client: Client, chance: random.Random, name: str) -> None:
    client.ask([name])


def closes(client: Client, chance: random.Random, name: str) -> None:
    client.ask([name], "Connection: close\r\n")
    client.close()


def leaves(client: Client, chance: random.Random, name: str) -> None:
    client.ask([name])
    client.close()


def pipelines(client: Client, chance: random.Random, name: str) -> None:
    client.ask([f"{name}-{number}" for number in range(chance.randrange(2, 8))])


def comes_when_it_is_closed(client: Client, chance: random.Random, name: str) -> None:
    client.ask([name])
    threading.Event().wait(chance.uniform(0.9, 1.6))


def says_nothing(client: Client, chance: random.Random, name: str) -> None:
    with client.open():
        threading.Event().wait(chance.uniform(0, 0.1))


KINDS = [keeps, closes, leaves, pipelines, comes_when_it_is_closed, says_nothing]


def crowd(port: int, tls: ssl.SSLContext | None) -> list[BaseException]:
    """Have clients of all kinds ask at once; return what went wrong."""
    broken: list[BaseException] = []

    def act(kind: Callable[..., None], number: int) -> None:
        client = Client(port, tls)
        chance = random.Random(number)
        try:
            for turn in range(EACH if kind is not comes_when_it_is_closed else 3):
                kind(client, chance, f"{kind.__name__}{number}-{turn}")
        except BaseException as error:
            broken.append(error)
        finally:
            client.close()

    threads = [
        threading.Thread(target=act, args=(kind, number)) for kind in KINDS for number in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return broken


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("secure", [False, True])
def test_every_client_gets_its_own_answers(
    workers: str, secure: bool, serve_app: Serve, tmp_path: Path
) -> None:
    tls = None
    options = [*OPTIONS, "--workers", workers, "--worker-connections", "24"]
    if secure:
        both = str(make_certificate(tmp_path))
        tls = ssl.create_default_context(cafile=both)
        options += ["--certfile", both, "--keyfile", both]
    server = serve_app(APP, *options)
    before = server.workers(int(workers))
    assert crowd(server.port, tls) == []
    assert server.workers() == before
    assert "Traceback" not in server.log
    assert "Error" not in server.log
