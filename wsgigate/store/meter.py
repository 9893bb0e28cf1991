"""Measures the operations of stores: how long they take, and how often they fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import cycle
from time import perf_counter
from typing import Any, TypeVar

from wsgigate.store import StoreError
from wsgigate.telemetry.metrics import PROCESS, Counter, Histogram

__all__ = ["measured"]

M = TypeVar("M", bound=Callable[..., Any])

BUCKETS = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
"""Upper bounds in seconds: an LMDB transaction takes some microseconds, an outage seconds."""

DURATIONS = Histogram(
    "wsgigate_store_duration_seconds",
    "Seconds that operations of the store take, those that fail included; of LMDB one in 16.",
    ("operation",),
    buckets=BUCKETS,
)

FAILURES = Counter(
    "wsgigate_store_failures",
    "Operations of the store that failed.",
    ("operation",),
)


def measured(operation: str, *, one_in: int = 1) -> Callable[[M], M]:
    """Return a decorator of a store's method, which records calls as *operation*.

    An exception of a function that the store calls is no failure of the store.

    :param one_in: Record the time of one call in so many: with a transaction of LMDB, which takes
        3 us, measuring each would cost a third of it. Failures are counted all.
    """

    def decorate(method: M) -> M:
        duration, turns = DURATIONS.labels(operation), cycle((True, *(one_in - 1) * (False,)))

        @wraps(method)
        def call(self: Any, *arguments: Any) -> Any:
            began = perf_counter() if not PROCESS.idle and next(turns) else 0.0
            try:
                return method(self, *arguments)
            except StoreError:
                FAILURES.labels(operation).add()
                raise
            finally:
                if began:
                    duration.observe(perf_counter() - began)

        return call  # type: ignore[return-value]

    return decorate
