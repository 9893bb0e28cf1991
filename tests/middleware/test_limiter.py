"""The rate limiter: quotas, response fields and rejections."""

import json
import re
import sys
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import flask
import pytest
from django.http import JsonResponse

from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import REASON, close_body
from wsgigate.middleware.limiter import Limiter
from wsgigate.rules.quota import Quota
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock
from wsgigate.testing.middleware import check_middleware


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


class Answer:
    def __init__(self, status, headers, body):
        self.status = int(status.partition(" ")[0])
        self.headers = headers
        self.body = body

    def __getitem__(self, name):
        """Return the one value of a field; None if there is none."""
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) < 2, f"{name} is there more than once"
        return found[0] if found else None

    @property
    def problem(self):
        return json.loads(self.body)


def ask(app, address="192.0.2.1", **environ):
    place = {"SCRIPT_NAME": "", "PATH_INFO": "/", "QUERY_STRING": ""}
    environ = {"REMOTE_ADDR": address, **place, **environ}
    setup_testing_defaults(environ)
    begun = []

    def start_response(status, headers, exc_info=None):
        begun[:] = [status, headers]
        return lambda data: None

    body = validator(app)(environ, start_response)
    try:
        sent = b"".join(body)
    finally:
        close_body(body)
    status, headers = begun
    return Answer(status, headers, sent)


def test_a_caller_passes_as_often_as_its_quota_says_and_is_then_refused(store):
    app = Limiter(hello, "3 per minute", store=store)
    assert [ask(app).status for _ in range(5)] == [200, 200, 200, 429, 429]
    assert ask(app, "192.0.2.2").status == 200


def test_every_response_has_the_rate_limit_fields(store):
    app = Limiter(hello, Quota(2, 900), store=store, algorithm="fixed-window")
    first, second, refused = (ask(app) for _ in range(3))
    for answer in (first, second, refused):
        assert answer["RateLimit-Policy"] == '"default";q=2;w=900'
        assert answer["X-RateLimit-Limit"] == "2"
        assert answer["X-RateLimit-Reset"] == "1970-01-12T14:01:40.000Z"
    assert [answer["X-RateLimit-Remaining"] for answer in (first, second, refused)] == [
        "1",
        "0",
        "0",
    ]
    assert first["RateLimit"] == '"default";r=1;t=900'
    assert refused["RateLimit"] == '"default";r=0;t=900'
    assert first["Retry-After"] is None


def test_a_refusal_is_the_documented_problem(store, clock):
    app = Limiter(hello, "2 per 15 minutes", store=store, algorithm="fixed-window", name="burst")
    ask(app)
    ask(app)
    clock.advance(100.25)
    refused = ask(app)
    assert refused.problem == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "Too many requests! Please try again later.",
        "success": False,
        "message": "Too many requests! Please try again later.",
        "retryAfter": 800,
        "violated-policies": ["burst"],
    }
    assert refused["Retry-After"] == "800"
    assert refused["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("algorithm", ["token-bucket", "fixed-window"])
@pytest.mark.parametrize("quota", ["1/s", "3 per 10 seconds", "100 per 15 minutes", "7/0.5s"])
def test_a_caller_that_waits_for_retry_after_passes(store, clock, algorithm, quota):
    app = Limiter(hello, quota, store=store, algorithm=algorithm)
    while (answer := ask(app)).status == 200:
        clock.advance(0.01)
    for _ in range(3):
        wait = int(answer["Retry-After"])
        assert wait >= 1
        assert wait >= int(re.search(r"t=(\d+)", answer["RateLimit"])[1])
        clock.advance(wait)
        assert ask(app).status == 200
        while (answer := ask(app)).status == 200:
            pass


def test_retry_after_is_when_one_unit_is_free_not_all(store):
    app = Limiter(hello, "2 per minute", store=store)
    assert ask(app)["RateLimit"] == '"default";r=1;t=30'
    last = ask(app)
    assert last["RateLimit"] == '"default";r=0;t=30'
    assert last["X-RateLimit-Reset"] == "1970-01-12T13:47:40.000Z"


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        (("ratelimit",), {"RateLimit", "RateLimit-Policy"}),
        (("x-ratelimit",), {"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"}),
        ((), set()),
    ],
)
def test_only_the_fields_that_are_wanted_are_sent(store, fields, sent):
    app = Limiter(hello, "1/m", store=store, fields=fields)
    for status in (200, 429):
        answer = ask(app)
        assert answer.status == status
        assert {name for name, _ in answer.headers if "ratelimit" in name.lower()} == sent
    assert answer["Retry-After"] == "60"


def test_fields_of_the_same_names_from_the_app_are_replaced_and_its_list_left_alone(store):
    headers = [("x-ratelimit-limit", "7"), ("RATELIMIT", "x"), ("X-Other", "1")]

    def app(environ, start_response):
        start_response("204 No Content", headers)
        return []

    answer = ask(Limiter(app, "9/m", store=store))
    assert answer["X-RateLimit-Limit"] == "9"
    assert answer["RateLimit"].startswith('"default"')
    assert answer["X-Other"] == "1"
    assert len(headers) == 3


def test_nested_limiters_are_all_reported_and_the_tightest_sets_x_ratelimit(store):
    inner = Limiter(hello, "2/s", store=store, name="burst")
    app = Limiter(inner, "100 per hour", store=store, name="hour", algorithm="fixed-window")
    answer = ask(app)
    assert answer["RateLimit-Policy"] == '"hour";q=100;w=3600, "burst";q=2;w=1'
    assert answer["RateLimit"] == '"hour";r=99;t=3600, "burst";r=1;t=1'
    assert answer["X-RateLimit-Remaining"] == "1"
    ask(app)
    refused = ask(app)
    assert refused.problem["violated-policies"] == ["burst"]
    assert refused["RateLimit"] == '"burst";r=0;t=1'
    assert refused["Retry-After"] == "1"


def test_an_exempt_caller_is_not_counted_and_gets_no_fields(store):
    app = Limiter(hello, "1/m", store=store, key=lambda environ: None)
    for _ in range(3):
        answer = ask(app)
        assert answer.status == 200
        assert [name for name, _ in answer.headers] == ["Content-Type", "Content-Length"]
    assert list(store.items("")) == []


def test_the_log_names_the_rejected_caller_and_the_response_does_not(store):
    app = Limiter(hello, "1/m", store=store, name="burst")
    environ = {}
    setup_testing_defaults(environ)
    environ["REMOTE_ADDR"] = "192.0.2.7"
    for _ in range(2):
        body = b"".join(app(environ, lambda status, headers: None))
    assert environ[REASON] == "192.0.2.7 is over the quota 'burst' of 1 per minute"
    assert b"192.0.2.7" not in body


def test_a_replaced_rejection_still_has_the_rate_limit_fields(store):
    def page(problem: Problem):
        def app(environ, start_response):
            start_response("429 Slow Down", [("Content-Type", "text/html")])
            return [b"<h1>slow down</h1>"]

        return app

    app = Limiter(hello, "1/m", store=store, refuse=page)
    ask(app)
    refused = ask(app)
    assert refused.body == b"<h1>slow down</h1>"
    assert refused["RateLimit"] == '"default";r=0;t=60'


def test_the_body_of_the_app_is_passed_on_as_it_is(store):
    body = [b"one", b"two"]

    def app(environ, start_response):
        start_response("200 OK", [])
        return body

    environ = {}
    setup_testing_defaults(environ)
    assert Limiter(app, "9/m", store=store)(environ, lambda status, headers: None) is body


def test_an_error_of_the_app_replaces_what_it_had_begun(store):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            raise LookupError
        except LookupError:
            start_response("500 Oops", [("Content-Type", "text/plain")], sys.exc_info())
        return [b""]

    answer = ask(Limiter(app, "9/m", store=store))
    assert answer.status == 500
    assert answer["X-RateLimit-Remaining"] == "8"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quota": "many"}, 'a quota is written "100 per 15 minutes"'),
        ({"quota": 100}, 'a quota is written "100 per 15 minutes" .* not 100'),
        ({"algorithm": "leaky"}, "algorithm is one of \"token-bucket\", .* not 'leaky'"),
        ({"fields": "ratelimit"}, 'fields is a list out of "ratelimit", "x-ratelimit"'),
        ({"fields": ["RateLimit"]}, "fields is a list out of"),
        ({"on_store_error": "ignore"}, 'on_store_error is "allow" or "refuse", not \'ignore\''),
        ({"name": ""}, "name is 1 to 64 letters, digits"),
        ({"name": 'a"b'}, "name is 1 to 64 letters, digits"),
        ({"name": "a/b"}, "name is 1 to 64 letters, digits"),
        ({"store": "sqlite:/x"}, 'a store is "memory:", "lmdb:", "lmdb:PATH" or a URL'),
        ({"store": 7}, "store: a store or the URL of one, not 7"),
    ],
)
def test_wrong_settings_are_refused_at_construction(settings, words):
    with pytest.raises(ValueError, match=words):
        Limiter(hello, **({"quota": "1/s"} | settings))


def test_it_limits_a_flask_app(store):
    app = flask.Flask("shop")

    @app.get("/")
    def index():
        return {"hello": "flask"}

    app.wsgi_app = Limiter(app.wsgi_app, "2 per 15 minutes", store=store)
    client = app.test_client()
    first, second, third = (client.get("/") for _ in range(3))
    assert (first.status_code, first.json) == (200, {"hello": "flask"})
    assert second.headers["X-RateLimit-Remaining"] == "0"
    assert (third.status_code, third.json["retryAfter"]) == (429, 450)
    assert third.headers["Retry-After"] == "450"


def test_it_limits_a_django_app(store, django_app):
    inner = django_app({"": lambda request: JsonResponse({"hello": "django"})})
    app = Limiter(inner, "2 per 15 minutes", store=store)
    first, second, third = (ask(app) for _ in range(3))
    assert (first.status, json.loads(first.body)) == (200, {"hello": "django"})
    assert second["X-RateLimit-Remaining"] == "0"
    assert (third.status, third.problem["retryAfter"]) == (429, 450)


def test_it_keeps_the_wsgi_contract():
    check_middleware(lambda app: Limiter(app, "1000/s", store=MemoryStore()), leaves_body=True)


@pytest.mark.parametrize(
    ("family", "reset"),
    [
        ("x-ratelimit", "1970-01-01T00:17:10.500Z"),
        ("x-ratelimit-epoch", "1031"),
        ("x-ratelimit-seconds", "30"),
    ],
)
def test_the_reset_has_three_formats(family, reset):
    store = MemoryStore(clock=FakeClock(1000.5))
    app = Limiter(hello, "2/m", store=store, fields=[family])
    assert ask(app)["X-RateLimit-Reset"] == reset
    around = Limiter(app, "9/s", store=store, fields=[family], name="other")
    told = ask(around)
    assert told["X-RateLimit-Limit"] == "2"
    assert "ratelimit" not in [name.lower() for name, _ in told.headers]


@pytest.mark.parametrize("quota", ["1/h;3/d", "1/h, 3/d", "1 per hour | 3 per day", "1/h\n3/d;"])
def test_several_quotas_may_be_one_text(quota):
    clock = FakeClock()
    app = Limiter(hello, quota, store=MemoryStore(clock=clock), algorithm="fixed-window")
    policy = '"default-1h";q=1;w=3600, "default-1d";q=3;w=86400'
    assert ask(app)["RateLimit-Policy"] == policy
    assert ask(app).status == 429
    chosen = Limiter(hello, lambda environ: quota, store=MemoryStore(), name="chosen")
    assert [ask(chosen).status for _ in range(2)] == [200, 429]
