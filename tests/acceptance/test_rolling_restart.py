"""A gateway that stops: it accepts nothing that it will not serve, and loses no request."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.attackers import APP, HEAD, OPTIONS, HeldRequest, get
from tests.acceptance.files import SERVICE
from tests.support.servers import Served, Servers, home
from tests.support.sockets import read_to_end
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, Received, reply

Serve = Callable[..., Any]
GATE = (*OPTIONS, "--worker-class", "wsgigate.servers.gunicorn_worker.GateWorker")


def test_a_stopping_gateway_refuses_new_connections_at_once(serve_app: Serve) -> None:
    """A kernel accepts for any open listener: those connections would hang, then be reset."""
    server = serve_app(APP, *GATE, "--workers", "3")
    request = HeldRequest(server.port)
    server.signal(signal.SIGTERM)
    until(server.refuses)
    assert is_whole(request.finish())
    assert server.process.wait(25) == 0


def is_whole(response: bytes) -> bool:
    """Return whether *response* is the app's, from its first line to its last byte."""
    return response.startswith(b"HTTP/1.1 200") and response.endswith(b"\r\n\r\nok")


def is_stopped(process: int) -> bool:
    """Return whether a SIGSTOP has stopped every thread of *process*."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return all("\nState:\tT" in (thread / "status").read_text() for thread in threads)


def is_to_end(process: int) -> bool:
    """Return whether a SIGTERM is pending for *process*."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    [pending] = [line.split()[1] for line in lines if line.startswith("ShdPnd:")]
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


def clients_of(port: int, stack: ExitStack) -> list[socket.socket]:
    """Return 20 connections that have sent a request each."""
    clients = []
    for _ in range(20):
        client = socket.create_connection(("127.0.0.1", port), timeout=20)
        clients.append(stack.enter_context(client))
        client.sendall(b"GET /" + HEAD + b"\r\n")
    return clients


@pytest.mark.parametrize("workers", [1, 3])
def test_connections_that_wait_to_be_accepted_are_served(workers: int, serve_app: Serve) -> None:
    """A thread may serve one before the worker knows of the signal, and then keeps it: the system
    gives the signal to any thread, and the others run meanwhile."""
    server = serve_app(APP, *GATE, "--workers", str(workers))
    processes = server.workers(workers)
    until(lambda: server.log.count("Booting worker") == workers)
    assert get(server.url).text == "ok"
    with ExitStack() as stack:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        for process in processes:  # of two pending signals SIGTERM would be handled first
            until(lambda process=process: is_stopped(process))
        clients = clients_of(server.port, stack)
        server.signal(signal.SIGTERM)
        for process in processes:
            until(lambda process=process: is_to_end(process))
            os.kill(process, signal.SIGCONT)
        for client in clients:
            assert is_whole(read_to_end(client))
    assert server.process.wait(25) == 0


def test_connections_that_a_stopping_worker_accepts_are_closed_after_a_request(
    serve_app: Serve,
) -> None:
    server = serve_app(APP, *OPTIONS, "--worker-class", "served0.Late", "--workers", "3")
    until(lambda: server.log.count("Booting worker") == 3)
    with ExitStack() as stack:
        clients = clients_of(server.port, stack)
        server.signal(signal.SIGTERM)
        for client in clients:
            answer = read_to_end(client)
            assert is_whole(answer)
            assert b"connection: close" in answer.lower()
    assert server.process.wait(25) == 0


def test_a_worker_that_is_replaced_leaves_what_waits_to_the_others(serve_app: Serve) -> None:
    """Its only thread is busy until the worker ends: what it accepted would wait that long."""
    server = serve_app(APP, *OPTIONS[:2], "--threads", "1", *GATE[4:])
    [old] = server.workers()
    request = HeldRequest(server.port)
    os.kill(old, signal.SIGSTOP)
    until(lambda: is_stopped(old))
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"GET /" + HEAD + b"Connection: close\r\n\r\n")
        os.kill(old, signal.SIGTERM)
        server.signal(signal.SIGTTIN)  # one worker more
        os.kill(old, signal.SIGCONT)
        assert is_whole(read_to_end(client))
    assert is_whole(request.finish())


NGINX = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream gateways {{
    server 127.0.0.1:{first} max_fails=0;
    server 127.0.0.1:{second} max_fails=0;
    {keepalive}
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://gateways;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""


class Front:
    """Two gateways behind nginx, and the files of each."""

    def __init__(self, servers: Servers, folder: Path, keepalive: str, backend: str) -> None:
        self._servers = servers
        self._folder = folder
        (folder / "gateway.toml").write_text(SERVICE.format(url=backend))
        self.gateways = [self._gateway(0), self._gateway(0)]
        ports = [gateway.port for gateway in self.gateways]

        def command(port: int) -> list[str]:
            names = {"folder": folder, "port": port, "keepalive": keepalive}
            text = NGINX.format(first=ports[0], second=ports[1], **names)
            (folder / "nginx.conf").write_text(text)
            nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
            assert nginx, "nginx is needed: apt-get install nginx-light"
            return [nginx, "-c", str(folder / "nginx.conf"), "-p", str(folder)]

        self.url = servers.start(command, folder / "nginx.log").url

    def _gateway(self, port: int) -> Served:
        def command(port: int) -> list[str]:
            run = [sys.executable, "-m", "wsgigate", "run", str(self._folder / "gateway.toml")]
            return [*run, "--bind", f"127.0.0.1:{port}", "--workers", "2"]

        log = self._folder / f"gateway{self._servers.number}.log"
        return self._servers.start(command, log, home(self._folder), port=port)

    def restart(self, number: int) -> None:
        """Stop one gateway, and start another on its port while the first still drains."""
        old = self.gateways[number]
        old.signal(signal.SIGTERM)
        until(old.refuses)
        self.gateways[number] = self._gateway(old.port)


@pytest.fixture
def servers() -> Iterator[Servers]:
    with Servers() as made:
        yield made


@pytest.mark.parametrize("keepalive", ["keepalive 8;", ""], ids=["kept", "new"])
def test_a_rolling_restart_behind_nginx_loses_no_request(
    keepalive: str, servers: Servers, tmp_path: Path, backend: Backend
) -> None:
    def answer(connection: socket.socket, request: Received) -> None:
        if request.target == "/slow":
            connection.settimeout(0.7)
            try:
                connection.recv(1)
            except TimeoutError:
                pass
        connection.sendall(reply(request.method.encode()))

    backend.answers = [answer]
    front = Front(servers, tmp_path, keepalive, backend.url)
    outcomes: Counter[str] = Counter()
    over = threading.Event()

    def ask(method: str, path: str) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not over.is_set():
                response = session.request(method, front.url + path, data=b"x", timeout=20)
                outcomes[f"{response.status_code} {response.text[:200]}"] += 1

    kinds = [("GET", "/"), ("POST", "/"), ("POST", "/slow"), ("GET", "/slow")]
    clients = [threading.Thread(target=ask, args=kind) for kind in kinds]
    for client in clients:
        client.start()
    try:
        for number in (0, 1):
            seen = outcomes.total()
            until(lambda seen=seen: outcomes.total() >= seen + 50)
            front.restart(number)
    finally:
        over.set()
        for client in clients:
            client.join()
    assert set(outcomes) == {"200 GET", "200 POST"}
