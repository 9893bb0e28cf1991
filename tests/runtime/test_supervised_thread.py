"""A supervised thread: its start, its end, and a new start after a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from tests.support.objects import hold_locks
from wsgigate.runtime.threads import SupervisedThread


def nothing() -> None: ...


def made(
    run: Callable[[threading.Event], None], begin: Callable[[], None] = nothing
) -> SupervisedThread:
    return SupervisedThread("of-the-test", run, begin)


def until_told(stopping: threading.Event) -> None:
    stopping.wait(20)


def test_a_thread_is_started_once_and_again_after_it_was_stopped() -> None:
    begun: list[int] = []
    thread = made(until_told, lambda: begun.append(1))
    assert [thread.start(), thread.start(), thread.alive] == [True, False, True]
    thread.stop(10)
    assert (thread.alive, len(begun)) == (False, 1)
    assert [thread.start(), len(begun)] == [True, 2]
    thread.stop(10)


def test_a_thread_that_has_ended_by_itself_can_be_started_again() -> None:
    ended = threading.Event()
    thread = made(lambda stopping: ended.set())
    thread.start()
    assert ended.wait(30)
    thread.stop(10)
    assert thread.start()
    thread.stop(10)


def test_stopping_a_thread_that_hangs_ends_after_the_timeout() -> None:
    go_on = threading.Event()
    thread = made(lambda stopping: until_told(go_on))
    thread.start()
    thread.stop(0.01)
    assert not thread.alive
    go_on.set()


def test_several_threads_are_signalled_before_any_is_joined() -> None:
    told = threading.Barrier(2)

    def run(stopping: threading.Event) -> None:
        until_told(stopping)
        told.wait(30)  # the other was told too

    threads = [made(run), made(run)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.end()
    for thread in threads:
        thread.stop(10)
    assert not told.broken


def test_a_thread_that_cannot_be_started_is_started_by_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    thread = made(until_told)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            thread.start()
    thread.stop(10)
    assert thread.start()
    thread.stop(10)


def test_a_forked_child_starts_its_own_thread_whatever_locks_its_parent_held() -> None:
    begun: list[int] = []
    thread = made(until_told, lambda: begun.append(os.getpid()))
    thread.start()
    with hold_locks(thread):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                thread.stop(10)  # it is the parent's
                good = not thread.alive and thread.start() and thread.alive
                thread.stop(10)
                code = 0 if good and begun[-1] == os.getpid() else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert thread.alive
    thread.stop(10)
