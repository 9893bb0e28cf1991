"""What an operator changes while a gateway runs: every worker applies it, and it outlives them."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.acceptance.load import Load
from tests.acceptance.workers import WHO, Worker, both_workers
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, reply

Serve = Callable[..., Any]

ADMIN = "k" * 32
BEARER = {"Authorization": f"Bearer {ADMIN}"}
GATEWAY = f"""
[gateway]
name = "changes"
threads = 4
[admin]
token = "{ADMIN}"
[services.svc]
instances = ["{{one}}", "{{other}}"]
breaker = {{{{}}}}
[[routes]]
path = "/who"
app = "who_answers:app"
[[routes]]
path = "/svc"
service = "svc"
"""


@pytest.fixture
def backends() -> Iterator[tuple[Backend, Backend]]:
    with Backend(reply(b"one")) as one, Backend(reply(b"other")) as other:
        yield one, other


@pytest.fixture
def gateway(serve: Serve, tmp_path: Any, backends: tuple[Backend, Backend]) -> Any:
    (tmp_path / "who_answers.py").write_text(WHO)
    text = GATEWAY.format(one=backends[0].url, other=backends[1].url)
    return serve(text, workers=2, env={"PYTHONPATH": str(tmp_path)})


def put(url: str, path: str, **body: object) -> requests.Response:
    return requests.put(f"{url}/_gateway/{path}", json=body, headers=BEARER, timeout=20)


def instance(backend: Backend) -> str:
    return f"services/svc/instances/{backend.url.partition('://')[2]}"


def state_in(worker: Worker, backend: Backend) -> str:
    """Return the state of an instance as this worker knows it."""
    state: str = worker.get(f"/_gateway/{instance(backend)}", headers=BEARER).json()["state"]
    return state


def answers(url: str, times: int = 20) -> set[tuple[int, str]]:
    """Return the responses to requests of connections of their own, to any of the workers."""
    found = (requests.get(f"{url}/svc", timeout=20) for _ in range(times))
    return {(each.status_code, each.text if each.ok else "") for each in found}


def refusal(url: str) -> Any:
    """Return the problem document of a response; None for a success."""
    response = requests.get(f"{url}/svc", timeout=20)
    return None if response.ok else response.json()


def test_a_drain_reaches_every_worker_and_outlives_reloads_and_crashes(
    gateway: Any, backends: tuple[Backend, Backend]
) -> None:
    url = gateway.url
    until(lambda: answers(url) == {(200, "one"), (200, "other")})
    load = Load(f"{url}/svc", clients=2)
    try:
        one, other = both_workers(url, Worker)
        until(lambda: set(load.answers) == {(200, "one"), (200, "other")})
        drained = put(url, instance(backends[0]), state="drained")
        assert (drained.status_code, drained.json()["appliesTo"]) == (200, "all workers")
        for worker in (one, other):
            until(lambda worker=worker: state_in(worker, backends[0]) == "drained")
        assert {worker.get("/svc").text for worker in (one, other) * 20} == {"other"}
    finally:
        told = load.end()
    assert set(told) == {(200, "one"), (200, "other")}, "the drain lost a request"
    for worker in (one, other):
        worker.close()

    os.kill(int(one.pid), signal.SIGKILL)
    before = Counter(len(each.requests) for each in backends[:1])
    until(lambda: one.pid not in map(str, gateway.workers(2)))
    assert answers(url) == {(200, "other")}

    pids = set(gateway.workers(2))
    reloaded = requests.post(f"{url}/_gateway/reload", headers=BEARER, timeout=90)
    assert reloaded.status_code == 202
    assert (
        reloaded.json()["hash"]
        == requests.get(f"{url}/_gateway/config", headers=BEARER, timeout=20).json()["hash"]
    ), "the file is the same"
    until(lambda: not pids & set(gateway.workers(2)))
    assert answers(url) == {(200, "other")}
    assert Counter(len(each.requests) for each in backends[:1]) == before

    assert put(url, instance(backends[1]), state="ejected").status_code == 200
    until(lambda: answers(url) == {(503, "")})
    refused = until(lambda: refusal(url))
    assert refused["error"] == "All instances drained"
    for backend in backends:
        assert put(url, instance(backend), state="active").status_code == 200
    until(lambda: answers(url) == {(200, "one"), (200, "other")})


def test_a_forced_circuit_rejects_in_every_worker_and_an_invalid_file_is_not_reloaded(
    gateway: Any,
) -> None:
    url = gateway.url
    assert put(url, "circuit-breakers/svc", state="open", **{"for": "10m"}).status_code == 200
    until(lambda: answers(url) == {(503, "")})

    pids = gateway.workers(2)
    gateway.file.write_text(gateway.file.read_text() + "\n[bogus]\n")
    refused = requests.post(f"{url}/_gateway/reload", headers=BEARER, timeout=90)
    assert refused.status_code == 422
    assert refused.json()["errors"][0].startswith("bogus: is not a known")
    assert gateway.workers(2) == pids

    os.kill(pids[0], signal.SIGKILL)
    until(lambda: pids[0] not in gateway.workers(2))
    until(lambda: answers(url) == {(503, "")})
    assert put(url, "circuit-breakers/svc", state="closed").status_code == 200
    until(lambda: answers(url) == {(200, "one"), (200, "other")})
