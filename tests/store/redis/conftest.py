"""One server for most tests of a session, and others for those that break theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.redis_server import BINARIES, Server
from wsgigate.store.redis import RedisStore


@pytest.fixture(scope="session", params=sorted(BINARIES) or ["redis"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Yield a server that nobody breaks: a Redis, and a Valkey where there is one."""
    started = Server(tmp_path_factory.mktemp("server"), binary=BINARIES.get(request.param))
    yield started
    started.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Return a starter of servers that a test may break: ``start("--requirepass", "x")``."""
    started: list[Server] = []

    def begin(*options: str, **settings: Any) -> Server:
        server = Server(tmp_path / f"server{len(started)}", *options, **settings)
        started.append(server)
        return server

    yield begin
    for server in started:
        server.stop()


@pytest.fixture
def connect() -> Iterator[Callable[..., RedisStore]]:
    """Return a maker of stores with names of their own; they are closed in the end."""
    made: list[RedisStore] = []

    def make(url: str, **settings: Any) -> RedisStore:
        mark = "&" if "?" in url else "?"
        store = RedisStore(f"{url}{mark}prefix={uuid4().hex}:", **settings)
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(server: Server, connect: Callable[..., RedisStore]) -> RedisStore:
    """Return a store on the server of the session, with names of its own."""
    return connect(server.url)
