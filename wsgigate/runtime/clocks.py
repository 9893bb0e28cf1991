"""The clocks of the gateway, and what a test that stops or moves time does to them.

A library such as freezegun replaces the functions of :mod:`time` while it runs. Code that decides
about a request (quotas, the expiry of a token, how long a circuit stays open) uses :func:`wall` or
:func:`steady`, which look the function up at each call and so follow the replacement. Code that
waits for a socket or a thread uses :func:`real`, which is never replaced: a wait by a stopped clock
would never end.

A default such as ``clock=time.time`` is neither: it is bound when its module is imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

__all__ = ["real", "steady", "wall"]


def wall() -> float:
    """Return the Unix time in seconds, which a test may replace."""
    return time.time()


def steady() -> float:
    """Return monotonic seconds, which a test may replace."""
    return time.monotonic()


# wrapped, because freezegun finds and replaces the bare function in every module that has it
real: Callable[[], float] = partial(time.monotonic)
"""Returns monotonic seconds that a test cannot stop."""
