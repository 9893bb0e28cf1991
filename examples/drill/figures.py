"""The figures of a drill, from what clients saw and what instances wrote. No I/O, no clock.

All times are seconds since the load began.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clients import Request

__all__ = ["Entry", "Slice", "Trouble", "evaluate", "p99", "posts", "slices"]

QUIET = 2.0
"""An instance is out when it has harmed no request for this long."""
SECOND = 1.0
BEFORE = 4.0
"""Seconds before a trouble that those during it are compared with."""
NORMAL = 2.0
"""The 99th percentile is normal up to this multiple of what it was before."""
LATE = 0.1
"""A request at an instance that hung, unanswered after this many seconds, hangs."""


class Trouble(NamedTuple):
    """Something that befalls an instance, and its end.

    :ivar what: ``"killed"``, ``"hung"`` or ``"failing"``.
    :ivar instance: The instance that it happens to.
    :ivar began: When.
    :ivar ended: When it is over: the instance could answer again.
    :ivar until: When what was measured of it ends.
    """

    what: str
    instance: str
    began: float
    ended: float
    until: float


class Entry(NamedTuple):
    """One line of an instance's journal."""

    at: float
    method: str
    id: str
    status: int


class Slice(NamedTuple):
    """A short time of the drill.

    :ivar at: When it begins.
    :ivar answers: By instance, how many requests it answered well.
    :ivar errors: Requests that failed.
    :ivar p99: Milliseconds.
    """

    at: float
    answers: dict[str, int]
    errors: int
    p99: float


def p99(requests: Sequence[Request]) -> float:
    """Return the milliseconds that 99 % of *requests* took no more than; nan of none."""
    if not requests:
        return math.nan
    took = sorted(request.took for request in requests)
    return 1000 * took[max(0, math.ceil(0.99 * len(took)) - 1)]


def slices(
    requests: Sequence[Request], names: Sequence[str], end: float, seconds: float
) -> list[Slice]:
    """Return the time until *end* in slices of *seconds*; a request belongs where it was due."""
    found: list[list[Request]] = [[] for _ in range(math.ceil(end / seconds))]
    for request in requests:
        place = int(request.due / seconds)
        if 0 <= place < len(found):
            found[place].append(request)
    return [
        Slice(
            place * seconds,
            {
                name: sum(each.instance == name and not each.failed for each in part)
                for name in names
            },
            sum(each.failed for each in part),
            p99(part),
        )
        for place, part in enumerate(found)
    ]


def posts(requests: Sequence[Request], journals: Mapping[str, Sequence[Entry]]) -> dict[str, int]:
    """Return the outcome of the POSTs.

    ``twice`` counts those that were processed more than once, by whichever instances; ``lost``
    those that were answered as done but that no instance processed.
    """
    processed = Counter(
        entry.id for entries in journals.values() for entry in entries if entry.method == "POST"
    )
    sent = [request for request in requests if request.method == "POST"]
    return {
        "sent": len(sent),
        "failed": sum(request.failed for request in sent),
        "twice": sum(count > 1 for count in processed.values()),
        "lost": sum(not request.failed and not processed[request.id] for request in sent),
    }


def evaluate(
    trouble: Trouble, requests: Sequence[Request], journals: Mapping[str, Sequence[Entry]]
) -> dict[str, Any]:
    """Return the figures of one trouble.

    ``asked`` is how many requests the instance was given while it was not well; of one that was
    killed only the operating system has that, so it is ``None``. ``asked_at_first`` are those until
    it was out the first time, ``asked_last`` those in the last second of its trouble, when it
    should be.
    ``out`` is for how long requests came to harm by the instance: they were given to it, or failed.
    ``back`` is how long it took after its trouble until the instance answered a client; ``None``
    when it never did. ``normal`` is how long it took until the beginning of a second in which 99 %
    of requests took no more than twice what they did before; ``None`` when there was none.
    """
    before = [
        each for each in requests if trouble.began - BEFORE <= each.due and each.end < trouble.began
    ]
    during = [each for each in requests if trouble.began < each.end and each.due < trouble.ended]
    after = [each for each in requests if trouble.ended <= each.due < trouble.until]
    safe = [each for each in during if each.method == "GET"]
    failed = [each for each in safe if each.failed]
    given = _given(trouble, during, journals[trouble.instance])
    harmed = sorted([*given, *(each.due for each in during if each.failed)])
    return {
        "what": trouble.what,
        "instance": trouble.instance,
        "safe": len(safe),
        "safe_failed": len(failed),
        "safe_failed_later": sum(each.due > trouble.began + SECOND for each in failed),
        "posts_failed": sum(each.failed and each.method == "POST" for each in during),
        "asked": None if trouble.what == "killed" else len(given),
        "asked_last": None
        if trouble.what == "killed"
        else sum(trouble.ended - SECOND <= at < trouble.ended for at in given),
        "asked_at_first": None if trouble.what == "killed" else len(_first(given, trouble.began)),
        "out": max(0.0, max(_first(harmed, trouble.began), default=trouble.began) - trouble.began),
        "back": _back(trouble, requests),
        "p99_before": p99(before),
        "p99_during": p99(during),
        "p99_after": p99(after),
        "normal": _normal(trouble, requests, NORMAL * p99(before)),
    }


def _given(trouble: Trouble, during: Sequence[Request], journal: Sequence[Entry]) -> list[float]:
    """Return when the instance was given the requests that it could not answer well.

    One that hangs writes its journal when it goes on: what clients had sent before was waiting for
    it all the time.
    """
    if trouble.what == "failing":
        return [entry.at for entry in journal if entry.status == 500]
    if trouble.what == "killed":
        return []
    sent = {request.id: request for request in during}
    found = []
    for entry in journal:
        request = sent.get(entry.id)
        if request is None:
            continue
        waited = entry.at >= trouble.ended
        if waited or (entry.at <= trouble.began and request.end > trouble.began + LATE):
            found.append(max(request.due, trouble.began))
    return sorted(found)


def _first(times: Sequence[float], began: float) -> list[float]:
    """Return those of *times* that come before the instance is out the first time."""
    found: list[float] = []
    last = began
    for time in times:
        if time - last > QUIET:
            break
        last = max(last, time)
        found.append(time)
    return found


def _back(trouble: Trouble, requests: Sequence[Request]) -> float | None:
    answers = (
        request.end - trouble.ended
        for request in requests
        if request.instance == trouble.instance
        and not request.failed
        and trouble.ended <= request.due
    )
    return min(answers, default=None)


def _normal(trouble: Trouble, requests: Sequence[Request], most: float) -> float | None:
    step = 0.1
    for number in range(int((trouble.ended - trouble.began - SECOND) / step) + 1):
        begin = trouble.began + number * step
        part = [each for each in requests if begin <= each.due < begin + SECOND]
        if p99(part) <= most:
            return number * step
    return None
