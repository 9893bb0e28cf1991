"""One file in which all workers of a machine count, without waiting for each other.

Theory of operation
-------------------

A worker counts in memory that is mapped from a file, in a slot of its own: a store of 8 bytes that
the processor carries out whole, without a system call. A scrape reads the slots of all workers and
adds them up. Files by process id, the usual way, grow with each worker that is replaced, and so
does the time of a scrape. Here both depend only on how many workers live at once::

    header | families | series | slot 0 | slot 1 | ...
    slot:    header | exemplars | events | cells

The file is sparse and has its final length from the start. What must hold:

1. A slot belongs to the process that holds the lock on its byte of the lock file
   (:func:`fcntl.lockf`): the kernel releases it when the process ends, however it ends, and a
   forked child does not inherit it. A worker claims the lowest free slot and *continues* the counts
   of its predecessor. Nothing is copied or reset at the end of a worker, so a worker that is killed
   loses nothing that it had counted, and a replaced worker adds nothing to the file.
2. Closing any descriptor of a file releases all POSIX locks that the process has on it. So the
   locks are on a file of their own, which this module alone opens, once per process.
3. Gauges tell what a worker does now: those of a dead worker do not count, and its successor sets
   them to 0. Requests in flight are not counted as a gauge but derived: those that were started
   minus those that were finished. Requests of a killed worker are never finished, so its successor
   counts them as lost. It *sets* their number, from numbers that do not change meanwhile, so a
   successor that is killed doing so does no harm. At each moment
   ``started = finished + in flight + lost``.
4. Writing to a mapped page without space behind it is not an error but a signal that kills the
   process (SIGBUS). So space is allocated before a slot is claimed, and before a series is placed
   on new pages; and only file systems are used that keep allocated space. Everything outside of its
   own slot a process reads and writes by system calls, whose errors are exceptions; a hole that is
   read that way takes no space either.
5. Series are numbered for all workers alike, by records that are appended with the lock on byte 0
   held. The change counter is odd meanwhile; readers, who take no lock, read again then. A writer
   that is killed leaves it odd, and the next one repairs that.
6. A dropped series keeps its cells: another worker may still count in them. They are given to a new
   series of the same size after :data:`REUSE` seconds, when every worker has dropped it as well,
   and only when the records are used up.
7. A file of another version, of another size or with nonsense in it is renamed, and a new one is
   made. Workers that have the old one open notice within seconds (``Recorder.look``) that another
   file, or none, has its name, and bring what they have counted into the new one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import mmap
import os
import stat
import struct
import sys
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from operator import add
from typing import Any, NamedTuple, cast

from wsgigate.runtime.clocks import real
from wsgigate.runtime.folders import (
    FolderError,
    check_file,
    folder_name,
    keeps_its_space,
    own_folder,
    user_folders,
)
from wsgigate.telemetry.metrics import (
    SCRATCH,
    STARTS,
    WORKERS,
    Exemplar,
    Family,
    InFlight,
    ProcessStorage,
    Storage,
    Totals,
)

__all__ = ["SlotFile", "SlotStorage", "Unusable", "metrics_folder", "open_slots"]

_log = logging.getLogger("wsgigate.metrics")

MAGIC, VERSION = b"wsgimetr", 1

SLOTS = 256
"""Maximum number of processes that count at once."""

FAMILIES = 256

FAMILY_BYTES, SERIES_BYTES = 2048, 512

CELLS_PER_SERIES = 24
"""Average number of cells of a series that there is room for: a histogram has 16."""

EXEMPLARS, EXEMPLAR_BYTES = 512, 64

EVENTS, EVENT_BYTES = 64, 1024

LONGEST_EVENT = EVENT_BYTES - 24

PAGE = max(4096, mmap.ALLOCATIONGRANULARITY)

REUSE = 3600.0
"""Seconds after which the cells of a dropped series may be given to another one."""

AGE = 86400.0
"""Seconds without a use after which the folder of a gateway that is gone is removed."""

_NAME, _LOCK, _ASIDE = "metrics", "metrics.lock", "metrics.old"

_geometry = struct.Struct("=8sIIII")  # magic, version, series, cells, slots

_change = struct.Struct("=QIIII")  # change counter, families, series, next cell, slots in use

_CHANGE_AT = 64

_state = struct.Struct("=BxHIIId")  # state, bytes of the key, family, first cell, cells, dropped at

_FREE, _LIVE, _DROPPED = 0, 1, 2

_claim = struct.Struct("=QQdQQ")  # pid, claims, claimed at, exemplars and events written

_exemplar = struct.Struct("=I4xdd32s")

_event = struct.Struct("=QdI")

_crc = struct.Struct("=I")

_FLOCK = "hhqqi" if sys.platform.startswith("linux") else "qqihh"


class Unusable(Exception):
    """There is no place for the file, or no room in it; the message says why."""


class _Unreadable(Exception):
    """The file is not one of this version, or damaged; the message says in what."""


class _SeriesRecord(NamedTuple):
    family: int
    labels: tuple[str, ...]
    start: int
    size: int
    dropped: float | None
    """When the series was dropped, in Unix time; None while it is in use."""


class _Layout:
    """Where the parts of a file for a number of series are."""

    def __init__(self, series: int) -> None:
        self.series = series + FAMILIES
        self.cells = SCRATCH + self.series * CELLS_PER_SERIES
        self.families_at = PAGE
        self.series_at = _pages(self.families_at + FAMILIES * FAMILY_BYTES)
        self.slots_at = _pages(self.series_at + self.series * SERIES_BYTES)
        self.exemplars_at = PAGE
        self.events_at = self.exemplars_at + EXEMPLARS * EXEMPLAR_BYTES
        self.cells_at = _pages(self.events_at + EVENTS * EVENT_BYTES)
        self.slot = _pages(self.cells_at + 8 * self.cells)
        self.size = self.slots_at + SLOTS * self.slot
        self.head = _geometry.pack(MAGIC, VERSION, self.series, self.cells, SLOTS)

    def of_slot(self, index: int) -> int:
        return self.slots_at + index * self.slot


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


class _Locks:
    """The lock file: byte 0 for changes of the directory, byte 1 + N for slot N."""

    by_path: dict[str, _Locks] = {}  # noqa: RUF012 of the process: rule 2
    """The lock files that this process has open."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = os.open(path, _OPENING | os.O_CREAT, 0o600)
        self.held: set[int] = set()
        self._depth = 0

    @classmethod
    def at(cls, path: str) -> _Locks:
        known = cls.by_path.get(path)
        if known is not None:
            if known.is_there():
                return known
            if not known.held:
                os.close(known.descriptor)
        made = cls.by_path[path] = cls(path)
        return made

    def is_there(self) -> bool:
        """Return whether the path still has this file."""
        return _is_at(self.path, self.descriptor)

    @contextmanager
    def directory(self, patience: float = 1.0) -> Iterator[None]:
        """Hold the lock on the directory.

        :raises Unusable: A process, which may be stopped, holds it for longer than *patience*
            seconds.
        """
        if self._depth == 0:
            deadline = real() + patience
            while not self._locked(0):
                if real() > deadline:
                    raise Unusable(f"{self.path} is locked by another process")
                time.sleep(0.01)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, 0)

    def claim(self) -> int | None:
        """Claim the lowest free slot; None if all are taken."""
        for index in range(SLOTS):
            if index not in self.held and self._locked(1 + index):
                self.held.add(index)
                return index
        return None

    def release(self, index: int) -> None:
        """Release a slot; in a child of its holder it has no effect on that."""
        self.held.discard(index)
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, 1 + index)
        if not self.held and self._depth == 0:
            if self.by_path.get(self.path) is self:
                del self.by_path[self.path]
            os.close(self.descriptor)

    def is_held(self, index: int) -> bool:
        """Return whether a process, this one or another, holds a slot."""
        return index in self.held or _has_lock(self.descriptor, 1 + index, 1)

    def _locked(self, byte: int) -> bool:
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True


_OPENING = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


def _has_lock(descriptor: int, byte: int, length: int) -> bool:
    """Return whether another process holds a lock on these bytes; takes no lock for that."""
    if _FLOCK == "hhqqi":
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, length, 0)
    else:
        asked = struct.pack(_FLOCK, byte, length, 0, fcntl.F_WRLCK, os.SEEK_SET)
    answer = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return bool(answer[0 if _FLOCK == "hhqqi" else 3] != fcntl.F_UNLCK)


def _is_at(path: str, descriptor: int) -> bool:
    try:
        there, here = os.lstat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


class SlotFile:
    """The file, for any process of the user that reads it.

    :param folder: The folder that has it.
    :param max_series: The number of series it has room for. Default: as the file has.
    :raises Unusable: There is none, or it is not one of this version.
    """

    def __init__(self, folder: str, max_series: int | None = None) -> None:
        self.folder = folder
        self.path = os.path.join(folder, _NAME)
        self._seen = -1
        self._families: list[Family] = []
        self._records: list[_SeriesRecord] = []
        self._raw: list[bytes] = []
        self._positions: dict[tuple[int, tuple[str, ...]], int] = {}
        try:
            self._locks = _Locks.at(os.path.join(folder, _LOCK))
            self.descriptor = self._opened(max_series)
        except _Unreadable as error:
            raise Unusable(f"{self.path} is {error}") from None
        except OSError as error:
            raise Unusable(f"{self.path} cannot be opened: {error.strerror}") from error

    def _opened(self, max_series: int | None) -> int:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._check(descriptor, max_series)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check(self, descriptor: int, max_series: int | None) -> None:
        """Check the head of the file, and take its layout from there.

        :raises _Unreadable: It is not one of this version, or damaged.
        """
        head = os.pread(descriptor, _geometry.size, 0)
        if len(head) < _geometry.size or not head.startswith(MAGIC):
            raise _Unreadable("damaged: it has no header")
        _, version, series, _, _ = _geometry.unpack(head)
        if version != VERSION:
            raise _Unreadable(f"of version {version}, not {VERSION}")
        wanted = series - FAMILIES if max_series is None else max_series
        if series - FAMILIES != wanted:
            raise _Unreadable(f"for {series - FAMILIES} series, not {wanted}")
        self.layout = _Layout(wanted)
        if head != self.layout.head or os.fstat(descriptor).st_size != self.layout.size:
            raise _Unreadable("damaged: its header or its length is wrong")
        self.descriptor = descriptor
        self._read_directory()

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    # The directory: rule 5.

    def _counts(self) -> tuple[int, int, int, int, int]:
        """Return the change counter, and the numbers of families, series, cells and slots."""
        data = os.pread(self.descriptor, _change.size, _CHANGE_AT)
        return cast(tuple[int, int, int, int, int], _change.unpack(data))

    def _read_directory(self) -> None:
        """Read the records if they have changed.

        :raises _Unreadable: A record is invalid.
        """
        for attempt in range(10):
            before = self._counts()
            if before[0] == self._seen:
                return
            try:
                self._parse(before)
            except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
                self._raw = []
                if attempt == 9:
                    raise _Unreadable(f"damaged: {error}") from None
            else:
                # an odd counter that stays is that of a writer that was killed
                steady = before[0] % 2 == 0 and self._counts()[0] == before[0]
                if steady or attempt == 9:
                    self._seen = before[0]
                    return
            time.sleep(0.001 * attempt)

    def _parse(self, counts: tuple[int, int, int, int, int]) -> None:
        """Take over the records; those that have not changed are not parsed again."""
        layout = self.layout
        _, many, series, cells, slots = counts
        if many > FAMILIES or series > layout.series or cells > layout.cells or slots > SLOTS:
            raise ValueError("its counts exceed its size")
        data = os.pread(self.descriptor, many * FAMILY_BYTES, layout.families_at)
        for at in range(len(self._families) * FAMILY_BYTES, many * FAMILY_BYTES, FAMILY_BYTES):
            name, kind, text, labels, bounds = json.loads(
                data[at : at + FAMILY_BYTES].rstrip(b"\0").decode()
            )
            self._families.append(Family(name, kind, text, tuple(labels), tuple(bounds)))
        data = os.pread(self.descriptor, series * SERIES_BYTES, layout.series_at)
        raw = [data[at : at + SERIES_BYTES] for at in range(0, len(data), SERIES_BYTES)]
        known, records = len(self._raw), self._records
        for position, each in enumerate(raw):
            if position >= known:
                records[position:] = [self._record(each)]
            elif each != self._raw[position]:
                records[position] = self._record(each)
        self._raw = raw
        self._positions = {
            (record.family, record.labels): position for position, record in enumerate(records)
        }

    def _record(self, data: bytes) -> _SeriesRecord:
        state, length, family, start, size, when = _state.unpack_from(data)
        labels = tuple(json.loads(data[_state.size : _state.size + length]))
        if state not in (_LIVE, _DROPPED) or size != self._families[family].size:
            raise ValueError("a series is invalid")
        if not SCRATCH <= start <= self.layout.cells - size:
            raise ValueError("a series is beyond its end")
        return _SeriesRecord(family, labels, start, size, when if state == _DROPPED else None)

    # Reading.

    def alive(self) -> list[int]:
        """Return the numbers of the slots that processes hold, in increasing order."""
        return [index for index in range(self._counts()[4]) if self._locks.is_held(index)]

    def totals(
        self, in_flight: Sequence[InFlight] = (), *, exemplars: bool = False
    ) -> dict[str, Totals]:
        """Return the series of all workers, by the name of their family.

        :param in_flight: What is derived from requests started and finished.
        :param exemplars: Whether to read these too.
        :raises Unusable: The file is damaged.
        """
        try:
            self._read_directory()
        except _Unreadable as error:
            raise Unusable(f"{self.path} is {error}") from None
        families, records = self._families, self._records
        _, _, _, cells, slots = self._counts()
        gauges = [record.start for record in records if families[record.family].kind == "gauge"]
        summed: list[float] = [0.0] * cells
        current = dict.fromkeys(gauges, 0.0)
        flows = [_Flow(each, families, records) for each in in_flight]
        workers = starts = 0
        for index in range(slots):
            values = self._cells(index, cells)
            summed = list(map(add, summed, values))
            alive = self._locks.is_held(index)
            workers += alive
            starts += _claim.unpack(self._slot_head(index))[1]
            if alive:
                for start in gauges:
                    current[start] += values[start]
            for flow in flows:
                flow.look(values, alive)
        found: dict[str, Totals] = {}
        places: dict[int, tuple[Totals, tuple[str, ...]]] = {}
        newest = {family.name: family for family in families}
        for record in records:
            family, last = families[record.family], newest[families[record.family].name]
            alike = (family.kind, family.labels) == (last.kind, last.labels)
            if record.dropped is not None or not alike:
                continue
            values = (
                [current[record.start]]
                if family.kind == "gauge"
                else summed[record.start : record.start + record.size]
            )
            if family.bounds != last.bounds:
                values = rebucketed(family.bounds, values, last.bounds)
            totals = found.setdefault(family.name, Totals(last))
            totals.add(record.labels, values)
            if family.bounds == last.bounds:
                places[record.start] = totals, record.labels
        if exemplars:
            self._add_exemplars(slots, places)
        for flow in flows:
            flow.add_to(found)
        for family, value in ((WORKERS, workers), (STARTS, starts)):
            found[family.name] = Totals(family)
            found[family.name].add((), [float(value)])
        return found

    def _cells(self, index: int, count: int) -> Sequence[float]:
        data = os.pread(
            self.descriptor, 8 * count, self.layout.of_slot(index) + self.layout.cells_at
        )
        return memoryview(data).cast("d")

    def _slot_head(self, index: int) -> bytes:
        return os.pread(self.descriptor, _claim.size, self.layout.of_slot(index))

    def _add_exemplars(self, slots: int, places: dict[int, tuple[Totals, tuple[str, ...]]]) -> None:
        layout = self.layout
        firsts = sorted(places)
        for index in range(slots):
            if not _claim.unpack(self._slot_head(index))[3]:
                continue
            data = os.pread(
                self.descriptor,
                EXEMPLARS * EXEMPLAR_BYTES,
                layout.of_slot(index) + layout.exemplars_at,
            )
            for at in range(0, len(data), EXEMPLAR_BYTES):
                body = data[at : at + _exemplar.size]
                if _crc.unpack_from(data, at + _exemplar.size)[0] != zlib.crc32(body):
                    continue
                cell, value, when, trace = _exemplar.unpack(body)
                start = _first_of(firsts, cell)
                if start is None:
                    continue
                totals, labels = places[start]
                bucket = cell - start - 1
                if not 0 <= bucket <= len(totals.family.bounds):
                    continue
                known = totals.exemplars.setdefault(labels, {})
                if bucket not in known or known[bucket].time < when:
                    known[bucket] = Exemplar(value, when, trace.rstrip(b"\0").decode("ascii"))

    def events(self, limit: int = EVENTS) -> list[tuple[float, bytes]]:
        """Return the last events of all workers, newest first, each with its Unix time."""
        layout, found = self.layout, []
        for index in range(self._counts()[4]):
            if not _claim.unpack(self._slot_head(index))[4]:
                continue
            data = os.pread(
                self.descriptor, EVENTS * EVENT_BYTES, layout.of_slot(index) + layout.events_at
            )
            for at in range(0, len(data), EVENT_BYTES):
                number, when, length = _event.unpack_from(data, at)
                body = data[at + _event.size : at + _event.size + length]
                crc = _crc.unpack_from(data, at + EVENT_BYTES - _crc.size)[0]
                if number and length <= LONGEST_EVENT and crc == zlib.crc32(body):
                    found.append((when, body))
        found.sort(key=lambda event: event[0], reverse=True)
        return found[:limit]


class SlotStorage(SlotFile):
    """The file, with a slot that this process holds and counts in.

    :param folder: A private folder, which is made if missing.
    :param max_series: The number of series to have room for.
    :raises Unusable: There is no slot or no space, or the file cannot be made.
    """

    cells: MutableSequence[float]

    def __init__(self, folder: str, max_series: int) -> None:
        self._max_series = max_series
        self._placed: dict[tuple[Family, tuple[str, ...]], int] = {}
        try:
            own_folder(folder, private=True)
            for name in (_NAME, _LOCK):
                check_file(os.path.join(folder, name))
            for _ in range(3):  # a process that removes leftovers may have removed the lock file
                self._locks = _Locks.at(os.path.join(folder, _LOCK))
                with self._locks.directory():
                    if self._locks.is_there():
                        super().__init__(folder, max_series)
                        self._claim()
                        return
            raise Unusable(f"{folder} is removed again and again")
        except FolderError as error:
            raise Unusable(str(error)) from error
        except OSError as error:
            raise Unusable(f"{folder} cannot be used: {error.strerror}") from error

    def _opened(self, max_series: int | None) -> int:
        path, layout = self.path, _Layout(self._max_series)
        for last in (False, True):
            descriptor = os.open(path, _OPENING | os.O_CREAT, 0o600)
            try:
                found = os.fstat(descriptor)
                if not keeps_its_space(found.st_dev):
                    raise Unusable(
                        f"{path} is on a file system that may run out of allocated space"
                    )
                if found.st_size == 0:
                    _make(descriptor, layout)
                self._check(descriptor, max_series)
            except _Unreadable as error:
                os.close(descriptor)
                if last:
                    raise
                os.replace(path, os.path.join(self.folder, _ASIDE))
                _log.warning("Metrics start anew: %s is %s; it is kept as %s", path, error, _ASIDE)
            except BaseException:
                os.close(descriptor)
                raise
            else:
                return descriptor
        raise AssertionError

    def _claim(self) -> None:
        """Claim a slot; the lock on the directory is held."""
        try:
            index = self._locks.claim()
            if index is None:
                raise Unusable(f"all {SLOTS} slots of {self.path} are taken")
            self.slot = index
            try:
                self._map(index)
            except BaseException:
                self._locks.release(index)
                raise
        except BaseException:
            os.close(self.descriptor)
            raise

    def _map(self, index: int) -> None:
        layout, (_, _, _, cells, slots) = self.layout, self._counts()
        self._at = layout.of_slot(index)
        self._room = 0
        try:
            self._allocate(cells)
        except OSError as error:
            raise Unusable(f"there is no space for {self.path}: {error.strerror}") from error
        self._memory = mmap.mmap(self.descriptor, layout.slot, offset=self._at)
        self._view = memoryview(self._memory)[layout.cells_at : layout.cells_at + 8 * layout.cells]
        self.cells = cast(Any, self._view.cast("d"))
        _, claims, _, exemplars, events = _claim.unpack_from(self._memory, 0)
        self._exemplars, self._events = exemplars, events
        _claim.pack_into(self._memory, 0, os.getpid(), claims + 1, time.time(), exemplars, events)
        if index >= slots:
            with self._changed() as counts:
                counts[4] = index + 1

    def _allocate(self, cells: int) -> None:
        """Allocate the space of the first *cells* cells of this slot, and of what precedes them."""
        wanted = _pages(self.layout.cells_at + 8 * max(cells, SCRATCH))
        if wanted > self._room:
            os.posix_fallocate(self.descriptor, self._at + self._room, wanted - self._room)
            self._room = wanted

    def recover(self, in_flight: Iterable[InFlight]) -> None:
        """Set the gauges of the process that had this slot before to 0, and count what it lost."""
        families, records = self._families, self._records
        for record in records:
            if families[record.family].kind == "gauge":
                self.cells[record.start] = 0.0
        for each in in_flight:
            flow = _Flow(each, families, records)
            missing = flow.missing(self.cells)
            if missing or flow.lost_at is not None:
                start = self.place(each.lost, ())
                if start is not None:
                    self.cells[start] = missing

    # Changes of the directory: rules 5 and 6. The caller holds the lock of the recorder.

    @contextmanager
    def _changed(self) -> Iterator[list[int]]:
        """Write the counts that the block has changed, with the change counter odd meanwhile."""
        counts = list(self._counts())
        counts[0] |= 1
        os.pwrite(self.descriptor, _change.pack(*counts), _CHANGE_AT)
        yield counts
        counts[0] = (counts[0] + 1) % 2**64
        os.pwrite(self.descriptor, _change.pack(*counts), _CHANGE_AT)

    def place(self, family: Family, labels: tuple[str, ...]) -> int | None:
        """Return the first cell of a series, which is appended if it is new."""
        start = self._placed.get((family, labels))
        if start is not None:
            return start
        try:
            with self._locks.directory():
                self._read_directory()
                start = self._found(family, labels)
                if start is None:
                    return None
                self._allocate(start + family.size)
        except (OSError, Unusable, _Unreadable, struct.error) as error:
            _log.warning("A series of %s is not counted: %s", family.name, error)
            return None
        self._placed[family, labels] = start
        return start

    def _found(self, family: Family, labels: tuple[str, ...]) -> int | None:
        """Return the first cell of a series that is known, or else appended; None without room."""
        try:
            number = self._families.index(family)
        except ValueError:
            number = -1
        position = self._positions.get((number, labels))
        if position is not None:
            record = self._records[position]
            if record.dropped is not None:
                self._write_record(position, record._replace(dropped=None))
            return record.start
        if number < 0:
            number = len(self._families)
            data = json.dumps(family).encode()
            if number == FAMILIES or len(data) > FAMILY_BYTES:
                return None
            place = self.layout.families_at + number * FAMILY_BYTES
            with self._changed() as counts:
                os.pwrite(self.descriptor, data.ljust(FAMILY_BYTES, b"\0"), place)
                counts[1] = number + 1
            self._read_directory()
        count, start = self._counts()[2:4]
        start = max(start, SCRATCH)
        if count < self.layout.series and start + family.size <= self.layout.cells:
            record = _SeriesRecord(number, labels, start, family.size, None)
            self._write_record(count, record, start + family.size)
            return start
        return self._reused(number, family, labels)

    def _reused(self, number: int, family: Family, labels: tuple[str, ...]) -> int | None:
        now = time.time()
        for position, record in enumerate(self._records):
            dropped = record.dropped
            if dropped is None or record.size != family.size or now - dropped < REUSE:
                continue
            zeros = bytes(8 * record.size)
            for index in range(self._counts()[4]):
                place = self.layout.of_slot(index) + self.layout.cells_at + 8 * record.start
                if any(os.pread(self.descriptor, len(zeros), place)):
                    os.pwrite(self.descriptor, zeros, place)
            self._write_record(
                position, record._replace(family=number, labels=labels, dropped=None)
            )
            return record.start
        return None

    def _write_record(self, position: int, record: _SeriesRecord, cells: int | None = None) -> None:
        """Write a record, as the last one where the number of *cells* in use is given."""
        key = json.dumps(record.labels, ensure_ascii=False).encode("utf-8", "replace")
        if len(key) > SERIES_BYTES - _state.size:
            raise Unusable("its label values are too long")
        record = record._replace(labels=tuple(json.loads(key)))
        state, when = (_LIVE, 0.0) if record.dropped is None else (_DROPPED, record.dropped)
        head = _state.pack(state, len(key), record.family, record.start, record.size, when)
        place = self.layout.series_at + position * SERIES_BYTES
        data = (head + key).ljust(SERIES_BYTES, b"\0")
        with self._changed() as counts:
            os.pwrite(self.descriptor, data, place)
            if cells is not None:
                counts[2:4] = position + 1, cells
        # as if read again: the lock on the directory is held, so nothing else has changed
        for old in self._records[position : position + 1]:
            self._positions.pop((old.family, old.labels), None)
        self._records[position : position + 1] = [record]
        self._raw[position : position + 1] = [data]
        self._positions[record.family, record.labels] = position
        self._seen = counts[0]

    def drop(self, family: Family, labels: tuple[str, ...]) -> None:
        """Hide a series; its cells stay as they are for as long as other workers may use them."""
        self._placed.pop((family, labels), None)
        try:
            with self._locks.directory():
                self._read_directory()
                number = self._families.index(family) if family in self._families else -1
                position = self._positions.get((number, labels))
                if position is not None and self._records[position].dropped is None:
                    record = self._records[position]
                    self._write_record(position, record._replace(dropped=time.time()))
        except (OSError, Unusable, _Unreadable, struct.error) as error:
            _log.warning("A series of %s is not dropped: %s", family.name, error)

    # What this process adds.

    def exemplar(self, start: int, bucket: int, exemplar: Exemplar) -> None:
        """Keep the newest exemplar of a bucket."""
        cell = start + 1 + bucket
        trace = exemplar.trace_id.encode("ascii", "replace")[:32]
        body = _exemplar.pack(cell, exemplar.value, exemplar.time, trace)
        at = self.layout.exemplars_at + (cell % EXEMPLARS) * EXEMPLAR_BYTES
        self._memory[at : at + len(body) + _crc.size] = body + _crc.pack(zlib.crc32(body))
        self._exemplars += 1
        struct.pack_into("=Q", self._memory, 24, self._exemplars)

    def put_event(self, data: bytes, now: float) -> None:
        """Keep *data*, of which at most 1000 bytes, in place of the oldest event of this slot."""
        data = data[:LONGEST_EVENT]
        self._events += 1
        at = self.layout.events_at + (self._events % EVENTS) * EVENT_BYTES
        body = _event.pack(self._events, now, len(data)) + data
        last = EVENT_BYTES - _crc.size
        self._memory[at : at + EVENT_BYTES] = body.ljust(last, b"\0") + _crc.pack(zlib.crc32(data))
        struct.pack_into("=Q", self._memory, 32, self._events)

    def is_lowest(self) -> bool:
        """Return whether no process holds a lower slot."""
        return not any(self._locks.is_held(index) for index in range(self.slot))

    def is_there(self) -> bool:
        """Return whether the file still has its name: a successor finds it there."""
        return _is_at(self.path, self.descriptor) and self._locks.is_there()

    def close(self) -> None:
        """Release the slot; what was counted in it stays."""
        self.cells = []
        with suppress(BufferError):  # a thread that is counting still has it
            self._view.release()
            self._memory.close()
        super().close()
        self._locks.release(self.slot)


class _Flow:
    """What is derived from requests started and finished, slot by slot: rule 3."""

    def __init__(
        self, in_flight: InFlight, families: Sequence[Family], records: Sequence[_SeriesRecord]
    ) -> None:
        self._of = in_flight
        self._started: list[int] = []
        self._finished: list[range] = []
        self.lost_at: int | None = None
        self._active = 0.0
        self._lost = 0.0
        for record in records:
            family = families[record.family]
            if family.name == in_flight.lost.name:
                self.lost_at = record.start
            elif family.name == in_flight.started:
                self._started.append(record.start)
            elif family.name in in_flight.finished:
                first = record.start + (1 if family.kind == "histogram" else 0)
                self._finished.append(range(first, record.start + record.size))

    def missing(self, cells: Sequence[float]) -> float:
        """Return how many requests of a slot are not finished."""
        finished = sum(sum(cells[places.start : places.stop]) for places in self._finished)
        return max(0.0, sum(cells[start] for start in self._started) - finished)

    def look(self, cells: Sequence[float], alive: bool) -> None:
        """Add a slot."""
        missing = self.missing(cells)
        lost = 0.0 if self.lost_at is None or self.lost_at >= len(cells) else cells[self.lost_at]
        if alive:
            self._active += max(0.0, missing - lost)
            self._lost += lost
        else:
            self._lost += missing

    def add_to(self, found: dict[str, Totals]) -> None:
        """Set the totals that are derived."""
        for family, value in ((self._of.active, self._active), (self._of.lost, self._lost)):
            found[family.name] = Totals(family)
            found[family.name].add((), [value])


def rebucketed(
    bounds: Sequence[float], values: Sequence[float], wanted: Sequence[float]
) -> list[float]:
    """Return the cells of a histogram for other buckets.

    Counts go to the lowest bucket that is sure to contain them, so what the exposition says is at
    most a bound was at most that bound.
    """
    made = [values[0], *(0.0 for _ in wanted), 0.0]
    for bound, count in zip((*bounds, float("inf")), values[1:], strict=True):
        position = next((at for at, each in enumerate(wanted) if each >= bound), len(wanted))
        made[1 + position] += count
    return made


def _first_of(firsts: Sequence[int], cell: int) -> int | None:
    position = bisect_right(firsts, cell)
    return firsts[position - 1] if position else None


def _make(descriptor: int, layout: _Layout) -> None:
    """Make an empty file; its header is written last."""
    os.ftruncate(descriptor, layout.size)
    os.pwrite(descriptor, _change.pack(0, 0, 0, SCRATCH, 0), _CHANGE_AT)
    os.pwrite(descriptor, layout.head, 0)


# Where the file is.


def metrics_folder(owner: str) -> str:
    """Return the private folder for the metrics of *owner*; made if missing.

    It lies in ``/dev/shm``, which is memory, or if that cannot be used in the user's runtime or
    state folder.

    :param owner: Identifies the gateway or app. Default: the running program.
    :raises Unusable: No place can be used.
    """
    errors = []
    try:
        name = f"{folder_name(owner)}.metrics"
    except OSError as error:
        raise Unusable(f"the working directory is gone: {error.strerror}") from error
    for base in (f"/dev/shm/wsgigate-{os.geteuid()}", *_of_user()):  # noqa: S108 checked: own_folder
        try:
            own_folder(base, private=True)
            folder = os.path.join(base, name)
            new = not os.path.lexists(folder)
            own_folder(folder, private=True)
            if not keeps_its_space(os.stat(folder).st_dev):
                raise FolderError(
                    f"{folder} is on a file system that may run out of allocated space"
                )
            if new:
                remove_leftovers(base)
            return folder
        except (FolderError, OSError) as error:
            errors.append(str(error))
    raise Unusable("; ".join(errors))


def _of_user() -> list[str]:
    return [os.path.join(base, "wsgigate") for base in user_folders()]


def remove_leftovers(base: str, now: float | None = None) -> None:
    """Remove folders beside a new one that no process has used for a day."""
    now = time.time() if now is None else now
    with suppress(OSError), os.scandir(base) as entries:
        for entry in islice(entries, 256):
            if entry.name.endswith(".metrics") and entry.is_dir(follow_symlinks=False):
                with suppress(OSError, Unusable):
                    _remove_unused(entry.path, now)


def _remove_unused(folder: str, now: float) -> None:
    names = os.listdir(folder)
    times = [os.lstat(os.path.join(folder, name)) for name in names]
    latest = max((found.st_mtime for found in times), default=os.lstat(folder).st_mtime)
    if now - latest < AGE or not all(stat.S_ISREG(found.st_mode) for found in times):
        return
    path = os.path.join(folder, _LOCK)
    if path in _Locks.by_path:
        return
    descriptor = os.open(path, _OPENING | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # every byte: no slot is taken now
        for name in {*names, _LOCK}:
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
    finally:
        os.close(descriptor)


def open_slots(owner: str, folder: str | None, max_series: int) -> Storage:
    """Return the storage that the workers of *owner* share.

    Where the file cannot be made, the counts stay in the process, with a warning.

    :param folder: The folder of the file. Default: :func:`metrics_folder`.
    """
    try:
        return SlotStorage(folder or metrics_folder(owner), max_series)
    except Unusable as error:
        _log.warning("Each worker has metrics of its own, as they cannot share a file: %s", error)
        return cast(Any, ProcessStorage())  # type: ignore[no-any-return]
