"""The facts of a server, from its settings and from a request."""

from __future__ import annotations

from typing import Any

import pytest
from gunicorn.config import Config
from werkzeug.test import EnvironBuilder

from wsgigate.gateway import Gateway
from wsgigate.integrations.gate_worker import TESTED, GateWorker
from wsgigate.integrations.self_check import (
    checked_at_first_request,
    facts_of_environ,
    facts_of_gunicorn,
    tell,
)
from wsgigate.problem import Problem
from wsgigate.rules.serving import Finding, findings
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.server import Server, new_environ

SAFE = {
    "http_parser": "python",
    "forwarded_allow_ips": "",
    "forwarder_headers": "",
    "header_map": "refuse",
}


def config(**settings: Any) -> Config:
    made = Config()
    for name, value in {**SAFE, **settings}.items():
        made.set(name, value)
    return made


def settings_of(cfg: Config) -> list[str]:
    facts = facts_of_gunicorn(cfg, worker="GateWorker", tested=TESTED)
    return [f"{found.severity} {found.setting}" for found in findings(facts)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"preload_app": True}, ["warning preload_app"]),
        ({"header_map": "dangerous"}, ["error header_map"]),
        ({"forwarded_allow_ips": "*"}, ["error forwarded_allow_ips"]),
        ({"bind": "unix:/tmp/a", "forwarder_headers": "script_name"}, ["error forwarder_headers"]),
    ],
)
def test_gunicorns_settings_tell_facts(settings: dict[str, Any], expected: list[str]) -> None:
    assert settings_of(config(**settings)) == expected


def test_gunicorns_defaults_are_not_those_of_a_gateway() -> None:
    assert "error forwarder_headers" in settings_of(Config())


def test_a_worker_class_without_changes_is_the_class_itself() -> None:
    assert GateWorker.having(head_timeout=None, idle_timeout=30.0) is GateWorker
    assert GateWorker.having(head_timeout=1.0).head_timeout == 1.0


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, []),
        ({"SERVER_SOFTWARE": "gunicorn/27.0.1", "RAW_URI": "/"}, ["warning worker_class"]),
        (
            {"SERVER_SOFTWARE": "WSGIServer/0.2 CPython/3.11.7"},
            ["warning wsgiref", "warning wsgiref"],
        ),
        ({"SERVER_SOFTWARE": "Werkzeug/3.1.9", "REQUEST_URI": "/"}, ["warning werkzeug"]),
        (
            {
                "SERVER_SOFTWARE": "Werkzeug/3.1.9",
                "REQUEST_URI": "/",
                "werkzeug.debug.preserve_context": None,
            },
            ["error werkzeug", "warning werkzeug"],
        ),
        (
            {
                "SERVER_SOFTWARE": "Werkzeug/3.1.9",
                "REQUEST_URI": "/",
                "REMOTE_ADDR": "127.0.0.1",
                "werkzeug.debug.preserve_context": None,
            },
            ["warning werkzeug"],
        ),
        (EnvironBuilder().get_environ(), []),
    ],
)
def test_a_request_tells_facts(environ: dict[str, Any], expected: list[str]) -> None:
    found = findings(facts_of_environ({**new_environ(), **environ}))
    assert [f"{each.severity} {each.setting}" for each in found] == expected


def test_warnings_never_refuse(caplog: pytest.LogCaptureFixture) -> None:
    assert not tell([Finding("warning", "worker_class", "is slow")], "refuse")
    assert caplog.text.count("Self-check: worker_class: is slow") == 1


@pytest.mark.parametrize(("mode", "status"), [("refuse", 503), ("warn", 404)])
def test_a_gateway_looks_at_the_first_request_and_tells_once(
    mode: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(
        Problem(404),
        name="test",
        store=MemoryStore(),
        pools={},
        first=checked_at_first_request(mode),
    )
    unsafe = {"SERVER_SOFTWARE": "Werkzeug/3.1.9", "werkzeug.debug.preserve_context": None}
    for _ in range(2):
        answer = Server().serve(gateway, {**new_environ(), **unsafe})
        assert answer.status.startswith(str(status))
    assert caplog.text.count("lets clients run code") == 1
    gateway.close()
