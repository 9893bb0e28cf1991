"""One worker of all asks the instances; when it is killed, another does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from tests.acceptance.conftest import until
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

    killed = until(prober)
    assert killed in gateway.workers()
    until(lambda: {told()["healthy"] for _ in range(12)} == {True})  # in every worker
    began, before = time.monotonic(), len(backend.requests)
    until(lambda: len(backend.requests) >= before + 6)
    assert prober() == killed
    assert time.monotonic() - began > 1.5  # as one asks; the three of them would not take as long

    os.kill(killed, signal.SIGKILL)
    backend.answers = [reply(status="503 Not Today")]
    until(lambda: prober() not in (0, killed))
    assert prober() in gateway.workers()
    until(lambda: {told().get("error") for _ in range(12)} == {"Status 503"})
    backend.answers = [reply()]
    until(lambda: {told()["healthy"] for _ in range(12)} == {True})
    store.close()
