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
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from wsgigate.rules.arguments import checked
from wsgigate.rules.window import Window

__all__ = [
    "CircuitRules",
    "Event",
    "FAILURES",
    "MOST_TRIPS",
    "Outcome",
    "State",
    "TRANSITIONS",
    "Tally",
    "Verdict",
    "ask",
    "bounded",
    "check_failures",
    "move",
    "outcome_of",
    "pack",
    "tell",
    "trip",
    "unpack",
]


# When a circuit opens, for how long, and what closes it again: the settings, checked.

MOST_TRIPS = 60
"""More than so many doublings of the open time are none."""

_MOST = 1_000_000

_LONGEST = 86_400.0


@checked
@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitRules:
    """When a circuit opens, for how long, and what closes it again.

    :param consecutive_failures: Failures in a row that open it; ``None`` for no such rule.
    :param connect_failures: Failed connections in a row that do; ``None`` for no such rule.
    :param failure_rate: The share of failed calls that does, above 0 to 1; ``None`` for no such
        rule.
    :param slow_after: Seconds after which a call is slow; ``None``: none is.
    :param slow_rate: The share of slow calls that opens it, above 0 to 1.
    :param minimum_calls: Calls in the window below which no share counts.
    :param window: Seconds that the shares are taken over.
    :param open_for: Seconds it stays open, doubled each time that the probes fail, or that it opens
        again soon after.
    :param open_at_most: The most seconds it stays open; a minute, or *open_for* if that is longer.
    :param jitter: By up to which share of itself the open time is shortened, by chance.
    :param probes: Calls that are let pass after that; all of them must pass.
    :param probe_timeout: Seconds after which a probe that nothing was heard of is given up.
    :raises ValueError: A setting is out of its range; says which.
    """

    consecutive_failures: int | None = None
    connect_failures: int | None = 5
    failure_rate: float | None = 0.5
    slow_after: float | None = None
    slow_rate: float = 1.0
    minimum_calls: int = 20
    window: float = 10.0
    open_for: float = 5.0
    open_at_most: float | None = None
    jitter: float = 0.2
    probes: int = 5
    probe_timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("consecutive_failures", "connect_failures", "minimum_calls", "probes"):
            count = getattr(self, name)
            most = 1_000 if name == "probes" else _MOST
            optional = name in ("consecutive_failures", "connect_failures")
            if count is None and optional:
                continue
            if type(count) is not int or not 1 <= count <= most:
                raise ValueError(f"{name} is a whole number from 1 to {most}, got {count!r}")
        for name in ("failure_rate", "slow_rate"):
            share = getattr(self, name)
            if share is not None and not (_is_number(share) and 0 < share <= 1):
                raise ValueError(f"{name} is a share above 0 and at most 1, got {share!r}")
        for name in ("slow_after", "window", "open_for", "open_at_most", "probe_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not (_is_number(seconds) and 0 < seconds <= _LONGEST):
                raise ValueError(f"{name} is more than 0 s and at most a day, got {seconds!r}")
        if not (_is_number(self.jitter) and 0 <= self.jitter <= 1):
            raise ValueError(f"jitter is a share between 0 and 1, got {self.jitter!r}")
        if self.open_at_most is not None and self.open_at_most < self.open_for:
            raise ValueError(
                f"open_at_most is not less than open_for: {self.open_at_most!r} < {self.open_for!r}"
            )

    @property
    def longest(self) -> float:
        """The most seconds it stays open."""
        return max(60.0, self.open_for) if self.open_at_most is None else self.open_at_most

    def open_time(self, trips: int, chance: float) -> float:
        """Return the seconds it stays open for the *trips*-th time in a row.

        :param chance: A number in [0, 1).
        """
        doubled = self.open_for * 2.0 ** min(trips - 1, MOST_TRIPS)
        return float(min(doubled, self.longest) * (1 - self.jitter * chance))


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and not math.isnan(value)  # type: ignore[arg-type]


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
    PROBES_LOST = "a probe timed out"
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


# What the status of an answer tells of the service that gave it.

FAILURES = (500, 502, 503, 504)
"""The statuses that are failures unless said otherwise."""

_NOTHING = frozenset((408, 429, 499))  # too slow, too many, gone: of the client, all of them


def check_failures(statuses: Collection[int]) -> frozenset[int]:
    """Return *statuses* as a set.

    :raises ValueError: One of them can not be a failure: 4xx are the client's.
    """
    for status in statuses:
        if type(status) is not int or not 500 <= status <= 599:
            raise ValueError(f"statuses are 500 to 599: others are no failures, got {status!r}")
    return frozenset(statuses)


def outcome_of(status: int, failures: Collection[int] = FAILURES) -> Outcome:
    """Return what an answer with *status* tells.

    :param failures: The statuses that are failures.
    """
    if status < 400:
        return Outcome.OK
    if status in failures:
        return Outcome.FAILED
    if status in _NOTHING:
        return Outcome.IGNORED
    return Outcome.REFUSED if status < 500 else Outcome.OK


# How the calls of one worker go, and when that is reason enough to open their circuit.


class Tally:
    """What one worker has seen of a service.

    :param rules: What is too much.
    :ivar failures: Calls that have failed since the last one that was answered.
    :ivar successes: Calls that were answered, all in all.
    :ivar last_failure: When the last one failed, ``None`` before there was one.
    """

    __slots__ = (
        "_in_a_row",
        "_rules",
        "_unreachable",
        "_window",
        "failures",
        "last_failure",
        "successes",
    )

    def __init__(self, rules: CircuitRules) -> None:
        self._rules = rules
        self._window = Window(rules.window)
        self.failures = self.successes = 0
        self.last_failure: float | None = None
        self.clear()

    def clear(self) -> None:
        """Begin anew to look for a reason to open, as the circuit has changed."""
        self._in_a_row = self._unreachable = 0
        self._window.clear()

    def add(self, outcome: Outcome, now: float, *, slow: bool = False) -> str:
        """Take note of a call that ended at *now*; return why the circuit is to open.

        :param slow: Whether it took longer than it may.
        :returns: The reason in words; empty when the circuit is to stay as it is.
        """
        rules = self._rules
        if outcome is Outcome.OK:
            self.successes += 1
            self.failures = 0
            self._in_a_row = self._unreachable = 0
            self._window.add(now, False, slow)
            return self._why_slow() if slow else ""
        if outcome is Outcome.REFUSED or outcome is Outcome.IGNORED:
            return ""
        self.failures += 1
        self.last_failure = now
        self._in_a_row += 1
        self._unreachable = self._unreachable + 1 if outcome is Outcome.UNREACHABLE else 0
        window = self._window
        window.add(now, True, slow)
        if rules.connect_failures is not None and self._unreachable >= rules.connect_failures:
            return f"{_times(self._unreachable, 'connection failure')} in a row"
        if rules.consecutive_failures is not None and self._in_a_row >= rules.consecutive_failures:
            return f"{_times(self._in_a_row, 'failure')} in a row"
        if self._share(window.failed, rules.failure_rate):
            return f"{window.failed} of {window.calls} calls failed within {rules.window:g} s"
        return self._why_slow() if slow else ""

    def _why_slow(self) -> str:
        rules, window = self._rules, self._window
        if not self._share(window.slow, rules.slow_rate):
            return ""
        return (
            f"{window.slow} of {window.calls} calls took longer than {rules.slow_after:g} s "
            f"within {rules.window:g} s"
        )

    def forget(self) -> None:
        """Forget the failures, as the operator knows better."""
        self.clear()
        self.failures = 0
        self.last_failure = None

    def _share(self, some: int, share: float | None) -> bool:
        calls = self._window.calls
        return share is not None and calls >= self._rules.minimum_calls and some >= share * calls


def _times(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
