"""Clients that hold on to a worker, as many of each kind as it has threads.

The same clients are tried on gunicorn's own threaded worker, to show what is cured.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.attackers import (
    APP,
    DEFAULTS,
    HEAD,
    KINDS,
    OPTIONS,
    PLAIN,
    QUICK,
    THREADS,
    Attackers,
    get,
)
from tests.support.certificates import make_certificate
from tests.support.waiting import until

Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and a certificate for 127.0.0.1."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("kind", KINDS)
def test_slow_clients_are_disconnected_and_others_served(kind: str, serve_app: Serve) -> None:
    """M01 to M05."""
    server = serve_app(APP, *QUICK)
    with Attackers(server.port, kind) as attackers:
        assert get(server.url).text == "ok"
        assert attackers.all_let_go()
    # an app is called once a short body is complete, or much of a large one has arrived
    broken = THREADS if kind == "half a large body" else 0
    until(lambda: server.log.count("BROKEN ClientStalled") == broken)
    assert "WHOLE" not in server.log
    assert "Traceback" not in server.log


TAKE_NO_THREAD = ["one byte", "half a head", "half a body", "a body in drops", "says nothing"]


@pytest.mark.parametrize("kind", [*TAKE_NO_THREAD, "half a large body", "never reads"])
def test_a_hundred_slow_clients_fail_no_request_of_others(kind: str, serve_app: Serve) -> None:
    """With the default deadlines, which none of the slow clients reaches."""
    server = serve_app(APP, *DEFAULTS)
    with Attackers(server.port, kind, count=100) as attackers, ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda _: get(server.url, timeout=9).text, range(80))
        assert list(answers) == ["ok"] * 80
        if kind in TAKE_NO_THREAD:
            assert attackers.are_all_connected()
    assert ("connections cut" in server.log) == (kind not in TAKE_NO_THREAD)
    assert "Traceback" not in server.log


@pytest.mark.parametrize("kind", ["half a head", "a body in drops", "never reads", "lingers"])
def test_slow_clients_are_disconnected_behind_tls_too(
    kind: str, serve_app: Serve, certificate: Path
) -> None:
    server = serve_app(APP, *QUICK, "--certfile", str(certificate), "--keyfile", str(certificate))
    tls = ssl.create_default_context(cafile=str(certificate))
    with Attackers(server.port, kind, tls=tls) as attackers:
        url = server.url.replace("http:", "https:")
        assert get(url, verify=str(certificate)).text == "ok"
        assert attackers.all_let_go()
    assert "WHOLE" not in server.log
    assert "Traceback" not in server.log


def test_half_a_handshake_is_disconnected(serve_app: Serve, certificate: Path) -> None:
    server = serve_app(APP, *QUICK, "--certfile", str(certificate), "--keyfile", str(certificate))
    with Attackers(server.port, "one byte") as attackers:  # of the five that TLS waits for
        url = server.url.replace("http:", "https:")
        assert get(url, verify=str(certificate)).text == "ok"
        assert attackers.all_let_go()


HOLD_GUNICORN = KINDS.keys() - {"lingers", "says nothing"}  # these two delay it by seconds


def test_gunicorns_own_worker_is_held_by_most_of_them(serve_app: Serve) -> None:
    """These clients would hold a worker that had no deadlines; each has a server of its own."""
    with ExitStack() as stack:
        servers = {kind: serve_app(APP, *PLAIN) for kind in HOLD_GUNICORN}
        for kind, server in servers.items():
            assert get(server.url, timeout=60).text == "ok"
            stack.enter_context(Attackers(server.port, kind))

        def is_held(kind: str) -> bool:
            for _ in range(20):  # a request may come before the worker has read what they sent
                try:
                    get(servers[kind].url, timeout=3)
                except requests.Timeout:
                    return True
            return False

        with ThreadPoolExecutor(len(HOLD_GUNICORN)) as threads:
            assert all(threads.map(is_held, HOLD_GUNICORN))


def test_a_large_response_in_one_piece_may_take_longer_than_the_idle_timeout(
    serve_app: Serve,
) -> None:
    server = serve_app(APP, *OPTIONS, "--worker-class", "served0.Steady")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.settimeout(20)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /one-piece" + HEAD + b"Connection: close\r\n\r\n")
        received, began = 0, time.monotonic()
        while data := client.recv(1 << 16):
            received += len(data)
            if time.monotonic() - began < 4.5:
                time.sleep(0.05)
    assert received > 1 << 25
    assert time.monotonic() - began > 3.0
