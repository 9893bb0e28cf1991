"""Keeps pools as their sources say: each source has a thread in every worker that asks it.

It is a thread of each worker, not one for all of them through the store, so that a change reaches
each worker at once and by itself: not a round of looking at the store later, and not only while the
store works and another worker lives. What a source answers costs it little, as it mostly waits.
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
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

from wsgigate.client.destinations import Destinations
from wsgigate.discovery import Instance
from wsgigate.discovery.sources import Found, Source, SourceError
from wsgigate.runtime import fork
from wsgigate.runtime.clocks import real
from wsgigate.runtime.threads import SupervisedThread
from wsgigate.runtime.throttled_log import ChangeLog, Trouble, one_line
from wsgigate.store import VALUE_BYTES, Store, StoreError

__all__ = ["EmptyGuard", "InstanceCache", "Recalled", "Renewable", "Watch", "Watcher", "pause"]


# The last good answer of a source, kept in the store for workers that begin without one.
#
# A worker that is started while a source does not answer, be it for a reload, a crash or because
# it has served its share of requests, would otherwise know of nobody.

_DAY = 86_400.0


class Recalled(NamedTuple):
    """What was kept, how many seconds ago the source said so, and the networks that it named."""

    instances: tuple[Instance, ...]
    age: float
    networks: tuple[str, ...] | None = None


class InstanceCache:
    """The instances of a service as its source last told them to any worker.

    :param store: Where the workers meet.
    :param key: The key they are under.
    :param source: The source's name; what another one said before is nothing to this.
    """

    def __init__(self, store: Store, key: str, source: str) -> None:
        self._store = store
        self._key = key
        self._source = source

    def recall(self) -> Recalled | None:
        """Return what was kept, ``None`` if that is nothing that can be used.

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
        """Keep *instances* for a day, unless they are too many for one value of a store.

        :param networks: The networks that the source allows them in, if it named any.
        :raises StoreError: The store failed.
        """
        old, now = self._store.get(self._key)
        listed = [[each.url, each.weight, each.tier, each.host, each.zone] for each in instances]
        members = [self._source, now, listed, *([] if networks is None else [list(networks)])]
        new = json.dumps(members, separators=(",", ":")).encode()
        if len(new) <= VALUE_BYTES:
            self._store.swap(self._key, old, new, _DAY)  # who was faster knows as much


# What becomes of a list of instances when its source says something new, or nothing.

_FIRST_PAUSE = 0.5

_LONGEST_PAUSE = 30.0


class EmptyGuard:
    """Whether to believe that nobody is left.

    An empty answer is more often a source that has just begun, or lost its memory, than a service
    all of whose instances are gone: and to go on with them costs nothing, as who is gone refuses
    connections. So it is believed at once only if the source is certain, else when it is all that
    was heard for a while. Who never knew anybody has nothing to lose and believes it at once.

    :param hold: Seconds for which the instances known before are kept.
    """

    def __init__(self, hold: float) -> None:
        self._hold = hold
        self._since: float | None = None

    def believe(self, *, known: bool, found: bool, certain: bool, now: float) -> bool:
        """Return whether an answer replaces what is known.

        :param known: Whether any instance is known.
        :param found: Whether the answer has any.
        :param certain: Whether the source is certain of it.
        :param now: Seconds of a clock that never steps back.
        """
        if found or certain or not known:
            self._since = None
            return True
        if self._since is None:
            self._since = now
        return now - self._since >= self._hold


def pause(failures: int, chance: float) -> float:
    """Return the seconds until a source is asked again that failed *failures* times in a row.

    They double up to half a minute, and half of them is chance: when a source comes back, not all
    ask it at once.

    :param failures: 1 or more.
    :param chance: A number in [0, 1).
    """
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 10))
    return longest * (0.5 + 0.5 * chance)


LOG = logging.getLogger("wsgigate.discovery")

HOLD_EMPTY = 30.0
"""Seconds for which it is not believed that nobody is left, unless a source is certain."""

KEEP_EVERY = 60.0
"""Seconds after which the same instances are kept in the store again, as their age is too."""

COMPLAIN = 60.0
"""Seconds for which the same trouble is logged once."""

_LONGEST = 3600.0

_NAMED = 5
"""Instances that one line of the log names."""

Check: TypeAlias = Callable[[IPv4Address | IPv6Address, int], object]


class Renewable(Protocol):
    """What is wanted of a pool."""

    service: str

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The instances in it."""

    def renew(self, instances: Sequence[Instance]) -> tuple[Instance, ...]:
        """Replace the instances; return those that are gone."""


class Watch:
    """One pool, kept as one source says.

    :param pool: The pool.
    :param source: Asked who is in it. While it does not know, the pool stays as it is.
    :param check: Raises ValueError for an address and port that no instance may have, as
        :meth:`.Destinations.check` does. Names are looked up when they are connected to, so it is
        to be asked there too.
    :param narrow: Called with the networks that the source allows instances in, when it names any,
        so that *check* refuses all others.
    :param host: The name that all instances are asked by, instead of what the source says.
    :param forget: Called with the URL of each instance that is gone.
    :param kept: Where the last good answer is kept for other workers; nowhere without it.
    :param hold_empty: Seconds for which an empty answer is not believed whose source is not
        certain of it.
    :param speaks: Whether this worker logs what every worker sees, see :class:`.Speaker`.
    :param clock: Seconds of a clock that never steps back.
    :param random: Gives numbers in [0, 1).
    """

    def __init__(
        self,
        pool: Renewable,
        source: Source,
        *,
        check: Check | None = None,
        narrow: Callable[[Sequence[str]], object] = lambda _: None,
        host: str = "",
        forget: Callable[[str], object] = lambda _: None,
        kept: InstanceCache | None = None,
        hold_empty: float = HOLD_EMPTY,
        speaks: Callable[[], bool] = lambda: True,
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
        self._speaks = speaks
        self._clock = clock
        self._changes = ChangeLog(LOG, clock=clock)
        self._random = random
        self.begin_anew()
        fork.renewed(self, asked="Event")

    def begin_anew(self) -> None:
        """Forget how it went before, perhaps in the process forked from."""
        self.asked = threading.Event()
        """Set once the source has answered, or failed to."""
        self._emptiness = EmptyGuard(self._hold)
        self._failures = 0
        self._heard: float | None = None
        self._keep_at = float("-inf")
        self._trouble = ""
        self._refused = 0
        self._complained: dict[str, float] = {}
        self._failing = Trouble(
            LOG,
            "The source of %r answers again, after %.0f s",
            self.service,
            level=logging.WARNING,
            silence=COMPLAIN,
            clock=self._clock,
        )

    def told(self) -> dict[str, Any]:
        """Return how it stands, as members of a JSON object.

        ``source`` is its name, ``instances`` how many there are, ``age`` the seconds since it last
        said so, ``None`` if it never did, ``error`` why it does not now, and ``refused`` how many
        instances it named that are not taken in.
        """
        age = None if self._heard is None else round(max(0.0, self._clock() - self._heard), 3)
        told = {"source": self.source.name, "instances": len(self._pool.instances), "age": age}
        if self._trouble:
            told["error"] = self._trouble
        if self._refused:
            told["refused"] = self._refused
        return told

    def recall(self) -> None:
        """Begin with what another worker was told last, if the pool is empty."""
        if self._kept is None or self._pool.instances:
            return
        try:
            recalled = self._kept.recall()
        except StoreError as error:
            self._complain("The last instances of %r can not be read: %s", error)
            return
        if recalled is not None:
            if recalled.networks is not None:
                self._narrow(recalled.networks)
            self._pool.renew(self._admitted(recalled.instances))
            self._heard = self._clock() - recalled.age

    def step(self, stopping: threading.Event) -> float:
        """Ask once, and make the pool what the answer says; return the seconds until next time."""
        self._changes.flush()
        try:
            found = self.source.find(stopping)
            return self._take(found)
        except SourceError as error:
            if stopping.is_set():
                return 0.0
            self._fail(str(error))
            why = one_line(error)
            self._failing.failed("The instances of %r stay as they are: %s", self.service, why)
            self.recall()  # the store may have failed as well when this worker began
            if error.again_in is not None:
                return error.again_in
        except Exception as failure:
            self._fail("it failed")
            self._failing.failed(
                "The instances of %r stay as they are", self.service, traceback=failure
            )
        finally:
            self.asked.set()
        return pause(self._failures, self._random())

    def _fail(self, why: str) -> None:
        self._failures += 1
        self._trouble = why

    def _take(self, found: Found) -> float:
        now, before = self._clock(), self._pool.instances
        if found.networks is not None:
            self._narrow(found.networks)
        wanted = self._admitted(found.instances)
        if not self._emptiness.believe(
            known=bool(before), found=bool(wanted), certain=found.certain, now=now
        ):
            self._trouble = "it has no instances, which is not believed yet"
            self._complain("The instances of %r stay as they are: its source has none at once")
            self.source.close()  # else it might wait for longer than that
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
                "The instances of %r are those known before: %s",
                *(self.service, one_line(found.trouble)),
            )
        else:
            self._failing.ended()
            self._heard = now
            self._keep(wanted, found.networks, now, wanted != before)
        return found.again_in

    def _log_change(
        self, before: Sequence[Instance], wanted: Sequence[Instance], gone: Sequence[Instance]
    ) -> None:
        level = logging.INFO if wanted else logging.WARNING
        if not LOG.isEnabledFor(level) or not self._speaks():
            return
        known = {instance.url for instance in before}
        came = [instance.address for instance in wanted if instance.url not in known]
        went = [instance.address for instance in gone]
        parts = [
            f"{len(some)} {what}: {', '.join(some[:_NAMED])}{', ...' if len(some) > _NAMED else ''}"
            for what, some in (("added", came), ("removed", went))
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
                self._see(instance)
                admitted.append(replace(instance, host=self._host) if self._host else instance)
            except ValueError as error:
                self._refused += 1
                self._complain("An instance of %r is not used: %s: %s", instance.address, error)
        return tuple(admitted)

    def _see(self, instance: Instance) -> None:
        if self._check is None:
            return
        parts = urlsplit(instance.url)
        if instance.scheme == "http+unix":
            raise ValueError("a socket is no instance's that was found")
        try:
            address = ip_address(parts.hostname or "")
        except ValueError:
            return  # a name
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
            self._complain("The instances of %r can not be kept: %s", error)

    def _complain(self, trouble: str, *args: object) -> None:
        now = self._clock()
        if len(self._complained) > 100:
            self._complained.clear()
        if now - self._complained.get(trouble, float("-inf")) >= COMPLAIN:
            self._complained[trouble] = now
            LOG.warning(trouble, self.service, *args)


class Watcher:
    """All the watches of a gateway. Nothing runs before :meth:`start`, in each worker for itself.

    :param watches: They; one for each pool.
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
        """Start this process's threads unless they run.

        :param wait: The most seconds to wait until all sources have answered for the first time, so
            that the first request finds instances.
        """
        started = [thread.start() for thread in self._threads]
        if not any(started):
            return
        until = real() + wait
        for watch in self._watches:
            watch.asked.wait(max(0.0, until - real()))

    def stop(self, timeout: float = 1.0) -> None:
        """End this process's threads.

        :param timeout: Seconds to wait for them; one that hangs is left behind.
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

    def told(self) -> dict[str, dict[str, Any]]:
        """Return how each source stands, by service."""
        return {watch.service: watch.told() for watch in self._watches}


def _run(watch: Watch, stopping: threading.Event) -> None:
    try:
        watch.recall()
        while not stopping.is_set():
            stopping.wait(min(watch.step(stopping), _LONGEST))
    finally:
        watch.source.close()
