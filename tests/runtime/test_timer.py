"""The timer: due calls, cancelled calls and its bound on threads."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.support.objects import count_kept
from wsgigate.runtime.threads import ScheduledCall, Timer


def running() -> set[threading.Thread]:
    """Return the threads of all timers; their numbers are used again when threads have ended."""
    return {thread for thread in threading.enumerate() if thread.name == "wsgigate-timer"}


def done(count: int = 1) -> tuple[Callable[[], object], Callable[[], bool]]:
    """Return what is called, and what waits until it has been *count* times."""
    called = threading.Semaphore(0)
    return called.release, lambda: all(called.acquire(timeout=30) for _ in range(count))


def test_no_thread_runs_before_the_first_call_is_scheduled() -> None:
    before = running()
    timer = Timer()
    assert running() == before
    call, waited = done()
    timer.after(0, call)
    assert waited()


def test_calls_run_in_the_order_of_their_due_times() -> None:
    now = 0.0
    timer = Timer(threads=1, clock=lambda: now)
    order: list[str] = []
    call, waited = done(2)
    scheduled = threading.Event()
    timer.after(0, lambda: scheduled.wait(30))  # in the only thread
    late = timer.after(3600, lambda: order.append("late"))
    for name, seconds in (("second", 0.5), ("first", 0.0)):

        def told(name: str = name) -> None:
            order.append(name)
            call()

        timer.after(seconds, told)
    now = 1.0
    scheduled.set()
    assert waited()
    assert order == ["first", "second"]
    late.cancel()


def test_a_cancelled_call_does_not_run() -> None:
    timer = Timer(threads=1)
    call, waited = done()
    cancelled = threading.Event()
    timer.after(0, lambda: cancelled.wait(30))  # in the only thread
    off = timer.after(0, lambda: pytest.fail("it was called off"))
    off.cancel()
    off.cancel()
    scheduled = timer.after(0, call)
    cancelled.set()
    assert waited()
    scheduled.cancel()  # too late, and nothing


def test_cancelled_calls_are_removed_from_the_schedule() -> None:
    timer = Timer()
    for _ in range(10_000):
        timer.after(3600, print).cancel()
    assert count_kept(ScheduledCall, timer) < 200


def test_at_most_the_configured_threads_run_and_every_call_is_made() -> None:
    before = running()
    timer = Timer(threads=3)
    together = threading.Barrier(4)  # three threads, and this one
    call, waited = done(12)

    def work() -> None:
        together.wait(30)
        call()

    for _ in range(12):
        timer.after(0, work)
    for _ in range(4):
        together.wait(30)
    assert waited()
    assert len(running() - before) == 3


def test_a_call_that_raises_does_not_stop_others(caplog: pytest.LogCaptureFixture) -> None:
    timer = Timer(threads=1)
    call, waited = done()
    with caplog.at_level(logging.ERROR, logger="wsgigate.threads"):
        timer.after(0, lambda: 1 / 0)
        timer.after(0.01, call)
        assert waited()
    assert "ZeroDivisionError" in caplog.text


def test_due_calls_wait_until_a_thread_can_be_started(
    threadless: Callable[[], AbstractContextManager[None]],
) -> None:
    """A thread that could not be started counted as running, so that no call was made any more."""
    timer = Timer(threads=2)
    call, waited = done(2)
    with threadless():
        timer.after(0, call)
    timer.after(0, call)
    assert waited()


def test_the_only_thread_makes_all_calls_if_no_other_can_be_started(
    threadless: Callable[[], AbstractContextManager[None]],
) -> None:
    timer = Timer(threads=2)
    call, waited = done(2)
    timer.after(3600, print).cancel()
    with threadless():
        timer.after(0, call)
        timer.after(0.01, call)
        assert waited()


def test_a_forked_worker_has_threads_of_its_own() -> None:
    timer = Timer(threads=1)
    parents = timer.after(3600, lambda: pytest.fail("that is the parent's"))
    child = os.fork()
    if child == 0:
        call, waited = done()
        before = running()
        timer.after(0, call)
        os._exit(0 if waited() and len(running() - before) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    parents.cancel()
