"""How many requests of a worker one service may hold, so that it never holds all of the worker."""

from __future__ import annotations

import threading

from wsgigate import process
from wsgigate.problem import Problem, Refusal

__all__ = ["FULL", "Bulkhead"]

FULL = Problem(
    503,
    "Service temporarily unavailable",
    extensions={"error": "Too many requests in flight"},
    headers=(("Retry-After", "1"),),
)


class Bulkhead:
    """Counts the requests of a service that are under way in this worker; one for its forwarders.

    A request that is one too many is refused at once: nobody waits for a place. It holds its place
    until its response has ended, retries and the waits between them included.

    :param most: How many there may be, at least 1.
    :ivar in_flight: How many there are.
    :ivar refused: How many were refused so far.
    :raises ValueError: *most* is out of its range.
    """

    def __init__(self, most: int) -> None:
        if type(most) is not int or most < 1:
            raise ValueError(f"max_in_flight is at least one request, got {most!r}")
        self.most = most
        self.in_flight = 0
        self.refused = 0
        self._lock = threading.Lock()
        process.renew_at_fork(self)

    def after_fork(self) -> None:
        """Count none: those of the parent end there."""
        self._lock = threading.Lock()
        self.in_flight = self.refused = 0

    def enter(self) -> None:
        """Count one more in.

        :raises Refusal: There are as many as there may be; carries the answer.
        """
        with self._lock:
            if self.in_flight < self.most:
                self.in_flight += 1
                return
            self.refused += 1
        raise Refusal(FULL, f"{self.most} requests of the service are under way already")

    def leave(self) -> None:
        """Count one out."""
        with self._lock:
            self.in_flight -= 1

    def status(self) -> dict[str, int]:
        """Return what ``/services`` says of it."""
        return {"inFlight": self.in_flight, "maxInFlight": self.most, "refused": self.refused}
