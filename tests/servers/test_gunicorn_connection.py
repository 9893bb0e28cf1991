"""A client's connection to a GateWorker: each of its deadlines, with sockets and no server."""

from __future__ import annotations

import errno
import io
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http2.errors import HTTP2ConnectionError
from gunicorn.workers.gthread import TConn

from wsgigate.servers.gunicorn_connection import (
    ABANDONED,
    SLICE,
    ClientStalled,
    Connection,
    _KernelTimeoutSocket,
    _Reader,
)

SOON = 0.05


@pytest.fixture
def pair() -> Iterator[tuple[Any, socket.socket]]:
    """The worker's end and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    ours.__class__ = _KernelTimeoutSocket
    with ours, theirs:
        yield ours, theirs


Pair = tuple[Any, socket.socket]


def lingers(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)


def test_a_socket_waits_for_its_timeout_and_no_longer(pair: Pair) -> None:
    ours, theirs = pair
    ours.wait_at_most(SOON)
    with pytest.raises(BlockingIOError):
        ours.recv(1)
    theirs.sendall(b"x")
    assert ours.recv(1) == b"x"
    ours.wait_at_most(2.25)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        seconds = ours.getsockopt(socket.SOL_SOCKET, option, 16)
        assert int.from_bytes(seconds[:8], "little") == 2
        assert abs(int.from_bytes(seconds[8:], "little") - 250_000) < 20_000


def test_a_response_that_is_not_taken_ends_and_the_rest_is_thrown_away(pair: Pair) -> None:
    ours, _ = pair
    ours.wait_at_most(SOON)
    assert lingers(ours) != ABANDONED
    with pytest.raises(ClientStalled) as caught:
        ours.sendall(bytes(64 << 20))
    assert isinstance(caught.value, ConnectionResetError | TimeoutError)
    assert lingers(ours) == ABANDONED


def test_a_response_that_is_taken_arrives_whole(pair: Pair) -> None:
    ours, theirs = pair
    ours.wait_at_most(10.0)
    sent = os.urandom(SLICE * 2 + 1)
    ours.sendall(memoryview(sent)[:1000])
    ours.sendall(sent[1000:])
    ours.shutdown(socket.SHUT_WR)
    with theirs.makefile("rb") as came:
        assert came.read() == sent


def test_a_file_that_is_not_taken_ends_too(pair: Pair, tmp_path: Path) -> None:
    ours, _ = pair
    file = tmp_path / "file"
    with file.open("wb+") as large:
        large.truncate(64 << 20)
        ours.wait_at_most(SOON)
        with pytest.raises(ClientStalled):
            ours.sendfile(large)
    assert ours.gettimeout() is None
    assert lingers(ours) == ABANDONED


def test_a_file_that_is_taken_is_sent(pair: Pair, tmp_path: Path) -> None:
    ours, theirs = pair
    ours.wait_at_most(10.0)
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("rb") as file:
        assert ours.sendfile(file, 2, 5) == 5
    assert theirs.recv(100) == b"23456"
    assert ours.gettimeout() is None


def test_to_block_is_no_change_unless_it_is(pair: Pair) -> None:
    ours, _ = pair
    ours.setblocking(False)
    assert ours.gettimeout() == 0.0
    ours.setblocking(True)
    assert ours.gettimeout() is None
    ours.setblocking(True)
    assert ours.gettimeout() is None


def test_a_head_that_stalls_ends(pair: Pair) -> None:
    ours, theirs = pair
    ours.wait_at_most(SOON)
    reader = _Reader(ours, 500.0)
    theirs.sendall(b"GET")
    assert reader.chunk() == b"GET"
    with pytest.raises(ClientStalled, match="head"):
        reader.chunk()


def test_a_body_that_stalls_ends(pair: Pair) -> None:
    ours, theirs = pair
    ours.wait_at_most(10.0)
    reader = _Reader(ours, 1e9)
    reader.begin(SOON)
    theirs.sendall(b"some")
    assert reader.chunk() == b"some"
    with pytest.raises(ClientStalled, match="body"):
        reader.chunk()
    assert ours.gettimeout() is None


class Drops(io.BytesIO):
    """A socket from which a byte comes after a while, on a clock of its own."""

    def __init__(self, clock: list[float], after: float) -> None:
        self._clock = clock
        self._after = after
        self.asked: list[float | None] = []

    def recv(self, size: int) -> bytes:
        self._clock[0] += self._after
        return b"1"

    def gettimeout(self) -> None:
        return None

    def settimeout(self, seconds: float | None) -> None:
        self.asked.append(seconds)


def drops(after: float, rate: float) -> tuple[_Reader, list[float]]:
    clock = [0.0]
    source: Any = Drops(clock, after)
    reader = _Reader(source, rate, clock=lambda: clock[0])
    reader.begin(10.0)
    return reader, clock


def test_a_body_in_drops_ends_when_its_time_is_over() -> None:
    reader, clock = drops(1.0, rate=math.inf)
    for _ in range(10):
        assert reader.chunk() == b"1"
    with pytest.raises(ClientStalled, match="body"):
        reader.chunk()
    assert clock == [10.0]
    assert reader.sock.asked == [each for left in range(9, 0, -1) for each in (left, None)]
    reader.begin(10.0)  # the next request's has a time of its own
    assert reader.chunk() == b"1"


def test_bytes_earn_time_and_the_applications_own_costs_none() -> None:
    reader, clock = drops(1.0, rate=1.0)
    for _ in range(50):
        assert reader.chunk() == b"1"
        clock[0] += 100.0


def connection_of(ours: Any, unreader: Any) -> Connection:
    connection: Connection = object.__new__(Connection)
    connection.sock = ours
    connection.is_http2 = False
    connection.initialized = True
    connection.parser = SimpleNamespace(unreader=unreader)
    return connection


def test_what_was_read_ahead_is_known(pair: Pair) -> None:
    ours, theirs = pair
    reader = _Reader(ours, 500.0)
    connection = connection_of(ours, reader)
    assert not connection.has_read_ahead()
    theirs.sendall(b"GET / GET /")
    assert reader.read(5) == b"GET /"
    assert connection.has_read_ahead()


def test_a_new_head_has_no_time_of_the_last_body(pair: Pair) -> None:
    ours, _ = pair
    reader = _Reader(ours, 500.0)
    connection = connection_of(ours, reader)
    connection.begin_body(3.0)
    assert reader.patience == 3.0
    connection.begin_head()
    assert reader.patience is None


def test_cutting_a_connection_wakes_its_reader(pair: Pair) -> None:
    ours, theirs = pair
    connection = connection_of(ours, None)
    connection.cut()
    assert (ours.recv(1), theirs.recv(1)) == (b"", b"")
    ours.close()
    connection.cut()


def test_a_client_with_unread_data_is_not_cut(pair: Pair) -> None:
    ours, theirs = pair
    connection = connection_of(ours, None)
    theirs.sendall(b"x")
    connection.cut_if_silent()
    assert ours.recv(1) == b"x"
    connection.cut_if_silent()
    assert (ours.recv(1), theirs.recv(1)) == (b"", b"")
    ours.close()
    connection.cut_if_silent()


@pytest.mark.parametrize(("abandoned", "lingering"), [(False, 1), (True, 0)])
def test_an_abandoned_connection_is_closed_at_once(
    pair: Pair, abandoned: bool, lingering: int
) -> None:
    ours, theirs = pair
    left: list[Any] = []
    connection = connection_of(ours, None)
    connection._worker = SimpleNamespace(linger=left.append)
    if abandoned:
        with pytest.raises(ClientStalled):
            ours._abandon()
    connection.close(graceful=True)
    assert len(left) == lingering
    assert (ours.fileno() == -1) == abandoned
    if abandoned:
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
    connection.close()
    assert ours.fileno() == -1


def test_time_is_the_only_thing_that_ends_a_patient_wait(pair: Pair) -> None:
    """A signal does not: the wait goes on, as PEP 475 has it."""
    ours, theirs = pair
    ours.wait_at_most(10.0)
    came = []
    before = signal.signal(signal.SIGUSR1, lambda *_: (came.append(1), theirs.sendall(b"x")))
    main = threading.main_thread().ident
    assert main is not None
    sender = threading.Timer(SOON, signal.pthread_kill, (main, signal.SIGUSR1))
    sender.start()
    try:
        assert ours.recv(1) == b"x"
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert came == [1]


def test_a_client_that_leaves_before_http2_begins_is_closed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gunicorn has made what speaks HTTP/2 by then, and could not send its first frames."""

    def begin(connection: Any) -> None:
        connection.is_http2, connection.parser = True, object()
        raise HTTP2ConnectionError("Socket write error")

    ours, _ = pair
    monkeypatch.setattr(TConn, "init", begin)
    lingering: list[socket.socket] = []
    worker = SimpleNamespace(linger=lingering.append)
    connection = Connection(worker, Config(), ours, ("127.0.0.1", 1), ("127.0.0.1", 2))
    with pytest.raises(ConnectionResetError) as caught:
        connection.init()
    assert caught.value.errno == errno.ECONNRESET
    connection.close(graceful=True)
    assert lingering == [ours]
