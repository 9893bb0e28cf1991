"""The limit of concurrent requests across all workers, and its leases."""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
import time
from types import SimpleNamespace
from wsgiref.util import setup_testing_defaults

import flask
import pytest
from django.http import JsonResponse

from tests.support.objects import part
from tests.support.waiting import until
from wsgigate.http.wsgi import REASON
from wsgigate.middleware.concurrency import ConcurrencyLimiter, Leases
from wsgigate.middleware.limiter import Limiter
from wsgigate.runtime.threads import Timer
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock
from wsgigate.testing.middleware import check_middleware


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("RateLimit", "of the app")])
    return [b"hello"]


class Answer:
    """An answer on its way, which ends when it is closed."""

    def __init__(self, app, **environ):
        self.environ = {"REMOTE_ADDR": "192.0.2.1", **environ}
        setup_testing_defaults(self.environ)
        self.body = app(self.environ, self._start)

    def _start(self, status, headers, exc_info=None):
        self.status, self.fields = int(status[:3]), dict(headers)
        return lambda data: None

    def close(self):
        content = b"".join(self.body)
        if hasattr(self.body, "close"):
            self.body.close()
        return content


def test_a_slot_is_held_until_the_response_ends(store):
    app = ConcurrencyLimiter(hello, 2, store=store)
    first, second, refused = (Answer(app) for _ in range(3))
    assert [each.status for each in (first, second, refused)] == [200, 200, 429]
    assert Answer(app, REMOTE_ADDR="192.0.2.2").status == 200
    first.close()
    first.close()
    third, refused = Answer(app), Answer(app)
    assert [third.status, refused.status] == [200, 429]
    for each in (second, third):
        assert each.close() == b"hello"
    assert [key for key, _ in store.items("concurrency/concurrency/=192.0.2.1")] == []


def test_responses_have_the_fields_and_a_rejection_is_the_documented_problem(store):
    app = ConcurrencyLimiter(hello, 1, store=store, name="at-once")
    first, refused = Answer(app), Answer(app)
    assert first.fields["RateLimit-Policy"] == '"at-once";q=1;qu="concurrent-requests"'
    assert (first.fields["RateLimit"], refused.fields["RateLimit"]) == ('"at-once";r=0',) * 2
    assert refused.fields["Retry-After"] == "1"
    assert json.loads(refused.close()) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "Too many requests at a time! Please wait for one to end.",
        "success": False,
        "message": "Too many requests at a time! Please wait for one to end.",
        "retryAfter": 1,
        "violated-policies": ["at-once"],
    }
    assert refused.environ[REASON] == ("192.0.2.1 has 1 requests in flight, the limit of 'at-once'")
    quiet = ConcurrencyLimiter(hello, 1, store=store, name="quiet", fields=())
    assert Answer(quiet).fields["RateLimit"] == "of the app"


def test_its_fields_are_combined_with_those_of_outer_limiters(store):
    app = Limiter(ConcurrencyLimiter(hello, 3, store=store), "9/m", store=store)
    answer = Answer(app)
    assert answer.fields["RateLimit"] == '"default";r=8;t=7, "concurrency";r=2'
    assert answer.fields["X-RateLimit-Limit"] == "9"


def test_an_app_that_fails_releases_its_slot(store):
    def failing(environ, start_response):
        raise LookupError

    class Failing:
        def __iter__(self):
            return self

        def __next__(self):
            raise LookupError

        def close(self):
            raise LookupError("at its end, too")

    app = ConcurrencyLimiter(failing, 1, store=store)
    for _ in range(2):
        with pytest.raises(LookupError):
            Answer(app)
    app = ConcurrencyLimiter(
        lambda environ, start: (start("200 OK", []), Failing())[1], 1, store=store
    )
    for _ in range(2):
        answer = Answer(app)
        with pytest.raises(LookupError):
            next(iter(answer.body))
        with pytest.raises(LookupError, match="at its end"):
            answer.body.close()
    assert answer.status == 200


def test_the_lease_of_a_collected_response_is_not_renewed(store, clock):
    app = ConcurrencyLimiter(hello, 1, store=store, lease=10)
    answer = Answer(app)
    assert len(part(Leases, app)) == 1
    del answer
    gc.collect()
    assert len(part(Leases, app)) == 0
    clock.advance(10)
    assert Answer(app).status == 200


def test_exempt_requests_and_callers_without_a_key_are_not_counted(store):
    app = ConcurrencyLimiter(
        hello, 1, store=store, exempt={"paths": ["/health"]}, key="subject|address"
    )
    held = [Answer(app) for _ in range(2)]
    assert [each.status for each in held] == [200, 429]
    assert Answer(app, PATH_INFO="/health", SCRIPT_NAME="").status == 200
    app = ConcurrencyLimiter(hello, 1, store=store, key=lambda environ: None)
    assert [Answer(app).status for _ in range(2)] == [200, 200]


def test_an_observer_passes_all_requests(store, caplog):
    app = ConcurrencyLimiter(hello, 1, store=store, observe=True)
    held = [Answer(app) for _ in range(3)]
    assert [each.status for each in held] == [200] * 3
    assert app.observed == 2
    assert held[2].environ[REASON].startswith("only observed: 192.0.2.1 has 1 requests")
    assert held[2].fields["RateLimit"] == "of the app"
    assert len(caplog.records) == 1


def test_an_observer_passes_all_requests_while_the_store_is_down():
    app = ConcurrencyLimiter(hello, 1, store=BrokenStore(), observe=True, on_store_error="refuse")
    assert Answer(app).status == 200
    assert app.store_errors == 1


def test_while_the_store_is_down_requests_pass_and_are_counted(caplog):
    app = ConcurrencyLimiter(hello, 1, store=BrokenStore())
    with caplog.at_level(logging.INFO, "wsgigate.concurrency"):
        assert [Answer(app).status for _ in range(3)] == [200] * 3
    assert app.store_errors == 3
    assert len(caplog.records) == 1
    assert "cannot be counted" in caplog.text


def test_while_the_store_is_down_requests_are_refused_if_that_is_wanted():
    app = ConcurrencyLimiter(hello, 1, store=BrokenStore(), on_store_error="refuse")
    answer = Answer(app)
    assert (answer.status, answer.fields["Retry-After"]) == (503, "5")
    assert b"down" not in answer.close()


def test_a_slot_that_cannot_be_released_expires(store, clock, caplog):
    class Failing(MemoryStore):
        fails = False

        def update(self, key, change):
            return (BrokenStore() if self.fails else super()).update(key, change)

    store = Failing(clock=clock)
    app = ConcurrencyLimiter(hello, 1, store=store, lease=10)
    answer = Answer(app)
    store.fails = True
    assert answer.close() == b"hello"
    store.fails = False
    assert Answer(app).status == 429
    clock.advance(10)
    assert Answer(app).status == 200
    assert "cannot be renewed or released" in caplog.text


class CountsRenewals(MemoryStore):
    """A store that counts how often the slots of the caller "alive" have been changed."""

    renewed = 0

    def update(self, key, change):
        found = super().update(key, change)
        self.renewed += "=alive" in key
        return found


def test_slots_are_renewed_while_a_response_lasts_until_the_limiter_is_closed(clock):
    """Two limiters on one store are two workers; a worker that is closed renews nothing."""
    store = CountsRenewals(clock=clock)
    alive, closed = (
        ConcurrencyLimiter(hello, 1, store=store, lease=0.1, key=lambda environ, key=key: key)
        for key in ("alive", "closed")
    )
    held = [Answer(alive), Answer(closed)]
    assert [each.status for each in held] == [200, 200]
    closed.close()
    for _ in range(3):
        clock.advance(0.06)
        twice = store.renewed + 2  # one may have begun before
        until(lambda twice=twice: store.renewed >= twice)
    assert Answer(alive).status == 429
    assert Answer(closed).status == 200, "the slot of the closed limiter has expired"
    alive.close()
    closed.close()


def test_a_slot_is_renewed_before_it_expires():
    clock = FakeClock()
    app = ConcurrencyLimiter(hello, 1, store=MemoryStore(clock=clock), lease=8, clock=clock)
    held = Answer(app)
    for _ in range(8):
        clock.advance(2)
        part(Leases, app).renew()
        assert Answer(app).status == 429
    held.close()
    assert Answer(app).status == 200


class Scheduled(list):
    """A timer, and the calls that it has to make."""

    running = True

    def after(self, seconds, call):
        self.append(call)
        return SimpleNamespace(cancel=lambda: self.remove(call))


def test_leases_that_are_stopped_are_renewed_again_from_the_next_one_on():
    timer = Scheduled()
    leases = Leases(lambda place, held: None, 0.02, FakeClock(), timer)
    leases.hold(b"1", "a")
    leases.hold(b"2", "a")
    assert len(timer) == 1
    leases.stop()
    assert timer == []
    leases.hold(b"3", "a")
    assert len(timer) == 1


def test_a_forked_process_renews_nothing_of_its_parent_and_frees_nothing_of_it(store):
    app = ConcurrencyLimiter(hello, 1, store=store)
    answer = Answer(app)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            count = len(part(Leases, app))
            answer.close()
            os.write(write, f"{count} {Answer(app).status}".encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"0 429"
    os.close(read)
    assert len(part(Leases, app)) == 1


def test_one_thread_renews_the_leases_of_all_limiters_until_they_are_dropped():
    done = threading.Event()
    threads = []

    def renew(place, leases):
        threads.append(threading.current_thread())
        if len(threads) >= 4:
            done.set()

    one, two = Leases(renew, 0.02, time.monotonic), Leases(renew, 0.03, time.monotonic)
    one.hold(b"1", "a")
    two.hold(b"2", "b")
    assert done.wait(30)
    assert len(set(threads)) == 1
    assert one.drop(b"1") == "a"
    assert one.drop(b"1") is None
    two.drop(b"2")
    one.stop()
    two.stop()


def test_a_failed_renewal_does_not_end_the_thread(caplog):
    again = threading.Event()
    count = []

    def renew(place, leases):
        count.append(place)
        if len(count) == 2:
            again.set()
        raise LookupError

    leases = Leases(renew, 0.02, time.monotonic)
    leases.hold(b"1", "a")
    assert again.wait(30)
    leases.drop(b"1")
    leases.stop()
    assert "leases could not be renewed" in caplog.text


def test_leases_are_renewed_after_a_thread_could_not_be_started(threadless):
    """A thread that could not be started counted as running, and slots expired while in use."""
    renewed = threading.Event()
    leases = Leases(lambda place, held: renewed.set(), 0.02, time.monotonic, Timer(threads=1))
    with threadless():
        leases.hold(b"1", "a")
    leases.hold(b"2", "b")
    assert renewed.wait(30)
    leases.drop(b"1")
    leases.drop(b"2")
    leases.stop()


def test_flask_and_django_apps_are_limited(store, django_app):
    app = flask.Flask("shop")
    app.get("/")(lambda: {"hello": "flask"})
    app.get("/stream", endpoint="stream")(lambda: flask.Response(iter(["1", "2"])))
    app.wsgi_app = ConcurrencyLimiter(app.wsgi_app, 1, store=store, name="flask")
    client = app.test_client()
    with client.get("/stream") as held:
        assert client.get("/").status_code == 429
    assert held.status_code == 200
    assert client.get("/").json == {"hello": "flask"}
    inner = django_app({"": lambda request: JsonResponse({"hello": "django"})})
    app = ConcurrencyLimiter(inner, 1, store=store, name="django")  # type: ignore[assignment]
    held, refused = Answer(app), Answer(app)  # type: ignore[assignment]
    assert (held.status, refused.status) == (200, 429)
    assert json.loads(held.close()) == {"hello": "django"}


def test_it_keeps_the_wsgi_contract():
    check_middleware(lambda app: ConcurrencyLimiter(app, 1000, store=MemoryStore()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"limit": 0}, "limit: a whole number of 1 to 4000, not 0"),
        ({"lease": 0}, "lease: 0.1 to 3600 seconds"),
        ({"name": "a/b"}, "name is 1 to 64 letters"),
        ({"fields": ["x-ratelimit"]}, "fields is"),
        ({"fields": "ratelimit"}, "fields is"),
        ({"on_store_error": "no"}, 'on_store_error is "allow" or "refuse"'),
        ({"store": "sqlite:"}, "a store is"),
        ({"key": "who"}, "key is one of"),
        ({"exempt": {"x": 1}}, "exempt has no x"),
    ],
)
def test_wrong_settings_are_refused_at_construction(settings, words):
    with pytest.raises(ValueError, match=words):
        ConcurrencyLimiter(hello, **({"limit": 1} | settings))


def flask_client(limit, **options):
    app = flask.Flask("shop")
    app.get("/")(lambda: {"hello": "flask"})
    app.get("/stream", endpoint="stream")(lambda: flask.Response(iter(["1", "2"])))
    app.wsgi_app = ConcurrencyLimiter(app.wsgi_app, limit, **options)
    return app.test_client(), app.wsgi_app


@pytest.mark.parametrize("options", [{}, {"store": "memory:"}])
def test_an_unclosed_response_in_a_test_keeps_no_slot(options):
    client, limiter = flask_client(1, **options)
    kept = [client.get("/") for _ in range(3)]
    kept.append(client.head("/"))
    kept.append(client.get("/nowhere"))
    assert [answer.status_code for answer in kept] == [200, 200, 200, 200, 404]
    assert len(part(Leases, limiter)) == 0


def test_a_stream_that_is_read_or_collected_keeps_no_slot():
    client, _ = flask_client(1)
    held = client.get("/stream")
    assert client.get("/").status_code == 429
    assert held.data == b"12"
    held = client.get("/stream")
    assert held.status_code == 200
    del held
    gc.collect()
    assert client.get("/").status_code == 200


def test_under_a_server_a_response_holds_its_slot_until_the_end(store, served):
    def sized(environ, start_response):
        start_response("200 OK", [("Content-Length", "5")])
        return iter([b"hello"])

    app = ConcurrencyLimiter(sized, 1, store=store)
    answer = Answer(app)
    body = iter(answer.body)
    assert next(body) == b"hello"
    assert Answer(app).status == 429
    assert next(body, None) is None
    assert Answer(app).status == 200
