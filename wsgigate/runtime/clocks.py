"""Which clock decides what, so that a test that stops or moves time does so everywhere or nowhere.

A library such as freezegun replaces the functions of :mod:`time` while it runs. What a request is
decided by (quotas, the end of a token, how long a circuit stays open) asks :func:`wall` or
:func:`steady`, which look the function up at each call and so follow it. What waits for a socket or
a thread asks :func:`real`, which never stops: a wait whose clock stands still has no end.

A default such as ``clock=time.time`` is neither: it is bound when its module is imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

__all__ = ["real", "steady", "wall"]


def wall() -> float:
    """Return the time in seconds since 1970, as the program is to see it."""
    return time.time()


def steady() -> float:
    """Return seconds that never step back, as the program is to see them."""
    return time.monotonic()


# not the function itself, which freezegun finds and replaces in every module that has it
real: Callable[[], float] = partial(time.monotonic)
"""Returns seconds that never step back and never stand still."""
