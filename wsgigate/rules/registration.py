"""What a service does next so that a registry knows of it, decided.

A :class:`Standing` is what is known of one instance at its registry. :func:`next_step` says what is
asked next, given what the instance wants to be; :func:`after` makes of the answer the new standing
and how long to wait. What each answer means:

==================  ==============================================================================
2xx                 It is as was asked. The registry may say how often it wants to be told.
404, 410            It is not there: forgotten, or the registry began anew. Register again, at once.
408, 429, 5xx,      Nothing is known. Ask the next registry at once, and after all of them wait: a
no answer           time drawn from a range that doubles (full jitter), so that a registry that
                    comes back is not met by everybody at the same moment.
any other           Refused, as by a wrong token, and so until somebody mends it: wait longer.
==================  ==============================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

__all__ = [
    "Answer",
    "Phase",
    "RegistrationRules",
    "Standing",
    "Step",
    "Wanted",
    "after",
    "next_step",
]

LEAST_WAIT = 0.05
"""Seconds that are waited before a failed step is tried again, however small the chance drawn."""

SHORTEST, LONGEST = 0.1, 3_600.0
"""Seconds between which a registry may say how often it wants to be told."""

EARLY = 0.1
"""By which share of the interval a heartbeat may come early; it never comes late."""


class Wanted(StrEnum):
    """What an instance is to be at its registry."""

    STARTING = "STARTING"
    UP = "UP"
    DRAINING = "DRAINING"
    GONE = "GONE"


class Phase(StrEnum):
    """How an instance stands at its registry, as far as it knows."""

    REGISTERING = "registering"
    """It is not there, or nobody has said that it is."""
    REGISTERED = "registered"
    """It is there."""
    LOST = "lost"
    """It was there, but the registry does not answer."""
    DRAINING = "draining"
    """It is there, and gets no new requests."""
    GONE = "gone"
    """It has left, or has done for that what it could."""


class Step(StrEnum):
    """What is asked of the registry."""

    REGISTER = "register"
    HEARTBEAT = "heartbeat"
    TELL = "tell its status"
    DEREGISTER = "deregister"
    NOTHING = "nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistrationRules:
    """How a registry is asked.

    :param registries: How many there are, to be asked in turn.
    :param interval: Seconds between heartbeats, unless the registry says otherwise.
    :param backoff: Seconds that the wait after the first failure is drawn from; doubled each time.
    :param backoff_at_most: The most it is drawn from: shorter than the time after which a registry
        takes an instance that is silent for unhealthy.
    :param refused_at_most: The most it is drawn from after a refusal.
    :raises ValueError: A setting is out of its range; says which.
    """

    registries: int = 1
    interval: float = 10.0
    backoff: float = 0.5
    backoff_at_most: float = 10.0
    refused_at_most: float = 60.0

    def __post_init__(self) -> None:
        if self.registries < 1:
            raise ValueError(f"there is at least one registry, got {self.registries}")
        for name in ("interval", "backoff", "backoff_at_most", "refused_at_most"):
            seconds = getattr(self, name)
            if not 0 < seconds <= LONGEST:
                raise ValueError(f"{name} is more than 0 s and at most an hour, got {seconds!r}")


class Answer(NamedTuple):
    """What came of a step.

    :ivar status: The status of the answer; ``None`` when there was none.
    :ivar interval: Seconds between heartbeats that the registry asks for, if it does.
    :ivar retry_after: Seconds that it asks to be left alone, if it does.
    :ivar why: What was wrong, in words for the log.
    """

    status: int | None
    interval: float | None = None
    retry_after: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """How an instance stands at its registry.

    :ivar phase: What is taken for true.
    :ivar told: The status that the registry was last told; ``None`` when it was told nothing.
    :ivar sent: Whether it may be there: a registration was sent, and not refused.
    :ivar place: Which of the registries is asked next, from 0.
    :ivar failures: How many steps in a row have failed.
    :ivar refused: Whether the last one was refused.
    :ivar interval: Seconds between heartbeats that the registry asks for; ``None`` if it does not.
    """

    phase: Phase = Phase.REGISTERING
    told: Wanted | None = None
    sent: bool = False
    place: int = 0
    failures: int = 0
    refused: bool = False
    interval: float | None = None


_NOT_THERE = (404, 410)
_AGAIN = (408, 425, 429)


def next_step(standing: Standing, wanted: Wanted) -> Step:
    """Return what is asked of the registry next, by an instance that wants to be *wanted*."""
    if standing.phase is Phase.GONE:
        return Step.NOTHING
    if wanted is Wanted.GONE:
        # one that was perhaps registered leaves as one that was
        return Step.DEREGISTER if standing.sent else Step.NOTHING
    if standing.phase is Phase.REGISTERING and wanted is not Wanted.DRAINING:
        return Step.REGISTER
    if not standing.sent:
        return Step.NOTHING
    return Step.HEARTBEAT if standing.told is wanted else Step.TELL


def after(
    standing: Standing,
    step: Step,
    wanted: Wanted,
    answer: Answer,
    chance: float,
    rules: RegistrationRules,
) -> tuple[Standing, float]:
    """Return how the instance stands after *answer* to *step*, and in how many seconds it goes on.

    :param wanted: What it wanted to be when it asked.
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
            told=None,
            sent=False,
            failures=0,
            refused=False,
        ), 0.0
    return _failed(standing, step, answer, chance, rules)


def _done(
    standing: Standing,
    step: Step,
    wanted: Wanted,
    answer: Answer,
    chance: float,
    rules: RegistrationRules,
) -> tuple[Standing, float]:
    if step is Step.DEREGISTER:
        return replace(standing, phase=Phase.GONE, told=None, sent=False, failures=0), 0.0
    told = standing.told if step is Step.HEARTBEAT else wanted
    interval = _usable(answer.interval) or standing.interval
    now = replace(
        standing,
        phase=Phase.DRAINING if told is Wanted.DRAINING else Phase.REGISTERED,
        told=told,
        sent=True,
        failures=0,
        refused=False,
        interval=interval,
    )
    return now, (interval or rules.interval) * (1 - EARLY * chance)


def _failed(
    standing: Standing, step: Step, answer: Answer, chance: float, rules: RegistrationRules
) -> tuple[Standing, float]:
    status = answer.status
    refused = status is not None and status < 500 and status not in _AGAIN
    failures = standing.failures + 1
    now = replace(
        standing,
        phase=Phase.LOST if standing.phase is Phase.REGISTERED else standing.phase,
        # what was not answered may have been done
        sent=standing.sent or (step is Step.REGISTER and not refused),
        place=(standing.place + 1) % rules.registries,
        failures=failures,
        refused=refused,
    )
    if failures % rules.registries:
        return now, LEAST_WAIT  # there is one that was not asked yet
    most = rules.refused_at_most if refused else rules.backoff_at_most
    rounds = min(failures // rules.registries - 1, 30)
    wait = min(most, rules.backoff * 2.0**rounds) * chance
    asked = min(answer.retry_after or 0.0, rules.refused_at_most)
    return now, max(LEAST_WAIT, wait, asked)


def _usable(interval: float | None) -> float | None:
    """Return *interval* within what is bearable for both sides."""
    if interval is None or not math.isfinite(interval) or interval <= 0:
        return None
    return min(max(interval, SHORTEST), LONGEST)
