"""What each worker says of itself, kept in the store so that any of them can answer for all.

Counts of a circuit, places of a bulkhead and ejections belong to one worker. Each worker keeps a
short report of them under a key of its own, written once a second if it has changed, and else as
often as its lease demands: a worker that is killed is forgotten after :data:`TTL` seconds. The
workers are listed in one value, so that no reader has to look through all keys of a store on the
network. Everyone who asks reads the same reports, so the sums do not depend on who answers.
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
from wsgigate.runtime.threads import SupervisedThread
from wsgigate.runtime.throttled_log import Trouble
from wsgigate.store import Store, StoreError, get_all, update

__all__ = ["Report", "Steady", "WorkerReports"]


LOG = logging.getLogger("wsgigate.store")

EVERY = 1.0
"""Seconds between two looks at what has changed."""

TTL = 8.0
"""Seconds after which a worker that is not heard of is forgotten."""

RENEW = 2.5
"""Seconds after which a report is written although nothing has changed."""

FRESH = 0.05
"""Seconds for which a report that was written because it was asked for is not written again."""

MOST_WORKERS = 1000

MOST_BYTES = 32_768
"""Bytes of one report; of a longer one the workers know only that the worker is there."""

NEARLY = 0.05
"""Seconds by which two readings of the same moment may differ."""

MOST_MOMENTS = 10_000

_LISTED = 86_400.0

Report: TypeAlias = Mapping[str, Any]
"""What a worker says of itself, of JSON's types."""


class Steady:
    """Moments that stay the same each time they are worked out from the difference of two clocks.

    Else a report would change each time it is made, by a millisecond or two.
    """

    def __init__(self) -> None:
        self._known: dict[str, float] = {}

    def __call__(self, name: str, moment: float) -> float:
        """Return *moment*, or what was returned for *name* before if it is nearly the same."""
        known = self._known.get(name)
        if known is not None and abs(known - moment) < NEARLY:
            return known
        if len(self._known) >= MOST_MOMENTS:
            self._known.clear()
        self._known[name] = moment = round(moment, 3)
        return moment


class WorkerReports:
    """The reports of all workers of a gateway. Nothing runs before :meth:`start`.

    :param store: Where the workers meet; each tells for itself while it fails.
    :param report: Returns what this worker has to say.
    :param prefix: What the keys in the store begin with; one for each gateway.
    :param beside: Called once a second by each worker, such as to log what is due.
    :param quiet: Whether the store logs its failures itself.
    :param clock: Seconds of a clock that never steps back.
    :param wall: The Unix time.
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
        self._trouble = Trouble(
            LOG,
            "The store answers again, after %.0f s",
            level=logging.DEBUG if quiet else logging.ERROR,
            clock=clock,
        )
        self._begin_anew()
        self._thread = SupervisedThread("wsgigate-reports", self._run, self._begin_anew)

    def _begin_anew(self) -> None:
        self._written = ""
        self._written_at = self._listed_at = float("-inf")
        self._trouble.since = None

    @property
    def worker(self) -> str:
        """What this worker is called: its machine and its process id."""
        return f"{socket.gethostname()[:64]}:{fork.pid}"

    @property
    def failing_since(self) -> float | None:
        """Since when the store has failed, in Unix time; ``None`` while it works."""
        since = self._trouble.since
        return None if since is None else self._wall() - max(0.0, self._clock() - since)

    def start(self) -> None:
        """Start this process's thread unless it runs."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """End this process's thread and take its report back.

        :param timeout: Seconds to wait for the thread.
        """
        self._thread.stop(timeout)

    def step(self) -> None:
        """Write the report if it has changed or is due; do what is to be done beside it."""
        for each in self._beside:
            each()
        self._share()

    def all(self) -> dict[str, Report]:
        """Return the report of each worker by its name, this one's as it is now.

        While the store fails, that is this worker alone.
        """
        self._share()
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

    def _share(self) -> None:
        """Write the report if it has changed or is due, but not again at once.

        A worker that has nothing to tell writes nothing.
        """
        now = self._clock()
        age = now - self._written_at
        if age < FRESH:
            return
        text = json.dumps(self._report(), separators=(",", ":"))
        if text == self._written and age < RENEW:
            return
        if text == "{}" and self._written in ("", "{}"):  # nothing to tell, nor was there before
            self._look(now)
            return
        raw = text.encode("ascii") if len(text) <= MOST_BYTES else b"{}"

        def change(_: bytes | None, __: float) -> tuple[bytes, float, None]:
            return raw, TTL, None

        try:
            update(self._store, self._key(self.worker), change)
            if now - self._listed_at >= RENEW:
                self._list(now)
            self._trouble.ended()
        except StoreError as error:
            self._trouble.failed("The store fails: %s", error)
            return
        self._written, self._written_at = text, now

    def _look(self, now: float) -> None:
        """See that the store answers, where there is nothing to write."""
        try:
            self._store.get(self._prefix + "list")
            self._trouble.ended()
        except StoreError as error:
            self._trouble.failed("The store fails: %s", error)
        self._written, self._written_at = "{}", now

    def _list(self, now: float) -> None:
        """See that this worker is in the list, and those that are gone are not."""
        own, listed = self.worker, self._names()
        self._listed_at = now
        raws = get_all(self._store, [self._key(name) for name in listed])
        gone = {name for name, raw in zip(listed, raws, strict=True) if raw is None} - {own}
        if own in listed and not gone:
            return

        self._relist({*gone, own}, [own])

    def _relist(self, without: Collection[str], new: Sequence[str] = ()) -> None:
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
        try:
            while not stopping.is_set():
                try:
                    self.step()
                except Exception:
                    LOG.exception("The report of this worker failed")
                stopping.wait(EVERY)
        finally:
            try:
                update(self._store, self._key(self.worker), lambda _, __: (None, 0.0, None))
                self._relist([self.worker])
            except StoreError:
                pass  # it runs out by itself


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
