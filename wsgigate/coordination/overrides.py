"""What operators have changed about the instances of a gateway's services, shared by all workers.

Theory of operation
-------------------

An operator drains an instance before a deployment, ejects one that misbehaves, or changes its
weight. That is an :class:`Override`. The rules:

1. **One value of the store has all overrides of a gateway.** A worker reads it twice a second, in
   the thread of its reports, and hands the result to the pools. A request reads nothing: its pool
   has been given the new state already.
2. **A change is one atomic update** of that value. Two operators who change two instances at once
   both succeed. A change that names the state it is meant for (``If-Match``) fails if another one
   came first; :func:`changed` compares and writes in one step.
3. **It outlives processes.** The value belongs to no worker, and to no configuration.
   :meth:`Overrides.look` runs before a worker serves its first request, so that the successor of a
   killed worker sends nothing to a drained instance. An override is of a URL: it applies as well to
   an instance that leaves and comes back, until it ends.
4. **A store that fails changes nothing.** The last value read stays in force, and overrides with an
   end still end. A worker that starts during the outage knows none. A value that was wiped from the
   store is wiped here as well.
5. **A read that began before a change in this process is discarded** (``_changes``), or it would
   undo the change for half a second.
6. **The number is bounded**, by :data:`MOST` and by the size of a value of a store.

``active`` is what an instance is without an override. It is stored for a minute all the same: a
worker that sees it for the first time ends its own automatic ejection of the instance, which no
other worker knows about.

With the store ``memory:`` each process has its own overrides (:attr:`Overrides.shared`).
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

from wsgigate.runtime import fork
from wsgigate.runtime.clocks import steady
from wsgigate.runtime.logs import ChangeLog, FailureLog, one_line
from wsgigate.store import Store, StoreError, update
from wsgigate.store.open import OpenedStore

__all__ = [
    "ACTIVE",
    "AUTOMATIC",
    "DRAINED",
    "EJECTED",
    "HEAVIEST",
    "LONGEST",
    "MOST",
    "STATES",
    "CanOverride",
    "Override",
    "OverrideChanged",
    "Overrides",
    "changed",
    "in_force",
    "read",
]


# The stored value, and its change: pure functions.

ACTIVE, DRAINED, EJECTED = STATES = ("active", "drained", "ejected")
"""The states: *drained* gets no new request but those of its sticky sessions, *ejected* none."""

MOST = 500
"""Maximum number of overrides of one gateway."""

MOST_BYTES = 60_000
"""Maximum bytes of all overrides together; a value of a store is at most 64 KiB."""

LONGEST = 10 * 365 * 86_400.0
"""Maximum duration in seconds; also the time to live of the stored value."""

HEAVIEST = 65_535
"""The largest weight."""

RESTORING = 60.0
"""Seconds for which ``active`` is stored, so that every worker ends its automatic ejection."""

_BY = re.compile(r"[^\x00-\x1f\x7f]{0,100}")


class Override(NamedTuple):
    """What an operator has decided about an instance.

    :ivar state: ``active``, ``drained`` or ``ejected``.
    :ivar weight: Its weight in place of the configured one; ``None`` for that one.
    :ivar since: When it was decided, in seconds of the store's clock.
    :ivar until: When it ends; ``None`` if only on command.
    :ivar by: The operator, for people.
    :ivar change: The number of the change that made it.
    """

    state: str = ACTIVE
    weight: int | None = None
    since: float = 0.0
    until: float | None = None
    by: str = ""
    change: int = 0

    @property
    def automatic(self) -> bool:
        """Whether it changes nothing."""
        return self.state == ACTIVE and self.weight is None


AUTOMATIC = Override()
"""The state of an instance without an override."""

OverrideTable: TypeAlias = Mapping[str, Mapping[str, Override]]
"""Overrides by the name of the service and the URL of the instance."""


class OverrideChanged(Exception):
    """Another operator has changed the instance meanwhile; nothing was written.

    :ivar override: Its present override.
    """

    def __init__(self, override: Override) -> None:
        super().__init__("the instance has been changed meanwhile")
        self.override = override


def read(value: bytes | None) -> tuple[int, dict[str, dict[str, Override]]]:
    """Return the number of the last change in *value*, and the overrides; none if malformed."""
    try:
        number, services = json.loads(value or b"[0,{}]")
        return int(number), {
            str(service): {str(url): _override(*entry) for url, entry in entries.items()}
            for service, entries in services.items()
        }
    except (ValueError, TypeError, AttributeError):
        return 0, {}


def _override(
    state: str, weight: int | None, since: float, until: float | None, by: str, change: int
) -> Override:
    if state not in STATES or not (weight is None or 1 <= int(weight) <= HEAVIEST):
        raise ValueError("no such override")
    return Override(
        state,
        None if weight is None else int(weight),
        float(since),
        None if until is None else float(until),
        str(by),
        int(change),
    )


def in_force(table: OverrideTable, now: float) -> dict[str, dict[str, Override]]:
    """Return the overrides of *table* that last at *now*."""
    lasting = {
        service: {url: each for url, each in entries.items() if _lasts(each, now)}
        for service, entries in table.items()
    }
    return {service: entries for service, entries in lasting.items() if entries}


def _lasts(override: Override, now: float) -> bool:
    return override.until is None or now < override.until


def changed(
    value: bytes | None,
    service: str,
    url: str,
    now: float,
    *,
    state: str,
    weight: int | None = None,
    lasts: float | None = None,
    by: str = "",
    matches: Callable[[Override], bool] = lambda _: True,
) -> tuple[bytes | None, Override, bool]:
    """Return *value* with the instance at *url* changed, its override, and whether it was changed.

    Overrides that are over are removed.

    :param state: One of :data:`STATES`; ``active`` without *weight* removes the override.
    :param weight: Its weight, 1 to 65535; ``None`` for the configured one.
    :param lasts: Seconds after which the override ends; ``None`` for no end.
    :param by: The operator, for people; at most 100 characters.
    :param matches: Whether the override that is replaced is the expected one; otherwise nothing is
        changed.
    :raises ValueError: An argument is invalid, or there are too many overrides; the message names
        the argument.
    """
    _check(state, weight, lasts, by)
    number, table = read(value)
    table = in_force(table, now)
    before = table.get(service, {}).get(url, AUTOMATIC)
    if not matches(AUTOMATIC if before.automatic else before):
        return value, before, False
    made = Override(state, weight, now, None if lasts is None else now + lasts, by, number + 1)
    if made.automatic:
        made = made._replace(until=now + RESTORING)
    table.setdefault(service, {})[url] = made
    raw = json.dumps([number + 1, table], separators=(",", ":")).encode()
    count = sum(map(len, table.values()))
    if not made.automatic and (count > MOST or len(raw) > MOST_BYTES):
        raise ValueError(
            f"state: a gateway has at most {MOST} changed instances, {MOST_BYTES} bytes in all; "
            "set some of them to active first"
        )
    return raw, made, True


def _check(state: str, weight: int | None, lasts: float | None, by: str) -> None:
    if state not in STATES:
        raise ValueError(f"state: one of {', '.join(STATES)}, not {state!r}")
    if weight is not None and (type(weight) is not int or not 1 <= weight <= HEAVIEST):
        raise ValueError(
            f"weight: a whole number from 1 to {HEAVIEST}, not {weight!r}; "
            "the state drained sends no requests to an instance"
        )
    if lasts is not None and not 0 < lasts <= LONGEST:
        raise ValueError(f"for: more than 0 seconds and at most ten years, not {lasts!r}")
    if lasts is not None and state == ACTIVE and weight is None:
        raise ValueError("for: active without a weight has no end; leave it out")
    if not _BY.fullmatch(by):
        raise ValueError("by: a text of one line, at most 100 characters")


# The overrides as one worker knows them.

LOG = logging.getLogger("wsgigate.overrides")


class CanOverride(Protocol):
    """The part of a pool of instances that overrides use."""

    def override(self, overrides: Mapping[str, Override], restored: Collection[str] = ...) -> None:
        """Replace the overrides; end the automatic ejections of *restored*."""


class _KnownOverrides(NamedTuple):
    raw: bytes | None
    table: OverrideTable
    ahead: float
    """Seconds by which the store's clock is ahead of this process's."""


class Overrides:
    """The overrides of a gateway, shared by every worker of a store.

    :param store: The shared store.
    :param pools: The pools of the services, by name.
    :param name: Name of the gateway: gateways of the same name share the overrides of a store.
    :param may_log: Returns whether this worker logs the changes, which every worker sees.
    :param clock: Returns monotonic seconds.
    """

    PREFIX = "overrides/"

    def __init__(
        self,
        store: Store,
        pools: Mapping[str, CanOverride],
        *,
        name: str = "gateway",
        may_log: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._store = OpenedStore(store)
        self.shared = not self._store.in_memory
        """Whether a change reaches other workers."""
        self._pools = pools
        self._key = self.PREFIX + name
        self._may_log = may_log
        self._clock = clock
        self._known = _KnownOverrides(None, {}, 0.0)
        self._changes = 0
        self._ends = math.inf  # when the first override ends, by the store's clock
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")
        self._log = ChangeLog(LOG, clock=clock)
        self._trouble = FailureLog(
            LOG, "Changes of instances by operators can be read again, after %.0f s", clock=clock
        )

    def look(self) -> None:
        """Read the overrides, and hand them to the pools if they have changed.

        While the store fails, the last ones stay in force.
        """
        with self._lock:
            changes = self._changes
        try:
            raw, moment = self._store.get(self._key)
        except StoreError as error:
            self._trouble.failed("Changes of instances by operators cannot be read: %s", error)
            with self._lock:
                if self._clock() + self._known.ahead >= self._ends:
                    self._apply()
            return
        self._trouble.ended()
        with self._lock:
            if changes != self._changes:
                return  # this process has changed them since
            known, self._known = self._known, self._known._replace(ahead=moment - self._clock())
            if raw == known.raw and moment < self._ends:
                return
            self._known = _KnownOverrides(raw, read(raw)[1], moment - self._clock())
            before, after = self._apply(known.table)
        if before != after and self._may_log():
            self._log_changes(before, after)

    def set(
        self,
        service: str,
        url: str,
        state: str,
        *,
        weight: int | None = None,
        lasts: float | None = None,
        by: str = "",
        matches: Callable[[Override], bool] = lambda _: True,
    ) -> tuple[Override, Override]:
        """Change the instance at *url* of *service*, in this worker at once.

        :param state: ``active``, ``drained`` or ``ejected``; see :func:`changed` for the others.
        :returns: The override before and after.
        :raises ValueError: An argument is invalid; the message names it.
        :raises OverrideChanged: *matches* returned false.
        :raises StoreError: The store failed; the change may have taken effect or not.
        """
        _check(state, weight, lasts, by)
        decide = partial(changed, state=state, weight=weight, lasts=lasts, by=by, matches=matches)

        def change(
            old: bytes | None, now: float
        ) -> tuple[bytes | None, float, tuple[bytes | None, Override, Override, bool, float]]:
            before = in_force(read(old)[1], now).get(service, {}).get(url, AUTOMATIC)
            raw, after, done = decide(old, service, url, now)
            return raw, LONGEST, (raw, before, after, done, now)

        raw, before, after, done, moment = update(self._store, self._key, change)
        if not done:
            raise OverrideChanged(before)
        with self._lock:
            self._changes += 1
            known = self._known
            if after.change > read(known.raw)[0]:  # else another thread was faster
                self._known = _KnownOverrides(raw, read(raw)[1], moment - self._clock())
                self._apply(known.table)
        return before, after

    def of(self, service: str) -> dict[str, Override]:
        """Return the overrides of the instances of *service* that are known here, by URL."""
        with self._lock:
            known = self._known
        entries = in_force(known.table, self._clock() + known.ahead).get(service, {})
        return {url: each for url, each in entries.items() if not each.automatic}

    def _apply(self, before: OverrideTable | None = None) -> tuple[OverrideTable, OverrideTable]:
        """Hand the overrides in force to the pools; return those before and now.

        :param before: The overrides known before, if others have been read: an ``active`` that is
            not among them ends automatic ejections.
        """
        known = self._known
        moment = self._clock() + known.ahead
        after = in_force(known.table, moment)
        self._known = known._replace(table=after)
        before = after if before is None else before
        ends = [each.until for entries in after.values() for each in entries.values() if each.until]
        self._ends = min(ends, default=math.inf)
        for service, pool in self._pools.items():
            entries = after.get(service, {})
            seen = before.get(service, {})
            restored = [
                url
                for url, each in entries.items()
                if each.state == ACTIVE and seen.get(url, AUTOMATIC).change != each.change
            ]
            pool.override(entries, restored)
        return before, after

    def _log_changes(self, before: OverrideTable, after: OverrideTable) -> None:
        """Log the overrides that are new, or over."""
        for service in before.keys() | after.keys():
            old, new = before.get(service, {}), after.get(service, {})
            for url in old.keys() | new.keys():
                was, now = old.get(url, AUTOMATIC), new.get(url, AUTOMATIC)
                if (was.state, was.weight, was.until) == (now.state, now.weight, now.until):
                    continue
                if was.automatic and now.automatic:
                    continue
                self._log.log(
                    logging.WARNING,
                    f"{service} {url}",
                    "Instance %s of %r %s",
                    *(one_line(url), service, _described(now)),
                )


def _described(override: Override) -> str:
    """Return what became of an instance, for the log."""
    if override.automatic:
        return "is active again: no operator's change applies"
    state = "has another weight" if override.state == ACTIVE else f"is {override.state}"
    weight = "" if override.weight is None else f" (weight {override.weight})"
    lasts = "" if override.until is None else f" for {override.until - override.since:.0f} s"
    return f"{state}{lasts} by an operator{weight}"
