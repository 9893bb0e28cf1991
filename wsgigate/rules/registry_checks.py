"""Health checks that the registry carries out itself, for instances that send no heartbeats.

Consul's clients register an instance together with an HTTP or TCP check and send no heartbeats: the
agent checks the instance. A check and its verdict are part of the entry, so both are read and
replaced in one update. The verdict changes after several results in a row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from wsgigate.rules.health import CheckResult, HealthCheck

__all__ = [
    "CHECKS_BYTES",
    "CRITICAL",
    "PASSING",
    "WARNING",
    "RegisteredCheck",
    "Streak",
    "carried_over",
    "judged",
    "length_of",
    "result_of",
]


PASSING, WARNING, CRITICAL = "passing", "warning", "critical"
"""The verdicts of a check. An instance with a warning still accepts requests."""

CHECKS_BYTES = 8 * 1024
"""The most bytes of all checks of an instance together, as JSON."""

_TOO_MANY_REQUESTS = 429


@dataclass(frozen=True, slots=True)
class RegisteredCheck:
    """One check of an instance, and its verdict.

    :param check_id: Its id, unique among the checks of all instances.
    :param name: Its name.
    :param url: ``http://HOST:PORT`` or ``https://HOST:PORT``: where it connects to.
    :param path: The path, with an optional query; ``None`` only connects (TCP).
    :param interval: Seconds from one run to the next.
    :param timeout: Seconds that one run may take in all.
    :param method: The request method.
    :param host: The value of ``Host``. Default: that of the URL.
    :param fields: Further request fields.
    :param verify: Whether certificates are verified.
    :param good_after: Results in a row that change the verdict to passing.
    :param bad_after: Results in a row that change the verdict to critical.
    :param remove_after: Seconds of a critical verdict after which the instance is removed. Default:
        never.
    :param status: The verdict.
    :param carried_out: Whether the verdict comes from a result, not from the registration.
    :param output: The result that last changed the verdict, without host names.
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
        """Whether the instance accepts requests according to this check."""
        return self.status != CRITICAL

    def health_check(self) -> HealthCheck:
        """Return it as the settings of an active health check.

        :raises ValueError: A setting is invalid; the message names it.
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

    def definition(self) -> RegisteredCheck:
        """Return the check without its verdict."""
        return replace(self, status=CRITICAL, carried_out=False, output="", since=0.0)

    def says(self, status: str, output: str, now: float) -> RegisteredCheck:
        """Return the check with the verdict *status*, to which a result has led."""
        since = self.since if status == self.status and self.carried_out else now
        return replace(self, status=status, carried_out=True, output=output, since=since)

    def members(self) -> list[Any]:
        """Return the check as a list for JSON."""
        return [getattr(self, name) for name in self.__slots__]

    @classmethod
    def of(cls, members: Sequence[Any]) -> RegisteredCheck:
        """Return the check of a list that :meth:`members` returned.

        :raises TypeError, ValueError: It is not such a list.
        """
        named = dict(zip(cls.__slots__, members, strict=True))
        named["fields"] = tuple((str(name), str(value)) for name, value in named["fields"])
        made = cls(**named)
        made.health_check()
        return made


def carried_over(
    checks: Sequence[RegisteredCheck], before: Sequence[RegisteredCheck]
) -> tuple[RegisteredCheck, ...]:
    """Return *checks* with the verdicts of the same checks in *before*.

    So a client that registers again keeps its verdicts.
    """
    known = {check.definition(): check for check in before}
    return tuple(known.get(check.definition(), check) for check in checks)


def length_of(checks: Sequence[RegisteredCheck]) -> int:
    """Return the length of *checks* as JSON, in bytes."""
    return len(json.dumps([check.members() for check in checks]))


class Streak(NamedTuple):
    """The number of equal results in a row."""

    status: str = ""
    times: int = 0

    def after(self, status: str) -> Streak:
        """Return the streak after another result with *status*."""
        return Streak(status, self.times + 1 if status == self.status else 1)


def judged(check: RegisteredCheck, streak: Streak) -> str:
    """Return the verdict of *check* after *streak*."""
    needed = check.bad_after if streak.status == CRITICAL else check.good_after
    return streak.status if streak.times >= needed else check.status


def result_of(outcome: CheckResult) -> tuple[str, str]:
    """Return the status of a result and its description: 2xx passes, 429 is a warning."""
    output = f"HTTP {outcome.status}" if outcome.status is not None else "Connected"
    if outcome.ok:
        return PASSING, output
    if outcome.status == _TOO_MANY_REQUESTS:
        return WARNING, output
    return CRITICAL, outcome.error or output
