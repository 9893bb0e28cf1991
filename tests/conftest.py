"""The order of all tests, and their fixtures."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import itemgetter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import threads
from tests.support.metrics import Measured, measuring
from wsgigate.auth.jwks import KeySources
from wsgigate.discovery.watcher import Watcher
from wsgigate.http import problem
from wsgigate.runtime import fork
from wsgigate.runtime.logs import EventLog
from wsgigate.telemetry.metrics import PROCESS
from wsgigate.testing.backend import Backend
from wsgigate.testing.fakes import FakeClock

# A hundred servers and programs of the tests import the package: they compile it once, not each.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell starts what runs in its background with SIGINT ignored, which the servers of the tests
# would inherit: they would never end by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's doing; and a change is judged by the same examples in
# each run. `pytest --hypothesis-profile=search` looks for others.
_search = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", _search)
settings.register_profile("wsgigate", _search, derandomize=True)
settings.load_profile("wsgigate")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Spread the files of tests/acceptance evenly among the others, for several processes.

    The former wait for servers and the latter compute: together they use all cores to the end.
    """
    if not hasattr(config, "workerinput"):
        return
    files: dict[bool, dict[Path, list[pytest.Item]]] = {True: {}, False: {}}
    for item in items:
        files["acceptance" in item.path.parts].setdefault(item.path, []).append(item)
    spread = [
        (place / len(group), number, tests)
        for number, group in enumerate((files[True], files[False]))
        for place, tests in enumerate(group.values())
    ]
    items[:] = [item for _, _, tests in sorted(spread, key=itemgetter(0, 1)) for item in tests]


def pytest_collection_finish() -> None:
    """Keep the thousands of tests and modules out of every later collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def state_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep stores without a URL in a folder of this run: those of the user outlive it.

    A gateway that starts waits two seconds for its sources and keys, which is not long enough for
    their threads on a machine that is busy with other tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        for start in (Watcher.start, KeySources.start):
            patch.setattr(start, "__defaults__", (30.0,))
        patch.setenv("XDG_RUNTIME_DIR", "")
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def independent_of_earlier_tests() -> None:
    """Begin each test as if it was the first of its process.

    Its first rejection is logged as a warning, and threads that earlier tests left are not counted.
    """
    problem.errors = problem.ErrorLog(EventLog(problem.write_event, problem.write_end))
    threads.begin()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process count as a server's, in which no test runs."""
    monkeypatch.setattr(fork, "tested", lambda: False)


@pytest.fixture(autouse=True, scope="module")
def metrics_of_this_file() -> None:
    """Forget the instruments' series of earlier files: there are too many of them together."""
    PROCESS.stop()


@pytest.fixture
def measured() -> Iterator[Measured]:
    """Yield what the instruments of this process have counted since the test began."""
    with measuring() as found:
        yield found


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that the test advances."""
    return FakeClock()


@pytest.fixture
def backend() -> Iterator[Backend]:
    """Yield a backend that answers ``200 ok`` unless a test sets other answers."""
    with Backend() as server:
        yield server


@contextmanager
def _threadless() -> Iterator[None]:
    before = threading.stack_size(1 << 47)  # more than there are addresses
    try:
        yield
    finally:
        threading.stack_size(before)


@pytest.fixture
def threadless() -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager in which the system can start no thread."""
    return _threadless


def _in_child(holds: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        code = 2
        try:
            signal.alarm(60)  # for one that waits for what no thread of this process does
            code = 0 if holds() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def in_child() -> Callable[[Callable[[], bool]], bool]:
    """Return a function that forks, and returns whether a condition holds in the child."""
    return _in_child
