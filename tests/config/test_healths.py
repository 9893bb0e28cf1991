"""Health checks: their requests, their verdicts and the reasons that are reported."""

from __future__ import annotations

import socket
from queue import SimpleQueue
from typing import Any

import pytest

from tests.config.files import errors_of
from wsgigate.config.build import build
from wsgigate.config.checks import check_across
from wsgigate.config.errors import Errors
from wsgigate.config.load import parse
from wsgigate.discovery import Instance
from wsgigate.discovery.health import HealthChecker
from wsgigate.testing.backend import Backend, Received, reply

SERVICE = "[services.a]\ninstances = ['http://a']\nhealth = "


@pytest.mark.parametrize(
    ("health", "path", "said"),
    [
        ("{ interval = 30 }", "services.a.health.path", "is required"),
        ("{ type = 'tcp', path = '/health' }", "services.a.health.path", "is not a known key"),
        ("{ type = 'tcp', contains = 'x' }", "services.a.health.contains", "is not a known key"),
        ("{ type = 'grpc', path = '/' }", "services.a.health.type", '"http"'),
        ("{ path = '/', statuses = [] }", "services.a.health.statuses", "at least one"),
        ("{ path = '/', statuses = [103] }", "services.a.health.statuses[0]", "200"),
        ("{ path = '/../x' }", "services.a.health", "dot segments"),
        ("{ path = '/', host = 'a/b' }", "services.a.health.host", "is a name such as"),
        ("{ path = '/', method = 'TRACE' }", "services.a.health.method", "is one of GET"),
        ("{ path = '/', port = 70000 }", "services.a.health.port", "65535"),
        ("{ path = '/', scheme = 'ftp' }", "services.a.health.scheme", '"https"'),
        ("{ path = '/', fields = { Host = 'a' } }", "services.a.health.fields", "give host"),
        ("{ path = '/', fields = 'a' }", "services.a.health.fields", "expected a table"),
        ("{ type = 'tcp', host = 'a' }", "services.a.health.host", "is not a known key"),
        ("{ type = 'tcp', port = 0 }", "services.a.health.port", "65535"),
    ],
)
def test_errors_are_reported_at_their_key(health: str, path: str, said: str) -> None:
    assert said in dict(errors_of(SERVICE + health))[path]


def test_each_health_check_uses_its_own_request_and_reports_the_reason() -> None:
    checks = {
        "port": 'type = "tcp"',
        "login": 'path = "/login", statuses = [401]',
        "plain": 'path = "/plain"',
        "ready": 'path = "/ready", contains = "ready"',
        "busy": 'path = "/busy", contains = "ready"',
    }

    def answer(connection: socket.socket, request: Received) -> None:
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
            for name, check in health.checks.items():
                found: SimpleQueue[Any] = SimpleQueue()
                health.prober.probe(name, Instance(backend.url), check, found.put)
                outcome = found.get(timeout=30)
                told[name] = outcome.ok, outcome.status, outcome.error
        finally:
            health.prober.stop()
            gateway.close()
    assert told == {
        "port": (True, None, ""),
        "login": (True, 401, ""),
        "plain": (False, 401, "Status 401"),
        "ready": (True, 200, ""),
        "busy": (False, 200, "Unexpected content"),
    }


def checks_of(text: str) -> dict[str, str]:
    """Return the host of each service's check, empty for the instance's own."""
    gateway = build(parse(f"[store]\nurl = 'memory:'\n{text}", environ={}))
    try:
        assert gateway.health is not None
        return {name: check.host for name, check in gateway.health.checks.items()}
    finally:
        gateway.close()


ROUTE = "[[routes]]\npath = '/'\nservice = 'a'\n"
HEALTHY = "[services.a]\ninstances = ['http://a']\nhealth = { path = '/up' }\n"


@pytest.mark.parametrize(
    ("text", "host"),
    [
        (HEALTHY + ROUTE + "host = 'shop.example'\n", ""),  # the instance's own Host is sent
        (HEALTHY + "preserve_host = true\n" + ROUTE, ""),
        (HEALTHY + "preserve_host = true\n" + ROUTE + "host = 'shop.example'\n", "shop.example"),
        (HEALTHY + ROUTE + "host = 'shop.example'\npreserve_host = true\n", "shop.example"),
        (HEALTHY + "preserve_host = true\n" + ROUTE + "host = '*.example'\n", ""),
        (
            HEALTHY
            + "preserve_host = true\n"
            + ROUTE
            + "host = 'a.example'\n"
            + ROUTE
            + "host = 'b.example'\n",
            "",
        ),
        # what the file says comes first
        (
            HEALTHY.replace("'/up'", "'/up', host = 'up.example'")
            + "preserve_host = true\n"
            + ROUTE
            + "host = 'shop.example'\n",
            "up.example",
        ),
        (
            HEALTHY
            + "preserve_host = true\nhost = 'inner.example'\n"
            + ROUTE
            + "host = 'shop.example'\n",
            "",  # it is the instance's name then
        ),
    ],
)
def test_a_health_check_sends_the_host_that_clients_use(text: str, host: str) -> None:
    assert checks_of(text) == {"a": host}


@pytest.mark.parametrize(
    ("hosts", "warned"),
    [([""], False), (["a.example"], False), (["*.example"], True), (["a.example", "b"], True)],
)
def test_a_health_check_of_a_service_with_several_hosts_is_a_warning(
    hosts: list[str], warned: bool
) -> None:
    text = HEALTHY + "preserve_host = true\n"
    text += "".join(f"{ROUTE}{f'host = {host!r}' if host else ''}\n" for host in hosts)
    warnings: list[tuple[str, str]] = []
    check_across(parse(f"[store]\nurl = 'memory:'\n{text}", environ={}), Errors(), warnings)
    assert ("services.a.health" in dict(warnings)) is warned


def test_the_file_sets_every_part_of_a_health_check(backend: Backend) -> None:
    text = (
        f"[services.a]\ninstances = ['{backend.url}']\n"
        "health = { path = '/up', host = 'shop.example', method = 'HEAD', "
        "fields = { Authorization = 'Bearer ${TOKEN}' } }\n"
    )
    gateway = build(
        parse(f"[store]\nurl = 'memory:'\n{text}", environ={"TOKEN": "secret-of-health"})
    )
    health = gateway.health
    assert isinstance(health, HealthChecker)
    found: SimpleQueue[Any] = SimpleQueue()
    try:
        health.prober.probe("a", Instance(backend.url), health.checks["a"], found.put)
        assert found.get(timeout=30).ok
    finally:
        health.prober.stop()
        gateway.close()
    [request] = backend.requests
    assert request.line == "HEAD /up HTTP/1.1"
    fields = dict(request.fields)
    assert fields["Host"] == "shop.example"
    assert fields["Authorization"] == "Bearer secret-of-health"
