"""The store of a limiter: the default one, outages, misconfiguration and exactness."""

import logging
import os
import subprocess
import sys
from wsgiref.util import setup_testing_defaults

import flask
import pytest

from wsgigate.middleware.concurrency import ConcurrencyLimiter
from wsgigate.middleware.limiter import Limiter
from wsgigate.store import MisconfiguredStore, StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.store.open import open_store
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


class Flaky(MemoryStore):
    """A store that fails while *down* is set."""

    down = False

    def update(self, key, change):
        if self.down:
            raise StoreError("the store is down")
        return super().update(key, change)


@pytest.mark.parametrize(
    ("kind", "limit", "logger"),
    [(Limiter, "9/m", "limiter"), (ConcurrencyLimiter, 9, "concurrency")],
)
def test_the_log_reports_that_a_limit_is_counted_again(kind, limit, logger, caplog):
    store = Flaky()
    app = kind(hello, limit, store=store, clock=FakeClock(), name="calls")
    with caplog.at_level(logging.INFO, f"wsgigate.{logger}"):
        for store.down in (False, True, True, False, False):
            ask(app)
        for store.down in (True, False) * 20:  # a store that flaps does not flood the log
            ask(app)
    logged = [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == f"wsgigate.{logger}"
    ]
    assert [level for level, _ in logged] == ["ERROR", "WARNING"]
    assert logged[1][1] == "the limit 'calls' is counted again"


def test_while_the_store_is_down_requests_are_refused_if_that_is_wanted(caplog):
    app = Limiter(hello, "1/m", store=BrokenStore(), on_store_error="refuse")
    with caplog.at_level(logging.INFO, "wsgigate.limiter"):
        refused, fields, body = ask(app)
    assert refused == 503
    assert fields["Retry-After"] == "5"
    assert b"down" not in body
    assert "were rejected" in caplog.text


MAKES = {
    "limiter": lambda **more: Limiter(hello, "1/m", **more),
    "concurrency-limiter": lambda **more: ConcurrencyLimiter(hello, 9, **more),
}
each = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@each
@pytest.mark.parametrize("on_store_error", ["allow", "refuse"])
def test_an_unusable_default_store_raises_an_error_with_the_remedy(
    tmp_path, monkeypatch, caplog, served, make, on_store_error
):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    app = make(on_store_error=on_store_error)
    for _ in range(2):
        with pytest.raises(MisconfiguredStore) as caught:
            ask(app)
    text = str(caught.value)
    assert text.startswith(f"the limit {app.name!r} cannot be counted: there is no private folder")
    assert 'pass store="lmdb:/path" with a folder that this user may write' in text
    assert "store.url" not in text
    assert app.store_errors == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert status(app) == 200
    app.close()


def unusable(tmp_path, kind):
    """Return the URL of a store that can never be used, and what is wrong with it."""
    folder = tmp_path / "store"
    if kind == "file":
        folder.write_text("")
        return f"lmdb:{folder}", f"{folder} is not a folder"
    if kind == "link":
        folder.symlink_to(tmp_path)
        return f"lmdb:{folder}", f"{folder} is a symbolic link"
    if kind == "open to all":
        folder.mkdir()
        folder.chmod(0o777)
        return f"lmdb:{folder}", f"the folder {folder} is open to other users"
    if kind == "below a file":
        (tmp_path / "file").write_text("")
        return f"lmdb:{tmp_path}/file/store", "cannot be made: Not a directory"
    folder.mkdir(0o700)
    (folder / "data.mdb").mkdir()
    return f"lmdb:{folder}", "data.mdb is not a regular file"


@each
@pytest.mark.parametrize("kind", ["file", "link", "open to all", "below a file", "inside"])
@pytest.mark.parametrize("as_object", [False, True])
def test_a_store_that_can_never_be_used_raises(tmp_path, make, kind, as_object):
    url, wrong = unusable(tmp_path, kind)
    app = make(store=open_store(url) if as_object else url)
    with pytest.raises(MisconfiguredStore) as caught:
        ask(app)
    assert wrong in str(caught.value)
    assert "correct the store that was given" in str(caught.value) or (
        "correct the argument store" in str(caught.value)
    )
    app.close()


def test_an_observing_limit_never_raises_for_its_store(tmp_path):
    url, _ = unusable(tmp_path, "file")
    app = Limiter(hello, "1/m", store=url, observe=True)
    assert status(app) == 200
    assert app.store_errors == 1


def test_a_store_that_worked_and_then_cannot_be_used_is_an_outage(tmp_path):
    class Changed(MemoryStore):
        wrong = False

        def update(self, key, change):
            if self.wrong:
                raise MisconfiguredStore("WRONGPASS")
            return super().update(key, change)

        take = None

    store = Changed()
    app = Limiter(hello, "9/m", store=store)
    assert status(app) == 200
    store.wrong = True
    assert status(app) == 200
    assert app.store_errors == 1


def test_a_store_that_was_checked_at_the_start_has_outages_only(tmp_path):
    url, _ = unusable(tmp_path, "file")
    store = open_store(url)
    store.checked = True  # type: ignore[attr-defined]
    app = Limiter(hello, "1/m", store=store)
    assert status(app) == 200
    assert app.store_errors == 1


def test_an_outage_at_the_first_request_stays_one():
    app = Limiter(hello, "1/m", store="redis://127.0.0.1:1/0")
    assert status(app) == 200
    assert app.store_errors == 1
    app.close()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("foo:", '^store: a store is "memory:"'),
        ("redis:/host", '^store: a store is "memory:"'),
        ("redis://host:port/0", "^store: a host in the URL of a Redis must be"),
        ("redis://host/0?prefiks=a", "^store: the URL of a Redis has no option 'prefiks'"),
        (7, "^store: a store or the URL of one"),
    ],
)
def test_an_invalid_url_raises_an_error_that_names_the_argument(url, text):
    with pytest.raises(ValueError, match=text):
        Limiter(hello, "1/m", store=url)


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


def test_an_app_has_the_same_namespace_when_it_is_wrapped(private):
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
    one.app, two.app = two, one  # type: ignore[attr-defined]
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
limiter = Limiter(hello, "200 per day", algorithm=sys.argv[2], store="lmdb:" + sys.argv[1])
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
    """Four processes with four threads ask 800 times for 200 that there are in a day."""
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
