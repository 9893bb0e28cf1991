"""Ejection in the file: when an instance of a service is left out for a while."""

from __future__ import annotations

from wsgigate.config.kinds import Duration, Flag, Integer, Number
from wsgigate.config.tables import given, setting, table
from wsgigate.rules.outlier import OutlierRules

__all__ = ["ServiceOutlier", "outlier_rules"]


@table
class ServiceOutlier:
    """When an instance is left out for a while, judged by its answers."""

    consecutive_failures: int | None = setting(
        Integer(0), "Failures in a row after which it is; 0 for no such rule.", default=None
    )
    eject_for: float | None = setting(
        Duration(), "How long at first; each time as much longer.", default=None
    )
    eject_at_most: float | None = setting(Duration(), "How long at most.", default=None)
    most_ejected: float | None = setting(
        Number(0, 1), "The share of the instances that may be left out at once.", default=None
    )
    success_rate: bool | None = setting(
        Flag(), "Whether who answers markedly less often than the others is too.", default=None
    )
    least_instances: int | None = setting(
        Integer(1), "Instances below which that is not judged.", default=None
    )
    least_requests: int | None = setting(
        Integer(1), "Requests of ten seconds that an instance is judged by at least.", default=None
    )
    deviations: float | None = setting(
        Number(0.1, 100), "How many standard deviations below the others it is.", default=None
    )


def outlier_rules(options: ServiceOutlier) -> OutlierRules:
    """Return the rules that *options* describe: 0 is no rule.

    :raises ValueError: They contradict each other; says how.
    """
    settings = given(options)
    if settings.get("consecutive_failures") == 0:
        settings["consecutive_failures"] = None
    return OutlierRules(**settings)
