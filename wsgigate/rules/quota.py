"""How many requests a caller may make, decided one at a time.

The state of a caller is a few bytes that a store keeps between decisions. Bytes that the algorithm
did not write itself count as none, and moments in them are bounded by the quota's period: a clock
that is set back locks nobody out for longer than that.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import NamedTuple, Protocol

__all__ = ["ALGORITHMS", "Algorithm", "FixedWindow", "Quota", "TokenBucket", "Verdict"]

_UNITS = {
    1: ("s", "sec", "secs", "second", "seconds"),
    60: ("m", "min", "mins", "minute", "minutes"),
    3600: ("h", "hr", "hrs", "hour", "hours"),
    86400: ("d", "day", "days"),
    604800: ("w", "week", "weeks"),
}
_SECONDS = {name: seconds for seconds, names in _UNITS.items() for name in names}
_WRITTEN = re.compile(
    r"(?P<limit>[0-9][0-9_]*)\s*(?:requests?\s*)?(?:/|\bper\b)\s*"
    r"(?P<count>[0-9][0-9_]*(?:\.[0-9]+)?)?\s*(?P<unit>[a-z]+)",
    re.IGNORECASE | re.ASCII,
)

LONGEST = 3660 * 86400.0
LARGEST = 1_000_000_000


@dataclass(frozen=True)
class Quota:
    """*limit* requests per *period* seconds.

    :param limit: How many requests, 1 to 1,000,000,000.
    :param period: In how many seconds, a millisecond to ten years.
    :raises ValueError: One of them is out of its range.
    """

    limit: int
    period: float

    def __post_init__(self) -> None:
        if not isinstance(self.limit, int) or isinstance(self.limit, bool):
            raise ValueError(f"a quota's limit is a whole number, not {self.limit!r}")
        if not 1 <= self.limit <= LARGEST:
            raise ValueError(f"a quota's limit is 1 to {LARGEST:_}, not {self.limit}")
        if not isinstance(self.period, int | float) or isinstance(self.period, bool):
            raise ValueError(f"a quota's period is a number of seconds, not {self.period!r}")
        if not 0.001 <= self.period <= LONGEST:
            raise ValueError(f"a quota's period is 0.001 s to ten years, not {self.period:g} s")

    @classmethod
    def parse(cls, text: str) -> Quota:
        """Return the quota that *text* describes: ``100 per 15 minutes``, ``100/15m``, ``10/s``.

        :raises ValueError: It describes none; says what is wrong with it.
        """
        found = _WRITTEN.fullmatch(text.strip()) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f'a quota is written "100 per 15 minutes" or "100/15m", not {text!r}')
        unit = found["unit"].lower()
        if unit not in _SECONDS:
            hint = ", as its length varies; count days" if unit[:5] in ("month", "year") else ""
            raise ValueError(
                f"the quota {text!r} counts in {found['unit']!r}, "
                f"which is not one of s, m, h, d, w or their names{hint}"
            )
        try:
            limit, count = int(found["limit"]), float(found["count"] or 1)
        except ValueError:
            raise ValueError(f"the quota {text!r} has a number that cannot be read") from None
        try:
            return cls(limit, count * _SECONDS[unit])
        except ValueError as error:
            raise ValueError(f"the quota {text!r} cannot be had: {error}") from None

    def __str__(self) -> str:
        seconds = next((unit for unit in reversed(_UNITS) if self.period % unit == 0), 1)
        name, count = _UNITS[seconds][-1], self.period / seconds
        if count == 1:
            return f"{self.limit} per {name.removesuffix('s')}"
        return f"{self.limit} per {int(count) if count.is_integer() else count!r} {name}"


class Verdict(NamedTuple):
    """What was decided about one request, and how its caller stands after it."""

    allowed: bool
    limit: int
    remaining: int
    """How many more requests would be allowed now."""
    reset_after: float
    """In how many seconds all of the quota is there again."""
    retry_after: float
    """In how many seconds the next request is allowed; 0 while some remain.

    After a refusal: in how many seconds the refused one would be.
    """


class Algorithm(Protocol):
    """A way to count requests against a quota."""

    def __init__(self, quota: Quota) -> None: ...

    def take(
        self, old: bytes | None, now: float, cost: int = 1
    ) -> tuple[bytes | None, float, Verdict]:
        """Decide about a request of *cost* at *now*, given the caller's state *old*.

        :returns: The new state (*old* itself if it stays as it is), how many seconds it is needed,
            and the verdict.
        :raises ValueError: *cost* is negative, or more than the limit, so that it could never pass.
        """


def _check_cost(cost: int, limit: int) -> None:
    if not 0 <= cost <= limit:
        raise ValueError(f"a request may cost 0 to {limit}, which is the limit, not {cost}")


class TokenBucket:
    """A bucket of *limit* tokens that fills evenly, by the generic cell rate algorithm.

    The state is one moment: when the bucket is full again. It is counted in nanoseconds times the
    limit, in which a token is a whole number: nothing is lost to rounding, so never one too many
    passes. (ITU-T I.371, the virtual scheduling algorithm.)

    :param quota: How many tokens there are, and in how many seconds an empty bucket fills.
    """

    _TAG = b"g"

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._limit = quota.limit
        self._token = max(1, round(quota.period * 1e9))
        self._bucket = self._token * quota.limit
        self._second = 1e9 * quota.limit

    def take(
        self, old: bytes | None, now: float, cost: int = 1
    ) -> tuple[bytes | None, float, Verdict]:
        limit, token, bucket = self._limit, self._token, self._bucket
        if cost != 1:
            _check_cost(cost, limit)
        time = int(now * 1e9) * limit
        full, state = time, old
        if old is not None and len(old) == 17 and old[:1] == b"g":
            full = int.from_bytes(old[1:], "big", signed=True)
            if full < time:
                full = time
            elif full > time + bucket:  # the clock was set back
                full = time + bucket
                state = None
        room = time + bucket - full
        asked = cost * token
        allowed = room >= asked
        if allowed and cost:
            full += asked
            room -= asked
            state = None
        if state is None and full > time:
            state = b"g" + full.to_bytes(16, "big", signed=True)
        lacking = (token if allowed else asked) - room
        second = self._second
        reset_after = (full - time) / second
        return (
            state,
            reset_after + 0.001,  # no state may be lost to rounding before its time
            Verdict(
                allowed,
                limit,
                room // token,
                reset_after,
                lacking / second if lacking > 0 else 0.0,
            ),
        )


class FixedWindow:
    """A count that starts with the caller's first request and is forgotten a period later.

    Around the end of a window up to twice the limit may pass in a short time.

    :param quota: How many requests a window holds, and how long it is.
    """

    _STATE = struct.Struct(">cdQ")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._limit = quota.limit
        self._period = float(quota.period)

    def take(
        self, old: bytes | None, now: float, cost: int = 1
    ) -> tuple[bytes | None, float, Verdict]:
        limit, period = self._limit, self._period
        if cost != 1:
            _check_cost(cost, limit)
        start, count, state = now, 0, old
        if old is not None and len(old) == 17:
            tag, began, counted = self._STATE.unpack(old)
            if tag == b"w" and counted <= limit and began + period > now:
                start, count = began, counted
                if began > now:  # the clock was set back
                    start, state = now, None
        allowed = count + cost <= limit
        if allowed and cost:
            count += cost
            state = None
        if state is None and count:
            state = self._STATE.pack(b"w", start, count)
        reset_after = start + period - now if count else 0.0
        waits = not allowed or count == limit
        return (
            state,
            reset_after + 0.001,
            Verdict(allowed, limit, limit - count, reset_after, reset_after if waits else 0.0),
        )


ALGORITHMS: dict[str, type[Algorithm]] = {
    "token-bucket": TokenBucket,
    "fixed-window": FixedWindow,
}
"""The algorithms by the names that settings use."""
