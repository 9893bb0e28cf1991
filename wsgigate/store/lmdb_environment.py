"""The LMDB environment of a process on a folder: opening, locking, growth, eviction, repair.

Theory of operation
-------------------

A folder holds ``data.mdb``, which all processes map into memory, and ``lock.mdb``, which LMDB uses
for its table of readers. LMDB has one writer at a time and any number of readers that never wait.
The rules, and what breaks without them:

1. **One environment per folder and process.** LMDB holds POSIX locks, and closing any descriptor of
   a file drops all POSIX locks of the process on it. A second environment would drop the locks of
   the first when it is closed, so :func:`wsgigate.store.lmdb.environment_on` shares one. Every
   method of :class:`Environment` is called with its ``lock`` held.
2. **Never open across a fork.** LMDB forbids a child both to use and to clean up what it inherits.
   The environment is closed before a fork, and the next use in parent and child opens it again.
   After a fork without hooks (uWSGI) the inherited object stays in ``_inherited`` for ever, so that
   no destructor closes it.
3. **Writers queue at flock(2), not at LMDB's mutex.** LMDB's own lock is a robust mutex of the C
   library. When a process is killed just after it was woken to take that mutex, others may sleep
   on although it is free. So a writer first takes an flock on ``data.mdb`` (``write_lock``), and
   never waits for the mutex. The kernel wakes all waiters of an flock, and frees it when its holder
   dies.
4. **Opening and growing are exclusive.** Both happen under the folder's lock
   (:func:`wsgigate.store.lmdb_files.alone`). The file grows by one process at a time; another one
   gets ``MapResizedError`` at its next transaction, maps the new size and repeats it.
5. **Disk space before use.** A write to a mapped page without disk space kills the process
   (SIGBUS). :mod:`wsgigate.store.lmdb_files` allocates the space first, so a full disk is an error.
6. **A reserve of pages.** LMDB is copy-on-write: even a deletion takes free pages, so nothing can
   be removed from a map that is really full. Values may therefore fill less than the map
   (``RESERVE``). A part more than what all values may fill is for vital keys alone
   (``VITAL_SHARE``), and counters are evicted for these; see :mod:`wsgigate.store`.
7. **Damage is moved aside.** LMDB trusts the file: a page number that leads nowhere stops the
   process. The first process to open a file verifies it from its root to its last page, because a
   machine that went down may have left it damaged. A damaged file is renamed together with its lock
   file, and a new one begins. Processes that have the old one open keep both of its files, and
   notice at their next check (``check_file_identity``, once a second) that another is in its place.
8. **No flush.** Writes survive the death of a process, as the kernel has them. A crash of the
   machine may lose the last ones, or leave a file that is moved aside by rule 7.

A writer that adds values also removes expired ones: in its own transaction it looks at twice as
many keys as were added, from where the last sweep stopped. All workers together sweep as much as
one would, no process has to live for it, and a write waits for no more than a few lookups. The file
holds at most twice what is alive.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EISDIR, ENOTDIR, EPERM, EROFS
from itertools import islice
from typing import Any, TypeVar

import lmdb

from wsgigate.runtime.fork import quiesce_at_fork
from wsgigate.store import COUNTERS, VITAL, DamagedStore, MisconfiguredStore, StoreError, lmdb_files
from wsgigate.store.lmdb_files import (
    Damaged,
    OtherVersion,
    check_file,
    of_system,
    own_folder,
    reach,
    verify,
)

__all__ = [
    "DAMAGE",
    "FAILURES",
    "FIRST",
    "FORMAT",
    "INTERNAL",
    "MARKER",
    "RESIZED",
    "SWEEP_EVERY",
    "SWEEP_LOOKS",
    "Environment",
    "Full",
    "expiry",
    "explained",
    "has_live_values",
    "sweep",
]


# Failures, and the errors that they become.


class Full(Exception):
    """There is no room for another value.

    :param lacking: The error that prevented the file from growing, if it was tried.
    """

    def __init__(self, lacking: OSError | None = None) -> None:
        super().__init__(lacking)
        self.lacking = lacking


FAILURES = (Full, lmdb.Error, struct.error)
"""Errors of a transaction. ``struct.error``: a value is too short to begin with its expiry."""

RESIZED = lmdb.MapResizedError
"""Raised when a transaction begins after another process has made the file larger."""

DAMAGE = (Damaged, lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError)
"""Errors after which the file is moved aside as damaged."""

_LASTING = [os.strerror(code) for code in (EACCES, EPERM, EROFS, ENOTDIR, EISDIR)]
"""LMDB's texts for errors of the system that last until the configuration changes."""


def explained(error: Exception, path: str, *, most: int, readers: int) -> StoreError:
    """Return *error* as the error of a store, with a message for the operator.

    :param path: Path of the file.
    :param most: ``map_size`` in bytes.
    :param readers: Maximum number of processes that may use the file.
    """
    if isinstance(error, StoreError):
        return error
    if isinstance(error, Full) and error.lacking is not None:
        return StoreError(f"{path} cannot be made larger: {error.lacking.strerror}")
    if isinstance(error, Full | lmdb.MapFullError):
        return StoreError(
            f"{path} is full of values that have not expired; map_size is {most} bytes, raise it"
        )
    if isinstance(error, lmdb.ReadersFullError):
        return StoreError(f"{path} is used by more than {readers} processes")
    if isinstance(error, OtherVersion | lmdb.VersionMismatchError):
        return MisconfiguredStore(
            f"{path} is of another version of LMDB ({error}); remove it or name another folder"
        )
    if isinstance(error, DAMAGE):
        return DamagedStore(
            f"{path} is damaged or not an LMDB file ({error}); a gateway that opens it moves it "
            "aside and begins an empty one"
        )
    if isinstance(error, OSError):
        return of_system(error, f"{path} cannot be used")
    lasting = isinstance(error, lmdb.Error) and any(text in str(error) for text in _LASTING)
    kind = MisconfiguredStore if lasting else StoreError
    return kind(f"{path} cannot be used: {error}")


# The format of the file, and the removal of expired values.

FIRST = b"="  # prefix of every key of a value, which keeps them apart from the next two keys

MARKER = b"\0wsgigate"  # identifies a file of wsgigate

POSITION = b"\0sweep"  # the key at which the next sweep begins, of whichever process

INTERNAL = (MARKER, POSITION)

FORMAT = b"1"  # a value is its expiry (a big-endian double) and the stored bytes

SWEEP_EVERY = 32  # new values between two sweeps; a large one counts for several

SWEEP_LOOKS = 64  # keys per sweep, twice the new ones: at most half of the file is expired

expiry = struct.Struct(">d")

_expiry_of = expiry.unpack_from


def sweep(txn: Any, now: float, looks: int = SWEEP_LOOKS) -> None:
    """Remove the expired values among the next *looks* keys, as a part of *txn*."""
    position = txn.get(POSITION, FIRST)
    following = _expire(txn, position, looks, now) or FIRST
    if following != position:
        txn.put(POSITION, following)


def _expire(txn: Any, position: bytes, looks: int, now: float) -> bytes | None:
    """Remove the expired of *looks* keys from *position* on; return the next key, if any."""
    with txn.cursor() as cursor:
        if not cursor.set_range(position):
            return None
        seen = [(key, _expiry_of(value)[0] <= now) for key, value in islice(cursor, looks + 1)]
    for key, expired in seen[:looks]:
        if expired:
            txn.delete(key)
    return seen[looks][0] if len(seen) > looks else None


LOG = logging.getLogger("wsgigate.store")

R = TypeVar("R")

READERS = 1022

LOCK_BYTES = READERS * 64 + 128  # the size LMDB itself gives the lock file for so many readers

FULL_LOOKS = 4096  # keys per sweep of a full file, before a new value is rejected

CHECK_EVERY = 1.0  # seconds between two sweeps without new values, and checks of the file

RETRY_EVERY = 0.25  # seconds between two attempts to find room in a full file, which are slow


# Bytes of the map that values may not fill (rule 6): what is written between two measurements.
RESERVE = 4 * 1024 * 1024

VITAL_SHARE = 16  # a sixteenth of what all values may use comes on top, for vital keys alone

EVICTED = 1024  # counters removed in one transaction, which delays other writers by milliseconds

EVICTIONS = 8  # maximum number of such transactions for one write


class Environment:
    """The LMDB environment of this process on a folder; see the theory of operation above.

    It is open while at least one store uses it. Every method is called with ``lock`` held.

    :param folder: The folder of the two files; made if missing.
    :param map_size: Maximum number of bytes that values may take.
    :ivar full: Whether there is no room for another value.
    :ivar packed: Whether there is none for a vital value either; see :mod:`wsgigate.store`.
    :ivar size: Length of the file, as far as it is mapped here.
    :ivar looked: Time of the last write that swept and checked the file.
    :ivar due: Time at which the next write does.
    :ivar begin: Begins a transaction; ``None`` while the environment is closed.
    :ivar write_lock: The descriptor whose flock(2) a writer holds; -1 while closed.
    """

    def __init__(self, folder: str, map_size: int) -> None:
        self.lock = threading.RLock()
        self.begin: Any = None
        self.write_lock = -1
        self.looked = self.due = float("-inf")
        self.full = self.packed = False
        self._added = 0
        self._growth_tried = self._eviction_failed = float("-inf")
        self._evict_at = b""  # the counter that was evicted last
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self._folder = folder
        self._data = os.path.join(folder, "data.mdb")
        self._locks = os.path.join(folder, "lock.mdb")
        self.map_size = map_size
        self._most = lmdb_files.rounded(map_size + max(RESERVE, map_size // 8))
        self.size = 0
        self._lacking: OSError | None = None
        self._env: Any = None
        self._file = (0, 0)
        quiesce_at_fork(self)

    def open(self, *, repair: bool = True) -> Any:
        """Open the environment; return its ``begin``.

        :param repair: Whether to move a damaged file aside and begin a new one.
        :raises StoreError: The folder or a file belongs to another user or program, or is unusable.
        """
        try:
            with lmdb_files.alone(self._folder, own_folder):
                check_file(self._data)
                check_file(self._locks)
                try:
                    self._open_files()
                except DAMAGE as error:
                    if not repair or isinstance(error, OtherVersion):
                        raise
                    self._move_aside(error)
                    self._open_files()
        except (lmdb.Error, OSError, Damaged, StoreError) as error:
            self.close()
            raise self.failure(error) from error
        self.begin = self._env.begin
        return self.begin

    def _open_files(self) -> None:
        """Open the files, or make them, with the folder's lock held."""
        size = self._prepare(used=lmdb_files.fill_lock_file(self._locks, LOCK_BYTES))
        self.write_lock = os.open(self._data, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(self.write_lock)
        self._file = found.st_dev, found.st_ino
        self._env = self._open(size, writemap=lmdb_files.keeps_its_space(found.st_dev))
        self._env.reader_check()  # frees the slots of processes that were killed
        self.size = size
        self._claim()  # under the folder's lock, so no other process makes the file larger

    def _move_aside(self, error: Exception) -> None:
        """Rename a damaged file; the next process to open the folder makes a new one.

        Processes that have it open keep it, with its lock file, until their next check.
        """
        self.close()
        place = lmdb_files.move_aside(self._data, self._locks, time.time())
        LOG.error(
            "%s was damaged (%s): moved aside to %s, an empty file takes its place. Rate limits "
            "start from zero, services register again with their next heartbeat; denied tokens and "
            "maintenance notices are lost, set them again",
            self._data,
            error,
            place,
        )

    def _replace(self, error: Exception) -> None:
        """Move aside a file found damaged in use, unless another process has done so."""
        ours = self._file
        self.close()
        with lmdb_files.alone(self._folder, own_folder):
            try:
                found = os.stat(self._data)
            except FileNotFoundError:
                return
            if (found.st_dev, found.st_ino) == ours:
                self._move_aside(error)

    def _drop_unreadable(self) -> bool:
        """Remove values too short to begin with an expiry; return whether there were any."""

        def drop(txn: Any) -> bool:
            with txn.cursor() as cursor:
                cursor.set_range(FIRST)
                short = [key for key, value in cursor if len(value) < expiry.size]
            for key in short:
                if key not in INTERNAL:
                    txn.delete(key)
            return bool(short)

        return self._in_a_full_map(drop)

    def _open(self, size: int, *, writemap: bool) -> Any:
        # nothing is flushed to disk: rule 8
        return lmdb.open(
            self._folder,
            map_size=size,
            max_readers=READERS,
            max_spare_txns=1,
            sync=False,
            metasync=False,
            writemap=writemap,
            mode=0o600,
            create=False,
        )

    def _prepare(self, *, used: bool) -> int:
        """Make the file unless it exists, and allocate its disk space; return its length.

        :param used: Whether other processes have it open. If not, all of it is verified (rule 7).
        """
        if not os.path.exists(self._data) or not os.path.getsize(self._data):
            try:
                lmdb_files.allocate(self._data, 0)
                self._open(lmdb_files.STEP, writemap=False).close()
                lmdb_files.allocate(self._data, lmdb_files.STEP)
            except (lmdb.Error, OSError):
                with suppress(OSError):
                    os.truncate(self._data, 0)  # a half-written header would be unreadable
                raise
        with open(self._data, "rb") as file:
            if not used:
                verify(file)
            size = lmdb_files.rounded(max(os.fstat(file.fileno()).st_size, reach(file)))
        # all of it: a file cut short, or copied as a sparse file, lacks some
        lmdb_files.allocate(self._data, size, used=used)
        return size

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """Return a context with a write transaction, under the writers' lock (rule 3)."""
        lock = self.write_lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self._env.begin(write=True) as txn:
                yield txn
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    def _claim(self) -> None:
        with self._env.begin() as txn:
            self.measure(txn)
            if txn.get(MARKER) == FORMAT:
                return
        with self._writing() as txn:
            marker = txn.get(MARKER)
            if marker is None and txn.stat()["entries"]:
                raise MisconfiguredStore(
                    f"{self._data} is the LMDB file of another program; name another folder"
                )
            if marker not in (None, FORMAT):
                raise MisconfiguredStore(
                    f"{self._data} has the format {marker!r} of another version of wsgigate, "
                    f"this one has {FORMAT!r}; remove it or name another folder"
                )
            txn.put(MARKER, FORMAT)

    def close(self) -> None:
        """Close the environment; the next use opens it again."""
        env, self._env, self.begin = self._env, None, None
        self.full = self.packed = False
        if env is not None:
            env.close()
        self._close_write_lock()

    def _close_write_lock(self) -> None:
        descriptor, self.write_lock = self.write_lock, -1
        if descriptor >= 0:
            os.close(descriptor)

    def before_fork(self) -> None:
        self.close()

    def after_unseen_fork(self) -> None:
        # the child may neither use the inherited environment nor clean it up: rule 2
        if self._env is not None:
            _inherited.append(self._env)
        self._env = self.begin = None
        self._close_write_lock()

    def failure(self, error: Exception) -> StoreError:
        """Return *error* as the error of a store, with a message for the operator."""
        if isinstance(error, Full | lmdb.MapFullError):
            error = Full(self._lacking)
        return explained(error, self._data, most=self.map_size, readers=READERS)

    def recover(self, error: Exception, now: float, name: bytes = b"") -> None:
        """Handle *error* so that a second attempt may succeed.

        :param name: The key of a write; empty for a read.
        :raises StoreError: The error cannot be handled.
        """
        try:
            if isinstance(error, lmdb.MapResizedError):
                self.grow(0)  # map what another process has added
            elif isinstance(error, DAMAGE):
                self._replace(error)
            elif isinstance(error, struct.error) and self._drop_unreadable():
                LOG.error("%s: malformed values were removed", self._data)
            elif isinstance(error, lmdb.PanicError):
                self.close()  # LMDB rejects every call until the environment is opened again
            elif isinstance(error, lmdb.MapFullError) and self._env.reader_check():
                pass  # pages kept for a reader that was killed are free again
            elif isinstance(error, Full | lmdb.MapFullError) and name.startswith(_VITAL):
                self._make_room(error, now)
            elif isinstance(error, Full | lmdb.MapFullError):
                if 0.0 <= now - self._growth_tried < RETRY_EVERY:
                    raise self.failure(error)  # otherwise each new caller would cost milliseconds
                self._growth_tried = now
                self._lacking = None
                if not self.grow(self._most) or self.full:
                    self._sweep_far(now)
                if not self.full:
                    self._growth_tried = float("-inf")
            else:
                raise self.failure(error)
        except OSError as lost:
            self.close()
            raise self.failure(lost) from lost
        except lmdb.Error as again:
            raise self.failure(again) from again

    def _make_room(self, error: Exception, now: float) -> None:
        """Find room for a vital value: grow, sweep, or evict counters."""
        if 0.0 <= now - self._eviction_failed < RETRY_EVERY:
            raise self.failure(error)  # there was nothing to evict the last time
        self._lacking = None
        grown = self.grow(self._most)
        if not grown or self.packed:
            self._sweep_far(now)
        lacking = self.packed or (not grown and isinstance(error, lmdb.MapFullError))
        for _ in range(EVICTIONS):
            if not lacking:
                return
            if not self._evict():
                self._eviction_failed = now
                return
            lacking = self.packed

    def _evict(self) -> int:
        """Remove some counters, and return how many.

        They are neighbours, as only whole pages become free. A flood makes up keys without bound,
        while real callers are few: a counter taken in turn is most likely one of a flood. Each
        process goes round independently.
        """

        def remove(txn: Any) -> int:
            removed = 0
            with txn.cursor() as cursor:
                for first in _COUNTERS:
                    # from where the last one stopped, and then from the beginning
                    for start in sorted({first, max(first, self._evict_at)}, reverse=True):
                        there = cursor.set_range(start)
                        while there and removed < EVICTED and cursor.key().startswith(first):
                            self._evict_at = cursor.key()
                            there = cursor.delete()
                            removed += 1
                    if removed:
                        break
            self.measure(txn)
            return removed

        return self._in_a_full_map(remove)

    def add(self, size: int, name: bytes) -> None:
        """Account for *size* more bytes under *name*, and schedule a sweep after enough of them.

        :raises Full: There is no room for them.
        """
        if self.full and (self.packed or not name.startswith(_VITAL)):
            raise Full
        self._added += 1 + (size >> 8)
        if self._added >= SWEEP_EVERY:
            self.due = self.looked

    def sweep(self, txn: Any, now: float, looks: int = SWEEP_LOOKS) -> None:
        """Sweep as a part of *txn*, and measure how full the file is."""
        sweep(txn, now, looks)
        self.measure(txn)

    def measure(self, txn: Any) -> tuple[int, int]:
        """Return the bytes in use and the number of keys; update ``full`` and ``packed``."""
        found = txn.stat()
        pages = found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]
        used = pages * found["psize"]
        room = self.map_size
        vital = room + room // VITAL_SHARE
        if self.size < self._most:  # the disk may be full: the limit is the file as it is
            room = min(room, self.size - max(self.size // 8, lmdb_files.STEP // 4))
            vital = min(vital, room + (self.size - room) // 2)
        self.full, self.packed = used > room, used > vital
        return used, found["entries"]

    def check_file_identity(self, now: float) -> None:
        """Close the environment if its file was removed or replaced: others use a new one.

        Otherwise free the reader slots of processes that were killed; without a free slot no
        process could open the file.
        """
        self._added, self.looked, self.due = 0, now, now + CHECK_EVERY
        if not self._file_gone():
            with suppress(lmdb.Error):  # the write has been committed and must not be repeated
                self._env.reader_check()

    def _file_gone(self) -> bool:
        try:
            found = os.stat(self._data)
        except OSError:
            self.close()
            return True
        if (found.st_dev, found.st_ino) != self._file:
            self.close()
        return self._env is None

    def _sweep_far(self, now: float) -> None:
        """Sweep more keys than usual, but not all, as other writers wait meanwhile."""
        self._in_a_full_map(lambda txn: self.sweep(txn, now, FULL_LOOKS))

    def _in_a_full_map(self, work: Callable[[Any], R]) -> R:
        """Return the result of *work* in a transaction, and grow the file if it lacks pages.

        :raises lmdb.MapFullError: The file cannot grow any further.
        """
        while True:
            if self._env is None:
                self.open()  # the file was replaced meanwhile
            try:
                with self._writing() as txn:
                    return work(txn)
            except lmdb.MapFullError:
                # there are no pages even for a deletion: grow a little beyond the limit, but with
                # a bound, since all freed pages are kept for a reader that is stopped
                if not self.grow(min(self.size + lmdb_files.STEP, self._most + RESERVE)):
                    raise

    def grow(self, most: int) -> bool:
        """Grow the file, up to *most* bytes, or map what another process has added."""
        with lmdb_files.alone(self._folder):
            if self._file_gone():
                return True
            size = lmdb_files.rounded(os.stat(self._data).st_size)
            if size > self.size:
                # an earlier version may have extended it, without allocating the space
                lmdb_files.allocate(self._data, size, used=True)
            else:
                wanted = min(2 * self.size, most)
                size, self._lacking = lmdb_files.enlarged(self._data, self.size, wanted)
            if size <= self.size:
                return False
            self._env.set_mapsize(size)
            self.size = size
            with self._writing() as txn:  # not a read, which needs a free reader slot
                self.measure(txn)
        return True


_VITAL = tuple(FIRST + each.encode() for each in VITAL)

_COUNTERS = tuple(FIRST + each.encode() for each in COUNTERS)

_inherited: list[Any] = []


def has_live_values(folder: str, now: float) -> bool:
    """Return whether a value in *folder*, which no process has open, is alive at *now*.

    A file that cannot be read counts as alive. The caller holds the folder's lock.
    """
    path = os.path.join(folder, "data.mdb")
    try:
        if not os.path.getsize(path):
            return False
        with open(path, "rb") as file:
            verify(file)
        env = lmdb.open(folder, readonly=True, lock=False, create=False, max_spare_txns=0)
    except (lmdb.Error, OSError, Damaged):
        return True
    try:
        with env.begin() as txn, txn.cursor() as cursor:
            if txn.get(MARKER) != FORMAT:
                return True  # another program's file
            found = cursor.set_range(FIRST)
            while found:
                if expiry.unpack_from(cursor.value())[0] > now:
                    return True
                found = cursor.next()
        return False
    except (lmdb.Error, struct.error):
        return True
    finally:
        env.close()
