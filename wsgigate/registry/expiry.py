"""Looks after the leases of the registry: one worker for all of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import NamedTuple

from wsgigate.coordination.leader import LeaderLease
from wsgigate.registry.storage import KEPT, Action, Index, Keys, Swept
from wsgigate.rules.registry import (
    LONG_ABSENCE,
    Evictions,
    LeaseRules,
    Registered,
    evictions_among,
    is_preserving,
    round_time,
    short_absence,
    silent_since,
    was_away,
)
from wsgigate.runtime.threads import SupervisedThread
from wsgigate.runtime.throttled_log import ChangeLog, Trouble
from wsgigate.store import Store, StoreError, get_all, update

__all__ = ["Sweeper"]


LOG = logging.getLogger("wsgigate.registry")

PAUSE = 256
"""After how many entries the thread lets others go on."""

SILENT_A_SECOND = 2_000
"""How many silent instances are looked at in a second, while they are kept."""

NAMED = 20
"""Instances that one round names in the log; of more it logs how many."""

REMEMBERED = 3600.0
"""For how many seconds it is known that the registry was away."""


class _Found(NamedTuple):
    """What there is.

    :ivar suspects: Those that may have been silent for too long.
    :ivar sizes: How many instances each service has.
    :ivar lost: Those that are listed, and whose entries are gone.
    :ivar oldest: The moment of the oldest heartbeat of all others.
    """

    suspects: list[Registered]
    sizes: dict[str, int]
    lost: list[tuple[str, str]]
    oldest: float


class Sweeper:
    """Finds out who has fallen silent, and removes whose lease is over.

    Every worker has a thread for it, of which one leads. It says every second that it is there.
    When nobody did for a while - the machine slept, the clock was set, all were killed - nobody is
    held to have been silent in the meantime. It reads all entries when the first of them may have
    become too old, which none does while all send heartbeats, so that is seldom.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
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
        self._trouble = Trouble(LOG, "The store answers again: leases count, after %.0f s")
        self._lease = LeaderLease(store, keys.leader)
        self._every = round_time(rules)
        self._clock = clock
        self._begin_anew()
        self._thread = SupervisedThread("wsgigate-registry", self._run, self._begin_anew)

    def _begin_anew(self) -> None:
        self._leading = False
        self._ended = float("-inf")
        self._due = float("-inf")
        self._last = float("-inf")
        self._silent: Set[tuple[str, str]] = frozenset()
        self._trouble.since = None

    def start(self) -> None:
        """Start this process's thread, unless it runs."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """End this process's thread and let another worker lead.

        :param timeout: Seconds to wait for the thread; the lease of one that hangs runs out.
        """
        self._thread.stop(timeout)

    def _run(self, stopping: threading.Event) -> None:
        try:
            while not stopping.is_set():
                try:
                    self.step()
                    self._trouble.ended()
                except StoreError as error:
                    self._leading = False
                    self._trouble.failed("No lease ends while the store fails: %s", error)
                except Exception:
                    LOG.exception("A round of the registry failed")
                stopping.wait(self._every)
        finally:
            try:
                self._lease.release()
            except StoreError:
                pass  # it runs out by itself

    def step(self) -> None:
        """Do one round, if it is this worker that leads.

        :raises StoreError: The store fails; nothing is lost.
        """
        self._changes.flush()
        led, self._leading = self._leading, self._lease.take()
        if led != self._leading:
            what = "looks" if self._leading else "no longer looks"
            LOG.info("This worker %s after the leases of the registry for all", what)
        if not self._leading:
            return
        raw, now = self._store.get(self._keys.swept)
        before = Swept.read(raw)
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
            self._leading = False  # another one has led meanwhile
        self._ended = self._clock()

    def _attended(self, before: Swept | None, now: float, steady: bool) -> Swept:
        """Return that leases are looked after now, and that they were not if so it was.

        :param steady: Whether this worker has looked after them all the while.
        """
        if before is None:
            return Swept(now)
        away = tuple(period for period in before.away if 0 <= now - period[1] < REMEMBERED)
        if was_away(now - before.at, self._rules, steady=steady):
            away += ((before.at, now),)
            self._changes.log(
                logging.WARNING,
                "",
                "Leases went unattended for %.1f s, which count as silence of no instance",
                now - before.at,
            )
        return before._replace(at=now, away=away)

    def _reconcile(self) -> None:
        """Put in order what a process may have left half done that was killed."""
        skip = len(self._keys.instances)
        listed = {name: set(self._index.service(name).ids) for name in self._index.names()}
        for key, _ in self._store.items(self._keys.instances):
            service, _, instance_id = key[skip:].partition("/")
            if instance_id not in listed.get(service, ()):
                self._index.publish(service, instance_id, Action.ADDED)

    def _sweep(self, swept: Swept, now: float) -> Swept:
        rules = self._rules
        total = self._index.total()
        found = self._found(swept, now)
        silent = {
            (entry.service, entry.instance_id): entry
            for entry in found.suspects
            if now - entry.silent_since > entry.unhealthy_after(rules)
        }
        gone, state = evictions_among(silent.values(), found.sizes, now, rules, swept.evictions)
        count, recent = sum(found.sizes.values()), rules.recent(state, now)
        preserving = is_preserving(
            len(silent) - len(gone) + recent, count - len(gone) + recent, rules
        )
        evicted_now = [entry for entry in gone if self._evict(entry)]
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
                "%d of %d instances are silent: most are kept, as it may be the network's fault",
                len(silent),
                count,
            )
        elif swept.preserving and not preserving:
            LOG.warning("Few instances are silent by now: leases end as usual")
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

    def _found(self, swept: Swept, now: float) -> _Found:
        """Read all entries. Most are well, which the moment of their heartbeats tells."""
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
        return _Found(suspects, sizes, lost, oldest)

    def _suspect(self, key: str, raw: bytes, swept: Swept, now: float) -> Registered | None:
        """Return the entry *raw*, which may have been silent for too long; None when it is none."""
        try:
            entry = Registered.from_bytes(raw)
        except ValueError:
            return None
        if entry.last_heartbeat > now + LONG_ABSENCE:
            entry = self._put_right(key, entry)
        since = silent_since(entry.last_heartbeat, swept.away)
        return replace(entry, silent_since=since)

    def _put_right(self, key: str, entry: Registered) -> Registered:
        """Return *entry* as if heard of now: the clock was set back since it was."""

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, float]:
            if old is None or Registered.heartbeat_in(old) <= now:
                return old, 0.0, now
            return Registered.renewed(old, now), KEPT, now

        return entry.heard(update(self._store, key, change))

    def _evict(self, entry: Registered) -> bool:
        """Remove *entry*, unless it was heard of meanwhile."""

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
