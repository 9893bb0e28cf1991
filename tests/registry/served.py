"""The registry's HTTP API over a store whose clock stands still."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

from werkzeug.test import Client, TestResponse

from tests.discovery.conftest import Clock
from tests.support.stores import Fickle
from wsgigate.auth.bearer import Access
from wsgigate.registry import Registry
from wsgigate.registry.api import RegistryApi
from wsgigate.rules.registry import Registered
from wsgigate.store.memory import MemoryStore

__all__ = ["DEMO", "TOKEN", "Served"]

TOKEN = "registry-token-of-the-tests"
DEMO = {
    "serviceName": "user-service",
    "instanceId": "user-1",
    "host": "localhost",
    "port": 3001,
    "metadata": {"version": "1.0.0", "healthCheckPath": "/health"},
}


class Served:
    """The registry's app over a store whose clock stands still."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.clock.now = 1_764_547_200.0
        self.store = Fickle(MemoryStore(clock=self.clock))
        self.later = 0.0
        self.registry = Registry(self.store, clock=lambda: time.monotonic() + self.later)
        self.app = RegistryApi(
            self.registry, Access(TOKEN), **{"now": self.clock, "random": lambda: 0.0, **options}
        )
        self.client = Client(self.app)

    def send(self, method: str, path: str, document: object = None, **fields: str) -> TestResponse:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        options = {} if document is None else {"json": document}
        return self.client.open(path, method=method, headers=headers, **options)

    def register(self, name: str, service: str = "users", **members: Any) -> None:
        entry = Registered(service, name, "10.0.0.1", 3001)
        self.registry.register(replace(entry, **members))

    def waits(self) -> threading.Semaphore:
        """Return a semaphore that each request releases from now on before it waits."""
        begun, wait = threading.Semaphore(0), self.registry.wait

        def recorded(service: str | None, version: int, timeout: float) -> int:
            begun.release()
            return wait(service, version, timeout)

        self.registry.wait = recorded  # type: ignore[method-assign]
        return begun

    def names(self, query: str = "", service: str = "users") -> list[str]:
        answer = self.send("GET", f"/discover/{service}?{query}")
        assert answer.status_code == 200, answer.text
        assert answer.json
        return [each["instanceId"] for each in answer.json["instances"]]
