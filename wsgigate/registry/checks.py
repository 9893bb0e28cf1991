"""Checks that instances are registered with: one worker carries them out for all.

Every worker runs a thread, and the one that holds the lease ``checks`` sends the probes. Each
result also renews the lease of the instance: an instance with such a check stays registered as
long as it is checked, whether it passes or not.

While the store fails there is no lease and no shared result, so each worker checks the instances
that it has read, and its own verdicts apply to what it returns from discovery. When the store
answers again, the leader writes its verdicts at once; the other workers keep theirs for
:data:`HANDED_BACK` seconds, so that an old verdict in the store does not bring a dead instance back
into rotation.
"""

from __future__ import annotations

import logging
import random as _random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from wsgigate.coordination.leader import LeaderLease, LeaderThread
from wsgigate.discovery import Instance
from wsgigate.discovery.health_results import ProbeRunner
from wsgigate.rules.health import CheckResult, first_due, next_due
from wsgigate.rules.registry import Registered
from wsgigate.rules.registry_checks import CRITICAL, RegisteredCheck, Streak, judged, result_of
from wsgigate.runtime.logs import FailureLog
from wsgigate.store import Store, StoreError

__all__ = ["UNVERIFIED", "VERIFIED", "CheckedRegistry", "RegistryChecks"]


LOG = logging.getLogger("wsgigate.registry")

VERIFIED, UNVERIFIED = "verified", "unverified"
"""Passed to the probe runner in place of a service name: whether certificates are verified."""

ROUND = 0.5
"""Seconds between two rounds."""

REFRESH = 1.0
"""Seconds after which the lease is renewed, and changed registrations are read."""

HANDED_BACK = 3.0
"""Seconds after a store outage for which a worker's own verdicts still apply."""

LATE = 10.0
"""Seconds beyond its timeout after which a check that has not ended is abandoned."""

SURE, NEW, HUNG = 0, 1, 2

CheckName = tuple[str, str, str]
"""The names of a service, an instance and a check."""


class CheckedRegistry(Protocol):
    """The methods of a registry that :class:`RegistryChecks` uses."""

    def services(self) -> dict[str, tuple[Registered, ...]]:
        """Return the instances of every service."""

    def known(self) -> dict[str, tuple[Registered, ...]]:
        """Return the instances that this worker has read, without a store access."""

    def version(self, service: str | None = None) -> int:
        """Return the version, which changes when an instance does."""

    def report(
        self, service: str, instance_id: str, check: RegisteredCheck, status: str, output: str
    ) -> Registered | None:
        """Store the result of a check."""

    def deregister(self, service: str, instance_id: str) -> bool:
        """Remove an instance."""


class _InstanceCheck(NamedTuple):
    check: RegisteredCheck
    instance: Instance


class RegistryChecks(LeaderThread):
    """Carries out the checks of registered instances.

    :param registry: The registry.
    :param store: The store that the workers share.
    :param key: The key of the lease of the worker that checks.
    :param prober: Sends the probes; it decides which addresses it may connect to.
    :param most: The largest number of checks in flight, 4 or more. At most half of them are checks
        that timed out the last time, and at most three quarters those and new ones; others wait.
    :param clock: Returns monotonic seconds.
    :param random: Returns numbers in [0, 1).
    :ivar most: The largest number of checks in flight.
    :ivar prober: Sends the probes.
    """

    def __init__(
        self,
        registry: CheckedRegistry,
        store: Store,
        key: str,
        prober: ProbeRunner,
        *,
        most: int = 256,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._registry = registry
        self.prober = prober
        self.most = most
        self._clock = clock
        self._random = random
        self._store = store
        self._trouble = FailureLog(
            LOG, "Store available again after %.0f s: one worker checks for all"
        )
        super().__init__("wsgigate-registry-checks", LeaderLease(store, key))

    def begin_anew(self) -> None:
        """Discard the state of an earlier thread."""
        super().begin_anew()
        self._alone = False
        # the verdicts that this worker found while the store failed
        self._own: dict[CheckName, RegisteredCheck] = {}
        self._own_until = float("inf")
        self._refresh_at = float("-inf")
        self._version: int | None = None
        self._targets: dict[CheckName, _InstanceCheck] = {}
        self._next: dict[CheckName, float] = {}
        self._flights: dict[CheckName, float] = {}
        self._streaks: dict[CheckName, Streak] = {}
        self._hung: set[CheckName] = set()
        self._trouble.since = None

    def stop(self, timeout: float = 1.0) -> None:
        """Stop the thread of this process and release the lease; checks in flight are abandoned."""
        super().stop(timeout)
        self.prober.stop()

    def round(self) -> float:
        """Run one round; log what fails."""
        try:
            self.step()
            if not self._alone:
                self._trouble.ended()
        except Exception:
            LOG.exception("A round of checks failed")
        return ROUND

    def overlaid(self, entries: tuple[Registered, ...]) -> tuple[Registered, ...]:
        """Return *entries* with the verdicts that this worker found while the store failed."""
        own = self._own
        if not own:
            return entries
        return tuple(self._as_found(entry, own) if entry.checks else entry for entry in entries)

    def _as_found(self, entry: Registered, own: Mapping[CheckName, RegisteredCheck]) -> Registered:
        checks = []
        for check in entry.checks:
            found = own.get((entry.service, entry.instance_id, check.check_id))
            same = found is not None and found.definition() == check.definition()
            checks.append(found if found is not None and same else check)
        return entry if tuple(checks) == entry.checks else replace(entry, checks=tuple(checks))

    def step(self) -> None:
        """Run one round: start the checks that are due, if this worker checks."""
        now = self._clock()
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH
            try:
                if self._lead():
                    self._read_changes(now)
                self._check_together(now)
                if self.leading:
                    self._remove()
            except StoreError as error:
                self._check_alone(now, error)
        if not (self.leading or self._alone):
            self._version = None
            self._targets, self._next, self._streaks = {}, {}, {}
            return
        for name in [name for name, until in list(self._flights.items()) if until < now]:
            self._flights.pop(name, None)
        # checks that hung the last time, or may hang, must not use up all slots
        free = [
            most - sum(self._doubt(name) >= doubt for name in list(self._flights))
            for doubt, most in enumerate((self.most, self.most * 3 // 4, self.most // 2))
        ]
        for name, at in sorted(self._next.items(), key=lambda item: item[1]):
            if at > now or free[SURE] <= 0:
                break
            doubt = self._doubt(name)
            if name in self._flights or min(free[: doubt + 1]) <= 0:
                continue
            for less in range(doubt + 1):
                free[less] -= 1
            self._begin(name, now)

    def _doubt(self, name: CheckName) -> int:
        """Return how likely a check is to hang: it did, it was never carried out, or neither."""
        if name in self._hung:
            return HUNG
        return SURE if name in self._streaks else NEW

    def _check_alone(self, now: float, error: StoreError) -> None:
        """Start to check for this worker alone, as the store fails."""
        self._alone, self._own_until = True, float("inf")
        self._version = None
        self._trouble.failed("Store unavailable: each worker runs the checks for itself: %s", error)
        self._plan(self._registry.known(), now)

    def _check_together(self, now: float) -> None:
        """Return to shared results: the leader writes its own, the others keep theirs a moment."""
        if self._alone:
            self._alone, self._own_until = False, now + HANDED_BACK
        if self.leading:
            for name, check in list(self._own.items()):
                self._registry.report(*name[:2], check, check.status, check.output)
                self._own.pop(name, None)
        elif now >= self._own_until:
            self._own = {}

    def _read_changes(self, now: float) -> None:
        """Read the checks again, if any instance has changed."""
        version = self._registry.version()
        if version == self._version:
            return
        self._plan(self._registry.services(), now)
        self._version = version

    def _plan(self, services: Mapping[str, Sequence[Registered]], now: float) -> None:
        targets: dict[CheckName, _InstanceCheck] = {}
        for service, entries in services.items():
            for entry in entries:
                for check in entry.checks:
                    name = service, entry.instance_id, check.check_id
                    targets[name] = _InstanceCheck(check, Instance(check.url))
        known = self._next
        self._next = {
            name: known[name]
            if name in known and self._is_same(name, target)
            else first_due(now, target.check.interval, self._random())
            for name, target in targets.items()
        }
        self._streaks = {
            name: streak for name, streak in list(self._streaks.items()) if name in targets
        }
        self._hung &= targets.keys()
        self._targets = targets
        self._own = {name: check for name, check in list(self._own.items()) if name in targets}

    def _is_same(self, name: CheckName, target: _InstanceCheck) -> bool:
        before = self._targets.get(name)
        return before is not None and before.check.definition() == target.check.definition()

    def _remove(self) -> None:
        """Remove the instances that have been critical for longer than their check allows."""
        waiting = [
            (name, target.check)
            for name, target in self._targets.items()
            if target.check.remove_after is not None
            and target.check.status == CRITICAL
            and target.check.carried_out
        ]
        if not waiting:
            return
        now = self._store.get(self._lease.key)[1]
        for (service, instance_id, _), check in waiting:
            age = now - check.since
            if age < (check.remove_after or 0.0):
                continue
            if self._registry.deregister(service, instance_id):
                why = (age, check.output)
                LOG.warning("%s of %s removed: critical for %.0f s: %s", instance_id, service, *why)

    def _begin(self, name: CheckName, now: float) -> None:
        target = self._targets[name]
        check = target.check
        self._next[name] = next_due(now, check.interval, self._random())
        self._flights[name] = now + check.timeout + LATE

        def found(outcome: CheckResult | Exception) -> None:
            self._flights.pop(name, None)
            if isinstance(outcome, CheckResult):
                self._record(name, target.check, outcome)
            else:  # a lack of threads or sockets here says nothing about the instance
                self._trouble.failed("A check could not be carried out: %s", outcome)

        manner = VERIFIED if check.verify else UNVERIFIED
        try:
            self.prober.probe(manner, target.instance, check.health_check(), found)
        except Exception as error:  # no thread or socket available
            self._flights.pop(name, None)
            self._trouble.failed("A check could not be carried out: %s", error)

    def _record(self, name: CheckName, check: RegisteredCheck, outcome: CheckResult) -> None:
        """Report the result of a check; runs in a thread of the probe runner."""
        result, output = result_of(outcome)
        if outcome.error == "Timeout":
            self._hung.add(name)
        else:
            self._hung.discard(name)
        streak = self._streaks.get(name, Streak()).after(result)
        self._streaks[name] = streak
        target = self._targets.get(name)
        if not (self.leading or self._alone) or target is None:
            return
        verdict = judged(target.check, streak)
        shown = output if verdict == result else target.check.output
        if self._alone:
            self._keep_own(name, target, verdict, shown)
            return
        try:
            held, _ = self._lease.held()
            entry = self._registry.report(*name[:2], check, verdict, shown) if held else None
            for known in entry.checks if entry is not None else ():
                if known.check_id == name[2]:
                    self._targets[name] = _InstanceCheck(known, target.instance)
        except StoreError as error:
            self._trouble.failed("The result of a check could not be stored: %s", error)
            self._keep_own(name, target, verdict, shown)

    def _keep_own(self, name: CheckName, target: _InstanceCheck, verdict: str, shown: str) -> None:
        """Keep a verdict that applies to this worker until the store answers."""
        check = target.check.says(verdict, shown, target.check.since)
        self._own[name] = check
        if not self._alone:
            self._own_until = self._clock() + HANDED_BACK
        self._targets[name] = _InstanceCheck(check, target.instance)
