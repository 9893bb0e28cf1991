"""LMDB itself: one environment per folder and process, opened, shared, swept and never forked."""

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
    "Environment",
    "FAILURES",
    "FIRST",
    "FORMAT",
    "Full",
    "MARKER",
    "OWN",
    "RESIZED",
    "SWEEP_EVERY",
    "SWEEP_LOOKS",
    "expiry",
    "explained",
    "has_live_values",
    "sweep",
]


# What LMDB's failures mean, in the operator's words.


class Full(Exception):
    """There is no room for another value.

    :param lacking: Why the file cannot be made larger, if it might be.
    """

    def __init__(self, lacking: OSError | None = None) -> None:
        super().__init__(lacking)
        self.lacking = lacking


FAILURES = (Full, lmdb.Error, struct.error)
"""What a transaction fails with; ``struct.error``: a value too short to begin with its expiry."""

RESIZED = lmdb.MapResizedError
"""What a transaction begins with after another process has made the file larger."""

DAMAGE = (Damaged, lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError)
"""What a file is opened or used with that is moved aside then."""

_LASTING = [os.strerror(code) for code in (EACCES, EPERM, EROFS, ENOTDIR, EISDIR)]
"""What LMDB says of the system's errors that do not pass by themselves."""


def explained(error: Exception, path: str, *, most: int, readers: int) -> StoreError:
    """Return what the operator is to know of *error*.

    :param path: The file.
    :param most: How many bytes may be kept in it.
    :param readers: How many processes may use it.
    """
    if isinstance(error, StoreError):
        return error
    if isinstance(error, Full) and error.lacking is not None:
        return StoreError(f"{path} cannot be made larger: {error.lacking.strerror}")
    if isinstance(error, Full | lmdb.MapFullError):
        return StoreError(
            f"{path} is full of values that are still alive: map_size is {most} bytes"
        )
    if isinstance(error, lmdb.ReadersFullError):
        return StoreError(f"{path} is in use by more than {readers} processes")
    if isinstance(error, OtherVersion | lmdb.VersionMismatchError):
        return MisconfiguredStore(
            f"{path} is of another version of LMDB ({error}); remove it or name another folder"
        )
    if isinstance(error, DAMAGE):
        return DamagedStore(
            f"{path} is damaged or no LMDB file ({error}); it is moved aside when a gateway opens "
            "it, and a new one begins without its values"
        )
    if isinstance(error, OSError):
        return of_system(error, f"{path} cannot be used")
    lasting = isinstance(error, lmdb.Error) and any(text in str(error) for text in _LASTING)
    kind = MisconfiguredStore if lasting else StoreError
    return kind(f"{path} cannot be used: {error}")


# How values expire in LMDB: what is written before each, and how the expired ones are found.
#
# Nobody is asked to sweep: whoever adds values looks at twice as many keys, in the same
# transaction, from where the last one stopped. LMDB has one writer at a time, so all workers
# together sweep as one would, none has to live for it, and a write waits for no more than a few
# looks. A store that nothing is added to does not grow; what has expired in it goes while
# somebody writes.

FIRST = b"="  # every key of ours starts with it, which keeps them apart from the next two

MARKER = b"\0wsgigate"  # no other program's file has it

POSITION = b"\0sweep"  # how far the sweep has come, over all processes

OWN = (MARKER, POSITION)

FORMAT = b"1"  # a value is its expiry, a big-endian double, and then the bytes that were stored

SWEEP_EVERY = 32  # new values; a large one counts for several

SWEEP_LOOKS = 64  # at keys: twice the new ones, so the file holds at most twice what is alive

expiry = struct.Struct(">d")

_expiry_of = expiry.unpack_from


def sweep(txn: Any, now: float, looks: int = SWEEP_LOOKS) -> None:
    """Remove the expired among the next *looks* keys, as a part of *txn*."""
    position = txn.get(POSITION, FIRST)
    following = _expire(txn, position, looks, now) or FIRST
    if following != position:
        txn.put(POSITION, following)


def _expire(txn: Any, position: bytes, looks: int, now: float) -> bytes | None:
    """Remove the expired of *looks* keys from *position* on; return where to go on, if anywhere."""
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

FULL_LOOKS = 4096  # at keys before each new one that a full file may have no room for

LOOK_EVERY = 1.0  # seconds: sweeps where nothing is added, and sees whether the file is there

TRY_EVERY = 0.25  # seconds: between two attempts to find room in a full file, which take a while


# From a map that is really full LMDB removes nothing either, as even that takes pages. So what may
# be filled is less than the map, by what is written between two looks at how full it is.
RESERVE = 4 * 1024 * 1024

VITAL_SHARE = 16  # of what all values may use, this part comes on top for the vital ones alone

EVICTED = 1024  # counters removed in one transaction: some milliseconds for whoever waits to write

EVICTIONS = 8  # such transactions for one write at most


class Environment:
    """The one LMDB environment that this process may have open on a folder.

    Every method is called with the lock held. It is open while somebody uses it, but never across a
    fork: it is closed before one, and opened by the next use in the parent and in the child.

    :param folder: Where its two files are; made if missing.
    :param map_size: How much may be kept in it, in bytes.
    :ivar full: Whether there is no room for another value.
    :ivar packed: Whether there is none for a vital one either; see :mod:`wsgigate.store`.
    :ivar size: How long the file is, as far as it is mapped here.
    :ivar looked: When a write last swept and looked after the file.
    :ivar due: When the next one does.
    :ivar begin: Begins a transaction, ``None`` while it is not open.
    :ivar turn: The descriptor whose lock (flock(2)) is held by whoever writes. LMDB has a lock of
        its own for that, a robust mutex of the C library: but when a process is killed just after
        it was woken to have that lock, others may sleep on though it is free. So nobody ever waits
        for it. The kernel wakes all who wait for this one, and frees it when its holder dies.
    """

    def __init__(self, folder: str, map_size: int) -> None:
        self.lock = threading.RLock()
        self.begin: Any = None
        self.turn = -1
        self.looked = self.due = float("-inf")
        self.full = self.packed = False
        self._added = 0
        self._tried = self._cleared = float("-inf")
        self._evict_at = b""  # the counter that was removed last
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

        :param repair: Move a damaged file aside, and begin a new one.
        :raises StoreError: The folder or its files are not ours, not wsgigate's, or unusable.
        """
        try:
            with lmdb_files.alone(self._folder, own_folder):
                check_file(self._data)
                check_file(self._locks)
                try:
                    self._begin()
                except DAMAGE as error:
                    if not repair or isinstance(error, OtherVersion):
                        raise
                    self._move_aside(error)
                    self._begin()
        except (lmdb.Error, OSError, Damaged, StoreError) as error:
            self.close()
            raise self.failure(error) from error
        self.begin = self._env.begin
        return self.begin

    def _begin(self) -> None:
        """Open what is there, or make it, while no other process does."""
        size = self._prepare(used=lmdb_files.fill_lock_file(self._locks, LOCK_BYTES))
        self.turn = os.open(self._data, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(self.turn)
        self._file = found.st_dev, found.st_ino
        self._env = self._open(size, writemap=lmdb_files.keeps_its_space(found.st_dev))
        self._env.reader_check()  # frees the slots of processes that were killed
        self.size = size
        self._claim()  # while nobody else can make the file larger

    def _move_aside(self, error: Exception) -> None:
        """Give a damaged file another name; the next to open the folder makes a new one.

        Processes that have it open keep it, with its lock file, until they next look after it.
        """
        self.close()
        place = lmdb_files.move_aside(self._data, self._locks, time.time())
        LOG.error(
            "%s was damaged (%s). It is now %s, and a new one begins: limits count anew, services "
            "register again with their next heartbeat; denied tokens and maintenance notices are "
            "lost, deny or announce them again",
            self._data,
            error,
            place,
        )

    def _replace(self, error: Exception) -> None:
        """Move the file aside that was found to be damaged in use, unless another has by now."""
        mine = self._file
        self.close()
        with lmdb_files.alone(self._folder, own_folder):
            try:
                found = os.stat(self._data)
            except FileNotFoundError:
                return
            if (found.st_dev, found.st_ino) == mine:
                self._move_aside(error)

    def _drop_unreadable(self) -> bool:
        """Remove values that are too short to begin with their expiry; return whether any was."""

        def drop(txn: Any) -> bool:
            with txn.cursor() as cursor:
                cursor.set_range(FIRST)
                short = [key for key, value in cursor if len(value) < expiry.size]
            for key in short:
                if key not in OWN:
                    txn.delete(key)
            return bool(short)

        return self._in_a_full_map(drop)

    def _open(self, size: int, *, writemap: bool) -> Any:
        # Nothing is flushed to disk: a process that dies loses nothing, as the kernel has its
        # writes; a machine that dies may lose the last ones or, where the file system reorders
        # them, leave a file that must be removed. For counters and leases that is cheap.
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
        """Make the file unless it is there, and take its disk space; return its length.

        Who is the first to open it reads all of it before: a machine that went down may have left
        it damaged, and others are not to meet that.
        """
        if not os.path.exists(self._data) or not os.path.getsize(self._data):
            try:
                lmdb_files.allocate(self._data, 0)
                self._open(lmdb_files.STEP, writemap=False).close()
                lmdb_files.allocate(self._data, lmdb_files.STEP)
            except (lmdb.Error, OSError):
                with suppress(OSError):
                    os.truncate(self._data, 0)  # else there is half a head, which nobody can read
                raise
        with open(self._data, "rb") as file:
            if not used:
                verify(file)
            size = lmdb_files.rounded(max(os.fstat(file.fileno()).st_size, reach(file)))
        # all of it: of a file that was cut short, or copied without its zeros, some is missing
        lmdb_files.allocate(self._data, size, used=used)
        return size

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """Give a transaction that may write, when it is our turn."""
        turn = self.turn
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            with self._env.begin(write=True) as txn:
                yield txn
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)

    def _claim(self) -> None:
        with self._env.begin() as txn:
            self.measure(txn)
            if txn.get(MARKER) == FORMAT:
                return
        with self._writing() as txn:
            marker = txn.get(MARKER)
            if marker is None and txn.stat()["entries"]:
                raise MisconfiguredStore(f"{self._data} is the LMDB file of some other program")
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
        self._let_go()

    def _let_go(self) -> None:
        turn, self.turn = self.turn, -1
        if turn >= 0:
            os.close(turn)

    def before_fork(self) -> None:
        self.close()

    def after_unseen_fork(self) -> None:
        # LMDB forbids the child both to use what it inherited and to have it cleaned up
        if self._env is not None:
            _inherited.append(self._env)
        self._env = self.begin = None
        self._let_go()

    def failure(self, error: Exception) -> StoreError:
        """Return what the operator is to know of *error*."""
        if isinstance(error, Full | lmdb.MapFullError):
            error = Full(self._lacking)
        return explained(error, self._data, most=self.map_size, readers=READERS)

    def recover(self, error: Exception, now: float, name: bytes = b"") -> None:
        """Do what may let a second attempt succeed.

        :param name: The key that is written, if one is.
        :raises StoreError: There is nothing to be done.
        """
        try:
            if isinstance(error, lmdb.MapResizedError):
                self._grow(0)  # another process did
            elif isinstance(error, DAMAGE):
                self._replace(error)
            elif isinstance(error, struct.error) and self._drop_unreadable():
                LOG.error("%s had values that are none, which were removed", self._data)
            elif isinstance(error, lmdb.PanicError):
                self.close()  # LMDB refuses everything from here on until it is opened anew
            elif isinstance(error, lmdb.MapFullError) and self._env.reader_check():
                pass  # there are pages again, which were kept for a reader that was killed
            elif isinstance(error, Full | lmdb.MapFullError) and name.startswith(_VITAL):
                self._make_room(error, now)
            elif isinstance(error, Full | lmdb.MapFullError):
                if 0.0 <= now - self._tried < TRY_EVERY:
                    raise self.failure(error)  # else every new caller would cost milliseconds
                self._tried = now
                self._lacking = None
                if not self._grow(self._most) or self.full:
                    self._sweep_far(now)
                if not self.full:
                    self._tried = float("-inf")
            else:
                raise self.failure(error)
        except OSError as lost:
            self.close()
            raise self.failure(lost) from lost
        except lmdb.Error as again:
            raise self.failure(again) from again

    def _make_room(self, error: Exception, now: float) -> None:
        """Find room for a vital value, by what is expired, or else by removing counters."""
        if 0.0 <= now - self._cleared < TRY_EVERY:
            raise self.failure(error)  # there was nothing to remove the last time
        self._lacking = None
        grown = self._grow(self._most)
        if not grown or self.packed:
            self._sweep_far(now)
        lacking = self.packed or (not grown and isinstance(error, lmdb.MapFullError))
        for _ in range(EVICTIONS):
            if not lacking:
                return
            if not self._evict():
                self._cleared = now
                return
            lacking = self.packed

    def _evict(self) -> int:
        """Remove some counters, and return how many: neighbours, as only whole pages come free.

        Those that are made up are as many as their maker likes, those of callers are few: whoever
        is next in turn is most likely one of the former. Each process goes round by itself.
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
        """Account for *size* bytes more under *name*; sooner or later they cause a sweep.

        :raises Full: There is no room for them.
        """
        if self.full and (self.packed or not name.startswith(_VITAL)):
            raise Full
        self._added += 1 + (size >> 8)
        if self._added >= SWEEP_EVERY:
            self.due = self.looked

    def sweep(self, txn: Any, now: float, looks: int = SWEEP_LOOKS) -> None:
        """Sweep as a part of *txn*, and see how full the file is then."""
        sweep(txn, now, looks)
        self.measure(txn)

    def measure(self, txn: Any) -> tuple[int, int]:
        """Return how many bytes are in use, and how many keys; see whether that is too much."""
        found = txn.stat()
        pages = found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]
        used = pages * found["psize"]
        room = self.map_size
        vital = room + room // VITAL_SHARE
        if self.size < self._most:  # perhaps for want of disk space: the file is what there is
            room = min(room, self.size - max(self.size // 8, lmdb_files.STEP // 4))
            vital = min(vital, room + (self.size - room) // 2)
        self.full, self.packed = used > room, used > vital
        return used, found["entries"]

    def look_after(self, now: float) -> None:
        """Let go of a file that somebody has removed or replaced: others have a new one by now.

        Else free the slots of processes that were killed: with none left nobody could open it.
        """
        self._added, self.looked, self.due = 0, now, now + LOOK_EVERY
        if not self._lost():
            with suppress(lmdb.Error):  # what has been written is not to be written again
                self._env.reader_check()

    def _lost(self) -> bool:
        try:
            found = os.stat(self._data)
        except OSError:
            self.close()
            return True
        if (found.st_dev, found.st_ino) != self._file:
            self.close()
        return self._env is None

    def _sweep_far(self, now: float) -> None:
        """Sweep further than usual, but not over all: a full file must not make everybody wait."""
        self._in_a_full_map(lambda txn: self.sweep(txn, now, FULL_LOOKS))

    def _in_a_full_map(self, work: Callable[[Any], R]) -> R:
        """Return what *work* makes of a transaction, for which there may be no pages yet.

        :raises lmdb.MapFullError: There are none to be had.
        """
        while True:
            if self._env is None:
                self.open()  # its file was replaced meanwhile
            try:
                with self._writing() as txn:
                    return work(txn)
            except lmdb.MapFullError:
                # not even pages to remove something with: it gets a little more than it may have,
                # but not for ever, as a reader that is stopped has all of them kept for it
                if not self._grow(min(self.size + lmdb_files.STEP, self._most + RESERVE)):
                    raise

    def _grow(self, most: int) -> bool:
        """Make the file larger, up to *most* bytes, or use what another process made it."""
        with lmdb_files.alone(self._folder):
            if self._lost():
                return True
            size = lmdb_files.rounded(os.stat(self._data).st_size)
            if size > self.size:
                # whoever made it so may be of an earlier version, which took no space for it
                lmdb_files.allocate(self._data, size, used=True)
            else:
                wanted = min(2 * self.size, most)
                size, self._lacking = lmdb_files.enlarged(self._data, self.size, wanted)
            if size <= self.size:
                return False
            self._env.set_mapsize(size)
            self.size = size
            with self._writing() as txn:  # to read would take a reader's slot, and all may be taken
                self.measure(txn)
        return True


_VITAL = tuple(FIRST + each.encode() for each in VITAL)

_COUNTERS = tuple(FIRST + each.encode() for each in COUNTERS)

_inherited: list[Any] = []


def has_live_values(folder: str, now: float) -> bool:
    """Return whether a value in *folder*, which no process has open, is alive at *now*.

    What cannot be read is taken to be alive. The caller keeps others from opening it meanwhile.
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
                return True  # it is not ours
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
