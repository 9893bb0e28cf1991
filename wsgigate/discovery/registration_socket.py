"""Whether a process serves a port, found out without a connection to it.

A module that registers its service is also loaded by those that do not serve it: a management
command, a shell, a task queue. And a worker that is told to end does not know whether its service
ends, or only the worker. Both is known from who has the listening socket (``proc(5)``).
"""

from __future__ import annotations

import os
import socket

__all__ = ["accepts", "holds"]

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
