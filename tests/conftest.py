"""Fixtures of all tests."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from hypothesis import settings

from wsgigate.runtime import fork
from wsgigate.testing.backend import Backend
from wsgigate.testing.fakes import FakeClock

# how long an example takes is the machine's doing
settings.register_profile("wsgigate", deadline=None)
settings.load_profile("wsgigate")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process count as a server's, in which no test runs."""
    monkeypatch.setattr(fork, "tested", lambda: False)


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
            signal.alarm(10)  # for one that waits for what no thread of this process does
            code = 0 if holds() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def in_child() -> Callable[[Callable[[], bool]], bool]:
    """Return a function that forks, and returns whether a condition holds in the child."""
    return _in_child
