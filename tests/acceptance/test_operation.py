"""What operators see of several real workers: one log of what changes, and one answer of all."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.registries import RegistryServer
from tests.support.waiting import until
from wsgigate.rules.registry import Registered
from wsgigate.testing.backend import Backend, reply

Serve = Callable[..., Any]

TOKEN = "change-me-32-visible-characters-at-least"
BEARER = {"Authorization": f"Bearer {TOKEN}"}

GATEWAY = """
[gateway]
name = "test"
threads = 4
{level}
[admin]
prefix = ""
token = "{token}"
[maintenance]
[services.svc]
instances = ["{url}"]
max_in_flight = 3
breaker = {{ consecutive_failures = 1000, failure_rate = 1.0, minimum_calls = 500 }}
[services.found]
discover = "file:found.json"
[[routes]]
path = "/svc"
service = "svc"
[[routes]]
path = "/found"
service = "found"
"""


@pytest.fixture
def found(tmp_path: Path) -> Path:
    file = tmp_path / "found.json"
    file.write_text("[]")
    return file


def ask(gateway: Any, path: str) -> dict[str, Any]:
    """Return what one of the workers answers, on a connection of its own."""
    told: dict[str, Any] = requests.get(gateway.url + path, timeout=30).json()
    return told


def put(file: Path, *urls: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(urls))
    new.rename(file)


@pytest.mark.parametrize("server", ["gunicorn", "granian"])
def test_what_changes_is_logged_both_ways_and_once_for_all_workers(
    server: str, serve: Serve, backend: Backend, found: Path
) -> None:
    gateway = serve(
        GATEWAY.format(url=backend.url, token=TOKEN, level=""), workers=2, server=server
    )

    def lines(text: str) -> list[str]:
        return [line for line in gateway.log.splitlines() if text in line]

    until(lambda: "summary" in ask(gateway, "/health"))
    put(found, backend.url)
    until(lambda: lines("1 added: "))
    until(lambda: requests.get(gateway.url + "/found", timeout=30).status_code != 503)
    put(found)
    until(lambda: lines("1 removed: "))
    for on in (True, False):
        body = {"on": on, "scope": "service:svc"}
        path = gateway.url + "/maintenance"
        assert requests.post(path, json=body, headers=BEARER, timeout=30).status_code == 200
        until(lambda on=on: lines("out of service" if on else "back in service"))
    until(lambda: ask(gateway, "/health")["services"]["found"]["error"] == "No instances")
    gateway.stop()
    for text in ("1 added: ", "1 removed: ", "out of service", "back in service"):
        assert len(lines(text)) == 1, gateway.log
        assert re.search(r"\[\d+\] \[(INFO|WARNING)\]", lines(text)[0])


def test_the_level_of_the_log_is_one_key(serve: Serve, backend: Backend, found: Path) -> None:
    level = 'log_level = "error"'
    text = GATEWAY.format(url=backend.url, token=TOKEN, level=level)
    for server in ("gunicorn", "granian"):
        gateway = serve(text, workers=1, server=server)
        put(found, backend.url)
        until(lambda g=gateway: requests.get(g.url + "/found", timeout=30).status_code != 503)
        put(found)
        until(lambda g=gateway: ask(g, "/health")["services"]["found"].get("error"))
        assert "[INFO]" not in gateway.log
        assert "added" not in gateway.log


def test_every_worker_answers_for_all_of_them(serve: Serve, backend: Backend, found: Path) -> None:
    backend.answers = [reply(b"no", status="503 No")]
    text = GATEWAY.format(url=backend.url, token=TOKEN, level="")
    gateway = serve(text, workers=3)
    for _ in range(30):
        assert requests.get(gateway.url + "/svc", timeout=30).status_code == 503

    def answer_of_all() -> Any:
        """Return what all workers answer, as soon as each knows of the others."""
        first, *others = (ask(gateway, "/circuit-breakers") for _ in range(20))
        known = len(first["workers"]) == 3 and all(each == first for each in others)
        return first if known else None

    def failures(told: Any) -> int:
        count: int = told["circuitBreakers"]["svc"]["failureCount"]
        return count

    def bulkhead(told: Any) -> Any:
        return told["services"][0]["bulkhead"]

    told = until(lambda: (now := answer_of_all()) and failures(now) == 30 and now)
    assert told["circuitBreakers"]["svc"]["successCount"] == 0
    workers = {
        int(name.rpartition(":")[2]): each["svc"]["failureCount"]
        for name, each in told["workers"].items()
    }
    assert workers.keys() == set(gateway.workers())
    assert sum(workers.values()) == 30
    until(lambda: {failures(ask(gateway, "/health")) for _ in range(10)} == {30})
    free = {"inFlight": 0, "maxInFlight": 9, "refused": 0}
    until(lambda: [bulkhead(ask(gateway, "/services")) for _ in range(10)] == [free] * 10)
    os.kill(max(workers, key=lambda pid: workers[pid]), signal.SIGKILL)
    until(lambda: len(gateway.workers()) == 3)
    told = until(lambda: (now := answer_of_all()) and failures(now) < 30 and now)
    assert failures(told) == 30 - max(workers.values())
    path = gateway.url + "/circuit-breakers/svc/reset"
    assert requests.post(path, headers=BEARER, timeout=30).status_code == 200
    assert {failures(ask(gateway, "/circuit-breakers")) for _ in range(10)} == {0}


FOUND = """
[gateway]
name = "test"
[services.users]
discover = ["registry:{one}", "registry:{other}"]
[[routes]]
path = "/users"
service = "users"
"""


def test_a_gateway_asks_the_next_registry_while_one_is_gone(serve: Serve, backend: Backend) -> None:
    entry = Registered("users", "u-1", "127.0.0.1", int(backend.url.rpartition(":")[2]))
    one, other = RegistryServer().start(), RegistryServer().start()
    try:
        one.registry.register(entry)
        other.registry.register(entry)
        gateway = serve(FOUND.format(one=one.url, other=other.url), workers=1)

        def works() -> bool:
            return requests.get(gateway.url + "/users", timeout=30).status_code == 200

        assert works()
        one.stop()
        asked = len(other.asked)
        until(lambda: len(other.asked) > asked)
        assert works()
        with Backend() as new:  # a change is heard of from the one that is left
            port = int(new.url.rpartition(":")[2])
            other.registry.register(replace(entry, instance_id="u-2", port=port))
            until(lambda: works() and new.requests)
            other.registry.deregister("users", "u-2")
            until(lambda: len(other.registry.discover("users").instances) == 1)
            until(lambda: "1 removed" in gateway.log)
        one.start()  # with nothing in it
        other.stop()
        for _ in range(20):
            assert works(), "a registry without a memory takes no instance along"
        one.registry.register(entry)
        other.start()
        assert works()
    finally:
        one.stop()
        other.stop()


SLOW = """
[gateway]
name = "test"
threads = 2
[admin]
prefix = ""
[services.svc]
instances = ["{one}", "{other}"]
balance = "round-robin"
max_in_flight = 2
response_timeout = "1s"
outlier = {{ consecutive_failures = 1, eject_for = "60s" }}
[[routes]]
path = "/svc"
service = "svc"
"""


DROPS = 300  # a body of half a minute


def in_drops(kind: bytes) -> Callable[[socket.socket, Any], bool]:
    """Return an answer whose body comes in drops, for as long as anyone takes it."""

    def answer(connection: socket.socket, _request: object) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n\r\n" % kind)
        try:
            for _ in range(DROPS):
                connection.sendall(b"x")
                time.sleep(0.1)
        except OSError:
            pass
        return False

    return answer


@pytest.mark.parametrize("server", ["gunicorn", "granian"])
def test_a_body_in_drops_holds_no_thread_and_is_seen(server: str, serve: Serve) -> None:
    with Backend(in_drops(b"text/plain")) as one, Backend(in_drops(b"text/plain")) as other:
        gateway = serve(SLOW.format(one=one.url, other=other.url), workers=1, server=server)

        def take() -> int:
            try:
                return len(requests.get(gateway.url + "/svc", timeout=30).content)
            except requests.RequestException:
                return -1

        with ThreadPoolExecutor(2) as threads:
            sizes = list(threads.map(lambda _: take(), range(2)))
        assert max(sizes) < DROPS
        if server == "gunicorn":
            assert sizes == [-1, -1], "a body that was cut must not look complete"

        def in_flight() -> int:
            [service] = ask(gateway, "/services")["services"]
            count: int = service["bulkhead"]["inFlight"]
            return count

        until(lambda: in_flight() == 0)  # the client knows of the cut before the server's thread
        [told] = ask(gateway, "/services")["services"]
        [ejection] = told["ejections"].values()
        assert ejection["reason"] == "1 failure in a row, the last: Response too slow"


def test_a_stream_of_events_may_come_in_drops(serve: Serve) -> None:
    with Backend(in_drops(b"text/event-stream")) as one:
        text = SLOW.format(one=one.url, other=one.url + "/").replace(f', "{one.url}/"', "")
        gateway = serve(text, workers=1)
        with requests.get(gateway.url + "/svc", timeout=30, stream=True) as response:
            assert len(response.raw.read(25)) == 25  # of two and a half seconds
        assert "ejections" not in ask(gateway, "/services")["services"][0]
