"""LMDB itself: one environment per folder and process, opened, shared, swept and never forked."""

from __future__ import annotations

import os
import struct
import threading
import weakref
from itertools import islice
from typing import Any

import lmdb

from wsgigate.store import StoreError
from wsgigate.store.folder import check_file, own_folder
from wsgigate.store.forking import rest_at_fork

__all__ = [
    "FAILURES",
    "FIRST",
    "SWEEP_EVERY",
    "Environment",
    "Full",
    "environment_on",
    "expiry",
]


class Full(Exception):
    """There is no room for another value."""


FAILURES = (Full, lmdb.Error, struct.error)
"""What a transaction fails with; ``struct.error``: a value too short to begin with its expiry."""

FIRST = b"="  # every key of ours starts with it, which keeps them apart from the next two
MARKER = b"\0wsgigate"  # no other program's file has it
POSITION = b"\0sweep"  # how far the sweep has come, over all processes
FORMAT = b"1"  # a value is its expiry, a big-endian double, and then the bytes that were stored

READERS = 1022
LOCK_BYTES = READERS * 64 + 128  # the size LMDB itself gives the lock file for so many readers

SWEEP_EVERY = 32  # writes
SWEEP_LOOKS = 64  # at keys: twice the writes, so the file holds at most twice what is alive
FULL_LOOKS = 4096  # at keys before each new one that a full file may have no room for

# LMDB never recovers from a map that is really full: even to remove something takes pages. So the
# map is larger than what may be filled, by what is written between two looks at how full it is.
RESERVE = 4 * 1024 * 1024

expiry = struct.Struct(">d")
_expiry_of = expiry.unpack_from


class Environment:
    """The one LMDB environment that this process may have open on a folder.

    Every method is called with the lock held. It is open while somebody uses it, but never across a
    fork: it is closed before one, and opened by the next use in the parent and in the child.

    :param folder: Where its two files are; made if missing.
    :param map_size: How much may be kept in it, in bytes.
    """

    def __init__(self, folder: str, map_size: int) -> None:
        self.lock = threading.RLock()
        self.begin: Any = None
        self.writes = 0
        self.full = False
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self._folder = folder
        self._data = os.path.join(folder, "data.mdb")
        self._map_size = map_size
        self._env: Any = None
        self._file = (0, 0)
        rest_at_fork(self)

    def open(self) -> Any:
        """Open the environment; return its ``begin``.

        :raises StoreError: The folder or its files are not ours, not wsgigate's, or unusable.
        """
        own_folder(self._folder)
        check_file(self._data)
        check_file(os.path.join(self._folder, "lock.mdb"))
        env = None
        try:
            self._fill_lock_file()
            # Nothing is flushed to disk: a process that dies loses nothing, as the kernel has its
            # writes; a machine that dies may lose the last ones or, where the file system reorders
            # them, leave a file that must be removed. For counters and leases that is cheap.
            env = lmdb.open(
                self._folder,
                map_size=self._map_size + max(RESERVE, self._map_size // 8),
                max_readers=READERS,
                max_spare_txns=1,
                sync=False,
                metasync=False,
                mode=0o600,
                create=False,
            )
            env.reader_check()  # frees the slots of processes that were killed
            found = os.stat(self._data)
            if found.st_size < _reach(env):
                self._fill_up(env)
            self._claim(env)
        except (lmdb.Error, OSError, StoreError) as error:
            if env is not None:
                env.close()
            raise self.failure(error) from error
        self._env, self._file, self.begin = env, (found.st_dev, found.st_ino), env.begin
        return self.begin

    def _fill_lock_file(self) -> None:
        """Take the disk space of the lock file now: LMDB maps it, and a full disk would kill us."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(os.path.join(self._folder, "lock.mdb"), flags, 0o600)
        try:
            # never made larger than it is, as others may have mapped it so
            size = os.fstat(descriptor).st_size or LOCK_BYTES
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)

    def _fill_up(self, env: Any) -> None:
        """Add zeros to a file cut short: reading beyond its end kills, reading zeros does not."""
        with env.begin(write=True):  # so that nobody else makes it longer meanwhile
            if os.stat(self._data).st_size < _reach(env):
                os.truncate(self._data, _reach(env))

    def _claim(self, env: Any) -> None:
        with env.begin() as txn:
            self._measure(txn)
            if txn.get(MARKER) == FORMAT:
                return
        with env.begin(write=True) as txn:
            marker = txn.get(MARKER)
            if marker is None and txn.stat()["entries"]:
                raise StoreError(f"{self._data} is the LMDB file of some other program")
            if marker not in (None, FORMAT):
                raise StoreError(
                    f"{self._data} has the format {marker!r} of another version of wsgigate, "
                    f"this one has {FORMAT!r}; remove it or name another folder"
                )
            txn.put(MARKER, FORMAT)

    def close(self) -> None:
        """Close the environment; the next use opens it again."""
        env, self._env, self.begin = self._env, None, None
        if env is not None:
            env.close()

    def before_fork(self) -> None:
        self.close()

    def after_unseen_fork(self) -> None:
        # LMDB forbids the child both to use what it inherited and to have it cleaned up
        if self._env is not None:
            _inherited.append(self._env)
        self._env = self.begin = None

    def failure(self, error: Exception) -> StoreError:
        """Return what the operator is to know of *error*."""
        if isinstance(error, StoreError):
            return error
        if isinstance(error, Full | lmdb.MapFullError):
            return StoreError(
                f"{self._data} is full of values that are still alive: map_size is "
                f"{self._map_size} bytes"
            )
        if isinstance(error, lmdb.ReadersFullError):
            return StoreError(f"{self._data} is in use by more than {READERS} processes")
        if isinstance(error, _DAMAGE):
            return StoreError(
                f"{self._data} is damaged or no LMDB file ({error}); "
                "remove it or name another folder"
            )
        cause = error.strerror if isinstance(error, OSError) else str(error)
        return StoreError(f"{self._data} cannot be used: {cause}")

    def recover(self, error: Exception, now: float) -> None:
        """Do what may let a second attempt succeed.

        :raises StoreError: There is nothing to be done.
        """
        if isinstance(error, lmdb.MapResizedError):
            self._env.set_mapsize(0)  # a process with a larger map_size has made use of it
        elif isinstance(error, lmdb.PanicError):
            self.close()  # LMDB refuses everything from here on until it is opened anew
        elif isinstance(error, Full | lmdb.MapFullError):
            self._make_room(now)
        else:
            raise self.failure(error) from error

    def sweep(self, txn: Any, now: float, looks: int = SWEEP_LOOKS) -> None:
        """Remove the expired among the next *looks* keys, as a part of *txn*."""
        position = txn.get(POSITION, FIRST)
        following = _expire(txn, position, looks, now) or FIRST
        if following != position:
            txn.put(POSITION, following)
        self._measure(txn)

    def _measure(self, txn: Any) -> None:
        found = txn.stat()
        pages = found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]
        self.full = pages * found["psize"] > self._map_size

    def look_after(self) -> None:
        """Let go of a file that somebody has removed or replaced: others have a new one by now."""
        try:
            found = os.stat(self._data)
        except OSError:
            self.close()
            return
        if (found.st_dev, found.st_ino) != self._file:
            self.close()

    def _make_room(self, now: float) -> None:
        """Sweep further than usual, but not over all: a full file must not make everybody wait."""
        try:
            self._env.reader_check()  # what a dead reader has seen is kept for it
            with self._env.begin(write=True) as txn:
                self.sweep(txn, now, FULL_LOOKS)
        except lmdb.Error as error:
            raise self.failure(error) from error


_DAMAGE = (
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    struct.error,
)


def _reach(env: Any) -> int:
    """Return where the last page of *env* ends in its file."""
    return int((env.info()["last_pgno"] + 1) * env.stat()["psize"])


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


_environments: weakref.WeakValueDictionary[str, Environment] = weakref.WeakValueDictionary()
_inherited: list[Any] = []
_guard = threading.Lock()


def environment_on(folder: str, map_size: int, user: object) -> Environment:
    """Return this process's environment on *folder*, with *user* among its users.

    LMDB may not be opened twice by one process: closing one would drop the locks of the other.
    """
    parent, name = os.path.split(folder)
    real = os.path.join(os.path.realpath(parent), name)  # a link in its place is refused later
    with _guard:
        environment = _environments.get(real)
        if environment is None:
            environment = _environments[real] = Environment(real, map_size)
        environment.users.add(user)
    return environment
