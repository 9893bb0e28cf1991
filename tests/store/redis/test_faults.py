"""The Redis store when its server fails: bounded waits, a pause with probes, and recovery."""

from __future__ import annotations

import logging
import select
import signal
import socket
import threading
from contextlib import contextmanager

import pytest

from tests.support.objects import part
from tests.support.ports import refused_port
from tests.support.waiting import until
from wsgigate.rules.algorithms import TokenBucket
from wsgigate.rules.quota import Quota
from wsgigate.store import MisconfiguredStore, StoreError
from wsgigate.store.redis import RedisStore
from wsgigate.store.redis_connections import ErrorReply, RedisConnectionPool
from wsgigate.testing import FakeClock

QUOTA = TokenBucket(Quota(5, 3600))


@pytest.fixture
def watched(connect):
    """Return a maker of stores whose watch has a clock to be set by hand, and no chance."""

    def make(url):
        clock = FakeClock()
        return connect(url, clock=clock, random=lambda: 0.0), clock

    return make


def failures(store, count):
    """Ask so many times in vain; return what the errors said."""
    told = []
    for _ in range(count):
        with pytest.raises(StoreError) as caught:
            store.get("key")
        told.append(str(caught.value))
    return told


def counted(server):
    """Have connections to *server* be counted: return what tells how many there have been."""
    with server.admin() as admin:
        return int(admin.info("stats")["total_connections_received"])


def test_a_restart_of_the_server_fails_no_call(start, connect):
    server = start()
    store = connect(server.url)
    store.swap("key", None, b"value", 60)
    server.stop()
    server.start()
    assert store.get("key")[0] is None
    assert store.swap("key", None, b"again", 60)


def test_a_stopped_server_gets_a_few_calls_and_then_only_probes(start, watched, caplog):
    server = start()
    store, clock = watched(server.url)
    store.swap("key", None, b"value", 60)
    server.stop()
    with caplog.at_level(logging.INFO, "wsgigate.store"):
        asked = failures(store, 3)
        assert all("refused" in told or "closed" in told.lower() for told in asked)
        assert all("next attempt in 0.5 s" in told for told in failures(store, 20))
        clock.advance(0.5)
        assert "next attempt" not in failures(store, 1)[0], "this one was the probe"
        assert "next attempt in 1.0 s" in failures(store, 1)[0]
        server.start()
        assert "next attempt" in failures(store, 1)[0], "nobody knows yet"
        clock.advance(1.0)
        assert store.get("key")[0] is None
        assert store.swap("key", None, b"again", 60)
    [fails, back] = [record.getMessage() for record in caplog.records]
    address = f"redis://127.0.0.1:{server.port}/0"
    assert fails.startswith(f"the store {address} fails: ")
    assert fails.endswith("requests bypass the store until it recovers")
    assert back == f"the store {address} answers again after 1.5 s"


@pytest.fixture
def refused():
    with refused_port() as port:
        yield port


def test_a_server_that_never_answered_is_paused_as_well(watched, refused):
    store, _ = watched(f"redis://name:secret-word@127.0.0.1:{refused}")
    told = failures(store, 5)
    assert ["next attempt" in each for each in told] == [False] * 3 + [True] * 2
    assert not any("secret-word" in each for each in told)
    for call in (
        lambda: store.swap("key", None, b"", 1),
        lambda: store.take("key", [QUOTA], 1),
        lambda: list(store.items("")),
        store.check,
    ):
        with pytest.raises(StoreError, match="next attempt"):
            call()


def test_a_server_that_hangs_is_waited_for_a_bounded_time_and_is_probed_later(start, watched):
    server = start()
    store, clock = watched(server.impatient)
    store.swap("key", None, b"value", 60)
    received = counted(server)
    server.pause()
    try:
        told = failures(store, 10)
        assert all("Timeout" in each for each in told[:3])
        assert all("next attempt" in each for each in told[3:])
    finally:
        server.resume()
    clock.advance(5.0)
    assert store.get("key")[0] == b"value"
    assert counted(server) - received == 3 + 1, "a connection that timed out is not used again"


def test_many_threads_together_wait_for_a_server_that_hangs_no_longer_than_one(start, connect):
    server = start()
    store = connect(f"redis://127.0.0.1:{server.port}?socket_timeout=0.5&max_connections=64")

    def answers():
        try:
            return store.get("key")
        except StoreError:  # half a second was too short, on a slow machine
            return None

    until(answers)
    server.pause()
    told, lock = [], threading.Lock()

    def work():
        for _ in range(20):
            try:
                store.get("key")
            except StoreError as error:
                with lock:
                    told.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(16)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.resume()
    assert len(told) == 16 * 20
    waited = sum("next attempt" not in each for each in told)
    assert waited < 16 * 4, "the first of each, and probes"


def test_a_command_that_may_have_been_carried_out_is_not_sent_again(start, watched):
    server = start()
    store, _ = watched(server.impatient)
    store.take("key", [QUOTA], 1)
    server.pause()
    with pytest.raises(StoreError, match="Timeout"):
        store.take("key", [QUOTA], 1)
    server.resume()
    (verdict,), _ = store.take("key", [QUOTA], 0)
    assert verdict.remaining in (3, 4)


def test_a_full_server_is_reported_and_is_no_outage(start, watched):
    server = start("--maxmemory-policy", "noeviction")
    store, _ = watched(server.url)
    store.swap("key", None, b"value", 60)
    with server.admin() as admin:
        admin.config_set("maxmemory", 1)
        for _ in range(5):
            with pytest.raises(StoreError, match=r"answered with an error: .*OOM"):
                store.swap("other", None, bytes(1000), 60)
            with pytest.raises(StoreError, match="OOM"):
                store.take("quota", [QUOTA], 1)
        admin.config_set("maxmemory", 0)
    assert store.swap("other", None, b"", 60), "it was asked all the time"


def test_a_read_only_replica_is_an_outage(start, watched):
    primary = start()
    replica = start("--replicaof", "127.0.0.1", str(primary.port))
    store, clock = watched(replica.url)
    for _ in range(3):
        with pytest.raises(StoreError, match="READONLY"):
            store.swap("key", None, b"value", 60)
    with pytest.raises(StoreError, match=r"READONLY.*next attempt"):
        store.swap("key", None, b"value", 60)
    with replica.admin() as admin:
        admin.replicaof("NO", "ONE")
    clock.advance(5)
    assert store.swap("key", None, b"value", 60)


def test_a_server_that_is_loading_is_an_outage(start, watched):
    server = start("--loading-process-events-interval-bytes", "1024")
    with server.admin() as admin:
        for number in range(100):
            admin.set(f"{number}", bytes(1000))
        admin.config_set("rdbcompression", "no")
        admin.save()
    server.stop()
    server.options += ("--key-load-delay", "20000")
    server.start(ready=False)
    server.until("RDB memory usage")
    store, clock = watched(server.url)
    assert all("LOADING" in told for told in failures(store, 3))
    assert "next attempt" in failures(store, 1)[0]
    server.until("Ready to accept connections")
    clock.advance(5)
    assert store.get("key")[0] is None


class Peer:
    """A peer that reads one command per turn, and answers it with the bytes it was told to.

    ``None`` for an answer closes the connection, ``...`` leaves it without one, a function is
    called instead.
    """

    def __init__(self, *connections):
        self.listener = socket.create_server(("127.0.0.1", 0))
        port = self.listener.getsockname()[1]
        patience = 0.5 if any(... in answers for answers in connections) else 20
        self.url = f"redis://127.0.0.1:{port}?socket_timeout={patience}"
        self.connections = connections
        self.kept = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self):
        for answers in self.connections:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.kept.append(connection)
            for answer in answers:
                if not connection.recv(65536):
                    break
                if answer is None:
                    break
                if callable(answer):
                    answer()
                elif answer is not ...:
                    connection.sendall(answer)
            if answers[-1] is not ...:
                connection.close()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        for connection in self.kept:
            connection.close()


@contextmanager
def peer(*connections, also=False):
    one = Peer(*connections)
    store = RedisStore(one.url)
    try:
        yield (store, one) if also else store
    finally:
        store.close()
        one.close()


def value(text):
    return b"*2\r\n$%d\r\n%b\r\n*2\r\n$1\r\n7\r\n$1\r\n0\r\n" % (len(text), text)


GOOD = value(b"second")


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (value(b"first")[:-9], "closed"),  # cut in the middle of its last part
        (value(b"first")[:9], "closed"),
        (b"*2\r\n$5\r\nfir", "closed"),
        (b"", "closed"),
        (b"*2\r\n$x\r\n", "invalid literal|Protocol|Bad bulk"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol"),
    ],
)
def test_a_truncated_or_malformed_answer_is_an_error(first, words):
    with peer((first,), (GOOD,)) as store:
        with pytest.raises(StoreError, match=words):
            store.get("first")
        assert store.get("second") == (b"second", 7.0)


def test_a_late_answer_is_not_taken_for_that_of_the_next_command():
    """The peer answers the first question only when the second comes, on whatever connection."""
    with peer((..., value(b"first")), (GOOD,)) as store:
        with pytest.raises(StoreError, match="Timeout"):
            store.get("first")
        assert store.get("second") == (b"second", 7.0)


def test_an_unexpected_second_answer_closes_the_connection():
    """It is unknown which of the two answers is the right one."""
    with peer((value(b"first") + value(b"spare"), value(b"spare")), (GOOD,)) as store:
        with pytest.raises(StoreError, match="more answers than expected"):
            store.get("first")
        assert store.get("second") == (b"second", 7.0)


def until_something_comes(store):
    """Wait until there is something to read on the one idle connection of *store*."""
    assert select.select([part(socket.socket, store)], [], [], 10)[0]


def test_an_unexpected_answer_on_an_idle_connection_closes_it():
    """It would be the answer of the next question, which is about another key."""
    with peer((value(b"first"), value(b"spare")), (GOOD,), also=True) as (store, one):
        assert store.get("first") == (b"first", 7.0)
        one.kept[0].sendall(value(b"spare"))
        until_something_comes(store)
        assert store.get("second") == (b"second", 7.0)


def test_an_answer_that_stops_in_the_middle_is_waited_for_a_bounded_time():
    with peer((b"*2\r\n$5\r\nfir", ...), (GOOD,)) as store:
        with pytest.raises(StoreError, match="Timeout"):
            store.get("first")
        assert store.get("second") == (b"second", 7.0)


class Interrupted(BaseException):
    pass


def test_an_exception_of_a_signal_handler_closes_the_connection():
    """A signal handler that raises in the middle of an exchange leaves an answer behind."""

    def interrupt(number, frame):
        raise Interrupted

    def signalled():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with peer((signalled, GOOD), (GOOD,)) as store:
            with pytest.raises(Interrupted):
                store.get("first")
            assert part(RedisConnectionPool, store).open_connections == 0
            assert store.get("second") == (b"second", 7.0)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_connection_closed_while_idle_is_replaced_without_an_error():
    with peer((GOOD,), (value(b"third"),)) as store:
        assert store.get("second") == (b"second", 7.0)
        until_something_comes(store)  # its end
        assert store.get("third") == (b"third", 7.0)


@pytest.mark.parametrize(
    ("options", "url", "named"),
    [
        (("--requirepass", "right"), "redis://:wrong@127.0.0.1:{port}/0", "WRONGPASS"),
        (("--requirepass", "right"), "redis://127.0.0.1:{port}/0", "NOAUTH"),
        ((), "redis://127.0.0.1:{port}/99", "DB index is out of range"),
        ((), "redis://:needless@127.0.0.1:{port}/0", "AUTH"),
        ((), "redis+cluster://127.0.0.1:{port}", "cluster support disabled"),
        (
            ("--user", "default", "on", "nopass", "~*", "+get"),
            "redis://127.0.0.1:{port}/0",
            "NOPERM",
        ),
    ],
    ids=["wrong password", "no password", "no database", "needless password", "no cluster", "ACL"],
)
def test_a_lasting_error_is_distinguished_from_an_outage(start, connect, options, url, named):
    server = start(*options)
    store = connect(f"{url.format(port=server.port)}?socket_timeout=10&socket_connect_timeout=10")
    for _ in range(5):  # also while it rests
        with pytest.raises(MisconfiguredStore, match=named):
            store.check()
    server.stop()
    store.close()
    with pytest.raises(StoreError) as caught:
        store.check()
    assert not isinstance(caught.value, MisconfiguredStore)


@pytest.mark.parametrize("text", ["LOADING Redis is loading", "OOM command not allowed", "ERR max"])
def test_an_error_that_passes_is_an_outage(text):
    assert not ErrorReply(text).lasting


@pytest.mark.parametrize("what", ["multibulk", "bulk"])
def test_a_long_first_command_without_a_password_is_a_lasting_error(what):
    reply = ErrorReply(f"ERR Protocol error: unauthenticated {what} length")
    assert reply.lasting
    assert reply.code == "NOAUTH"
