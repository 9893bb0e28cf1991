"""A signal that ends a process, put off until others have been told that it ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

__all__ = ["DeferredSignals", "accepts", "holds"]


# Whether a process serves a port, found out without a connection to it.
#
# A module that registers its service is also loaded by those that do not serve it: a management
# command, a shell, a task queue. And a worker that is told to end does not know whether its
# service ends, or only the worker. Both is known from who has the listening socket (``proc(5)``).

_LISTENING = "0A"  # TCP_LISTEN of the kernel's include/net/tcp_states.h


def holds(port: int, pid: int | None = None) -> bool:
    """Return whether a process has a socket that listens at *port*.

    :param pid: The process; this one unless given. Of one that this user may not look into, the
        answer is no.
    """
    which = "self" if pid is None else str(pid)
    if not os.path.exists("/proc/self/net/tcp"):  # no Linux: whoever it is that listens there
        return pid is None and accepts("127.0.0.1", port)
    listening = _listening(port)
    if not listening:
        return False
    try:
        descriptors = os.listdir(f"/proc/{which}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(f"/proc/{which}/fd/{descriptor}") in listening:
                return True
        except OSError:  # it has just been closed
            pass
    return False


def accepts(host: str, port: int, timeout: float = 0.5) -> bool:
    """Return whether somebody takes connections at *host* and *port*."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return False
    return True


def _listening(port: int) -> set[str]:
    """Return what descriptors of sockets that listen at *port* are links to."""
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/self/net/{table}", encoding="ascii") as lines:
                next(lines, None)
                for line in lines:
                    _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
                    if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                        found.add(f"socket:[{inode}]")
        except (OSError, ValueError):
            pass  # a kernel without IPv6
    return found


_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class DeferredSignals:
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
