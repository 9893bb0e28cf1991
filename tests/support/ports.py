"""Ports for the servers of tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from random import randrange

__all__ = ["HOME", "free_port", "free_ports", "is_free", "refused_port"]

HOME = "127.0.0.1"

_reserved: list[socket.socket] = []
"""Unix sockets with the names of the ports that this process has been given."""


def is_free(port: int) -> bool:
    """Return whether no socket listens on *port*, or is connected from it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOME, port))
        except OSError:
            return False
        return True


def free_ports(many: int = 1, *, also: int = 0) -> int:
    """Return the first of *many* free ports in a row, outside the range of clients' ports.

    No other process that runs tests on this machine gets them while this one runs: until its server
    listens, it would find them free, and a test would take that other server for its own.

    A port of that range may be taken before its server has it: by any client, or by the one that
    tests whether the server is up, whose connection then is to itself.

    :param also: How far above each port another one must be free, such as a Redis cluster's bus.
    """
    while True:
        base = randrange(15_000, 30_000 - also)
        ports = range(base, base + many)
        wanted = {port + above for port in ports for above in (0, also)}
        if all(map(is_free, wanted)) and _reserve(wanted):
            return base


def _reserve(ports: set[int]) -> bool:
    """Bind a Unix socket without a file for each port: the system frees it with the process."""
    bound = []
    for port in ports:
        bound.append(socket.socket(socket.AF_UNIX))
        try:
            bound[-1].bind(f"\0wsgigate-tests-{port}")
        except OSError:
            for each in bound:
                each.close()
            return False
    _reserved.extend(bound)
    return True


def free_port(*, also: int = 0) -> int:
    """Return a port that is free, and the one *also* ports above it."""
    return free_ports(also=also)


@contextmanager
def refused_port(port: int = 0) -> Iterator[int]:
    """Yield a port that refuses connections, and that no other process gets meanwhile.

    A port that is free again is soon another test's: hundreds of servers begin in a second.

    :param port: One whose server has just ended; another one unless given.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((HOME, port))
        yield reserved.getsockname()[1]
