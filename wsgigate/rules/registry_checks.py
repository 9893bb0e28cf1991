"""Checks that the registry carries out itself: what they ask, and what an instance is by them.

Consul's clients register an instance together with a check by HTTP or TCP and send no heartbeats:
the agent finds out how the instance is. A check is a part of the entry, its verdict too, so both
are read and replaced in one step. The verdict changes when several results in a row say so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from wsgigate.rules.health import HealthCheck, Outcome

__all__ = [
    "CHECKS_BYTES",
    "CRITICAL",
    "Check",
    "PASSING",
    "Streak",
    "WARNING",
    "carried_over",
    "judged",
    "length_of",
    "result_of",
]


PASSING, WARNING, CRITICAL = "passing", "warning", "critical"
"""What a check may say. An instance with a warning still takes requests."""

CHECKS_BYTES = 8 * 1024
"""How long all checks of an instance may be together, as JSON."""

_TOO_MANY_REQUESTS = 429


@dataclass(frozen=True, slots=True)
class Check:
    """One check of an instance, and its verdict.

    :param check_id: What tells it from the others of all instances.
    :param name: What it is called.
    :param url: ``http://HOST:PORT``, ``https://HOST:PORT``: where it connects to.
    :param path: What it asks for, with a query if need be; ``None`` only connects (TCP).
    :param interval: Seconds from one to the next.
    :param timeout: Seconds one may take in all.
    :param method: The request method.
    :param host: What is sent in ``Host``; that of the URL unless given.
    :param fields: Further request fields.
    :param verify: Whether certificates are verified.
    :param good_after: Results in a row that change the verdict to passing.
    :param bad_after: Results in a row that change the verdict to critical.
    :param remove_after: Seconds after which an instance is removed whose check is critical; never
        unless given.
    :param status: The verdict.
    :param carried_out: Whether it comes from a result, rather than from the registration.
    :param output: What the last result that changed it was, in words that name no host.
    :param since: When the verdict changed, by the store's clock.
    """

    check_id: str
    name: str
    url: str
    path: str | None
    interval: float
    timeout: float = 10.0
    method: str = "GET"
    host: str = ""
    fields: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    verify: bool = True
    good_after: int = 1
    bad_after: int = 1
    remove_after: float | None = None
    status: str = CRITICAL
    carried_out: bool = False
    output: str = ""
    since: float = 0.0

    @property
    def kind(self) -> str:
        """``http`` or ``tcp``."""
        return "tcp" if self.path is None else "http"

    @property
    def passes(self) -> bool:
        """Whether the instance takes requests by it."""
        return self.status != CRITICAL

    def health_check(self) -> HealthCheck:
        """Return how it is carried out.

        :raises ValueError: A setting is out of its range; says which.
        """
        if self.path is None:
            return HealthCheck(None, interval=self.interval, timeout=self.timeout)
        return HealthCheck(
            self.path,
            interval=self.interval,
            timeout=self.timeout,
            host=self.host,
            fields=dict(self.fields),
            method=self.method,
        )

    def definition(self) -> Check:
        """Return it without its verdict."""
        return replace(self, status=CRITICAL, carried_out=False, output="", since=0.0)

    def says(self, status: str, output: str, now: float) -> Check:
        """Return it with a verdict that a result has led to."""
        since = self.since if status == self.status and self.carried_out else now
        return replace(self, status=status, carried_out=True, output=output, since=since)

    def members(self) -> list[Any]:
        """Return it as JSON has it."""
        return [getattr(self, name) for name in self.__slots__]

    @classmethod
    def of(cls, members: Sequence[Any]) -> Check:
        """Return the check that :meth:`members` told.

        :raises TypeError, ValueError: It is none.
        """
        named = dict(zip(cls.__slots__, members, strict=True))
        named["fields"] = tuple((str(name), str(value)) for name, value in named["fields"])
        made = cls(**named)
        made.health_check()
        return made


def carried_over(checks: Sequence[Check], before: Sequence[Check]) -> tuple[Check, ...]:
    """Return *checks* with the verdicts that the same ones had *before*.

    A client that registers again does not begin anew.
    """
    known = {check.definition(): check for check in before}
    return tuple(known.get(check.definition(), check) for check in checks)


def length_of(checks: Sequence[Check]) -> int:
    """Return how many bytes of JSON they are."""
    return len(json.dumps([check.members() for check in checks]))


class Streak(NamedTuple):
    """How many results in a row said the same."""

    status: str = ""
    times: int = 0

    def after(self, status: str) -> Streak:
        """Return it after one more."""
        return Streak(status, self.times + 1 if status == self.status else 1)


def judged(check: Check, streak: Streak) -> str:
    """Return the verdict of *check* after *streak*."""
    needed = check.bad_after if streak.status == CRITICAL else check.good_after
    return streak.status if streak.times >= needed else check.status


def result_of(outcome: Outcome) -> tuple[str, str]:
    """Return what a result says, and in words why: 2xx passes, 429 is a warning."""
    output = f"HTTP {outcome.status}" if outcome.status is not None else "Connected"
    if outcome.ok:
        return PASSING, output
    if outcome.status == _TOO_MANY_REQUESTS:
        return WARNING, output
    return CRITICAL, outcome.error or output
