"""Retries in the file: when a request to a service is made once more."""

from __future__ import annotations

from typing import Any

from wsgigate.config.kinds import Choice, Duration, Flag, Integer, Number, Size
from wsgigate.config.tables import ListOf, given, setting, table
from wsgigate.rules.budget import RetryBudget
from wsgigate.rules.retry import IDEMPOTENT, RetryRules

__all__ = ["ServiceRetry", "retry_budget", "retry_rules"]

_BUDGET = ("budget", "budget_floor")


@table
class ServiceRetry:
    """When a request is made once more: if it was not processed, or twice is as good as once."""

    attempts: int | None = setting(
        Integer(1, 10), "How many there are in all, the first among them.", default=None
    )
    backoff: float | None = setting(
        Duration(zero=True),
        "The wait before the first retry is drawn from 0 to that; each time twice as much.",
        default=None,
    )
    backoff_at_most: float | None = setting(
        Duration(zero=True), "The most it is drawn from.", default=None
    )
    methods: tuple[str, ...] | None = setting(
        ListOf(Choice(*IDEMPOTENT)),
        "The methods that are repeated although they may have been processed.",
        default=None,
    )
    statuses: tuple[int, ...] | None = setting(
        ListOf(Integer(500, 599)), "The statuses after which there is a retry.", default=None
    )
    idempotency_key: bool | None = setting(
        Flag(),
        "Whether the service keeps to Idempotency-Key, so that what has one can be repeated.",
        default=None,
    )
    retry_after_at_most: float | None = setting(
        Duration(zero=True), "The longest Retry-After that is waited for.", default=None
    )
    per_try_timeout: float | None = setting(
        Duration(), "How long each try may take until its answer begins.", default=None
    )
    buffer: int | None = setting(
        Size(), "How much of a request's body is kept to be sent again.", default=None
    )
    budget: float | None = setting(
        Number(0, 1), "Retries per request, over the last ten seconds.", default=None
    )
    budget_floor: float | None = setting(
        Number(0, 10_000), "Retries a second that there may be anyhow.", default=None
    )


def retry_rules(options: ServiceRetry) -> RetryRules:
    """Return the rules that *options* describe.

    :raises ValueError: They contradict each other; says how.
    """
    return RetryRules(**given(options, without=_BUDGET))


def retry_budget(options: ServiceRetry) -> RetryBudget:
    """Return the budget that *options* describe."""
    settings: dict[str, Any] = {"share": options.budget, "floor": options.budget_floor}
    return RetryBudget(**{key: value for key, value in settings.items() if value is not None})
