"""Circuit breakers whose verdict all workers share, while each worker counts its own calls.

Theory of operation
-------------------

The rules (when a circuit opens, how many probes it admits) are pure functions of
:mod:`wsgigate.rules.circuit`. This module shares their result, the *verdict*: a few bytes under one
key of the store. Its rules:

1. **A call through a closed circuit uses this process alone.** The verdict is read again every
   ``interval`` seconds (0.5 by default), by the one request that comes first then; in between the
   last known verdict applies.
2. **Every change is one atomic update** of the stored value, made by any worker with a reason. So
   the probes of a half-open circuit are counted in the store, and all workers of all machines
   together send no more than the rules allow.
3. **Generations.** Each change of state has a number. The outcome of a call counts only if the
   verdict still has the generation of its permit: a call that began before the last change is no
   news about the present state. A thread never replaces a verdict by one of an older generation.
4. **The store's clock is the common time.** A verdict holds moments of that clock; each worker
   keeps the difference to its own (``ahead``), measured at every read and update.
5. **A failing store does not stop the circuit.** The worker then decides alone and marks the
   verdict as unshared. After a failure the store is not used for one interval. The first successful
   read shares the verdict, unless another worker has changed it meanwhile: then that change wins.
   A store that can never be used is no failure of this kind: every call raises it.
6. **The lock is never held during a call of the store**, or one slow store would stop all threads.
   A read that began before a change in this process is therefore discarded (``_sets``).
7. **One log record per change.** Only the worker whose update succeeded logs and counts it.
8. **Forcing a circuit is a change as well.** The verdict has an end of its own, reaches all
   workers, survives their restarts and an outage of the store, and outdates the permits in flight,
   as every other one does. A circuit that is forced closed counts its calls; the counts cannot open
   it before the end.
"""

from __future__ import annotations

import logging
import random as _random
import re
import threading
from collections.abc import Callable, Iterable
from logging import INFO, WARNING
from typing import NamedTuple, TypeVar

from wsgigate.rules.circuit import (
    AUTO,
    ENDLESS,
    FORCES,
    CircuitRules,
    CircuitVerdict,
    Event,
    Outcome,
    State,
    Tally,
    acquire,
    bounded,
    force,
    is_forced,
    move,
    pack,
    record_probe,
    trip,
    unpack,
)
from wsgigate.runtime.clocks import steady
from wsgigate.runtime.fork import quiesce_at_fork
from wsgigate.runtime.logs import ChangeLog, FailureLog
from wsgigate.store import MisconfiguredStore, Store, StoreError, update
from wsgigate.store.open import OpenedStore
from wsgigate.telemetry.metrics import PROCESS, Counter, ObservableGauge, Reading

__all__ = [
    "LONGEST_FORCE",
    "Circuit",
    "CircuitStatus",
    "Counts",
    "Forced",
    "Permit",
    "Rejection",
    "SharedVerdict",
]


R = TypeVar("R")

_RETENTION = 60.0  # seconds for which an obsolete verdict stays in the store

LONGEST_FORCE = 10 * 365 * 86_400.0
"""Maximum seconds for which a circuit can be forced; also the time to live of one without end."""

_log = logging.getLogger("wsgigate.circuits")

TRANSITIONS = Counter(
    "wsgigate_circuit_transitions",
    "Changes of a circuit breaker's state, counted by the worker that made them.",
    ("service", "state"),
)

STATE = ObservableGauge(
    "wsgigate_circuit_state",
    "1 for the present state of a circuit breaker, 0 for the others.",
    ("service", "state"),
)


class SharedVerdict:
    """The shared verdict on a circuit, as this worker knows it; see the rules above.

    :param name: Name of the circuit, for the log.
    :param store: The store shared by the workers; ``None`` for this process alone.
    :param key: Key of the verdict in the store.
    :param interval: Seconds after which the verdict is read again.
    :param clock: Returns the time of the circuit's clock.
    :param replaced: Called, with the lock held, with a verdict of another generation.
    :ivar verdict: The known verdict; immutable, so it is read without the lock.
    :ivar ahead: Seconds by which the store's clock is ahead of the circuit's.
    :ivar sync_at: Time of the next read.
    :ivar lock: Held while the known verdict changes; never during a call of the store.
    :ivar errors: Number of failures of the store.
    """

    def __init__(
        self,
        name: str,
        rules: CircuitRules,
        store: Store | None,
        key: str,
        *,
        interval: float,
        replaced: Callable[[CircuitVerdict], object],
        clock: Callable[[], float] = steady,
    ) -> None:
        self.verdict = CircuitVerdict()
        self.ahead = 0.0
        self.sync_at = float("inf") if store is None else float("-inf")
        self.lock = threading.RLock()
        self.errors = 0
        self._name = name
        self._rules = rules
        self._store = None if store is None else OpenedStore(store)
        self._key = key
        self._interval = interval
        self._replaced = replaced
        self._raw: bytes | None = None  # the stored form of the verdict
        self._sets = 0  # number of replacements
        self._unshared = False  # whether the store does not have the verdict
        self._down_until = float("-inf")
        self._changes = ChangeLog(_log, clock=clock)
        self._trouble = FailureLog(
            _log, "Circuit %r is shared with other workers again, after %.0f s", name, clock=clock
        )
        quiesce_at_fork(self)

    def before_fork(self) -> None:
        """Do nothing: holding the lock is enough."""

    def after_unseen_fork(self) -> None:
        """Do nothing: the lock has been replaced already."""

    @property
    def shared(self) -> bool:
        """Whether the store has this verdict."""
        return not self._unshared

    @property
    def in_common(self) -> bool:
        """Whether other processes read the verdict: not without a store, or while it fails."""
        return not (self._store is None or self._store.in_memory or self._unshared)

    def change(
        self,
        make: Callable[[CircuitVerdict, float], tuple[CircuitVerdict, R]],
        now: float,
        *,
        insist: bool = False,
    ) -> R:
        """Replace the shared verdict by the one that *make* returns; return its result.

        Without a store, or while it fails, the change applies to this worker until it can be
        shared.

        :param make: ``make(verdict, moment) -> (verdict, result)``, pure, since it may be called
            more than once. Returning the same verdict changes nothing.
        :param insist: Whether to use the store even if it has just failed.
        """
        store, rules = self._store, self._rules
        if store is None or (now < self._down_until and not insist):
            return self._change_alone(make, now)
        with self.lock:
            known, known_raw, unshared = self.verdict, self._raw, self._unshared

        def step(
            old: bytes | None, moment: float
        ) -> tuple[
            bytes | None, float, tuple[CircuitVerdict, CircuitVerdict, bytes | None, float, R]
        ]:
            ours = old is None or old == known_raw  # no other worker has changed it
            before = bounded(known, moment, rules) if ours else unpack(old, moment, rules)
            after, result = make(before, moment)
            if after is before and not (ours and unshared):
                return old, 0.0, (before, after, old, moment, result)
            raw = pack(after)
            ttl = min(max(0.0, after.until - moment), LONGEST_FORCE) + _RETENTION
            return raw, ttl, (before, after, raw, moment, result)

        try:
            before, after, raw, moment, result = update(store, self._key, step)
        except StoreError as error:
            self._fail(error, now)
            return self._change_alone(make, now)
        self._trouble.ended()
        with self.lock:
            self.ahead = moment - now
            if after.generation >= self.verdict.generation:  # otherwise another thread was faster
                self._set(after, raw)
        self._log_change(before, after)
        return result

    def sync(self, now: float, *, insist: bool = False, check: bool = False) -> None:
        """Read the verdict if it is due, in one thread; share an unshared verdict.

        :param insist: Whether to read it even if it is not due.
        :param check: Whether to raise the error of a store that can never be used.
        :raises MisconfiguredStore: *check* is true, and the store cannot be used.
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
            if check:
                try:
                    store.check_outage(error, f"the circuit {self._name!r} cannot be shared")
                except MisconfiguredStore:
                    self.sync_at = now  # the next call raises it as well
                    raise
            self._fail(error, now)
            return
        self._trouble.ended()
        self._changes.flush()
        with self.lock:
            if self._sets != sets:
                return  # the value read may be older than the known verdict
            self.ahead = moment - now
            if raw is None or raw == self._raw:
                self._raw = raw
                self.verdict = bounded(self.verdict, moment, self._rules)
            else:
                self._set(unpack(raw, moment, self._rules), raw)
            unshared = self._unshared
        if unshared:
            self.change(lambda verdict, _moment: (verdict, None), now)

    def _change_alone(
        self, make: Callable[[CircuitVerdict, float], tuple[CircuitVerdict, R]], now: float
    ) -> R:
        with self.lock:
            moment = now + self.ahead
            before = bounded(self.verdict, moment, self._rules)
            after, result = make(before, moment)
            if after is not before:
                self._set(after, self._raw)
                self._unshared = self._store is not None
        self._log_change(before, after)
        return result

    def _set(self, verdict: CircuitVerdict, raw: bytes | None) -> None:
        if verdict.generation != self.verdict.generation:
            self._replaced(verdict)
        self.verdict, self._raw = verdict, raw
        self._unshared = False
        self._sets += 1

    def _log_change(self, before: CircuitVerdict, after: CircuitVerdict) -> None:
        """Log a change of state: only the worker whose update succeeded calls this."""
        if before.state is after.state and not (before.forced or after.forced):
            return
        log, name = self._changes.log, self._name
        if before.state is not after.state:
            TRANSITIONS.labels(name, after.state.name.lower()).add()
        if after.forced:
            if (before.forced, before.generation) != (True, after.generation):
                log(WARNING, name, "Circuit %r is %s%s", name, after.why, _lasting(after))
        elif after.state is State.OPEN:
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


def _lasting(verdict: CircuitVerdict) -> str:
    """Return how long a forced state lasts, for the log."""
    if verdict.until == ENDLESS:
        return " until it is released"
    return f" for {verdict.until - verdict.since:.0f} s"


_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")


class Rejection(NamedTuple):
    """A call that the circuit rejects.

    :ivar retry_after: Seconds after which a call may be admitted.
    """

    retry_after: float


class CircuitStatus(NamedTuple):
    """The status of a circuit: the state is shared, the counts are those of this worker.

    :ivar state: The state: closed, open or half-open.
    :ivar failures: Failed calls since the last successful one.
    :ivar successes: Successful calls in all.
    :ivar since_failure: Seconds since the last failure; ``None`` without one in this worker.
    :ivar since: Time of the last change of state, by the store's clock (see *moment*); ``None``
        before the first.
    :ivar until: When an open circuit admits a probe, or a half-open one gives up its probes, or a
        forced state ends; ``None`` for a closed one that is not forced, and for no end.
    :ivar why: Reason for the state, without a host name; empty before the first change.
    :ivar generation: Number of changes of state.
    :ivar moment: The present time of the clock of *since* and *until*.
    :ivar forced: Whether an operator has forced this state.
    :ivar shared: Whether the other workers know this state, or read it from the store.
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
    forced: bool = False
    shared: bool = True


class Forced(NamedTuple):
    """The result of :meth:`Circuit.force`.

    :ivar changed: Whether the circuit was changed; false if its generation was not the one given.
    :ivar shared: Whether the other workers learn of it; false while the store fails.
    """

    changed: bool
    shared: bool


class Counts(NamedTuple):
    """The counts of one worker for a circuit.

    :ivar generation: Generation of the verdict it knows.
    :ivar failures: Failed calls since the last successful one.
    :ivar successes: Successful calls in all.
    :ivar since_failure: Seconds since the last failure; ``None`` without one.
    """

    generation: int
    failures: int
    successes: int
    since_failure: float | None


class Permit:
    """Permission for one call; :meth:`done` reports its outcome.

    :ivar generation: Generation of the verdict that granted it.
    :ivar began: Time at which it was granted.
    :ivar probe: Whether the call is a probe of a half-open circuit.
    """

    __slots__ = ("_circuit", "_reported", "began", "generation", "probe")

    def __init__(
        self, circuit: Circuit, generation: int, began: float, probe: bool = False
    ) -> None:
        self._circuit = circuit
        self._reported = False
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
        """Report the outcome of the call; further reports are ignored.

        :param took: Seconds until the response began. Default: since the permit was granted.
        :param now: Time of the circuit's clock. Default: the present.
        :param why: Reason of a failure, without a host name.
        """
        if not self._reported:
            self._reported = True
            self._circuit._done(self, outcome, took, now, why)


class Circuit:
    """A circuit breaker: rejects calls to a service after too many failures, then probes it.

    Without a store, or while it fails, the worker decides alone and shares the verdict later.

    :param name: Name of the circuit, in the store and in messages; the same in all workers.
    :param rules: When the circuit opens and closes.
    :param store: The store shared by the workers; ``None`` for this process alone.
    :param prefix: Prefix of the key in the store.
    :param sync_interval: Seconds after which the shared verdict is read again.
    :param clock: Returns monotonic seconds.
    :param random: Returns random numbers in [0, 1).
    :raises ValueError: *name* or *sync_interval* is invalid; the message names it.
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
            replaced=self._on_replaced,
            clock=clock,
        )
        PROCESS.collect_from(self)

    def collect(self) -> Iterable[Reading]:
        """Return the state, for the metrics."""
        present = self.status().state
        return [
            STATE.reading(float(state is present), self.name, state.name.lower()) for state in State
        ]

    @property
    def store_errors(self) -> int:
        """Number of failures of the store."""
        return self._shared.errors

    def admit(self, now: float | None = None) -> Permit | Rejection:
        """Return a permit for one call, or a rejection.

        :param now: Time of the circuit's clock. Default: the present.
        :raises MisconfiguredStore: The store cannot be used until its configuration changes.
        """
        if now is None:
            now = self._clock()
        shared = self._shared
        if now >= shared.sync_at:
            shared.sync(now, check=True)
        verdict = shared.verdict
        if verdict.state is State.CLOSED:
            return Permit(self, verdict.generation, now)
        moment = now + shared.ahead
        rules = self.rules
        if moment < verdict.until and (
            verdict.state is State.OPEN or verdict.taken >= rules.probes
        ):
            return Rejection(acquire(verdict, moment, rules)[1])  # known without the store

        def asked(
            before: CircuitVerdict, moment: float
        ) -> tuple[CircuitVerdict, tuple[int, float]]:
            after, wait = acquire(before, moment, rules)
            return after, (after.generation, wait)

        generation, wait = shared.change(asked, now)
        return Rejection(wait) if wait > 0 else Permit(self, generation, now, True)

    def counts(self) -> Counts:
        """Return the counts of this worker, without reading the store."""
        now, shared, tally = self._clock(), self._shared, self._tally
        with shared.lock:
            last = tally.last_failure
            since = None if last is None else max(0.0, now - last)
            return Counts(shared.verdict.generation, tally.failures, tally.successes, since)

    def status(self, now: float | None = None, *, fresh: bool = False) -> CircuitStatus:
        """Return the status of the circuit, as this worker knows it.

        A circuit whose open time is over is still open: the next call makes it half-open.

        :param now: Time of the circuit's clock. Default: the present.
        :param fresh: Whether to read the shared verdict from the store now.
        """
        now = self._clock() if now is None else now
        shared, tally = self._shared, self._tally
        if fresh or now >= shared.sync_at:
            shared.sync(now, insist=fresh)
        with shared.lock:
            last = tally.last_failure
            since = None if last is None else max(0.0, now - last)
            verdict, moment = shared.verdict, now + shared.ahead
            forced = is_forced(verdict, moment)
            ends = verdict.until != ENDLESS if forced else verdict.state is not State.CLOSED
            over = verdict.forced and not forced and verdict.state is State.CLOSED
            return CircuitStatus(
                verdict.state,
                tally.failures,
                tally.successes,
                since,
                verdict.since or None,
                verdict.until if ends else None,
                f"{verdict.why}, which is over" if over else verdict.why,
                verdict.generation,
                moment,
                forced,
                shared.in_common,
            )

    def force(
        self, state: str, *, lasts: float | None = None, generation: int | None = None
    ) -> Forced:
        """Force the circuit open or closed, for all workers, or let it decide by itself again.

        A circuit that was forced open and is released, or whose time is over, becomes half-open.

        :param state: ``"open"``, ``"closed"`` or ``"auto"``.
        :param lasts: Seconds after which it is released by itself, at most ten years. Default: only
            by ``"auto"`` or :meth:`reset`.
        :param generation: Change it only if this is still its generation, see
            :attr:`CircuitStatus.generation`. Default: in any case.
        :raises ValueError: An argument is invalid; the message names it.
        """
        if state not in FORCES:
            raise ValueError(f"state: one of {', '.join(FORCES)}, not {state!r}")
        if lasts is not None and (state == AUTO or not 0 < lasts <= LONGEST_FORCE):
            raise ValueError(
                f"for: with open or closed, more than 0 seconds and at most 10 years, not {lasts!r}"
            )

        def forced(before: CircuitVerdict, moment: float) -> tuple[CircuitVerdict, bool]:
            if generation is not None and before.generation != generation:
                return before, False
            return force(before, state, moment, self.rules, lasts), True

        shared = self._shared
        changed = shared.change(forced, self._clock(), insist=True)
        return Forced(changed, shared.shared)

    def reset(self) -> bool:
        """Close the circuit, forced or not; return whether the other workers learn of it."""

        def closed(before: CircuitVerdict, moment: float) -> tuple[CircuitVerdict, None]:
            return move(before, Event.RESET, moment, self.rules), None

        shared = self._shared
        shared.change(closed, self._clock(), insist=True)
        with shared.lock:
            self._tally.forget()
            return shared.shared

    def _on_replaced(self, verdict: CircuitVerdict) -> None:
        """Clear the reasons to open; after a reset by any worker also the counts."""
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
                return  # the call began before the last change of state: rule 3
            tripped = self._tally.add(outcome, now, slow=slow)
        if verdict.state is State.CLOSED:
            if tripped and not is_forced(verdict, now + shared.ahead):
                chance = self._random()
                reason = f"{tripped}, the last: {why}" if why else tripped
                shared.change(
                    lambda old, at: (trip(old, generation, at, rules, chance, reason), None), now
                )
            return
        chance = self._random()

        def counted(old: CircuitVerdict, at: float) -> tuple[CircuitVerdict, None]:
            after = record_probe(
                old, generation, outcome, at, rules, slow=slow, chance=chance, why=why
            )
            return after, None

        shared.change(counted, now)
