"""A token that one worker denies is refused by the other one within a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.waiting import until
from wsgigate.auth.jwt import mint

Serve = Callable[..., Any]

SECRET = "0123456789abcdef0123456789abcdef"
ADMIN = "k" * 32
WHO = """
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""
GATEWAY = f"""
[gateway]
name = "denials"
threads = 4
[admin]
token = "{ADMIN}"
[[routes]]
path = "/who"
app = "who_answers:app"
[[routes]]
path = "/mine"
app = "who_answers:app"
[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "{SECRET}"
deny_list = true
"""


class Worker:
    """One worker, asked over a connection that is kept: it is always the same one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        self.pid = self.session.get(f"{url}/who", timeout=20).text

    def ask(self, token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        response = self.session.get(f"{self.url}/mine", headers=headers, timeout=20)
        assert response.status_code == 401 or response.text == self.pid
        return response.status_code

    def deny(self, **body: object) -> int:
        return self.session.post(
            f"{self.url}/_gateway/tokens/deny",
            json=body,
            headers={"Authorization": f"Bearer {ADMIN}"},
            timeout=20,
        ).status_code


@pytest.mark.parametrize("kind", ["token", "jti", "sub"])
def test_what_one_worker_denies_the_other_refuses_within_a_second(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "who_answers.py").write_text(WHO)
    server = serve(GATEWAY, workers=2, env={"PYTHONPATH": str(tmp_path)})
    workers: dict[str, Worker] = {}

    def both() -> bool:
        found = Worker(server.url)
        workers.setdefault(found.pid, found)
        return len(workers) == 2

    until(both)
    one, other = workers.values()
    token = mint(SECRET, "HS256", "ann", 600, time.time() - 5, jti="j-1")
    fresh = mint(SECRET, "HS256", "ann", 600, time.time() + 5, jti="j-2")
    assert [one.ask(token), other.ask(token), other.ask(fresh)] == [200, 200, 200]

    named = {"token": token, "jti": "j-1", "sub": "ann"}[kind]
    body = {kind: named} if kind == "token" else {kind: named, "until": time.time() + 600}
    assert one.deny(**body) == 200
    denied = time.monotonic()
    assert one.ask(token) == 401, "at once, where it was denied"
    while time.monotonic() < denied + 1:
        other.ask(token)
    assert {other.ask(token) for _ in range(50)} == {401}
    assert [one.ask(fresh), other.ask(fresh)] == [200, 200]
    for worker in (one, other):
        worker.session.close()
