"""Reports of all workers, shared in the store so that any worker can answer for all.

Counts of a circuit, slots of a bulkhead and ejections belong to one worker. Each worker writes a
short report of them under its own key: once a second if it has changed, and otherwise as often as
its time to live demands. A worker that is killed is forgotten after :data:`TTL` seconds. The names
of the workers are one value, so that a reader need not scan all keys of a store on the network. All
workers read the same reports, so the sums do not depend on which worker answers.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from wsgigate.runtime import fork
from wsgigate.runtime.logs import FailureLog
from wsgigate.runtime.threads import SupervisedThread
from wsgigate.store import Store, StoreError, get_all, removed, update
from wsgigate.telemetry.metrics import PROCESS, ObservableGauge, Reading

__all__ = ["Report", "StableTimes", "WorkerReports"]


LOG = logging.getLogger("wsgigate.store")

IN_FLIGHT = ObservableGauge(
    "wsgigate_bulkhead_in_flight",
    "Requests of a service in flight that its bulkhead counts, in all workers.",
    ("service",),
)

EJECTED = ObservableGauge(
    "wsgigate_instances_ejected",
    "Instances of a service that at least one worker ejects.",
    ("service",),
)

EVERY = 1.0
"""Seconds between two checks for changes."""

LOOKS = 2
"""How often *beside* is called in that time: what an operator changes applies within a second."""

TTL = 8.0
"""Seconds after which a worker without a new report is forgotten."""

RENEW = 2.5
"""Seconds after which an unchanged report is written again."""

FRESH = 0.05
"""Seconds for which a report just written is not written again."""

MOST_WORKERS = 1000

MOST_BYTES = 32_768
"""Maximum bytes of one report; a longer one is replaced by an empty report."""

NEARLY = 0.05
"""Seconds by which two computations of the same moment may differ."""

MOST_MOMENTS = 10_000

_LISTED = 86_400.0

Report: TypeAlias = Mapping[str, Any]
"""The report of a worker, of JSON types."""


class StableTimes:
    """Keeps moments that are computed from the difference of two clocks equal between calls.

    Otherwise a report would change by a millisecond or two each time it is made.
    """

    def __init__(self) -> None:
        self._known: dict[str, float] = {}

    def __call__(self, name: str, moment: float) -> float:
        """Return *moment*, or the last result for *name* if it differs by less than 50 ms."""
        known = self._known.get(name)
        if known is not None and abs(known - moment) < NEARLY:
            return known
        if len(self._known) >= MOST_MOMENTS:
            self._known.clear()
        self._known[name] = moment = round(moment, 3)
        return moment


class WorkerReports:
    """The reports of all workers of a gateway. No thread runs before :meth:`start`.

    :param store: The store shared by the workers. While it fails, each worker answers for itself.
    :param report: Returns the report of this worker.
    :param prefix: Prefix of the keys in the store; one for each gateway.
    :param beside: Called by :meth:`start`, and then twice a second by each worker: to read what
        others have changed, or to flush held-back log lines.
    :param quiet: Whether the store logs its failures itself.
    :param clock: Returns monotonic seconds.
    :param wall: Returns the Unix time.
    """

    def __init__(
        self,
        store: Store,
        report: Callable[[], Report],
        *,
        prefix: str = "workers/",
        beside: Iterable[Callable[[], object]] = (),
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._report = report
        self._prefix = prefix
        self._beside = tuple(beside)
        self._clock = clock
        self._wall = wall
        self._trouble = FailureLog(
            LOG,
            "The store answers again, after %.0f s",
            level=logging.DEBUG if quiet else logging.ERROR,
            clock=clock,
        )
        self._reset()
        self._thread = SupervisedThread("wsgigate-reports", self._run, self._reset)
        PROCESS.collect_from(self)

    def _reset(self) -> None:
        self._written = ""
        self._written_at = self._listed_at = float("-inf")
        self._trouble.since = None

    @property
    def worker(self) -> str:
        """The name of this worker: its host name and its process id."""
        return f"{socket.gethostname()[:64]}:{fork.pid}"

    @property
    def failing_since(self) -> float | None:
        """Unix time since which the store fails; ``None`` while it works."""
        since = self._trouble.since
        return None if since is None else self._wall() - max(0.0, self._clock() - since)

    def start(self) -> None:
        """Call *beside*, and start the thread of this process unless it is running."""
        self._call_beside()
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Stop the thread of this process and remove its report.

        :param timeout: Maximum seconds to wait for the thread.
        """
        self._thread.stop(timeout)

    def step(self) -> None:
        """Write the report if it has changed or is due, and call *beside*."""
        self._call_beside()
        self._write_report()

    def _call_beside(self) -> None:
        for each in self._beside:
            try:
                each()
            except Exception:
                LOG.exception("What a worker reads once in a while cannot be read")

    def all(self) -> dict[str, Report]:
        """Return the reports of all workers by name, the one of this worker as of now.

        While the store fails the result has this worker alone.
        """
        self._write_report()
        own = self.worker
        found: dict[str, Report] = {}
        try:
            names = [name for name in self._names() if name != own]
            raws = get_all(self._store, [self._key(name) for name in names])
            found = {
                name: report
                for name, raw in zip(names, raws, strict=True)
                if (report := _read(raw)) is not None
            }
            self._trouble.ended()
        except StoreError as error:
            self._trouble.failed("The store fails: %s", error)
        found[own] = self._report()
        return dict(sorted(found.items()))

    def collect(self) -> Iterable[Reading]:
        """Return the sums over all workers, for the metrics."""
        in_flight: dict[str, int] = {}
        ejected: dict[str, set[str]] = {}
        for report in self.all().values():
            for service, counts in report.get("bulkheads", {}).items():
                in_flight[service] = in_flight.get(service, 0) + counts.get("inFlight", 0)
                ejected.setdefault(service, set())
            for service, urls in report.get("ejections", {}).items():
                ejected.setdefault(service, set()).update(urls)
        for service, count in in_flight.items():
            yield IN_FLIGHT.reading(count, service)
        for service, urls in ejected.items():
            yield EJECTED.reading(len(urls), service)

    def _write_report(self) -> None:
        """Write the report if it has changed or is due, but not twice within 50 ms.

        A worker whose report stays empty writes nothing.
        """
        now = self._clock()
        age = now - self._written_at
        if age < FRESH:
            return
        text = json.dumps(self._report(), separators=(",", ":"))
        if text == self._written and age < RENEW:
            return
        if text == "{}" and self._written in ("", "{}"):  # empty, as the last report was
            self._probe_store(now)
            return
        raw = text.encode("ascii") if len(text) <= MOST_BYTES else b"{}"

        def change(_: bytes | None, __: float) -> tuple[bytes, float, None]:
            return raw, TTL, None

        try:
            update(self._store, self._key(self.worker), change)
            if now - self._listed_at >= RENEW:
                self._update_list(now)
            self._trouble.ended()
        except StoreError as error:
            self._trouble.failed("The store fails: %s", error)
            return
        self._written, self._written_at = text, now

    def _probe_store(self, now: float) -> None:
        """Check that the store answers, as there is nothing to write."""
        try:
            self._store.get(self._prefix + "list")
            self._trouble.ended()
        except StoreError as error:
            self._trouble.failed("The store fails: %s", error)
        self._written, self._written_at = "{}", now

    def _update_list(self, now: float) -> None:
        """Add this worker to the list, and remove workers whose report has expired."""
        own, listed = self.worker, self._names()
        self._listed_at = now
        raws = get_all(self._store, [self._key(name) for name in listed])
        gone = {name for name, raw in zip(listed, raws, strict=True) if raw is None} - {own}
        if own in listed and not gone:
            return

        self._change_list({*gone, own}, [own])

    def _change_list(self, without: Collection[str], new: Sequence[str] = ()) -> None:
        """Remove workers from the list, and add others."""

        def change(old: bytes | None, _: float) -> tuple[bytes | None, float, None]:
            names = [name for name in _listed(old) if name not in without]
            names = [*names[len(new) - MOST_WORKERS :], *new]
            return json.dumps(names).encode("ascii") if names else None, _LISTED, None

        update(self._store, self._prefix + "list", change)

    def _names(self) -> list[str]:
        return _listed(self._store.get(self._prefix + "list")[0])

    def _key(self, worker: str) -> str:
        return f"{self._prefix}of/{worker}"

    def _run(self, stopping: threading.Event) -> None:
        turns = [self.step, *[self._call_beside] * (LOOKS - 1)]
        try:
            while not stopping.is_set():
                for turn in turns:
                    try:
                        turn()
                    except Exception:
                        LOG.exception("The report of this worker failed")
                    if stopping.wait(EVERY / LOOKS):
                        break
        finally:
            try:
                update(self._store, self._key(self.worker), removed)
                self._change_list([self.worker])
            except StoreError:
                pass  # the report expires


def _listed(raw: bytes | None) -> list[str]:
    try:
        names = json.loads(raw or b"[]")
    except ValueError:
        return []
    if not isinstance(names, list):
        return []
    return [name for name in names if isinstance(name, str)][-MOST_WORKERS:]


def _read(raw: bytes | None) -> Report | None:
    try:
        body = json.loads(raw or b"")
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
