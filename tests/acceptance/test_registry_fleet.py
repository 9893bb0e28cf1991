"""Instances of a real service come and go under load; the gateway knows of them by its registry."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.load import Load
from tests.support.ports import free_port
from tests.support.servers import Served, Servers, home
from tests.support.waiting import until

TOKEN = "registry-token-of-the-tests"
WORKERS = 2

GATEWAY = f"""
[gateway]
threads = 8
[registry]
token = "{TOKEN}"
heartbeat = "500ms"
unhealthy_after = "8s"
remove_after = "10s"
[admin]
[services.users]
discover = "registry"
balance = "round-robin"
outlier = {{ consecutive_failures = 1 }}
[[routes]]
path = "/users"
service = "users"
"""

SERVICE = """
import os, time
def app(environ, start_response):
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    time.sleep(0.01)
    body = environ["SERVER_PORT"].encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

SETTINGS = """
import os
from wsgigate.registration.gunicorn import registered
bind = "127.0.0.1:" + os.environ["PORT"]
workers, worker_class, threads, keepalive = 2, "gthread", 8, 5
control_socket_disable = True
globals().update(registered("users", drain=4.0))
"""


class Fleet:
    """The gateway with its registry, and the instances of one service."""

    def __init__(self, gateway: Served, servers: Servers, folder: Path) -> None:
        self.gateway = gateway
        self.instances: list[Served] = []
        self._servers = servers
        self._folder = folder
        (folder / "service.py").write_text(SERVICE)
        (folder / "settings.py").write_text(SETTINGS)

    def join(self) -> Served:
        """Return an instance that has begun to serve."""
        port = free_port()
        env = {
            "PORT": str(port),
            "REGISTRY_URL": f"{self.gateway.url}/_registry",
            "REGISTRY_TOKEN": TOKEN,
            "PYTHONPATH": str(self._folder),
        }
        command = [sys.executable, "-m", "gunicorn", "-c", "settings.py", "service:app"]
        log = self._folder / f"service{port}.log"
        joined = self._servers.start(command, log, home(self._folder) | env, port=port)
        self.instances.append(joined)
        return joined

    def registered(self) -> dict[int, str]:
        """Return the status of each instance that is registered, by its port."""
        told = requests.get(f"{self.gateway.url}/_registry/services", timeout=20).json()
        return {each["port"]: each["status"] for each in told["services"].get("users", ())}

    def known(self) -> set[str]:
        """Return the instances that the worker knows that happens to answer."""
        told: dict[str, Any] = requests.get(
            f"{self.gateway.url}/_gateway/services", timeout=20
        ).json()["services"][0]
        return set(told.get("instances") or [told["url"]])

    def is_known_as(self, *instances: Served) -> bool:
        """Tell whether both workers know these instances and no others."""
        wanted = {each.url for each in instances}
        return all(self.known() == wanted for _ in range(10))

    def ask(self) -> tuple[int, str]:
        """Ask once, by a connection of its own: any of the workers answers."""
        answer = requests.post(f"{self.gateway.url}/users", data="x", timeout=20)
        return answer.status_code, answer.text if answer.status_code == 200 else "failed"


@pytest.fixture
def fleet(serve: Callable[..., Served], tmp_path: Path) -> Iterator[Fleet]:
    with Servers() as servers:
        fleet = Fleet(serve(GATEWAY, workers=WORKERS), servers, tmp_path)
        yield fleet
        for instance in fleet.instances:  # at once: each of them would take its time to drain
            kill(instance)


def kill(instance: Served) -> None:
    try:
        os.killpg(instance.process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    instance.process.wait(25)


def test_instances_come_and_go_and_no_request_fails(fleet: Fleet) -> None:
    first, second, third = (fleet.join() for _ in range(3))
    until(lambda: fleet.is_known_as(first, second, third))
    load = Load(f"{fleet.gateway.url}/users", clients=4)
    try:
        until(lambda: load.has_reached(first.port, second.port, third.port))
        first.signal(signal.SIGTERM)
        until(lambda: fleet.registered()[first.port] == "DRAINING")
        fourth = fleet.join()
        until(lambda: load.has_reached(fourth.port))
        second.signal(signal.SIGTERM)
        assert first.process.wait(25) == 0
        fifth = fleet.join()
        until(lambda: load.has_reached(fifth.port))
        assert second.process.wait(25) == 0
        until(lambda: fleet.is_known_as(third, fourth, fifth))
        assert set(fleet.registered()) == {third.port, fourth.port, fifth.port}
    finally:
        answers = load.end()
    assert {status for status, _ in answers} == {200}, answers
    assert len(answers) == 5
    assert "Traceback" not in fleet.gateway.log


def test_a_killed_instance_fails_at_most_one_request_of_each_worker(
    fleet: Fleet,
) -> None:
    instances = [fleet.join() for _ in range(3)]
    killed, *others = instances
    until(lambda: fleet.is_known_as(*instances))
    until(lambda: {fleet.ask() for _ in range(12)} == {(200, str(i.port)) for i in instances})

    kill(killed)
    told = Counter(fleet.ask() for _ in range(40))
    failed = told.pop((503, "failed"), 0) + told.pop((502, "failed"), 0)
    assert failed <= WORKERS, told
    assert set(told) == {(200, str(each.port)) for each in others}
    assert fleet.registered()[killed.port] == "UP"  # its lease has not run out: that is not why

    load = Load(f"{fleet.gateway.url}/users", clients=4)
    try:
        until(lambda: killed.port not in fleet.registered())
        until(lambda: fleet.is_known_as(*others))
    finally:
        answers = load.end()
    failed += sum(count for (status, _), count in answers.items() if status != 200)
    assert failed <= WORKERS, answers
    assert load.has_reached(*(each.port for each in others))
