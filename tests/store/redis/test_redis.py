"""The Redis store: conformance, commands per call, keys, connections and credentials."""

from __future__ import annotations

import os
import ssl
import threading
from functools import partial

import pytest

from tests.support.certificates import make_certificate
from tests.support.interpreter import run_alone
from tests.support.objects import part
from tests.support.waiting import until
from wsgigate.rules.algorithms import FixedWindow, SlidingWindow, TokenBucket
from wsgigate.rules.quota import Quota
from wsgigate.store import StoreError, update
from wsgigate.store.redis import PAGE, RedisStore
from wsgigate.store.redis_connections import RedisConnectionPool
from wsgigate.testing import check_store

COUNT = TokenBucket(Quota(100, 60))


def test_the_redis_store_conforms_between_processes(server):
    check_store(partial(RedisStore, server.url), shared=True)


def commands(admin):
    """Return what scripts and commands the server has carried out, by name."""
    stats = admin.info("commandstats")
    return {name.removeprefix("cmdstat_"): told["calls"] for name, told in stats.items()}


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.get("key"),
        lambda store: store.swap("key", None, b"value", 60),
        lambda store: store.swap("key", b"value", b"other", 60),
        lambda store: store.take("quota", [COUNT], 1),
        lambda store: store.take("several", [COUNT, FixedWindow(Quota(5, 60))], 1),
    ],
)
def test_a_call_is_one_command_once_the_script_is_known(start, connect, call):
    server = start()
    store = connect(server.url)
    for _ in range(2):
        call(store)
    with server.admin() as admin:
        admin.config_resetstat()
        call(store)
        asked = commands(admin)
    assert asked.pop("evalsha") == 1
    assert asked.keys() <= {
        "get",
        "set",
        "del",
        "time",
        "config|resetstat",
        "hello",
        "client|setinfo",
    }


def test_a_script_that_the_server_has_lost_is_sent_again(start, connect):
    server = start()
    store = connect(server.url)
    assert store.swap("key", None, b"value", 60)
    with server.admin() as admin:
        admin.script_flush()
        assert store.get("key")[0] == b"value"
        assert store.take("quota", [COUNT], 1)[0][0].remaining == 99
        admin.script_flush()
        assert store.take("quota", [COUNT], 1)[0][0].remaining == 98
        admin.config_resetstat()
        assert store.take("quota", [COUNT], 1)[0][0].remaining == 97
        assert commands(admin)["evalsha"] == 1


def test_values_are_bytes_and_their_time_is_in_milliseconds(server, store):
    with server.admin() as admin:
        value = bytes(range(256))
        store.swap("key", None, value, 12.3456)
        assert admin.get(f"{store.prefix}key") == value
        assert 12_000 < admin.pttl(f"{store.prefix}key") <= 12_346
        store.swap("key", value, b"\r\n", 1e300)
        assert admin.pttl(f"{store.prefix}key") > 10**13
        assert store.swap("key", b"\r\n", b"gone at once", 0)
        assert store.get("key")[0] is None


def test_prefixes_are_taken_literally(server, store):
    odd = ["a*b", "a?b", "a[b]c", "a\\b", "a^b", "axb", "a[^x]b", "a-b"]
    for name in odd:
        store.swap(name + "/1", None, name.encode(), 60)
    for name in odd:
        assert [key for key, _ in store.items(name)] == [f"{name}/1"]
    assert len(list(store.items(""))) == len(odd)


def test_stores_of_different_owners_do_not_share_values(server):
    shop, blog = RedisStore(server.url, owner="shop"), RedisStore(server.url, owner="sho")
    try:
        shop.swap("p:key", None, b"of the shop", 5)
        assert blog.get("p:key")[0] is None
        assert list(blog.items("")) == []
        assert list(shop.items("")) == [("p:key", b"of the shop")]
        shop.swap("p:key", b"of the shop", None, 5)
    finally:
        shop.close()
        blog.close()


def test_items_are_read_in_pages(server, store):
    count = 3 * PAGE + 1
    with server.admin() as admin:
        for number in range(count):
            admin.set(f"{store.prefix}item/{number:05}", b"%d" % number)
        assert list(store.items("item/")) == [
            (f"item/{number:05}", b"%d" % number) for number in range(count)
        ]
        items = store.items("item/")
        next(items)
        admin.delete(f"{store.prefix}item/00700")
        admin.set(f"{store.prefix}item/00701", b"changed")
        rest = dict(items)
    assert "item/00700" not in rest
    assert rest["item/00701"] == b"changed"


def test_a_key_of_another_type_is_reported(server, store):
    with server.admin() as admin:
        admin.rpush(f"{store.prefix}key", b"a list of another program")
        for call in (
            lambda: store.get("key"),
            lambda: store.swap("key", None, b"", 1),
            lambda: store.take("key", [COUNT], 1),
            lambda: list(store.items("")),
        ):
            with pytest.raises(StoreError, match=r"answered with an error: .*WRONGTYPE"):
                call()
        admin.delete(f"{store.prefix}key")


def test_nothing_is_connected_before_the_first_call_nor_after_close(start, connect):
    server = start()
    store = connect(server.url)
    with server.admin() as admin:
        assert len(admin.client_list()) == 1
        store.get("key")
        assert len(admin.client_list()) == 2
        store.close()
        assert closed(admin, 1)
        store.get("key")
        assert len(admin.client_list()) == 2


def closed(admin, count):
    """Return whether only *count* connections are left; the server learns of an end in its turn."""
    return any(len(admin.client_list()) <= count for _ in range(1000))


def test_successive_threads_share_a_connection(start, connect):
    server = start()
    store = connect(server.url)
    for _ in range(5):
        thread = threading.Thread(target=store.get, args=("key",))
        thread.start()
        thread.join()
    with server.admin() as admin:
        assert len(admin.client_list()) == 2


def test_there_are_never_more_connections_than_allowed(start, connect):
    server = start()
    store = connect(server.url + "&max_connections=2&timeout=30")
    barrier = threading.Barrier(8)
    failures = []

    def work():
        barrier.wait()
        try:
            for _ in range(20):
                store.get("key")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with server.admin() as admin:
        assert int(admin.info("stats")["total_connections_received"]) <= 2 + 1 + 1


def test_a_call_waits_a_bounded_time_for_a_connection(start, connect):
    server = start()
    store = connect(f"redis://127.0.0.1:{server.port}?socket_timeout=60&max_connections=1")
    store.get("key")
    server.pause()
    holder = threading.Thread(target=store.get, args=("key",))
    holder.start()
    try:
        until(lambda: not part(RedisConnectionPool, store).idle_connections)  # the thread has it
        with pytest.raises(StoreError, match=r"all 1 connections to .* were in use for 0.05 s"):
            store.get("key")
    finally:
        server.resume()
        holder.join()
    assert store.get("key")[0] is None, "which is no failure of the server's"


def test_a_forked_process_has_connections_of_its_own(server, store):
    store.swap("count", None, b"0", 60)
    readers = []
    for _ in range(3):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(reader)
                for _ in range(50):
                    update(store, "count", lambda old, now: (b"%d" % (int(old) + 1), 60, None))
                os.write(writer, b"%d" % int(store.get("count")[0] >= b"5"))
            finally:
                os._exit(0)
        os.close(writer)
        readers.append((child, reader))
    for _ in range(50):
        update(store, "count", lambda old, now: (b"%d" % (int(old) + 1), 60, None))
    for child, reader in readers:
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() in (b"0", b"1")
        assert os.waitpid(child, 0)[1] == 0
    assert store.get("count")[0] == b"200"


FORKED = """
import ctypes, os, sys
from wsgigate.store.open import open_store

store = open_store(sys.argv[1])
assert store.swap(sys.argv[2], None, b"1", 60)
child = os.fork() if sys.argv[2] == "hooks" else ctypes.PyDLL(None).fork()
if not child:
    os._exit(store.get(sys.argv[2])[0] != b"1")
assert os.waitpid(child, 0)[1] == 0
assert store.get(sys.argv[2])[0] == b"1"
"""


@pytest.mark.parametrize("kind", ["hooks", "no hooks"])
def test_a_forked_process_opens_a_new_connection_at_its_first_call(server, kind):
    with server.admin() as admin:
        before = admin.info("stats")["total_connections_received"]
        run_alone(FORKED, server.url, kind)
        assert admin.info("stats")["total_connections_received"] == before + 2


def test_a_check_writes_and_leaves_nothing_behind(start, connect):
    server = start()
    store = connect(server.url)
    store.check()
    with server.admin() as admin:
        assert admin.dbsize() == 0
        assert int(admin.info("stats")["total_writes_processed"]) > 0
        assert closed(admin, 1)


def test_a_store_is_reached_at_a_unix_socket(start, connect, tmp_path):
    start("--unixsocket", str(tmp_path / "redis.sock"))
    store = connect(f"unix://{tmp_path}/redis.sock?socket_timeout=10&db=3")
    assert store.swap("key", None, b"value", 60)
    assert store.get("key")[0] == b"value"
    with pytest.raises(StoreError, match=r"nothing\.sock"):
        connect(f"unix://{tmp_path}/nothing.sock").get("key")


ALLOWED = "~shop:* +evalsha +eval +get +set +del +time +scan +select"


def test_a_user_needs_the_documented_rights_and_no_more(start):
    password = "p@ss/w:rd"
    rights = ["--user", "gateway", "on", f">{password}", *ALLOWED.split()]
    server = start(*rights, "--user", "default", "off")
    address = f"127.0.0.1:{server.port}/0?prefix=shop:&socket_timeout=10"
    store = RedisStore(f"redis://gateway:p%40ss%2Fw%3Ard@{address}")
    try:
        store.check()
        store.take("key", [COUNT, SlidingWindow(Quota(5, 60))], 1)
        assert [key for key, _ in store.items("")] == ["key"]
    finally:
        store.close()
    for url in (f"redis://gateway:wrong-one@{address}", f"redis://{address}"):
        store = RedisStore(url)
        for _ in range(4):
            with pytest.raises(StoreError, match=r"WRONGPASS|NOAUTH") as caught:
                store.get("key")
            assert "wrong-one" not in str(caught.value)
        store.close()


def test_a_password_alone_may_be_in_the_environment(start, connect, monkeypatch):
    server = start("--requirepass", "s@crét /#")
    monkeypatch.setenv("WSGIGATE_STORE_PASSWORD", "s@crét /#")
    store = connect(server.url)
    assert store.swap("key", None, b"value", 60)


def test_tls_is_used_and_the_certificate_verified(start, connect, tmp_path):
    file = make_certificate(tmp_path)
    server = start(
        *("--tls-auth-clients", "no", "--tls-ca-cert-file", str(file)),
        *("--tls-cert-file", str(file), "--tls-key-file", str(file)),
        tls=True,
    )
    address = f"rediss://127.0.0.1:{server.port}/0?socket_timeout=10&socket_connect_timeout=10"
    store = connect(f"{address}&ssl_ca_certs={file}")
    assert store.swap("key", None, bytes(60_000), 60)
    assert store.get("key")[0] == bytes(60_000)
    with pytest.raises(StoreError, match=r"(?i)certificate.verify.failed"):
        connect(address).get("key")
    elsewhere = address.replace("127.0.0.1", "localhost")
    with pytest.raises(StoreError, match=r"(?i)certificate.verify.failed|refused"):
        connect(f"{elsewhere}&ssl_ca_certs={file}").get("key")
    assert connect(f"{address}&ssl_cert_reqs=none").get("key")[0] is None


def test_a_connection_with_tls_is_used_again(start, connect, tmp_path):
    """TLS 1.3 sends unrequested session tickets, which are no unexpected answer."""
    file = make_certificate(tmp_path)
    server = start(
        *("--tls-auth-clients", "no", "--tls-ca-cert-file", str(file)),
        *("--tls-cert-file", str(file), "--tls-key-file", str(file)),
        tls=True,
    )
    settings = f"ssl_ca_certs={file}&socket_timeout=10&socket_connect_timeout=10"
    store = connect(f"rediss://127.0.0.1:{server.port}/0?{settings}")

    def line():
        return part(ssl.SSLSocket, store)

    assert store.swap("key", None, bytes(range(256)) * 200, 60)
    first = line()
    assert first.version() == "TLSv1.3"
    for _ in range(5):
        assert store.get("key")[0] == bytes(range(256)) * 200
        assert store.take("quota", [COUNT], 0)[0][0].remaining == 100
        assert line() is first
    server.pause()
    try:
        with pytest.raises(StoreError, match="Timeout reading from socket"):
            store.get("key")
    finally:
        server.resume()
    assert store.get("key")[0]
    assert line() is not first
    server.stop()
    server.start()
    assert store.get("key")[0] is None, "its end was seen before it was used"
