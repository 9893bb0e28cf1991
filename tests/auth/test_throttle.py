"""Wrong registry tokens are throttled, and a page of another site reaches no open registry."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from tests.support.stores import Fickle
from wsgigate.auth.bearer import Access
from wsgigate.http.wsgi import CLIENT, PEER_TRUSTED
from wsgigate.registry import Registry
from wsgigate.registry.api import RegistryApi
from wsgigate.registry.compat.consul import ConsulApi
from wsgigate.registry.compat.eureka import EurekaApi
from wsgigate.store import Store
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock

TOKEN, OTHER = "registry-token-of-the-tests", "another-right-token-there"
ONE = {"serviceName": "users", "instanceId": "u-1", "host": "10.0.0.1", "port": 3001}


class Worker:
    """One worker's registry over a shared store."""

    def __init__(self, store: Store, **access: Any) -> None:
        registry = Registry(store)
        access = access or {"token": TOKEN, "tokens": {"users": OTHER}}
        self.api = Client(RegistryApi(registry, Access(**access)))
        self.closed = Client(RegistryApi(registry, Access(**access, open_reads=False)))
        self.doors = {
            "eureka": Client(EurekaApi(registry, Access(**access, open_reads=False))),
            "consul": Client(ConsulApi(registry, Access(**access, open_reads=False))),
        }

    def register(self, token: str | None, address: str = "192.0.2.1") -> TestResponse:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self.api.post(
            "/register", json=ONE, headers=headers, environ_overrides={"REMOTE_ADDR": address}
        )


def guess(worker: Worker, count: int, address: str = "192.0.2.1", begin: int = 0) -> list[int]:
    return [
        worker.register(f"a-wrong-guess-number-{n}", address).status_code
        for n in range(begin, begin + count)
    ]


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


def test_guesses_are_throttled_across_all_workers(store: MemoryStore, clock: FakeClock) -> None:
    one, two = Worker(store), Worker(store)
    assert guess(one, 5) == guess(two, 5, begin=5) == [401] * 5
    assert guess(one, 1, begin=10) == guess(two, 1, begin=11) == [429]
    answer = one.register("a-wrong-guess-number-12")
    assert answer.headers["Retry-After"] == "60"
    assert answer.json is not None
    assert answer.json["detail"] == "Too many wrong registry tokens!"
    assert answer.json["retryAfter"] == 60
    # a right guess is not told from a wrong one
    assert one.register(TOKEN).status_code == 429
    clock.advance(60)
    assert one.register(TOKEN).status_code == 201


def test_other_addresses_are_not_throttled(store: MemoryStore) -> None:
    worker = Worker(store)
    guess(worker, 20)
    assert worker.register(TOKEN, "192.0.2.2").status_code == 201
    assert worker.register("a-wrong-guess", "192.0.2.2").status_code == 401
    # one machine has a whole network of IPv6
    guess(worker, 20, "2001:db8::1")
    assert worker.register(TOKEN, "2001:db8::2").status_code == 429
    assert worker.register(TOKEN, "2001:db8:0:1::1").status_code == 201


def test_a_token_used_before_stays_accepted_behind_a_throttled_address(store: MemoryStore) -> None:
    one, two = Worker(store), Worker(store)
    assert one.register(TOKEN).status_code == 201
    guess(one, 20)
    assert one.register(TOKEN).status_code == 201
    assert two.register(TOKEN).status_code == 201, "another worker knows as well"
    assert two.register(OTHER).status_code == 429, "this token was never presented from there"
    assert two.register(OTHER, "192.0.2.2").status_code == 201


def test_services_with_a_replaced_token_do_not_throttle_their_address(store: MemoryStore) -> None:
    worker = Worker(store)
    assert {worker.register("the-token-of-last-year").status_code for _ in range(100)} == {401}
    assert {worker.register(None).status_code for _ in range(100)} == {401}
    assert worker.register(TOKEN).status_code == 201


def test_services_with_tokens_that_were_replaced_lock_out_no_new_one(
    store: MemoryStore, clock: FakeClock
) -> None:
    """Twelve of them behind one address, each with its own, for as long as nobody sees to it."""
    worker = Worker(store)
    for _ in range(20):
        for number in range(12):
            assert worker.register(f"the-old-token-of-{number}").status_code in (401, 429)
        clock.advance(10)
    assert worker.register(TOKEN).status_code == 201


def test_guesses_of_reads_and_compatible_apis_are_throttled(store: MemoryStore) -> None:
    worker = Worker(store)

    def statuses(client: Client, path: str, address: str, name: str, form: str) -> list[int]:
        return [
            client.get(
                path,
                headers={name: form.format(f"a-wrong-guess-number-{n}")},
                environ_overrides={"REMOTE_ADDR": address},
            ).status_code
            for n in range(12)
        ]

    closed = statuses(worker.closed, "/services", "192.0.2.1", "Authorization", "Bearer {}")
    assert closed == [401] * 10 + [429] * 2
    consul = statuses(
        worker.doors["consul"], "/v1/catalog/services", "192.0.2.2", "X-Consul-Token", "{}"
    )
    assert consul == [403] * 10 + [429] * 2
    eureka = [
        worker.doors["eureka"]
        .get(
            "/eureka/apps",
            headers={"Authorization": "Basic " + base64.b64encode(f":guess-{n}".encode()).decode()},
            environ_overrides={"REMOTE_ADDR": "192.0.2.3"},
        )
        .status_code
        for n in range(12)
    ]
    assert eureka == [401] * 10 + [429] * 2
    # reading takes no token where that was not asked for, and so nobody waits for it
    assert worker.api.get("/services", environ_overrides={"REMOTE_ADDR": "192.0.2.1"}).status_code


def test_while_the_store_fails_each_worker_counts_for_itself(store: MemoryStore) -> None:
    fickle = Fickle(store)
    worker = Worker(fickle)
    fickle.broken = True
    assert guess(worker, 12) == [401] * 10 + [429] * 2
    assert worker.register(TOKEN, "192.0.2.2").status_code == 503
    fickle.broken = False
    assert worker.register(TOKEN).status_code == 201


def test_neither_tokens_nor_guesses_are_kept(store: MemoryStore) -> None:
    worker = Worker(store)
    worker.register(TOKEN)
    guess(worker, 3)
    kept = repr(list(store.items("")))
    assert TOKEN not in kept
    assert "a-wrong-guess" not in kept


PATHS = [
    ("GET", "/services"),
    ("GET", "/health"),
    ("GET", "/discover/users"),
    ("POST", "/register"),
    ("DELETE", "/register/users/u-1"),
]


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:3004", "LocalHost:1", "localhost.", "registry.localhost:3004"),
        *("127.0.0.1", "127.0.0.1:3004", "127.8.8.8", "[::1]", "[::1]:3004"),
        "[::ffff:127.0.0.1]:3004",
    ],
)
def test_an_open_registry_serves_loopback(host: str, store: MemoryStore) -> None:
    worker = Worker(store, open_writes=True)
    for method, path in PATHS:
        answer = worker.api.open(path, method=method, json=ONE, headers={"Host": host})
        assert answer.status_code != 403, (method, path)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        *((host, None) for host in ("evil.example", "evil.example:3004", "localhost.evil.example")),
        *((host, None) for host in ("127.0.0.1.nip.io", "0.0.0.0", "0.0.0.0:3004", "[::]:3004")),
        *((host, None) for host in ("10.0.0.1:3004", "2130706433", "0x7f.1", "127.1")),
        ("evil.example:3004", "http://evil.example:3004"),  # what a rebound page sends
        ("localhost:3004", "http://evil.example"),
        ("localhost:3004", "null"),
        ("localhost:3004", "http://localhost.evil.example:3004"),
    ],
)
def test_an_open_registry_serves_no_other_host_and_no_page_of_one(
    host: str, origin: str | None, store: MemoryStore
) -> None:
    worker = Worker(store, open_writes=True)
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    for method, path in PATHS:
        answer = worker.api.open(path, method=method, json=ONE, headers=headers)
        assert answer.status_code == 403, (method, path)
    for path in ("/eureka/apps", "/v1/catalog/services"):
        door = worker.doors[path.split("/")[1].replace("v1", "consul")]
        assert door.get(path, headers=headers).status_code == 403
    assert list(store.items("registry/")) == []


def test_an_open_registry_serves_any_host_name_with_a_token(store: MemoryStore) -> None:
    worker = Worker(store, token=TOKEN, open_writes=True)
    headers = {"Host": "registry.internal:3004"}
    assert worker.api.get("/services", headers=headers).status_code == 403
    answer = worker.api.get("/services", headers=headers)
    assert answer.json is not None
    assert "send a token" in answer.json["detail"]
    headers["Authorization"] = f"Bearer {TOKEN}"
    assert worker.api.post("/register", json=ONE, headers=headers).status_code == 201
    # one that is not open is asked by its name, as ever
    worker = Worker(store)
    assert worker.api.get("/services", headers={"Host": "registry.internal"}).status_code == 200


@pytest.mark.parametrize(("client", "status"), [("192.0.2.9", 403), ("127.0.0.1", 200)])
def test_a_client_of_a_proxy_is_not_local(client: str, status: int, store: MemoryStore) -> None:
    worker = Worker(store, open_writes=True)
    environ = {CLIENT: client, PEER_TRUSTED: True}
    assert worker.api.get("/services", environ_overrides=environ).status_code == status
