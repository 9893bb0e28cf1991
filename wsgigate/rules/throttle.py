"""Throttling of token guessing: counts invalid tokens per client address.

New tokens are counted, not requests. Services behind one address (NAT) that go on using replaced
tokens send the same few repeatedly, which count once an hour; an attacker sends a new one each
time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "MARK_BYTES",
    "MEMORY",
    "GuessRules",
    "Guesses",
]


MEMORY = 3600.0
"""Seconds for which a wrong token is remembered, and does not count again."""

MOST_KNOWN = 64
"""The number of wrong tokens that are remembered per address."""

MARK_BYTES = 4
"""Bytes of a token's digest that are kept: enough to distinguish tokens, useless to find one."""

_ENTRY = struct.Struct(f">d{MARK_BYTES}s")


@dataclass(frozen=True, slots=True)
class GuessRules:
    """The limit of wrong tokens per address.

    :param most: New wrong tokens within *window*, 1 to 64.
    :param window: Seconds that a wrong token counts for, at most an hour.
    :raises ValueError: An argument is invalid; the message names it.
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
        """Return the record that :meth:`to_bytes` wrote; an empty one for other bytes."""
        if not raw or len(raw) % _ENTRY.size:
            return cls()
        return cls(tuple((at, mark) for at, mark in _ENTRY.iter_unpack(raw)))

    def to_bytes(self) -> bytes:
        """Return the record as the bytes that workers share."""
        return b"".join(_ENTRY.pack(at, mark) for at, mark in self.entries)

    def wait(self, now: float, rules: GuessRules) -> float:
        """Return the seconds until another token is verified; 0 when that is now."""
        live = [at for at, _ in self.entries if 0 <= now - at < rules.window]
        return 0.0 if len(live) < rules.most else live[0] + rules.window - now

    def after(self, mark: bytes, now: float, rules: GuessRules) -> Guesses:
        """Return the record after the wrong token *mark*, which is not counted while waiting."""
        # A clock that was set back must not block an address: entries in the future are dropped.
        known = tuple(each for each in self.entries if 0 <= now - each[0] < MEMORY)
        if any(mark == each for _, each in known) or self.wait(now, rules) > 0:
            return self if len(known) == len(self.entries) else Guesses(known)
        return Guesses((*known[1 - MOST_KNOWN :], (now, mark)))
