"""A token that one worker denies is refused by the other one within a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.workers import WHO, Worker, both_workers
from wsgigate.auth.jwt import mint

Serve = Callable[..., Any]

SECRET = "0123456789abcdef0123456789abcdef"
ADMIN = "k" * 32
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


class Caller(Worker):
    """A worker, asked with tokens."""

    def ask(self, token: str) -> int:
        response = self.get("/mine", headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == 401 or response.text == self.pid
        return response.status_code

    def deny(self, **body: object) -> int:
        return self.operate("tokens/deny", ADMIN, **body).status_code


@pytest.mark.parametrize("kind", ["token", "jti", "sub"])
def test_what_one_worker_denies_the_other_refuses_within_a_second(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "who_answers.py").write_text(WHO)
    server = serve(GATEWAY, workers=2, env={"PYTHONPATH": str(tmp_path)})
    one, other = both_workers(server.url, Caller)
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
