"""A primary with a replica and sentinels: who is the primary may change at any time."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.ports import free_port
from tests.support.redis_server import BINARIES, Server
from tests.support.waiting import until
from wsgigate.rules.algorithms import TokenBucket
from wsgigate.rules.quota import Quota
from wsgigate.store import StoreError
from wsgigate.store.redis import RedisStore

PATIENT = "socket_timeout=5&socket_connect_timeout=5"
QUOTA = TokenBucket(Quota(100, 3600))


class Sentinel(Server):
    """A sentinel that watches one primary called ``shop``, and is quick to give it up."""

    def __init__(self, folder: Path, primary: int, *lines: str) -> None:
        self.lines = [
            f"sentinel monitor shop 127.0.0.1 {primary} 2",
            "sentinel down-after-milliseconds shop 2000",
            "sentinel failover-timeout shop 3000",
            *lines,
        ]
        super().__init__(folder)

    def start(self, *, ready: bool = True) -> None:
        file = self.folder / "sentinel.conf"
        file.write_text(
            "\n".join([f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", *self.lines])
        )
        self.process = subprocess.Popen(
            [BINARIES["redis"], str(file), "--sentinel"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.until("+monitor master shop")


class Fleet(NamedTuple):
    """A primary, its replica, and who watches them."""

    primary: Server
    replica: Server
    sentinels: list[Sentinel]

    def url(self, query: str = PATIENT) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/shop/0?prefix=test:&{query}"


@pytest.fixture
def fleet(tmp_path):
    started = []
    try:
        for place in ("primary", "replica"):
            options = ["--replicaof", "127.0.0.1", str(started[0].port)] if started else []
            started.append(Server(tmp_path / place, *options, "--repl-diskless-sync-delay", "0"))
        primary, replica = started
        with replica.admin() as admin:
            until(lambda: admin.info("replication")["master_link_status"] == "up")
        for number in range(3):
            started.append(Sentinel(tmp_path / f"sentinel{number}", primary.port))
        for sentinel in started[2:]:
            with sentinel.admin() as admin:
                until(
                    lambda admin=admin: _knows_all(
                        admin.execute_command("SENTINEL", "master", "shop")
                    )
                )
        yield Fleet(primary, replica, started[2:])
    finally:
        for server in started:
            server.stop()


def _knows_all(told):
    if not isinstance(told, dict):
        words = [word.decode() for word in told]
        told = dict(zip(words[::2], words[1::2], strict=True))
    told = {_text(name): _text(value) for name, value in told.items()}
    return told["num-other-sentinels"] == "2" and told["num-slaves"] == "1"


def _text(word):
    return word.decode() if isinstance(word, bytes) else str(word)


@pytest.fixture
def store(fleet):
    store = RedisStore(fleet.url())
    yield store
    store.close()


def written(store, value):
    """Return whether *value* could be written; an error says that it could not, so far."""
    try:
        return store.swap("key", store.get("key")[0], value, 600)
    except StoreError:
        return False


def taken(store):
    try:
        return store.take("quota", [QUOTA], 1)[0][0]
    except StoreError:
        return None


def test_a_failover_is_followed_when_the_primary_dies(fleet, store):
    until(lambda: written(store, b"before"))
    for _ in range(3):
        assert taken(store).allowed
    with fleet.primary.admin() as admin:
        assert admin.wait(1, 5000) == 1
    fleet.primary.stop()
    verdict = until(lambda: taken(store))
    assert verdict.remaining == 96, "what the replica had been told is still counted"
    assert store.get("key")[0] == b"before"
    with fleet.replica.admin() as admin:
        assert admin.get("test:key") == b"before"
    fleet.primary.start()
    with fleet.primary.admin() as admin:
        until(lambda: admin.info("replication")["role"] == "slave")
    until(lambda: written(store, b"after"))


def test_a_failover_is_followed_when_the_primary_hangs_and_comes_back(fleet, store):
    until(lambda: written(store, b"before"))
    fleet.primary.pause()
    until(lambda: written(store, b"while it hung"))
    fleet.primary.resume()
    with fleet.primary.admin() as admin:
        until(lambda: admin.info("replication")["role"] == "slave")
    assert store.get("key")[0] == b"while it hung"
    until(lambda: written(store, b"after"))


def test_a_primary_that_was_made_a_replica_is_left(fleet, store):
    until(lambda: written(store, b"before"))
    with fleet.sentinels[0].admin() as admin:
        admin.execute_command("SENTINEL", "failover", "shop")
    with fleet.primary.admin() as admin:
        until(lambda: admin.info("replication")["role"] == "slave")
    until(lambda: written(store, b"after"))
    with fleet.replica.admin() as admin:
        assert admin.get("test:key") == b"after"


def test_the_sentinels_that_are_left_are_asked(fleet, store):
    for sentinel in fleet.sentinels[:2]:
        sentinel.stop()
    assert written(store, b"value")


def test_no_sentinel_and_no_such_service_are_errors_in_words(fleet):
    unknown = RedisStore(fleet.url().replace("/shop/", "/shap/"))
    with pytest.raises(StoreError, match="monitors no service 'shap'"):
        unknown.get("key")
    unknown.close()
    alone = RedisStore(f"redis+sentinel://127.0.0.1:{free_port()}/shop")
    for _ in range(3):
        with pytest.raises(StoreError, match="refused"):
            alone.get("key")
    with pytest.raises(StoreError, match="next attempt"):
        alone.get("key")
    alone.close()


def test_sentinels_and_servers_have_passwords_of_their_own(tmp_path):
    started = [Server(tmp_path / "primary", "--requirepass", "of-the-server")]
    try:
        sentinel = Sentinel(
            tmp_path / "sentinel",
            started[0].port,
            "sentinel auth-pass shop of-the-server",
            "requirepass of-the-sentinel",
        )
        started.append(sentinel)
        address = f"127.0.0.1:{sentinel.port}/shop?{PATIENT}"
        url = f"redis+sentinel://:of-the-server@{address}"
        store = RedisStore(f"{url}&sentinel_password=of-the-sentinel")
        assert store.swap("key", None, b"value", 60)
        store.close()
        for wrong in (url, f"redis+sentinel://{address}&sentinel_password=of-the-sentinel"):
            store = RedisStore(wrong)
            with pytest.raises(StoreError, match="NOAUTH"):
                store.get("key")
            store.close()
    finally:
        for server in started:
            server.stop()
