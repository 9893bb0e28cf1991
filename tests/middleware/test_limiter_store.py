"""Where a limiter counts: in a store of its own unless told, and exactly, whoever asks."""

import logging
import os
import subprocess
import sys
from wsgiref.util import setup_testing_defaults

import flask
import pytest

from wsgigate.middleware.limiter import Limiter
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock


@pytest.fixture
def private(tmp_path, monkeypatch, served):
    """Where the default store of this test goes."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "wsgigate"


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def ask(app):
    """Return the status of one request, the fields and the body of its answer."""
    environ = {"REMOTE_ADDR": "192.0.2.1"}
    setup_testing_defaults(environ)
    begun = []
    body = b"".join(app(environ, lambda status, headers: begun.extend([status, headers])))
    return int(begun[0].partition(" ")[0]), dict(begun[1]), body


def status(app):
    return ask(app)[0]


def test_while_the_store_is_down_requests_pass_and_are_counted(caplog):
    clock = FakeClock()
    app = Limiter(hello, "1/m", store=BrokenStore(), clock=clock)
    with caplog.at_level(logging.INFO, "wsgigate.limiter"):
        for _ in range(5):
            found, fields, _ = ask(app)
            assert found == 200
            assert "RateLimit" not in fields
        clock.advance(60)
        ask(app)
    assert app.store_errors == 6
    assert [record.getMessage() for record in caplog.records] == [
        "the limit 'default' cannot be counted, 1 requests passed since the last such message: "
        "the store is down",
        "the limit 'default' cannot be counted, 5 requests passed since the last such message: "
        "the store is down",
    ]


def test_while_the_store_is_down_requests_are_refused_if_that_is_wanted(caplog):
    app = Limiter(hello, "1/m", store=BrokenStore(), on_store_error="refuse")
    with caplog.at_level(logging.INFO, "wsgigate.limiter"):
        refused, fields, body = ask(app)
    assert refused == 503
    assert fields["Retry-After"] == "5"
    assert b"down" not in body
    assert "were refused" in caplog.text


def test_a_default_store_that_cannot_be_had_is_a_store_that_fails(
    tmp_path, monkeypatch, caplog, served
):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    app = Limiter(hello, "1/m")
    with caplog.at_level(logging.INFO, "wsgigate.limiter"):
        assert status(app) == 200
    assert 'set store.url = "lmdb:/path"' in caplog.text
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert [status(app) for _ in range(2)] == [200, 429]
    app.close()


def test_nothing_is_made_before_the_first_request(private):
    app = Limiter(hello, "1/m")
    app.close()
    assert not private.exists()
    ask(app)
    assert [entry.name for entry in next(private.iterdir()).iterdir()]
    app.close()


def test_two_apps_of_one_process_do_not_share_the_default_store(private):
    def other(environ, start_response):
        return hello(environ, start_response)

    shop, blog = flask.Flask("shop"), flask.Flask("blog")
    apps = [
        Limiter(inner, "1/m") for inner in (hello, other, shop.wsgi_app, blog.wsgi_app, Limiter)
    ][:4]
    assert [status(app) for app in apps] == [200, 200, 404, 404]
    assert [status(app) for app in apps] == [429] * 4
    for app in apps:
        app.close()


def test_the_same_app_is_recognised_through_whatever_is_wrapped_around_it(private):
    class Wrapper:
        def __init__(self, app):
            self.app = app

        def __call__(self, environ, start_response):
            return self.app(environ, start_response)

    shop = flask.Flask("shop")
    apps = [
        Limiter(inner, "1/m")
        for inner in (shop, shop.wsgi_app, Wrapper(shop.wsgi_app), Wrapper(Wrapper(shop)))
    ]
    assert [status(app) for app in apps] == [404, 429, 429, 429]
    for app in apps:
        app.close()


def test_wrappers_that_go_round_in_a_circle_do_not_hang(private):
    class Wrapper:
        def __call__(self, environ, start_response):
            return hello(environ, start_response)

    one, two = Wrapper(), Wrapper()
    one.app, two.app = two, one
    app = Limiter(one, "1/m")
    assert status(app) == 200
    app.close()


def held_open(folder):
    """Return which files below *folder* this process has mapped."""
    with open("/proc/self/maps") as maps:
        return {line.split()[-1] for line in maps if str(folder) in line}


def test_a_limiter_closes_the_store_it_opened_and_no_other(tmp_path):
    class Closing(MemoryStore):
        closed = 0

        def close(self):
            self.closed += 1

    given = Closing()
    Limiter(hello, "1/m", store=given).close()
    assert given.closed == 0
    app = Limiter(hello, "1/m", store=f"lmdb:{tmp_path}/store")
    ask(app)
    assert held_open(tmp_path)
    app.close()
    assert not held_open(tmp_path)
    assert status(app) == 429, "and counts on when it is used again"
    app.close()


HAMMER = """
import sys, threading
from wsgigate.middleware.limiter import Limiter
def hello(environ, start_response):
    start_response("200 OK", [])
    return []
limiter = Limiter(hello, "200 per hour", algorithm=sys.argv[2], store="lmdb:" + sys.argv[1])
statuses = []
def work():
    for _ in range(50):
        environ = {"REMOTE_ADDR": "192.0.2.1", "REQUEST_METHOD": "GET"}
        limiter(environ, lambda status, headers: statuses.append(status))
threads = [threading.Thread(target=work) for _ in range(4)]
limiter(dict(REMOTE_ADDR="192.0.2.2"), lambda status, headers: None)
print("ready", flush=True)
sys.stdin.readline()
for thread in threads: thread.start()
for thread in threads: thread.join()
assert limiter.store_errors == 0
print(statuses.count("200 OK"))
limiter.close()
"""


@pytest.mark.parametrize("algorithm", ["token-bucket", "fixed-window"])
def test_processes_and_threads_together_never_let_one_too_many_pass(tmp_path, algorithm):
    """Four processes with four threads ask 800 times for 200 that there are in an hour."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, tmp_path / "store", algorithm],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for _ in range(4)
    ]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("\n")
            worker.stdin.flush()
        passed = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    finally:
        for worker in workers:
            with worker:
                worker.kill()
    assert sum(passed) == 200
    left = LmdbStore(tmp_path / "store")
    assert len(list(left.items("limit/default/"))) == 2
    left.close()
