"""Bulkheads: how the threads of a worker are shared among its services.

The rule is the dynamic threshold of switches that share one buffer among many ports: a service may
hold a fixed multiple of the free threads. So one busy service gets all but the *reserve*, a second
one gets most of the rest, and each service that hangs leaves less to the next, but never nothing.
The rule does not need to know which services hang.

A request above the threshold is not rejected at once. It waits in its thread, as it would wait for
a thread in the server's queue: a burst of quick requests is over in a moment. It is rejected only
when three conditions hold: no other thread is free, so that it keeps other services waiting; most
requests of its service have been in flight for long, so that the wait will not be short; and its
service occupies more threads than an equal share, waiting requests included. A service that others
have crowded out waits, but is not rejected at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

__all__ = ["Admission", "ThreadShareRules"]


class Admission(Enum):
    """The decision about a request."""

    ENTER = "enter"
    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True, kw_only=True, slots=True)
class ThreadShareRules:
    """How many threads a service may hold, and when a request above that is rejected.

    :param threads: The threads of a worker, at least 1.
    :param services: The services that share them, at least 1.
    :param patience: The least seconds after which a request counts as slow.
    :param longest_patience: The most seconds. Within these bounds a request is slow after three
        times the usual time of its service.
    :param longest_wait: Seconds after which a waiting request is rejected in any case.
    :ivar reserve: Threads that one service leaves to the others: one for each of them, but at least
        a quarter and at most half of all threads.
    :ivar most: Threads that one service may hold while the others hold none.
    :ivar equal: An equal share of the threads, at least 1.
    :raises ValueError: An argument is out of its range; the message names it.
    """

    threads: int
    services: int
    patience: float = 1.0
    longest_patience: float = 5.0
    longest_wait: float = 5.0
    reserve: int = field(init=False)
    most: int = field(init=False)
    equal: int = field(init=False)

    def __post_init__(self) -> None:
        for name in ("threads", "services"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is a whole number of at least 1, got {value!r}")
        for name in ("patience", "longest_patience", "longest_wait"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"{name} is a number of seconds above 0, got {value!r}")
        if self.longest_patience < self.patience:
            raise ValueError("longest_patience is at least patience")
        reserve = min(self.threads // 2, max(self.services - 1, math.ceil(self.threads / 4)))
        object.__setattr__(self, "reserve", reserve)
        object.__setattr__(self, "most", self.threads - reserve)
        object.__setattr__(self, "equal", max(1, self.threads // self.services))

    def admits(self, held: int, in_flight: int) -> bool:
        """Return whether a service that holds *held* threads may take another one.

        :param in_flight: The threads that all services hold.
        """
        return held * self.reserve < (self.threads - in_flight) * self.most

    def patience_for(self, usual: float | None) -> float:
        """Return the seconds after which a request of a service counts as slow.

        :param usual: The usual seconds until its responses begin; ``None`` while unknown.
        """
        if usual is None:
            return self.patience
        return min(max(3 * usual, self.patience), self.longest_patience)

    def is_slow(self, began: Iterable[float], held: int, now: float, usual: float | None) -> bool:
        """Return whether more than half of a service's requests in flight are slow.

        :param began: When each of them began, the oldest first.
        :param held: The number of these requests.
        """
        middle = next(islice(began, held // 2, None), None)
        return middle is not None and now - middle > self.patience_for(usual)

    def crowds(self, occupied: int, in_flight: int, waiting: int) -> bool:
        """Return whether a service keeps others from a thread by more than its equal share.

        :param occupied: The threads that its requests occupy, the waiting ones included.
        :param in_flight: The threads that all services hold.
        :param waiting: The requests of all services that wait.
        """
        return occupied > self.equal and in_flight + waiting >= self.threads

    def decide(
        self, held: int, in_flight: int, waiting: int, *, queued: int, waited: float, slow: bool
    ) -> Admission:
        """Return the decision about a request that occupies a thread, but was not admitted yet.

        :param held: The threads that its service holds.
        :param in_flight: The threads that all services hold.
        :param waiting: The requests that wait, this one included.
        :param queued: Those of its service, this one included.
        :param waited: Seconds that it has waited.
        :param slow: Whether its service is slow: :meth:`is_slow`.
        """
        if self.admits(held, in_flight):
            return Admission.ENTER
        if waited >= self.longest_wait or (slow and self.crowds(held + queued, in_flight, waiting)):
            return Admission.REFUSE
        return Admission.WAIT
