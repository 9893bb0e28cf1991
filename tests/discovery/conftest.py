"""A fleet in one process: workers that share a store and a clock, driven round by round."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.stores import Fickle
from wsgigate.discovery import Instance
from wsgigate.discovery.health import HealthChecker
from wsgigate.discovery.health_results import ThreadProber
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.store import Store
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore

UP = CheckResult(True, 200, "1.00ms")
DOWN = CheckResult(False, error="Connection refused")


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class FakePool:
    """A pool that notes what it is told.

    :ivar marked: Set when an instance is marked.
    """

    def __init__(self, *urls: str) -> None:
        self.instances: Sequence[Instance] = tuple(Instance(url) for url in urls)
        self.marks: dict[str, bool] = {}
        self.marked = threading.Event()

    def mark(self, url: str, healthy: bool) -> None:
        self.marks[url] = healthy
        self.marked.set()


class Network:
    """Stands for all instances: each is up unless said, and every check of it is counted.

    :ivar broken: The URLs whose checks raise an exception, and are not counted.
    """

    def __init__(self) -> None:
        self.outcomes: dict[str, CheckResult] = {}
        self.broken: set[str] = set()
        self.asked: list[str] = []

    def __call__(self, instance: Instance, check: HealthCheck) -> CheckResult:
        if instance.url in self.broken:
            raise RuntimeError("a bug")
        self.asked.append(instance.url)
        return self.outcomes.get(instance.url, UP)


class Worker:
    """One worker: its pools and its checker, whose threads run when and as the test says.

    :ivar pending: Checks that were started and have not ended, while *hold* is set.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        network: Network,
        pools: dict[str, FakePool],
        check: HealthCheck,
        **options: Any,
    ) -> None:
        self.pools = pools
        self.store = store
        self.hold = False
        self.pending: list[Callable[[], None]] = []
        self.checker = HealthChecker(
            pools,
            dict.fromkeys(pools, check),
            store,
            ThreadProber(network, spawn=self.spawn),
            clock=clock,
            random=lambda: 0.5,
            **options,
        )

    def spawn(self, work: Callable[[], None]) -> None:
        if self.hold:
            self.pending.append(work)
        else:
            work()

    def let_go(self) -> None:
        """End the checks that were held."""
        pending, self.pending = self.pending, []
        for work in pending:
            work()


class Fleet:
    """Workers over one store and one clock."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = Fickle(store)
        self.clock = clock
        self.network = Network()
        self.workers: list[Worker] = []

    def worker(
        self,
        *urls: str,
        check: HealthCheck = HealthCheck("/health"),  # noqa: B008 - it is frozen
        **options: Any,
    ) -> Worker:
        """Add a worker with the service ``shop`` at *urls*."""
        pools = {"shop": FakePool(*(urls or ("http://a",)))}
        worker = Worker(self.store, self.clock, self.network, pools, check, **options)
        self.workers.append(worker)
        return worker

    def run(self, seconds: float, workers: Iterable[Worker] = ()) -> None:
        """Let *seconds* pass, with a round of each worker (all of them) every half second."""
        for _ in range(round(seconds * 2)):
            self.clock.now += 0.5
            for worker in workers or self.workers:
                worker.checker.step()


@pytest.fixture(params=["memory", "lmdb"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """Yield a fleet without workers, over each of the stores."""
    clock = Clock()
    store: Store
    if request.param == "memory":
        store = MemoryStore(clock=clock)
    else:
        store = LmdbStore(tmp_path / "store", map_size=1 << 20, clock=clock)
    yield Fleet(store, clock)
    store.close()
