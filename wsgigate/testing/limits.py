"""Resets or disables the limits of an app in its tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wsgigate.middleware.breaker import Breaker
from wsgigate.middleware.concurrency import ConcurrencyLimiter
from wsgigate.middleware.limiter import Limiter
from wsgigate.middleware.shedder import Shedder
from wsgigate.store.open import reset_all

__all__ = ["limits_off", "reset"]


def reset() -> None:
    """Reset all counts that the middlewares of this process keep in memory.

    These are quotas, concurrent requests and circuits. Counts in LMDB or Redis stay:
    ``limiter.reset()`` of one limiter resets those as well.
    """
    reset_all()


@contextmanager
def limits_off() -> Iterator[None]:
    """Disable every Limiter, ConcurrencyLimiter, Breaker and Shedder of this process.

    Each lets every request pass until the block ends. An object whose own ``enabled`` was set keeps
    it, so that a test can enable the one under test.
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
