"""Lease expiry and self-preservation: one worker evicts instances whose heartbeats stopped.

Theory of operation
===================

An instance has a lease, which each heartbeat renews. Without a heartbeat it is first unhealthy
and later evicted, after the times of :class:`~wsgigate.rules.registry.LeaseRules`. Every worker
runs a thread, one of them leads (:class:`~wsgigate.coordination.leader.LeaderLease`), and each
round of the leader ends with a write of ``swept``: the time of the round, the periods in which no
worker led, the evictions of the current minute, and whether self-preservation is active. These
rules must hold:

1. Time in which the registry was not running is not silence. When the machine was suspended, the
   clock was set forward or all workers were down, no heartbeat could arrive, so a gap in
   ``swept`` becomes a period *away*, and the silence of each instance is counted without these
   periods. Otherwise a restart after a minute would evict every instance. For the same reason
   readers judge leases at most a moment after the last round
   (:func:`wsgigate.registry.listing.judged`). When the clock is set back, entries with a
   heartbeat in the future count as renewed now, once they are too far in the future.
2. Self-preservation: when a large share of all instances is silent, the cause is more likely the
   network between the instances and the registry than the instances. The silent instances are
   then unhealthy, but most are kept (:func:`~wsgigate.rules.registry.evictions`,
   :func:`~wsgigate.rules.registry.is_preserving`). Evictions of the current minute count as
   silent; otherwise one slow eviction after another would stay below the threshold. The count is
   part of ``swept``, so a change of leader does not reset it.
3. An entry is evicted only if its heartbeat is still the one that the decision was based on; a
   heartbeat between the read and the eviction wins. The removal is one atomic update.
4. Only one worker leads. ``swept`` is replaced only if it is still what this worker has read: a
   leader that was stopped for longer than its lease finds another value and stops leading.
5. While the store fails, no lease ends. Without the store no heartbeat can be recorded either.
6. A new leader, and every leader after an absence, compares the entries with the index first and
   lists entries that a killed process left out (:meth:`LeaseExpiry._reconcile`).

Cost: all entries are read only when the oldest heartbeat may have become too old. While all
instances send heartbeats, no entry does, so full reads are rare; of a healthy entry only the
8-byte time is parsed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import NamedTuple

from wsgigate.coordination.leader import LeaderLease, LeaderThread
from wsgigate.registry.storage import KEPT, Action, ExpiryState, Index, RegistryKeys
from wsgigate.rules.registry import (
    LONG_ABSENCE,
    Evictions,
    LeaseRules,
    Registered,
    evictions,
    is_preserving,
    round_time,
    short_absence,
    silent_since,
    was_away,
)
from wsgigate.runtime.logs import ChangeLog, FailureLog
from wsgigate.store import Store, StoreError, get_all, update
from wsgigate.telemetry.metrics import Counter

__all__ = ["REGISTRATIONS", "LeaseExpiry"]

REGISTRATIONS = Counter(
    "wsgigate_registry_registrations",
    "Changes of the registry: registered (also anew), deregistered, or evicted.",
    ("action",),
)


LOG = logging.getLogger("wsgigate.registry")

PAUSE = 256
"""The number of entries after which the thread yields to other threads."""

SILENT_A_SECOND = 2_000
"""The number of silent instances checked per second while self-preservation keeps them."""

NAMED = 20
"""The most instances that a round names in the log; it logs the number of further ones."""

REMEMBERED = 3600.0
"""Seconds for which a period without a leader is remembered."""


class _Survey(NamedTuple):
    """The result of reading all entries.

    :ivar suspects: Instances that may have been silent for too long.
    :ivar sizes: The number of instances of each service.
    :ivar lost: Instances that are listed, but whose entry is missing or malformed.
    :ivar oldest: The time of the oldest heartbeat of all other instances.
    """

    suspects: list[Registered]
    sizes: dict[str, int]
    lost: list[tuple[str, str]]
    oldest: float


class LeaseExpiry(LeaderThread):
    """Marks silent instances as unhealthy and evicts instances whose lease has expired.

    Every worker runs a thread, of which one leads; see the head of this module.
    """

    def __init__(
        self,
        store: Store,
        keys: RegistryKeys,
        rules: LeaseRules,
        index: Index,
        changes: ChangeLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._keys = keys
        self._rules = rules
        self._index = index
        self._changes = ChangeLog(LOG) if changes is None else changes
        self._trouble = FailureLog(LOG, "Store available again after %.0f s: lease expiry resumes")
        self._every = round_time(rules)
        self._clock = clock
        lease = LeaderLease(store, keys.leader)
        task = "expires the leases of the registry"
        super().__init__("wsgigate-registry", lease, task=task, log=LOG)

    def begin_anew(self) -> None:
        """Discard the state of an earlier thread."""
        super().begin_anew()
        self._ended = float("-inf")
        self._due = float("-inf")
        self._last = float("-inf")
        self._silent: Set[tuple[str, str]] = frozenset()
        self._trouble.since = None

    def round(self) -> float:
        """Run one round; log what fails."""
        try:
            self.step()
            self._trouble.ended()
        except StoreError as error:
            self._trouble.failed("Lease expiry paused: store unavailable: %s", error)
        except Exception:
            LOG.exception("A round of lease expiry failed")
        return self._every

    def step(self) -> None:
        """Run one round, if this worker leads.

        :raises StoreError: The store failed; nothing is lost.
        """
        self._changes.flush()
        led = self.leading
        if not self._lead():
            return
        raw, now = self._store.get(self._keys.swept)
        before = ExpiryState.read(raw)
        steady = led and self._clock() - self._ended <= short_absence(self._rules)
        swept = self._attended(before, now, steady)
        fresh = not led or before is None or swept.away != before.away
        if fresh:
            self._silent = frozenset()
            self._index.log.begin()
            self._reconcile()
        if fresh or not self._last <= now < self._due:
            swept = self._sweep(swept, now)
        if not self._store.swap(self._keys.swept, raw, swept.to_bytes(), KEPT):
            self.leading = False  # another worker has led meanwhile
        self._ended = self._clock()

    def _attended(self, before: ExpiryState | None, now: float, steady: bool) -> ExpiryState:
        """Return the state with this round, and with a period away if no worker led until now.

        :param steady: Whether this worker has led since the last round.
        """
        if before is None:
            return ExpiryState(now)
        away = tuple(period for period in before.away if 0 <= now - period[1] < REMEMBERED)
        if was_away(now - before.at, self._rules, steady=steady):
            away += ((before.at, now),)
            self._changes.log(
                logging.WARNING,
                "",
                "Leases were not checked for %.1f s; this time does not count as silence",
                now - before.at,
            )
        return before._replace(at=now, away=away)

    def _reconcile(self) -> None:
        """List the entries that a process that was killed left out of the index."""
        skip = len(self._keys.instances)
        listed = {name: set(self._index.service(name).ids) for name in self._index.names()}
        for key, _ in self._store.items(self._keys.instances):
            service, _, instance_id = key[skip:].partition("/")
            if instance_id not in listed.get(service, ()):
                self._index.publish(service, instance_id, Action.ADDED)

    def _sweep(self, swept: ExpiryState, now: float) -> ExpiryState:
        rules = self._rules
        total = self._index.total()
        found = self._found(swept, now)
        silent = {
            (entry.service, entry.instance_id): entry
            for entry in found.suspects
            if now - entry.silent_since > entry.unhealthy_after(rules)
        }
        gone, state = evictions([*silent.values()], now, rules, swept.evictions, found.sizes)
        count, recent = sum(found.sizes.values()), rules.recent(state, now)
        preserving = is_preserving(
            len(silent) - len(gone) + recent, count - len(gone) + recent, rules
        )
        evicted_now = [entry for entry in gone if self._evict(entry)]
        REGISTRATIONS.labels("evicted").add(len(evicted_now))
        self._log(evicted_now, now, "removed")
        for service, instance_id in found.lost:
            self._index.remove(service, instance_id)
        evicted = {(entry.service, entry.instance_id) for entry in gone}
        newly = silent.keys() - self._silent - evicted
        for service in sorted({service for service, _ in newly}):
            self._index.publish(service)
        self._log([silent[key] for key in sorted(newly)], now, "unhealthy")
        if preserving and not swept.preserving:
            LOG.warning(
                "Self-preservation active: %d of %d instances are silent, most of them are kept",
                len(silent),
                count,
            )
        elif swept.preserving and not preserving:
            LOG.warning("Self-preservation ended: few instances are silent, leases expire again")
        self._silent = silent.keys() - evicted
        self._index.recount(total, count)
        self._last = now
        waiting = [
            entry.silent_since
            + (entry.remove_after(rules) if key in silent else entry.unhealthy_after(rules))
            for entry in found.suspects
            if (key := (entry.service, entry.instance_id)) not in evicted
        ]
        due = min([*waiting, found.oldest + rules.unhealthy_after])
        self._due = max(due, now + len(silent) / SILENT_A_SECOND)
        return swept._replace(evictions=Evictions(*state), preserving=preserving)

    def _log(self, entries: Sequence[Registered], now: float, what: str) -> None:
        for entry in entries[:NAMED]:
            self._changes.log(
                logging.WARNING,
                f"{entry.service}/{entry.instance_id}",
                "%s of %s is %s: no heartbeat for %.0f s",
                *(entry.instance_id, entry.service, what, now - entry.last_heartbeat),
            )
        if len(entries) > NAMED:
            LOG.warning("%d more instances are %s: no heartbeat", len(entries) - NAMED, what)

    def _found(self, swept: ExpiryState, now: float) -> _Survey:
        """Read all entries. Most are healthy, which the time of the heartbeat alone shows."""
        suspects: list[Registered] = []
        sizes: dict[str, int] = {}
        lost: list[tuple[str, str]] = []
        oldest = now
        read = 0
        heartbeat_in = Registered.heartbeat_in
        well = now - self._rules.unhealthy_after
        for service in self._index.names():
            prefix = self._keys.instance(service, "")
            ids = self._index.service(service).ids
            if read >= PAUSE:
                self._thread.stopping.wait(0.001)
                read = 0
            read += len(ids)
            there = 0
            raws = get_all(self._store, [prefix + instance_id for instance_id in ids])
            for instance_id, raw in zip(ids, raws, strict=True):
                if raw is None:
                    lost.append((service, instance_id))
                    continue
                there += 1
                heartbeat = heartbeat_in(raw)
                if well <= heartbeat <= now + LONG_ABSENCE:
                    oldest = min(oldest, heartbeat)
                    continue
                entry = self._suspect(prefix + instance_id, raw, swept, now)
                if entry is None:
                    there -= 1
                    lost.append((service, instance_id))
                else:
                    suspects.append(entry)
            if there:
                sizes[service] = there
        return _Survey(suspects, sizes, lost, oldest)

    def _suspect(self, key: str, raw: bytes, swept: ExpiryState, now: float) -> Registered | None:
        """Parse *raw*, an entry that may be silent; return ``None`` if it is malformed."""
        entry = Registered.from_bytes(raw)
        if entry is None:
            return None
        if entry.last_heartbeat > now + LONG_ABSENCE:
            entry = self._put_right(key, entry)
        since = silent_since(entry.last_heartbeat, swept.away)
        return replace(entry, silent_since=since)

    def _put_right(self, key: str, entry: Registered) -> Registered:
        """Return *entry* with its heartbeat set to now, as the clock was set back since it."""

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, float]:
            if old is None or Registered.heartbeat_in(old) <= now:
                return old, 0.0, now
            return Registered.renewed(old, now), KEPT, now

        return entry.heard(update(self._store, key, change))

    def _evict(self, entry: Registered) -> bool:
        """Remove *entry*, unless a heartbeat has arrived since it was read."""

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            if old is None or Registered.heartbeat_in(old) != entry.last_heartbeat:
                return old, 0.0, False
            return None, 0.0, True

        key = self._keys.instance(entry.service, entry.instance_id)
        self._index.log.keep(entry.to_bytes(), entry.service, entry.instance_id)
        removed = update(self._store, key, change)
        if removed:
            self._index.remove(entry.service, entry.instance_id)
        return removed
