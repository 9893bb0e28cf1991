"""Failed attempts that another attempt hides from the client are in the log."""

from __future__ import annotations

import pytest
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tests.support.ports import refused_port
from wsgigate.client.adapter import Sessions
from wsgigate.discovery import Instance
from wsgigate.http.wsgi import REQUEST_ID
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.failed_attempts import FailedAttempts
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.rules.retry import RetryRules
from wsgigate.testing.backend import Backend, reply


def ask(forwarder: Forwarder) -> str:
    environ = EnvironBuilder("/a", environ_overrides={REQUEST_ID: "r1"}).get_environ()
    body, status, _ = run_wsgi_app(forwarder, environ)
    list(body)
    return status[:3]


def pool_of(*urls: str) -> Pool:
    instances = [Instance(url) for url in urls]
    return Pool("orders", instances, balance="round-robin", random=lambda: 0.0)


def test_a_dead_instance_that_failover_hides_is_logged_once(
    sessions: Sessions, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    with refused_port() as port:
        forwarder = Forwarder(pool_of(f"http://127.0.0.1:{port}", backend.url), sessions=sessions)
        assert [ask(forwarder) for _ in range(6)] == ["200"] * 6
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("wsgigate.pool", "WARNING")
    assert record.getMessage() == (
        f"An attempt at instance 127.0.0.1:{port} of 'orders' failed, and the request was sent"
        " again: ConnectionRefusedError: [Errno 111] Connection refused (request r1)"
    )
    fields = vars(record)["wsgigate"]
    assert (fields["instance"], fields["request_id"]) == (f"127.0.0.1:{port}", "r1")


def test_a_response_after_a_logged_failure_is_logged_once(
    sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    retry = Resilience(retry=RetryRules(attempts=2, backoff=0.0, statuses=(503,)))
    with Backend(reply(b"", status="503 Away"), reply(b"ok")) as backend:
        forwarder = Forwarder(pool_of(backend.url), sessions=sessions, resilience=retry)
        assert [ask(forwarder) for _ in range(3)] == ["200"] * 3
    first, second = caplog.messages
    assert "failed, and the request was sent again: status 503" in first
    assert second.endswith("of 'orders' answers again")


def test_an_instance_that_fails_and_answers_by_turns_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = FailedAttempts("orders")
    for _ in range(1000):
        failures.add({"REQUEST_METHOD": "GET"}, "10.0.0.1:80", "reset\r\nforged")
        failures.answered("10.0.0.1:80")
    assert len(caplog.messages) == 2
    assert all(line.isprintable() for line in caplog.messages)
