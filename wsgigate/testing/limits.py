"""Limits in the tests of an app that has some: begun anew, or switched off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wsgigate.middleware.breaker import Breaker
from wsgigate.middleware.concurrency import ConcurrencyLimiter
from wsgigate.middleware.limiter import Limiter
from wsgigate.middleware.shedder import Shedder
from wsgigate.store.under_test import reset_all

__all__ = ["limits_off", "reset"]


def reset() -> None:
    """Forget what the middlewares of this process counted in memory.

    Limits, requests at a time and circuits begin anew. What is counted elsewhere, in LMDB or a
    Redis, stays: ``limiter.reset()`` of one limiter forgets that as well.
    """
    reset_all()


@contextmanager
def limits_off() -> Iterator[None]:
    """Switch off every Limiter, ConcurrencyLimiter, Breaker and Shedder of this process meanwhile.

    Each passes every request on. One whose ``enabled`` was set by itself stays as it was set, so
    that a test can switch on the one that it is about.
    """
    kinds: tuple[Any, ...] = (Limiter, ConcurrencyLimiter, Breaker, Shedder)
    before = [kind.enabled for kind in kinds]
    for kind in kinds:
        kind.enabled = False
    try:
        yield
    finally:
        for kind, enabled in zip(kinds, before, strict=True):
            kind.enabled = enabled
