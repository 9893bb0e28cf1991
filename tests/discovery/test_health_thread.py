"""The thread of a health checker: start, stop, errors and forks."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.discovery.conftest import DOWN, FakePool
from tests.support.threads import started
from tests.support.waiting import until
from wsgigate.discovery import Instance
from wsgigate.discovery.health import HealthChecker
from wsgigate.discovery.health_results import ThreadProber
from wsgigate.proxy.health_probe import Prober
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.store.memory import MemoryStore
from wsgigate.testing.backend import Backend, reply


def threads() -> list[str]:
    return [thread.name for thread in started("health")]


@pytest.fixture
def running(backend: Backend) -> Iterator[tuple[HealthChecker, FakePool, MemoryStore]]:
    """Yield a checker of *backend* by the real clock, its pool and its store."""
    pool, store = FakePool(backend.url), MemoryStore()
    checker = HealthChecker(
        {"shop": pool},
        {"shop": HealthCheck("/", interval=3600.0, timeout=25.0)},
        store,
        Prober(),
        random=lambda: 0.0,
    )
    yield checker, pool, store
    checker.stop()


def test_the_thread_checks_real_servers_until_it_is_stopped(
    running: tuple[HealthChecker, FakePool, MemoryStore], backend: Backend
) -> None:
    checker, pool, store = running
    backend.answers = [reply(status="500 Broken")]
    checker.start()
    checker.start()
    assert threads().count("wsgigate-health") == 1
    assert pool.marked.wait(30)
    assert pool.marks == {backend.url: False}
    until(lambda: checker.status("shop").get("error") == "Status 500")
    until(lambda: store.get("health/leader")[0])  # at once, or once it is renewed
    checker.stop()
    until(lambda: "wsgigate-health" not in threads())
    assert store.get("health/leader")[0] is None
    assert len(backend.requests) == 1


def test_it_can_be_started_again(
    running: tuple[HealthChecker, FakePool, MemoryStore], backend: Backend
) -> None:
    checker, pool, _ = running
    checker.start()
    checker.stop()
    checker.stop()
    checker.start()
    assert pool.marked.wait(30)
    assert pool.marks == {backend.url: True}


def test_stopping_does_not_wait_for_a_check_that_hangs() -> None:
    asked, release = threading.Event(), threading.Event()

    def hang(instance: Instance, check: HealthCheck) -> CheckResult:
        asked.set()
        release.wait(30)
        return DOWN

    pool = FakePool("http://a")
    checker = HealthChecker(
        {"shop": pool},
        {"shop": HealthCheck("/")},
        MemoryStore(),
        ThreadProber(hang),
        random=lambda: 0.0,
    )
    checker.start()
    assert asked.wait(30)
    checker.stop()
    until(lambda: "wsgigate-health" not in threads())
    release.set()
    for thread in started("wsgigate-health-check"):
        thread.join(30)
    assert pool.marks == {}


def test_a_round_that_fails_is_logged_and_followed_by_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Flawed(FakePool):
        rounds = 0

        @property  # type: ignore[override]
        def instances(self) -> tuple[Instance, ...]:  # type: ignore[override]
            self.rounds += 1
            if self.rounds == 1:
                raise RuntimeError("a bug")
            return (Instance("http://a"),)

        @instances.setter
        def instances(self, value: Any) -> None:
            pass

    pool = Flawed("http://a")
    checker = HealthChecker(
        {"shop": pool},
        {"shop": HealthCheck("/")},
        MemoryStore(),
        ThreadProber(lambda instance, check: DOWN),
        random=lambda: 0.0,
    )
    checker.start()
    assert pool.marked.wait(30)
    checker.stop()
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "A round of health checks failed"
    ]


def test_without_checks_there_is_no_thread() -> None:
    checker = HealthChecker({"shop": FakePool("http://a")}, {}, MemoryStore(), Prober())
    checker.start()
    assert threads() == []
    checker.stop()


FORKING = """
import os, sys, threading
from wsgigate.discovery import Instance
from wsgigate.discovery.health_results import ThreadProber
from wsgigate.discovery.health import HealthChecker
from wsgigate.rules.health import HealthCheck, CheckResult
from wsgigate.store.lmdb import LmdbStore

class Pool:
    instances = (Instance("http://a"),)
    marked = threading.Event()
    def mark(self, url, healthy):
        self.marked.set()

def names():
    return sorted(t.name for t in threading.enumerate() if t.name == "wsgigate-health")

pool = Pool()
store = LmdbStore(sys.argv[1], map_size=1 << 20)
checker = HealthChecker(
    {"shop": pool}, {"shop": HealthCheck("/")}, store,
    ThreadProber(lambda instance, check: CheckResult(True, 200)), random=lambda: 0.0,
)
checker.start()
assert pool.marked.wait(30)
leader, _ = store.get("health/leader")
child = os.fork()
if child == 0:
    pool.marked.clear()
    assert names() == [], names()
    checker.start()
    assert names() == ["wsgigate-health"]
    assert pool.marked.wait(30)
    checker.stop()
    assert store.get("health/leader")[0] == leader != None, "its parent still leads"
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert names() == ["wsgigate-health"]
checker.stop()
print("done")
"""


def test_a_forked_worker_has_its_own_thread_and_its_own_name_in_the_lease(
    tmp_path: Any,
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORKING, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("done\n", 0), ended.stderr
