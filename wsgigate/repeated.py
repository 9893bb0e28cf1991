"""The same message many times is told once in a while, with how often it was so."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Repeated", "observing", "outage"]


class Repeated:
    """Counts what happens again and again, and tells of it now and then.

    :param tell: A logger's method.
    :param message: What it is given first: a format, for the count since the last time, and for
        what :meth:`again` is given.
    :param clock: Tells seconds; it never steps back.
    :param silence: For how many seconds nothing is told again.
    """

    def __init__(
        self,
        tell: Callable[..., object],
        message: str,
        clock: Callable[[], float],
        *,
        silence: float = 60.0,
    ) -> None:
        self.total = 0
        """How often it happened in all."""
        self._tell = tell
        self._message = message
        self._clock = clock
        self._silence = silence
        self._lock = threading.Lock()
        self._told = float("-inf")
        self._untold = 0

    def again(self, *arguments: object) -> None:
        """Count one more, and tell of it if the last time is long enough ago."""
        with self._lock:
            self.total += 1
            self._untold += 1
            now = self._clock()
            if now - self._told < self._silence:
                return
            count, self._told, self._untold = self._untold, now, 0
        self._tell(self._message, count, *arguments)


def outage(name: str, *, passes: bool) -> str:
    """Return the message that the limit *name* cannot be counted."""
    became = "passed" if passes else "were refused"
    return (
        f"the limit {name!r} cannot be counted, %s requests {became} since the last such message: "
        "%s"
    )


def observing(name: str) -> str:
    """Return the message that the limit *name* would have refused."""
    return (
        f"the limit {name!r}, which only observes, would have refused %s requests since the last "
        "such message; the last: %s"
    )
