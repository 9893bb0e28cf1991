"""Which checks are due, and how many of them may be under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from wsgigate.discovery.results import Results, Target
from wsgigate.rules.health import Health, first_due, next_due

__all__ = ["Due", "Flight", "Schedule"]


SURE, NEW, SILENT = 0, 1, 2
"""An instance that answered the last time, that was never asked, that did not answer."""


class Flight:
    """A check under way.

    :ivar raw: What the store held of the instance when the check began. Its result may only
        replace that: it is nothing any more once another was written meanwhile.
    :ivar started: When it began.
    :ivar doubt: How likely it is to hang: :data:`SURE`, :data:`NEW` or :data:`SILENT`.
    """

    __slots__ = ("doubt", "raw", "started")

    def __init__(self, raw: bytes | None, started: float, doubt: int) -> None:
        self.raw = raw
        self.started = started
        self.doubt = doubt


class Due(NamedTuple):
    """What is to be done in a round.

    :ivar checks: Checks to start, each counted as under way until it is landed.
    :ivar overdue: Instances whose check under way should have ended long ago.
    :ivar next_at: When there is more to do, as far as is known; a moment that has passed while
        more checks are due than may be under way.
    """

    checks: list[tuple[Target, Flight]]
    overdue: list[Target]
    next_at: float


class Schedule:
    """When each instance is checked next, at most one check of it at a time.

    :param most: How many checks are under way at most; half as many of instances that did not
        answer the last time, three quarters of those and ones never asked.
    :param random: Gives numbers in [0, 1).
    """

    def __init__(self, most: int, random: Callable[[], float]) -> None:
        self._most = (most, most * 3 // 4, most // 2)
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
        free = [
            most - sum(flight.doubt >= doubt for flight in flights)
            for doubt, most in enumerate(self._most)
        ]
        due = Due([], [], next_at=now)
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
            doubt = NEW if health is None else _doubt(health)
            if min(free[: doubt + 1]) <= 0:
                waiting = True
                continue
            for less in range(doubt + 1):
                free[less] -= 1
            self._next[key] = next_due(now, target.check.interval, self._random())
            self._flights[key] = flight = Flight(raw, now, doubt)
            due.checks.append((target, flight))
        return due if waiting else due._replace(next_at=min(self._next.values(), default=now))

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
        age = max(0.0, results.now() - health.checked)
        return max(now, next_due(now - age, target.check.interval, self._random()))


def _doubt(health: Health) -> int:
    last = health.last
    silent = not last.ok and (last.status is None or last.error == "Timeout")
    return SILENT if silent else SURE
