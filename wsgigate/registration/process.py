"""The process that serves a port, found in ``/proc``, and deferred signals to exit."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

__all__ = ["DeferredSignals", "accepts", "holds"]


# Which process serves a port, without a connection to it.
#
# A module that registers its service is also imported by processes that do not serve it: a
# management command, a shell, a task queue. And a worker that gets a signal to exit cannot see
# whether the service ends or only the worker. Both follow from which processes have the listening
# socket (``proc(5)``).

_READS = 3  # of the tables, before a port counts as one without a listener

_LISTENING = "0A"  # TCP_LISTEN of the kernel's include/net/tcp_states.h


def holds(port: int, pid: int | None = None) -> bool:
    """Return whether a process has a socket that listens at *port*.

    :param pid: The process. Default: this one. ``False`` for a process of another user.
    """
    which = "self" if pid is None else str(pid)
    if not os.path.exists("/proc/self/net/tcp"):  # not Linux: any process may be the listener
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
        except OSError:  # the descriptor has just been closed
            pass
    return False


def accepts(host: str, port: int, timeout: float = 0.5) -> bool:
    """Return whether a connection to *host* and *port* is accepted."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return False
    return True


def _listening(port: int) -> set[str]:
    """Return the link targets of descriptors of sockets that listen at *port*."""
    # The kernel returns the table in pieces, and skips a row where a socket before it was closed
    # between two pieces: a worker would deregister a service that its master continues.
    for _ in range(_READS):
        if found := read_listening(port):
            return found
    return set()


def read_listening(port: int) -> set[str]:
    """Return the sockets of any process that listen on *port*, as the kernel lists them once."""
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
    """Signal handlers that can defer a signal before the previous handler gets it.

    :param defers: Called in the signal handler, which may interrupt any code: it may put an item on
        a ``SimpleQueue``, and little else. Returns whether to defer the signal until
        :meth:`pass_on`; a second signal with the same number is not deferred.
    """

    def __init__(self, defers: Callable[[int], bool]) -> None:
        self._defers = defers
        self._previous: dict[int, _Handler] = {}
        self._deferred: set[int] = set()
        self._pid = 0

    def install(self, *signals: int) -> None:
        """Install the handler for those of *signals* that this process does not ignore.

        Only the main thread can set handlers; in any other, this does nothing. A server that sets
        its own handlers later replaces these.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self._pid = os.getpid()
        for number in signals:
            previous = signal.getsignal(number)
            if previous is None or previous == signal.SIG_IGN or previous == self._handle:
                continue  # a handler that C code has set cannot be restored
            self._previous[number] = previous
            signal.signal(number, self._handle)

    def ends(self, number: int) -> bool:
        """Return whether the signal ends the process at once when it is passed on."""
        return self._previous.get(number) == signal.SIG_DFL

    def pass_on(self, number: int) -> None:
        """Send the signal to this process again. Any thread may call this."""
        os.kill(os.getpid(), number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Not in a fork that has not set its own handlers yet. The system is asked, not fork.pid: a
        # signal may be handled in the child before the hook that changes fork.pid has run.
        mine = os.getpid() == self._pid
        if mine and number not in self._deferred and self._defers(number):
            self._deferred.add(number)
            return
        previous = self._previous[number]
        if callable(previous):
            previous(number, frame)
        elif previous != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
