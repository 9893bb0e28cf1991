"""Wrong tokens, counted by the address they come from: pure rules, time as an argument.

What is counted is new tokens, not requests. Services behind one address (NAT) that go on with
tokens that were replaced present the same few again and again, which count once an hour; a guesser
presents a new one each time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["GuessRules", "Guesses"]


MEMORY = 3600.0
"""Seconds for which a wrong token is known, and does not count again."""

MOST_KNOWN = 64
"""How many wrong tokens of an address are known."""

MARK_BYTES = 4
"""Bytes of a token's digest that are kept: enough to tell tokens apart, useless to find one."""

_ENTRY = struct.Struct(f">d{MARK_BYTES}s")


@dataclass(frozen=True, slots=True)
class GuessRules:
    """How many wrong tokens an address may present.

    :param most: New wrong tokens within *window*, 1 to 64.
    :param window: Seconds that a wrong token counts for, at most an hour.
    :raises ValueError: A setting is out of its range; names it.
    """

    most: int = 10
    window: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.most <= MOST_KNOWN:
            raise ValueError(f"most is 1 to {MOST_KNOWN} wrong tokens, got {self.most!r}")
        if not 0 < self.window <= MEMORY:
            raise ValueError(f"window is more than 0 s and at most an hour, got {self.window!r}")


class Guesses(NamedTuple):
    """The wrong tokens of one address, oldest first: when each was counted."""

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
        live = [at for at, _ in self.entries if 0 <= now - at < rules.window]
        return 0.0 if len(live) < rules.most else live[0] + rules.window - now

    def after(self, mark: bytes, now: float, rules: GuessRules) -> Guesses:
        """Return the record after the wrong token *mark*, which is not counted while waiting."""
        # a clock that was set back must not lock anybody out: what is in the future is forgotten
        known = tuple(each for each in self.entries if 0 <= now - each[0] < MEMORY)
        if any(mark == each for _, each in known) or self.wait(now, rules) > 0:
            return self if len(known) == len(self.entries) else Guesses(known)
        return Guesses((*known[1 - MOST_KNOWN :], (now, mark)))
