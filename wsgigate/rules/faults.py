"""Which requests are spoiled on purpose, and in which way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from wsgigate.rules.arguments import checked

__all__ = ["Fault", "FaultRules"]

LONGEST = 60.0
"""Seconds of the longest delay."""


class Fault(NamedTuple):
    """What is done to one request.

    :ivar delay: Seconds for which it waits.
    :ivar status: What it is answered with instead; ``None`` to pass it on.
    """

    delay: float = 0.0
    status: int | None = None


@checked
@dataclass(frozen=True)
class FaultRules:
    """What is done to how many requests.

    :param delay: Seconds for which a request waits, at most 60.
    :param delay_percent: How many in a hundred wait.
    :param abort_status: What a request is answered with, 400 to 599.
    :param abort_percent: How many in a hundred are answered so; whether it also waits is drawn
        apart from that.
    :raises ValueError: One of them is out of its range, or nothing would ever be done; says which.
    """

    delay: float = 0.0
    delay_percent: float = 0.0
    abort_status: int = 503
    abort_percent: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.delay <= LONGEST:
            raise ValueError(f"delay: 0 to {LONGEST:g} seconds, not {self.delay}")
        for name in ("delay_percent", "abort_percent"):
            if not 0 <= getattr(self, name) <= 100:
                raise ValueError(f"{name}: a number from 0 to 100, not {getattr(self, name)}")
        if not 400 <= self.abort_status <= 599:
            raise ValueError(f"abort_status: one from 400 to 599, not {self.abort_status}")
        if bool(self.delay) != bool(self.delay_percent):
            raise ValueError("delay_percent: goes together with delay, both above 0")
        if not (self.delay_percent or self.abort_percent):
            raise ValueError("abort_percent: nothing would ever be done; or give delay_percent")

    def draw(self, first: float, second: float) -> Fault:
        """Return what is done to a request.

        :param first: A number in [0, 1) that decides about the delay.
        :param second: One that decides about the abort.
        """
        delay = self.delay if first * 100 < self.delay_percent else 0.0
        status = self.abort_status if second * 100 < self.abort_percent else None
        return Fault(delay, status)
