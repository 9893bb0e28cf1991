"""Outlier detection: failing instances are ejected and return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import Client

from tests.config.files import errors_of
from tests.support.logs import silence
from wsgigate.client.adapter import Sessions
from wsgigate.config.build import build
from wsgigate.config.load import parse
from wsgigate.discovery import Instance
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.rules.circuit import Outcome
from wsgigate.rules.outlier import OutlierRules
from wsgigate.rules.retry import RetryRules
from wsgigate.testing import FakeClock
from wsgigate.testing.backend import Backend, cut, reply

RULES = OutlierRules(consecutive_failures=2, eject_for=10)
BAD = reply(b"no", status="500 No")
URLS = [f"http://127.0.0.1:{port}" for port in (3001, 3002, 3003)]


_silent = silence("wsgigate.pool")


def pool(*urls: str, clock: Callable[[], float], **options: Any) -> Pool:
    options = {"balance": "round-robin", "random": lambda: 0.0, "outlier": RULES, **options}
    return Pool("svc", [Instance(url) for url in urls or URLS], clock=clock, **options)


def ask(of: Pool, outcome: Outcome = Outcome.OK) -> str:
    lease = of.pick()
    assert lease is not None
    lease.answered(outcome, 0.1, 200 if outcome is Outcome.OK else 500)
    lease.release()
    lease.release()  # once more does nothing
    return lease.instance.url


@pytest.mark.parametrize(
    ("bad", "method"),
    [(BAD, "GET"), (BAD, "POST"), (cut(b""), "GET"), (cut(b"HTTP/1.1 200 OK\r\nX"), "GET")],
)
def test_a_failing_instance_is_ejected_for_the_ejection_time(
    bad: Any, method: str, backend: Backend, sessions: Sessions, clock: FakeClock
) -> None:
    with Backend(bad) as ill:
        both = pool(ill.url, backend.url, clock=clock)
        client = Client(Forwarder(both, sessions=sessions), use_cookies=False)
        for _ in range(8):
            client.open("/", method=method, buffered=True)
        assert (len(ill.requests), len(backend.requests)) == (2, 6)
        assert both.ejected() == [ill.url]
        assert [instance.url for instance in both.available()] == [backend.url]
        clock.advance(10)
        assert both.ejected() == []
        client.open("/", method=method, buffered=True)
        client.open("/", method=method, buffered=True)
        assert len(ill.requests) == 3


@pytest.mark.parametrize("status", ["404 No", "429 Slowly", "200 OK", "501 No"])
def test_outcomes_that_do_not_concern_the_instance_do_not_count(
    status: str, backend: Backend, sessions: Sessions, clock: FakeClock
) -> None:
    with Backend(reply(b"", status=status)) as other:
        both = pool(other.url, backend.url, clock=clock)
        client = Client(Forwarder(both, sessions=sessions))
        for _ in range(8):
            client.get("/", buffered=True)
        assert both.ejected() == []


def test_every_attempt_counts(backend: Backend, sessions: Sessions, clock: FakeClock) -> None:
    with Backend(reply(b"", status="503 No")) as ill:
        both = pool(ill.url, backend.url, clock=clock)
        given = Resilience(retry=RetryRules(), clock=clock, sleep=lambda _: None)
        client = Client(Forwarder(both, sessions=sessions, resilience=given))
        answers = [client.get("/", buffered=True).status_code for _ in range(6)]
        assert answers == [200] * 6
        assert len(ill.requests) == 2


def test_the_share_of_ejected_instances_is_limited(clock: FakeClock) -> None:
    three = pool(clock=clock)
    for _ in range(12):
        ask(three, Outcome.FAILED)
    assert len(three.ejected()) == 1
    alone = pool(URLS[0], clock=clock)
    for _ in range(4):
        ask(alone, Outcome.FAILED)
    assert alone.ejected() == []


def test_a_health_check_that_recovers_ends_the_ejection(clock: FakeClock) -> None:
    both = pool(*URLS[:2], clock=clock)
    for _ in range(2):
        ask(both, Outcome.FAILED)
        ask(both)
    assert both.ejected() == [URLS[0]]
    both.mark(URLS[0], True)  # as before: that tells nothing new
    assert both.ejected() == [URLS[0]]
    both.mark(URLS[0], False)
    both.mark(URLS[0], True)
    assert both.ejected() == []
    assert {ask(both) for _ in range(4)} == set(URLS[:2])


def test_an_instance_with_a_lower_success_rate_is_ejected(clock: FakeClock) -> None:
    rules = OutlierRules(
        consecutive_failures=None,
        success_rate=True,
        least_instances=3,
        least_requests=10,
        deviations=1.0,
    )
    three = pool(clock=clock, outlier=rules)
    for _ in range(20):
        for outcome in (Outcome.FAILED, Outcome.OK, Outcome.OK):
            ask(three, outcome)
    assert three.ejected() == []
    clock.advance(10)
    ask(three)
    assert three.ejected() == [URLS[0]]


def test_an_instance_starts_slowly_after_its_ejection(clock: FakeClock) -> None:
    both = pool(*URLS[:2], clock=clock, balance="weighted", slow_start=100.0)
    for _ in range(2):
        ask(both, Outcome.FAILED)
        ask(both)
    [ill] = both.ejected()
    clock.advance(10)
    assert [ask(both) for _ in range(22)].count(ill) == 2


def test_the_file_sets_outlier_detection_and_services_list_the_ejected() -> None:
    with Backend(BAD) as ill, Backend() as well:
        text = f"""
            [store]
            url = "memory:"
            [admin]
            [services.a]
            instances = ["{ill.url}", "{well.url}"]
            balance = "round-robin"
            outlier = {{ consecutive_failures = 3 }}
            [[routes]]
            path = "/a"
            service = "a"
        """
        gateway = build(parse(text, environ={}))
        client = Client(gateway)
        assert "ejected" not in client.get("/_gateway/discover/a").get_json()["service"]
        for _ in range(10):
            client.get("/a")
        assert len(ill.requests) == 3
        assert client.get("/_gateway/discover/a").get_json()["service"]["ejected"] == [ill.url]
        gateway.close()


@pytest.mark.parametrize(
    ("outlier", "path", "said"),
    [
        ("outlier = true", "services.a.outlier", "expected a table"),
        ("outlier = { most_ejected = 2 }", "services.a.outlier.most_ejected", "from 0 to 1"),
        (
            "outlier = { eject_for = '9s', eject_at_most = '1s' }",
            "services.a.outlier",
            "eject_at_most is not less than eject_for",
        ),
    ],
)
def test_errors_are_reported_at_their_key(outlier: str, path: str, said: str) -> None:
    assert (
        said in dict(errors_of(f"[services.a]\ninstances = ['http://a.test']\n{outlier}\n"))[path]
    )
