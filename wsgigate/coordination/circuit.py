"""Circuits that all workers share: each counts its own calls, and they agree on the verdict.

A call through a closed circuit asks nobody but this process. What is shared is the verdict, a few
bytes in the store: read again twice a second, and changed in one step by whoever has a reason. So
of all workers of all machines, no more probe a service than its rules say.
"""

from __future__ import annotations

import logging
import random as _random
import re
import threading
from collections.abc import Callable
from logging import INFO, WARNING
from typing import NamedTuple, TypeVar

from wsgigate.rules.circuit import (
    CircuitRules,
    Event,
    Outcome,
    State,
    Tally,
    Verdict,
    acquire,
    bounded,
    move,
    pack,
    record_probe,
    trip,
    unpack,
)
from wsgigate.runtime.clocks import steady
from wsgigate.runtime.fork import quiesce_at_fork
from wsgigate.runtime.throttled_log import ChangeLog, Trouble
from wsgigate.store import Store, StoreError, update

__all__ = ["Circuit", "CircuitStatus", "Counts", "Permit", "Rejection", "SharedVerdict"]


# One verdict that all workers agree on: kept in the store, changed in one step by any of them.

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
        quiesce_at_fork(self)

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


_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")


class Rejection(NamedTuple):
    """A call that must not be made.

    :ivar retry_after: Seconds after which to ask again.
    """

    retry_after: float


class CircuitStatus(NamedTuple):
    """How a circuit stands: the state is shared, the counts are this worker's own.

    :ivar state: Whether calls pass.
    :ivar failures: Calls that have failed since the last one that was answered.
    :ivar successes: Calls that were answered, all in all.
    :ivar since_failure: Seconds since the last failure, ``None`` when this worker has seen none.
    :ivar since: When it came to this state, ``None`` before its first change; as the store tells
        the time, which *moment* is the present of.
    :ivar until: When an open circuit is probed again, or a half-open one gives its probes up;
        ``None`` for a closed one.
    :ivar why: What brought it to this state, in words that name no host; empty before that.
    :ivar generation: Counts its changes.
    :ivar moment: The time now, of the clock of *since* and *until*.
    """

    state: State
    failures: int
    successes: int
    since_failure: float | None
    since: float | None = None
    until: float | None = None
    why: str = ""
    generation: int = 0
    moment: float = 0.0


class Counts(NamedTuple):
    """What one worker has counted of a circuit.

    :ivar generation: Of the verdict that it knew.
    :ivar failures: Calls that have failed since the last one that was answered.
    :ivar successes: Calls that were answered, all in all.
    :ivar since_failure: Seconds since the last failure, ``None`` when it has seen none.
    """

    generation: int
    failures: int
    successes: int
    since_failure: float | None


class Permit:
    """Leave to make one call; say by :meth:`done` how it ended.

    :ivar generation: Of the verdict that gave it.
    :ivar began: When it was given.
    :ivar probe: Whether others wait for what becomes of the call.
    """

    __slots__ = ("_circuit", "_told", "began", "generation", "probe")

    def __init__(
        self, circuit: Circuit, generation: int, began: float, probe: bool = False
    ) -> None:
        self._circuit = circuit
        self._told = False
        self.generation = generation
        self.began = began
        self.probe = probe

    def done(
        self,
        outcome: Outcome,
        *,
        took: float | None = None,
        now: float | None = None,
        why: str = "",
    ) -> None:
        """Tell how the call ended; to say so again does nothing.

        :param took: Seconds until its answer began; since it was let pass, unless said.
        :param now: The time of the circuit's clock, read unless said.
        :param why: Of a failure: what went wrong, in words that name no host.
        """
        if not self._told:
            self._told = True
            self._circuit._done(self, outcome, took, now, why)


class Circuit:
    """Lets calls to a service pass until too many fail; then tries it again, a few calls at a time.

    Without a store, or while it fails, the worker decides by itself and shares later.

    :param name: Names it in the store and to people; give all workers the same one.
    :param rules: When it opens and closes.
    :param store: Where the workers meet; ``None`` for this process alone.
    :param prefix: What its key in the store begins with.
    :param sync_interval: Seconds after which the shared verdict is read again.
    :param clock: Tells the time in seconds, from any moment on.
    :param random: Gives numbers in [0, 1).
    :raises ValueError: *name* is empty, too long, or not of one line.
    """

    def __init__(
        self,
        name: str,
        rules: CircuitRules | None = None,
        *,
        store: Store | None = None,
        prefix: str = "circuit/",
        sync_interval: float = 0.5,
        clock: Callable[[], float] = steady,
        random: Callable[[], float] = _random.random,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a circuit's name is 1 to 100 characters of one line, got {name!r}")
        if not 0 < sync_interval <= 60:
            raise ValueError(f"sync_interval is more than 0 s, at most 60, got {sync_interval!r}")
        self.name = name
        self.rules = rules = CircuitRules() if rules is None else rules
        self._clock = clock
        self._random = random
        self._tally = Tally(rules)
        self._slow_after = float("inf") if rules.slow_after is None else rules.slow_after
        self._shared = SharedVerdict(
            name,
            rules,
            store,
            prefix + name,
            interval=sync_interval,
            replaced=self._begin_anew,
            clock=clock,
        )

    @property
    def store_errors(self) -> int:
        """How often the store has failed."""
        return self._shared.errors

    def admit(self, now: float | None = None) -> Permit | Rejection:
        """Return leave for one call, or after what time to ask again.

        :param now: The time of the circuit's clock, read unless said.
        """
        if now is None:
            now = self._clock()
        shared = self._shared
        if now >= shared.sync_at:
            shared.sync(now)
        verdict = shared.verdict
        if verdict.state is State.CLOSED:
            return Permit(self, verdict.generation, now)
        moment = now + shared.ahead
        rules = self.rules
        if moment < verdict.until and (
            verdict.state is State.OPEN or verdict.taken >= rules.probes
        ):
            return Rejection(acquire(verdict, moment, rules)[1])  # known without the store

        def asked(before: Verdict, moment: float) -> tuple[Verdict, tuple[int, float]]:
            after, wait = acquire(before, moment, rules)
            return after, (after.generation, wait)

        generation, wait = shared.change(asked, now)
        return Rejection(wait) if wait > 0 else Permit(self, generation, now, True)

    def counts(self) -> Counts:
        """Return what this worker alone has counted, without asking the store."""
        now, shared, tally = self._clock(), self._shared, self._tally
        with shared.lock:
            last = tally.last_failure
            since = None if last is None else max(0.0, now - last)
            return Counts(shared.verdict.generation, tally.failures, tally.successes, since)

    def status(self, now: float | None = None, *, fresh: bool = False) -> CircuitStatus:
        """Return how the circuit stands, as this worker knows it.

        One whose open time is over is open still: it is the next call that probes.

        :param now: The time of the circuit's clock, read unless said.
        :param fresh: Read the shared verdict from the store now.
        """
        now = self._clock() if now is None else now
        shared, tally = self._shared, self._tally
        if fresh or now >= shared.sync_at:
            shared.sync(now, insist=fresh)
        with shared.lock:
            last = tally.last_failure
            since = None if last is None else max(0.0, now - last)
            verdict, moment = shared.verdict, now + shared.ahead
            return CircuitStatus(
                verdict.state,
                tally.failures,
                tally.successes,
                since,
                verdict.since or None,
                None if verdict.state is State.CLOSED else verdict.until,
                verdict.why,
                verdict.generation,
                moment,
            )

    def reset(self) -> bool:
        """Close the circuit; return whether the other workers will hear of it now."""

        def closed(before: Verdict, moment: float) -> tuple[Verdict, None]:
            return move(before, Event.RESET, moment, self.rules), None

        shared = self._shared
        shared.change(closed, self._clock(), insist=True)
        with shared.lock:
            self._tally.forget()
            return shared.shared

    def _begin_anew(self, verdict: Verdict) -> None:
        """Look for new reasons to open; after a reset, by whatever worker, forget the old ones."""
        if verdict.state is State.CLOSED and verdict.why == Event.RESET.value:
            self._tally.forget()
        else:
            self._tally.clear()

    def _done(
        self, permit: Permit, outcome: Outcome, took: float | None, now: float | None, why: str
    ) -> None:
        shared, rules, generation = self._shared, self.rules, permit.generation
        if now is None:
            now = self._clock()
        slow = (now - permit.began if took is None else took) > self._slow_after
        with shared.lock:
            verdict = shared.verdict
            if verdict.generation != generation:
                return  # it speaks of the time before the last change
            tripped = self._tally.add(outcome, now, slow=slow)
        if verdict.state is State.CLOSED:
            if tripped:
                chance = self._random()
                reason = f"{tripped}, the last: {why}" if why else tripped
                shared.change(
                    lambda old, at: (trip(old, generation, at, rules, chance, reason), None), now
                )
            return
        chance = self._random()

        def told(old: Verdict, at: float) -> tuple[Verdict, None]:
            after = record_probe(
                old, generation, outcome, at, rules, slow=slow, chance=chance, why=why
            )
            return after, None

        shared.change(told, now)
