"""Ports for the servers of tests."""

from __future__ import annotations

import socket
from random import randrange

__all__ = ["HOME", "free_port", "free_ports", "is_free"]

HOME = "127.0.0.1"


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

    A port of that range may be taken before its server has it: by any client, or by the one that
    tests whether the server is up, whose connection then is to itself.

    :param also: How far above each port another one must be free, such as a Redis cluster's bus.
    """
    while True:
        base = randrange(15_000, 30_000 - also)
        ports = range(base, base + many)
        if all(is_free(port) and is_free(port + also) for port in ports):
            return base


def free_port(*, also: int = 0) -> int:
    """Return a port that is free, and the one *also* ports above it."""
    return free_ports(also=also)
