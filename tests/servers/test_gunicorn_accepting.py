"""How many connections a GateWorker accepts before its threads have looked at them."""

from __future__ import annotations

import socket
import sys
import termios
from fcntl import ioctl

import pytest

from tests.servers.gate import GET, Gate, Make
from tests.support.waiting import until
from wsgigate.servers.gunicorn_threads import SILENT, NewConnections

THREADS = 4


def knock(gate: Gate, count: int, data: bytes = GET) -> None:
    """Have *count* clients connect and send *data*, without being accepted."""
    for _ in range(count):
        client = socket.create_connection(gate.listener.getsockname(), timeout=20)
        gate.clients.append(client)
        client.sendall(data)
        until(lambda client=client: not unsent(client))


def unsent(client: socket.socket) -> int:
    """Return how many bytes have not arrived yet."""
    ioctl(client.fileno(), termios.TIOCOUTQ, queued := bytearray(4))
    return int.from_bytes(queued, sys.byteorder)


def accept(gate: Gate) -> int:
    """Have the loop accept what it wants to; return how many connections are open then."""
    for _ in range(20):
        gate.worker.accept_while(not gate.worker.is_crowded())
        gate.loop()
    return gate.worker.connections()


def test_of_a_burst_a_worker_accepts_one_request_for_each_thread(make: Make) -> None:
    gate = make(workers=2, threads=THREADS)
    knock(gate, 10)
    assert accept(gate) == THREADS
    assert accept(gate) == THREADS
    for accepted in (THREADS + 1, THREADS + 2):  # a thread that took one is free for another
        gate.step()
        assert accept(gate) == accepted


def test_a_worker_alone_accepts_all(make: Make) -> None:
    gate = make(workers=1, threads=THREADS)
    knock(gate, 10)
    assert accept(gate) == 10


def test_silent_clients_keep_no_other_out(make: Make) -> None:
    gate = make(workers=2, threads=THREADS)
    knock(gate, 3 * THREADS, b"")
    until(lambda: accept(gate) == 3 * THREADS)
    knock(gate, 1)
    until(lambda: accept(gate) == 3 * THREADS + 1)


@pytest.mark.parametrize(
    ("sent", "after", "count"),
    [(b"", 0.0, 1), (b"", SILENT, 0), (b"x", 0.0, 1), (b"x", SILENT, 1), (b"x", 3600.0, 1)],
)
def test_a_connection_counts_until_it_is_read_or_silent(
    sent: bytes, after: float, count: int, gate: Gate
) -> None:
    client = gate.connect()
    client.sendall(sent)
    until(lambda: not unsent(client))
    [connection] = gate.worker.idle
    new = NewConnections()
    new.add(connection, 5.0)
    assert new.count(5.0 + after) == len(new) == count
    if sent:
        gate.step()
    connection.initialized = True
    assert new.count(5.0) == 0


def test_a_connection_that_was_closed_does_not_count(gate: Gate) -> None:
    gate.connect()
    [connection] = gate.worker.idle
    new = NewConnections()
    new.add(connection, 5.0)
    gate.worker.drop(connection)
    assert new.count(5.0 + SILENT) == 0
