"""The client and the pool of the tests of forwarders."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from werkzeug.test import Client

from wsgigate.discovery import Instance
from wsgigate.proxy.pool import InstanceLease, Pool


class Reader(Client):
    """Reads every response to its end, as clients do."""

    def open(self, *args: Any, **options: Any) -> Any:
        return super().open(*args, **{"buffered": True, **options})


class Watched(Pool):
    """A pool that can be waited for until all of its instances are idle."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._changed = threading.Condition()
        super().__init__(*arguments, **options)

    def _release(self, lease: InstanceLease) -> None:
        super()._release(lease)
        with self._changed:
            self._changed.notify_all()

    def wait_until_idle(self) -> None:
        self.wait_until(lambda: not any(self.in_flight().values()))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 10)


def pool_of(*urls: str, **options: Any) -> Watched:
    """Return a pool whose members are picked in their order, one after the other."""
    instances = [Instance(url) for url in urls]
    return Watched("svc", instances, **{"balance": "round-robin", "random": lambda: 0.0} | options)
