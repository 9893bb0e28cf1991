"""The benchmark of the registry: what it asks is right, and what goes wrong is counted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from benchmarks.registry import TOKEN, Scale, measure, table
from benchmarks.requester import Requester, percentile
from tests.acceptance.registries import RegistryServer
from wsgigate.testing.backend import Backend, cut, reply

SMALL = Scale(instances=20, services=4, every=0.5, discoveries=20, seconds=0.4, warm_up=0.1)


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer(token=TOKEN) as server:
        yield server


@pytest.mark.parametrize("fresh", [False, True])
def test_all_are_registered_and_heard_of_while_others_ask(
    registry: RegistryServer, fresh: bool
) -> None:
    figures = asyncio.run(measure(registry.port, os.getpid(), None, SMALL, fresh=fresh))
    assert figures.errors == 0
    assert figures.heartbeats > 0
    assert figures.discoveries > 0
    assert {name: len(found) for name, found in registry.registry.services().items()} == {
        f"service-00{number}": 5 for number in range(4)
    }
    asked = {(each.what, each.status) for each in registry.asked}
    assert asked == {("POST register", 201), ("POST heartbeat", 200), ("GET discover", 200)}
    assert "20 instances of 4 services" in table(SMALL, [("one", figures)])


def test_a_registry_that_takes_nobody_is_told() -> None:
    few = RegistryServer(token="another-token-than-the-benchmarks")
    with few, pytest.raises(RuntimeError, match=r"registrations failed: POST /register: 40[13]"):
        asyncio.run(measure(few.port, os.getpid(), None, SMALL, fresh=False))


def test_what_goes_wrong_is_an_error_and_no_time() -> None:
    async def ask(port: int) -> Requester:
        requester = Requester(port, 1, TOKEN)
        for _ in range(4):
            await requester.ask("GET", "/")
        requester.close()
        return requester

    answers = [reply(b"ok"), reply(status="404 Not Found"), cut(b"HTTP/1.1 200 OK\r\n")]
    with Backend(*answers, reply(b"ok")) as backend:
        requester = asyncio.run(ask(backend.port))
        assert backend.requests[0].values("Authorization") == [f"Bearer {TOKEN}"]
    assert (len(requester.times), requester.errors) == (2, 2)


def test_a_connection_that_was_closed_between_requests_is_replaced() -> None:
    async def ask(backend: Backend) -> Requester:
        requester = Requester(backend.port, 1, TOKEN)
        for _ in range(3):
            await requester.ask("GET", "/")
        requester.close()
        return requester

    with Backend(cut(reply(b"ok"))) as backend:
        requester = asyncio.run(ask(backend))
        assert backend.connections == 3
    assert (len(requester.times), requester.errors) == (3, 0)


def test_a_percentile_is_a_time_that_was_measured() -> None:
    assert percentile([], 0.99) == 0.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(number) for number in range(100)], 0.99) == 99.0
