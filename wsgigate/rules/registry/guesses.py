"""Wrong tokens, counted by the address they come from: pure rules, time as an argument.

What is counted is distinct tokens, not requests. A fleet behind one address (NAT) that goes on with
a token that was replaced presents one wrong token, however often; who guesses presents a new one
each time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["GuessRules", "Guesses"]

MARK_BYTES = 4
"""Bytes of a token's digest that are kept: enough to tell tokens apart, useless to find one."""

_ENTRY = struct.Struct(f">d{MARK_BYTES}s")


@dataclass(frozen=True, slots=True)
class GuessRules:
    """How many wrong tokens an address may present.

    :param most: Distinct wrong tokens within *window*, 1 to 1000.
    :param window: Seconds that a wrong token counts for.
    :raises ValueError: A setting is out of its range; names it.
    """

    most: int = 10
    window: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.most <= 1_000:
            raise ValueError(f"most is 1 to 1000 wrong tokens, got {self.most!r}")
        if not 0 < self.window <= 86_400:
            raise ValueError(f"window is more than 0 s and at most a day, got {self.window!r}")


class Guesses(NamedTuple):
    """The distinct wrong tokens of one address, oldest first: when each was last counted."""

    entries: tuple[tuple[float, bytes], ...] = ()

    @classmethod
    def from_bytes(cls, raw: bytes | None) -> Guesses:
        """Return what :meth:`to_bytes` wrote; nothing for anything else."""
        if not raw or len(raw) % _ENTRY.size:
            return cls()
        return cls(tuple((at, mark) for at, mark in _ENTRY.iter_unpack(raw)))

    def to_bytes(self) -> bytes:
        """Return the record as workers share it."""
        return b"".join(_ENTRY.pack(at, mark) for at, mark in self.entries)

    def wait(self, now: float, rules: GuessRules) -> float:
        """Return the seconds until a wrong token is looked at again, 0 when it is now."""
        live = self._live(now, rules)
        return 0.0 if len(live) < rules.most else live[0][0] + rules.window - now

    def after(self, mark: bytes, now: float, rules: GuessRules) -> Guesses:
        """Return the record after the wrong token *mark*, which is not counted while waiting."""
        live = self._live(now, rules)
        if len(live) >= rules.most or any(mark == each for _, each in live):
            return self if len(live) == len(self.entries) else Guesses(live)
        return Guesses((*live, (now, mark)))

    def _live(self, now: float, rules: GuessRules) -> tuple[tuple[float, bytes], ...]:
        # a clock that was set back must not lock anybody out: what is in the future is forgotten
        return tuple(each for each in self.entries if 0 <= now - each[0] < rules.window)
