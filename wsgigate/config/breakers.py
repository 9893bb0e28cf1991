"""Circuit breakers in the file: around a middleware's app, or before a service."""

from __future__ import annotations

from typing import Any

from wsgigate.config.kinds import Duration, Flag, Integer, Number, Text
from wsgigate.config.tables import ListOf, given, setting, table
from wsgigate.rules.circuit_rules import CircuitRules

__all__ = ["BreakerOptions", "ServiceBreaker", "circuit_rules"]

_RULES = frozenset(CircuitRules.__dataclass_fields__)


@table
class ServiceBreaker:
    """When calls are refused because too many fail, and when they are tried again."""

    consecutive_failures: int | None = setting(
        Integer(0), "Failures in a row that open it; 0 for no such rule.", default=None
    )
    connect_failures: int | None = setting(
        Integer(0), "Failed connections in a row that open it; 0 for no such rule.", default=None
    )
    failure_rate: float | None = setting(
        Number(0, 1), "The share of failures that opens it; 0 for no such rule.", default=None
    )
    minimum_calls: int | None = setting(
        Integer(1), "Calls in the window below which no share counts.", default=None
    )
    window: float | None = setting(Duration(), "The time that shares are taken over.", default=None)
    slow_after: float | None = setting(Duration(), "When a call is slow.", default=None)
    slow_rate: float | None = setting(
        Number(0, 1), "The share of slow calls that opens it.", default=None
    )
    open_for: float | None = setting(
        Duration(), "How long it is open at first; each time again, twice as long.", default=None
    )
    open_at_most: float | None = setting(Duration(), "How long it is open at most.", default=None)
    jitter: float | None = setting(
        Number(0, 1), "By up to which share that is shortened, by chance.", default=None
    )
    probes: int | None = setting(
        Integer(1, 1000), "Calls that must pass before it closes.", default=None
    )
    probe_timeout: float | None = setting(
        Duration(), "When a probe that nothing is heard of is given up.", default=None
    )
    statuses: tuple[int, ...] | None = setting(
        ListOf(Integer(500, 599), least=1), "The statuses that are failures.", default=None
    )


@table
class BreakerOptions(ServiceBreaker):
    """Refuse at once while what is behind keeps failing."""

    enabled: bool | None = setting(
        Flag(), "Whether it does anything; false passes every request on.", default=None
    )
    name: str | None = setting(
        Text(), "Names the circuit; breakers of one name are one.", default=None
    )


def circuit_rules(options: ServiceBreaker) -> CircuitRules:
    """Return the rules that *options* describe: 0 is no rule.

    :raises ValueError: They contradict each other; says how.
    """
    settings: dict[str, Any] = given(options, only=sorted(_RULES))
    for name in ("consecutive_failures", "connect_failures", "failure_rate"):
        if settings.get(name) == 0:
            settings[name] = None
    return CircuitRules(**settings)
