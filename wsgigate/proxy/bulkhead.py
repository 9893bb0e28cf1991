"""A fixed limit of a service's requests in a worker, and what all bulkheads have in common."""

from __future__ import annotations

import threading
from typing import Protocol

from wsgigate import process
from wsgigate.problem import Problem, Refusal
from wsgigate.rules.arguments import checked

__all__ = ["FULL", "Bulkhead", "Compartment", "Place", "check_most", "full"]

FULL = Problem(
    503,
    "Service temporarily unavailable",
    extensions={"error": "Too many requests in flight"},
    headers=(("Retry-After", "1"),),
)


class Place(Protocol):
    """A request's place among those of its service that are under way."""

    def answered(self) -> None:
        """Take note that its response has begun."""

    def tunnelled(self) -> None:
        """Take note that it has become a WebSocket, which lasts as long as it is used."""

    def leave(self) -> None:
        """Give it up."""


class Compartment(Protocol):
    """What a service's requests need a place in."""

    def enter(self) -> Place:
        """Return a place for one more request.

        :raises Refusal: There is none; carries the answer.
        """

    def status(self) -> dict[str, int]:
        """Return what ``/services`` says of it."""


@checked
class Bulkhead:
    """A fixed limit of requests to a service that are under way in this worker.

    A request that is one too many is refused at once. A request holds its place until its response
    has ended, retries and the waits between them included.

    :param most: How many there may be, at least 1.
    :ivar in_flight: How many there are.
    :ivar refused: How many were refused so far.
    :raises ValueError: *most* is out of its range.
    """

    def __init__(self, most: int) -> None:
        check_most(most)
        self.most = most
        self.in_flight = 0
        self.refused = 0
        self._lock = threading.Lock()
        process.renew_at_fork(self)

    def after_fork(self) -> None:
        """Count none: those of the parent end there."""
        self._lock = threading.Lock()
        self.in_flight = self.refused = 0

    def enter(self) -> Place:
        """Count one more in; the place is the bulkhead itself.

        :raises Refusal: There are as many as there may be; carries the answer.
        """
        with self._lock:
            if self.in_flight < self.most:
                self.in_flight += 1
                return self
            self.refused += 1
        raise full(self.most)

    def answered(self) -> None:
        """Do nothing: a fixed limit does not depend on how fast responses are."""

    def tunnelled(self) -> None:
        """Do nothing: a WebSocket counts like any other request."""

    def leave(self) -> None:
        """Count one out."""
        with self._lock:
            self.in_flight -= 1

    def status(self) -> dict[str, int]:
        """Return what ``/services`` says of it."""
        return {"inFlight": self.in_flight, "maxInFlight": self.most, "refused": self.refused}


def check_most(most: object) -> None:
    """Raise ValueError when *most* is no limit."""
    if type(most) is not int or most < 1:
        raise ValueError(f"max_in_flight is at least one request, got {most!r}")


def full(most: int) -> Refusal:
    """Return the refusal of a request above a fixed limit of *most*."""
    return Refusal(FULL, f"{most} requests of the service are under way already")
