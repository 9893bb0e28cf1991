"""Ports for the servers of tests."""

from __future__ import annotations

import socket
from random import randrange

__all__ = ["HOME", "free_port", "free_ports", "is_free"]

HOME = "127.0.0.1"


def is_free(port: int) -> bool:
    """Return whether nobody listens on *port*, or is connected from it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOME, port))
        except OSError:
            return False
        return True


def free_ports(many: int = 1) -> int:
    """Return the first of *many* free ports in a row, below those that clients are given.

    Of those one may be taken before its server has it: by a client of something else, or by who
    looks whether the server is there, which then is connected to itself.
    """
    while True:
        base = randrange(15_000, 30_000)
        if all(map(is_free, range(base, base + many))):
            return base


def free_port() -> int:
    """Return a port that is free."""
    return free_ports()
