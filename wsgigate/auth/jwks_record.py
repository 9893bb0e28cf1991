"""What the workers know of an issuer's keys: one value of the store, and how an attempt changes it.

All times are those of the store; :mod:`.jwks` has the rules that these functions follow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from wsgigate.auth.jwk import Jwk

__all__ = [
    "IN_FLIGHT",
    "KEEP",
    "JwksAnswer",
    "JwksRecord",
    "decoded",
    "encoded",
    "failed",
    "merged",
    "started",
    "succeeded",
]

KEEP = 86_400.0
"""Seconds for which the last good keys are used."""

IN_FLIGHT = 20.0
"""Seconds after which the attempt of a worker that died is another's."""

_SHORTEST = 60.0
"""The least seconds between two attempts that a ``Cache-Control`` field can ask for."""

_SKEW = 60.0
"""Seconds by which an answer may be older than the last one: the clocks of servers differ."""


class JwksAnswer(NamedTuple):
    """The keys that an issuer published.

    :ivar keys: The keys that can be used.
    :ivar made: Unix time at which the answer was made, by its ``Date`` and ``Age``; None if it does
        not have them.
    :ivar max_age: Seconds for which it may be used without asking again, by its ``Cache-Control``.
    :ivar left_out: Why keys that should be usable are not: the weak and the private ones.
    """

    keys: tuple[Jwk, ...]
    made: float | None = None
    max_age: float | None = None
    left_out: tuple[str, ...] = ()


class JwksRecord(NamedTuple):
    """What the workers know of an endpoint.

    :ivar keys: The last good keys: their public members, and ``gone`` for one that the last answer
        did not have.
    :ivar at: When they were fetched; None before.
    :ivar made: When that answer was made, by its fields.
    :ivar earliest: No attempt begins before, not even for an unknown key id.
    :ivar due: The next attempt begins then, unless an unknown key id makes it earlier.
    :ivar failures: Number of failures since the last good answer.
    :ivar error: Why the last attempt failed; empty if it did not.
    :ivar claim: Identifies the attempt in flight; empty without one.
    """

    keys: tuple[Jwk, ...] = ()
    at: float | None = None
    made: float | None = None
    earliest: float = 0.0
    due: float = 0.0
    failures: int = 0
    error: str = ""
    claim: str = ""

    def known(self, now: float) -> bool:
        """Return whether there are keys that may be used at *now*."""
        return self.at is not None and now - self.at < KEEP


def encoded(record: JwksRecord) -> bytes:
    """Return *record* as a value of a store."""
    return json.dumps(record._asdict(), separators=(",", ":"), sort_keys=True).encode()


def decoded(value: bytes | None) -> JwksRecord:
    """Return the record in *value*; an empty one if it is not usable."""
    if value is None:
        return JwksRecord()
    try:
        record = JwksRecord(**json.loads(value))
        times = (record.at or 0.0, record.made or 0.0, record.earliest, record.due)
        texts = isinstance(record.error, str) and isinstance(record.claim, str)
        counted = texts and isinstance(record.failures, int)
        if counted and all(isinstance(key, dict) for key in record.keys) and max(times) < math.inf:
            return record._replace(keys=tuple(record.keys))
    except (ValueError, TypeError):
        pass
    return JwksRecord()


def started(record: JwksRecord, now: float, claim: str) -> JwksRecord:
    """Return *record* with an attempt in flight."""
    return record._replace(earliest=now + IN_FLIGHT, due=now + IN_FLIGHT, claim=claim)


def merged(known: Sequence[Jwk], found: Sequence[Jwk]) -> tuple[Jwk, ...]:
    """Return the keys to use after an answer with *found*.

    A key that it does not have is marked ``gone``, and dropped if it was marked before.
    """
    missing = [key for key in known if "gone" not in key and key not in found]
    return (*found, *({**key, "gone": True} for key in missing))


def succeeded(
    record: JwksRecord,
    answer: JwksAnswer,
    began: float,
    *,
    refresh: float,
    cooldown: float,
    asked: bool = False,
) -> JwksRecord:
    """Return *record* after the attempt that *began* then brought *answer*.

    :param asked: Whether an unknown key id triggered it. Only such an attempt postpones the next
        one of its kind: a key that is used right after a regular attempt is found at once.
    """
    keys, made = merged(record.keys, answer.keys), answer.made
    if _same(record.keys, answer.keys):  # in any order: tokens that were verified stay verified
        keys, made = record.keys, max(filter(None, (record.made, made)), default=None)
    elif record.made is not None and made is not None and made < record.made - _SKEW:
        older = f"its answer is {record.made - made:.0f} s older than the last one"
        return failed(record, older, began, cooldown=cooldown)
    wait = refresh
    if answer.max_age is not None:
        wait = min(refresh, max(answer.max_age, _SHORTEST))
    if any("gone" in key for key in keys):
        wait = cooldown  # ask again soon whether they are gone
    earliest = began + cooldown if asked else began
    error = answer.left_out[0] if answer.left_out else ""
    due = began + max(wait, cooldown)
    return JwksRecord(keys, began, made, earliest, due, 0, error)


def _same(known: Sequence[Jwk], found: Sequence[Jwk]) -> bool:
    """Return whether an answer has all known keys and no other; its age is of no consequence then.

    The caches of a content delivery network have answers of different ages.
    """
    return all(key in found for key in known) and all(key in known for key in found)


def failed(record: JwksRecord, why: str, began: float, *, cooldown: float) -> JwksRecord:
    """Return *record* after the attempt that *began* then failed."""
    failures = record.failures + 1
    pause = cooldown
    if record.at is None:  # no token can be judged: begin with short pauses
        pause = min(cooldown, 2.0 ** min(failures - 1, 10))
    again = began + pause
    return record._replace(earliest=again, due=again, failures=failures, error=why, claim="")
