"""Health checks in the file: what is asked, what is good, and that the reason is told."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

import pytest

from tests.config.test_build import wrong
from wsgigate.config.build import build
from wsgigate.config.load import parse
from wsgigate.discovery import Instance
from wsgigate.discovery.health import HealthChecker
from wsgigate.testing.backend import Backend, reply

SERVICE = "[services.a]\ninstances = ['http://a']\nhealth = "


@pytest.mark.parametrize(
    ("health", "path", "said"),
    [
        ("{ interval = 30 }", "services.a.health.path", "is missing"),
        ("{ type = 'tcp', path = '/health' }", "services.a.health.path", "is not a known key"),
        ("{ type = 'tcp', contains = 'x' }", "services.a.health.contains", "is not a known key"),
        ("{ type = 'grpc', path = '/' }", "services.a.health.type", '"http"'),
        ("{ path = '/', statuses = [] }", "services.a.health.statuses", "at least one"),
        ("{ path = '/', statuses = [103] }", "services.a.health.statuses[0]", "200"),
        ("{ path = '/../x' }", "services.a.health", "dot segments"),
    ],
)
def test_what_is_wrong_is_told_at_its_key(health: str, path: str, said: str) -> None:
    assert said in dict(wrong(SERVICE + health))[path]


def test_each_service_is_asked_in_its_own_way_and_the_reason_is_told() -> None:
    checks = {
        "port": 'type = "tcp"',
        "login": 'path = "/login", statuses = [401]',
        "plain": 'path = "/plain"',
        "ready": 'path = "/ready", contains = "ready"',
        "busy": 'path = "/busy", contains = "ready"',
    }

    def answer(connection, request):  # type: ignore[no-untyped-def]
        status = "401 Unauthorized" if request.target in ("/login", "/plain") else "200 OK"
        connection.sendall(reply(request.target.encode(), status=status))

    with Backend(answer) as backend:
        services = "".join(
            f'[services.{name}]\ninstances = ["{backend.url}"]\nhealth = {{ {check} }}\n'
            for name, check in checks.items()
        )
        gateway = build(parse(f'[store]\nurl = "memory:"\n{services}', environ={}))
        health = gateway.health
        assert isinstance(health, HealthChecker)
        told: dict[str, tuple[bool, int | None, str]] = {}
        try:
            for name, check in health._checks.items():
                found: SimpleQueue[Any] = SimpleQueue()
                health._asker.ask(name, Instance(backend.url), check, found.put)
                outcome = found.get(timeout=10)
                told[name] = outcome.ok, outcome.status, outcome.error
        finally:
            health._asker.stop()
            gateway.close()
    assert told == {
        "port": (True, None, ""),
        "login": (True, 401, ""),
        "plain": (False, 401, "Status 401"),
        "ready": (True, 200, ""),
        "busy": (False, 200, "Unexpected content"),
    }
