"""The pool of connections: its slots and bounds, idle connections and requests that wait."""

from __future__ import annotations

import gc
import socket
import threading

import pytest
import requests

from tests.client.pairs import Pairs, pool_of
from tests.support.waiting import until
from wsgigate.client.connections import Connection, ConnectionPool, Limits
from wsgigate.client.http11 import (
    StreamedResponse,
)
from wsgigate.client.response_reader import (
    PoolFull,
    ResponseReader,
)
from wsgigate.testing.fakes import FakeClock


def test_a_failed_dial_frees_its_slot() -> None:
    pairs = Pairs(failures=2)
    pool = pool_of(pairs, max_open=1)
    for _ in range(2):
        with pytest.raises(requests.ConnectTimeout):
            pool.acquire(0.0, 5.0)
    pool.acquire(0.0, 5.0).close()
    assert pool.open_connections == 0
    pairs.close()


def test_no_more_than_max_idle_connections_are_kept(pairs: Pairs) -> None:
    pool = pool_of(pairs, max_idle=1)
    taken = [pool.acquire(0.0, 5.0) for _ in range(3)]
    for connection in taken:
        connection.give_back(True)
    assert (pool.open_connections, pool.idle_connections) == (1, 1)


def test_a_fresh_connection_is_not_an_idle_one(pairs: Pairs) -> None:
    pool = pool_of(pairs)
    pool.acquire(0.0, 5.0).give_back(True)
    fresh = pool.acquire(0.0, 5.0, fresh=True)
    assert not fresh.reused
    assert len(pairs.ours) == 2


@pytest.mark.parametrize(("keep", "leaves", "fresh"), [(0, 1, 0), (1, 1, 0), (1, 0, 1), (1, 0, 0)])
def test_a_waiting_request_gets_a_usable_connection(
    keep: int, leaves: int, fresh: int, pairs: Pairs
) -> None:
    """The old one was closed when its request ended, or by the instance just before it was kept,
    or a new one is wanted; else it goes on."""
    pool = pool_of(pairs, max_open=1)
    held = pool.acquire(0.0, 5.0)
    taken: list[Connection] = []

    def wait() -> None:
        taken.append(pool.acquire(0.0, 60.0, fresh=bool(fresh)))  # far more than it is given below

    waiter = threading.Thread(target=wait)
    waiter.start()
    until(lambda: pool.waiting)
    if leaves:
        pairs.theirs[0].close()
    held.give_back(bool(keep))
    waiter.join(30)
    [connection] = taken
    assert connection.reused == (not leaves and not fresh)
    assert (pairs.ours[0].fileno() == -1) == (connection is not held)
    assert (pool.open_connections, len(pairs.ours)) == (1, 2 - connection.reused)
    with pytest.raises(PoolFull):
        pool.acquire(0.0, 0.0)


def test_a_connection_with_unread_data_is_not_kept(pairs: Pairs) -> None:
    """A poller does not report data that TLS has decrypted already."""
    pool = pool_of(pairs)
    connection = pool.acquire(0.0, 5.0)
    connection.pending = lambda: 1
    connection.give_back(True)
    assert (pool.open_connections, pool.idle_connections) == (0, 0)


@pytest.mark.parametrize(
    ("later", "limits", "reused"),
    [
        (3.9, {"idle_timeout": 4.0}, True),
        (4.0, {"idle_timeout": 4.0}, False),
        (3.9, {"idle_timeout": 9.0, "max_age": 4.0}, True),
        (4.0, {"idle_timeout": 9.0, "max_age": 4.0}, False),
    ],
)
def test_an_idle_connection_is_kept_until_its_timeout(
    later: float, limits: dict[str, float], reused: bool, pairs: Pairs
) -> None:
    pool = pool_of(pairs, **limits)
    pool.acquire(0.0, 5.0).give_back(True)
    assert pool.acquire(later, 9.0).reused is reused


def test_an_interrupted_dial_frees_its_slot() -> None:
    class Interrupted(BaseException):
        """What is no error of the system's, such as a worker's order to end."""

    def dial(until: float) -> socket.socket:
        raise Interrupted

    pool = ConnectionPool(dial, Limits(max_open=1), FakeClock(0.0))
    for _ in range(2):
        with pytest.raises(Interrupted):
            pool.acquire(0.0, 5.0)
    assert pool.open_connections == 0


def test_a_waiting_request_checks_once_more_after_its_timeout(pairs: Pairs) -> None:
    """Otherwise a connection returned at that moment stays unused while others wait."""
    returned: list[Connection] = []

    def clock() -> float:
        while returned:  # just before the thread begins to wait, so that no notification comes
            returned.pop().give_back(True)
        return 0.0

    pool = ConnectionPool(pairs, Limits(max_open=1), clock)
    held = pool.acquire(0.0, 0.01)
    returned.append(held)
    assert pool.acquire(0.0, 0.01) is held
    with pytest.raises(PoolFull):
        pool.acquire(0.0, 0.0)


def test_a_garbage_collected_response_frees_its_slot_in_any_thread(pairs: Pairs) -> None:
    """Also while this very thread waits for a place, with what guards them in its hands."""

    def clock() -> float:
        gc.collect()
        return 0.0

    pool = ConnectionPool(pairs, Limits(max_open=1), clock)
    reader = ResponseReader("GET")
    reader.feed_head(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    forgotten: list[object] = [StreamedResponse(pool.acquire(0.0, 0.01), reader, 5.0)]
    forgotten.append(forgotten)
    del forgotten
    taken: list[Connection] = []
    waiter = threading.Thread(target=lambda: taken.append(pool.acquire(0.0, 0.01)), daemon=True)
    waiter.start()
    waiter.join(30)
    [connection] = taken
    assert pool.open_connections == 1
    connection.close()


def test_a_closed_pool_closes_returned_connections(pairs: Pairs) -> None:
    pool = pool_of(pairs)
    held, kept = pool.acquire(0.0, 5.0), pool.acquire(0.0, 5.0)
    kept.give_back(True)
    pool.close()
    assert (pool.open_connections, pool.idle_connections) == (1, 0)
    held.give_back(True)
    assert pool.open_connections == 0
    assert [end.fileno() for end in pairs.ours] == [-1, -1]


def test_an_abandoned_pool_closes_its_sockets(pairs: Pairs) -> None:
    pool = pool_of(pairs)
    pool.acquire(0.0, 5.0).give_back(True)
    pool.abandon()
    assert (pool.idle_connections, pairs.ours[0].fileno()) == (0, -1)
