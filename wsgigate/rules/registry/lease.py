"""Leases: how long an instance is believed without being heard of, and who is let go.

When many fall silent at once, it is more likely the network, or the registry, than all of them:
then only a few are let go each minute, and of each service the last one last. Eureka calls that
self-preservation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wsgigate.rules.registry.entry import Registered

__all__ = [
    "LONG_ABSENCE",
    "Evictions",
    "LeaseRules",
    "evictions",
    "is_preserving",
    "round_time",
    "short_absence",
    "silent_since",
    "was_away",
]

MINUTE = 60.0
"""In which time no more than a share is removed; less where leases are shorter."""


class Evictions(NamedTuple):
    """What was removed in the present minute of self-preservation.

    :ivar since: When the minute began.
    :ivar gone: How many were removed in it.
    """

    since: float = 0.0
    gone: int = 0


@dataclass(frozen=True)
class LeaseRules:
    """How long an instance is believed. All in seconds but *preserve*.

    :param heartbeat: How often an instance is to be heard of.
    :param unhealthy_after: After how long a silence it is no longer taken to be healthy.
    :param remove_after: After how long a silence it is removed.
    :param preserve: The share of all instances that may be silent; when more are, no more than this
        share is removed in a minute, and one at least. 1 removes all of them at once.
    :raises ValueError: One of them is out of its range; says which.
    """

    heartbeat: float = 10.0
    unhealthy_after: float = 30.0
    remove_after: float = 90.0
    preserve: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat <= 3600:
            raise ValueError(f"heartbeat is more than 0 and at most 3600 s, got {self.heartbeat}")
        if not self.heartbeat < self.unhealthy_after <= 86_400:
            raise ValueError(
                f"unhealthy_after is more than a heartbeat and at most a day, "
                f"got {self.unhealthy_after}"
            )
        if not self.unhealthy_after <= self.remove_after <= 86_400:
            raise ValueError(
                "remove_after is at least unhealthy_after and at most a day, "
                f"got {self.remove_after}"
            )
        if not 0 <= self.preserve <= 1:
            raise ValueError(f"preserve is a share from 0 to 1, got {self.preserve}")

    def recent(self, state: Evictions, now: float) -> int:
        """Return how many were removed in the present minute: of leases shorter than that, in the
        time that they last."""
        return state.gone if 0 <= now - state.since < min(MINUTE, self.remove_after) else 0


LONG_ABSENCE = 10.0
"""Seconds without a round after which the registry was away whatever else is known."""

_ROUNDS = 3


def round_time(rules: LeaseRules) -> float:
    """Return the seconds between two rounds of the worker that looks after leases."""
    return min(1.0, rules.heartbeat / 2)


def short_absence(rules: LeaseRules) -> float:
    """Return the seconds without a round after which the registry may have been away."""
    return min(LONG_ABSENCE, _ROUNDS * round_time(rules))


def was_away(gap: float, rules: LeaseRules, *, steady: bool) -> bool:
    """Return whether nobody could be heard of for *gap* seconds, which are no silence then.

    A worker that goes on looking after leases may take some seconds for a round: that is no
    absence, as heartbeats are taken meanwhile. After any other gap (the registry was restarted, its
    store failed, another worker took over) some of them may have been lost, so it does not count,
    however short it is.

    :param gap: Seconds of the store's clock from the beginning of the last round to this one.
    :param steady: Whether the same worker did both, without a pause in between.
    """
    return gap > (LONG_ABSENCE if steady else short_absence(rules))


def silent_since(last_heartbeat: float, away: Iterable[tuple[float, float]]) -> float:
    """Return since when a silence counts: the time in which nobody listened does not.

    :param away: From when to when the registry itself was away, each after the other.
    """
    return last_heartbeat + sum(
        max(0.0, until - max(since, last_heartbeat)) for since, until in away
    )


def is_preserving(silent: int, count: int, rules: LeaseRules) -> bool:
    """Tell whether too many are silent for it to be their own doing.

    :param silent: How many of *count* have not been heard of for ``unhealthy_after``.
    """
    return silent > _allowed(count, rules)


def _allowed(count: int, rules: LeaseRules) -> int:
    return max(1, int(rules.preserve * count))


def evictions(
    entries: Sequence[Registered], now: float, rules: LeaseRules, state: Evictions
) -> tuple[tuple[Registered, ...], Evictions]:
    """Return whose lease is over and who is to go now, and the new state.

    :param entries: All entries of all services.
    :param state: What was returned the last time.
    """
    return evictions_among(entries, Counter(each.service for each in entries), now, rules, state)


def evictions_among(
    entries: Iterable[Registered],
    sizes: Mapping[str, int],
    now: float,
    rules: LeaseRules,
    state: Evictions,
) -> tuple[tuple[Registered, ...], Evictions]:
    """Return what :func:`evictions` does.

    :param entries: At least the entries that are silent.
    :param sizes: How many instances each service has.
    """
    count = sum(sizes.values())
    ages = [(now - entry.silent_since, entry) for entry in entries]
    over = sorted(
        ((age, entry) for age, entry in ages if age > entry.remove_after(rules)),
        key=lambda each: (-each[0], each[1].service, each[1].instance_id),
    )
    if not over:
        return (), state
    silent = sum(age > entry.unhealthy_after(rules) for age, entry in ages)
    # those that went within this minute were silent as well, and were there when it began
    gone = rules.recent(state, now)
    if not is_preserving(silent + gone, count + gone, rules):
        chosen = [entry for _, entry in over]
    else:
        room = _allowed(count + gone, rules) - gone
        chosen = _spread([entry for _, entry in over], sizes)[: max(0, room)]
    if not chosen:
        return (), state
    return tuple(chosen), Evictions(state.since if gone else now, gone + len(chosen))


def _spread(over: Sequence[Registered], sizes: Mapping[str, int]) -> list[Registered]:
    """Return *over* in an order that takes the same share of every service, the last one last."""
    turns: Counter[str] = Counter()
    ranked = []
    for position, entry in enumerate(over):
        turns[entry.service] += 1
        ranked.append((turns[entry.service] / sizes[entry.service], position, entry))
    return [entry for _, _, entry in sorted(ranked, key=lambda each: each[:2])]
