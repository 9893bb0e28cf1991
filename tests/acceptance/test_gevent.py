"""A gateway under gunicorn's gevent worker: one thread, in which nobody waits for anybody."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.middleware.test_contract import MIDDLEWARES
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, Received, cut, reply

Serve = Callable[..., Any]

GATEWAY = """
[store]
url = "{store}"
[[middleware]]
use = "logger"
format = "json"
[[middleware]]
use = "limiter"
quota = "100000 per hour"
[services.svc]
instances = ["{url}"]
health = {{ path = "/health", interval = "1s" }}
[[routes]]
path = "/svc"
service = "svc"
strip_prefix = true
"""

SETTINGS = """
import os
os.environ["WSGIGATE_CONFIG"] = {file!r}
http_parser = "python"
forwarded_allow_ips = forwarder_headers = ""
header_map = "refuse"
"""


@pytest.fixture(params=["memory:", "lmdb:store"])
def gateway(
    request: pytest.FixtureRequest, serve_app: Serve, backend: Backend, tmp_path: Path
) -> Any:
    file = tmp_path / "gateway.toml"
    file.write_text(GATEWAY.format(url=backend.url, store=request.param))
    (tmp_path / "settings.py").write_text(SETTINGS.format(file=str(file)))
    source = "import wsgigate\napp = wsgigate.load()\n"
    return serve_app(source, "-k", "gevent", "--workers", "1", "-c", str(tmp_path / "settings.py"))


def records(gateway: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gateway.log.splitlines() if line[:1] == "{"]


def test_a_hundred_requests_wait_for_an_instance_at_once(gateway: Any, backend: Backend) -> None:
    """And whoever asks for something else meanwhile gets it at once."""
    together = threading.Barrier(101)

    def answer(connection: socket.socket, request: Received) -> None:
        if request.target.startswith("/slow"):
            together.wait(20)
        connection.sendall(reply(request.target.encode()))

    backend.answers = [answer]

    def ask(number: int) -> list[str]:
        with requests.Session() as http:
            http.trust_env = False
            urls = [f"{gateway.url}/svc/slow{number}", f"{gateway.url}/svc/kept{number}"]
            return [http.get(url, timeout=30).text for url in urls]

    with ThreadPoolExecutor(100) as threads:
        asked = [threads.submit(ask, number) for number in range(100)]
        until(lambda: sum(r.target.startswith("/slow") for r in backend.requests) == 100)
        assert requests.get(f"{gateway.url}/svc/other", timeout=30).text == "/other"
        assert requests.get(f"{gateway.url}/none", timeout=30).status_code == 404
        together.wait(20)
        for number, done in enumerate(asked):
            assert done.result() == [f"/slow{number}", f"/kept{number}"]
    until(lambda: len(records(gateway)) == 202)
    assert "Traceback" not in gateway.log
    assert "Warning" not in gateway.log


def test_bodies_and_streams_pass_as_under_the_others(gateway: Any, backend: Backend) -> None:
    seen = threading.Event()

    def answer(connection: socket.socket, request: Received) -> bool:
        if request.target == "/cut":
            return bool(
                cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun")(connection, request)  # type: ignore[operator]
            )
        if request.target == "/events":
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
            assert seen.wait(30)
            connection.sendall(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
            return True
        connection.sendall(reply(request.body))
        return True

    backend.answers = [answer]
    body = bytes(range(256)) * 40_000
    assert requests.post(f"{gateway.url}/svc", data=body, timeout=20).content == body
    blocks = iter([body, b"end"])
    assert requests.post(f"{gateway.url}/svc", data=blocks, timeout=20).content == body + b"end"
    with requests.get(f"{gateway.url}/svc/events", stream=True, timeout=30) as response:
        chunks = response.iter_content(None)
        assert next(chunks) == b"data: 1\n\n"
        seen.set()
        assert next(chunks) == b"data: 2\n\n"
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
        requests.get(f"{gateway.url}/svc/cut", timeout=30)
    assert "Traceback" not in gateway.log


def test_a_client_that_leaves_frees_the_instance(gateway: Any, backend: Backend) -> None:
    gone = threading.Event()

    def answer(connection: socket.socket, _request: Received) -> bool:
        if not connection.recv(1):  # until the gateway hangs up
            gone.set()
        return False

    backend.answers = [
        lambda sock, got: sock.sendall(reply()) if got.target == "/health" else answer(sock, got)
    ]
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(b"GET /svc HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: any(request.target == "/" for request in backend.requests))
    assert gone.wait(30)


def test_it_stops_on_sigterm(gateway: Any, backend: Backend) -> None:
    assert requests.get(f"{gateway.url}/svc", timeout=30).status_code == 200
    gateway.process.terminate()
    assert gateway.process.wait(25) == 0
    assert len(records(gateway)) == 1


PRELOADED = """
from tests.middleware.test_contract import MIDDLEWARES
import threading, time

import wsgigate
from wsgigate.middleware.concurrency import ConcurrencyLimiter
from wsgigate.middleware.limiter import Limiter

def slow(environ, start_response):
    time.sleep(0.3)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

apps = {name: make(slow) for name, make, _ in MIDDLEWARES}
apps["concurrency with a store"] = ConcurrencyLimiter(slow, 1000)
apps["limiter with a store"] = Limiter(slow, "10000 per minute")
apps["gateway"] = wsgigate.load()

def app(environ, start_response):
    name = environ["QUERY_STRING"].replace("%20", " ")
    return apps[name](environ, start_response)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_an_app_that_the_master_has_loaded_serves_greenlets_beside_each_other(
    workers: int, serve_app: Serve, backend: Backend, tmp_path: Path
) -> None:
    """The master loads it, before the workers patch: a lock of before would hold them for good."""
    file = tmp_path / "gateway.toml"
    file.write_text(GATEWAY.format(url=backend.url, store="lmdb:store"))
    (tmp_path / "settings.py").write_text(SETTINGS.format(file=str(file)))
    options = ("-k", "gevent", "--preload", "--workers", str(workers))
    root = str(Path(__file__).parents[2])
    server = serve_app(
        f"import sys\nsys.path.append({root!r})\n" + PRELOADED,
        *(*options, "-c", str(tmp_path / "settings.py")),
    )
    names = [name for name, _, _ in MIDDLEWARES]
    names += ["concurrency with a store", "limiter with a store"]

    def ask(name: str) -> str:
        path = "/svc" if name == "gateway" else "/"
        return requests.get(server.url + path, params=name, timeout=20).text

    with ThreadPoolExecutor(60) as threads:
        asked = [threads.submit(ask, name) for name in names * 3]
        asked += [threads.submit(ask, "gateway") for _ in range(3)]
        assert {done.result() for done in asked} == {"ok"}
    assert "Traceback" not in server.log
