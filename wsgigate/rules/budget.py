"""How many retries there may be: a share of all requests, so that they never make things worse.

Without a budget, a service that is slow because it has too much to do gets twice as much to do.
"""

from __future__ import annotations

import math

from wsgigate.rules.window import Window

__all__ = ["RetryBudget"]


class RetryBudget:
    """What retries may be made of all requests of the last seconds.

    A retry is allowed while retries are at most *share* of the requests of the last ten seconds, or
    while there were fewer than *floor* in the last second: so few harm nobody, and a service with
    little traffic has retries too. Not the sum of both: ten times the traffic is never more than
    its share.

    It belongs to all threads of a worker, and whoever calls it holds a lock.

    :param share: Retries per request, 0 to 1.
    :param floor: Retries per second that are allowed whatever the share says.
    :param period: Seconds that the share is taken over.
    :raises ValueError: A setting is out of its range; says which.
    """

    __slots__ = ("_floor", "_recent", "_requests", "_share")

    def __init__(self, share: float = 0.2, floor: float = 3.0, period: float = 10.0) -> None:
        for name, value, most in (("share", share, 1), ("floor", floor, 10_000)):
            if type(value) not in (int, float) or not 0 <= value <= most:
                raise ValueError(f"{name} is a number from 0 to {most}, got {value!r}")
        if type(period) not in (int, float) or not 0 < period < math.inf:
            raise ValueError(f"period is a number of seconds above 0, got {period!r}")
        self._share = share
        # Fewer than one a second is one in several seconds.
        self._floor = max(1.0, floor) if floor else 0.0
        self._requests = Window(period)
        self._recent = Window(max(1.0, 1.0 / floor) if floor else 1.0)

    def request(self, now: float) -> None:
        """Take note of a request, not of its retries."""
        self._requests.add(now, False)

    def take(self, now: float) -> bool:
        """Take one retry out of the budget; return whether there was one left."""
        requests, retries, _ = self._requests.at(now)
        requests -= retries  # those are counted in the same window
        if retries + 1 > self._share * requests and self._recent.at(now).calls + 1 > self._floor:
            return False
        self._requests.add(now, True)
        self._recent.add(now, False)
        return True
