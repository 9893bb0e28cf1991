"""API keys with two workers: a change by one is in force in the other within a second."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.workers import WHO, Worker, both_workers
from tests.support.redis_server import Server
from tests.support.waiting import until
from wsgigate.auth.api_keys import new_key
from wsgigate.testing.backend import Backend

Serve = Callable[..., Any]

ADMIN = "k" * 32
GATEWAY = """
[gateway]
name = "partners"
threads = 4
[store]
url = "{store}"
{keys}
[admin]
token = "{admin}"
[[middleware]]
use = "logger"
[services.orders]
instances = ["{backend}"]
[[routes]]
path = "/who"
app = "who_answers:app"
[[routes]]
path = "/mine"
app = "who_answers:app"
[[routes.middleware]]
use = "api-key"
[[routes]]
path = "/orders"
service = "orders"
[[routes.middleware]]
use = "api-key"
authorization = "ApiKey"
query = "api_key"
"""


class Caller(Worker):
    """A worker, asked with keys."""

    def ask(self, key: str) -> int:
        response = self.get("/mine", headers={"X-API-Key": key})
        assert response.status_code == 401 or response.text == self.pid
        return response.status_code

    def change(self, path: str, **body: object) -> Any:
        response = self.operate(f"api-keys{path}", ADMIN, **body)
        assert response.ok, response.text
        return response.json()


@pytest.fixture(params=["lmdb", "file", "redis"])
def served(
    request: pytest.FixtureRequest, serve: Serve, tmp_path: Path
) -> Iterator[tuple[Any, Backend]]:
    """Yield a gateway with two workers that keeps its keys in each of the places."""
    (tmp_path / "who_answers.py").write_text(WHO)
    with ExitStack() as stack:
        store, keys = "lmdb:data", ""
        if request.param == "redis":
            server = Server(tmp_path / "redis")
            stack.callback(server.stop)
            store = server.url
        elif request.param == "file":
            keys = '[api_keys]\nfile = "keys.json"\n'
        backend = stack.enter_context(Backend())
        text = GATEWAY.format(store=store, keys=keys, admin=ADMIN, backend=backend.url)
        yield serve(text, workers=2, env={"PYTHONPATH": str(tmp_path)}), backend


def command(server: Any, action: str, *arguments: str) -> Any:
    line = [sys.executable, "-m", "wsgigate", "keys", action, str(server.file), *arguments]
    folder = server.file.parent
    done = subprocess.run(
        [*line, "--json"],
        env={"PYTHONPATH": str(folder), "PATH": "", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_change_is_in_force_in_both_workers(served: tuple[Any, Backend]) -> None:
    server, backend = served
    one, other = both_workers(server.url, Caller)
    wrong = new_key("wg")
    assert [one.ask(wrong), other.ask(wrong)] == [401, 401]

    made = one.change("", owner="acme", plan="gold")
    key, id_ = made["key"], made["apiKey"]["id"]
    assert [other.ask(key), one.ask(key)] == [200, 200], "at once in both"

    new = other.change(f"/{id_}/rotate", overlap="1h")["key"]
    assert [one.ask(new), one.ask(key), other.ask(new), other.ask(key)] == [200] * 4

    by_command = command(server, "create", "--owner", "umbrella")["key"]
    assert [one.ask(by_command), other.ask(by_command)] == [200, 200]

    one.change(f"/{id_}/revoke")
    revoked = time.monotonic()
    assert [one.ask(key), one.ask(new)] == [401, 401], "at once, where it was revoked"
    while time.monotonic() < revoked + 1:
        other.ask(key)
        other.ask(new)
    assert {other.ask(each) for each in (key, new) for _ in range(20)} == {401}
    assert [one.ask(by_command), other.ask(by_command)] == [200, 200]

    # the server rejects the spelling with underscores; other servers join both into one field
    for fields in ({"X_API_Key": by_command}, {"X-API-Key": f"{by_command},{by_command}"}):
        answer = one.session.get(f"{server.url}/mine", headers=fields, timeout=20)
        assert answer.status_code in (400, 401)

    # neither the service nor a log gets a key, wherever the request has it
    query = f"a=1&api_key={by_command}"
    assert one.session.get(f"{server.url}/orders?{query}", timeout=20).status_code == 200
    fields = {"Authorization": f"ApiKey {by_command}"}
    assert one.session.get(f"{server.url}/orders", headers=fields, timeout=20).status_code == 200
    for worker in (one, other):
        worker.session.close()
    assert [request.target for request in backend.requests] == ["/orders?a=1", "/orders"]
    assert by_command not in str([request.fields for request in backend.requests])
    listed = command(server, "list")
    until(lambda: any("lastUsed" in each for each in command(server, "list")))
    assert {each["owner"] for each in listed} == {"acme", "umbrella"}
    until(lambda: '"path":"/orders"' in server.log)
    for each in (key, new, by_command):
        assert each.partition("_")[2] not in server.log
    assert f"api-key.revoke of {id_} of owner acme by admin token from 127.0.0.1" in server.log
