"""Circuits that all workers share: each counts its own calls, and they agree on the verdict.

A call through a closed circuit asks nobody but this process. What is shared is the verdict, a few
bytes in the store: read again twice a second, and changed in one step by whoever has a reason. So
of all workers of all machines, no more probe a service than its rules say.
"""

from __future__ import annotations

import random as _random
import re
from collections.abc import Callable
from typing import NamedTuple

from wsgigate.circuits.shared import SharedVerdict
from wsgigate.clocks import steady
from wsgigate.rules.circuit import Event, Outcome, State, Verdict, ask, move, tell, trip
from wsgigate.rules.circuit_rules import CircuitRules
from wsgigate.rules.tally import Tally
from wsgigate.store import Store

__all__ = ["Circuit", "CircuitStatus", "Counts", "Permit", "Rejection"]

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
            return Rejection(ask(verdict, moment, rules)[1])  # known without the store

        def asked(before: Verdict, moment: float) -> tuple[Verdict, tuple[int, float]]:
            after, wait = ask(before, moment, rules)
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
            after = tell(old, generation, outcome, at, rules, slow=slow, chance=chance, why=why)
            return after, None

        shared.change(told, now)
