"""The circuit breaker's rules: when calls are rejected, and when they are tried again.

Theory of operation
-------------------

- The state of a circuit is one small :class:`CircuitVerdict` that all workers share in the store.
  The functions here are pure: each returns the next verdict, and the caller writes it by one atomic
  update of the store. Two workers that act at once are thus serialized, and the second one decides
  on the result of the first; a read and a separate write would let both send the same last probe.
- Every change of state is a row of :data:`TRANSITIONS`, made by :func:`move`. :func:`trip` opens a
  circuit, :func:`acquire` admits a request or a probe, :func:`record_probe` records the result of
  a probe.
- Each change of state increments the ``generation``, and a permit belongs to the generation that
  granted it. Reports of an earlier generation are ignored: they describe the service before the
  last change, and would close or reopen a circuit for reasons that no longer hold.
- Each worker counts calls in its own :class:`Tally`; only the verdict is shared. A closed circuit
  therefore costs no write to the store per call.
- Half-open admits at most ``probes`` requests at a time across all workers. A probe whose worker
  died is never reported: after ``probe_timeout`` the half-open state starts over
  (``PROBES_LOST``), or the circuit would reject calls forever.
- Moments are seconds of the store's clock, which all workers share. :func:`bounded` caps a moment
  at the longest time that the rules allow, so that a clock that is set back cannot keep a circuit
  open for longer.
- An operator can force a circuit open or closed (:func:`force`), for a time or until it is
  released. That is a change of state like any other, with its own generation, so calls and probes
  that began before it do not count. While it lasts, no count and no probe changes the state. A
  circuit that was forced open becomes half-open at the end: probes decide, as after any other
  opening. One that was forced closed goes on, with the failures counted meanwhile.

The states and settings are those of Resilience4j; the generations are gobreaker's.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, NamedTuple

from wsgigate.rules.arguments import Count, Fraction, Range, Seconds, Trait, checked

__all__ = [
    "AUTO",
    "ENDLESS",
    "FAILURES",
    "FORCES",
    "MOST_TRIPS",
    "TRANSITIONS",
    "CallWindow",
    "CircuitRules",
    "CircuitVerdict",
    "Event",
    "Outcome",
    "State",
    "Tally",
    "acquire",
    "bounded",
    "check_failures",
    "force",
    "is_forced",
    "move",
    "outcome_of",
    "pack",
    "record_probe",
    "trip",
    "unpack",
]


# Settings.

MOST_TRIPS = 60
"""The most doublings of the open time; ``open_at_most`` is reached long before."""

_MOST = 1_000_000

_LONGEST = 86_400.0


@checked
@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitRules:
    """Circuit breaker: when a circuit opens, for how long, and what closes it again.

    :param consecutive_failures: Consecutive failures that open the circuit; ``None`` disables the
        rule.
    :param connect_failures: Consecutive connection failures that open the circuit; ``None``
        disables the rule.
    :param failure_rate: The fraction of failed calls that opens the circuit, above 0 to 1;
        ``None`` disables the rule.
    :param slow_after: The duration from which a call is slow, in seconds. Default: no
        call is slow.
    :param slow_rate: The fraction of slow calls that opens the circuit, above 0 to 1.
    :param minimum_calls: The number of calls in the window below which the rates do not count.
    :param window: The time over which the rates are computed, in seconds.
    :param open_for: How long the circuit stays open, in seconds; doubled each time that a probe
        fails or that it opens again soon after it has closed.
    :param open_at_most: The maximum time for which the circuit stays open, in seconds. Default: one
        minute, or *open_for* if that is longer.
    :param jitter: The maximum random shortening of the open time, as a fraction of it.
    :param probes: The number of probes: calls that are admitted after the open time, all of which
        must succeed before the circuit closes.
    :param probe_timeout: The time after which a probe without a result is abandoned, in seconds.
    :raises ValueError: An argument is invalid; the message names it.
    """

    consecutive_failures: Annotated[int | None, Trait.ZERO_IS_NONE] = None
    connect_failures: Annotated[int | None, Trait.ZERO_IS_NONE] = 5
    failure_rate: Annotated[float | None, Range(0, 1), Trait.ZERO_IS_NONE] = 0.5
    slow_after: Seconds | None = None
    slow_rate: Fraction = 1.0
    minimum_calls: Count = 20
    window: Seconds = 10.0
    open_for: Seconds = 5.0
    open_at_most: Seconds | None = None
    jitter: Fraction = 0.2
    probes: Annotated[int, Range(1, 1000)] = 5
    probe_timeout: Seconds = 30.0

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
        """The most seconds for which it stays open."""
        return max(60.0, self.open_for) if self.open_at_most is None else self.open_at_most

    def open_time(self, trips: int, chance: float) -> float:
        """Return the seconds for which it stays open after *trips* openings in a row.

        :param chance: A number in [0, 1).
        """
        doubled = self.open_for * 2.0 ** min(trips - 1, MOST_TRIPS)
        return float(min(doubled, self.longest) * (1 - self.jitter * chance))


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and not math.isnan(value)  # type: ignore[arg-type]


class State(Enum):
    """The state of a circuit. The values are shown by the admin API and in logs."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


class Event(Enum):
    """What moves a circuit from one state to another. The values are shown to people."""

    TRIPPED = "too many failures"
    COOLED = "open time is over"
    PROBE_FAILED = "a probe failed"
    PROBES_PASSED = "all probes passed"
    PROBES_LOST = "a probe timed out"
    RESET = "reset by the operator"
    FORCED_OPEN = "forced open by the operator"
    FORCED_CLOSED = "forced closed by the operator"
    RELEASED = "released by the operator"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.COOLED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.PROBE_FAILED): State.OPEN,
    (State.HALF_OPEN, Event.PROBES_PASSED): State.CLOSED,
    (State.HALF_OPEN, Event.PROBES_LOST): State.HALF_OPEN,
    (State.CLOSED, Event.RESET): State.CLOSED,
    (State.OPEN, Event.RESET): State.CLOSED,
    (State.HALF_OPEN, Event.RESET): State.CLOSED,
    (State.CLOSED, Event.FORCED_OPEN): State.OPEN,
    (State.OPEN, Event.FORCED_OPEN): State.OPEN,
    (State.HALF_OPEN, Event.FORCED_OPEN): State.OPEN,
    (State.CLOSED, Event.FORCED_CLOSED): State.CLOSED,
    (State.OPEN, Event.FORCED_CLOSED): State.CLOSED,
    (State.HALF_OPEN, Event.FORCED_CLOSED): State.CLOSED,
    (State.OPEN, Event.RELEASED): State.HALF_OPEN,
    (State.CLOSED, Event.RELEASED): State.CLOSED,
}
"""All transitions; :func:`move` raises ValueError for any other pair."""


class Outcome(Enum):
    """How a call ended, as evidence about the service."""

    OK = "ok"
    """The service responded."""
    FAILED = "failed"
    """The service did not respond, or with a status that counts as a failure."""
    UNREACHABLE = "unreachable"
    """No connection could be made: a failure that also counts for ``connect_failures``."""
    REFUSED = "refused"
    """The service responded with a client error (4xx): not counted, but a probe succeeds."""
    IGNORED = "ignored"
    """No evidence about the service, such as a client that left: a probe is repeated."""


_BAD = frozenset((Outcome.FAILED, Outcome.UNREACHABLE))

_RETRY_SOON = 1.0
"""``Retry-After`` in seconds while all probes of a half-open circuit are in flight."""

_RETRY_FORCED = 60.0
"""The longest ``Retry-After`` in seconds of a circuit that is forced open: the operator may release
it at any time."""

ENDLESS = 2.0**53
"""The ``until`` of a circuit that is forced until it is released."""

AUTO = "auto"
"""What :func:`force` calls a circuit that decides by itself."""


class CircuitVerdict(NamedTuple):
    """The state of one circuit, shared by all workers. Moments are seconds of the store's clock.

    :ivar generation: Counts the transitions; a permit is valid for the generation that granted it.
    :ivar until: Open: when probes begin. Half-open: when the probes are given up. Closed: until
        when another opening doubles the open time.
    :ivar trips: The number of openings in a row.
    :ivar taken: Probes in flight or succeeded.
    :ivar passed: Probes that succeeded.
    :ivar since: When it entered this state; 0 before the first transition.
    :ivar why: The reason for the last transition, without host names.
    :ivar forced: Whether an operator has forced it to this state, until *until*.
    """

    state: State = State.CLOSED
    generation: int = 0
    until: float = 0.0
    trips: int = 0
    taken: int = 0
    passed: int = 0
    since: float = 0.0
    why: str = ""
    forced: bool = False


def move(
    verdict: CircuitVerdict,
    event: Event,
    now: float,
    rules: CircuitRules,
    chance: float = 0.0,
    why: str = "",
) -> CircuitVerdict:
    """Return the verdict after *event*.

    :param chance: A number in [0, 1), for the open time.
    :param why: Details of *event*, for people.
    :raises ValueError: :data:`TRANSITIONS` has no such event in this state.
    """
    state = TRANSITIONS.get((verdict.state, event))
    if state is None:
        raise ValueError(f"a circuit that is {verdict.state.name} has no transition {event.name}")
    generation = verdict.generation + 1
    since = verdict.since if state is verdict.state else now
    if event is Event.TRIPPED:
        why = why or event.value
    else:
        why = f"{event.value}: {why}" if why else event.value
    made = CircuitVerdict(state, generation, now, since=since, why=why[:LONGEST_WHY])
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
    verdict: CircuitVerdict,
    generation: int,
    now: float,
    rules: CircuitRules,
    chance: float = 0.0,
    why: str = "",
) -> CircuitVerdict:
    """Return the verdict after a worker has counted enough failures to open the circuit.

    :param generation: The generation in which it counted them; in another one nothing changes.
    :param chance: A number in [0, 1).
    :param why: The reason, from :meth:`Tally.add`.
    """
    if verdict.state is not State.CLOSED or verdict.generation != generation:
        return verdict
    if is_forced(verdict, now):
        return verdict
    return move(verdict, Event.TRIPPED, now, rules, chance, why)


FORCES = {"open": Event.FORCED_OPEN, "closed": Event.FORCED_CLOSED, AUTO: Event.RELEASED}
"""What an operator can do with a circuit, and the event of each."""


def force(
    verdict: CircuitVerdict, state: str, now: float, rules: CircuitRules, lasts: float | None = None
) -> CircuitVerdict:
    """Return the verdict after an operator has forced the circuit open or closed, or released it.

    Forcing it to the same state again changes how long that lasts. The release of a circuit that is
    not forced changes nothing.

    :param state: ``"open"``, ``"closed"`` or ``"auto"``.
    :param lasts: Seconds after which it is released by itself; ``None`` for no end.
    :raises KeyError: *state* is none of these.
    """
    event = FORCES[state]
    if event is Event.RELEASED:
        return move(verdict, event, now, rules) if is_forced(verdict, now) else verdict
    made = move(verdict, event, now, rules)
    until = ENDLESS if lasts is None else now + lasts
    return made._replace(until=until, forced=True, since=now, trips=0)


def is_forced(verdict: CircuitVerdict, now: float) -> bool:
    """Return whether an operator has forced the circuit to its state, and this lasts at *now*."""
    return verdict.forced and now < verdict.until


def acquire(
    verdict: CircuitVerdict, now: float, rules: CircuitRules
) -> tuple[CircuitVerdict, float]:
    """Return the verdict after a request, and the seconds after which the client may retry.

    0 seconds mean that the request is admitted. In half-open it is a probe: report its result with
    :func:`record_probe`.
    """
    state = verdict.state
    if state is State.CLOSED:
        return verdict, 0.0
    if now < verdict.until:
        if state is State.OPEN:
            left = verdict.until - now
            return verdict, min(left, _RETRY_FORCED) if verdict.forced else left
        if verdict.taken >= rules.probes:
            return verdict, min(_RETRY_SOON, verdict.until - now)
    else:
        lost = state is State.HALF_OPEN
        verdict = move(verdict, Event.PROBES_LOST if lost else Event.COOLED, now, rules)
    return verdict._replace(taken=verdict.taken + 1, until=now + rules.probe_timeout), 0.0


def record_probe(
    verdict: CircuitVerdict,
    generation: int,
    outcome: Outcome,
    now: float,
    rules: CircuitRules,
    *,
    slow: bool = False,
    chance: float = 0.0,
    why: str = "",
) -> CircuitVerdict:
    """Return the verdict after a probe has ended.

    :param generation: The generation that admitted it; results of an older one are ignored.
    :param slow: Whether it took longer than ``slow_after``, which counts as a failure.
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

_FORCED = 0x80
"""The bit of the state's byte that a forced circuit has; to an earlier release it is closed."""

LONGEST_WHY = 160
"""Characters to which a reason is truncated."""


def pack(verdict: CircuitVerdict) -> bytes:
    """Return *verdict* as the bytes that the store keeps."""
    state, *numbers, since, why, forced = verdict
    head = _PACKED.pack(_TAG, _STATES.index(state) | (_FORCED if forced else 0), *numbers)
    return head + _SINCE.pack(since) + why.encode("utf-8", "replace")


def unpack(raw: bytes | None, now: float, rules: CircuitRules) -> CircuitVerdict:
    """Return the verdict that :func:`pack` wrote; a closed one for other bytes, and for ``None``.

    Moments are capped by :func:`bounded`.

    :param now: The time of the store it was read from.
    """
    if raw is None or not _PACKED.size <= len(raw) <= _PACKED.size + 8 + 4 * LONGEST_WHY:
        return CircuitVerdict()
    tag, state, generation, until, trips, taken, passed = _PACKED.unpack_from(raw)
    forced, state = bool(state & _FORCED), state & ~_FORCED
    if tag != _TAG or state >= len(_STATES) or not math.isfinite(until):
        return CircuitVerdict()
    taken = min(taken, rules.probes)
    passed = min(passed, taken)
    trips = min(trips, MOST_TRIPS)
    since, why = 0.0, ""
    if len(raw) >= _PACKED.size + _SINCE.size:  # shorter ones were written by an earlier release
        [since] = _SINCE.unpack_from(raw, _PACKED.size)
        since = since if math.isfinite(since) else 0.0
        why = raw[_PACKED.size + _SINCE.size :].decode("utf-8", "replace")
    verdict = CircuitVerdict(
        _STATES[state], generation, until, trips, taken, passed, since, why, forced
    )
    return bounded(verdict, now, rules)


def bounded(verdict: CircuitVerdict, now: float, rules: CircuitRules) -> CircuitVerdict:
    """Return *verdict* with ``until`` no later than the rules allow, whatever the clock did.

    A forced circuit has the time that the operator gave it.
    """
    if verdict.forced:
        latest = now + max(0.0, verdict.until - verdict.since)
        endless = verdict.until == ENDLESS
        return verdict if endless or verdict.until <= latest else verdict._replace(until=latest)
    half_open = verdict.state is State.HALF_OPEN
    latest = now + (rules.probe_timeout if half_open else rules.longest)
    return verdict._replace(until=latest) if verdict.until > latest else verdict


# The outcome that a response's status stands for.

FAILURES = (500, 502, 503, 504)
"""The statuses that count as failures by default."""

_NOTHING = frozenset((408, 429, 499))  # too slow, too many, gone: all caused by the client


def check_failures(statuses: Collection[int]) -> frozenset[int]:
    """Return *statuses* as a set.

    :raises ValueError: One of them is not a server error (500 to 599).
    """
    for status in statuses:
        if type(status) is not int or not 500 <= status <= 599:
            raise ValueError(f"statuses are 500 to 599: others are no failures, got {status!r}")
    return frozenset(statuses)


def outcome_of(status: int, failures: Collection[int] = FAILURES) -> Outcome:
    """Return the outcome of a call whose response has *status*.

    :param failures: The statuses that count as failures.
    """
    if status < 400:
        return Outcome.OK
    if status in failures:
        return Outcome.FAILED
    if status in _NOTHING:
        return Outcome.IGNORED
    return Outcome.REFUSED if status < 500 else Outcome.OK


# The counts of one worker, and when they are reason to open the circuit.


class CallCounts(NamedTuple):
    """The number of calls, and of the failed and the slow ones among them."""

    calls: int
    failed: int
    slow: int


class CallWindow:
    """Counts the calls of the last *length* seconds.

    Time is cut into parts, and a part is dropped as a whole: the window covers between *length*
    less one part and *length* seconds. A clock that goes back empties the window.

    :param length: Seconds.
    :param parts: The number of parts.
    :ivar calls: The number of calls, as of the last change.
    :ivar failed: The failed ones among them.
    :ivar slow: The slow ones among them.
    """

    __slots__ = (
        "_calls",
        "_failed",
        "_part",
        "_parts",
        "_slow",
        "_tick",
        "calls",
        "failed",
        "slow",
    )

    def __init__(self, length: float, parts: int = 10) -> None:
        self._part = length / parts
        self._parts = parts
        self.clear()

    def clear(self) -> None:
        """Reset all counts."""
        self._tick = -1
        self._calls = [0] * self._parts
        self._failed = [0] * self._parts
        self._slow = [0] * self._parts
        self.calls = self.failed = self.slow = 0

    def add(self, now: float, failed: bool, slow: bool = False) -> None:
        """Count a call that ended at *now*."""
        tick = int(now // self._part)
        if tick != self._tick:
            self._move_to(tick)
        at = tick % self._parts
        self._calls[at] += 1
        self.calls += 1
        if failed:
            self._failed[at] += 1
            self.failed += 1
        if slow:
            self._slow[at] += 1
            self.slow += 1

    def at(self, now: float) -> CallCounts:
        """Return the counts at *now*."""
        tick = int(now // self._part)
        if tick != self._tick:
            self._move_to(tick)
        return CallCounts(self.calls, self.failed, self.slow)

    def _move_to(self, tick: int) -> None:
        """Drop the parts that are older than the window at *tick*."""
        gone = tick - self._tick
        if 0 < gone < self._parts and self._tick >= 0:
            for old in range(self._tick + 1, tick + 1):
                at = old % self._parts
                self._calls[at] = self._failed[at] = self._slow[at] = 0
            self.calls, self.failed, self.slow = map(sum, (self._calls, self._failed, self._slow))
        else:
            self.clear()
        self._tick = tick


class Tally:
    """The call counts of one worker for one service.

    :param rules: The thresholds.
    :ivar failures: Failed calls since the last successful one.
    :ivar successes: Successful calls in all.
    :ivar last_failure: When the last call failed; ``None`` before the first failure.
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
        self._window = CallWindow(rules.window)
        self.failures = self.successes = 0
        self.last_failure: float | None = None
        self.clear()

    def clear(self) -> None:
        """Reset the counts that can open the circuit, as its state has changed."""
        self._in_a_row = self._unreachable = 0
        self._window.clear()

    def add(self, outcome: Outcome, now: float, *, slow: bool = False) -> str:
        """Count a call that ended at *now*; return the reason to open the circuit.

        :param slow: Whether it took longer than ``slow_after``.
        :returns: The reason; empty when the circuit stays closed.
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
        """Reset all failure counts, after the operator has reset the circuit."""
        self.clear()
        self.failures = 0
        self.last_failure = None

    def _share(self, some: int, share: float | None) -> bool:
        calls = self._window.calls
        return share is not None and calls >= self._rules.minimum_calls and some >= share * calls


def _times(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
