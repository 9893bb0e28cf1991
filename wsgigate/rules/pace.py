"""How slowly an instance may send the body of a response before it counts as failed.

An instance that sends a byte a second is never silent for long, so no timeout for a single read
ends its response, and each holds a thread of the gateway. What counts here is only the time for
which the gateway waits for the instance: a client that takes its response slowly has the bytes of
the instance wait, not the gateway, and costs it nothing.

Streams of events are slow by design. They are told by their media type, or by ``X-Accel-Buffering:
no``, with which an app asks proxies not to hold a stream back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Pace", "PaceRules", "is_stream"]

_LONGEST = 86_400.0 * 365
_MOST_RATE = 1 << 40

_STREAMS = frozenset(
    (
        "text/event-stream",
        "multipart/x-mixed-replace",
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/json-seq",
        "application/stream+json",
    )
)


@dataclass(frozen=True)
class PaceRules:
    """The least pace of a body, and the most time that it may be waited for.

    :param least: Bytes a second on average, 0 for any. Each of so many bytes earns a second.
    :param grace: Seconds of waiting that a body has before it has to have earned them; no less
        than what a single read may take.
    :param total: Seconds of waiting for all of the body; ``None`` for any.
    :raises ValueError: One of them is out of its range; says which.
    """

    least: float = 100.0
    grace: float = 30.0
    total: float | None = None

    def __post_init__(self) -> None:
        if type(self.least) not in (int, float) or not 0 <= self.least <= _MOST_RATE:
            raise ValueError(f"min_response_rate is 0 bytes a second or more, got {self.least!r}")
        if type(self.grace) not in (int, float) or not 0 < self.grace <= _LONGEST:
            raise ValueError(f"grace is more than 0 seconds, got {self.grace!r}")
        if self.total is not None and (
            type(self.total) not in (int, float) or not 0 < self.total <= _LONGEST
        ):
            raise ValueError(f"response_timeout is more than 0 seconds, got {self.total!r}")

    @property
    def limits(self) -> bool:
        """Whether there is anything to watch."""
        return self.least > 0 or self.total is not None

    def allowance(self, received: int, grace: float) -> float:
        """Return for how many seconds a body may have been waited for after *received* bytes."""
        earned = grace + received / self.least if self.least else math.inf
        return earned if self.total is None else min(earned, self.total)


class Pace:
    """The pace of one body.

    :param rules: What is too slow.
    :param read_timeout: Seconds that a single read may take: an instance that may be silent for
        that long is not too slow when it was.
    """

    __slots__ = ("_grace", "_rules", "received", "waited")

    def __init__(self, rules: PaceRules, read_timeout: float) -> None:
        self._rules = rules
        self._grace = max(rules.grace, read_timeout)
        self.waited = 0.0
        """Seconds for which it was waited for."""
        self.received = 0
        """Bytes of it that have come."""

    def left(self) -> float:
        """Return for how many seconds more it may be waited for; 0 or less when it is too slow."""
        return self._rules.allowance(self.received, self._grace) - self.waited


def is_stream(fields: Iterable[tuple[str, str]]) -> bool:
    """Return whether response *fields* are those of a stream of events, slow by design."""
    for name, value in fields:
        lower = name.lower()
        if lower == "content-type":
            kind = value.partition(";")[0].strip().lower()
            if kind in _STREAMS or kind.startswith("application/grpc"):
                return True
        elif lower == "x-accel-buffering" and value.strip().lower() == "no":
            return True
    return False
