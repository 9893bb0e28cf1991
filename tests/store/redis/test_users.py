"""Limiters, deny lists and circuit breakers on a real Redis."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from wsgiref.util import setup_testing_defaults

import pytest

from tests.support.logs import silence
from wsgigate import Breaker, CircuitRules, ConcurrencyLimiter, Limiter
from wsgigate.auth.jwt import mint, read_compact
from wsgigate.coordination.denylist import DenyList, identity
from wsgigate.http.wsgi import REASON
from wsgigate.rules.circuit import State
from wsgigate.store.memory import MemoryStore
from wsgigate.store.redis import RedisStore
from wsgigate.testing import FakeClock

_silent = silence("wsgigate")


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def ask(app, **environ):
    """Return the status, the fields, the document of a refusal, and the environ of one request."""
    environ = {"REMOTE_ADDR": "192.0.2.1", **environ}
    setup_testing_defaults(environ)
    begun = []
    answer = app(environ, lambda status, fields: begun.extend([status, dict(fields)]))
    body = b"".join(answer)
    getattr(answer, "close", lambda: None)()
    status = int(begun[0][:3])
    return status, begun[1], json.loads(body) if status != 200 else {}, environ


def remaining(fields):
    """Return what remains of each policy, without the times that differ between stores."""
    items = fields.get("RateLimit", "").split(", ")
    return [item.partition(";t=")[0] for item in items], fields.get("X-RateLimit-Remaining")


def calls(server):
    """Return how often scripts were run, by everybody."""
    with server.admin() as admin:
        stats = admin.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


def told(app, requests):
    """Return of each request its status, what remains, and which policies it violated."""
    answers = []
    for environ in requests:
        status, fields, document, environ = ask(app, **environ)
        answers.append(
            (status, remaining(fields), document.get("violated-policies"), REASON in environ)
        )
    return answers


PLAIN = [{}] * 8
MANY = {
    "one quota": ({"quota": "3 per hour"}, PLAIN),
    "a fixed window": ({"quota": "3 per hour", "algorithm": "fixed-window"}, PLAIN),
    "a sliding window": ({"quota": "3 per hour", "algorithm": "sliding-window"}, PLAIN),
    "the calendar": ({"quota": "3 per calendar year"}, PLAIN),
    "several quotas": ({"quota": ["3 per hour", "5 per day", "9 per calendar year"]}, PLAIN),
    "several sliding windows": (
        {"quota": ["3 per hour", "5 per day"], "algorithm": "sliding-window"},
        PLAIN,
    ),
    "a cost": ({"quota": "7 per hour", "cost": 3}, PLAIN),
    "a cost of each request": (
        {"quota": ["7 per hour", "9 per day"], "cost": lambda environ: environ["cost"]},
        [{"cost": cost} for cost in (0, 3, 8, -1, 5, 4, 0, 1)],
    ),
    "plans": (
        {
            "quota": "2 per hour",
            "plans": {"pro": ["4 per hour", "5 per calendar year"]},
            "plan": lambda environ: environ["plan"],
        },
        [{"plan": plan} for plan in ("pro", None, "pro", "free", None, "pro", "pro", "pro")],
    ),
    "a quota of each request": (
        {"quota": lambda environ: environ["quota"]},
        [{"quota": quota} for quota in ("1/h", None, "1/h", ["2/h", "3/d"], "1/h", ["2/h", "3/d"])],
    ),
    "keys and exemptions": (
        {
            "quota": "1 per hour",
            "key": ["address", "header:X-Team"],
            "exempt": {"paths": ["/free"]},
        },
        [
            {"HTTP_X_TEAM": "a"},
            {"HTTP_X_TEAM": "a"},
            {"HTTP_X_TEAM": "b"},
            {"HTTP_X_TEAM": "a", "REMOTE_ADDR": "2001:db8::1"},
            {"HTTP_X_TEAM": "a", "REMOTE_ADDR": "2001:db8::2"},
            {"HTTP_X_TEAM": "a", "PATH_INFO": "/free"},
            {},
        ],
    ),
    "only observed": ({"quota": ["2 per hour", "3 per day"], "observe": True}, PLAIN),
}


@pytest.mark.parametrize("case", MANY)
def test_a_limiter_decides_as_with_a_memory_store(store, case):
    options, requests = MANY[case]
    here = Limiter(hello, store=MemoryStore(), **options)
    there = Limiter(hello, store=store, **options)
    assert told(there, requests) == (expected := told(here, requests))
    assert there.store_errors == 0
    assert there.observed == here.observed
    assert any(answer[0] != 200 or answer[3] for answer in expected), "somebody is over it"


def test_a_limited_request_is_one_script_however_many_quotas_it_has(server, store):
    limiter = Limiter(hello, ["5 per hour", "9 per calendar day"], store=store, cost=2)
    ask(limiter)  # loads the script
    before = calls(server)
    assert [ask(limiter)[0] for _ in range(3)] == [200, 429, 429]
    assert calls(server) == before + 3


def test_threads_and_limiters_of_one_quota_allow_exactly_the_quota(server, store):
    with ExitStack() as stack:
        limiters = []
        for _ in range(3):
            other = RedisStore(f"{server.url}&prefix={store.prefix}")
            stack.callback(other.close)
            limiters.append(Limiter(hello, ["100 per day", "900 per calendar year"], store=other))
        with ThreadPoolExecutor(12) as threads:
            statuses = Counter(threads.map(lambda number: ask(limiters[number % 3])[0], range(200)))
    assert statuses == {200: 100, 429: 100}


@pytest.mark.parametrize(("choice", "status"), [("allow", 200), ("refuse", 503)])
def test_a_limiter_follows_on_store_error_while_the_server_is_down(start, connect, choice, status):
    server = start()
    limiter = Limiter(hello, "2 per hour", store=connect(server.url), on_store_error=choice)
    assert "RateLimit" in ask(limiter)[1]
    server.stop()
    answers = [ask(limiter) for _ in range(10)]
    assert [answer[0] for answer in answers] == [status] * 10
    assert not any("RateLimit" in answer[1] for answer in answers)
    assert limiter.store_errors == 10


def test_requests_in_flight_are_counted_across_limiters(server, store):
    first = ConcurrencyLimiter(hello, 2, store=store)
    other = RedisStore(f"{server.url}&prefix={store.prefix}")
    second = ConcurrencyLimiter(hello, 2, store=other)

    def hold(app):
        environ = {"REMOTE_ADDR": "192.0.2.1"}
        setup_testing_defaults(environ)
        begun = []
        return app(environ, lambda status, fields: begun.append(status)), begun

    held = [hold(first), hold(second)]
    assert [begun for _, begun in held] == [["200 OK"]] * 2
    assert [ask(app)[0] for app in (first, second)] == [429, 429]
    held[0][0].close()
    assert [ask(app)[0] for app in (second, first, second)] == [200] * 3
    held[1][0].close()
    assert list(store.items("concurrency/")) == [], "nothing is left of those that have ended"
    for each in (first, second, other):
        each.close()


def test_requests_in_flight_never_exceed_the_limit(store):
    inside, most = [], []

    def busy(environ, start_response):
        inside.append(None)
        most.append(len(inside))
        start_response("200 OK", [])
        yield b"busy"
        inside.pop()

    limiter = ConcurrencyLimiter(busy, 3, store=store)

    def work(number):
        environ = {"REMOTE_ADDR": "192.0.2.1"}
        setup_testing_defaults(environ)
        statuses = []
        body = limiter(environ, lambda status, fields: statuses.append(status[:3]))
        try:
            b"".join(body)
        finally:
            getattr(body, "close", lambda: None)()
        return statuses[0]

    with ThreadPoolExecutor(8) as threads:
        statuses = Counter(threads.map(work, range(60)))
    assert max(most) <= 3
    assert statuses["200"] >= 3
    assert statuses.keys() <= {"200", "429"}
    assert limiter.store_errors == 0
    limiter.close()


def test_a_token_denied_by_one_list_is_denied_by_another(server, store):
    other = RedisStore(f"{server.url}&prefix={store.prefix}")
    here, there = DenyList(store, staleness=0), DenyList(other, staleness=0)
    now = time.time()

    def token(jti):
        text = mint("0123456789abcdef0123456789abcdef", "HS256", "ann", 3600, now, jti=jti, iat=now)
        claims = {"jti": jti, "iat": now, "sub": "ann"}
        return text, identity(read_compact(text).signed, claims)

    (one, first), (_, second) = token("j-1"), token("j-2")
    assert there.why_denied(first) == there.why_denied(second) == ""
    assert here.deny_token(one) == pytest.approx(now + 3600, abs=1)
    assert there.why_denied(first)
    assert there.why_denied(second) == ""
    here.deny_subject("ann", now + 1, now + 3600)
    assert there.why_denied(second)
    other.close()


def test_a_circuit_that_one_breaker_opens_is_open_in_another(server, store):
    def broken(environ, start_response):
        start_response("500 Broken", [])
        return [b"{}"]

    other = RedisStore(f"{server.url}&prefix={store.prefix}")
    rules = CircuitRules(consecutive_failures=2, open_for=60, jitter=0)
    clock = FakeClock()
    here, there = (
        Breaker(broken, rules, store=each, sync_interval=1, clock=clock) for each in (store, other)
    )
    assert [ask(app)[0] for app in (there, here, here)] == [500, 500, 500]
    clock.advance(1)
    assert [ask(app)[0] for app in (here, there)] == [503, 503]
    assert there.circuit.status().state is State.OPEN
    assert here.circuit.store_errors == there.circuit.store_errors == 0
    other.close()
