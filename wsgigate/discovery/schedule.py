"""Which checks are due, and how many of them may be under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from wsgigate.discovery.results import Results, Target
from wsgigate.rules.health import first_due, next_due

__all__ = ["Due", "Flight", "Schedule"]


class Flight:
    """A check under way.

    :ivar raw: What the store held of the instance when the check began. Its result may only
        replace that: it is nothing any more once another was written meanwhile.
    :ivar started: When it began.
    :ivar unsure: Whether the instance did not answer the last time, or was never asked.
    """

    __slots__ = ("raw", "started", "unsure")

    def __init__(self, raw: bytes | None, started: float, unsure: bool) -> None:
        self.raw = raw
        self.started = started
        self.unsure = unsure


class Due(NamedTuple):
    """What is to be done in a round.

    :ivar checks: Checks to start, each counted as under way until it is landed.
    :ivar overdue: Instances whose check under way should have ended long ago.
    :ivar backlog: Whether more checks are due than may be under way.
    """

    checks: list[tuple[Target, Flight]]
    overdue: list[Target]
    backlog: bool


class Schedule:
    """When each instance is checked next, at most one check of it at a time.

    :param workers: How many checks are under way at most; half as many of instances that did not
        answer the last time.
    :param random: Gives numbers in [0, 1).
    """

    def __init__(self, workers: int, random: Callable[[], float]) -> None:
        self._workers = workers
        self._most_unsure = max(1, workers // 2)
        self._random = random
        self._next: dict[str, float] = {}
        self._flights: dict[str, Flight] = {}

    def rest(self) -> None:
        """Forget what was planned: another worker does the checks."""
        self._next.clear()

    def due(self, targets: Mapping[str, Target], results: Results, now: float) -> Due:
        """Return what is to be done now; instances that are not in *targets* are forgotten."""
        planned = self._next
        self._next = {
            key: planned[key] if key in planned else self._first(target, results, now)
            for key, target in targets.items()
        }
        flights = list(self._flights.values())
        free = self._workers - len(flights)
        free_unsure = self._most_unsure - sum(flight.unsure for flight in flights)
        due = Due([], [], backlog=False)
        waiting = False
        for key in self._in_turn(targets, now):
            target = targets[key]
            flight = self._flights.get(key)
            if flight is not None:
                if now - flight.started > target.check.timeout:
                    self._next[key] = next_due(now, target.check.interval, self._random())
                    due.overdue.append(target)
                continue
            raw, health = results.known(target)
            unsure = health is None or health.last.status is None
            if free <= 0 or (unsure and free_unsure <= 0):
                waiting = True
                continue
            free -= 1
            free_unsure -= unsure
            self._next[key] = next_due(now, target.check.interval, self._random())
            self._flights[key] = flight = Flight(raw, now, unsure)
            due.checks.append((target, flight))
        return due._replace(backlog=waiting)

    def _in_turn(self, targets: Mapping[str, Target], now: float) -> list[str]:
        """Return what is due, the services in turn: none queues behind a larger one."""
        turns: Counter[str] = Counter()
        due = []
        for moment, key in sorted((at, key) for key, at in self._next.items() if at <= now):
            service = targets[key].service
            due.append((turns[service], moment, key))
            turns[service] += 1
        return [key for _, _, key in sorted(due)]

    def land(self, target: Target, flight: Flight) -> None:
        """Take note that *flight* has ended; any thread may."""
        if self._flights.get(target.key) is flight:
            del self._flights[target.key]

    def _first(self, target: Target, results: Results, now: float) -> float:
        """Return when the first check by this worker is due: where another left off, or soon."""
        health = results.known(target).health
        if health is None:
            return first_due(now, target.check.interval, self._random())
        age = max(0.0, results.store_now - health.checked)
        return max(now, next_due(now - age, target.check.interval, self._random()))
