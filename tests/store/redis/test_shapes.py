"""Well-formed answers of an unexpected shape are errors of the store and nothing else."""

from __future__ import annotations

import itertools
import resource
import socket
import threading
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.test import Client

from tests.store.redis.resp import written
from tests.support.objects import part
from wsgigate import Limiter
from wsgigate.rules.algorithms import FixedWindow, TokenBucket
from wsgigate.rules.quota import Quota
from wsgigate.store import StoreError
from wsgigate.store.redis import RedisStore
from wsgigate.store.redis_connections import RedisConnectionPool

ONE = [TokenBucket(Quota(5, 3600))]
TWO = [TokenBucket(Quota(5, 3600)), FixedWindow(Quota(9, 60))]


class Liar:
    """A server on a real socket that speaks the protocol, and answers what it is told to.

    :ivar says: Answered to each command: bytes as they are sent, or what makes them of the words of
        the command.
    """

    def __init__(self):
        self.says = b"+OK\r\n"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with suppress(OSError), connection:
            words = b""
            while data := connection.recv(65536):
                words += data
                while command := first(words):
                    size, parts = command
                    words = words[size:]
                    said = self.says(parts) if callable(self.says) else self.says
                    connection.sendall(said)
        self._open.discard(connection)

    def close(self):
        self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def first(words):
    """Return how long the first command in *words* is, and its parts; None unless it is whole."""
    head, mark, _ = words.partition(b"\r\n")
    if not mark:
        return None
    place, parts = len(head) + 2, []
    for _ in range(int(head[1:])):
        end = words.find(b"\r\n", place)
        if end < 0:
            return None
        size = int(words[place + 1 : end])
        if len(words) < end + 4 + size:
            return None
        parts.append(words[end + 2 : end + 2 + size])
        place = end + 4 + size
    return place, parts


@pytest.fixture(scope="module")
def liar():
    server = Liar()
    yield server
    server.close()


NUMBERS = st.sampled_from([0, 1, -1, 5, 6, 2**31, 2**53, 2**62, -(2**63), 10**18, 1795452955698561])
TEXTS = st.sampled_from(
    [b"", b"0", b"1", b"-1", b"1795452955", b"1e3", b"\xff\xfe", b"9" * 30, b"127.0.0.1", b"70000"]
)
ATOMS = st.none() | NUMBERS | TEXTS | st.sampled_from(["", "OK", "1", "master"])
VALUES = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=6), max_leaves=14)
NEARLY = (
    st.lists(NUMBERS, min_size=4, max_size=10)
    | st.tuples(ATOMS, st.lists(ATOMS, min_size=1, max_size=3)).map(list)
    | st.tuples(TEXTS, st.tuples(TEXTS, TEXTS).map(list)).map(list)
)


def calls(store):
    yield lambda: store.get("key")
    yield lambda: store.swap("key", None, b"new", 60.0)
    yield lambda: store.take("key", ONE)
    yield lambda: store.take("key", TWO, 2)
    yield lambda: list(store.items("k"))
    yield lambda: store.get_all(["key", "other"])
    yield store.check


def is_good(result):
    """Tell whether *result* is one that a store may give."""
    if isinstance(result, tuple) and isinstance(result[0], tuple):
        verdicts, now = result
        return now >= 0 and all(
            0 <= each.remaining <= each.limit and each.reset_after >= 0 and each.retry_after >= 0
            for each in verdicts
        )
    if isinstance(result, tuple):
        value, now = result
        return (value is None or isinstance(value, bytes)) and now >= 0
    if isinstance(result, list):
        values = [each[1] if isinstance(each, tuple) else each for each in result]
        return all(value is None or isinstance(value, bytes) for value in values)
    return result in (True, False, None)


def fails_or_is_good(liar, url):
    for place in range(7):
        store = RedisStore(f"{url.format(port=liar.port)}?socket_timeout=10&prefix=p:")
        try:
            result = list(calls(store))[place]()
        except StoreError:
            pass
        else:
            assert is_good(result), (place, result)
        finally:
            store.close()


@given(answer=VALUES | NEARLY)
def test_an_answer_of_any_shape_is_a_store_error_or_a_valid_result(liar, answer):
    liar.says = written(answer)
    fails_or_is_good(liar, "redis://127.0.0.1:{port}/0")


@given(answer=VALUES | NEARLY)
def test_any_answer_while_connecting_is_a_store_error_or_accepted(liar, answer):
    liar.says = written(answer)
    fails_or_is_good(liar, "redis://name:secret@127.0.0.1:{port}/1")


RANGES = st.lists(
    st.tuples(NUMBERS, NUMBERS, st.tuples(ATOMS, NUMBERS).map(list)).map(list) | VALUES, max_size=3
)


@given(slots=RANGES | VALUES, answer=VALUES)
def test_any_answer_of_a_cluster_is_a_store_error_or_a_valid_result(liar, slots, answer):
    liar.says = lambda parts: written(slots if parts[0] == b"CLUSTER" else answer)
    fails_or_is_good(liar, "redis+cluster://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "redirect", ["MOVED 1 127.0.0.1:99999", "MOVED 1 :0", "ASK x", "MOVED", "ASK 1 127.0.0.1:{}"]
)
def test_a_malformed_redirect_is_a_store_error(liar, redirect):
    slots = written([[0, 16383, [b"127.0.0.1", liar.port]]])
    said = f"-{redirect.format(liar.port)}\r\n".encode()
    liar.says = lambda parts: slots if parts[0] == b"CLUSTER" else said
    fails_or_is_good(liar, "redis+cluster://127.0.0.1:{port}")


@settings(max_examples=40)
@given(
    primary=VALUES | st.tuples(TEXTS, TEXTS).map(list), role=VALUES | NEARLY, answer=VALUES | NEARLY
)
def test_any_answer_of_a_sentinel_is_a_store_error_or_a_valid_result(liar, primary, role, answer):
    own = [b"127.0.0.1", b"%d" % liar.port]

    def says(parts):
        if parts[0] == b"SENTINEL":
            return written(own if primary is None else primary)
        return written([b"master"] if parts[0] == b"ROLE" and role is None else role)

    liar.says = says
    fails_or_is_good(liar, "redis+sentinel://127.0.0.1:{port}/shop")
    liar.says = lambda parts: (
        written(own if parts[0] == b"SENTINEL" else [b"master"])
        if parts[0] in (b"SENTINEL", b"ROLE")
        else written(answer)
    )
    fails_or_is_good(liar, "redis+sentinel://127.0.0.1:{port}/shop")


@pytest.mark.parametrize(
    "said",
    [
        b"+text\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b":1\r\n",
        b"*5\r\n:1795452955698561\r\n:1\r\n:-7\r\n:31\r\n:0\r\n",
        b"*5\r\n:1795452955698561\r\n:1\r\n:7\r\n:-31\r\n:0\r\n",
        b"*5\r\n:1795452955698561\r\n:2\r\n:7\r\n:31\r\n:0\r\n",
        b"*5\r\n:-5\r\n:1\r\n:7\r\n:31\r\n:0\r\n",
        b"*4\r\n:1795452955698561\r\n:1\r\n:7\r\n:31\r\n",
        b"*5\r\n:1795452955698561\r\n:1\r\n:7\r\n:31\r\n$1\r\n0\r\n",
        b"*1000000000\r\n:1\r\n",
        b"$60000000\r\n",
        b"$%d\r\n%b\r\n" % (2 * 10**6, bytes(2 * 10**6)),
        b"*40000\r\n" + b":1\r\n" * 40000,
        b"%1\r\n+proto\r\n:3\r\n",
    ],
)
def test_a_limiter_follows_on_store_error_after_a_useless_answer(liar, said):
    liar.says = said

    def hello(environ, start_response):
        start_response("200 OK", [("Content-Length", "0")])
        return [b""]

    for choice, status in (("allow", 200), ("refuse", 503)):
        store = RedisStore(f"redis://127.0.0.1:{liar.port}/0?socket_timeout=10")
        limited = Limiter(hello, "10 per hour", store=store, on_store_error=choice)
        for _ in range(5):
            assert Client(limited).get("/").status_code == status
        store.close()


def test_a_connection_with_such_an_answer_is_not_used_again(liar):
    liar.says = b"*2\r\n$1\r\na\r\n+OK\r\n"
    store = RedisStore(f"redis://127.0.0.1:{liar.port}/0?socket_timeout=10")
    with pytest.raises(StoreError, match="another question"):
        store.get("key")
    assert part(RedisConnectionPool, store).open_connections == 0
    liar.says = written([b"value", [b"1795452955", b"7"]])
    assert store.get("key") == (b"value", pytest.approx(1795452955.000007))
    store.close()


@pytest.mark.parametrize("number", [b",1.0", b"#t", b"_", b",nan", b"$1\r\n1"])
def test_a_verdict_of_other_types_than_integers_is_a_failure(liar, number):
    """hiredis also reads the types of RESP3, which the store did not negotiate."""
    liar.says = b"*5\r\n:7\r\n%b\r\n:1\r\n:0\r\n:0\r\n" % number
    store = RedisStore(f"redis://127.0.0.1:{liar.port}/0?socket_timeout=10")
    with pytest.raises(StoreError, match="another question"):
        store.take("key", ONE)
    store.close()


@pytest.mark.parametrize("announced", [b"*20000000", b"*43691", b"*2\r\n$1\r\na\r\n*20000000"])
def test_no_memory_is_taken_for_a_length_that_a_server_only_announces(liar, announced):
    liar.says = announced + b"\r\n"
    store = RedisStore(f"redis://127.0.0.1:{liar.port}/0?socket_timeout=10")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StoreError, match="larger than 131072 bytes"):
        store.get("key")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB, of 160,000
    store.close()


def test_a_scan_that_does_not_end_is_an_error(liar, monkeypatch):
    monkeypatch.setattr("wsgigate.store.redis.MOST_PAGES", 50)
    cursors = itertools.count(7)
    liar.says = lambda parts: written([b"%d" % next(cursors), [b"p:\xff", b"p:key"]])
    store = RedisStore(f"redis://127.0.0.1:{liar.port}/0?socket_timeout=10&prefix=p:")
    with pytest.raises(StoreError, match="the scan of its keys does not end"):
        list(store.items(""))
    liar.says = lambda parts: written(
        [b"0", [b"p:\xff", b"p:key"]] if parts[0] == b"SCAN" else b"value"
    )
    assert list(store.items("")) == [("key", b"value")]
    store.close()
