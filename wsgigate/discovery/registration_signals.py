"""A signal that ends a process, put off until others have been told that it ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

__all__ = ["PutOff"]

_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class PutOff:
    """Be asked first when a signal comes, and let who was there before handle it later, or at once.

    :param asked: Called in the signal handler, in the midst of anything: it may put something on a
        ``SimpleQueue``, and little else. Returns whether the signal is put off until
        :meth:`pass_on`; the same signal once more is not.
    """

    def __init__(self, asked: Callable[[int], bool]) -> None:
        self._asked = asked
        self._before: dict[int, _Handler] = {}
        self._put_off: set[int] = set()
        self._pid = 0

    def install(self, *signals: int) -> None:
        """Take over those of *signals* that this process does not ignore.

        Only the main thread can; in any other, nothing is done. A server that sets handlers of its
        own later replaces these.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._pid = os.getpid()
        for number in signals:
            before = signal.getsignal(number)
            if before is None or before == signal.SIG_IGN or before == self._handle:
                continue  # one that is set by C code can not be put back
            self._before[number] = before
            signal.signal(number, self._handle)

    def ends(self, number: int) -> bool:
        """Return whether the signal, once passed on, ends the process at once."""
        return self._before.get(number) == signal.SIG_DFL

    def pass_on(self, number: int) -> None:
        """Send the signal to this process again; any thread may."""
        os.kill(os.getpid(), number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        mine = os.getpid() == self._pid  # a fork that has not set its own handlers yet is another
        if mine and number not in self._put_off and self._asked(number):
            self._put_off.add(number)
            return
        before = self._before[number]
        if callable(before):
            before(number, frame)
        elif before != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
