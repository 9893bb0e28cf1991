"""The exchange over one open connection: which input is an answer, and its time limits."""

from __future__ import annotations

import select
import socket
import threading
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.redis.resp import Error, written
from wsgigate.store.redis_connections import (
    LEAST,
    LONG,
    SHORT,
    SIZE,
    ErrorReply,
    Malformed,
    Wire,
    command,
    packed,
)

PING = command(b"PING")


def wire_on(sock, timeout=10.0, **settings):
    wire = Wire(timeout, **settings)
    wire.on_connect(SimpleNamespace(_sock=sock))
    return wire


class Received:
    """A socket that receives these parts, one at a time, and then the end of the stream."""

    def __init__(self, *parts):
        self.parts = [part for part in parts if part]

    def sendall(self, data):
        pass

    def settimeout(self, seconds):
        pass

    def recv(self, size):
        return self.parts.pop(0) if self.parts else b""


def plain(value):
    """Return *value* with error replies as tuples, which can be compared."""
    if isinstance(value, ErrorReply):
        return "error", value.code, value.text
    return [plain(item) for item in value] if isinstance(value, list) else value


def read(*parts, expected=1, most=SIZE):
    """Return the answers in these parts of a stream."""
    return plain(wire_on(Received(*parts)).ask(b"", expected, most))


def singly(data):
    """Return the bytes of *data* as so many parts."""
    return [data[place : place + 1] for place in range(len(data))]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"+OK\r\n", b"OK"),
        (b"+\r\n", b""),
        (b"-NOSCRIPT No such script\r\n", ("error", "NOSCRIPT", "NOSCRIPT No such script")),
        (b"-ERR\r\n", ("error", "ERR", "ERR")),
        (b"-ERR \xff\r\n", ("error", "ERR", "ERR \N{REPLACEMENT CHARACTER}")),
        (b":0\r\n", 0),
        (b":-12\r\n", -12),
        (b":9223372036854775807\r\n", 2**63 - 1),
        (b":-9223372036854775808\r\n", -(2**63)),
        (b"$0\r\n\r\n", b""),
        (b"$2\r\n\r\n\r\n", b"\r\n"),
        (b"$5\r\n$3\r\na\r\n", b"$3\r\na"),
        (b"$-1\r\n", None),
        (b"*0\r\n", []),
        (b"*-1\r\n", None),
        (b"*2\r\n$-1\r\n*-1\r\n", [None, None]),
        (b"*3\r\n:1\r\n*2\r\n+a\r\n*0\r\n$1\r\nb\r\n", [1, [b"a", []], b"b"]),
        (b"*2\r\n-ERR a\r\n:1\r\n", [("error", "ERR", "ERR a"), 1]),
        (b"*1\r\n" * 8 + b":1\r\n", [[[[[[[[1]]]]]]]]),
    ],
)
def test_an_answer_is_the_same_in_one_part_and_byte_by_byte(data, value):
    assert read(data) == [value]
    assert read(*singly(data)) == [value]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\r\n",
        b":\r\n",
        b":+12\r\n",
        b":x\r\n",
        b": 1\r\n",
        b":1_0\r\n",
        b":1.0\r\n",
        b":\xd9\xa1\r\n",
        b":9223372036854775808\r\n",
        b":-9223372036854775809\r\n",
        b"$x\r\n",
        b"$\r\n",
        b"$-2\r\n",
        b"$?\r\n",
        b"*x\r\n",
        b"*-2\r\n",
        b"*99999999999\r\n",
        b"*2\r\n:1\r\nx\r\n",
        b"+a\rb\r\n",
        b"-a\rb\r\n",
        b"+a\r\n+b\r\n",
        b"+a\r\n+",
        b"*0\r\n\r\n",
    ],
)
def test_input_that_violates_the_protocol_is_never_an_answer(data):
    with pytest.raises(Malformed, match=r"^(Protocol error|Bad|Bulk string|Multi-bulk)"):
        read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"$%d\r\n" % (SIZE + 1),
        b"*%d\r\n" % (SIZE // LEAST + 1),
        b"*2\r\n$8\r\n*99999\r\n\r\n*99999\r\n",  # the first of the two is a string
        b"*3\r\n:1\r\n*99999\r\n",
        b"~99999\r\n",
        b">99999\r\n",
        b"%99999\r\n",
    ],
)
def test_a_length_that_exceeds_the_limit_is_rejected_when_it_is_announced(data):
    for parts in ([data], singly(data)):
        with pytest.raises(Malformed, match=r"larger than|that RESP2 does not have"):
            read(*parts)


def test_a_length_inside_of_a_string_is_part_of_the_string():
    text = b"\r\n*99999\r\n$999999\r\n>99999\r\n"
    data = b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(text), text, len(text), text)
    assert read(data) == [[text, text]]
    assert read(*singly(data)) == [[text, text]]


@pytest.mark.parametrize("data", [b"", b"+OK", b"+OK\r", b"$3\r\nabc", b"$3\r\nabc\r", b"*1\r\n"])
def test_an_answer_that_is_cut_off_is_never_an_answer(data):
    with pytest.raises(ConnectionError, match="closed by server"):
        read(data)


def test_an_answer_larger_than_its_limit_is_rejected_before_it_is_complete():
    part = b"$65536\r\n" + bytes(65536) + b"\r\n"
    endless = Received(*[part] * 100)
    with pytest.raises(Malformed, match=f"larger than {SIZE} bytes"):
        wire_on(endless).ask(b"", 10**6)
    assert len(endless.parts) == 98
    with pytest.raises(Malformed, match="larger than 100 bytes"):
        read(b"$95\r\n" + bytes(96), most=100)
    with pytest.raises(Malformed, match="larger than"):
        read(b"+" + bytes(SIZE))


def as_read(value):
    """Return *value* as :func:`plain` returns it."""
    if isinstance(value, str):
        return "error", value.partition(" ")[0], value
    return [as_read(item) for item in value] if isinstance(value, list) else value


LINES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=10).map(Error)
VALUES = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=20) | LINES,
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@given(
    values=st.lists(VALUES, min_size=1, max_size=4),
    places=st.lists(st.integers(0, 10**6), max_size=8),
)
def test_answers_do_not_depend_on_where_the_stream_is_cut(values, places):
    data = b"".join(map(written, values))
    cuts = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    parts = [data[start:end] for start, end in pairwise(cuts)]
    assert read(*parts, expected=len(values)) == [as_read(value) for value in values]


def test_a_command_is_written_with_the_length_of_each_part():
    assert command(b"GET", b"") == b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n"
    assert packed(b"a\r\n") == b"$3\r\na\r\n\r\n"
    assert packed() == b""


@pytest.fixture
def pair():
    """Return a maker of wires, each with the other end of its socket."""
    made = []

    def make(timeout, **settings):
        here, there = socket.socketpair()
        made.extend([here, there])
        return wire_on(here, timeout, **settings), there

    yield make
    for each in made:
        each.close()


def test_a_server_that_sends_nothing_is_waited_for_until_the_timeout(pair):
    wire, _ = pair(0.01)
    with pytest.raises(TimeoutError, match="Timeout reading from socket"):
        wire.ask(PING, 1)


@pytest.mark.parametrize(
    ("answer", "expected", "got"),
    [
        (b"*2\r\n:1\r\n:2\r\n", 1, [[1, 2]]),
        (b"*2\r\n:1\r\n:2\r\n" * 2, 2, [[1, 2]] * 2),
        (b"*2\r\n:1\r\n$1\r\na\r\n", 1, [[1, b"a"]]),
        (b"$%d\r\n%b\r\n" % (3 * LONG, bytes(3 * LONG)), 1, [bytes(3 * LONG)]),
        (b"$%d\r\n%b\r\n" % (SHORT - 8, bytes(SHORT - 8)), 1, [bytes(SHORT - 8)]),
        (b"$%d\r\n%b\r\n" % (SHORT - 9, bytes(SHORT - 9)), 1, [bytes(SHORT - 9)]),
    ],
)
def test_answers_of_any_size_are_read_and_leave_the_connection_usable(pair, answer, expected, got):
    wire, there = pair(10.0)
    sender = threading.Thread(target=there.sendall, args=(answer,))
    sender.start()
    assert wire.ask(PING * expected, expected, 4 * LONG) == got
    sender.join()
    assert there.recv(1000) == PING * expected
    assert not wire.spoilt()


@pytest.mark.parametrize("timeout", [0.05, 5.0])
def test_an_answer_byte_by_byte_has_no_more_time_than_one_in_one_part(pair, timeout):
    drips = iter([b"$", b"9", b"0", b"\r", b"\n", *[b"."] * 90])
    now = [0.0]

    def clock():  # each reading takes a tenth of the time, in which one more byte arrives
        now[0] += timeout / 10
        there.sendall(next(drips))
        return now[0]

    wire, there = pair(timeout, clock=clock)
    with pytest.raises(TimeoutError, match="Timeout reading from socket"):
        wire.ask(PING, 1)
    assert timeout <= now[0] <= timeout * 1.3


def test_each_128_kib_of_an_answer_add_the_timeout_to_its_time(pair):
    now = [0.0]
    pages = iter([b"$%d\r\n" % (4 * SIZE), *[bytes(SIZE // 8)] * 32, b"\r\n"])

    def clock():
        now[0] += 0.5
        there.sendall(next(pages))
        return now[0]

    wire, there = pair(5.0, clock=clock)
    assert wire.ask(PING, 1, 5 * SIZE) == [bytes(4 * SIZE)]
    assert now[0] > 15


@pytest.mark.parametrize("disturb", [lambda there: there.send(b"\r"), lambda there: there.close()])
@pytest.mark.parametrize("plain_socket", [True, False])
def test_unexpected_input_and_the_end_of_the_stream_spoil_a_connection(disturb, plain_socket):
    here, there = socket.socketpair()
    with here, there:
        # TLS and gevent's sockets are not of the class that can be polled by its descriptor
        wire = wire_on(here if plain_socket else Unpollable(here))
        assert not wire.spoilt()
        disturb(there)
        assert select.select([here], [], [], 10)[0]
        assert wire.spoilt()


class Unpollable:
    """A socket of another class."""

    def __init__(self, sock):
        self.settimeout, self.recv = sock.settimeout, sock.recv
