"""What a caller has left under a limit, and its reset, with each store and each algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from werkzeug import Response
from werkzeug.test import Client

from tests.support.redis_server import Server
from wsgigate.http.limits import LimitStanding
from wsgigate.middleware.concurrency import ConcurrencyLimiter
from wsgigate.middleware.limiter import Limiter
from wsgigate.rules.algorithms import ALGORITHMS
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.store.redis import RedisStore

FIRST, OTHER = {"REMOTE_ADDR": "192.0.2.1"}, {"REMOTE_ADDR": "192.0.2.2"}
QUOTAS = {"calendar": "5 per calendar year"}

Open = Callable[[Path, str], Any]
STORES: dict[str, Open] = {
    "memory": lambda _, __: MemoryStore(),
    "lmdb": lambda folder, _: LmdbStore(str(folder / "store")),
    "redis": lambda _, url: RedisStore(url, owner="standing"),
}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.stop()


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path, redis: str) -> Iterator[Any]:
    opened = STORES[request.param](tmp_path, redis)
    yield opened
    opened.close()


def left(limiter: Limiter | ConcurrencyLimiter, key: str) -> list[int]:
    return [each.remaining for each in limiter.standing(key)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_caller_is_looked_at_without_a_charge_and_reset_alone(store: Any, algorithm: str) -> None:
    quota = QUOTAS.get(algorithm, "5/h")
    name = algorithm if algorithm != "calendar" else "token-bucket"
    limiter = Limiter(Response("ok"), quota, algorithm=name, store=store, name=algorithm)
    client = Client(limiter)
    for caller in (FIRST, FIRST, OTHER):
        assert client.get("/", environ_base=caller).status_code == 200
    for _ in range(3):
        assert left(limiter, "192.0.2.1") == [3]
    limiter.reset("192.0.2.1")
    assert (left(limiter, "192.0.2.1"), left(limiter, "192.0.2.2")) == ([5], [4])


def test_each_quota_and_each_plan_has_its_standing(store: Any) -> None:
    limiter = Limiter(
        Response("ok"),
        "5/h; 100/d",
        plans={"pro": "50/h"},
        plan="header:X-Plan",
        store=store,
        name="plans",
    )
    client = Client(limiter)
    client.get("/", environ_base=FIRST)
    client.get("/", environ_base=FIRST, headers={"X-Plan": "pro"})
    found = [each._replace(reset_after=0.0) for each in limiter.standing("192.0.2.1")]
    assert found == [
        LimitStanding("plans-1h", "", 5, 4, 0.0),
        LimitStanding("plans-1d", "", 100, 99, 0.0),
        LimitStanding("plans", "pro", 50, 49, 0.0),
    ]
    limiter.reset("192.0.2.1")
    assert left(limiter, "192.0.2.1") == [5, 100, 50]


def test_a_caller_is_named_as_the_store_has_it() -> None:
    name = "x" * 1000
    limiter = Limiter(Response("ok"), "5/h", key=lambda _: name, store=MemoryStore())
    Client(limiter).get("/")
    stored = "#" + sha256(name.encode()).hexdigest()
    assert limiter.stored_key(name) == stored
    assert (left(limiter, name), left(limiter, stored)) == ([4], [4])
    limiter.reset(stored)
    assert left(limiter, name) == [5]
    assert limiter.stored_key("ann") == "=ann"


def test_an_ipv6_caller_is_its_network() -> None:
    limiter = Limiter(Response("ok"), "5/h", store=MemoryStore())
    Client(limiter).get("/", environ_base={"REMOTE_ADDR": "2001:db8::1"})
    assert left(limiter, "2001:db8::ffff") == [4]
    assert left(limiter, "2001:db8::/64") == [4]
    assert limiter.stored_key("2001:db8::1") == "=2001:db8::/64"


@pytest.mark.parametrize("key", ["2001:db8::ffff", "2001:db8::/64"])
def test_an_ipv6_caller_of_a_concurrency_limiter_is_its_network(key: str) -> None:
    six = {"REMOTE_ADDR": "2001:db8::1"}
    seen: list[list[int]] = []

    def app(environ: Any, start_response: Any) -> Any:
        seen.append(left(limiter, key))
        limiter.reset(key)
        seen.append(left(limiter, key))
        return Response("ok")(environ, start_response)

    limiter = ConcurrencyLimiter(app, 3, store=MemoryStore())
    Client(limiter).get("/", environ_base=six).close()
    limiter.close()
    assert seen == [[2], [3]]


def test_a_function_that_chooses_quotas_has_no_standing_and_can_be_reset() -> None:
    limiter = Limiter(Response("ok"), lambda _: "1/h", store=MemoryStore())
    client = Client(limiter)
    assert [client.get("/", environ_base=FIRST).status_code for _ in range(2)] == [200, 429]
    assert limiter.standing("192.0.2.1") == []
    limiter.reset("192.0.2.1")
    assert client.get("/", environ_base=FIRST).status_code == 200


def test_the_slots_of_a_caller_are_counted_and_freed(store: Any) -> None:
    limiter = ConcurrencyLimiter(Response("ok"), 3, store=store)
    client = Client(limiter)
    held = client.open("/", environ_base=FIRST, buffered=False)
    environ = {**FIRST, "REQUEST_METHOD": "GET", "wsgi.url_scheme": "http"}
    body = limiter(environ, lambda *_: lambda _: None)  # not closed: it is in flight
    assert left(limiter, "192.0.2.1") == [2]
    limiter.reset("192.0.2.1")
    assert left(limiter, "192.0.2.1") == [3]
    body.close()  # type: ignore[attr-defined]
    held.close()
    assert left(limiter, "192.0.2.1") == [3]
