"""One exchange over one connection of a pool, with the instance's end under control of the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.client.pairs import Pairs, connection_of, pool_of
from wsgigate.client.connections import ConnectionPool
from wsgigate.client.http11 import (
    ExchangeDeadline,
    RawResponse,
    Upload,
    send_request,
)
from wsgigate.client.response_reader import (
    BLOCK,
    BrokenResponse,
    ResponseReader,
    SlowResponse,
)
from wsgigate.rules.pace import Pace, PaceRules
from wsgigate.testing.fakes import FakeClock

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65536\r\n\r\n"
ANSWER = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"


def upload(*blocks: bytes) -> Upload:
    return Upload(iter(blocks), sum(map(len, blocks)))


def plenty() -> ExchangeDeadline:
    return ExchangeDeadline(5.0, 5.0, 0.0, FakeClock(0.0))


def test_a_step_ends_at_the_deadline_at_the_latest() -> None:
    clock = FakeClock()
    deadline = ExchangeDeadline(2.0, 5.0, clock(), clock)
    assert deadline.left() == 2.0
    clock.advance(4)
    assert deadline.left() == 1.0
    assert deadline.step == 2.0
    assert ExchangeDeadline(9.0, 5.0, clock(), clock).step == 5.0
    clock.advance(1)
    with pytest.raises(TimeoutError, match="did not begin in time"):
        deadline.left()
    deadline.restart()
    assert deadline.left() == 2.0


def test_a_response_before_the_end_of_the_body_stops_the_upload(pairs: Pairs) -> None:
    """G39: with its first block already."""
    connection, reader = connection_of(pairs), ResponseReader("POST")
    pairs.theirs[0].sendall(ANSWER)
    send_request(connection, HEAD, upload(b"x" * BLOCK), reader, plenty())
    assert (reader.status, reader.complete, reader.keep) == (413, True, False)
    connection.close()
    sent = b""
    while block := pairs.theirs[0].recv(1 << 20):
        sent += block
    assert sent == HEAD


def test_a_response_between_two_blocks_stops_the_upload(pairs: Pairs) -> None:
    """G39"""
    connection, reader = connection_of(pairs), ResponseReader("POST")
    asked: list[int] = []

    def blocks() -> Iterator[bytes]:
        for number in range(9):
            asked.append(number)
            if number == 2:
                pairs.theirs[0].sendall(ANSWER)
            yield b"x" * 10

    send_request(connection, HEAD, Upload(blocks(), 90), reader, plenty())
    assert (reader.status, reader.complete, reader.keep) == (413, True, False)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("small", [False, True])
def test_the_response_of_an_instance_that_stops_reading_is_read(small: bool, pairs: Pairs) -> None:
    """N03, G39: it is not sent another request, whatever it says of the connection."""
    connection, reader = connection_of(pairs), ResponseReader("POST")
    pairs.theirs[0].sendall(ANSWER)
    pairs.theirs[0].shutdown(socket.SHUT_RD)
    body = b"x" * (10 if small else BLOCK)
    send_request(connection, HEAD, upload(body), reader, plenty())
    assert (reader.status, reader.complete, reader.keep) == (413, True, False)


@pytest.mark.parametrize("large", [False, True])
def test_a_cut_head_differs_from_no_response(large: bool, pairs: Pairs) -> None:
    """G05"""
    for said, error, text in (
        (b"HTTP/1.1 200 O", BrokenResponse, "head was cut short"),
        (b"", requests.ConnectionError, "without response|while the body"),
    ):
        connection, reader = connection_of(pairs), ResponseReader("POST")
        pairs.theirs[-1].sendall(said)
        pairs.theirs[-1].shutdown(socket.SHUT_WR)
        body = upload(b"x" * BLOCK) if large else None
        with pytest.raises(error, match=text):
            send_request(connection, HEAD, body, reader, plenty())


@pytest.mark.parametrize("large", [False, True])
def test_each_step_of_an_exchange_has_its_timeout(large: bool, pairs: Pairs) -> None:
    """N25: the instance takes nothing and says nothing."""
    connection = connection_of(pairs)
    connection.set_timeout(60.0)
    body = upload(*[b"x" * BLOCK] * 40) if large else None
    with pytest.raises(requests.ReadTimeout):
        send_request(
            connection,
            HEAD,
            body,
            ResponseReader("POST"),
            ExchangeDeadline(0.05, 0.1, 0.0, FakeClock(0.0)),
        )


def test_a_connection_is_reusable_after_a_large_body(pairs: Pairs) -> None:
    pool = pool_of(pairs)
    connection, reader = pool.acquire(0.0, 5.0), ResponseReader("POST")

    def instance() -> None:
        pairs.theirs[0].recv(len(HEAD) + BLOCK, socket.MSG_WAITALL)
        pairs.theirs[0].sendall(ANSWER)

    thread = threading.Thread(target=instance)
    thread.start()
    send_request(connection, HEAD, upload(b"x" * BLOCK), reader, plenty())
    thread.join()
    RawResponse(connection, reader, 5.0)
    assert pool.idle_connections == 1
    assert pool.acquire(0.0, 5.0) is connection


def test_each_part_of_a_body_has_the_read_timeout(pairs: Pairs) -> None:
    """Whatever time the steps before had: none, after a look whether there was an answer."""
    connection, reader = connection_of(pairs), ResponseReader("GET")
    connection.set_timeout(25.0)
    assert connection.recv_now(BLOCK) is None
    pairs.theirs[0].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
    assert reader.feed_head(connection.recv_now(BLOCK) or b"")
    raw = RawResponse(connection, reader, 5.0)
    later = threading.Timer(0.05, pairs.theirs[0].sendall, [b"ok"])
    later.start()
    assert raw.read() == b"ok"
    later.join()


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Ticking:
    """A clock by which each look at it takes *step* seconds."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def paced(pairs: Pairs, head: bytes, clock: Callable[[], float], **rules: Any) -> RawResponse:
    """Return the response that begins with *head*, whose pace is watched."""
    connection, reader = connection_of(pairs), ResponseReader("GET")
    assert reader.feed_head(head)
    return RawResponse(connection, reader, 5.0, Pace(PaceRules(**rules), 5.0), clock)


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    ],
    ids=["length", "chunked", "until the end"],
)
def test_a_body_below_the_minimum_rate_is_an_error(pairs: Pairs, head: bytes, part: bytes) -> None:
    raw = paced(pairs, head, Ticking(1.0))
    for _ in range(31):
        pairs.theirs[0].sendall(part)
        assert raw.read1() == b"x"
    pairs.theirs[0].sendall(part)
    with pytest.raises(SlowResponse, match=r"31 bytes in 31\.0 s are too slow"):
        raw.read1()
    assert raw.closed, "its connection does not serve another request"


def test_bytes_that_are_no_body_data_do_not_extend_the_minimum_rate(pairs: Pairs) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw = paced(pairs, head, Ticking(1.0))
    pairs.theirs[0].sendall(b"1;a=")
    sending = threading.Thread(target=lambda: drip(pairs.theirs[0]))
    sending.start()
    with pytest.raises(SlowResponse, match="0 bytes"):
        raw.read1()
    sending.join()


def drip(sock: socket.socket) -> None:
    try:
        while True:
            sock.sendall(b"a")
    except OSError:
        pass


def test_the_time_that_a_slow_client_takes_does_not_count(pairs: Pairs) -> None:
    clock = FakeClock()
    raw = paced(pairs, b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n", clock, total=60)
    for _ in range(50):
        pairs.theirs[0].sendall(b"x")
        assert raw.read1() == b"x"
        clock.advance(100)  # until the client has taken it
    assert raw.read1() == b""


def test_a_read_waits_no_longer_than_the_time_left(pairs: Pairs) -> None:
    raw = paced(pairs, LENGTH, Ticking(0.0), total=0.05)
    with pytest.raises(SlowResponse, match="0 bytes"):
        raw.read1()
    assert raw.closed


def begun(pairs: Pairs, data: bytes, timeout: float = 5.0) -> tuple[ConnectionPool, RawResponse]:
    """Return the response that begins with *data*, its head read."""
    pool = pool_of(pairs)
    connection, reader = pool.acquire(0.0, 5.0), ResponseReader("GET")
    assert reader.feed_head(data)
    return pool, RawResponse(connection, reader, timeout)


@pytest.mark.parametrize(
    ("head", "body", "error"),
    [
        (LENGTH, b"short", BrokenResponse),
        (CHUNKED, b"zz\r\n", BrokenResponse),
        (LENGTH, None, requests.ReadTimeout),
    ],
)
def test_a_failing_body_closes_its_connection_at_once(
    head: bytes, body: bytes | None, error: type[Exception], pairs: Pairs
) -> None:
    pool, raw = begun(pairs, head, 0.05)
    if body is not None:
        pairs.theirs[0].sendall(body)
        pairs.theirs[0].shutdown(socket.SHUT_WR)
    with pytest.raises(error):
        raw.read()
    assert pool.open_connections == 0
    assert raw.closed
    assert raw.read() == b""


def test_a_socket_error_is_a_connection_error(pairs: Pairs) -> None:
    pool, raw = begun(pairs, LENGTH)
    pairs.ours[0].close()
    with pytest.raises(requests.ConnectionError):
        raw.read()
    assert pool.open_connections == 0


def test_bytes_after_the_end_of_a_body_end_its_connection(pairs: Pairs) -> None:
    """G07: the bytes belong to no response, so the connection is not reused."""
    for more, kept in ((b"56789", 1), (b"56789stray", 0)):
        pool, raw = begun(pairs, LENGTH + b"1234")
        pairs.theirs[-1].sendall(more)
        assert raw.read() == b"123456789"
        assert pool.idle_connections == kept


def test_no_part_of_a_body_is_returned_twice(pairs: Pairs) -> None:
    _, raw = begun(pairs, LENGTH + b"123456789")
    assert [raw.read1(4), raw.read1(4), raw.read1(4), raw.read1(4)] == [b"1234", b"5678", b"9", b""]
    _, raw = begun(pairs, LENGTH + b"123456789")
    assert raw.read1(4) == b"1234"
    raw.close()
    assert (raw.read1(4), raw.closed) == (b"", True)
    _, raw = begun(pairs, LENGTH + b"1234")
    assert raw.read(6 - 4) == b"12"
    connection, rest = raw.take_over()
    assert rest == b"34"
    connection.close()
    with pytest.raises(ValueError, match="the response has ended"):
        raw.take_over()


def test_on_socket_is_called_before_a_connection_is_lent_again(pairs: Pairs) -> None:
    told: list[object] = []
    pool = pool_of(pairs)
    connection = pool.acquire(0.0, 5.0)
    connection.on_socket = told.append
    connection.give_back(True)
    connection.give_back(True)
    assert told == [None]
    assert pool.idle_connections == 1
    assert pool.acquire(0.0, 5.0).on_socket is None
