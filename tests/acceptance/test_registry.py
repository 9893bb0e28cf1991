"""The registry under gunicorn: of all workers, and there again after all were killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.redis_server import Server as RedisServer
from tests.support.servers import home
from tests.support.waiting import until

Serve = Callable[..., Any]

TOKEN = "registry-token-of-the-tests"
USERS = "the-token-of-users-alone"


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    started = RedisServer(tmp_path / "redis")
    yield started
    started.stop()


class Registry:
    """A client of the registry; each request is on a connection of its own, of any worker."""

    def __init__(self, url: str, token: str = TOKEN) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}", "Connection": "close"}

    def send(self, method: str, path: str, document: object = None) -> requests.Response:
        return requests.request(
            method, self.url + path, json=document, headers=self.headers, timeout=30
        )

    def register(self, service: str, name: str, **members: object) -> int:
        document = {"serviceName": service, "instanceId": name, "host": "127.0.0.1", "port": 3001}
        return self.send("POST", "/register", {**document, **members}).status_code

    def beat(self, service: str, name: str) -> int:
        return self.send("POST", f"/heartbeat/{service}/{name}").status_code

    def names(self, service: str, query: str = "?onlyHealthy=false") -> list[str]:
        found = self.send("GET", f"/discover/{service}{query}").json()
        return [each["instanceId"] for each in found["instances"]]


@pytest.mark.parametrize("program", ["gunicorn", "granian"])
def test_instances_stay_registered_when_all_workers_were_killed(
    program: str, serve_command: Serve, tmp_path: Path
) -> None:
    environ = {**home(tmp_path), "REGISTRY_TOKEN": TOKEN, "USERS_TOKEN": USERS}

    def start() -> Any:
        return serve_command(
            lambda port: [
                *(sys.executable, "-m", "wsgigate", "registry", "--bind", f"127.0.0.1:{port}"),
                *("--server", program, "--workers", "3", "--token", "users=USERS_TOKEN"),
            ],
            **environ,
        )

    server = start()
    registry = Registry(server.url)
    assert requests.post(f"{server.url}/register", json={}, timeout=20).status_code == 401
    assert Registry(server.url, USERS).register("orders", "o-1") == 403
    assert Registry(server.url, USERS).register("users", "u-1") == 201
    assert registry.register("users", "u-2", metadata={"team": "a"}, weight=3) == 201
    assert registry.register("orders", "o-1") == 201
    guesses = [Registry(server.url, f"a-wrong-token-number-{n}") for n in range(13)]
    statuses = [guess.register("users", "u-1") for guess in guesses]
    assert statuses == [401] * 10 + [429] * 3  # of all workers together; nobody else notices
    for _ in range(12):  # whichever worker is asked
        assert registry.names("users", "") == ["u-1", "u-2"]
    before = registry.send("GET", "/services").json()

    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(25)
    server = start()
    registry = Registry(server.url)
    assert registry.send("GET", "/services").json() == before
    assert registry.names("users", "") == ["u-1", "u-2"]
    assert registry.beat("users", "u-1") == 200  # nobody has to register again
    assert registry.send("DELETE", "/register/users/u-1").status_code == 200
    for _ in range(12):
        assert registry.names("users") == ["u-2"]
        assert registry.beat("users", "u-1") == 404


@pytest.mark.parametrize("program", ["gunicorn", "granian"])
def test_a_change_in_any_worker_ends_all_long_polls(program: str, serve: Serve) -> None:
    text = f'[gateway]\nthreads = 16\n[registry]\nprefix = ""\ntoken = "{TOKEN}"\n'
    server = serve(text, server=program)
    registry = Registry(server.url)
    assert registry.register("users", "u-1") == 201
    index = registry.send("GET", "/discover/users").headers["X-Registry-Index"]
    heard: list[float] = []

    def wait() -> None:
        found = registry.send("GET", f"/discover/users?wait=20&index={index}")
        heard.append(time.monotonic())
        assert found.json()["count"] == 2
        assert found.headers["X-Registry-Index"] != index

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    assert heard == []
    assert registry.register("users", "u-2") == 201
    for thread in threads:
        thread.join(30)
    assert len(heard) == 4

    # a server that stops does not wait for those who wait
    found = registry.send("GET", "/discover/users")
    path = f"/discover/users?wait=25&index={found.headers['X-Registry-Index']}"

    def leave() -> None:
        try:
            registry.send("GET", path)
        except requests.ConnectionError:
            pass  # it came when the server had stopped

    thread = threading.Thread(target=leave)
    thread.start()
    time.sleep(0.5)
    server.stop(within=10)
    thread.join(30)
    assert not thread.is_alive()


def test_leases_end_although_the_worker_is_killed_that_looks_after_them(serve: Serve) -> None:
    server = serve(
        f"""
        [registry]
        prefix = ""
        token = "{TOKEN}"
        heartbeat = "300ms"
        unhealthy_after = "2s"
        remove_after = "5s"
        """
    )
    registry = Registry(server.url)
    assert registry.register("users", "alive") == 201
    stop = threading.Event()
    statuses: list[int] = []

    def beat() -> None:
        while not stop.wait(0.3):
            try:
                statuses.append(registry.beat("users", "alive"))
            except requests.RequestException:  # of the worker that is killed
                continue

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        for victim in server.workers(2):
            assert registry.register("users", "silent") == 201
            os.kill(victim, signal.SIGKILL)
            until(lambda: registry.names("users", "") == ["alive"])
            until(lambda: registry.names("users") == ["alive"])
    finally:
        stop.set()
        heart.join()
    assert set(statuses) == {200}


def test_machines_with_one_redis_have_one_registry(
    serve: Serve, tmp_path: Path, redis_server: RedisServer
) -> None:
    """Two ports stand for two machines; one of them is killed with all its workers."""
    text = (
        '[gateway]\nname = "shop"\nthreads = 8\n'
        f'[store]\nurl = "redis://127.0.0.1:{redis_server.port}/0?socket_timeout=5"\n'
        f'[registry]\nprefix = ""\ntoken = "{TOKEN}"\n'
        'heartbeat = "1s"\nunhealthy_after = "5s"\nremove_after = "8s"\n'
    )
    machines = [serve(text, workers=2) for _ in range(2)]
    here, there = (Registry(machine.url) for machine in machines)
    assert here.register("users", "u-1") == 201
    assert there.register("users", "u-2") == 201
    assert here.names("users") == there.names("users") == ["u-1", "u-2"]
    assert there.beat("users", "u-1") == 200

    index = there.send("GET", "/discover/users").headers["X-Registry-Index"]
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(there.send, "GET", f"/discover/users?wait=20&index={index}")
        assert here.send("DELETE", "/register/users/u-1").status_code == 200
        assert [each["instanceId"] for each in waiting.result(20).json()["instances"]] == ["u-2"]

    os.killpg(machines[0].process.pid, signal.SIGKILL)
    machines[0].process.wait(25)
    until(lambda: there.names("users") == [])  # one that is left looks after the leases
    assert there.beat("users", "u-2") == 404
