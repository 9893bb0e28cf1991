"""Throttling of wrong registry and admin tokens by client address, exact across all workers.

Rules:

- New tokens are counted, not requests. Services behind one address (NAT) that go on using replaced
  tokens send the same few repeatedly, which count once an hour; an attacker sends a new one each
  time.
- An address that has sent too many different wrong tokens gets 429 until the oldest one expires,
  also for a valid token. Otherwise an attacker could recognize a correct guess by its status, and
  throttling would be useless.
- One exception keeps services behind a shared address (NAT, a proxy that is not trusted) working: a
  valid token that this address has used before is still accepted.
- Other addresses are not affected.

Both records are in the store. While it fails, each worker counts by itself.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil
from typing import NamedTuple

from wsgigate.http.problem import Problem, Refusal
from wsgigate.store import Store, StoreError, update

__all__ = ["FailureCounter", "GuessRules", "Guesses", "TokenGuard"]


# The decision: pure functions of the wrong tokens of an address and the time.

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


# The guard, with its records in the store.


SEEN = 7 * 86_400.0
"""Seconds for which the valid tokens of an address are remembered."""

FRESH = 600.0
"""Seconds for which a worker caches that an address has used a token, without the store."""

_MOST_FRESH = 10_000

_MOST_ALONE = 10_000

_MOST_MARKS = 16
"""Maximum number of valid tokens that are remembered per address."""


class FailureCounter:
    """Counts failures per address in the store, and in this process alone while the store fails.

    :param store: The store that all workers share.
    :param prefix: The prefix of its keys after that of the counters, which a full store evicts
        first, as any client can add to them.
    :param rules: How many failures an address may cause.
    :param clock: Returns a monotonic time in seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        prefix: str,
        rules: GuessRules = GuessRules(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._prefix = f"limit/tokens/{prefix}"
        self._rules = rules
        self._clock = clock
        self._alone: dict[str, Guesses] = {}

    def wait(self, address: str) -> float:
        """Return the seconds until *address* may try again; 0 when that is now."""
        try:
            raw, now = self._store.get(self._prefix + address)
        except StoreError:
            return self._alone.get(address, Guesses()).wait(self._clock(), self._rules)
        return Guesses.from_bytes(raw).wait(now, self._rules)

    def add(self, address: str, mark: bytes) -> float:
        """Count a failure of *address*, once per *mark*; return the seconds to wait before it."""
        rules = self._rules

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, float]:
            before = Guesses.from_bytes(old)
            wait = before.wait(now, rules)
            after = before.after(mark, now, rules)
            return (old if after is before else after.to_bytes()), MEMORY, wait

        try:
            wait: float = update(self._store, self._prefix + address, change)
        except StoreError:
            now = self._clock()
            alone = self._alone.get(address, Guesses())
            wait = alone.wait(now, rules)
            if len(self._alone) >= _MOST_ALONE and address not in self._alone:
                self._alone.clear()
            self._alone[address] = alone.after(mark, now, rules)
        return wait


class TokenGuard:
    """Counts wrong tokens per address.

    :param store: The store that all workers share.
    :param prefix: The prefix of its keys in the store.
    :param called: What the tokens are called in responses.
    :param rules: How many wrong tokens an address may send.
    :param clock: Returns a monotonic time in seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        prefix: str = "registry/",
        called: str = "registry tokens",
        rules: GuessRules = GuessRules(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._wrong = FailureCounter(store, prefix=prefix, rules=rules, clock=clock)
        self._right = f"{prefix}right/"
        self._called = called
        self._clock = clock
        self._fresh: dict[tuple[str, bytes], float] = {}

    def record_valid(self, address: str, token: bytes) -> None:
        """Record a valid token from *address*.

        :raises Refusal: 429 after too many wrong tokens, unless the address has used this one.
        """
        mark, now = _mark(token), self._clock()
        key = (address, mark)
        if now < self._fresh.get(key, 0.0):
            return
        wait = self._wrong.wait(address)
        if wait > 0 and mark not in self._seen(address):
            raise _too_many(wait, self._called)
        self._remember(address, mark)
        if len(self._fresh) >= _MOST_FRESH:
            self._fresh.clear()
        self._fresh[key] = now + FRESH

    def record_wrong(self, address: str, token: bytes) -> None:
        """Count a wrong token from *address*.

        :raises Refusal: 429, if the address has sent too many.
        """
        wait = self._wrong.add(address, _mark(token))
        if wait > 0:
            raise _too_many(wait, self._called)

    def _seen(self, address: str) -> tuple[bytes, ...]:
        try:
            raw = self._store.get(self._right + address)[0]
        except StoreError:
            return ()
        return _marks(raw)

    def _remember(self, address: str, mark: bytes) -> None:
        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, None]:
            others = [each for each in _marks(old) if each != mark]
            return b"".join((*others[1 - _MOST_MARKS :], mark)), SEEN, None

        try:
            update(self._store, self._right + address, change)
        except StoreError:
            pass  # this process caches it, and the next use records it again


def _mark(token: bytes) -> bytes:
    return blake2b(token, digest_size=MARK_BYTES).digest()


def _marks(raw: bytes | None) -> tuple[bytes, ...]:
    raw = raw or b""
    return tuple(raw[at : at + MARK_BYTES] for at in range(0, len(raw), MARK_BYTES))


def _too_many(wait: float, called: str) -> Refusal:
    seconds = max(1, ceil(wait))
    return Refusal(
        Problem(
            429,
            f"Too many wrong {called}!",
            headers=(("Retry-After", str(seconds)),),
            extensions={"retryAfter": seconds},
        ),
        f"too many wrong {called} from this address",
    )
