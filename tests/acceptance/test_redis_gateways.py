"""Gateways on several machines with one Redis: two ports stand for two machines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.ports import free_port
from tests.support.redis_server import Server
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, reply

Serve = Callable[..., Any]

GATEWAY = """
[gateway]
name = "shop"
threads = 8
[store]
url = "{store}"
[services.svc]
instances = ["{backend}"]
{service}
[[routes]]
path = "/svc"
service = "svc"
{more}
"""

LIMITED = """
[[middleware]]
use = "limiter"
quota = "100 per 15 minutes"
algorithm = "{algorithm}"
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path / "redis", "--requirepass", "only-for-tests")
    yield started
    started.stop()


def gateway(server: Server, backend: Backend, *, service: str = "", more: str = "") -> str:
    store = f"redis://127.0.0.1:{server.port}/0?socket_timeout=5&socket_connect_timeout=5"
    return GATEWAY.format(store=store, backend=backend.url, service=service, more=more)


PASSWORD = {"WSGIGATE_STORE_PASSWORD": "only-for-tests"}


def get(url: str) -> requests.Response:
    return requests.get(url, timeout=30)


@pytest.mark.parametrize("algorithm", ["token-bucket", "fixed-window", "sliding-window"])
def test_two_machines_allow_exactly_the_quota(
    algorithm: str, serve: Serve, backend: Backend, server: Server
) -> None:
    text = gateway(server, backend, more=LIMITED.format(algorithm=algorithm))
    machines = [serve(text, workers=2, env=PASSWORD) for _ in range(2)]
    began = time.monotonic()
    with ThreadPoolExecutor(16) as threads:
        urls = [machines[number % 2].url + "/svc" for number in range(180)]
        statuses = Counter(threads.map(lambda url: get(url).status_code, urls))
    late = int(time.monotonic() - began) // 9 if algorithm == "token-bucket" else 0
    assert statuses.keys() == {200, 429}
    assert 100 <= statuses[200] <= 100 + late  # a bucket gets a token every 9 s
    refused = get(machines[0].url + "/svc")
    assert refused.headers["X-RateLimit-Remaining"] == "0"
    for machine in machines:
        assert "only-for-tests" not in machine.log


def test_one_worker_of_all_machines_checks_health_for_all(
    serve: Serve, backend: Backend, server: Server
) -> None:
    backend.answers = [reply(b"", status="503 Unavailable")]
    text = gateway(
        server,
        backend,
        service='health = { path = "/health", interval = "0.5s", timeout = "1s" }',
        more='[admin]\nprefix = ""\n',
    )
    machines = [serve(text, workers=2, env=PASSWORD) for _ in range(2)]
    until(lambda: len(backend.requests) >= 4)
    began, first = time.monotonic(), len(backend.requests)
    until(lambda: len(backend.requests) >= first + 7)
    # four workers that each checked would need a quarter of that time, two machines half of it
    assert time.monotonic() - began > 1.8

    def healthy(machine: Any) -> list[bool]:
        answers = [get(machine.url + "/health").json() for _ in range(8)]
        return [answer["services"].get("svc", {}).get("healthy") for answer in answers]

    for machine in machines:
        until(lambda machine=machine: healthy(machine) == [False] * 8)
    backend.answers = [reply(b"")]
    for machine in machines:
        until(lambda machine=machine: healthy(machine) == [True] * 8)
    with server.admin(password="only-for-tests") as admin:
        leaders = [name for name in admin.keys("*") if name.endswith(b"/leader")]
    assert leaders == [b"wsgigate:shop:health/shop/leader"]

    asked = len(backend.requests)
    machines[0].stop()
    until(lambda: len(backend.requests) >= asked + 3)  # whoever led, somebody goes on


def test_requests_pass_while_the_redis_is_gone_and_are_counted_again_when_it_is_back(
    serve: Serve, backend: Backend, server: Server
) -> None:
    text = gateway(server, backend, more=LIMITED.format(algorithm="fixed-window"))
    machine = serve(text, workers=1, env=PASSWORD)
    assert "X-RateLimit-Remaining" in get(machine.url + "/svc").headers
    server.stop()
    for _ in range(20):
        answer = get(machine.url + "/svc")
        assert answer.status_code == 200
        assert "X-RateLimit-Remaining" not in answer.headers
    server.start()
    until(lambda: "X-RateLimit-Remaining" in get(machine.url + "/svc").headers)
    fails = [line for line in machine.log.splitlines() if "bypass the store" in line]
    back = [line for line in machine.log.splitlines() if "answers again after" in line]
    assert len(fails) == len(back) == 1
    assert f"redis://127.0.0.1:{server.port}/0" in fails[0]


@pytest.mark.parametrize("program", ["gunicorn", "granian"])
def test_a_gateway_that_starts_while_its_redis_is_gone_serves_and_recovers(
    program: str, serve: Serve, backend: Backend, server: Server
) -> None:
    backend.answers = [reply()]
    service = 'health = { path = "/health", interval = "0.5s", timeout = "1s" }'
    text = gateway(server, backend, service=service, more=LIMITED.format(algorithm="fixed-window"))
    server.stop()
    machine = serve(text, workers=2, env=PASSWORD, server=program)
    for _ in range(10):
        answer = get(machine.url + "/svc")
        assert answer.status_code == 200
        assert "X-RateLimit-Remaining" not in answer.headers
    [said] = [line for line in machine.log.splitlines() if "starts without its store" in line]
    assert f"redis://127.0.0.1:{server.port}/0" in said
    server.start()
    until(lambda: ["X-RateLimit-Remaining" in counted(machine) for _ in range(8)] == [True] * 8)
    assert "only-for-tests" not in machine.log


def counted(machine: Any) -> Any:
    return get(machine.url + "/svc").headers


@pytest.mark.parametrize("program", ["gunicorn", "granian"])
def test_a_wrong_password_keeps_a_gateway_from_starting(
    program: str, backend: Backend, server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(gateway(server, backend))
    command = [sys.executable, "-m", "wsgigate", "run", str(file), "--server", program]
    done = subprocess.run(
        [*command, "--bind", f"127.0.0.1:{free_port()}"],
        env={**os.environ, "WSGIGATE_STORE_PASSWORD": "not-the-one"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "store.url: the store " in done.stderr
    assert "WRONGPASS" in done.stderr
    assert "not-the-one" not in done.stderr


def test_a_registry_that_starts_while_its_redis_is_gone_takes_services_once_it_is_back(
    serve_command: Serve, server: Server
) -> None:
    server.stop()
    url = f"redis://127.0.0.1:{server.port}/0"
    run = [sys.executable, "-m", "wsgigate", "registry", "--store", url, "--workers", "2"]
    started = serve_command(
        lambda port: [*run, "--bind", f"127.0.0.1:{port}"],
        REGISTRY_TOKEN="registry-token-of-the-tests",
        **PASSWORD,
    )
    [said] = [line for line in started.log.splitlines() if "starts without its store" in line]
    assert said.startswith(f"wsgigate: warning: --store: the store {url} fails: ")

    def register() -> int:
        one = {"serviceName": "users", "instanceId": "u-1", "host": "127.0.0.1", "port": 3001}
        headers = {"Authorization": "Bearer registry-token-of-the-tests"}
        answer = requests.post(f"{started.url}/register", json=one, headers=headers, timeout=30)
        return answer.status_code

    assert register() == 503
    assert get(f"{started.url}/discover/users").status_code == 503
    server.start()
    until(lambda: register() == 201)
    until(lambda: get(f"{started.url}/discover/users").json().get("count") == 1)


@pytest.mark.parametrize("how", ["gone", "hung"])
def test_health_and_the_log_say_that_the_redis_fails_and_that_it_is_back(
    how: str, serve: Serve, backend: Backend, server: Server
) -> None:
    more = '[admin]\nprefix = ""\n[maintenance]\n'
    breaker = "breaker = {}"
    text = GATEWAY.format(store=server.impatient, backend=backend.url, service=breaker, more=more)
    machine = serve(text, workers=2, env=PASSWORD)

    def health() -> dict[str, Any]:
        told: dict[str, Any] = get(machine.url + "/health").json()
        return told

    assert health()["store"] == {"kind": "redis"}
    if how == "gone":
        server.stop()
    else:
        server.pause()
    until(lambda: {health()["gateway"]["status"] for _ in range(6)} == {"degraded"})
    told = health()
    assert told["store"]["error"] == "Store unavailable"
    assert told["services"]["svc"]["healthy"] is True
    assert told["circuitBreakers"]["svc"]["state"] == "CLOSED"
    assert get(machine.url + "/circuit-breakers").status_code == 200
    assert get(machine.url + "/svc").status_code == 200
    until(lambda: health() and "requests bypass the store" in machine.log)
    if how == "gone":
        server.start()
    else:
        server.resume()

    def is_well() -> bool:
        told = health()
        return told["store"] == {"kind": "redis"} and told["gateway"]["status"] == "healthy"

    until(lambda: all(is_well() for _ in range(12)))  # of both workers
    assert " fails: " in machine.log
    until(lambda: re.search(r"again,? after [0-9.]+ s", machine.log))
    assert "Traceback" not in machine.log
    assert "only-for-tests" not in machine.log
