"""The registration client's rules: the next request to the registry, and when to send it.

:class:`RegistrationState` is the state of one instance. :func:`next_step` returns the next request,
given the desired status; :func:`after` returns the new state and the wait, given the response. The
meaning of each response:

==================  ==============================================================================
2xx                 Done. The response may set the interval of heartbeats.
404, 410            Not registered: the lease expired, or the registry lost it. Register at once.
408, 425, 429,      Unknown. Try the next registry at once, and after the last one wait: a random
5xx, no response    time from a range that doubles (full jitter), so that the instances do not all
                    come back to a recovering registry at the same moment.
any other           Rejected, for example because of an invalid token: wait longer.
==================  ==============================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

__all__ = [
    "Phase",
    "RegistrationRules",
    "RegistrationState",
    "RegistryResponse",
    "Step",
    "Wanted",
    "after",
    "next_step",
]

LEAST_WAIT = 0.05
"""The least seconds before a failed step is repeated, whatever the jitter."""

SHORTEST, LONGEST = 0.1, 3_600.0
"""The bounds in seconds of the heartbeat interval that a registry may set."""

EARLY = 0.1
"""Maximum random shortening of the heartbeat interval, as a share; it is never lengthened."""


class Wanted(StrEnum):
    """The status that an instance wants to have at its registry."""

    STARTING = "STARTING"
    UP = "UP"
    DRAINING = "DRAINING"
    GONE = "GONE"


class Phase(StrEnum):
    """The registration phase of an instance, as far as it knows."""

    REGISTERING = "registering"
    """It is not registered, or that is not confirmed yet."""
    REGISTERED = "registered"
    """It is registered."""
    LOST = "lost"
    """It was registered, but the registry does not respond."""
    DRAINING = "draining"
    """It is registered, and gets no new requests."""
    GONE = "gone"
    """It has deregistered, or has tried to."""


class Step(StrEnum):
    """A request to the registry."""

    REGISTER = "register"
    HEARTBEAT = "heartbeat"
    UPDATE = "update its status"
    DEREGISTER = "deregister"
    NOTHING = "nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistrationRules:
    """The intervals and waits of a registration client.

    :param registries: The number of registries, which are tried in turn.
    :param interval: Seconds between heartbeats, where the registry sets no interval.
    :param backoff: Upper bound in seconds of the random wait after the first failure; doubled each
        time.
    :param backoff_at_most: The most that this bound grows to: less than the silence after which a
        registry marks an instance as unhealthy.
    :param refused_at_most: The most that it grows to after a rejection.
    :raises ValueError: An argument is invalid; the message names it.
    """

    registries: int = 1
    interval: float = 10.0
    backoff: float = 0.5
    backoff_at_most: float = 10.0
    refused_at_most: float = 60.0

    def __post_init__(self) -> None:
        if self.registries < 1:
            raise ValueError(f"registries is at least 1, got {self.registries}")
        for name in ("interval", "backoff", "backoff_at_most", "refused_at_most"):
            seconds = getattr(self, name)
            if not 0 < seconds <= LONGEST:
                raise ValueError(f"{name} is more than 0 s and at most an hour, got {seconds!r}")


class RegistryResponse(NamedTuple):
    """The registry's response to a step.

    :ivar status: The status of the response; ``None`` without one.
    :ivar interval: Seconds between heartbeats that the registry sets, if it does.
    :ivar retry_after: The seconds of its ``Retry-After``, if it has one.
    :ivar why: The error, for the log.
    """

    status: int | None
    interval: float | None = None
    retry_after: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class RegistrationState:
    """The registration state of an instance.

    :ivar phase: The phase.
    :ivar reported: The status that the registry last confirmed; ``None`` before the first one.
    :ivar sent: Whether it may be registered: a registration was sent, and not rejected.
    :ivar place: The index of the registry to use next, from 0.
    :ivar failures: The number of steps in a row that have failed.
    :ivar refused: Whether the last one was rejected.
    :ivar interval: Seconds between heartbeats that the registry sets; ``None`` without.
    """

    phase: Phase = Phase.REGISTERING
    reported: Wanted | None = None
    sent: bool = False
    place: int = 0
    failures: int = 0
    refused: bool = False
    interval: float | None = None


_NOT_THERE = (404, 410)
_AGAIN = (408, 425, 429)


def next_step(standing: RegistrationState, wanted: Wanted) -> Step:
    """Return the next request to the registry, for an instance that wants the status *wanted*."""
    if standing.phase is Phase.GONE:
        return Step.NOTHING
    if wanted is Wanted.GONE:
        # An instance that may be registered deregisters, too.
        return Step.DEREGISTER if standing.sent else Step.NOTHING
    if standing.phase is Phase.REGISTERING and wanted is not Wanted.DRAINING:
        return Step.REGISTER
    if not standing.sent:
        return Step.NOTHING
    return Step.HEARTBEAT if standing.reported is wanted else Step.UPDATE


def after(
    standing: RegistrationState,
    step: Step,
    wanted: Wanted,
    answer: RegistryResponse,
    chance: float,
    rules: RegistrationRules,
) -> tuple[RegistrationState, float]:
    """Return the state after *answer* to *step*, and the seconds until the next step.

    :param wanted: The status that it wanted when the step was made.
    :param chance: A number in [0, 1).
    """
    status = answer.status
    if status is not None and 200 <= status < 300:
        return _done(standing, step, wanted, answer, chance, rules)
    if status in _NOT_THERE and step is not Step.REGISTER:
        leaving = wanted in (Wanted.DRAINING, Wanted.GONE)
        return replace(
            standing,
            phase=Phase.GONE if leaving else Phase.REGISTERING,
            reported=None,
            sent=False,
            failures=0,
            refused=False,
        ), 0.0
    return _failed(standing, step, answer, chance, rules)


def _done(
    standing: RegistrationState,
    step: Step,
    wanted: Wanted,
    answer: RegistryResponse,
    chance: float,
    rules: RegistrationRules,
) -> tuple[RegistrationState, float]:
    if step is Step.DEREGISTER:
        return replace(standing, phase=Phase.GONE, reported=None, sent=False, failures=0), 0.0
    reported = standing.reported if step is Step.HEARTBEAT else wanted
    interval = _usable(answer.interval) or standing.interval
    now = replace(
        standing,
        phase=Phase.DRAINING if reported is Wanted.DRAINING else Phase.REGISTERED,
        reported=reported,
        sent=True,
        failures=0,
        refused=False,
        interval=interval,
    )
    return now, (interval or rules.interval) * (1 - EARLY * chance)


def _failed(
    standing: RegistrationState,
    step: Step,
    answer: RegistryResponse,
    chance: float,
    rules: RegistrationRules,
) -> tuple[RegistrationState, float]:
    status = answer.status
    refused = status is not None and status < 500 and status not in _AGAIN
    failures = standing.failures + 1
    now = replace(
        standing,
        phase=Phase.LOST if standing.phase is Phase.REGISTERED else standing.phase,
        # A registration without a response may have succeeded.
        sent=standing.sent or (step is Step.REGISTER and not refused),
        place=(standing.place + 1) % rules.registries,
        failures=failures,
        refused=refused,
    )
    if failures % rules.registries:
        return now, LEAST_WAIT  # another registry was not tried yet
    most = rules.refused_at_most if refused else rules.backoff_at_most
    rounds = min(failures // rules.registries - 1, 30)
    wait = min(most, rules.backoff * 2.0**rounds) * chance
    asked = min(answer.retry_after or 0.0, rules.refused_at_most)
    return now, max(LEAST_WAIT, wait, asked)


def _usable(interval: float | None) -> float | None:
    """Return *interval* within :data:`SHORTEST` and :data:`LONGEST`; ``None`` if it is unusable."""
    if interval is None or not math.isfinite(interval) or interval <= 0:
        return None
    return min(max(interval, SHORTEST), LONGEST)
