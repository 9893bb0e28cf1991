"""HTTP Basic with two workers: guesses are counted over both, and a login reaches the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from argon2 import PasswordHasher

from wsgigate.testing.backend import Backend

Serve = Callable[..., Any]

HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("secret")
GATEWAY = """
[gateway]
name = "logins"
threads = 4
identity = {{ X-User = "sub" }}
[[middleware]]
use = "logger"
[services.reports]
instances = ["{backend}"]
[[routes]]
path = "/reports"
service = "reports"
[[routes.middleware]]
use = "basic"
users_file = "users"
max_failures = 5
"""


def ask(url: str, password: str) -> int:
    """Send one request over a connection of its own, which any worker may accept."""
    with requests.Session() as session:
        session.trust_env = False
        response = session.get(
            f"{url}/reports",
            auth=("ann", password),
            headers={"X-User": "admin", "Connection": "close"},
            timeout=20,
        )
    return response.status_code


def test_a_user_passes_and_an_attacker_has_few_guesses(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"ann:{HASH}\n")
    with Backend() as backend:
        server = serve(GATEWAY.format(backend=backend.url), workers=2)
        guesses = [ask(server.url, f"guess-{number}") for number in range(12)]
        assert guesses == [401] * 5 + [429] * 7, "over both workers together"
        assert ask(server.url, "secret") == 429, "it does not tell a correct guess"
        assert backend.requests == []

        (tmp_path / "users").write_text(f"ann:{HASH}\n\n")
        server = serve(GATEWAY.replace("logins", "others").format(backend=backend.url), workers=2)
        assert {ask(server.url, "secret") for _ in range(10)} == {200}
    for request in backend.requests:
        assert request.value("X-User") == "ann"
        assert request.value("Authorization") is None
    assert "secret" not in server.log
    assert "YW5uOnNlY3JldA" not in server.log
