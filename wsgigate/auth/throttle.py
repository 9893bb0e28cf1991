"""Throttles wrong registry tokens by the address they come from, exactly across all workers.

An address that has presented too many new wrong tokens gets 429 until the oldest one no
longer counts, whatever it presents: otherwise a guess that is right would be told from one that is
wrong, and nothing would be won. One exception keeps services behind a shared address (NAT, a proxy
that is not trusted) at work: a right token that was presented from this address before goes on
being accepted. Other addresses never notice.

Both records are in the store. While it fails, each worker counts for itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import blake2b
from math import ceil

from wsgigate.http.problem import Problem, Refusal
from wsgigate.rules.throttle import MARK_BYTES, MEMORY, Guesses, GuessRules
from wsgigate.store import Store, StoreError, update

__all__ = ["TokenGuard"]


SEEN = 7 * 86_400.0
"""Seconds for which it is known that an address has presented a right token."""

FRESH = 600.0
"""Seconds for which a worker does not look again: it has seen the token from that address."""

_MOST_FRESH = 10_000

_MOST_ALONE = 10_000

_MOST_MARKS = 16
"""How many right tokens of one address are remembered."""


class TokenGuard:
    """Counts wrong tokens.

    :param store: Where the workers meet.
    :param prefix: What the keys of the registry begin with in the store.
    :param rules: How many wrong tokens an address may present.
    :param clock: Seconds of a clock that never steps back.
    """

    def __init__(
        self,
        store: Store,
        *,
        prefix: str = "registry/",
        rules: GuessRules = GuessRules(),  # noqa: B008 - it is frozen
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        # among the counters, which a full store gives up first: anybody can add to them
        self._wrong = f"limit/tokens/{prefix}"
        self._right = f"{prefix}right/"
        self._rules = rules
        self._clock = clock
        self._alone: dict[str, Guesses] = {}
        self._fresh: dict[tuple[str, bytes], float] = {}

    def right(self, address: str, token: bytes) -> None:
        """Take note of a right token from *address*.

        :raises Refusal: The address has presented too many wrong ones, and this one never: 429.
        """
        mark, now = _mark(token), self._clock()
        key = (address, mark)
        if now < self._fresh.get(key, 0.0):
            return
        wait = self._wait(address)
        if wait > 0 and mark not in self._seen(address):
            raise _too_many(wait)
        self._remember(address, mark)
        if len(self._fresh) >= _MOST_FRESH:
            self._fresh.clear()
        self._fresh[key] = now + FRESH

    def wrong(self, address: str, token: bytes) -> None:
        """Count a wrong token from *address*.

        :raises Refusal: It has presented too many: 429.
        """
        mark, rules = _mark(token), self._rules

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, float]:
            before = Guesses.from_bytes(old)
            wait = before.wait(now, rules)
            after = before.after(mark, now, rules)
            return (old if after is before else after.to_bytes()), MEMORY, wait

        try:
            wait = update(self._store, self._wrong + address, change)
        except StoreError:
            now = self._clock()
            alone = self._alone.get(address, Guesses())
            wait = alone.wait(now, rules)
            if len(self._alone) >= _MOST_ALONE and address not in self._alone:
                self._alone.clear()
            self._alone[address] = alone.after(mark, now, rules)
        if wait > 0:
            raise _too_many(wait)

    def _wait(self, address: str) -> float:
        try:
            raw, now = self._store.get(self._wrong + address)
        except StoreError:
            return self._alone.get(address, Guesses()).wait(self._clock(), self._rules)
        return Guesses.from_bytes(raw).wait(now, self._rules)

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
            pass  # it is remembered in this process, and the next time that it is presented


def _mark(token: bytes) -> bytes:
    return blake2b(token, digest_size=MARK_BYTES).digest()


def _marks(raw: bytes | None) -> tuple[bytes, ...]:
    raw = raw or b""
    return tuple(raw[at : at + MARK_BYTES] for at in range(0, len(raw), MARK_BYTES))


def _too_many(wait: float) -> Refusal:
    seconds = max(1, ceil(wait))
    return Refusal(
        Problem(
            429,
            "Too many wrong registry tokens!",
            headers=(("Retry-After", str(seconds)),),
            extensions={"retryAfter": seconds},
        ),
        "too many wrong registry tokens from this address",
    )
