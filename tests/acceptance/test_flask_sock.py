"""WebSockets of a Flask app inside: its library takes the client's socket over, as each server has
it, and none of the middlewares takes that for a failure."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect

from tests.support.servers import Servers
from tests.support.waiting import until

APP = """
from flask import Flask
from flask_sock import Sock
from wsgigate import (
    Breaker, CircuitRules, ConcurrencyLimiter, Fallback, Guard, Limiter, Logger, Problem, Shedder,
    SheddingRules,
)

app = Flask(__name__)
sock = Sock(app)


@sock.route("/echo")
def echo(ws):
    while True:
        ws.send(ws.receive())


@sock.route("/once")
def once(ws):
    ws.send(ws.receive())


app.get("/")(lambda: "hello")

stack = Fallback(app.wsgi_app, Problem(503))
rules = CircuitRules(
    consecutive_failures=2, jitter=0, minimum_calls=2, slow_after=0.000001, slow_rate=1.0
)
stack = Breaker(stack, rules, store="memory:")
stack = Shedder(stack, SheddingRules(least=2, most=2))
stack = ConcurrencyLimiter(Limiter(stack, "1000/m", store="memory:"), 9, store="memory:")
app.wsgi_app = Guard(Logger(Guard(stack), format="json"))
"""

WERKZEUG = "from app import app; app.run(port={port}, threaded=True)"


def command(server: str, port: int) -> list[str]:
    if server == "werkzeug":
        return [sys.executable, "-c", WERKZEUG.format(port=port)]
    gunicorn = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--threads", "12"]
    return [*gunicorn, "--worker-class", server, "app:app"]


@pytest.mark.parametrize(
    "server", ["gthread", "wsgigate.servers.gunicorn_worker.GateWorker", "gevent", "werkzeug"]
)
def test_a_socket_that_is_taken_over_is_no_failure(server: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with Servers() as servers:
        served = servers.start(
            partial(command, server), tmp_path / "log", {"PYTHONPATH": str(tmp_path)}
        )
        address = served.url.replace("http", "ws")
        with ExitStack() as stack:
            # more at once than the shedder lets be under way
            opened = [stack.enter_context(connect(f"{address}/echo")) for _ in range(4)]
            for socket in opened:
                socket.send("all of them at once")
                assert socket.recv(20) == "all of them at once"
        for _ in range(4):
            with connect(f"{address}/once") as once:
                once.send("x")
                assert once.recv(20) == "x"
                with pytest.raises(ConnectionClosedOK):
                    once.recv(20)
        for _ in range(3):
            assert requests.get(served.url, timeout=20).text == "hello"

        def records() -> list[dict[str, Any]]:
            lines = [line for line in served.log.splitlines() if line.startswith('{"time"')]
            return [json.loads(line) for line in lines]

        until(lambda: len(records()) >= 11)
        told = [(each["path"], each["status"], each.get("error")) for each in records()]
        assert sorted(told) == sorted(
            [("/echo", 101, None)] * 4 + [("/once", 101, None)] * 4 + [("/", 200, None)] * 3
        )
        assert "Traceback" not in served.log
