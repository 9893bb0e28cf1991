"""Pairs of sockets in place of dialled connections."""

from __future__ import annotations

import socket

import requests

from wsgigate.client.connections import Connection, ConnectionPool, Limits
from wsgigate.testing.fakes import FakeClock

__all__ = ["Pairs", "connection_of", "pool_of"]


class Pairs:
    """Dials: one end of a pair is the connection's, the other stays in ``theirs``."""

    def __init__(self, failures: int = 0) -> None:
        self.ours: list[socket.socket] = []
        self.theirs: list[socket.socket] = []
        self._failures = failures

    def __call__(self, until: float) -> socket.socket:
        if self._failures:
            self._failures -= 1
            raise requests.ConnectTimeout("no")
        ours, theirs = socket.socketpair()
        self.ours.append(ours)
        self.theirs.append(theirs)
        return ours

    def close(self) -> None:
        for end in (*self.ours, *self.theirs):
            end.close()


def pool_of(pairs: Pairs, **limits: float) -> ConnectionPool:
    return ConnectionPool(pairs, Limits(**limits), FakeClock(0.0))


def connection_of(pairs: Pairs) -> Connection:
    return pool_of(pairs).acquire(0.0, 5.0)
