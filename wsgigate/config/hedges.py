"""Hedging in the file: when a request that only reads is made once more beside itself."""

from __future__ import annotations

from wsgigate.config.kinds import Duration, Integer, Text
from wsgigate.config.tables import Either, given, setting, table
from wsgigate.rules.hedge import HedgeRules

__all__ = ["ServiceHedge", "hedge_rules"]


def _is_quantile(value: object) -> bool:
    return isinstance(value, str) and value.startswith("p")


@table
class ServiceHedge:
    """When a request that only reads is made once more beside itself."""

    after: float | str | None = setting(
        Either(
            _is_quantile,
            Text('a share of the answers such as "p95"', pattern=r"p[1-9][0-9](?:\.[0-9])?"),
            Duration(),
        ),
        'After how long without an answer: "200ms", or "p95" for what 95 % of them took lately.',
        default=None,
    )
    most: int | None = setting(
        Integer(1, 5), "How many tries there are beside the first one.", default=None
    )


def hedge_rules(options: ServiceHedge) -> HedgeRules:
    """Return the rules that *options* describe.

    :raises ValueError: A setting is out of its range; says which.
    """
    return HedgeRules(**given(options))
