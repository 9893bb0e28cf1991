"""The store for all processes of one machine: a memory-mapped LMDB file, without a server.

Locks, forks, growth and damaged files are the concern of :mod:`wsgigate.store.lmdb_environment`,
whose theory of operation also explains the two locks that a write takes here.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from fcntl import LOCK_EX, LOCK_UN, flock
from typing import Any, TypeVar, cast

from wsgigate.runtime import fork
from wsgigate.runtime.clocks import wall
from wsgigate.store import KEY_BYTES, Change, check_value, encoded
from wsgigate.store.lmdb_environment import FAILURES, FIRST, INTERNAL, RESIZED, Environment, expiry
from wsgigate.store.meter import measured

__all__ = ["LmdbStore", "environment_on", "folders_in_use"]


class _Environments:
    """The environments of this process, one per folder, and the lock that guards them."""

    def __init__(self) -> None:
        self.of: weakref.WeakValueDictionary[str, Environment] = weakref.WeakValueDictionary()
        self.lock: threading.Lock
        fork.renewed(self, lock="Lock")


_environments = _Environments()


def environment_on(folder: str, map_size: int, user: object) -> Environment:
    """Return this process's environment on *folder*, with *user* among its users.

    A process must not open a folder twice: closing one environment would drop the other's locks.
    """
    parent, name = os.path.split(folder)
    real = os.path.join(os.path.realpath(parent), name)  # open() rejects a symbolic link
    with _environments.lock:
        environment = _environments.of.get(real)
        if environment is None:
            environment = _environments.of[real] = Environment(real, map_size)
        environment.users.add(user)
    return environment


def folders_in_use() -> frozenset[str]:
    """Return the folders of this process's environments, open or closed."""
    with _environments.lock:
        return frozenset(_environments.of)


R = TypeVar("R")

PAGE = 256
"""Items read in one transaction; none stays open while the caller uses the items."""

LONGEST = len(FIRST) + KEY_BYTES

_pack = expiry.pack

_expiry_of = expiry.unpack_from


class LmdbStore:
    """Stores values in a folder of this machine, for all processes that name the same folder.

    Its time is the wall clock, since the file may outlive a boot: code that stores moments must
    tolerate a clock that is set back. Stores of one process on one folder share one environment.

    :param path: The folder; made with mode 0700 at the first use if it is missing.
    :param map_size: Maximum bytes of all values, including expired ones until they are swept. In a
        full store existing values can change but none can be added, except what keeps the gateway
        correct (health, circuits, the registry, the deny list): a sixteenth more is for these
        alone, and then counters of callers are evicted for them. Of several stores of this process
        on one folder, the first one's value applies. Default: 256 MiB.
    :param clock: Returns the Unix time in seconds, the same in every process.
    :raises ValueError: *path* is empty, or *map_size* is below 1 MiB.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        map_size: int = 256 * 1024 * 1024,
        clock: Callable[[], float] = wall,
    ) -> None:
        if not os.fspath(path):
            raise ValueError("the path of an lmdb store is empty; example: lmdb:/run/wsgigate")
        if map_size < 1024 * 1024:
            raise ValueError(f"map_size is at least 1048576 bytes (1 MiB), got {map_size}")
        self.path = os.path.abspath(os.path.expanduser(path))
        self._map_size = map_size
        self._clock = clock
        self._environment: Environment | None = None
        self.checked = False
        """Whether the gateway checks the store at its start."""
        self.cure = ""
        """The remedy to add to a lasting error, in the terms of the configuration in use."""

    def __repr__(self) -> str:
        return f"LmdbStore({self.path!r})"

    @measured("get", one_in=16)
    def get(self, key: str) -> tuple[bytes | None, float]:
        name = FIRST + key.encode()
        if len(name) > LONGEST:
            encoded(key)
        environment = self._environment or self._attach()
        with environment.lock:
            last = False
            while True:
                try:
                    txn = (environment.begin or environment.open())()
                    try:
                        raw = txn.get(name)
                    finally:
                        txn.abort()
                    now = self._clock()
                    if raw is None or _expiry_of(raw)[0] <= now:
                        return None, now
                    return raw[8:], now
                except FAILURES as error:
                    last = _recover(environment, error, 0.0, last)

    @measured("get_all", one_in=16)
    def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the live value of each of *keys*, None for those that have none.

        :raises StoreError: The store fails.
        """
        names = [FIRST + encoded(key) for key in keys]

        def read(txn: Any, _: Environment) -> list[bytes | None]:
            raws = list(map(txn.get, names))
            now = self._clock()
            return [None if raw is None or _expiry_of(raw)[0] <= now else raw[8:] for raw in raws]

        return self._read_only(read)

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        # a copy: update() writes nothing when it gets back the very object that it passed in
        fresh = None if new is None else cast("bytes", bytearray(new))

        def change(live: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            return (fresh, ttl, True) if live == old else (live, ttl, False)

        return self.update(key, change)

    @measured("update", one_in=16)
    def update(self, key: str, change: Change[R]) -> R:
        name = FIRST + key.encode()
        if len(name) > LONGEST:
            encoded(key)
        environment = self._environment or self._attach()
        with environment.lock:
            last = False
            while True:
                now = 0.0
                try:
                    begin = environment.begin or environment.open()
                    write_lock = environment.write_lock
                    try:
                        # inside the try: a signal handler may raise as soon as flock returns
                        flock(write_lock, LOCK_EX)
                        txn = begin(None, None, True)
                        try:
                            # read under the lock, so that decisions never go back in time
                            now = self._clock()
                            raw = txn.get(name)
                            old = None if raw is None or _expiry_of(raw)[0] <= now else raw[8:]
                            new, ttl, result = change(old, now)
                            if new is old:
                                txn.abort()
                                return result
                            if new is None:
                                txn.delete(name)
                            else:
                                size = len(new)
                                if raw is None or size > len(raw) - 8:
                                    check_value(new)
                                    environment.add(size, name)
                                txn.put(name, _pack(now + ttl) + new)
                            # a clock that was set back is a reason to sweep, too
                            looking = not environment.looked <= now < environment.due
                            if looking:
                                environment.sweep(txn, now)
                            txn.commit()
                        except BaseException:
                            txn.abort()
                            raise
                    finally:
                        flock(write_lock, LOCK_UN)
                    if looking:
                        environment.check_file_identity(now)
                    return result
                except FAILURES as error:
                    last = _recover(environment, error, now, last, name)

    def items(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        first = position = FIRST + encoded(prefix)
        while position:
            page, position = self._page(first, position)
            for name, value in page:
                try:
                    key = name[len(FIRST) :].decode()
                except UnicodeDecodeError:  # damaged, and not readable by get() either
                    continue
                yield key, value

    def usage(self) -> dict[str, int]:
        """Return the bytes ``used`` of the ``limit``, and the number of ``items``.

        Values that have expired count until they are swept.

        :raises StoreError: The store fails.
        """

        def read(txn: Any, environment: Environment) -> dict[str, int]:
            used, entries = environment.measure(txn)
            own = sum(txn.get(name) is not None for name in INTERNAL)
            return {"used": used, "limit": environment.map_size, "items": entries - own}

        return self._read_only(read)

    def close(self) -> None:
        environment, self._environment = self._environment, None
        if environment is None:
            return
        with environment.lock:
            environment.users.discard(self)
            if not environment.users:
                environment.close()

    def check(self) -> None:
        """Check that values can be stored: write one, remove it, and leave nothing open.

        :raises DamagedStore: The file is damaged; it is left as it is.
        :raises StoreError: They cannot; the message names the path and the cause.
        """
        used = self._environment is not None
        environment = self._environment or self._attach()
        key = f"wsgigate/check/{os.getpid()}"
        try:
            with environment.lock:
                if environment.begin is None:
                    environment.open(repair=False)
            self.update(key, lambda old, now: (bytes(16384), 1.0, None))
            self.update(key, lambda old, now: (None, 0.0, None))
        finally:
            if not used:
                self.close()

    def _attach(self) -> Environment:
        environment = self._environment = environment_on(self.path, self._map_size, self)
        return environment

    def _page(self, first: bytes, position: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Return the live items of one page from *position* on, and the next page's first key."""

        def read(txn: Any, _: Environment) -> tuple[list[tuple[bytes, bytes]], bytes]:
            page: list[tuple[bytes, bytes]] = []
            with txn.cursor() as cursor:
                now = self._clock()
                cursor.set_range(position)
                for seen, (name, raw) in enumerate(cursor):
                    if not name.startswith(first):
                        break
                    if seen == PAGE:
                        return page, name
                    if _expiry_of(raw)[0] > now:
                        page.append((name, raw[8:]))
            return page, b""

        return self._read_only(read)

    def _read_only(self, read: Callable[[Any, Environment], R]) -> R:
        """Return the result of *read* in a read transaction; *read* may be called twice."""
        environment = self._environment or self._attach()
        with environment.lock:
            last = False
            while True:
                try:
                    with (environment.begin or environment.open())() as txn:
                        return read(txn, environment)
                except FAILURES as error:
                    last = _recover(environment, error, 0.0, last)


def _recover(
    environment: Environment, error: Exception, now: float, last: bool, name: bytes = b""
) -> bool:
    """Prepare a second attempt after *error*, or raise the store's error if this was the *last*.

    A file that another process has made larger does not count as an attempt: that process may grow
    it again and again while it fills it, up to the maximum length.
    """
    before = environment.size
    if last and not isinstance(error, RESIZED):
        raise environment.failure(error) from error
    environment.recover(error, now, name)
    if isinstance(error, RESIZED) and environment.size > before:
        return last
    if last:
        raise environment.failure(error) from error
    return True
