"""Code that decides follows a frozen clock; code that waits uses the real one."""

from __future__ import annotations

import ast
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time
from werkzeug.test import Client

from wsgigate import Authenticator, Breaker, CircuitRules, DenyList, Limiter, Logger, StaleAnswers
from wsgigate.auth.jwt import mint
from wsgigate.runtime import clocks
from wsgigate.store.lmdb import LmdbStore

SECRET = "a secret of the tests, thirty-two bytes or more"
NOON = "2030-06-01 12:00:00"


def hello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def status(app: Any, **headers: str) -> int:
    return Client(app).get("/", headers=headers).status_code


@pytest.mark.parametrize("store", [None, "memory:", "lmdb"])
@pytest.mark.parametrize("before", [True, False])
def test_quotas_follow_a_frozen_clock(store: str | None, before: bool, tmp_path: Path) -> None:
    def limiter() -> Limiter:
        kept = LmdbStore(tmp_path / "store") if store == "lmdb" else store
        return Limiter(hello, "1 per hour", store=kept, algorithm="fixed-window")

    app = limiter() if before else None
    with freeze_time(NOON) as frozen:
        app = app or limiter()
        assert [status(app) for _ in range(2)] == [200, 429]
        frozen.tick(3599)
        answer = Client(app).get("/")
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
        assert answer.headers["X-RateLimit-Reset"] == "2030-06-01T13:00:00.000Z"
        frozen.tick(1)
        assert status(app) == 200
    app.close()


@pytest.mark.parametrize("before", [True, False])
def test_the_expiry_of_tokens_follows_a_frozen_clock(before: bool) -> None:
    def authenticator() -> Authenticator:
        return Authenticator(hello, algorithms=["HS256"], secret=SECRET, leeway=0)

    app = authenticator() if before else None
    with freeze_time(NOON) as frozen:
        app = app or authenticator()
        token = f"Bearer {mint(SECRET, 'HS256', 'ada', 60)}"
        assert status(app, Authorization=token) == 200
        frozen.move_to("2030-06-01 12:01:01")
        assert status(app, Authorization=token) == 401


@pytest.mark.parametrize("before", [True, False])
def test_circuits_follow_a_frozen_clock(before: bool) -> None:
    def failing(environ: Any, start_response: Any) -> list[bytes]:
        start_response("500 Oops", [])
        return []

    def breaker() -> Breaker:
        rules = CircuitRules(consecutive_failures=1, open_for=30, jitter=0)
        return Breaker(failing, rules, store="memory:")

    app = breaker() if before else None
    with freeze_time(NOON) as frozen:
        app = app or breaker()
        assert [status(app) for _ in range(2)] == [500, 503]
        frozen.tick(31)
        assert status(app) == 500


def test_stale_responses_and_log_lines_follow_a_frozen_clock(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = [200, 503, 503]

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response(f"{answers.pop(0)} X", [("Cache-Control", "max-age=10, stale-if-error=50")])
        return [b"x"]

    stack = Logger(StaleAnswers(app), format="json")
    with freeze_time(NOON) as frozen:
        told = [status(stack)]
        frozen.tick(30)
        told.append(status(stack))
        frozen.tick(3600)
        told.append(status(stack))
        stack.close()
    assert told == [200, 200, 503]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["time"][:19] for line in lines] == [
        "2030-06-01T12:00:00",
        "2030-06-01T12:00:30",
        "2030-06-01T13:00:30",
    ]


def test_denials_follow_a_frozen_clock() -> None:
    with freeze_time(NOON) as frozen:
        denied = DenyList("memory:")
        app = Authenticator(hello, algorithms=["HS256"], secret=SECRET, deny_list=denied)
        token = mint(SECRET, "HS256", "ada", 600)
        assert status(app, Authorization=f"Bearer {token}") == 200
        denied.deny_subject("ada", time.time() + 1, time.time() + 3600)
        frozen.tick(60)
        assert status(app, Authorization=f"Bearer {token}") == 401


def test_the_real_clock_goes_on_while_time_is_frozen() -> None:
    with freeze_time(NOON):
        began = clocks.real()
        assert began != time.monotonic()
        assert any(clocks.real() > began for _ in range(100_000))
        assert clocks.wall() == time.time()
        assert clocks.steady() == time.monotonic()
        assert datetime.datetime.now(datetime.UTC).year == 2030


PACKAGE = Path(sys.modules["wsgigate"].__file__ or "").parent
SERVERS = ("servers", "cli", "testing")
"""Floors of programs of their own, in which nothing is frozen."""


@pytest.mark.parametrize(
    "path",
    sorted(
        path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in SERVERS
    ),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_waiting_code_uses_only_the_real_clock(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and path.name != "clocks.py":
            assert ast.unparse(node.func) not in ("time.monotonic", "time.perf_counter")
