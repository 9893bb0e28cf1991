"""Gateways on several machines with one Redis: two ports stand for two machines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.conftest import until
from tests.store.redis.servers import Server
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
def test_two_machines_let_exactly_as_many_pass_as_the_quota_says(
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


def test_one_of_all_workers_on_all_machines_checks_health_and_all_know(
    serve: Serve, backend: Backend, server: Server
) -> None:
    backend.answers = [reply(b"", status="503 Unavailable")]
    text = gateway(
        server,
        backend,
        service='health = { path = "/health", interval = "1s", timeout = "1s" }',
        more='[admin]\nprefix = ""\n',
    )
    machines = [serve(text, workers=2, env=PASSWORD) for _ in range(2)]
    until(lambda: len(backend.requests) >= 4)
    began, first = time.monotonic(), len(backend.requests)
    until(lambda: len(backend.requests) >= first + 4)
    # four workers that each checked would need a quarter of that time, two machines half of it
    assert time.monotonic() - began > 2.2

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
    fails = [line for line in machine.log.splitlines() if "nobody waits for it" in line]
    back = [line for line in machine.log.splitlines() if "answers again after" in line]
    assert len(fails) == len(back) == 1
    assert f"redis://127.0.0.1:{server.port}/0" in fails[0]
