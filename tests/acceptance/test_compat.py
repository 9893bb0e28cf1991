"""A registry as it is run, with several workers, and the clients of others that find each other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.registry.compat import test_consul_client, test_eureka_client
from tests.registry.compat.conftest import TOKEN, Program
from tests.support.servers import Served, Servers, home
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, reply

DOORS = ("--door", "eureka", "--door", "consul")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Served]:
    """Yield a registry of two workers."""
    with Servers() as servers:

        def command(port: int) -> list[str]:
            run = [sys.executable, "-m", "wsgigate", "registry", "--workers", "2", *DOORS]
            return [*run, "--bind", f"127.0.0.1:{port}"]

        env = {**home(tmp_path), "REGISTRY_TOKEN": TOKEN}
        yield servers.start(command, tmp_path / "log", env)


def test_clients_of_eureka_and_consul_find_each_other_through_killed_workers(
    registry: Served, tmp_path: Path
) -> None:
    eureka = Program(
        test_eureka_client.CLIENT,
        *(registry.port, "orders", TOKEN, 8080, 0.3),
        errors=tmp_path / "eureka",
    )
    consul = Program(test_consul_client.CLIENT, registry.port, TOKEN, errors=tmp_path / "consul")
    try:
        eureka.does("loop.run_until_complete(client.start())")
        consul.does("register(service_id='users-1', port=8081)")
        found = "client.health.service('orders', passing=True)[1][0]['Service']['Port']"
        assert consul.does(found) == 8080
        assert until(lambda: eureka.does("known('users')"))[0][:2] == ["users-1", "UP"]

        for pid in registry.workers():
            os.kill(pid, signal.SIGKILL)
        url = f"{registry.url}/discover/orders"
        assert until(lambda: _count(url)) == 1
        assert consul.does(found) == 8080
        assert consul.does("client.agent.service.deregister('users-1')") is True
        until(lambda: eureka.does("known('users')") == [])
    finally:
        eureka.end()
        consul.end()


def test_checks_of_consuls_clients_are_carried_out_by_one_worker_through_killed_ones(
    registry: Served, tmp_path: Path
) -> None:
    """The check that Spring Cloud Consul registers: HTTP, and no heartbeats of its own."""
    consul = Program(test_consul_client.CLIENT, registry.port, TOKEN, errors=tmp_path / "consul")
    with Backend() as backend:
        check = f"Check.http('http://127.0.0.1:{backend.port}/up', '1s', timeout='1s')"
        passing = "len(health(passing=True))"
        try:
            assert consul.does(f"register(service_id='users-1', port=8081, check={check})") is True
            until(lambda: consul.does(passing) == 1)
            for pid in registry.workers():
                os.kill(pid, signal.SIGKILL)
            until(lambda: _count(f"{registry.url}/discover/users") == 1)
            asked = len(backend.requests)
            until(lambda: len(backend.requests) > asked + 1)
            backend.answers[:] = [reply(b"", status="503 Service Unavailable")]
            until(lambda: consul.does(passing) == 0)
            backend.answers[:] = [reply(b"ok")]
            until(lambda: consul.does(passing) == 1)
        finally:
            consul.end()


def _count(url: str) -> int:
    try:
        count: int = requests.get(url, timeout=20).json()["count"]
    except requests.ConnectionError:
        return 0
    return count
