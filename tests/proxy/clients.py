"""The client and the pool of the tests of forwarders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from wsgiref.types import WSGIEnvironment

from werkzeug.test import Client

from tests.support.waiting import until
from wsgigate.coordination.circuit import Circuit
from wsgigate.discovery import Instance
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.disconnect import ClientWatch, Disconnects
from wsgigate.proxy.pool import Pool


class ServiceClient(Client):
    """A client of a forwarder, which knows what the forwarder was made of."""

    pool: Pool
    circuit: Circuit
    given: Resilience
    waited: list[float]


class Reader(ServiceClient):
    """Reads every response to its end, as clients do."""

    def open(self, *args: Any, **options: Any) -> Any:
        return super().open(*args, **{"buffered": True, **options})


class Departing(Disconnects):
    """Watches one client, whose ``disconnected`` a test calls."""

    def __init__(self) -> None:
        super().__init__()
        self.client = ClientWatch(None, lambda _: None)

    def watch(self, environ: WSGIEnvironment) -> ClientWatch:
        return self.client


class Watched(Pool):
    """A pool that can be waited for until all of its instances are idle."""

    def wait_until_idle(self) -> None:
        self.wait_until(lambda: not any(self.in_flight().values()))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        until(condition)


def pool_of(*urls: str, **options: Any) -> Watched:
    """Return a pool whose members are picked in their order, one after the other."""
    instances = [Instance(url) for url in urls]
    return Watched("svc", instances, **{"balance": "round-robin", "random": lambda: 0.0} | options)


def picked(pool: Pool, times: int = 60) -> set[str]:
    """Return the URLs of the instances that *pool* picks."""
    urls = set()
    for _ in range(times):
        lease = pool.pick()
        assert lease is not None
        urls.add(lease.instance.url)
        lease.release()
    return urls
