"""Instruments that count and measure: counters, gauges and histograms of this process.

An instrument is declared once, at module level, where the measuring is done. It records nothing
until a gateway or a ``Metrics`` middleware in this process asks for that; until then an update
costs one attribute test::

    DECISIONS = Counter("wsgigate_limiter_decisions", "Decisions of limiters.",
                        ("policy", "decision"))

    allowed = DECISIONS.labels("default", "allowed")  # once, in a constructor
    allowed.add()                                     # at each request

Theory of operation
-------------------

All numbers are cells of one sequence of floats, ``recorder.cells``. A series, which is an
instrument with values for its labels, has a range of them: a counter and a gauge one, a histogram
its sum and one for each bucket. Where the cells are is up to a :class:`Storage`.
:class:`ProcessStorage` holds them in a list, which other workers do not see.

Rules:

1. A cell is updated with ``recorder.lock`` held: reading, adding and storing are three steps. It
   is an RLock, since a signal handler or a finalizer may count while its own thread counts.
2. ``recorder.cells`` and the ``start`` of a series are read with that lock held as well: both
   change when a storage is opened, and when the process forks.
3. A storage is opened by :meth:`Recorder.start`, by the first update in a child whose parent had
   started, and never by a constructor. What was counted before moves into the storage. A child
   forgets what its parent counted, which the parent reports.
4. The number of series is bounded. A family that reaches its bound puts further label values
   into one series, in which all of them are ``_other``: no count is lost, the sums stay true.
5. The series of what is gone, such as an instance of a service, are dropped by ``remove``: each
   deployment brings new addresses, which would use up the bound. Their cells are free for others;
   a handle that is still in use adds to the :data:`SCRATCH` cells, which no one reads.
6. While nothing is recorded, an instrument refers to its series weakly: handles that are made in
   constructors do not outlive their objects.
"""

from __future__ import annotations

import logging
import math
import re
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
)
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from wsgigate.runtime import fork
from wsgigate.runtime.logs import RepeatLog

__all__ = [
    "BUCKETS",
    "MAX_SERIES",
    "OTHER",
    "PROCESS",
    "SCRATCH",
    "STARTS",
    "WORKERS",
    "Collector",
    "Counter",
    "CounterSeries",
    "Exemplar",
    "Family",
    "Gauge",
    "GaugeSeries",
    "Histogram",
    "HistogramSeries",
    "InFlight",
    "ObservableCounter",
    "ObservableGauge",
    "ProcessStorage",
    "Reading",
    "Recorder",
    "Storage",
    "Totals",
]

_log = logging.getLogger("wsgigate.metrics")

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds of durations in seconds, as OpenTelemetry's semantic conventions advise."""

MAX_SERIES = 2000
"""Default bound of the number of series of all instruments together."""

OTHER = "_other"
"""The value of each label of the series that holds what does not fit into the bound."""

SCRATCH = 64
"""Number of cells at the start of a storage that belong to no series."""

LONGEST_VALUE = 128
"""Maximum characters of a label value; longer ones are cut."""

InstrumentKind: TypeAlias = Literal["counter", "gauge", "histogram"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Family(NamedTuple):
    """What an instrument measures: a name, and the names of the labels that tell its series apart.

    :ivar name: The name, without the suffix ``_total`` of a counter.
    :ivar bounds: The upper bounds of a histogram's buckets, without the last one, infinity.
    """

    name: str
    kind: InstrumentKind
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Number of cells of a series: of a histogram the sum, and one for each bucket."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


class Exemplar(NamedTuple):
    """One observation of a histogram that is part of a trace."""

    value: float
    time: float
    """Unix time in seconds."""
    trace_id: str


class Reading(NamedTuple):
    """A value that a collector has read, with the values of its family's labels."""

    family: Family
    labels: tuple[str, ...]
    value: float


class Totals:
    """The series of one family at a moment, over all workers.

    :ivar series: For each label values the cells: of a histogram its sum and the count in each
        bucket (not cumulative), otherwise one value.
    :ivar exemplars: For each label values the newest exemplar of each bucket, by its number.
    """

    __slots__ = ("exemplars", "family", "series")

    def __init__(self, family: Family) -> None:
        self.family = family
        self.series: dict[tuple[str, ...], list[float]] = {}
        self.exemplars: dict[tuple[str, ...], dict[int, Exemplar]] = {}

    def add(self, labels: tuple[str, ...], cells: Iterable[float]) -> None:
        """Add *cells* to the series of *labels*."""
        known = self.series.get(labels)
        if known is None:
            self.series[labels] = list(cells)
        else:
            for index, value in enumerate(cells):
                known[index] += value


class InFlight(NamedTuple):
    """Requests in flight, derived from those that were started and finished.

    :ivar active: The gauge of those in flight.
    :ivar lost: The counter of those that a killed worker has not finished.
    :ivar started: The name of the counter of those that were started.
    :ivar finished: The names of the counters and histograms of which each counts a part of those
        that were finished.
    """

    active: Family
    lost: Family
    started: str
    finished: tuple[str, ...]

    def add_to(self, found: dict[str, Totals]) -> None:
        """Add what is in flight in a process that lost nothing."""
        started = _counted(found.get(self.started))
        finished = sum(_counted(found.get(name)) for name in self.finished)
        for family, value in ((self.active, max(0.0, started - finished)), (self.lost, 0.0)):
            found[family.name] = Totals(family)
            found[family.name].add((), [value])


def _counted(totals: Totals | None) -> float:
    """Return the number of events that all series of a counter or histogram have counted."""
    if totals is None:
        return 0.0
    first = 1 if totals.family.kind == "histogram" else 0
    return sum(sum(cells[first:]) for cells in totals.series.values())


WORKERS = Family("wsgigate_workers", "gauge", "Workers that are alive.", ())

STARTS = Family("wsgigate_worker_starts", "counter", "Workers that were started.", ())


class Collector(Protocol):
    """Reads at each scrape what all workers agree on, such as the size of a registry."""

    def collect(self) -> Iterable[Reading]:
        """Return the current values, made by :meth:`ObservableGauge.reading`."""


class Storage(Protocol):
    """Where the cells of this process are."""

    cells: MutableSequence[float]

    def place(self, family: Family, labels: tuple[str, ...]) -> int | None:
        """Return the first cell of a series; None where there is no room for it.

        The first :data:`SCRATCH` cells belong to no series.
        """

    def drop(self, family: Family, labels: tuple[str, ...]) -> None:
        """Release the cells of a series, which this process counts no longer."""

    def exemplar(self, start: int, bucket: int, exemplar: Exemplar) -> None:
        """Keep the newest exemplar of a bucket of the series that starts at cell *start*."""

    def totals(
        self, in_flight: Sequence[InFlight] = (), *, exemplars: bool = False
    ) -> dict[str, Totals]:
        """Return the series of all workers, by the name of their family.

        :param in_flight: What is derived from requests started and finished.
        :param exemplars: Whether to read these too.
        """

    def recover(self, in_flight: Iterable[InFlight]) -> None:
        """Count as lost what a process that was killed had started, if this one succeeds it."""

    def put_event(self, data: bytes, now: float) -> None:
        """Keep *data*, of which at most 1000 bytes, among the last events.

        :param now: Unix time in seconds.
        """

    def events(self, limit: int) -> list[tuple[float, bytes]]:
        """Return the last events of all workers, newest first, each with its Unix time."""

    def is_lowest(self) -> bool:
        """Return whether this worker is the one that does what one worker does for all."""

    def is_there(self) -> bool:
        """Return whether other workers find this storage."""

    def close(self) -> None:
        """Release what the storage has opened in this process; what it has counted stays."""


class ProcessStorage:
    """Cells in a list of this process."""

    def __init__(self) -> None:
        self.cells: MutableSequence[float] = [0.0] * SCRATCH
        self._free: dict[int, list[int]] = {}  # by size, the first cells of dropped series
        self._series: dict[tuple[Family, tuple[str, ...]], int] = {}
        self._exemplars: dict[tuple[int, int], Exemplar] = {}
        self._events: deque[tuple[float, bytes]] = deque(maxlen=64)

    def place(self, family: Family, labels: tuple[str, ...]) -> int | None:
        """Return the first cell of a series, which is made if it is new."""
        start = self._series.get((family, labels))
        if start is None:
            free = self._free.get(family.size)
            if free:
                start = free.pop()
            else:
                start = len(self.cells)
                self.cells.extend([0.0] * family.size)
            self._series[family, labels] = start
        return start

    def drop(self, family: Family, labels: tuple[str, ...]) -> None:
        """Release the cells of a series."""
        start = self._series.pop((family, labels), None)
        if start is not None:
            self.cells[start : start + family.size] = [0.0] * family.size
            for bucket in range(len(family.bounds) + 1):
                self._exemplars.pop((start, bucket), None)
            self._free.setdefault(family.size, []).append(start)

    def exemplar(self, start: int, bucket: int, exemplar: Exemplar) -> None:
        """Keep the newest exemplar of a bucket."""
        self._exemplars[start, bucket] = exemplar

    def totals(
        self, in_flight: Sequence[InFlight] = (), *, exemplars: bool = False
    ) -> dict[str, Totals]:
        """Return the series of this process."""
        found: dict[str, Totals] = {}
        for (family, labels), start in list(self._series.items()):
            totals = found.setdefault(family.name, Totals(family))
            totals.add(labels, self.cells[start : start + family.size])
            newest = {
                bucket: self._exemplars[start, bucket]
                for bucket in range(len(family.bounds) + 1)
                if (start, bucket) in self._exemplars
            }
            if newest:
                totals.exemplars[labels] = newest
        for each in in_flight:
            each.add_to(found)
        for family in (WORKERS, STARTS):
            found[family.name] = Totals(family)
            found[family.name].add((), [1.0])
        return found

    def recover(self, in_flight: Iterable[InFlight]) -> None:
        """Do nothing: there is no predecessor."""

    def put_event(self, data: bytes, now: float) -> None:
        """Keep *data* among the last events."""
        self._events.append((now, data))

    def events(self, limit: int) -> list[tuple[float, bytes]]:
        """Return the last events, newest first."""
        return list(self._events)[: -limit - 1 : -1]

    def is_lowest(self) -> bool:
        """Return True."""
        return True

    def is_there(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing."""


class Recorder:
    """The instruments of a process, and the storage that holds their cells.

    There is one, :data:`PROCESS`; tests make others.

    :param max_series: Maximum number of series of all instruments together.
    """

    def __init__(self, *, max_series: int = MAX_SERIES) -> None:
        self.instruments: dict[str, _Instrument] = {}
        self.max_series = max_series
        self.lock: Any
        self.idle = True
        """Whether an update has to call :meth:`ready` first: nothing is recorded, or not yet."""
        self.storage: Storage = ProcessStorage()
        self.cells = self.storage.cells
        self._open: Callable[[], Storage] | None = None
        self._recording = False
        self._started = False
        self.in_flight: list[InFlight] = []
        self._collectors: weakref.WeakSet[Collector] = weakref.WeakSet()
        self._failures = RepeatLog(_log, logging.WARNING)
        fork.renewed(self, lock="RLock")
        fork.renew_at_fork(self)

    def record(self, open_storage: Callable[[], Storage] | None = None) -> None:
        """Record from now on, in this process and in those that are forked from it.

        :param open_storage: Called without arguments when the process starts; returns the
            :class:`Storage`. Default: the cells stay in the process.
        """
        if open_storage is not None:
            self._open = open_storage
        with self.lock:
            if not self._recording:
                self._recording = True
                for instrument in self.instruments.values():
                    instrument.series = dict(instrument.series)
                self._move(ProcessStorage())
                self.idle = False

    def start(self) -> None:
        """Open the storage, unless this process has done so, and move into it what was counted."""
        with self.lock:
            if not self._recording or self._started:
                return
            self._started = True  # also if it fails: the next request must not try it again
            self._open_storage()
            self.idle = False

    def look(self) -> None:
        """Open the storage again if other workers do not find it any more.

        A file that was deleted or replaced goes on counting, but no scrape reads it.
        """
        if self._started and not self.storage.is_there():
            with self.lock:
                if not self.storage.is_there():
                    before = self.storage
                    self._open_storage()
                    before.close()

    def _open_storage(self) -> None:
        if self._open is not None:
            storage = self._open()
            storage.recover(self.in_flight)
            self._move(storage)

    def stop(self) -> None:
        """Record no more, and forget what was counted. For tests, and for the end of a process."""
        with self.lock:
            self.idle, self._recording, self._started = True, False, False
            self._open = None
            for instrument in self.instruments.values():
                instrument.series = weakref.WeakValueDictionary(instrument.series)
            storage, self.storage = self.storage, ProcessStorage()
            self.cells = self.storage.cells
            storage.close()

    def ready(self) -> bool:
        """Return whether an update is recorded; opens the storage in a child of a process that had.

        Called by updates while :attr:`idle`.
        """
        if not self._recording:
            return False
        self.start()
        return True

    def after_fork(self) -> None:
        """Forget what the parent has counted; the first update opens the storage again."""
        if not self._recording:
            return
        parent, self.idle, self._started = self.storage, self._started, False
        self.storage = ProcessStorage()
        self.cells = self.storage.cells
        for series in self._all_series():
            series.place(self.storage)
        parent.close()

    @property
    def recording(self) -> bool:
        """Whether updates are recorded."""
        return self._recording

    @property
    def started(self) -> bool:
        """Whether this process has opened its storage."""
        return self._started

    def collect_from(self, collector: Collector) -> None:
        """Call *collector* at each scrape for as long as it is alive."""
        self._collectors.add(collector)

    def put_event(self, data: bytes, now: float) -> None:
        """Keep *data*, of which at most 1000 bytes, among the last events of all workers.

        :param now: Unix time in seconds.
        """
        if not self.idle or self.ready():
            with self.lock:
                self.storage.put_event(data, now)

    def events(self, limit: int = 100) -> list[tuple[float, bytes]]:
        """Return the last events of all workers, newest first, each with its Unix time."""
        return self.storage.events(limit)

    def totals(self, *, exemplars: bool = False) -> dict[str, Totals]:
        """Return all series of all workers, and what the collectors read, by family name.

        :param exemplars: Whether to read exemplars too.
        """
        self.look()
        found = self.storage.totals(self.in_flight, exemplars=exemplars)
        for collector in list(self._collectors):
            try:
                readings = list(collector.collect())
            except Exception as error:  # a store that fails must not hide all other metrics
                self._failures.log("metrics of %s are missing: %s", type(collector).__name__, error)
                continue
            for family, labels, value in readings:
                totals = found.setdefault(family.name, Totals(family))
                totals.series[labels] = [value]
        return dict(sorted(found.items()))

    def _declare(self, instrument: _Instrument) -> None:
        name = instrument.family.name
        if name in self.instruments:
            raise ValueError(f"the instrument {name} exists already")
        self.instruments[name] = instrument

    def _admit(self, instrument: _Instrument) -> bool:
        """Return whether one more series of *instrument* is within the bounds."""
        count = sum(len(each.series) for each in self.instruments.values())
        return count < self.max_series and len(instrument.series) <= self.max_series // 2

    def _all_series(self) -> Iterator[_Series]:
        for instrument in list(self.instruments.values()):
            yield from list(instrument.series.values())

    def _move(self, storage: Storage) -> None:
        """Use *storage* from now on, beginning with the cells of the one before."""
        cells, self.storage = self.cells, storage
        for series in self._all_series():
            start, size = series.start, series.family.size
            before = cells[start : start + size] if start >= SCRATCH else ()
            series.place(storage)
            for index, value in enumerate(before):
                storage.cells[series.start + index] += value
        self.cells = storage.cells


PROCESS = Recorder()
"""The instruments of this process."""


class _Series:
    """An instrument with values for its labels."""

    __slots__ = ("__weakref__", "_recorder", "family", "labels", "start")

    def __init__(self, recorder: Recorder, family: Family, labels: tuple[str, ...]) -> None:
        self._recorder = recorder
        self.family = family
        self.labels = labels
        self.start = 0
        if recorder.recording:
            self.place(recorder.storage)

    def place(self, storage: Storage) -> None:
        """Take the cells that *storage* assigns."""
        start = storage.place(self.family, self.labels)
        self.start = 0 if start is None else start


class CounterSeries(_Series):
    """A series of a counter."""

    __slots__ = ()

    def add(self, amount: float = 1.0) -> None:
        """Add *amount*, which is not negative."""
        recorder = self._recorder
        if recorder.idle and not recorder.ready():
            return
        with recorder.lock:
            recorder.cells[self.start] += amount


class GaugeSeries(_Series):
    """A series of a gauge; the values of all living workers are added up."""

    __slots__ = ()

    def add(self, amount: float = 1.0) -> None:
        """Add *amount*, which may be negative."""
        recorder = self._recorder
        if recorder.idle and not recorder.ready():
            return
        with recorder.lock:
            recorder.cells[self.start] += amount

    def set(self, value: float) -> None:
        """Set the value of this worker."""
        recorder = self._recorder
        if recorder.idle and not recorder.ready():
            return
        with recorder.lock:
            recorder.cells[self.start] = value


class HistogramSeries(_Series):
    """A series of a histogram."""

    __slots__ = ()

    def observe(self, value: float, exemplar: Exemplar | None = None) -> None:
        """Count *value*, by default in seconds.

        :param exemplar: The trace of which it is part, if that is recorded.
        """
        recorder = self._recorder
        if recorder.idle and not recorder.ready():
            return
        bucket = bisect_left(self.family.bounds, value)
        with recorder.lock:
            cells, start = recorder.cells, self.start
            cells[start] += value
            cells[start + 1 + bucket] += 1.0
            if exemplar is not None:
                recorder.storage.exemplar(start, bucket, exemplar)


class _Instrument:
    """A family of this process: its series by the values of the labels."""

    kind: InstrumentKind
    make: type[_Series]

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        *,
        bounds: tuple[float, ...] = (),
        recorder: Recorder = PROCESS,
    ) -> None:
        if not _NAME.fullmatch(name) or name.endswith(("_total", "_sum", "_count", "_bucket")):
            raise ValueError(
                f"name is lower case, without the suffix that the exposition adds, got {name!r}"
            )
        for label in labels:
            if not _NAME.fullmatch(label) or label in ("le", "quantile"):
                raise ValueError(f"labels of {name} are lower case and not le, got {label!r}")
        self.family = Family(name, self.kind, help, tuple(labels), bounds)
        self.series: MutableMapping[tuple[str, ...], Any] = (
            {} if recorder.recording else weakref.WeakValueDictionary()
        )
        self._recorder = recorder
        recorder._declare(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.family.name}>"

    def remove(self, *labels: str) -> None:
        """Drop the series whose first labels have these values, such as those of one instance.

        Handles of a dropped series can still be used, and count nothing.
        """
        first = tuple(map(_cut, labels))
        recorder = self._recorder
        with recorder.lock:
            for key in [key for key in self.series if key[: len(first)] == first]:
                series = self.series.pop(key, None)
                if series is not None:
                    series.start = 0
                    recorder.storage.drop(self.family, key)

    def _of(self, labels: tuple[str, ...]) -> Any:
        found = self.series.get(labels)
        return self._made(labels) if found is None else found

    def _made(self, labels: tuple[str, ...]) -> Any:
        recorder, family = self._recorder, self.family
        if len(labels) != len(family.labels):
            raise ValueError(f"{family.name} has the labels {family.labels}, got {labels!r}")
        labels = tuple(_cut(value) for value in labels)
        with recorder.lock:
            found = self.series.get(labels)
            if found is not None:
                return found
            if labels and self is not FOLDED and not recorder._admit(self):
                other = (OTHER,) * len(labels)
                if labels != other:
                    if recorder is PROCESS:
                        FOLDED.labels(family.name).add()
                    return self._of_other(other)
            found = self.series[labels] = self.make(recorder, family, labels)
            return found

    def _of_other(self, other: tuple[str, ...]) -> Any:
        found = self.series.get(other)
        if found is None:
            found = self.series[other] = self.make(self._recorder, self.family, other)
        return found


class Counter(_Instrument):
    """A number that only grows, such as of requests; the exposition appends ``_total``.

    :param name: The name in snake case with its base unit, without ``_total``.
    :param help: One sentence.
    :param labels: The names of the labels.
    :raises ValueError: The name or a label is invalid, or the name is declared already.
    """

    kind = "counter"
    make = CounterSeries

    def labels(self, *labels: str) -> CounterSeries:
        """Return the series with these values of the labels; beyond the bound that of ``_other``.

        :raises ValueError: The number of values is wrong.
        """
        found: CounterSeries = self._of(labels)
        return found

    def add(self, amount: float = 1.0) -> None:
        """Add to the one series of a counter without labels."""
        self.labels().add(amount)


class Gauge(_Instrument):
    """A number that rises and falls; the exposition adds the values of all living workers.

    :param name: The name in snake case with its base unit.
    :param help: One sentence.
    :param labels: The names of the labels.
    :raises ValueError: The name or a label is invalid, or the name is declared already.
    """

    kind = "gauge"
    make = GaugeSeries

    def labels(self, *labels: str) -> GaugeSeries:
        """Return the series with these values of the labels; beyond the bound that of ``_other``.

        :raises ValueError: The number of values is wrong.
        """
        found: GaugeSeries = self._of(labels)
        return found

    def set(self, value: float) -> None:
        """Set the one series of a gauge without labels."""
        self.labels().set(value)

    def add(self, amount: float = 1.0) -> None:
        """Add to the one series of a gauge without labels."""
        self.labels().add(amount)


class Histogram(_Instrument):
    """The distribution of durations or sizes, as counts in buckets.

    :param name: The name in snake case with its base unit, such as ``_seconds``.
    :param help: One sentence.
    :param labels: The names of the labels.
    :param buckets: The upper bounds, increasing and finite. Default: those of the semantic
        conventions for seconds.
    :raises ValueError: An argument is invalid, or the name is declared already.
    """

    kind = "histogram"
    make = HistogramSeries

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = BUCKETS,
        recorder: Recorder = PROCESS,
    ) -> None:
        super().__init__(name, help, labels, bounds=checked_buckets(buckets), recorder=recorder)

    def set_buckets(self, buckets: Sequence[float]) -> None:
        """Use other buckets from now on, before anything was counted.

        :raises ValueError: *buckets* are invalid.
        """
        bounds = checked_buckets(buckets)
        recorder = self._recorder
        if bounds == self.family.bounds:
            return
        with recorder.lock:
            before, self.family = self.family, self.family._replace(bounds=bounds)
            for labels, series in list(self.series.items()):
                if recorder.recording:
                    recorder.storage.drop(before, labels)
                series.family = self.family
                if recorder.recording:
                    series.place(recorder.storage)

    def labels(self, *labels: str) -> HistogramSeries:
        """Return the series with these values of the labels; beyond the bound that of ``_other``.

        :raises ValueError: The number of values is wrong.
        """
        found: HistogramSeries = self._of(labels)
        return found

    def observe(self, value: float, exemplar: Exemplar | None = None) -> None:
        """Count *value* in the one series of a histogram without labels."""
        self.labels().observe(value, exemplar)


class _Observable:
    """A family whose values a :class:`Collector` reads at each scrape."""

    kind: InstrumentKind

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        if not _NAME.fullmatch(name) or name.endswith("_total"):
            raise ValueError(f"name is lower case, without _total, got {name!r}")
        self.family = Family(name, self.kind, help, tuple(labels))
        if name in OBSERVABLE or name in PROCESS.instruments:
            raise ValueError(f"the instrument {name} exists already")
        OBSERVABLE[name] = self.family

    def reading(self, value: float, *labels: str) -> Reading:
        """Return *value* with the values of the labels.

        :raises ValueError: The number of label values is wrong.
        """
        if len(labels) != len(self.family.labels):
            raise ValueError(
                f"{self.family.name} has the labels {self.family.labels}, got {labels!r}"
            )
        return Reading(self.family, tuple(map(_cut, labels)), value)


OBSERVABLE: dict[str, Family] = {}
"""The families that collectors read, by name."""


class ObservableGauge(_Observable):
    """A gauge that a :class:`Collector` reads at each scrape.

    :param name: The name in snake case with its base unit.
    :param help: One sentence.
    :param labels: The names of the labels.
    :raises ValueError: The name is invalid or declared already.
    """

    kind = "gauge"


class ObservableCounter(_Observable):
    """A counter that a :class:`Collector` reads at each scrape.

    :param name: The name in snake case with its base unit, without ``_total``.
    :param help: One sentence.
    :param labels: The names of the labels.
    :raises ValueError: The name is invalid or declared already.
    """

    kind = "counter"


def checked_buckets(buckets: Sequence[float]) -> tuple[float, ...]:
    """Return the upper bounds of a histogram as a tuple.

    :raises ValueError: They are not finite numbers in increasing order, or more than 60.
    """
    bounds = tuple(map(float, buckets))
    if not 1 <= len(bounds) <= 60:
        raise ValueError(f"buckets are 1 to 60 upper bounds, got {len(bounds)}")
    if not all(map(math.isfinite, bounds)) or any(low >= high for low, high in pairwise(bounds)):
        raise ValueError(f"buckets are finite upper bounds in increasing order, got {bounds}")
    return bounds


def families(recorder: Recorder = PROCESS) -> Mapping[str, Family]:
    """Return what the loaded modules measure, by name."""
    found = {name: each.family for name, each in recorder.instruments.items()}
    derived = [WORKERS, STARTS, *(each.active for each in recorder.in_flight)]
    return dict(sorted({**found, **OBSERVABLE, **{each.name: each for each in derived}}.items()))


def _cut(value: object) -> str:
    # a name that a caller has given as bytes must not make the file or a page of metrics fail
    value = str(value)
    return value if len(value) <= LONGEST_VALUE else value[: LONGEST_VALUE - 1] + "…"


FOLDED = Counter(
    "wsgigate_metrics_folded",
    "Label values counted as _other, because the number of series is bounded.",
    ("metric",),
)
