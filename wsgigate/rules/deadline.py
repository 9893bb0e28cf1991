"""Until when a request must have been answered, and how long each part of it may take."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Deadline", "deadline", "read_timeout", "try_time", "write_timeout"]

_SECONDS = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(s|ms)?", re.ASCII)


class Deadline(NamedTuple):
    """Until when a request must have been answered, its retries and their waits included.

    :ivar until: The moment.
    :ivar shortened: Whether it is the client who wants it so soon. To be late for that tells
        nothing of the service: it is no failure, or any client could open circuits for all.
    """

    until: float
    shortened: bool = False


def deadline(now: float, timeout: float, asked: float | None = None) -> Deadline:
    """Return until when a request that came at *now* must have been answered.

    :param timeout: Seconds that there are.
    :param asked: Seconds that the client wants to wait; it can only shorten.
    """
    if asked is not None and asked < timeout:
        return Deadline(now + asked, True)
    return Deadline(now + timeout)


def try_time(deadline: Deadline, now: float, per_try: float | None = None) -> float:
    """Return the seconds that an attempt has which begins at *now*, 0 when there are none left.

    :param per_try: The most that one attempt may take.
    """
    left = max(0.0, deadline.until - now)
    return left if per_try is None else min(left, per_try)


def read_timeout(text: str) -> float | None:
    """Return the seconds that ``X-Request-Timeout`` means: ``2``, ``2s``, ``0.25`` or ``250ms``.

    :returns: ``None`` for what is malformed, or no time at all: then the client has said nothing.
    """
    found = _SECONDS.fullmatch(text.strip(" \t"))
    if found is None:
        return None
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1)
    return seconds or None


def write_timeout(deadline: Deadline, now: float) -> str:
    """Return what is left as ``X-Request-Timeout`` says it to the next one: rounded down to 1 ms.

    So that nobody behind us goes on working on what nobody waits for any more.
    """
    thousandths = max(1, int((deadline.until - now) * 1000))
    return f"{thousandths / 1000:.3f}"
