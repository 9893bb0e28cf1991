"""Runs one health check against a backend, for the tests of health checks."""

from __future__ import annotations

import socket
import time
from queue import SimpleQueue
from typing import Any

from wsgigate.client.dial import Check
from wsgigate.discovery import Instance
from wsgigate.proxy.health_probe import Prober, TlsPolicy
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.runtime.tls import Verify
from wsgigate.testing.backend import Backend, Received, ScriptedAnswer

CHECK = HealthCheck("/health?deep=1", interval=60.0, timeout=25.0)


HASTY = HealthCheck("/health", timeout=0.3)


def check_once(
    url: str,
    check: HealthCheck = CHECK,
    *,
    verify: Verify = True,
    server_name: str | None = None,
    allowed: Check | None = None,
    clock: Any = time.monotonic,
) -> CheckResult:
    """Return what the instance at *url* answers to *check*."""
    found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
    prober = Prober({"shop": TlsPolicy(verify, server_name, allowed)}, clock=clock)
    try:
        prober.probe("shop", Instance(url), check, found.put)
        outcome = found.get(timeout=30)
    finally:
        prober.stop()
    assert isinstance(outcome, CheckResult)
    return outcome


def check_answer(answer: ScriptedAnswer, check: HealthCheck = CHECK) -> CheckResult:
    with Backend(answer) as backend:
        outcome = check_once(backend.url, check)
        backend.wait_until_closed()
        assert backend.connections == 1
    return outcome


def drip(head: bytes, drop: bytes) -> ScriptedAnswer:
    """Send *head*, then *drop* again and again until the client leaves."""

    def answer(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(head)
        connection.settimeout(0.01)
        while True:
            try:
                if not connection.recv(1):
                    return False
            except TimeoutError:
                connection.sendall(drop)

    return answer
