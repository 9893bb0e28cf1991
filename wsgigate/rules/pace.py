"""The least rate at which an instance must send the body of a response.

An instance that sends a byte per second is never silent for long, so no timeout for a single read
ends its response, and each such response occupies a thread of the gateway. Only the time for which
the gateway waits for the instance counts: while a client reads slowly, the instance's bytes wait in
buffers and the gateway does not wait for the instance.

Event streams are slow by design. They are recognized by their media type, or by
``X-Accel-Buffering: no``, which disables the buffering of a stream in proxies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from wsgigate.rules.arguments import Seconds, Trait

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
    """The least rate of a body, and the most time that the gateway waits for it.

    :param least: Bytes per second on average, 0 for no limit: this many bytes earn one second.
    :param grace: Seconds of waiting before the rate counts; at least the read timeout.
    :param total: Seconds of waiting for the whole body; ``None`` for no limit.
    :raises ValueError: An argument is invalid; the message names it.
    """

    least: Annotated[float, Trait.BYTES] = 100.0
    grace: float = 30.0
    total: Seconds | None = None

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
        """Whether there is any limit."""
        return self.least > 0 or self.total is not None

    def allowance(self, received: int, grace: float) -> float:
        """Return the seconds for which the gateway may have waited after *received* bytes."""
        earned = grace + received / self.least if self.least else math.inf
        return earned if self.total is None else min(earned, self.total)


class Pace:
    """The rate of one body.

    :param rules: The limits.
    :param read_timeout: Seconds that a single read may take: a silence within that timeout must not
        count as too slow.
    """

    __slots__ = ("_grace", "_rules", "received", "waited")

    def __init__(self, rules: PaceRules, read_timeout: float) -> None:
        self._rules = rules
        self._grace = max(rules.grace, read_timeout)
        self.waited = 0.0
        """Seconds for which the gateway has waited for the body."""
        self.received = 0
        """Bytes of the body that have arrived."""

    def left(self) -> float:
        """Return the seconds for which the gateway may wait; 0 or less when it is too slow."""
        return self._rules.allowance(self.received, self._grace) - self.waited


def is_stream(fields: Iterable[tuple[str, str]]) -> bool:
    """Return whether response *fields* are those of an event stream."""
    for name, value in fields:
        lower = name.lower()
        if lower == "content-type":
            kind = value.partition(";")[0].strip().lower()
            if kind in _STREAMS or kind.startswith("application/grpc"):
                return True
        elif lower == "x-accel-buffering" and value.strip().lower() == "no":
            return True
    return False
