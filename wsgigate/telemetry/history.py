"""The last hour of a gateway in samples of a few seconds, for charts.

Counters only grow; what people look at is what happened in between. So one worker takes a sample
every :data:`INTERVAL` seconds: how much the totals of all workers have grown, for each route,
service and instance. A request costs nothing more by it.

Theory of operation
-------------------

The samples are in one file of fixed size, a ring of slots that the workers share. Rules:

1. A sample is taken with the lock of the file held, and only if the last one is due: whichever
   worker wakes up first takes it, no worker is elected, and a worker that is killed is replaced by
   the next one to wake up. The kernel releases the lock of a killed process.
2. A sample is the difference to the totals of the sample before. These are in the file as well
   (the baseline), so that another worker continues without a gap and counts nothing twice. The
   baseline is written before the sample: a worker that is killed in between loses one sample.
3. Readers take no lock. Each slot has a number and a checksum, and one that is being overwritten
   is left out: it is the oldest of the ring.
4. Percentiles are computed from the growth of a histogram's buckets, and for a longer time from
   the sum of these: percentiles themselves cannot be added up or averaged.

Totals that shrink (a counter that began anew) count as growth from zero.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import struct
import threading
import time
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import add, sub
from typing import Any, NamedTuple, Protocol

from wsgigate.runtime import fork
from wsgigate.runtime.logs import RepeatLog
from wsgigate.runtime.threads import SupervisedThread
from wsgigate.telemetry.metrics import Storage, Totals
from wsgigate.telemetry.slots import SlotFile

__all__ = [
    "GATEWAY",
    "INTERVAL",
    "CountedTotals",
    "FileRing",
    "Growth",
    "History",
    "MemoryRing",
    "Ring",
    "Sample",
    "difference",
    "document",
    "quantile",
    "ring_beside",
    "totals_of",
]


INTERVAL = 5.0
"""Seconds between two samples."""

SAMPLES = 720
"""Number of samples that are kept: one hour."""

RECENT = 60.0
"""Seconds that the figures of "now" are taken over."""

GAP = 3 * INTERVAL
"""A sample that stands for more seconds than these follows a time in which none was taken."""

LATER = 0.5
"""Seconds that other workers leave to the one that took the last sample."""

GATEWAY = "gateway"
"""The series of all requests; others are ``route:NAME``, ``service:NAME`` and
``instance:SERVICE ADDRESS``."""

PERCENTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))

_SERVER = "http_server_request_duration_seconds"
_CLIENT = "http_client_request_duration_seconds"
_ACTIVE = "http_server_active_requests"
_DECISIONS = "wsgigate_limiter_decisions"

_log = logging.getLogger("wsgigate.metrics")


def quantile(bounds: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """Return the value below which *share* of the observations are; None without observations.

    Within a bucket the observations are taken as spread evenly. What is above the last bound is
    reported as that bound: how far above is unknown.

    :param bounds: The upper bounds of the buckets in increasing order, without infinity.
    :param counts: The observations in each bucket, not cumulative; one more than *bounds*.
    :param share: Between 0 and 1.
    """
    total = sum(counts)
    if total <= 0:
        return None
    rank = share * total
    lower = below = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count > 0 and below + count >= rank:
            return lower + (bound - lower) * max(0.0, rank - below) / count
        below += count
        lower = bound
    return lower


class Growth(NamedTuple):
    """What a series has counted in some time.

    :ivar errors: Requests that failed: with a status of 500 or above, or without a response.
    :ivar seconds: The sum of their durations.
    :ivar buckets: The requests by duration, one number for each bucket.
    """

    errors: float
    seconds: float
    buckets: tuple[float, ...]

    @property
    def requests(self) -> float:
        """The number of requests."""
        return sum(self.buckets)

    def plus(self, other: Growth) -> Growth:
        """Return both together; with other buckets than before, *other* alone."""
        if len(self.buckets) != len(other.buckets):
            return other
        return Growth(
            self.errors + other.errors,
            self.seconds + other.seconds,
            tuple(map(add, self.buckets, other.buckets)),
        )


class CountedTotals(NamedTuple):
    """Totals since the beginning, or how much they have grown.

    :ivar series: By the name of the series.
    :ivar bounds: The bounds of the buckets, of ``server`` (all requests and routes) and ``client``
        (services and instances).
    :ivar decisions: The decisions of limiters: by policy, and then by decision.
    """

    series: Mapping[str, Growth]
    bounds: Mapping[str, tuple[float, ...]]
    decisions: Mapping[str, Mapping[str, float]]


class Sample(NamedTuple):
    """What happened in some seconds.

    :ivar time: Unix time at their end.
    :ivar seconds: How many seconds.
    :ivar counts: What was counted in them.
    :ivar states: The state of each circuit at their end.
    :ivar in_flight: The requests in flight at their end.
    """

    time: float
    seconds: float
    counts: CountedTotals
    states: Mapping[str, str]
    in_flight: float


def bounds_of(key: str) -> str:
    """Return whose bounds the buckets of the series *key* have."""
    return "client" if key.startswith(("service:", "instance:")) else "server"


def totals_of(found: Mapping[str, Totals]) -> CountedTotals:
    """Return the totals of the series that the history keeps.

    :param found: All totals by family.
    """
    series: dict[str, Growth] = {}
    bounds: dict[str, tuple[float, ...]] = {}

    def count(keys: Iterable[str], failed: bool, cells: Sequence[float]) -> None:
        total = Growth(sum(cells[1:]) if failed else 0.0, cells[0], tuple(cells[1:]))
        for key in keys:
            series[key] = series[key].plus(total) if key in series else total

    for kind, name in (("server", _SERVER), ("client", _CLIENT)):
        totals = found.get(name)
        if totals is None:
            continue
        bounds[kind] = totals.family.bounds
        for labels, cells in totals.series.items():
            named = dict(zip(totals.family.labels, labels, strict=True))
            failed = named.get("http_response_status_code", "").startswith("5")
            if kind == "server":
                count((GATEWAY, f"route:{named.get('http_route', '')}"), failed, cells)
            else:
                service = named.get("service", "")
                keys = (f"service:{service}", f"instance:{service} {named.get('instance', '')}")
                count(keys, failed or bool(named.get("error_type")), cells)
    decisions: dict[str, dict[str, float]] = {}
    limiters = found.get(_DECISIONS)
    for labels, cells in limiters.series.items() if limiters else ():
        policy, decision = labels[:2]
        made = decisions.setdefault(policy, {})
        made[decision] = made.get(decision, 0.0) + cells[0]
    return CountedTotals(series, bounds, decisions)


def difference(before: CountedTotals, after: CountedTotals) -> CountedTotals:
    """Return how much the totals have grown, without the series that have not."""
    series = {}
    for key, total in after.series.items():
        grown, known = total, before.series.get(key)
        if known is not None and len(known.buckets) == len(total.buckets):
            less = tuple(map(sub, total.buckets, known.buckets))
            if min(less) >= 0 and total.errors >= known.errors:
                seconds = max(0.0, total.seconds - known.seconds)
                grown = Growth(total.errors - known.errors, seconds, less)
        if grown.requests > 0:
            series[key] = grown
    decisions = {}
    for policy, made in after.decisions.items():
        known_made = before.decisions.get(policy, {})
        changed = {
            decision: number - known_made.get(decision, 0.0)
            if number >= known_made.get(decision, 0.0)
            else number
            for decision, number in made.items()
        }
        if any(changed.values()):
            decisions[policy] = changed
    return CountedTotals(series, after.bounds, decisions)


# What the file has: JSON, with the empty buckets left out.


def _dump_counts(counts: CountedTotals) -> dict[str, Any]:
    return {
        "k": {
            key: [
                growth.errors,
                round(growth.seconds, 6),
                {str(n): count for n, count in enumerate(growth.buckets) if count},
            ]
            for key, growth in counts.series.items()
        },
        "b": counts.bounds,
        "p": counts.decisions,
    }


def _load_counts(read: Mapping[str, Any]) -> CountedTotals:
    bounds = {kind: tuple(values) for kind, values in read["b"].items()}
    series = {}
    for key, (errors, seconds, sparse) in read["k"].items():
        buckets = [0.0] * (len(bounds.get(bounds_of(key), ())) + 1)
        for place, count in sparse.items():
            buckets[int(place)] = float(count)
        series[key] = Growth(errors, seconds, tuple(buckets))
    return CountedTotals(series, bounds, read["p"])


def _dump(sample: Sample, most: int) -> bytes:
    """Return *sample* in at most *most* bytes: if need be without the series of fewest requests."""
    document = {
        "t": round(sample.time, 3),
        "s": round(sample.seconds, 3),
        "c": sample.states,
        "f": sample.in_flight,
    }
    counts = sample.counts
    while True:
        raw = _json(document | _dump_counts(counts))
        if len(raw) <= most or not counts.series:
            return raw
        busiest = sorted(counts.series, key=lambda key: -counts.series[key].requests)
        kept = busiest[: len(busiest) // 2]
        counts = counts._replace(series={key: counts.series[key] for key in kept})


def _load(raw: bytes) -> Sample:
    read = json.loads(raw)
    return Sample(read["t"], read["s"], _load_counts(read), read["c"], read["f"])


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii")


# Where the samples are.


class Ring(Protocol):
    """The place of the samples and of the baseline.

    :ivar slot: The largest size of a sample, in bytes.
    """

    slot: int

    def last(self) -> float:
        """Return the Unix time of the last call of :meth:`append`; 0 without one."""

    def since(self, moment: float) -> list[bytes]:
        """Return the samples after *moment*, in Unix time, oldest first."""

    def alone(self) -> AbstractContextManager[bool]:
        """Return a context with the lock of the ring; its value is whether it was free."""

    def append(self, moment: float, sample: bytes, baseline: bytes) -> None:
        """Add a sample and replace the baseline; an empty sample sets the baseline alone."""

    def baseline(self) -> tuple[float, bytes]:
        """Return when the baseline was written, in Unix time, and the baseline; empty at first."""


class MemoryRing:
    """A ring in this process, for where no file can be made; other workers do not see it."""

    slot = 1 << 20

    def __init__(self) -> None:
        self._samples: deque[tuple[float, bytes]] = deque(maxlen=SAMPLES)
        self._baseline = (0.0, b"")

    def last(self) -> float:
        """Return the Unix time of the last call of :meth:`append`; 0 without one."""
        return self._baseline[0]

    def since(self, moment: float) -> list[bytes]:
        """Return the samples after *moment*."""
        return [raw for time, raw in tuple(self._samples) if time > moment]

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold no lock: this process has one thread that adds samples."""
        yield True

    def append(self, moment: float, sample: bytes, baseline: bytes) -> None:
        """Add a sample and replace the baseline."""
        self._baseline = (moment, baseline)
        if sample:
            self._samples.append((moment, sample))

    def baseline(self) -> tuple[float, bytes]:
        """Return when the baseline was written, and the baseline."""
        return self._baseline


class FileRing:
    """A ring in a file that the workers share. It is opened for each use, so none is inherited.

    :param path: The file, in a folder that no other user may enter. It is made if it is missing,
        and made anew if it is of another release.
    """

    _MAGIC = b"wsgihis1"
    _HEAD = struct.Struct("<8sQd")  # the magic, the number of samples so far, the last append
    _SLOT = struct.Struct("<QdII")  # the number of the sample, its time, its length, its checksum
    _SIZE = 16 * 1024
    _FIRST = 4096
    _BASELINE = _FIRST + SAMPLES * _SIZE
    _MOST = 1024 * 1024

    slot = _SIZE - _SLOT.size

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path

    @contextmanager
    def _open(self, flags: int) -> Iterator[int]:
        file = os.open(self._path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            yield file
        finally:
            os.close(file)

    def _head(self, file: int) -> tuple[int, float]:
        raw = os.pread(file, self._HEAD.size, 0)
        if len(raw) < self._HEAD.size:
            return 0, 0.0
        magic, number, moment = self._HEAD.unpack(raw)
        return (number, moment) if magic == self._MAGIC else (0, 0.0)

    def last(self) -> float:
        """Return the Unix time of the last call of :meth:`append`; 0 without one."""
        try:
            with self._open(os.O_RDONLY) as file:
                return self._head(file)[1]
        except FileNotFoundError:
            return 0.0

    def since(self, moment: float) -> list[bytes]:
        """Return the samples after *moment*."""
        found: list[bytes] = []
        try:
            with self._open(os.O_RDONLY) as file:
                number, _ = self._head(file)
                for each in range(number - 1, max(-1, number - 1 - SAMPLES), -1):
                    sample = self._read(file, each)
                    if sample is not None:
                        if sample[0] <= moment:
                            break
                        found.append(sample[1])
        except FileNotFoundError:
            pass
        return found[::-1]

    def _read(self, file: int, number: int) -> tuple[float, bytes] | None:
        return self._block(file, self._place(number), self.slot, number)

    def _place(self, number: int) -> int:
        return self._FIRST + number % SAMPLES * self._SIZE

    def _block(
        self, file: int, place: int, most: int, number: int | None = None
    ) -> tuple[float, bytes] | None:
        head = os.pread(file, self._SLOT.size, place)
        if len(head) < self._SLOT.size:
            return None
        found, moment, length, checksum = self._SLOT.unpack(head)
        if length > most or (number is not None and found != number):
            return None
        raw = os.pread(file, length, place + self._SLOT.size)
        return (moment, raw) if zlib.crc32(raw) == checksum else None

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold the lock of the file, unless another worker does; the kernel releases it at a kill.

        :raises OSError: The file cannot be opened.
        """
        with self._open(os.O_RDWR | os.O_CREAT) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def append(self, moment: float, sample: bytes, baseline: bytes) -> None:
        """Add a sample and replace the baseline; call it in :meth:`alone` only."""
        with self._open(os.O_RDWR) as file:
            number, _ = self._head(file)
            if len(baseline) > self._MOST:
                baseline = b""  # another worker begins with one of its own
            self._write(file, self._BASELINE, 0, moment, baseline)
            if sample:
                self._write(file, self._place(number), number, moment, sample)
                number += 1
            os.pwrite(file, self._HEAD.pack(self._MAGIC, number, moment), 0)

    def _write(self, file: int, place: int, number: int, moment: float, raw: bytes) -> None:
        head = self._SLOT.pack(number, moment, len(raw), zlib.crc32(raw))
        os.pwrite(file, head + raw, place)

    def baseline(self) -> tuple[float, bytes]:
        """Return when the baseline was written, and the baseline."""
        with self._open(os.O_RDONLY) as file:
            if not self._head(file)[1]:  # new, or of another release
                return 0.0, b""
            return self._block(file, self._BASELINE, self._MOST) or (0.0, b"")


def ring_beside(storage: Storage) -> Ring:
    """Return the ring in the folder of *storage*; one in this process if the cells are in it."""
    if isinstance(storage, SlotFile):
        return FileRing(os.path.join(storage.folder, "history"))
    return MemoryRing()


class History:
    """Takes the samples of a gateway, and returns those of the last hour.

    :param ring: Returns the ring; called once in each process, when it is first used.
    :param totals: Returns the totals of all workers.
    :param states: Returns the state of each circuit.
    :param clock: Returns the Unix time.
    """

    def __init__(
        self,
        ring: Callable[[], Ring],
        totals: Callable[[], Mapping[str, Totals]],
        *,
        states: Callable[[], Mapping[str, str]] = dict,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._open = ring
        self._totals = totals
        self._states = states
        self._clock = clock
        self._failures = RepeatLog(_log, logging.WARNING)
        self.after_fork()
        self._thread = SupervisedThread("wsgigate-history", self._run, self.after_fork)
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Forget the ring, and what this process knows of the last sample."""
        self._ring: Ring | None = None
        self._known: tuple[float, CountedTotals] | None = None

    @property
    def ring(self) -> Ring:
        """The ring of this process."""
        if self._ring is None:
            self._ring = self._open()
        return self._ring

    def start(self) -> None:
        """Start the thread of this process, unless it is running."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Stop the thread of this process."""
        self._thread.stop(timeout)

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                pause = self.step()
            except Exception as error:  # charts without data are no reason to lose the thread
                self._failures.log("The history lacks a sample: %s", error, traceback=error)
                pause = INTERVAL
            stopping.wait(pause)

    def step(self) -> float:
        """Take a sample if one is due; return the seconds until this worker looks again.

        :raises OSError: The file cannot be read or written.
        """
        left = self._left()
        if left > 0:
            return left
        with self.ring.alone() as alone:
            if not alone:
                return LATER
            left = self._left()  # another worker may have been faster
            if left > 0:
                return left
            self._take()
        return INTERVAL

    def _left(self) -> float:
        """Return the seconds until this worker may take a sample."""
        now, ring = self._clock(), self.ring
        last = ring.last()
        mine = self._known is not None and self._known[0] == last
        left = last + INTERVAL + (0.0 if mine else LATER) - now
        return left if left <= INTERVAL + LATER else 0.0  # else the clock was set back

    def _take(self) -> None:
        now, found = self._clock(), self._totals()
        after = totals_of(found)
        known = self._known
        if known is None or known[0] != self.ring.last():
            moment, raw = self.ring.baseline()
            known = (moment, _load_counts(json.loads(raw))) if raw else None
        baseline = _json(_dump_counts(after))
        if known is None or not now - known[0] > 0:
            self.ring.append(now, b"", baseline)
            self._known = (now, after)
            return
        active = found.get(_ACTIVE)
        in_flight = sum(cells[0] for cells in active.series.values()) if active else 0.0
        seconds = now - known[0]
        sample = Sample(now, seconds, difference(known[1], after), self._states(), in_flight)
        self.ring.append(now, _dump(sample, self.ring.slot), baseline)
        self._known = (now, after)

    def since(self, moment: float) -> list[Sample]:
        """Return the samples after *moment*, in Unix time, oldest first.

        :raises OSError: The file cannot be read.
        """
        return [_load(raw) for raw in self.ring.since(moment)]

    def document(self, since: float, keys: Sequence[str]) -> dict[str, Any]:
        """Return the samples after *since* as :func:`document` does.

        :raises OSError: The file cannot be read.
        """
        newest = self.ring.last()
        samples = self.since(min(since, newest - RECENT))
        return document(samples, since, keys)

    def last_minute(self) -> dict[str, float | None] | None:
        """Return the figures of all requests of the last minute; None without a sample of it.

        They are ``rate`` and ``errors`` per second, ``success`` as a share, and percentiles.

        :raises OSError: The file cannot be read.
        """
        samples = self.since(self._clock() - RECENT)
        found: dict[str, float | None] = _recent(samples)["series"].get(GATEWAY)
        return found or (_figures(None, 1.0, ()) if samples else None)


def document(samples: Sequence[Sample], since: float, keys: Sequence[str]) -> dict[str, Any]:
    """Return *samples* as columns for charts, and the figures of the last minute of every series.

    A time in which no sample was taken has a row of ``None``, so that a chart has a gap there.

    :param samples: The samples, oldest first, with those of the last minute.
    :param since: Unix time; the columns begin after it.
    :param keys: The series that have columns.
    """
    shown = samples[bisect_right([sample.time for sample in samples], since) :]
    rows: list[Sample | None] = []
    times: list[float] = []
    for sample in shown:
        if sample.seconds > GAP:
            rows.append(None)
            times.append(round(sample.time - sample.seconds / 2, 3))
        rows.append(sample)
        times.append(round(sample.time, 3))
    names = sorted({name for sample in shown for name in sample.states})
    newest = samples[-1].time if samples else 0.0
    recent = [sample for sample in samples if sample.time > newest - RECENT]
    return {
        "interval": INTERVAL,
        "times": times,
        "series": {key: _columns(rows, key) for key in keys},
        "inFlight": [None if row is None else row.in_flight for row in rows],
        "circuits": {
            name: [None if row is None else row.states.get(name) for row in rows] for name in names
        },
        "recent": _recent(recent),
    }


def _columns(rows: Sequence[Sample | None], key: str) -> dict[str, list[float | None]]:
    columns: dict[str, list[float | None]] = {}
    empty = dict.fromkeys(_figures(None, 1.0, ()))
    for row in rows:
        figures: Mapping[str, float | None] = empty
        if row is not None:
            bounds = row.counts.bounds.get(bounds_of(key), ())
            figures = _figures(row.counts.series.get(key), row.seconds, bounds)
        for name, value in figures.items():
            columns.setdefault(name, []).append(value)
    return columns or {name: [] for name in empty}


def _figures(
    growth: Growth | None, seconds: float, bounds: Sequence[float]
) -> dict[str, float | None]:
    """Return requests and errors per second, the share of successes, and the percentiles."""
    if growth is None:
        none = dict.fromkeys(("success", *(name for name, _ in PERCENTILES)))
        return {"rate": 0.0, "errors": 0.0, **none}
    requests = growth.requests
    return {
        "rate": round(requests / seconds, 4),
        "errors": round(growth.errors / seconds, 4),
        "success": round(1 - growth.errors / requests, 6),
        **{
            name: None if value is None else round(value, 6)
            for name, share in PERCENTILES
            for value in (quantile(bounds, growth.buckets, share),)
        },
    }


def _recent(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the figures of each series, and of each limiter, over all of *samples*."""
    seconds = sum(sample.seconds for sample in samples)
    sums: dict[str, Growth] = {}
    bounds: dict[str, tuple[float, ...]] = {}
    decisions: dict[str, dict[str, float]] = {}
    for sample in samples:
        bounds |= sample.counts.bounds
        for key, growth in sample.counts.series.items():
            sums[key] = sums[key].plus(growth) if key in sums else growth
        for policy, made in sample.counts.decisions.items():
            known = decisions.setdefault(policy, {})
            for decision, number in made.items():
                known[decision] = known.get(decision, 0.0) + number
    return {
        "seconds": round(seconds, 3),
        "series": {
            key: _figures(growth, seconds, bounds.get(bounds_of(key), ()))
            for key, growth in sorted(sums.items())
        },
        "decisions": {
            policy: {decision: round(number / seconds, 4) for decision, number in made.items()}
            for policy, made in sorted(decisions.items())
        },
    }
