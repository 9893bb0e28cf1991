"""One verdict that all workers agree on: kept in the store, changed in one step by any of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from logging import INFO, WARNING
from typing import TypeVar

from wsgigate.clocks import steady
from wsgigate.repeated import ChangeLog, Trouble
from wsgigate.rules.circuit import State, Verdict, bounded, pack, unpack
from wsgigate.rules.circuit_rules import CircuitRules
from wsgigate.store import Store, StoreError, update
from wsgigate.store.forking import rest_at_fork

__all__ = ["SharedVerdict"]

R = TypeVar("R")

_KEPT = 60.0  # seconds for which a verdict is kept when it no longer matters
_log = logging.getLogger("wsgigate.circuits")


class SharedVerdict:
    """The verdict on a circuit, as this worker knows it.

    :param name: The circuit's name, for the log.
    :param store: Where the workers meet; ``None`` for this process alone.
    :param key: Its key in the store.
    :param interval: Seconds after which it is read again.
    :param clock: The time of the circuit's clock.
    :param replaced: Called, with the lock held, with a verdict of another generation.
    :ivar verdict: What is known; immutable, so it is read without the lock.
    :ivar ahead: By how many seconds the store's clock is ahead of ours.
    :ivar sync_at: When it is to be read again.
    :ivar lock: Held to change what is known; never while the store is asked.
    :ivar errors: How often the store has failed.
    """

    def __init__(
        self,
        name: str,
        rules: CircuitRules,
        store: Store | None,
        key: str,
        *,
        interval: float,
        replaced: Callable[[Verdict], object],
        clock: Callable[[], float] = steady,
    ) -> None:
        self.verdict = Verdict()
        self.ahead = 0.0
        self.sync_at = float("inf") if store is None else float("-inf")
        self.lock = threading.RLock()
        self.errors = 0
        self._name = name
        self._rules = rules
        self._store = store
        self._key = key
        self._interval = interval
        self._replaced = replaced
        self._raw: bytes | None = None  # what the verdict was read from, or written as
        self._sets = 0  # how often it was replaced
        self._unshared = False  # whether the store has not heard of it
        self._down_until = float("-inf")
        self._changes = ChangeLog(_log, clock=clock)
        self._trouble = Trouble(
            _log, "Circuit %r is shared with other workers again, after %.0f s", name, clock=clock
        )
        rest_at_fork(self)

    def before_fork(self) -> None:
        """Do nothing: that the lock is held is enough."""

    def after_unseen_fork(self) -> None:
        """Do nothing: the lock is another one already."""

    @property
    def shared(self) -> bool:
        """Whether the store has heard of the verdict."""
        return not self._unshared

    def change(
        self,
        make: Callable[[Verdict, float], tuple[Verdict, R]],
        now: float,
        *,
        insist: bool = False,
    ) -> R:
        """Replace the shared verdict by what *make* makes of it; return its result.

        Without a store, or while it fails, the change is this worker's own until it can be shared.

        :param make: ``make(verdict, moment) -> (verdict, result)``, pure: it may be called more
            than once. The verdict it was given, returned as it is, changes nothing.
        :param insist: Ask the store even if it has failed just now.
        """
        store, rules = self._store, self._rules
        if store is None or (now < self._down_until and not insist):
            return self._change_alone(make, now)
        with self.lock:
            known, known_raw, unshared = self.verdict, self._raw, self._unshared

        def step(
            old: bytes | None, moment: float
        ) -> tuple[bytes | None, float, tuple[Verdict, Verdict, bytes | None, float, R]]:
            ours = old is None or old == known_raw  # nobody has changed it meanwhile
            before = bounded(known, moment, rules) if ours else unpack(old, moment, rules)
            after, result = make(before, moment)
            if after is before and not (ours and unshared):
                return old, 0.0, (before, after, old, moment, result)
            raw = pack(after)
            ttl = max(0.0, after.until - moment) + _KEPT
            return raw, ttl, (before, after, raw, moment, result)

        try:
            before, after, raw, moment, result = update(store, self._key, step)
        except StoreError as error:
            self._fail(error, now)
            return self._change_alone(make, now)
        self._trouble.ended()
        with self.lock:
            self.ahead = moment - now
            if after.generation >= self.verdict.generation:  # else another thread was faster
                self._set(after, raw)
        self._tell(before, after)
        return result

    def sync(self, now: float, *, insist: bool = False) -> None:
        """Read the verdict if it is time, in one thread; share ours if the store has not heard.

        :param insist: Read it although it is not time.
        """
        store = self._store
        with self.lock:
            if store is None or (now < self.sync_at and not insist):
                return
            self.sync_at = now + self._interval
            sets = self._sets
        try:
            raw, moment = store.get(self._key)
        except StoreError as error:
            self._fail(error, now)
            return
        self._trouble.ended()
        self._changes.flush()
        with self.lock:
            if self._sets != sets:
                return  # what was read may be older than what is known by now
            self.ahead = moment - now
            if raw is None or raw == self._raw:
                self._raw = raw
                self.verdict = bounded(self.verdict, moment, self._rules)
            else:
                self._set(unpack(raw, moment, self._rules), raw)
            unshared = self._unshared
        if unshared:
            self.change(lambda verdict, _moment: (verdict, None), now)

    def _change_alone(self, make: Callable[[Verdict, float], tuple[Verdict, R]], now: float) -> R:
        with self.lock:
            moment = now + self.ahead
            before = bounded(self.verdict, moment, self._rules)
            after, result = make(before, moment)
            if after is not before:
                self._set(after, self._raw)
                self._unshared = self._store is not None
        self._tell(before, after)
        return result

    def _set(self, verdict: Verdict, raw: bytes | None) -> None:
        if verdict.generation != self.verdict.generation:
            self._replaced(verdict)
        self.verdict, self._raw = verdict, raw
        self._unshared = False
        self._sets += 1

    def _tell(self, before: Verdict, after: Verdict) -> None:
        """Log a step. Of all workers only the one whose change the store has taken gets here."""
        if before.state is after.state:
            return
        log, name = self._changes.log, self._name
        if after.state is State.OPEN:
            wait = after.until - after.since
            log(WARNING, name, "Circuit %r opened for %.1f s: %s", name, wait, after.why)
        elif after.state is State.HALF_OPEN:
            log(INFO, name, "Circuit %r is half-open, probes pass: %s", name, after.why)
        else:
            log(WARNING, name, "Circuit %r closed: %s", name, after.why)

    def _fail(self, error: StoreError, now: float) -> None:
        with self.lock:
            self.errors += 1
            self._down_until = now + self._interval
        self._trouble.failed("Circuit %r is not shared with other workers: %s", self._name, error)
