"""The background queue: its bounds, its threads, closing and forks."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.threads import started
from tests.support.waiting import until
from wsgigate.runtime.threads import BackgroundQueue


class Gate:
    """Work that waits until it is let go, and tells how much of it runs."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.done = 0
        self.open = False
        self.changed = threading.Condition()

    def __call__(self) -> None:
        with self.changed:
            self.running += 1
            self.most = max(self.most, self.running)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.open, 30)
            self.running -= 1
            self.done += 1
            self.changed.notify_all()

    def release(self) -> None:
        with self.changed:
            self.open = True
            self.changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 30)


def threads(name: str) -> int:
    return len(started(name))


def test_at_most_the_configured_calls_run_and_wait() -> None:
    background, gate = BackgroundQueue(threads=2, queue=3, name="bounded"), Gate()
    assert threads("bounded") == 0
    assert background.put(gate)
    gate.wait(lambda: gate.running == 1)
    assert threads("bounded") == 1
    assert background.put(gate)
    gate.wait(lambda: gate.running == 2)
    assert [background.put(gate) for _ in range(5)] == [True, True, True, False, False]
    assert background.dropped == 2
    assert threads("bounded") == 2
    gate.release()
    gate.wait(lambda: gate.done == 5)
    assert gate.most == 2
    background.close()


def test_a_thread_that_is_free_takes_the_next_work() -> None:
    background = BackgroundQueue(threads=5, name="free")
    for _ in range(3):
        done = threading.Event()
        background.put(done.set)
        assert done.wait(30)
        until(lambda: background.free == 1)
    assert threads("free") == 1
    background.close()


def test_a_thread_without_work_ends_and_another_one_begins() -> None:
    background, done = BackgroundQueue(idle=0.001, name="idle"), threading.Event()
    background.put(done.set)
    assert done.wait(30)
    for thread in started("idle"):
        thread.join(30)
    again = threading.Event()
    background.put(again.set)
    assert again.wait(30)
    background.close()


def test_closing_drops_waiting_calls_and_ends_the_threads() -> None:
    background, gate = BackgroundQueue(threads=1, name="closing"), Gate()
    for _ in range(3):
        background.put(gate)
    gate.wait(lambda: gate.running == 1)
    [thread] = started("closing")
    background.close()
    gate.release()
    thread.join(30)
    assert not thread.is_alive()
    assert gate.done == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), SystemExit(1)])
def test_a_failing_call_is_logged_and_the_next_one_runs(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """``sys.exit()`` in an app that a request is mirrored to took the thread with it, unseen."""
    background, done = BackgroundQueue(threads=1), threading.Event()

    def fail() -> None:
        raise error

    with caplog.at_level(logging.ERROR, "wsgigate.threads"):
        background.put(fail)
        background.put(done.set)
        assert done.wait(30)
    assert "A background task failed" in caplog.text
    background.close()


def test_a_forked_process_has_threads_of_its_own() -> None:
    background, gate = BackgroundQueue(threads=1, queue=1), Gate()
    background.put(gate)
    gate.wait(lambda: gate.running == 1)
    assert background.put(gate)
    assert not background.put(gate)
    pid = os.fork()
    if pid == 0:  # here nobody works any more, unless they know that this is another process
        done = threading.Event()
        os._exit(0 if background.put(done.set) and done.wait(30) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.release()
    gate.wait(lambda: gate.done == 2)
    background.close()


@pytest.mark.parametrize("settings", [{"threads": 0}, {"queue": 0}])
def test_a_bound_below_one_raises_an_error_that_names_it(settings: dict[str, Any]) -> None:
    [name] = settings
    with pytest.raises(ValueError, match=f"{name}: 1 or more"):
        BackgroundQueue(**settings)
