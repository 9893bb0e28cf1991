"""Limits in the test suites of apps: each run and each test starts with new counts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import flask
import pytest
from werkzeug.test import Client

from wsgigate import Breaker, CircuitRules, ConcurrencyLimiter, Limiter, Shedder
from wsgigate.runtime import fork
from wsgigate.store import MisconfiguredStore
from wsgigate.store import open as opening
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import limits_off, reset
from wsgigate.testing.pytest_plugin import wsgigate_off, wsgigate_reset

APP = """
from flask import Flask
from wsgigate import Limiter

def create_app():
    app = Flask(__name__)
    app.wsgi_app = Limiter(app.wsgi_app, "2 per hour")
    app.get("/")(lambda: "hello")
    return app

app = create_app()
"""

SUITE = """
import pytest
import shop

def statuses(app):
    client = app.test_client()
    return [client.get("/").status_code for _ in range(3)]

def test_each_app_begins_anew():
    for _ in range(2):
        assert statuses(shop.create_app()) == [200, 200, 429]

def test_one_app_goes_on():
    assert statuses(shop.app) == [200, 200, 429]
    assert statuses(shop.app) == [429] * 3

def test_the_reset_fixture_resets_the_counts(wsgigate_reset):
    assert statuses(shop.app) == [200, 200, 429]

def test_the_off_fixture_disables_limits(wsgigate_off):
    assert statuses(shop.app) == [200, 200, 200]

def test_limits_are_enabled_after_the_off_fixture():
    shop.app.wsgi_app.reset("127.0.0.1")
    assert statuses(shop.app) == [200, 200, 429]
"""

UNITTEST = """
import unittest
import shop

class Limits(unittest.TestCase):
    def test_limit(self):
        client = shop.app.test_client()
        self.assertEqual([client.get("/").status_code for _ in range(3)], [200, 200, 429])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "test_shop.py").write_text(SUITE)
    (tmp_path / "test_unit.py").write_text(UNITTEST)
    return tmp_path


def run(folder: Path, *arguments: str) -> None:
    """Run Python twice in *folder*, as nobody's child; nothing is left behind."""
    state = folder / "state"
    state.mkdir(exist_ok=True)
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST")},
        "XDG_RUNTIME_DIR": str(state),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert list(state.iterdir()) == []


def test_a_suite_of_pytest_passes_each_time(folder: Path) -> None:
    run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py")


def test_a_suite_of_unittest_passes_each_time(folder: Path) -> None:
    run(folder, "-m", "unittest", "test_unit")


def test_a_program_with_app_testing_counts_in_memory(folder: Path) -> None:
    code = "import shop; shop.app.testing = True; c = shop.app.test_client()\n"
    run(
        folder, "-c", code + "assert [c.get('/').status_code for _ in (1, 2, 3)] == [200, 200, 429]"
    )


def test_a_process_that_a_test_started_is_no_test(folder: Path) -> None:
    """The workers of a server under test count together, though they inherit its environment."""
    code = "from wsgigate.runtime import fork; import sys; sys.exit(fork.tested())"
    environ = {**os.environ, "PYTEST_VERSION": "9", "PYTEST_CURRENT_TEST": "test.py::test (call)"}
    assert subprocess.run([sys.executable, "-c", code], env=environ).returncode == 0


@pytest.mark.parametrize("server", ["gunicorn.arbiter", "uwsgi", "mod_wsgi"])
def test_a_server_is_no_test_even_with_app_testing(
    monkeypatch: pytest.MonkeyPatch, served: None, server: str
) -> None:
    app = SimpleNamespace(testing=True)
    for name in opening.SERVERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert opening.under_test(app)
    assert not opening.under_test(SimpleNamespace(testing=False))
    assert not opening.under_test(SimpleNamespace(testing="no"))
    monkeypatch.setitem(sys.modules, server, ModuleType(server))
    assert not opening.under_test(app)


def test_djangos_test_runner_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "_pytest.config")
    utils: Any = ModuleType("django.test.utils")
    utils._TestState = type("_TestState", (), {})
    monkeypatch.setitem(sys.modules, "django.test.utils", utils)
    assert not fork.has_test_runner()
    utils._TestState.saved_data = object()
    assert fork.has_test_runner()


PEER = {"REMOTE_ADDR": "127.0.0.1"}


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return iter([b"hello"])


def ask(app: WSGIApplication) -> int:
    return Client(app).get("/", environ_base=PEER).status_code


def test_middlewares_of_one_app_share_counts() -> None:
    assert [ask(Limiter(hello, "1/h")) for _ in range(2)] == [200, 429]


def test_each_test_starts_with_new_counts() -> None:
    assert [ask(Limiter(hello, "1/h")) for _ in range(2)] == [200, 429]


def test_an_app_without_weak_references_has_a_store() -> None:
    class Slots:
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

        def __call__(
            self, environ: WSGIEnvironment, start_response: StartResponse
        ) -> Iterable[bytes]:
            return hello(environ, start_response)

    app = Limiter(Slots(), "1/h")
    assert [ask(app) for _ in range(2)] == [200, 429]


def test_reset_resets_all_counts_in_memory(tmp_path: Path) -> None:
    def broken(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("500 Oops", [])
        return []

    kept = Limiter(hello, "1/h", store=LmdbStore(tmp_path / "store"))
    apps = [
        Limiter(hello, "1/h"),
        Limiter(hello, ["1/h", "9/d"], store="memory:", name="several"),
        Limiter(hello, lambda environ: "1/h", store=MemoryStore(), name="chosen"),
        Breaker(broken, CircuitRules(consecutive_failures=1, jitter=0)),
    ]
    first = [ask(app) for app in (*apps, kept)]
    assert [ask(app) for app in (*apps, kept)] == [429, 429, 429, 503, 429]
    reset()
    assert [ask(app) for app in apps] == first[:-1]
    assert ask(kept) == 429
    kept.reset()
    assert ask(kept) == 200
    kept.close()


def test_a_store_that_fails_keeps_no_other_from_being_reset() -> None:
    class Failing(MemoryStore):
        def items(self, prefix: str) -> Any:
            raise MisconfiguredStore("wrong")

    failing = [Limiter(hello, "1/h", store=Failing()) for _ in range(20)]
    well = Limiter(hello, "1/h")
    assert [ask(well), ask(well)] == [200, 429]
    reset()
    assert ask(well) == 200
    assert len(failing) == 20  # alive so far


def test_reset_of_one_caller_keeps_the_others() -> None:
    store = MemoryStore()
    limiter = Limiter(hello, "1/h", store=store, key="header:X-Who")
    others = [
        Limiter(hello, "1/h", store=store, name="other", key="header:X-Who"),
        Limiter(hello, lambda environ: "1/h", store=store, name="chosen", key="header:X-Who"),
    ]

    def by(app: Limiter, who: str) -> int:
        return Client(app).get("/", headers={"X-Who": who}).status_code

    for app in (limiter, *others):
        assert [by(app, who) for who in "abab"] == [200, 200, 429, 429]
    a = limiter.key({"HTTP_X_WHO": "a"})
    limiter.reset(a)
    assert [by(limiter, who) for who in "ab"] == [200, 429]
    assert [by(others[0], who) for who in "ab"] == [429, 429]
    others[1].reset(a)
    assert [by(others[1], who) for who in "ab"] == [200, 429]
    address = Limiter(hello, "1/h", store=store, name="address")
    assert [ask(address), ask(address)] == [200, 429]
    address.reset("127.0.0.1")
    assert ask(address) == 200
    address.reset()
    assert ask(address) == 200


def test_reset_frees_the_slots_of_requests_in_flight() -> None:
    app = ConcurrencyLimiter(lambda environ, start: (start("200 OK", []), iter([b"1", b"2"]))[1], 1)
    client = Client(app)
    held = client.get("/", environ_base=PEER)
    assert ask(app) == 429
    app.reset("127.0.0.1")
    again = client.get("/", environ_base=PEER)
    assert (held.status_code, again.status_code, ask(app)) == (200, 200, 429)
    app.reset()
    assert ask(app) == 200


def test_limits_can_be_disabled_and_a_single_one_enabled(wsgigate_off: None) -> None:
    app = flask.Flask("shop")
    assert [ask(Limiter(app, "1/h")) for _ in range(2)] == [404, 404]
    limiter = Limiter(app, "1/h")
    limiter.enabled = True
    assert [ask(limiter) for _ in range(2)] == [404, 429]
    for made in (
        Limiter(hello, "1/h", enabled=False),
        ConcurrencyLimiter(hello, 1, enabled=False),
        Breaker(hello, enabled=False),
        Shedder(hello, enabled=False),
    ):
        assert not made.enabled
        assert [ask(made) for _ in range(3)] == [200] * 3


def test_disabling_limits_ends_with_its_block() -> None:
    with limits_off():
        assert not Limiter.enabled
    assert Limiter.enabled
    assert ConcurrencyLimiter.enabled


def test_the_pytest_plugin_imports_no_store() -> None:
    assert callable(wsgigate_reset)
    assert callable(wsgigate_off)
    code = "import sys, wsgigate.testing.pytest_plugin as p; "
    code += "sys.exit(any(m.startswith('wsgigate.store') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
