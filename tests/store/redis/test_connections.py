"""The pool of connections to one server, and how redis-py opens them."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import redis

from tests.support.objects import part
from tests.support.waiting import until
from wsgigate.store import StoreError
from wsgigate.store.redis_connections import RedisConnectionPool, Unreachable, command

PING = command(b"PING")


class Listener:
    """A server whose part the test plays: it takes connections, and answers when it is told."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.accepted = []

    def connections(self, most=2, wait=0.05, timeout=10.0):
        return RedisConnectionPool(
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
        self.socket.settimeout(30)
        self.accepted.append(self.socket.accept()[0])
        self.accepted[-1].settimeout(30)
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
    thread.join(30)


@contextmanager
def closing(connections):
    try:
        yield connections
    finally:
        connections.close()


def test_the_connection_used_last_is_used_first(listener):
    with closing(listener.connections(most=3)) as connections:
        threads = [listener.asked(connections)[0] for _ in range(3)]
        peers = [listener.accept() for _ in threads]
        for peer in peers:  # each has its question, so that all three are in use
            assert peer.recv(1000) == PING
        for peer in reversed(peers):
            idle = connections.idle_connections
            peer.sendall(b"+PONG\r\n")
            until(lambda idle=idle: connections.idle_connections > idle)
        for _ in range(3):
            thread, told = listener.asked(connections)
            answered(thread, peers[0])
            assert told == [[b"PONG"]]
        for thread in threads:
            thread.join()


def test_a_waiting_thread_gets_the_first_connection_that_becomes_free(listener):
    with closing(listener.connections(most=1, wait=3600)) as connections:
        first, _ = listener.asked(connections)
        peer = listener.accept()
        others = [listener.asked(connections) for _ in range(3)]
        until(lambda: connections.waiting == 3)
        answered(first, peer)
        for _ in others:
            assert peer.recv(1000) == PING
            peer.sendall(b"+PONG\r\n")
        for thread, told in others:
            thread.join(30)
            assert told == [[b"PONG"]]


def test_a_waiting_thread_may_open_a_connection_in_place_of_a_lost_one(listener):
    with closing(listener.connections(most=1, wait=3600)) as connections:
        first, lost = listener.asked(connections)
        peer = listener.accept()
        second, told = listener.asked(connections)
        until(lambda: connections.waiting)
        peer.close()
        first.join(30)
        assert isinstance(lost[0], Unreachable)
        answered(second, listener.accept())
        assert told == [[b"PONG"]]


@pytest.mark.parametrize("answer", [b"", b"-", b"nothing\r\n", b"+PONG\r\n+PONG\r\n"])
def test_a_failed_connection_takes_no_place_in_the_pool(listener, answer):
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


def test_a_refused_connection_takes_no_place_in_the_pool(listener):
    with closing(listener.connections(most=1)) as connections:
        listener.socket.close()
        for _ in range(5):
            with pytest.raises(Unreachable, match="refused"):
                connections.exchange(PING)


def test_a_connection_in_use_is_closed_after_its_use_when_the_pool_is_closed(listener):
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


def test_a_command_that_cannot_be_sent_in_time_fails(listener):
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
    store = connect(f"unix://{tmp_path}/redis.sock?socket_timeout=0.5")
    store.get("key")
    server.pause()
    try:
        with pytest.raises(StoreError, match="Timeout reading from socket"):
            store.get("key")
    finally:
        server.resume()


def test_redis_py_selects_the_database_and_names_the_connection(server, connect):
    store = connect(server.url + "&client_name=some-name&db=2")
    assert store.get("key")[0] is None
    with server.admin() as admin:
        [mine] = [each for each in admin.client_list() if each["name"] == "some-name"]
        assert mine["db"] == "2"
    refused = connect(server.url.replace("/0?", "/99999?"))
    with pytest.raises(StoreError, match="ERR DB index is out of range"):  # as the server wrote it
        refused.get("key")


def test_redis_py_can_check_a_connection_for_input(listener):
    with closing(listener.connections()) as connections:
        thread, _ = listener.asked(connections)
        peer = listener.accept()
        answered(thread, peer)
        connection = part(redis.Connection, connections)
        assert connection.can_read() is False
        peer.close()
        assert select.select([part(socket.socket, connection)], [], [], 10)[0]
        assert connection.can_read() is True
        connection.disconnect()
        with pytest.raises(redis.ConnectionError):
            connection.read_response()


GEVENT = """
import sys
from gevent import monkey
monkey.patch_all()
import gevent
from wsgigate.rules.algorithms import TokenBucket
from wsgigate.rules.quota import Quota
from wsgigate.store.open import open_store
from wsgigate.store.redis_connections import RedisConnectionPool
from tests.support.objects import part
store = open_store(sys.argv[1])
quota = [TokenBucket(Quota(100, 3600))]
asked = [gevent.spawn(store.take, "key", quota, 1) for _ in range(50)]
gevent.joinall(asked, raise_error=True)
connections = part(RedisConnectionPool, store)
opened = connections.idle_connections
for _ in range(10):
    store.take("key", quota, 1)
kept = connections.idle_connections
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
