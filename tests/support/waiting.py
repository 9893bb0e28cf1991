"""Waits of tests for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["until"]


def until(condition: Callable[[], object], *, seconds: float = 60.0) -> Any:
    """Return what *condition* returns as soon as that is true.

    It polls, first often and then every 0.02 s: for what other processes do, where nothing in
    this one can be waited for.
    """
    deadline = time.monotonic() + seconds
    pause = 0.001
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return found
