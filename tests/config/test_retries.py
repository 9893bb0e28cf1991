"""Retries of requests to a service."""

from __future__ import annotations

import pytest
from werkzeug.test import Client

from tests.config.files import errors_of
from wsgigate.config.build import build
from wsgigate.config.load import parse
from wsgigate.testing.backend import Backend, reply

BAD = reply(b"busy", status="503 Service Unavailable")


@pytest.mark.parametrize(
    ("retry", "method", "asked"),
    [
        ("", "GET", 1),
        ("retry = { backoff = '0s' }", "GET", 2),
        ("retry = { attempts = 4, backoff = '0s' }", "GET", 4),
        ("retry = { attempts = 4, backoff = '0s' }", "POST", 1),
        ("retry = { attempts = 1 }", "GET", 1),
        ("retry = { backoff = '0s', methods = ['PUT'] }", "GET", 1),
        ("retry = { backoff = '0s', statuses = [500] }", "GET", 1),
        ("retry = { backoff = '0s', budget = 0, budget_floor = 0 }", "GET", 1),
    ],
)
def test_the_file_sets_the_number_of_attempts(retry: str, method: str, asked: int) -> None:
    with Backend(BAD) as backend:
        text = f"""
            [store]
            url = "memory:"
            [services.a]
            instances = ["{backend.url}"]
            {retry}
            [[routes]]
            path = "/"
            service = "a"
        """
        gateway = build(parse(text, environ={}))
        assert Client(gateway).open("/", method=method).status_code == 503
        assert len(backend.requests) == asked
        gateway.close()


@pytest.mark.parametrize(
    ("retry", "path", "said"),
    [
        ("retry = 3", "services.a.retry", "expected a table"),
        ("retry = { tries = 3 }", "services.a.retry.tries", "is not a known key"),
        ("retry = { attempts = 0 }", "services.a.retry.attempts", "from 1 to 10"),
        ("retry = { methods = ['POST'] }", "services.a.retry.methods[0]", "DELETE"),
        ("retry = { statuses = [404] }", "services.a.retry.statuses[0]", "500 to 599"),
        ("retry = { buffer = '1GiB' }", "services.a.retry", "buffer is 0 to"),
        (
            "retry = { backoff = '2s', backoff_at_most = '1s' }",
            "services.a.retry",
            "backoff_at_most is not less than backoff",
        ),
    ],
)
def test_errors_are_reported_at_their_key(retry: str, path: str, said: str) -> None:
    assert said in dict(errors_of(f"[services.a]\ninstances = ['http://a.test']\n{retry}\n"))[path]
