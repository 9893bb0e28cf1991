"""How a worker lives and ends: under load and siege, by signals, and short of what it needs."""

from __future__ import annotations

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

from tests.acceptance.attackers import (
    APP,
    DEFAULTS,
    HEAD,
    OPTIONS,
    QUICK,
    Attackers,
    get,
)
from tests.acceptance.files import SERVICE
from tests.support.sockets import read_to_end
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, Received, reply

Serve = Callable[..., Any]


def test_what_an_application_raises_is_logged_and_ends_no_other_request(
    serve_app: Serve,
) -> None:
    """Q14."""
    server = serve_app(APP, *QUICK)
    [worker] = server.workers()
    assert get(server.url + "/exit").status_code == 500
    assert get(server.url + "/own-timeout").status_code == 500
    assert get(server.url).text == "ok"
    assert server.workers() == [worker]
    assert "the application's own" in server.log
    assert "an application's whim" in server.log


class Load:
    """Clients that keep asking, with kept connections and with new ones."""

    def __init__(self, url: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self._url = url
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(keep,)) for keep in (True, True, False)
        ]

    def _ask(self, keep: bool) -> None:
        with requests.Session() as session:
            session.trust_env = False
            fields = {} if keep else {"Connection": "close"}
            while not self._stop.is_set():
                try:
                    self.outcomes[session.get(self._url, timeout=20, headers=fields).text] += 1
                except requests.RequestException as error:
                    self.outcomes[repr(error)] += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, more: int = 30) -> None:
        """Wait until more of them have been answered."""
        seen = self.outcomes["ok"]
        until(lambda: self.outcomes["ok"] >= seen + more)


@pytest.fixture
def besieged() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_reloads_under_load_and_siege_fail_no_request(
    serve_app: Serve, besieged: ExitStack
) -> None:
    """Q03."""
    server = serve_app(APP, *QUICK, "--workers", "2")
    old = server.workers(2)
    with Load(server.url) as load:
        for kind in ("half a head", "a body in drops", "lingers"):
            besieged.enter_context(Attackers(server.port, kind))
        load.goes_on()
        for _ in range(2):
            server.signal(signal.SIGHUP)
            until(lambda old=old: not set(server.workers()) & set(old))
            old = server.workers()
            load.goes_on()
    assert set(load.outcomes) == {"ok"}


def test_workers_that_have_served_enough_are_replaced_without_loss(serve_app: Serve) -> None:
    """Q11."""
    server = serve_app(APP, *QUICK, "--workers", "2", "--max-requests", "40")
    with Load(server.url) as load:
        until(lambda: server.log.count("Autorestarting worker") >= 3)
        load.goes_on()
    assert set(load.outcomes) == {"ok"}


def test_a_stopping_worker_finishes_requests_and_waits_for_no_attacker(
    serve_app: Serve, besieged: ExitStack
) -> None:
    """Q01."""
    server = serve_app(APP, *QUICK)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(get(server.url + "/?1.5").text))
    asking.start()
    until(lambda: "BEGAN" in server.log)
    for kind in ("half a head", "never reads", "lingers", "says nothing"):
        besieged.enter_context(Attackers(server.port, kind))
    server.signal(signal.SIGTERM)
    asking.join()
    assert answers == ["ok"]
    assert server.process.wait(25) == 0


def test_a_worker_quits_on_sigint_while_a_request_is_in_flight(serve_app: Serve) -> None:
    server = serve_app(APP, *QUICK)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /" + HEAD + b"\r\nGET /?600" + HEAD + b"\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        server.signal(signal.SIGINT)
        server.process.wait(25)


KILLED = """
import os, signal

def app(environ, start_response):
    start_response("200 OK", [])
    yield b"begun"
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_response_of_a_worker_that_is_killed_does_not_look_complete(serve_app: Serve) -> None:
    """Over HTTP/1.0, where the end of the connection is the end of the response."""
    server = serve_app(KILLED, *DEFAULTS)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            read_to_end(client)


TOLD_TO_STOP_AT_BIRTH = """
import os, signal
workers, threads, worker_class = 1, 2, "wsgigate.servers.gunicorn_worker.GateWorker"
def post_fork(server, worker):
    if worker.age == 1:
        os.kill(os.getpid(), signal.SIGTERM)  # into the hands of the master's handler
"""


def test_a_signal_that_comes_while_a_worker_is_born_is_not_lost(
    serve_app: Serve, tmp_path: Path
) -> None:
    (tmp_path / "conf.py").write_text(TOLD_TO_STOP_AT_BIRTH)
    server = serve_app(APP, "-c", str(tmp_path / "conf.py"))
    until(lambda: server.log.count("Booting worker") == 2)
    assert server.log.count("Worker exiting") == 1
    assert get(server.url).text == "ok"


def test_without_a_descriptor_left_a_worker_rests_and_goes_on(serve_app: Serve) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
    server = serve_app(limit + APP, *QUICK)
    [worker] = server.workers()
    with ExitStack() as stack:
        for _ in range(60):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            stack.callback(client.close)
        until(lambda: "Accepting paused for" in server.log)
        assert get(server.url).text == "ok"
    assert server.workers() == [worker]
    assert "Traceback" not in server.log


def test_more_silent_clients_than_connections_keep_no_client_out(serve_app: Serve) -> None:
    """M05."""
    server = serve_app(APP, *OPTIONS, "-k", "served0.Patient", "--worker-connections", "20")
    with ExitStack() as stack:
        for _ in range(100):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            stack.callback(client.close)
        assert get(server.url).text == "ok"


def test_the_upstream_connection_is_closed_when_the_client_leaves(
    serve: Serve, backend: Backend
) -> None:
    """While the head is waited for, and in the middle of a stream that says nothing."""

    def held(connection: socket.socket, _request: Received) -> bool:
        return connection.recv(1) != b""

    def streams(connection: socket.socket, request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        return held(connection, request)

    backend.answers = [held, streams, reply(b"ok")]
    gateway = serve(SERVICE.format(url=backend.url) + '[[middleware]]\nuse = "logger"\n', workers=1)
    for number in (1, 2):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
            client.sendall(b"GET /" + HEAD + b"\r\n")
            backend.wait_for_requests(number)
            if number == 2:
                assert b"200" in client.recv(1 << 16)
        backend.wait_until_closed()
    assert get(gateway.url).text == "ok"
    until(lambda: '"status":499' in gateway.log and '"error":"ClientLeft"' in gateway.log)
    assert "Traceback" not in gateway.log


UNSAFE = """
from wsgigate.servers.gunicorn import settings
globals().update(settings(), header_map="dangerous")
wsgi_app = "wsgigate.servers.gunicorn:application()"
"""


@pytest.mark.parametrize(("mode", "serves"), [("refuse", False), ("warn", True)])
def test_a_gateway_refuses_to_start_unsafely_unless_told_otherwise(
    mode: str, serves: bool, serve_command: Serve, backend: Backend, tmp_path: Path
) -> None:
    text = SERVICE.format(url=backend.url).replace("[gateway]", f'[gateway]\nself_check = "{mode}"')
    (tmp_path / "gateway.toml").write_text(text)
    (tmp_path / "conf.py").write_text(UNSAFE)
    server = serve_command(
        lambda port: [sys.executable, "-m", "gunicorn", "-c", "conf.py", "-b", f"127.0.0.1:{port}"],
        WSGIGATE_CONFIG=str(tmp_path / "gateway.toml"),
    )
    if serves:
        assert get(server.url).text == "ok"
    else:
        assert server.process.wait(25) == 3
    assert "header_map: X_User_Id is accepted as X-User-Id" in server.log


LATE = """
import time
workers, threads, worker_class = 3, 2, "wsgigate.servers.gunicorn_worker.GateWorker"
def pre_fork(server, worker):
    if worker.age == 3:  # the master is late: by now more than one of them may have ended
        while not any(ended(pid) for pid in server.WORKERS):
            time.sleep(0.01)
        time.sleep(1)
def ended(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "Z"
"""
REFUSES = """
def app(environ, start_response):
    raise AssertionError
app.self_check = "refuse"
"""


@pytest.mark.parametrize("app", [REFUSES, "raise RuntimeError('broken')"])
def test_workers_that_cannot_boot_end_the_server_with_one_status(
    app: str, serve_command: Serve, tmp_path: Path
) -> None:
    """gunicorn's master breaks down with a traceback when it is told so twice."""
    (tmp_path / "app.py").write_text(app)
    (tmp_path / "conf.py").write_text(LATE + 'header_map = "dangerous"\n')
    gunicorn = [sys.executable, "-m", "gunicorn", "-c", "conf.py", "app:app"]
    server = serve_command(lambda port: [*gunicorn, "-b", f"127.0.0.1:{port}"])
    assert server.process.wait(25) == 3
    assert server.log.count("exited with code") == 1
    assert "Reason: Worker failed to boot." in server.log


@pytest.mark.parametrize("program", ["gunicorn", "granian"])
def test_what_a_worker_has_loaded_is_left_alone_by_the_garbage_collector(
    program: str, serve: Serve, http: requests.Session, tmp_path: Path
) -> None:
    (tmp_path / "frozen.py").write_text(
        "import gc\n\n\ndef app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [str(gc.get_freeze_count()).encode()]\n"
    )
    text = '[[routes]]\npath = "/frozen"\napp = "frozen:app"\n'
    server = serve(text, server=program, env={"PYTHONPATH": str(tmp_path)})
    assert int(http.get(server.url + "/frozen", timeout=20).text) > 10_000
