"""A cluster of three: every key has its server, which may change at any time."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial

import pytest
from redis.crc import key_slot

from tests.support.redis_server import Server
from tests.support.waiting import until
from wsgigate.rules.algorithms import FixedWindow, TokenBucket
from wsgigate.rules.quota import Quota
from wsgigate.store import StoreError
from wsgigate.store.redis import RedisStore
from wsgigate.testing import check_store

PATIENT = "socket_timeout=5&socket_connect_timeout=5"
QUOTAS = [TokenBucket(Quota(100, 3600)), FixedWindow(Quota(5, 60))]


@pytest.fixture
def nodes(tmp_path):
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "5000"]
    options += ["--cluster-require-full-coverage", "no"]
    started = []
    try:
        for number in range(3):
            started.append(Server(tmp_path / f"node{number}", *options))
        addresses = [f"127.0.0.1:{server.port}" for server in started]
        command = [shutil.which("redis-cli"), "--cluster", "create", *addresses, "--cluster-yes"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        for server in started:
            with server.admin() as admin:
                until(lambda admin=admin: "cluster_state:ok" in _info(admin))
        yield started
    finally:
        for server in started:
            server.stop()


def _info(admin):
    told = admin.execute_command("CLUSTER INFO")
    if isinstance(told, dict):
        return "\n".join(f"{name}:{value}" for name, value in told.items())
    return told.decode() if isinstance(told, bytes) else str(told)


def url_of(nodes, query=PATIENT):
    return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in nodes)}?{query}"


@pytest.fixture
def store(nodes):
    store = RedisStore(url_of(nodes) + "&prefix=test:")
    yield store
    store.close()


def names(count=30):
    return [f"key/{number:02}" for number in range(count)]


def test_it_conforms_between_processes_too(nodes):
    check_store(partial(RedisStore, url_of(nodes)), shared=True)


def test_keys_are_spread_over_all_servers_and_found_again(nodes, store):
    for name in names():
        assert store.swap(name, None, name.encode(), 60)
        verdicts, _ = store.take(f"quota/{name}", QUOTAS, 2)
        assert [verdict.remaining for verdict in verdicts] == [98, 3]
    sizes = []
    for node in nodes:
        with node.admin() as admin:
            sizes.append(admin.dbsize())
    assert sum(sizes) == 60
    assert all(sizes)
    assert list(store.items("key/")) == [(name, name.encode()) for name in names()]
    one = RedisStore(url_of(nodes[1:2]) + "&prefix=test:")
    assert [one.get(name)[0] for name in names()] == [name.encode() for name in names()]
    one.close()


def ids(nodes):
    found = []
    for node in nodes:
        with node.admin() as admin:
            found.append(_text(admin.execute_command("CLUSTER MYID")))
    return found


def _text(word):
    return word.decode() if isinstance(word, bytes) else word


def owner_of(nodes, slot):
    for node in nodes:
        with node.admin() as admin:
            for start, end, (_, port, *_), *_ in _ranges(admin):
                if start <= slot <= end:
                    return next(node for node in nodes if node.port == port)
    raise AssertionError(f"nobody has the slot {slot}")


def _ranges(admin):
    connection = admin.connection_pool.get_connection()
    try:
        connection.send_command("CLUSTER", "SLOTS")
        return connection.read_response()
    finally:
        admin.connection_pool.release(connection)


def test_a_key_that_moves_is_found_before_during_and_after(nodes, store):
    assert store.swap("key", None, b"value", 600)
    store.take("key2", QUOTAS, 1)
    slot = key_slot(b"test:key")
    source = owner_of(nodes, slot)
    target = next(node for node in nodes if node is not source)
    known = dict(zip(nodes, ids(nodes), strict=True))
    with source.admin() as here, target.admin() as there:
        there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", known[source])
        here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", known[target])
        assert store.get("key")[0] == b"value"
        here.execute_command("MIGRATE", "127.0.0.1", target.port, "test:key", 0, 5000)
        assert store.get("key")[0] == b"value", "ASK"
        assert store.swap("key", b"value", b"changed", 600)
        assert [key for key, _ in store.items("key")] == ["key", "key2"]
        for node in nodes:
            with node.admin() as admin:
                admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", known[target])
        assert store.get("key")[0] == b"changed", "MOVED"
        asked = here.info("errorstats").get("errorstat_MOVED")
        assert store.get("key")[0] == b"changed"
        assert here.info("errorstats").get("errorstat_MOVED") == asked, "it is not asked again"
        assert asked is not None
    assert dict(store.items("key"))["key"] == b"changed"


def test_one_server_down_affects_only_its_own_keys(nodes, store):
    for name in names():
        store.swap(name, None, b"value", 600)
    lost = nodes[0]
    theirs = {
        name for name in names() if owner_of(nodes, key_slot(b"test:" + name.encode())) is lost
    }
    assert 0 < len(theirs) < 30
    lost.stop()
    for _ in range(3):
        for name in names():
            if name in theirs:
                with pytest.raises(StoreError):
                    store.get(name)
            else:
                assert store.get(name)[0] == b"value"
    with pytest.raises(StoreError, match=f"127.0.0.1:{lost.port}"):
        store.get(min(theirs))
    with pytest.raises(StoreError):
        list(store.items(""))
    lost.start()
    until(lambda: _answers(store, min(theirs)))


def _answers(store, name):
    try:
        store.get(name)
    except StoreError:
        return False
    return True


def test_no_server_of_the_cluster_is_an_error_in_words(nodes, store):
    for node in nodes:
        node.stop()
    for _ in range(10):
        with pytest.raises(StoreError, match=r"127\.0\.0\.1"):
            store.get("key")
    with pytest.raises(StoreError, match="next attempt"):
        store.get("key")


def test_a_server_that_is_no_cluster_is_an_error_in_words(tmp_path):
    server = Server(tmp_path)
    store = RedisStore(f"redis+cluster://127.0.0.1:{server.port}?{PATIENT}")
    try:
        with pytest.raises(StoreError, match="cluster support disabled"):
            store.get("key")
    finally:
        store.close()
        server.stop()
