"""The connections to one server: what each does with its socket, and how many there are."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import redis

from wsgigate.store import StoreError
from wsgigate.store.redis_connections import (
    LONG,
    SHORT,
    SIZE,
    ConnectionPool,
    ErrorReply,
    Malformed,
    Unreachable,
    Wire,
    command,
)

PING = command(b"PING")


@pytest.fixture
def pair():
    """Return a maker of wires, each with the other end of its socket."""
    made = []

    def make(timeout):
        here, there = socket.socketpair()
        made.extend([here, there])
        return Wire(here, timeout), here, there

    yield make
    for each in made:
        each.close()


def patience(sock):
    """Return the seconds that the system waits for *sock*, to receive and to send."""
    found = []
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        whole, micros = struct.unpack("ll", sock.getsockopt(socket.SOL_SOCKET, option, 16))
        found.append(whole + micros / 1e6)
    return found


@pytest.mark.parametrize("seconds", [0.05, 1.0, 10.0, 3600.25])
def test_the_system_waits_and_not_python(pair, seconds):
    _, here, _ = pair(seconds)
    assert here.gettimeout() is None
    assert patience(here) == pytest.approx([seconds] * 2, abs=0.02)  # in ticks of its own


def test_however_short_a_timeout_is_it_is_none_that_lasts_for_ever(pair):
    wire, here, _ = pair(1e-9)
    assert min(patience(here)) > 0
    with pytest.raises(TimeoutError, match="Timeout reading from socket"):
        wire.ask(PING, 1)


def test_without_a_timeout_nobody_ends_the_wait(pair):
    wire, here, there = pair(None)
    assert (here.gettimeout(), patience(here)) == (None, [0, 0])
    question = bytes(4 * 1024 * 1024)
    read = []

    def serve():
        while sum(map(len, read)) < len(question):
            read.append(there.recv(65536))
        there.sendall(b"+OK\r\n")

    server = threading.Thread(target=serve)
    server.start()
    assert wire.ask(question, 1) == [b"OK"]
    server.join()
    assert b"".join(read) == question


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
def test_answers_are_read_however_large_they_are(pair, answer, expected, got):
    wire, _, there = pair(10.0)
    sender = threading.Thread(target=there.sendall, args=(answer,))
    sender.start()
    assert wire.ask(PING * expected, expected, 4 * LONG) == got
    sender.join()
    assert there.recv(1000) == PING * expected
    assert not wire.spoilt()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"*1\r\n:1\r\n*1\r\n:2\r\n", Malformed),
        (b"*1\r\n:1\r\n:", Malformed),
        (b"nothing\r\n", Malformed),
        (b"*1\r\n:1", TimeoutError),
    ],
)
def test_what_is_no_answer_is_an_error(pair, answer, error):
    wire, _, there = pair(0.05)
    there.sendall(answer)
    with pytest.raises(error):
        wire.ask(PING, 1)


@pytest.mark.parametrize("timeout", [0.05, 5.0])
@pytest.mark.parametrize("kernel", [True, False], ids=["plain", "of Python's own"])
def test_an_answer_in_drips_has_no_more_time_than_one_at_once(pair, timeout, kernel):
    wire, _, there = pair(5.0)
    drips = iter([b"$", b"9", b"0", b"\r", b"\n", *[b"."] * 90])
    now = [0.0]

    def clock():  # with each look at it a tenth of the time is over, and one more byte there
        now[0] += timeout / 10
        there.sendall(next(drips))
        return now[0]

    wire._timeout, wire._clock, wire._kernel = timeout, clock, kernel
    with pytest.raises(TimeoutError, match="Timeout reading from socket"):
        wire.ask(PING, 1)
    assert timeout <= now[0] <= timeout * 1.3


def test_a_long_answer_earns_time_by_what_has_arrived(pair):
    wire, _, there = pair(5.0)
    now = [0.0]
    pages = iter([b"$%d\r\n" % (4 * SIZE), *[bytes(SIZE // 8)] * 32, b"\r\n"])

    def clock():
        now[0] += 0.5
        there.sendall(next(pages))
        return now[0]

    wire._clock = clock
    assert wire.ask(PING, 1, 5 * SIZE) == [bytes(4 * SIZE)]
    assert now[0] > 15


def test_a_refusal_is_an_answer(pair):
    wire, _, there = pair(10.0)
    there.sendall(b"-OOM too much\r\n")
    [refusal] = wire.ask(PING, 1)
    assert isinstance(refusal, ErrorReply)
    assert (refusal.code, refusal.text) == ("OOM", "OOM too much")


def test_an_end_is_no_answer(pair):
    wire, _, there = pair(10.0)
    there.sendall(b"*2\r\n:1\r\n")
    there.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="closed by server"):
        wire.ask(PING, 1)


@pytest.mark.parametrize("meddle", [lambda there: there.send(b"\r"), lambda there: there.close()])
def test_whatever_comes_unasked_spoils_a_wire(pair, meddle):
    wire, _, there = pair(10.0)
    assert not wire.spoilt()
    meddle(there)
    assert wire.spoilt()


class Listener:
    """A server whose part the test plays: it takes connections, and answers when it is told."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.accepted = []

    def connections(self, most=2, wait=0.05, timeout=10.0):
        return ConnectionPool(
            self.socket.getsockname()[:2],
            tls=False,
            settings={"socket_timeout": timeout, "socket_connect_timeout": 10.0},
            most=most,
            wait=wait,
        )

    def asked(self, connections, packed=PING):
        """Begin an exchange; return its thread, what came of it, and the server's end of it."""
        told = []

        def ask():
            try:
                told.append(connections.exchange(packed))
            except (Unreachable, StoreError) as error:
                told.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        return thread, told

    def accept(self):
        self.socket.settimeout(10)
        self.accepted.append(self.socket.accept()[0])
        self.accepted[-1].settimeout(10)
        return self.accepted[-1]


@pytest.fixture
def listener():
    made = Listener()
    yield made
    for each in (made.socket, *made.accepted):
        each.close()


def answered(thread, peer):
    """Answer the question that came to *peer*, and wait until its thread has that."""
    assert peer.recv(1000) == PING
    peer.sendall(b"+PONG\r\n")
    thread.join(10)


@contextmanager
def closing(connections):
    try:
        yield connections
    finally:
        connections.close()


def test_the_one_used_last_is_used_first(listener):
    with closing(listener.connections(most=3)) as connections:
        threads = [listener.asked(connections)[0] for _ in range(3)]
        peers = [listener.accept() for _ in threads]
        for peer in peers:  # each has its question, so that all three are in use
            assert peer.recv(1000) == PING
        for peer in reversed(peers):
            free = len(connections._free)
            peer.sendall(b"+PONG\r\n")
            while len(connections._free) == free:
                pass  # until it is given back
        for _ in range(3):
            thread, told = listener.asked(connections)
            answered(thread, peers[0])
            assert told == [[b"PONG"]]
        for thread in threads:
            thread.join()


def test_who_waits_has_the_first_that_comes_free(listener):
    with closing(listener.connections(most=1, wait=3600)) as connections:
        first, _ = listener.asked(connections)
        peer = listener.accept()
        others = [listener.asked(connections) for _ in range(3)]
        while connections._waiting < 3:
            pass
        answered(first, peer)
        for _ in others:
            assert peer.recv(1000) == PING
            peer.sendall(b"+PONG\r\n")
        for thread, told in others:
            thread.join(30)
            assert told == [[b"PONG"]]


def test_who_waits_may_open_one_in_the_place_of_one_that_is_lost(listener):
    with closing(listener.connections(most=1, wait=3600)) as connections:
        first, lost = listener.asked(connections)
        peer = listener.accept()
        second, told = listener.asked(connections)
        while not connections._waiting:
            pass
        peer.close()
        first.join(30)
        assert isinstance(lost[0], Unreachable)
        answered(second, listener.accept())
        assert told == [[b"PONG"]]


@pytest.mark.parametrize("answer", [b"", b"-", b"nothing\r\n", b"+PONG\r\n+PONG\r\n"])
def test_what_fails_takes_no_room(listener, answer):
    """However often that is, and however the failure looks."""
    with closing(listener.connections(most=1)) as connections:
        for _ in range(5):
            thread, told = listener.asked(connections)
            peer = listener.accept()
            assert peer.recv(1000) == PING
            peer.sendall(answer)
            peer.shutdown(socket.SHUT_WR)
            thread.join()
            assert isinstance(told[0], Unreachable), "and no error about connections in use"
            assert peer.recv(1000) == b"", "it is closed"
        thread, told = listener.asked(connections)
        answered(thread, listener.accept())
        assert told == [[b"PONG"]]


def test_a_server_that_is_not_there_takes_no_room(listener):
    with closing(listener.connections(most=1)) as connections:
        listener.socket.close()
        for _ in range(5):
            with pytest.raises(Unreachable, match="refused"):
                connections.exchange(PING)


def test_what_is_in_use_when_all_are_closed_is_closed_afterwards(listener):
    connections = listener.connections()
    first, told = listener.asked(connections)
    peer = listener.accept()
    second, _ = listener.asked(connections)
    idle = listener.accept()
    answered(second, idle)
    connections.close()
    assert idle.recv(1) == b""
    answered(first, peer)
    assert told == [[b"PONG"]]
    assert peer.recv(1) == b""
    third, told = listener.asked(connections)  # who has them still, may ask
    answered(third, listener.accept())
    assert told == [[b"PONG"]]
    assert listener.accepted[-1].recv(1) == b""


def test_a_question_that_is_not_taken_whole_is_given_up(listener):
    """The peer reads nothing, so that the buffers are full in the middle of it."""
    with closing(listener.connections(most=1, timeout=0.1)) as connections:
        for _ in range(2):
            thread, told = listener.asked(connections, bytes(64 * 1024 * 1024))
            peer = listener.accept()
            thread.join()
            assert "Timeout writing to socket" in str(told[0])
            while peer.recv(1 << 20):
                pass  # it ends, and whatever was sent is no whole command


def test_a_server_that_hangs_is_waited_for_a_bounded_time_on_a_unix_socket_too(
    start, connect, tmp_path
):
    server = start("--unixsocket", str(tmp_path / "redis.sock"))
    store = connect(f"unix://{tmp_path}/redis.sock?socket_timeout=0.2")
    store.get("key")
    [line] = store._ready()._connections._free
    assert line.connection._sock.gettimeout() is None
    server.pause()
    try:
        with pytest.raises(StoreError, match="Timeout reading from socket"):
            store.get("key")
    finally:
        server.resume()


def test_redis_py_opens_connections_by_the_reader_of_ours(server, connect):
    """Also where there is hiredis: it says what the server said, to the byte."""
    store = connect(server.url + "&client_name=some-name&db=2")
    assert store.get("key")[0] is None
    [line] = store._ready()._connections._free
    assert line.connection._parser.wire is line.wire
    with server.admin() as admin:
        [mine] = [each for each in admin.client_list() if each["name"] == "some-name"]
        assert mine["db"] == "2"
    refused = connect(server.url.replace("/0?", "/99999?"))
    with pytest.raises(StoreError, match="ERR DB index is out of range"):
        refused.get("key")


def test_redis_py_may_ask_the_reader_whether_there_is_anything(listener):
    with closing(listener.connections()) as connections:
        thread, _ = listener.asked(connections)
        peer = listener.accept()
        answered(thread, peer)
        [line] = connections._free
        assert line.connection.can_read() is False
        peer.close()
        assert select.select([line.connection._sock], [], [], 10)[0]
        assert line.connection.can_read() is True
        line.connection.disconnect()
        with pytest.raises(redis.ConnectionError):
            line.connection.read_response()


GEVENT = """
import sys
from gevent import monkey
monkey.patch_all()
import gevent
from wsgigate.rules.algorithms import TokenBucket
from wsgigate.rules.quota import Quota
from wsgigate.store.open import open_store
store = open_store(sys.argv[1])
quota = [TokenBucket(Quota(100, 3600))]
asked = [gevent.spawn(store.take, "key", quota, 1) for _ in range(50)]
gevent.joinall(asked, raise_error=True)
opened = len(store._ready()._connections._free)
for _ in range(10):
    store.take("key", quota, 1)
kept = len(store._ready()._connections._free)
assert opened == kept > 1, (opened, kept)
print(store.take("key", quota, 0)[0][0].remaining)
store.close()
"""


def test_greenlets_share_connections_without_waiting_for_each_other(server, store):
    url = f"{server.url}&prefix={store.prefix}&timeout=10"
    done = subprocess.run(
        [sys.executable, "-c", GEVENT, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("40\n", 0), done.stderr
