"""Values are spent once by the processes that share a Redis server."""

from __future__ import annotations

from uuid import uuid4

from tests.coordination.test_spent import spent_by_processes
from tests.support.redis_server import Server
from wsgigate.coordination.spent import SpentOnce
from wsgigate.store.redis import RedisStore


def test_a_value_is_spent_once(store: RedisStore) -> None:
    once = SpentOnce(store, "nonce")
    assert once.spend("key-1", "abc", seconds=60)
    assert not once.spend("key-1", "abc", seconds=60)
    assert once.spend("key-2", "abc", seconds=60)


def test_one_of_several_processes_spends_a_value(server: Server) -> None:
    url = f"{server.url}&prefix={uuid4().hex}:"
    assert sorted(spent_by_processes(url)) == list(range(300))
