"""Traffic shaped by two workers under gunicorn, with real services behind them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.workers import WHO, Worker, both_workers
from tests.support.ports import refused_port
from tests.support.servers import home
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, reply

Serve = Callable[..., Any]

ADMIN = "k" * 32
FILE = """
[gateway]
name = "shaping"
threads = 4
[admin]
token = "{admin}"
[maintenance]
[[middleware]]
use = "logger"
format = "json"
[services.now]
instances = ["{now}"]
[services.next]
instances = ["{next}"]
[services.shadow]
instances = ["{shadow}"]
[services.lost]
instances = ["{lost}"]
fallback = {{ service = "now" }}
[[routes]]
path = "/who"
app = "who_answers:app"
name = "who"
[[routes]]
path = "/split"
services = [{{ service = "now" }}, {{ service = "next" }}]
split = {{ key = "cookie:session" }}
[[routes]]
path = "/mirrored"
service = "now"
mirror = {{ service = "shadow" }}
[[routes]]
path = "/lost"
service = "lost"
"""


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, Backend]]:
    with (
        Backend(reply(b"now")) as now,
        Backend(reply(b"next")) as following,
        Backend(reply(b"shadow")) as shadow,
    ):
        yield {"now": now, "next": following, "shadow": shadow}


@pytest.fixture(scope="module")
def server(
    serve_for_all: Serve, backends: dict[str, Backend], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    folder = tmp_path_factory.mktemp("apps")
    (folder / "who_answers.py").write_text(WHO)
    with refused_port() as port:
        urls = {name: backend.url for name, backend in backends.items()}
        text = FILE.format(admin=ADMIN, lost=f"http://127.0.0.1:{port}", **urls)
        served = serve_for_all(text, workers=2, env={"PYTHONPATH": str(folder)})
        served.folder = folder
        yield served


@pytest.fixture
def workers(server: Any) -> Iterator[tuple[Worker, Worker]]:
    one, other = both_workers(server.url, Worker)
    yield one, other
    for worker in (one, other):
        worker.close()


def test_what_is_switched_in_one_worker_is_off_in_the_other_within_a_second(
    workers: tuple[Worker, Worker],
) -> None:
    one, other = workers
    for on, status in ((True, 503), (False, 200)):
        assert one.operate("maintenance", ADMIN, on=on).status_code == 200
        switched = time.monotonic()
        assert one.get("/who").status_code == status, "at once, where it was switched"
        while time.monotonic() < switched + 1:
            other.get("/who")
            time.sleep(0.05)
        for _ in range(20):
            assert other.get("/who").status_code == status
        assert other.get("/_gateway/health").status_code == 200


def test_the_command_switches_a_route_of_both(server: Any, workers: tuple[Worker, Worker]) -> None:
    def switch(what: str) -> str:
        command = [sys.executable, "-m", "wsgigate", "maintenance", str(server.file), what]
        folder = Path(server.file).parent
        path = {"PYTHONPATH": str(server.folder)}
        environment = {**os.environ, **home(folder), **path}
        done = subprocess.run(
            [*command, "--route", "who"],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert switch("on").startswith("route:who: out of service since ")
    until(lambda: all(each.get("/who").status_code == 503 for each in workers))
    assert all(each.get("/split").status_code == 200 for each in workers)
    assert switch("off") == "all in service\n"
    until(lambda: all(each.get("/who").status_code == 200 for each in workers))


def test_a_caller_gets_to_the_same_version_in_both(
    server: Any, workers: tuple[Worker, Worker]
) -> None:
    found = [
        [each.get("/split", headers={"Cookie": f"session={n}"}).text for n in range(20)]
        for each in workers
    ]
    assert found[0] == found[1]
    assert set(found[0]) == {"now", "next"}

    def told() -> set[tuple[str, str]]:
        lines = (json.loads(line) for line in server.log.splitlines() if line.startswith("{"))
        return {(line["service"], line["shaped"]) for line in lines if line.get("path") == "/split"}

    # a line is written after its response has been sent
    until(lambda: told() >= {("now", "split=now"), ("next", "split=next")})


def test_each_worker_mirrors_what_it_serves(
    workers: tuple[Worker, Worker], backends: dict[str, Backend]
) -> None:
    shadow = backends["shadow"]
    for number, each in enumerate(workers):
        url = f"{each.url}/mirrored?worker={number}"
        answer = each.session.post(url, data=b"order", timeout=20)
        assert answer.text == "now"
    shadow.wait(lambda: sum(request.complete for request in shadow.requests) >= 2)
    copies = {request.target: request for request in shadow.requests}
    assert set(copies) == {"/mirrored?worker=0", "/mirrored?worker=1"}
    for copy in copies.values():
        assert (copy.body, copy.value("X-Gateway-Mirror")) == (b"order", "1")


def test_a_fallback_service_answers_for_one_that_is_down(workers: tuple[Worker, Worker]) -> None:
    for each in workers:
        answer = each.get("/lost")
        assert (answer.text, answer.headers["X-Gateway-Fallback"]) == ("now", "service")
