"""Workers that fetch the keys of one endpoint, by a clock of the test."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.issuer import signing_key
from wsgigate.auth.jwks import RemoteKeys
from wsgigate.auth.jwks_fetch import FetchFailed
from wsgigate.auth.jwks_record import JwksAnswer
from wsgigate.store.memory import MemoryStore

__all__ = ["NEW", "OLD", "Clock", "Endpoint", "Fleet", "names"]

OLD, NEW = (signing_key("ES256", number) for number in range(2))


class Clock:
    """The time of the store and of the workers."""

    meanwhile: Callable[[], object] | None = None
    """What another thread does when the time is read."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
            self.meanwhile = meanwhile
        return self.now


class Endpoint:
    """An issuer's endpoint: a list of keys, or a failure."""

    during: Callable[[], object]

    def __init__(self, *keys):
        self.keys = keys
        self.failure = ""
        self.fetches = 0
        self.during = lambda: None

    def __call__(self, url, *, discovers, ca, stopping=None):
        self.fetches += 1
        self.during()
        if self.failure:
            raise FetchFailed(self.failure)
        return JwksAnswer(tuple(key.jwk() for key in self.keys))


class Fleet:
    """Workers that share a store; a test steps their threads itself."""

    def __init__(self, count=2, *keys, store=None):
        self.clock = Clock()
        self.endpoint = Endpoint(*(keys or [OLD]))
        self.store = store or MemoryStore(clock=self.clock)
        self.workers = [self.worker() for _ in range(count)]

    def worker(self):
        made = RemoteKeys("https://id.example.com", self.store, ask=self.endpoint, clock=self.clock)
        made.start = lambda: False  # the test is the thread
        made.wait = 0.0
        return made

    def step(self):
        return [worker.step() for worker in self.workers]

    def names(self):
        return [
            None if worker.current is None else sorted(worker.current.names)
            for worker in self.workers
        ]


def names(*keys):
    return sorted(key.kid for key in keys)
