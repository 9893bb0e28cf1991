"""Opening a store: one passed as an object, one named by a URL, or the default one.

During a test the default store is in memory, and new for each app. Counts in a folder of the
machine would outlive the run, so that the second run of a test suite fails, and parallel runs would
share them. So a middleware without an explicit store counts in memory while a test runner runs in
its process (:func:`wsgigate.runtime.fork.tested`), or while its Flask app has ``app.testing``. The
workers of a server always share one store: ``app.testing`` alone is ignored where a server with
several workers is loaded.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from wsgigate.runtime import fork
from wsgigate.store import NETWORKED, Change, MisconfiguredStore, R, Store, StoreError, update
from wsgigate.store.memory import MemoryStore
from wsgigate.store.namespace import AppNamespace, check_namespace, innermost, maker

__all__ = [
    "Namespaced",
    "OpenedStore",
    "Resettable",
    "memory_of",
    "open_store",
    "reset_all",
    "resettable",
    "under_test",
]


def open_store(url: str, *, owner: str = "", cure: str = "") -> Store:
    """Return the store that *url* names. Nothing is opened before its first use.

    :param url: ``memory:`` for one process; ``lmdb:`` or ``lmdb:PATH`` for every worker of this
        machine; ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``, ``unix://``,
        ``redis+sentinel://`` or ``redis+cluster://`` for many machines, see
        :class:`wsgigate.store.redis.RedisStore`.
    :param owner: Identifies the gateway or app, so that two of them never share counters by
        accident. A plain ``lmdb:`` uses a separate folder for it; in a Redis it is part of the
        prefix of the keys.
    :param cure: The remedy that the error recommends if the folder of a plain ``lmdb:`` cannot be
        used. Default: to set ``store.url``.
    :raises ValueError: *url* is invalid, or it needs a package that is not installed.
    :raises MisconfiguredStore: The folder of a plain ``lmdb:`` cannot be used.
    :raises StoreError: That folder cannot be made at the moment.
    """
    scheme, colon, rest = url.partition(":")
    if scheme == "memory" and colon and not rest:
        return MemoryStore()
    if scheme == "lmdb" and colon:
        from wsgigate.store.lmdb import LmdbStore
        from wsgigate.store.lmdb_folders import private_folder

        return LmdbStore(rest or private_folder(owner, cure))
    if scheme in NETWORKED and rest.startswith("//"):
        try:
            from wsgigate.store.redis import RedisStore
        except ModuleNotFoundError as error:
            if error.name not in ("redis", "hiredis"):
                raise
            raise ValueError(
                f'a store at {scheme}:// needs redis-py and hiredis: pip install "wsgigate[redis]"'
            ) from None
        return RedisStore(url, owner=owner)
    if "//" in url:
        url = f"{scheme}://..."  # the rest may contain a secret
    raise ValueError(
        'a store is "memory:", "lmdb:", "lmdb:PATH" or a URL such as "redis://HOST:PORT/DB", '
        f"not {url!r}"
    )


class OpenedStore:
    """Opens a store at its first use, and closes it if it was not passed in as an object.

    It is itself a store, at the cost of one more function call for each method.

    During a test the default store is in memory.

    :param store: A store, the URL of one, or ``None`` for the private folder of the user that runs
        this program.
    :param app: The app that owns the values: apps that share a store by a URL or by ``None`` are
        distinguished by :mod:`wsgigate.store.namespace`. ``None`` for values shared by all apps.
    :param namespace: Owner of the values in place of *app*: all users of the same one share them.
    :ivar worked: Whether an operation has succeeded; a user of :meth:`updater` sets it.
    :raises ValueError: *store* is not a store, a URL or ``None``; or *namespace* is malformed.
    """

    def __init__(
        self, store: Store | str | None, app: object = None, *, namespace: str | None = None
    ) -> None:
        self.worked = False
        self._owned = store is None or isinstance(store, str)
        self._store: Store | None = None
        self._default = store is None
        self._app = None if app is None else innermost(app)
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")
        self._namespace = check_namespace(namespace)
        self._names: AppNamespace | None = None
        self._prefix: str | None = None if namespace is None else f"{namespace}/"
        self._cure = 'correct the store that was given as store, or pass store="lmdb:/path"'
        if store is None or store == "lmdb:":  # its folder is made at the first use
            self._names = AppNamespace(self._app, maker(self._app))
            self._cure = (
                'pass store="lmdb:/path" with a folder that this user may write, or set '
                "XDG_STATE_HOME to one"
            )
        elif isinstance(store, str):
            try:
                self._store = open_store(store)
            except ValueError as error:
                raise ValueError(f"store: {error}") from None
            self._cure = "correct the argument store"
            if isinstance(self._store, MemoryStore) or getattr(self._store, "own_prefix", False):
                self._prefix = self._prefix or ""  # not shared, or the URL names the owner
            else:
                self._names = AppNamespace(self._app, maker(self._app))
        elif isinstance(store, Store):
            self._store = store
            self._prefix = self._prefix or ""
        else:
            raise ValueError(f"store: a store or the URL of one, not {store!r}")

    @property
    def prefix(self) -> str:
        """Prefix of the keys, after the user's own prefix; read it at the first use, not before."""
        prefix = self._prefix
        if prefix is None:
            prefix = self._prefix = "" if self._names is None else self._names.prefix()
        return prefix

    def open(self) -> Store:
        """Return the store. One that cannot be opened is tried again at the next use.

        :raises StoreError: The folder of the store cannot be used.
        """
        if self._store is None:
            with self._lock:
                if self._store is None:
                    self._store = self._open_default()
        return self._store

    def _open_default(self) -> Store:
        if self._default and under_test(self._app):
            return memory_of(None if self._namespace else self._app)
        owner = f"namespace-{self._namespace}"
        if not self._namespace and self._names is not None:
            owner = self._names.folder()
        return open_store("lmdb:", owner=owner, cure=self._cure)

    def check_outage(self, error: StoreError, what: str) -> None:
        """Check that *error* is an outage, which may pass without a change of the configuration.

        It is one after an operation has succeeded. A store of a gateway's file is exempt: it was
        checked when the gateway started.

        :param what: The operation that fails without the store.
        :raises MisconfiguredStore: The store has not worked so far, and the error lasts; the
            message has the remedy.
        """
        if self.worked or not isinstance(error, MisconfiguredStore):
            return
        if isinstance(self._store, Namespaced):
            self._store.check_outage(error, what)
            return
        if getattr(self._store, "checked", False):
            return
        text, cure = str(error), getattr(self._store, "cure", "") or self._cure
        if cure not in text:
            text = f"{text}; {cure}"
        raise MisconfiguredStore(f"{what}: {text}") from error

    @property
    def in_memory(self) -> bool:
        """Whether the values are known to be in the memory of this process only."""
        return isinstance(self._store, MemoryStore)

    def updater(self) -> Callable[..., Any]:
        """Return the store's ``update(key, change)``.

        :raises StoreError: The folder of the store cannot be used.
        """
        store = self.open()
        own: Callable[..., Any] | None = getattr(store, "update", None)
        return partial(update, store) if own is None else own

    def get(self, key: str) -> tuple[bytes | None, float]:
        """Return the live value, or ``None``, and the store's time in seconds."""
        found = self.open().get(key)
        self.worked = True
        return found

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        """Replace the value by *new* if it is *old*."""
        swapped = self.open().swap(key, old, new, ttl)
        self.worked = True
        return swapped

    def update(self, key: str, change: Change[R]) -> R:
        """Replace the value of *key* by the result of *change*; return its result."""
        result = update(self.open(), key, change)
        self.worked = True
        return result

    def items(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the live items whose key starts with *prefix*."""
        return self.open().items(prefix)

    def close(self) -> None:
        """Close the store, unless it was passed in as an object."""
        if self._owned and self._store is not None:
            self._store.close()


class Namespaced:
    """A store with the namespace of *opened* in every key, after the first part of the key.

    The first part decides the rank of a value in a full store (see :mod:`wsgigate.store`), so a
    namespace must not come before it: counters could not be evicted, vital values had no reserved
    room, and those of a namespace called ``limit`` would be evicted as counters.

    Each key has a slash, after its first part.

    :param opened: The store, whose :attr:`OpenedStore.prefix` is put into every key.
    """

    def __init__(self, opened: OpenedStore) -> None:
        self._opened = opened

    def check_outage(self, error: StoreError, what: str) -> None:
        """Check that *error* is an outage: see :meth:`OpenedStore.check_outage`.

        :raises MisconfiguredStore: The store has not worked so far, and the error lasts.
        """
        self._opened.check_outage(error, what)

    def get(self, key: str) -> tuple[bytes | None, float]:
        """Return the live value, or ``None``, and the store's time in seconds."""
        return self._opened.get(self._place(key))

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        """Replace the value by *new* if it is *old*."""
        return self._opened.swap(self._place(key), old, new, ttl)

    def update(self, key: str, change: Change[R]) -> R:
        """Replace the value of *key* by the result of *change*; return its result."""
        return self._opened.update(self._place(key), change)

    def items(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the live items whose key starts with *prefix*, which has the first part."""
        first = prefix.partition("/")[0] + "/"
        skipped = len(self._place(first))
        for key, value in self._opened.items(self._place(prefix)):
            yield first + key[skipped:], value

    def close(self) -> None:
        """Close the store, unless it was passed in as an object."""
        self._opened.close()

    def _place(self, key: str) -> str:
        """Return the key in the store: two slashes before a namespace, as no key has of its own."""
        namespace = self._opened.prefix
        if not namespace:
            return key
        first, slash, rest = key.partition("/")
        if not slash:
            raise ValueError(f"a key in a namespace has a first part and a slash, not {key!r}")
        return f"{first}//{namespace}{rest}"


# The store of middlewares during a test.

SERVERS = ("gunicorn.arbiter", "uwsgi", "mod_wsgi", "granian._granian", "granian.server")
"""Modules that are loaded in the processes of servers with several workers."""


class Resettable(Protocol):
    """A middleware that can reset its counts."""

    def counts_in_memory(self) -> bool:
        """Return whether the counts are in the memory of this process alone."""

    def reset(self) -> None:
        """Reset the counts."""


_all: weakref.WeakSet[Resettable] = weakref.WeakSet()
_stores: weakref.WeakKeyDictionary[object, tuple[str, MemoryStore]] = weakref.WeakKeyDictionary()
_process_wide: list[MemoryStore] = []


def under_test(app: object) -> bool:
    """Return whether *app* runs as a part of a test.

    :param app: The innermost app, or ``None``.
    """
    if fork.tested():
        return True
    return getattr(app, "testing", None) is True and not any(
        name in sys.modules for name in SERVERS
    )


def memory_of(app: object) -> Store:
    """Return the memory store of middlewares around *app* during a test.

    Middlewares of one app share it, as they share a folder outside of tests. Each test of pytest
    has a new one.

    :param app: The innermost app; ``None`` for the store that all apps of this process share.
    """
    if app is None:
        if not _process_wide:
            _process_wide.append(MemoryStore())
        return _process_wide[0]
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    try:
        of_test, store = _stores.get(app, (None, None))
        if store is None or of_test != test:
            store = MemoryStore()
            _stores[app] = test, store
    except TypeError:  # not hashable, or without weak references: it is not shared
        store = MemoryStore()
    return store


def resettable(middleware: Resettable) -> None:
    """Register *middleware* with :func:`reset_all` for as long as it is alive."""
    _all.add(middleware)


def reset_all() -> None:
    """Reset every middleware that counts in memory, and the store shared by all apps."""
    for middleware in list(_all):
        if middleware.counts_in_memory():
            try:
                middleware.reset()
            except StoreError:
                pass  # a test has made a store that fails: the others are reset all the same
    for store in _process_wide:
        for key, value in list(store.items("")):
            store.swap(key, value, None, 0.0)
