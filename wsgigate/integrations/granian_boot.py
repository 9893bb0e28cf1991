"""How a worker of granian begins and ends: heedful of signals.

granian forks a worker and has it listen to signals when its app is there. Until then it has the
main process's handlers, which do nothing in it: a SIGTERM that comes in between is lost. One that
comes as the worker's main thread begins to wait is not handled until something else wakes that
thread, and nothing does. Who stops such a server waits until its workers are killed, 30 seconds
later.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

__all__ = ["heeding", "when_told_to_end"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)

LOOK = 0.01
"""Seconds between two looks whether granian listens by now."""

LONGEST = 30.0
"""Seconds after which it never will."""

TURN = 0.1
TURNS = 30
"""How often the main thread is woken, and after how many seconds each time."""


@contextmanager
def heeding() -> Iterator[None]:
    """Take note of signals that come meanwhile or came before, for granian to have them later.

    In another thread than the main one, where there can be no handlers, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: set[int] = set()

    def note(number: int, _frame: FrameType | None) -> None:
        came.add(number)

    for number in SIGNALS:
        inherited = getattr(signal.signal(number, note), "__self__", None)
        if getattr(inherited, "interrupt_signal", False):  # what the main process's handler sets
            came.add(signal.SIGTERM)
    signal.signal(signal.SIGURG, _wake)  # which means nothing to anybody else
    yield
    threading.Thread(target=_pass_on, args=(note, came), name="granian-boot", daemon=True).start()


def when_told_to_end(act: Callable[[], object]) -> None:
    """Have *act* called, in a thread of its own, as soon as a signal tells this process to end.

    granian waits for what is under way, and tells nobody. Of a process that is forked from this one
    the signals are its own. In another thread than the main one nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))

    def wait() -> None:
        while numbers := os.read(told, 64):
            if not set(SIGNALS).isdisjoint(numbers):
                act()
                return

    threading.Thread(target=wait, name="granian-signals", daemon=True).start()


def _wake(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: what counts is that the main thread goes on, and handles what else has come."""


def _pass_on(note: object, came: set[int]) -> None:
    """Send again what *came* once *note* is no longer the handler; wake the main thread for more.

    More than once, as granian has its handlers in place a moment before it heeds them.
    """
    main = threading.main_thread().ident or 0
    until = time.monotonic() + LONGEST
    while signal.getsignal(signal.SIGTERM) is note and time.monotonic() < until:
        time.sleep(LOOK)
    for turn in range(TURNS):
        if turn < 3:
            for number in came:
                os.kill(os.getpid(), number)
        time.sleep(TURN)
        signal.pthread_kill(main, signal.SIGURG)
