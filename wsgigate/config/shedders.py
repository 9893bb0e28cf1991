"""Load shedding in the file."""

from __future__ import annotations

from wsgigate.config.kinds import Duration, Flag, Integer, Number
from wsgigate.config.tables import given, setting, table
from wsgigate.rules.shedding import SheddingRules

__all__ = ["ShedderOptions", "shedding_rules"]


@table
class ShedderOptions:
    """Refuse what a worker can not answer in good time."""

    enabled: bool | None = setting(
        Flag(), "Whether it does anything; false passes every request on.", default=None
    )
    least: int | None = setting(
        Integer(1), "Requests that may always be under way in a worker.", default=None
    )
    most: int | None = setting(Integer(1), "Requests that may be under way at most.", default=None)
    tolerance: float | None = setting(
        Number(0, 100),
        "By which share answers may take longer than when there is no load.",
        default=None,
    )
    window: float | None = setting(Duration(), "How often the limit is worked out.", default=None)
    window_requests: int | None = setting(
        Integer(1, 500), "Answers that it takes at least.", default=None
    )
    measure_every: float | None = setting(
        Duration(), "How often it is measured what answers take without load.", default=None
    )
    measure_requests: int | None = setting(
        Integer(1, 500), "Answers that it is measured by.", default=None
    )
    jitter: float | None = setting(
        Number(0, 1), "By up to which share that is put off, by chance.", default=None
    )


def shedding_rules(options: ShedderOptions) -> SheddingRules:
    """Return the rules that *options* describe.

    :raises ValueError: They contradict each other; says how.
    """
    return SheddingRules(**given(options, without=("enabled",)))
