"""A circuit breaker, decided: when calls are refused, and when they are tried again.

The state of a circuit is one small :class:`Verdict` that all workers share. The functions here say
what becomes of it: :func:`trip` when a worker has seen enough failures, :func:`ask` when a request
would like to pass, :func:`tell` when a probe has ended, :func:`move` for each step of the table.
Each verdict has a generation: what is told of calls that an earlier one let pass is ignored, as it
speaks of the time before the last step.

The states and settings are those of Resilience4j, the generations gobreaker's.
"""

from __future__ import annotations

import math
import struct
from enum import Enum
from typing import NamedTuple

from wsgigate.rules.circuit_rules import MOST_TRIPS, CircuitRules

__all__ = [
    "TRANSITIONS",
    "Event",
    "Outcome",
    "State",
    "Verdict",
    "ask",
    "bounded",
    "move",
    "pack",
    "tell",
    "trip",
    "unpack",
]


class State(Enum):
    """Whether calls pass. The values are what people and programs are told."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


class Event(Enum):
    """What moves a circuit from one state to another. The values are for people."""

    TRIPPED = "too many failures"
    COOLED = "open time is over"
    PROBE_FAILED = "a probe failed"
    PROBES_PASSED = "all probes passed"
    PROBES_LOST = "a probe was not heard of"
    RESET = "reset by the operator"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.COOLED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.PROBE_FAILED): State.OPEN,
    (State.HALF_OPEN, Event.PROBES_PASSED): State.CLOSED,
    (State.HALF_OPEN, Event.PROBES_LOST): State.HALF_OPEN,
    (State.CLOSED, Event.RESET): State.CLOSED,
    (State.OPEN, Event.RESET): State.CLOSED,
    (State.HALF_OPEN, Event.RESET): State.CLOSED,
}
"""Every step there is; a pair that is not here never happens."""


class Outcome(Enum):
    """How a call ended, as far as it tells of the service."""

    OK = "ok"
    """It was answered."""
    FAILED = "failed"
    """It was not answered, or with what counts as a failure."""
    UNREACHABLE = "unreachable"
    """No connection came about: a failure that needs no second look."""
    REFUSED = "refused"
    """It was answered that the client is wrong (4xx): this counts nowhere, but a probe passes."""
    IGNORED = "ignored"
    """It tells nothing of the service: the client left, say. A probe is made once more."""


_BAD = frozenset((Outcome.FAILED, Outcome.UNREACHABLE))
_RETRY_SOON = 1.0
"""Seconds after which to come again while others probe."""


class Verdict(NamedTuple):
    """What the workers agree on about one circuit. Moments are seconds of the store's clock.

    :ivar generation: Counts the steps; a permit is valid for the generation it was given in.
    :ivar until: Open: when probes begin. Half-open: when a probe is given up. Closed: until when
        the open time goes on doubling, should it open again.
    :ivar trips: How many times in a row it has opened.
    :ivar taken: Probes on their way or passed.
    :ivar passed: Probes passed.
    :ivar since: When it came to this state; 0 before its first step.
    :ivar why: What brought it there, in words that name no host.
    """

    state: State = State.CLOSED
    generation: int = 0
    until: float = 0.0
    trips: int = 0
    taken: int = 0
    passed: int = 0
    since: float = 0.0
    why: str = ""


def move(
    verdict: Verdict,
    event: Event,
    now: float,
    rules: CircuitRules,
    chance: float = 0.0,
    why: str = "",
) -> Verdict:
    """Return the verdict after *event*.

    :param chance: A number in [0, 1), for the open time.
    :param why: More on *event*, for people.
    :raises ValueError: Nothing of the kind happens in this state.
    """
    state = TRANSITIONS.get((verdict.state, event))
    if state is None:
        raise ValueError(f"{event.name} does not happen to a circuit that is {verdict.state.name}")
    generation = verdict.generation + 1
    since = verdict.since if state is verdict.state else now
    if event is Event.TRIPPED:
        why = why or event.value
    else:
        why = f"{event.value}: {why}" if why else event.value
    made = Verdict(state, generation, now, since=since, why=why[:LONGEST_WHY])
    if state is State.HALF_OPEN:
        return made._replace(until=now + rules.probe_timeout, trips=verdict.trips)
    if state is State.OPEN:
        again = event is Event.PROBE_FAILED or now < verdict.until
        trips = min(verdict.trips + 1, MOST_TRIPS) if again else 1
        return made._replace(until=now + rules.open_time(trips, chance), trips=trips)
    if event is Event.RESET:
        return made
    return made._replace(until=now + rules.longest, trips=verdict.trips)


def trip(
    verdict: Verdict,
    generation: int,
    now: float,
    rules: CircuitRules,
    chance: float = 0.0,
    why: str = "",
) -> Verdict:
    """Return the verdict after a worker has seen enough failures.

    :param generation: That in which it saw them: in another one, nothing happens.
    :param chance: A number in [0, 1).
    :param why: What it has seen.
    """
    if verdict.state is not State.CLOSED or verdict.generation != generation:
        return verdict
    return move(verdict, Event.TRIPPED, now, rules, chance, why)


def ask(verdict: Verdict, now: float, rules: CircuitRules) -> tuple[Verdict, float]:
    """Return the verdict after a request asked to pass, and the seconds after which to come again.

    These are 0 for a request that may pass. In half-open that is a probe: tell how it ended.
    """
    state = verdict.state
    if state is State.CLOSED:
        return verdict, 0.0
    if now < verdict.until:
        if state is State.OPEN:
            return verdict, verdict.until - now
        if verdict.taken >= rules.probes:
            return verdict, min(_RETRY_SOON, verdict.until - now)
    else:
        lost = state is State.HALF_OPEN
        verdict = move(verdict, Event.PROBES_LOST if lost else Event.COOLED, now, rules)
    return verdict._replace(taken=verdict.taken + 1, until=now + rules.probe_timeout), 0.0


def tell(
    verdict: Verdict,
    generation: int,
    outcome: Outcome,
    now: float,
    rules: CircuitRules,
    *,
    slow: bool = False,
    chance: float = 0.0,
    why: str = "",
) -> Verdict:
    """Return the verdict after a probe has ended.

    :param generation: That in which it was let pass: of an older one, nothing is heard.
    :param slow: Whether it took longer than it may: then it failed.
    :param chance: A number in [0, 1).
    :param why: Why it failed, if it did.
    """
    if verdict.state is not State.HALF_OPEN or verdict.generation != generation:
        return verdict
    if outcome in _BAD or (slow and outcome is Outcome.OK):
        why = "it took too long" if slow and outcome is Outcome.OK else why
        return move(verdict, Event.PROBE_FAILED, now, rules, chance, why)
    if outcome is Outcome.IGNORED:
        return verdict._replace(taken=max(verdict.passed, verdict.taken - 1))
    if verdict.passed + 1 >= rules.probes:
        return move(verdict, Event.PROBES_PASSED, now, rules)
    return verdict._replace(passed=verdict.passed + 1)


_STATES = tuple(State)
_PACKED = struct.Struct(">cBQdHHH")
_SINCE = struct.Struct(">d")
_TAG = b"c"
LONGEST_WHY = 160
"""Characters of a reason that are kept."""


def pack(verdict: Verdict) -> bytes:
    """Return *verdict* as it is shared with other workers."""
    state, *numbers, since, why = verdict
    head = _PACKED.pack(_TAG, _STATES.index(state), *numbers)
    return head + _SINCE.pack(since) + why.encode("utf-8", "replace")


def unpack(raw: bytes | None, now: float, rules: CircuitRules) -> Verdict:
    """Return the verdict that :func:`pack` wrote; of other bytes, and of none, a closed one.

    A moment is never further off than the rules allow: a clock that was set back keeps nobody out.

    :param now: The time of the store it was read from.
    """
    if raw is None or not _PACKED.size <= len(raw) <= _PACKED.size + 8 + 4 * LONGEST_WHY:
        return Verdict()
    tag, state, generation, until, trips, taken, passed = _PACKED.unpack_from(raw)
    if tag != _TAG or state >= len(_STATES) or not math.isfinite(until):
        return Verdict()
    taken = min(taken, rules.probes)
    passed = min(passed, taken)
    trips = min(trips, MOST_TRIPS)
    since, why = 0.0, ""
    if len(raw) >= _PACKED.size + _SINCE.size:  # else an earlier release has written it
        [since] = _SINCE.unpack_from(raw, _PACKED.size)
        since = since if math.isfinite(since) else 0.0
        why = raw[_PACKED.size + _SINCE.size :].decode("utf-8", "replace")
    verdict = Verdict(_STATES[state], generation, until, trips, taken, passed, since, why)
    return bounded(verdict, now, rules)


def bounded(verdict: Verdict, now: float, rules: CircuitRules) -> Verdict:
    """Return *verdict* with no moment in it that is further off than the rules allow."""
    half_open = verdict.state is State.HALF_OPEN
    latest = now + (rules.probe_timeout if half_open else rules.longest)
    return verdict._replace(until=latest) if verdict.until > latest else verdict
