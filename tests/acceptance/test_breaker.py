"""A circuit breaker of several workers: what one of them finds, none of them asks again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import requests

from tests.support.waiting import until
from wsgigate.testing.backend import Backend, reply

FINE, BROKEN = reply(b"fine"), reply(b"broken", status="500 Broken")

GATEWAY = """
[gateway]
threads = 4
[services.svc]
instances = ["{url}"]
[[routes]]
path = "/"
service = "svc"
middleware = [{{ use = "breaker", consecutive_failures = 3, failure_rate = 0, probes = 2, \
open_for = "{open_for}", jitter = 0 }}]
"""


def ask(url: str) -> tuple[int, str]:
    answer = requests.get(url, timeout=20)  # by a connection of its own: to any of the workers
    refused = "Circuit breaker open" in answer.text
    return answer.status_code, "refused" if refused else answer.text


def test_all_workers_refuse_when_one_has_seen_enough_and_close_when_it_is_well(
    serve: Callable[..., Any], backend: Backend
) -> None:
    backend.answers = [BROKEN]
    gateway = serve(GATEWAY.format(url=backend.url, open_for="2s"), workers=3)

    until(lambda: ask(gateway.url)[1] == "refused")
    until(lambda: {ask(gateway.url)[1] for _ in range(12)} == {"refused"})

    backend.answers = [FINE]
    until(lambda: {ask(gateway.url) for _ in range(12)} == {(200, "fine")})


def test_an_open_circuit_keeps_every_worker_away_from_the_service(
    serve: Callable[..., Any], backend: Backend
) -> None:
    backend.answers = [BROKEN]
    gateway = serve(GATEWAY.format(url=backend.url, open_for="10m"), workers=3)
    until(lambda: ask(gateway.url)[1] == "refused")
    time.sleep(1)  # every worker asks the store again before the first request after half of it
    before = len(backend.requests)
    told = Counter(ask(gateway.url) for _ in range(60))
    assert told == {(503, "refused"): 60}
    assert len(backend.requests) == before
    answer = requests.get(gateway.url, timeout=20)
    assert 500 <= int(answer.headers["Retry-After"]) <= 600
