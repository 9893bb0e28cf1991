"""One worker of all asks the instances; when it is killed, another does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from tests.support.ports import refused_port
from tests.support.redis_server import Server
from tests.support.waiting import until
from wsgigate.store import StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.testing.backend import Backend, reply

GATEWAY = """
[gateway]
name = "shop"
threads = 4
[store]
url = "lmdb:{store}"
[admin]
[services.svc]
instances = ["{url}"]
health = {{ path = "/health", interval = "0.5s", timeout = "1s", unhealthy_after = 2 }}
[[routes]]
path = "/"
service = "svc"
"""


def test_when_the_worker_that_asks_is_killed_another_goes_on(
    serve: Callable[..., Any], backend: Backend, tmp_path: Path
) -> None:
    gateway = serve(GATEWAY.format(url=backend.url, store=tmp_path / "store"), workers=3)
    store = LmdbStore(tmp_path / "store")

    def prober() -> int:
        holder, _ = store.get("health/shop/leader")
        return int(holder.partition(b"-")[0]) if holder else 0

    def told() -> dict[str, Any]:
        document = requests.get(f"{gateway.url}/_gateway/services", timeout=20).json()
        status: dict[str, Any] = document["services"][0]["status"]
        return status

    until(lambda: {told()["healthy"] for _ in range(12)} == {True})  # in every worker
    asked = 0.0

    def by_one() -> int:
        """Return the worker that has asked six times in a row, unless its lease has expired."""
        nonlocal asked
        leader = until(prober)
        began, before = time.monotonic(), len(backend.requests)
        until(lambda: len(backend.requests) >= before + 6)
        asked = time.monotonic() - began
        return leader if prober() == leader else 0

    killed = until(by_one)
    assert killed in gateway.workers()
    assert asked > 1.5  # the three of them would not take as long

    os.kill(killed, signal.SIGKILL)
    backend.answers = [reply(status="503 Not Today")]
    successor = until(lambda: (now := prober()) != killed and now)
    assert successor in gateway.workers()
    until(lambda: {told().get("error") for _ in range(12)} == {"Status 503"})
    backend.answers = [reply()]
    until(lambda: {told()["healthy"] for _ in range(12)} == {True})
    store.close()


FLEET = """
[gateway]
name = "shop"
threads = 4
[store]
url = "redis://127.0.0.1:{redis}/0"
[admin]
[[middleware]]
use = "limiter"
quota = "100000 per hour"
[services.svc]
instances = {instances}
health = {{ path = "/health", interval = "0.5s", timeout = "1s", unhealthy_after = 2 }}
[[routes]]
path = "/"
service = "svc"
"""


@pytest.fixture
def refusing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def end(backend: Backend, refusing: ExitStack) -> None:
    """End *backend*; its port refuses connections until the end of the test."""
    backend.__exit__(None, None, None)
    refusing.enter_context(refused_port(backend.port))


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_while_the_redis_is_gone_an_instance_that_dies_leaves_rotation(
    how: str, serve: Callable[..., Any], tmp_path: Path, refusing: ExitStack
) -> None:
    redis = Server(tmp_path / "redis")
    backends = [Backend().__enter__() for _ in range(3)]
    for backend in backends:
        backend.answers = [reply()]
    try:
        instances = [backend.url for backend in backends]
        text = FLEET.format(redis=redis.port, instances=instances)
        machines = [serve(text, workers=2) for _ in range(2)]
        for machine in machines:
            until(lambda machine=machine: statuses(machine, 20) == [200] * 20)
            until(lambda machine=machine: unhealthy(machine) == [[]] * 8)
        redis.pause() if how == "stopped" else redis.stop()
        end(backends[1], refusing)
        failed = 0
        for machine in machines:
            until(lambda machine=machine: unhealthy(machine) == [[instances[1]]] * 8)
            failed += statuses(machine, 100).count(503)
        assert failed == 0  # all four workers have found out, and it stays so
        redis.resume() if how == "stopped" else redis.start()
        for machine in machines:
            until(lambda machine=machine: "shared by all workers" in machine.log)
            assert statuses(machine, 100) == [200] * 100
            assert unhealthy(machine) == [[instances[1]]] * 8
        asked = len(backends[0].requests)
        began = time.monotonic()
        until(lambda: checks(backends[0], asked) >= 6)
        assert time.monotonic() - began > 1.2  # as one worker asks; four would need a quarter
    finally:
        for backend in (backends[0], backends[2]):
            backend.__exit__(None, None, None)
        if how == "stopped":
            redis.resume()
        redis.stop()


def statuses(machine: Any, count: int) -> list[int]:
    return [requests.get(f"{machine.url}/x", timeout=20).status_code for _ in range(count)]


def checks(backend: Backend, skipped: int) -> int:
    return sum(request.target == "/health" for request in backend.requests[skipped:])


def unhealthy(machine: Any) -> list[list[str]]:
    """Return which instances are unhealthy, as eight requests are told."""
    found = []
    for _ in range(8):
        document = requests.get(f"{machine.url}/_gateway/services", timeout=20).json()
        told = document["services"][0]["status"].get("instances", {})
        found.append([url for url, status in told.items() if not status["healthy"]])
    return found


DAMAGED = """
[gateway]
name = "shop"
threads = 4
[store]
url = "lmdb:{store}"
[[middleware]]
use = "limiter"
quota = "100 per day"
[services.svc]
instances = ["{url}"]
health = {{ path = "/health", interval = "0.5s", timeout = "1s" }}
[[routes]]
path = "/"
service = "svc"
"""


@pytest.mark.parametrize("program", ["gunicorn", "granian"])
def test_a_damaged_store_is_moved_aside_and_the_gateway_starts(
    program: str, serve: Callable[..., Any], backend: Backend, tmp_path: Path
) -> None:
    backend.answers = [reply()]
    store = tmp_path / "store"
    store.mkdir(mode=0o700)
    (store / "data.mdb").write_bytes(bytes(100_000))
    gateway = serve(DAMAGED.format(url=backend.url, store=store), workers=4, server=program)
    answers = [requests.get(f"{gateway.url}/x", timeout=20) for _ in range(20)]
    assert [answer.status_code for answer in answers] == [200] * 20
    left = [int(answer.headers["X-RateLimit-Remaining"]) for answer in answers]
    assert left == list(range(99, 79, -1))  # all workers count in the new file
    [aside] = [path for path in store.iterdir() if ".damaged-" in path.name]
    assert aside.read_bytes() == bytes(100_000)
    [said] = [line for line in gateway.log.splitlines() if "was damaged" in line]
    assert str(aside) in said


def passes_uncounted(gateway: Any) -> bool:
    """Return whether a new caller passes, and there was no room to count it.

    Until it does: each worker measures the store once a second, at a write, and counts new callers
    until it knows that the store is full; and it may not know yet which instance is unhealthy.
    """
    answer = requests.get(f"{gateway.url}/x", headers={"X-Api-Key": f"{uuid4()}"}, timeout=20)
    return answer.status_code == 200 and "X-RateLimit-Remaining" not in answer.headers


FULL = """
[gateway]
name = "shop"
threads = 4
[store]
url = "lmdb:{store}"
[admin]
token = "the-token-of-operators-0123456789abcdef"
[registry]
token = "the-token-of-services-0123456789abcdef"
[[middleware]]
use = "logger"
[[middleware]]
use = "limiter"
quota = "100000 per hour"
key = "header:X-Api-Key"
[services.svc]
instances = {instances}
health = {{ path = "/health", interval = "0.3s", timeout = "1s", unhealthy_after = 2 }}
[[routes]]
path = "/"
service = "svc"
"""


def test_in_a_store_that_clients_have_filled_an_instance_can_still_become_unhealthy(
    serve: Callable[..., Any], tmp_path: Path, refusing: ExitStack
) -> None:
    backends = [Backend().__enter__() for _ in range(3)]
    for backend in backends:
        backend.answers = [reply()]
    store = LmdbStore(tmp_path / "store")
    try:
        instances = [backend.url for backend in backends]
        gateway = serve(FULL.format(store=tmp_path / "store", instances=instances), workers=3)
        until(lambda: unhealthy(gateway) == [[]] * 8)
        for number in range(100_000):  # as clients would, one key a request
            try:
                store.swap(f"limit/made-up/{number}", None, bytes(8000), 3600)
            except StoreError:
                break
        assert store.usage()["used"] > 0.99 * store.usage()["limit"]
        end(backends[1], refusing)
        until(lambda: unhealthy(gateway) == [[instances[1]]] * 8)
        one = {"serviceName": "users", "instanceId": "u-1", "host": "127.0.0.1", "port": 3001}
        services = {"Authorization": "Bearer the-token-of-services-0123456789abcdef"}
        register = f"{gateway.url}/_registry/register"
        registered = requests.post(register, json=one, headers=services, timeout=20)
        assert registered.status_code == 201, gateway.log
        operators = {"Authorization": "Bearer the-token-of-operators-0123456789abcdef"}
        denial = {"jti": "stolen", "until": time.time() + 600}
        deny = f"{gateway.url}/_gateway/tokens/deny"
        denied = requests.post(deny, json=denial, headers=operators, timeout=20)
        assert denied.status_code < 300, gateway.log
        until(lambda: passes_uncounted(gateway))  # on_store_error = "allow"
        assert "checks health for itself" not in gateway.log
    finally:
        store.close()
        for backend in (backends[0], backends[2]):
            backend.__exit__(None, None, None)
