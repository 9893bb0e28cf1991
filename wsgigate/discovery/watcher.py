"""Service discovery: keeps the pools of a gateway up to date from their sources.

Theory of operation
===================

Every worker runs one thread for each source. The thread calls :meth:`.Source.find`, which mostly
waits for a change, and replaces the instances of the pool with the result. These rules must hold:

1. Discovery does not depend on the store or on another worker. A thread in each worker, rather
   than one leader that writes to the store, means that a change reaches each worker at once: not
   a polling interval later, and also while the store fails or the leader has died. The price is
   one waiting request per worker and source.
2. A source that fails never empties a pool. The last good instances stay, whatever the error, and
   the pause between attempts doubles up to 30 s, half of it random, so that workers do not all
   send a request at once when the source recovers.
3. An empty list is confirmed before it is used (:class:`EmptyGuard`). It usually means a source
   that has just started or lost its data, and dead instances cost little, as their connections
   are refused. It is used at once if the source is certain, or if no instance was known.
4. A worker that starts while its source fails uses the last good list of any worker
   (:class:`InstanceCache`), which is kept in the store for a day. Workers start at any time, after
   a reload, a crash or a number of requests, and would otherwise have no instances. The cache
   names its source, so that a list of another source is never used, and it includes the networks
   that the source allows, so that the same restriction applies.
5. Addresses come from outside and are validated each time (``check``), also those of the cache. A
   list with an invalid instance is used without this instance. Host names are resolved when a
   connection is made, and must be checked there as well.
6. After a fork, all state starts anew (:meth:`Watch.begin_anew`): the thread, its connection and
   its pauses belong to the parent.
"""

from __future__ import annotations

import json
import logging
import random as _random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from wsgigate.client.destinations import Destinations
from wsgigate.client.dial import Check
from wsgigate.discovery import Instance
from wsgigate.discovery.sources import Found, Source, SourceError
from wsgigate.runtime import fork
from wsgigate.runtime.clocks import real
from wsgigate.runtime.logs import ChangeLog, FailureLog, RepeatLog, one_line
from wsgigate.runtime.threads import SupervisedThread
from wsgigate.store import VALUE_BYTES, Store, StoreError
from wsgigate.telemetry.metrics import PROCESS, Counter, ObservableGauge, Reading

__all__ = ["EmptyGuard", "InstanceCache", "Recalled", "RenewablePool", "Watch", "Watcher", "pause"]


_DAY = 86_400.0


class Recalled(NamedTuple):
    """A cached list: the instances, its age in seconds, and the networks the source allowed."""

    instances: tuple[Instance, ...]
    age: float
    networks: tuple[str, ...] | None = None


class InstanceCache:
    """The last good list of a source, shared by all workers through the store.

    :param store: The store that the workers share.
    :param key: The key of the list.
    :param source: The name of the source; a list of another source is ignored.
    """

    def __init__(self, store: Store, key: str, source: str) -> None:
        self._store = store
        self._key = key
        self._source = source

    def recall(self) -> Recalled | None:
        """Return the cached list, ``None`` if there is none or it is not usable.

        :raises StoreError: The store failed.
        """
        raw, now = self._store.get(self._key)
        if raw is None:
            return None
        try:
            source, at, listed, *rest = json.loads(raw)
            if source != self._source:
                return None
            instances = tuple(Instance(*each) for each in listed)
            networks = Destinations(rest[0]).allowed_networks if rest else None
            return Recalled(instances, max(0.0, now - at), networks)
        except (ValueError, TypeError):
            return None

    def keep(self, instances: Sequence[Instance], networks: Sequence[str] | None = None) -> None:
        """Store *instances* for a day, unless they are too large for one value of a store.

        :param networks: The networks in which the source allows instances, if it names any.
        :raises StoreError: The store failed.
        """
        old, now = self._store.get(self._key)
        listed = [[each.url, each.weight, each.tier, each.host, each.zone] for each in instances]
        members = [self._source, now, listed, *([] if networks is None else [list(networks)])]
        new = json.dumps(members, separators=(",", ":")).encode()
        if len(new) <= VALUE_BYTES:
            self._store.swap(self._key, old, new, _DAY)  # if it fails, another worker's is as good


_FIRST_PAUSE = 0.5

_LONGEST_PAUSE = 30.0


class EmptyGuard:
    """Decides whether an empty list of instances replaces the known ones.

    An empty list is more often from a source that has just started or lost its data than from a
    service without instances, and keeping dead instances costs little, as their connections are
    refused. An empty list therefore replaces the known instances at once only if the source is
    certain, and otherwise after it was the only answer for *hold* seconds.

    :param hold: Seconds for which the known instances are kept.
    """

    def __init__(self, hold: float) -> None:
        self._hold = hold
        self._since: float | None = None

    def accepts(self, *, known: bool, found: bool, certain: bool, now: float) -> bool:
        """Return whether a list replaces the known instances.

        :param known: Whether any instance is known.
        :param found: Whether the list has any instance.
        :param certain: Whether the source is certain that an empty list is right.
        :param now: Monotonic seconds.
        """
        if found or certain or not known:
            self._since = None
            return True
        if self._since is None:
            self._since = now
        return now - self._since >= self._hold


def pause(failures: int, chance: float) -> float:
    """Return the seconds until the next attempt after *failures* failures in a row.

    The pause doubles up to 30 s, and half of it is random, so that workers do not all send a
    request at once when the source recovers.

    :param failures: The number of failures, 1 or more.
    :param chance: A random number in [0, 1).
    """
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 10))
    return longest * (0.5 + 0.5 * chance)


LOG = logging.getLogger("wsgigate.discovery")

FAILURES = Counter(
    "wsgigate_discovery_failures",
    "Queries of a service's source of instances that failed, in each worker.",
    ("service",),
)

AGE = ObservableGauge(
    "wsgigate_discovery_age_seconds",
    "Seconds since the last good answer of a service's source of instances.",
    ("service",),
)

HOLD_EMPTY = 30.0
"""Seconds for which an empty list is not used, unless the source is certain."""

KEEP_EVERY = 60.0
"""Seconds after which an unchanged list is written to the store again, to renew its age."""

WARN_EVERY = 60.0
"""Seconds in which the same warning is logged once."""

_LONGEST = 3600.0

_NAMED = 5
"""The most instances that a log line names."""


class RenewablePool(Protocol):
    """The part of a pool that discovery uses."""

    service: str

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The instances in the pool."""

    def renew(self, instances: Sequence[Instance]) -> tuple[Instance, ...]:
        """Replace the instances; return those that were removed."""


class Watch:
    """Keeps one pool up to date from one source.

    :param pool: The pool.
    :param source: The source of its instances. While the source fails, the pool is unchanged.
    :param check: Raises ValueError for an address and port that an instance may not have, as
        :meth:`.Destinations.check` does. Host names are resolved when a connection is made, so the
        connection must be checked as well.
    :param narrow: Called with the networks that the source allows, when it names any, so that
        *check* rejects all others.
    :param host: The ``Host`` of all instances, instead of the one that the source names.
    :param forget: Called with the URL of each removed instance.
    :param kept: Stores the last good list for other workers. Default: none.
    :param hold_empty: Seconds for which an empty list is not used if the source is not certain.
    :param may_log: Returns whether this worker logs what every worker sees: see
        :class:`.LogLeader`.
    :param clock: Returns monotonic seconds.
    :param random: Returns numbers in [0, 1).
    """

    def __init__(
        self,
        pool: RenewablePool,
        source: Source,
        *,
        check: Check | None = None,
        narrow: Callable[[Sequence[str]], object] = lambda _: None,
        host: str = "",
        forget: Callable[[str], object] = lambda _: None,
        kept: InstanceCache | None = None,
        hold_empty: float = HOLD_EMPTY,
        may_log: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self.service = pool.service
        self.source = source
        self._pool = pool
        self._check = check
        self._narrow = narrow
        self._host = host
        self._forget = forget
        self._kept = kept
        self._hold = hold_empty
        self._may_log = may_log
        self._clock = clock
        self._changes = ChangeLog(LOG, clock=clock)
        self._random = random
        self.begin_anew()
        fork.renewed(self, queried="Event")
        PROCESS.collect_from(self)

    def begin_anew(self) -> None:
        """Reset the state, also that of the process forked from."""
        self.queried = threading.Event()
        """Set once the source has answered or failed for the first time."""
        self._empty_guard = EmptyGuard(self._hold)
        self._failures = 0
        self._answered_at: float | None = None
        self._keep_at = float("-inf")
        self._trouble = ""
        self._refused = 0
        self._troubles = RepeatLog(LOG, logging.WARNING, silence=WARN_EVERY, clock=self._clock)
        self._failing = FailureLog(
            LOG,
            "The source of %r is available again after %.0f s",
            self.service,
            level=logging.WARNING,
            silence=WARN_EVERY,
            clock=self._clock,
        )

    def status(self) -> dict[str, Any]:
        """Return the status of the source, as members of a JSON object.

        ``source`` is its name, ``instances`` the number of instances in the pool, ``age`` the
        seconds since its last good answer, ``None`` without one, ``error`` why it fails, and
        ``refused`` the number of instances that were rejected.
        """
        age = (
            None
            if self._answered_at is None
            else round(max(0.0, self._clock() - self._answered_at), 3)
        )
        status = {"source": self.source.name, "instances": len(self._pool.instances), "age": age}
        if self._trouble:
            status["error"] = self._trouble
        if self._refused:
            status["refused"] = self._refused
        return status

    def collect(self) -> Iterable[Reading]:
        """Return the age of the last good answer, for the metrics."""
        answered = self._answered_at
        if answered is not None:
            yield AGE.reading(max(0.0, self._clock() - answered), self.service)

    def recall(self) -> None:
        """Fill an empty pool with the last good list of any worker."""
        if self._kept is None or self._pool.instances:
            return
        try:
            recalled = self._kept.recall()
        except StoreError as error:
            self._troubles.log(
                "The last instances of %r cannot be read from the store: %s", self.service, error
            )
            return
        if recalled is not None:
            if recalled.networks is not None:
                self._narrow(recalled.networks)
            self._pool.renew(self._admitted(recalled.instances))
            self._answered_at = self._clock() - recalled.age

    def step(self, stopping: threading.Event) -> float:
        """Query the source once and update the pool; return the seconds until the next query."""
        self._changes.flush()
        try:
            found = self.source.find(stopping)
            return self._apply(found)
        except SourceError as error:
            if stopping.is_set():
                return 0.0
            self._fail(str(error))
            why = one_line(error)
            self._failing.failed("The instances of %r stay unchanged: %s", self.service, why)
            self.recall()  # the store may have failed as well when this worker started
            if error.again_in is not None:
                return error.again_in
        except Exception as failure:
            self._fail("it failed")
            self._failing.failed(
                "The instances of %r stay unchanged", self.service, traceback=failure
            )
        finally:
            self.queried.set()
        return pause(self._failures, self._random())

    def _fail(self, why: str) -> None:
        FAILURES.labels(self.service).add()
        self._failures += 1
        self._trouble = why

    def _apply(self, found: Found) -> float:
        now, before = self._clock(), self._pool.instances
        if found.networks is not None:
            self._narrow(found.networks)
        wanted = self._admitted(found.instances)
        if not self._empty_guard.accepts(
            known=bool(before), found=bool(wanted), certain=found.certain, now=now
        ):
            self._trouble = "it returned no instances, which is not confirmed yet"
            self._troubles.log(
                "The instances of %r stay unchanged: its source suddenly returns none", self.service
            )
            self.source.close()  # otherwise the source might wait for longer than the hold time
            return min(max(found.again_in, 0.1), 1.0)
        if wanted != before:
            gone = self._pool.renew(wanted)
            for instance in gone:
                self._forget(instance.url)
            self._log_change(before, wanted, gone)
        self._failures = 0
        self._trouble = found.trouble
        if found.trouble:
            self._failing.failed(
                "The instances of %r are from an earlier answer: %s",
                *(self.service, one_line(found.trouble)),
            )
        else:
            self._failing.ended()
            self._answered_at = now
            self._keep(wanted, found.networks, now, wanted != before)
        return found.again_in

    def _log_change(
        self, before: Sequence[Instance], wanted: Sequence[Instance], gone: Sequence[Instance]
    ) -> None:
        level = logging.INFO if wanted else logging.WARNING
        if not LOG.isEnabledFor(level) or not self._may_log():
            return
        known = {instance.url for instance in before}
        added = [instance.address for instance in wanted if instance.url not in known]
        removed = [instance.address for instance in gone]
        parts = [
            f"{len(some)} {what}: {', '.join(some[:_NAMED])}{', ...' if len(some) > _NAMED else ''}"
            for what, some in (("added", added), ("removed", removed))
            if some
        ]
        self._changes.log(
            level,
            self.service,
            "Instances of %r: %s; there are %d now",
            *(self.service, "; ".join(parts) or "weights or tiers changed", len(wanted)),
        )

    def _admitted(self, instances: Sequence[Instance]) -> tuple[Instance, ...]:
        admitted, self._refused = [], 0
        for instance in instances:
            try:
                self._validate(instance)
                admitted.append(replace(instance, host=self._host) if self._host else instance)
            except ValueError as error:
                self._refused += 1
                self._troubles.log(
                    "An instance of %r is rejected: %s: %s", self.service, instance.address, error
                )
        return tuple(admitted)

    def _validate(self, instance: Instance) -> None:
        if self._check is None:
            return
        parts = urlsplit(instance.url)
        if instance.scheme == "http+unix":
            raise ValueError("a Unix socket cannot come from a source")
        try:
            address = ip_address(parts.hostname or "")
        except ValueError:
            return  # a host name, which is checked when it is resolved
        self._check(address, parts.port or (443 if instance.scheme == "https" else 80))

    def _keep(
        self,
        instances: Sequence[Instance],
        networks: Sequence[str] | None,
        now: float,
        changed: bool,
    ) -> None:
        if self._kept is None or not (changed or now >= self._keep_at):
            return
        self._keep_at = now + KEEP_EVERY
        try:
            self._kept.keep(instances, networks)
        except StoreError as error:
            self._troubles.log(
                "The instances of %r cannot be written to the store: %s", self.service, error
            )


class Watcher:
    """All the watches of a gateway. Nothing runs before :meth:`start`, which every worker calls.

    :param watches: One for each pool.
    """

    def __init__(self, watches: Iterable[Watch]) -> None:
        self._watches = tuple(watches)
        self._threads = [
            SupervisedThread(
                f"wsgigate-discovery-{watch.service}", partial(_run, watch), watch.begin_anew
            )
            for watch in self._watches
        ]

    def start(self, wait: float = 2.0) -> None:
        """Start the threads of this process, unless they are running.

        :param wait: The most seconds to wait until all sources have answered for the first time, so
            that the first request finds instances.
        """
        started = [thread.start() for thread in self._threads]
        if not any(started):
            return
        until = real() + wait
        for watch in self._watches:
            watch.queried.wait(max(0.0, until - real()))

    def stop(self, timeout: float = 1.0) -> None:
        """Stop the threads of this process.

        :param timeout: Seconds to wait for the threads; one that hangs is abandoned.
        """
        for thread in self._threads:
            thread.end()
        until = real() + timeout
        for thread in self._threads:
            thread.stop(max(0.0, until - real()))

    @property
    def sources(self) -> dict[str, str]:
        """The names of the sources, by service."""
        return {watch.service: watch.source.name for watch in self._watches}

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the status of each source, by service."""
        return {watch.service: watch.status() for watch in self._watches}


def _run(watch: Watch, stopping: threading.Event) -> None:
    try:
        watch.recall()
        while not stopping.is_set():
            stopping.wait(min(watch.step(stopping), _LONGEST))
    finally:
        watch.source.close()
