"""What every store must do, as a suite that any store can be put through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias
from uuid import uuid4

from wsgigate.store import Change, R, Store, StoreError, get_all, update
from wsgigate.testing.clock import FakeClock
from wsgigate.testing.processes import count_up, one_more, swap_in_processes

__all__ = ["BrokenStore", "check_store"]

MakeStore: TypeAlias = Callable[[], Store]

THREADS, SWAPS = 8, 25


class BrokenStore:
    """A store that is down: every call raises :class:`StoreError`."""

    def get(self, key: str) -> tuple[bytes | None, float]:
        raise StoreError("the store is down")

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        raise StoreError("the store is down")

    def update(self, key: str, change: Change[R]) -> R:
        raise StoreError("the store is down")

    def items(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        raise StoreError("the store is down")

    def close(self) -> None:
        """Do nothing: it was never open."""


def check_store(
    make_store: MakeStore, *, clock: FakeClock | None = None, shared: bool = False
) -> None:
    """Put a store through all that the protocol promises; the first failure is an AssertionError.

    :param make_store: Makes a store: a new empty one, or a new handle on what is there already. The
        suite closes each one it makes, and only touches keys of its own.
    :param clock: The clock that these stores were given, so that the suite need not wait for values
        to expire. Without one it waits for two seconds.
    :param shared: Whether the stores it makes share their values, between processes too. Then
        *make_store* is pickled for processes of the suite: ``partial(LmdbStore, path)`` can be, a
        lambda cannot.
    """
    for check in _CHECKS:
        store = make_store()
        try:
            _say("whether it has the methods of a Store", True, isinstance(store, Store))
            check(store, f"check/{uuid4().hex}/")
        finally:
            store.close()
    store = make_store()
    try:
        _expiry(store, f"check/{uuid4().hex}/", clock)
    finally:
        store.close()
    if shared:
        _seen_by_another_handle(make_store)
        key = f"check/{uuid4().hex}"
        count = swap_in_processes(make_store, key)
        store = make_store()
        try:
            _say("the count of several processes", b"%d" % count, store.get(key)[0])
        finally:
            store.close()


def _say(what: str, expected: object, found: object) -> None:
    if found != expected:
        raise AssertionError(f"{what}: expected {expected!r}, found {found!r}")


def _get_and_swap(store: Store, prefix: str) -> None:
    key = prefix + "key"
    _say("get() of a key that was never set", None, store.get(key)[0])
    _say("swap() of an absent key that was thought present", False, store.swap(key, b"a", b"b", 9))
    _say("swap() that removes what is absent", True, store.swap(key, None, None, 9))
    _say("swap() of an absent key", True, store.swap(key, None, b"a", 9))
    _say("get() after it", b"a", store.get(key)[0])
    _say("swap() of a present key that was thought absent", False, store.swap(key, None, b"b", 9))
    _say("swap() with another old value", False, store.swap(key, b"b", b"c", 9))
    _say("get() after two swaps in vain", b"a", store.get(key)[0])
    _say("swap() with the old value", True, store.swap(key, b"a", b"b", 9))
    _say("swap() for an equal value", True, store.swap(key, b"b", b"b", 9))
    _say("get() after them", b"b", store.get(key)[0])
    _say("swap() for an empty value", True, store.swap(key, b"b", b"", 9))
    _say("get() of an empty value, which is not an absent one", b"", store.get(key)[0])
    _say("swap() that removes", True, store.swap(key, b"", None, 9))
    _say("get() of a removed key", None, store.get(key)[0])


def _update(store: Store, prefix: str) -> None:
    key = prefix + "key"
    seen: list[bytes | None] = []

    def become(new: bytes | None) -> Change[str]:
        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, str]:
            seen.append(old)
            _say("the kind of time that update() tells", float, type(now))
            return new, 9.0, "result"

        return change

    def keep(old: bytes | None, now: float) -> tuple[bytes | None, float, bytes | None]:
        return old, 9.0, old

    def fail(old: bytes | None, now: float) -> tuple[bytes | None, float, None]:
        raise LookupError("on purpose")

    _say("the result of update()", "result", update(store, key, become(b"one")))
    _say("what update() stored", b"one", store.get(key)[0])
    _say("update() that keeps the old value", b"one", update(store, key, keep))
    try:
        update(store, key, fail)
    except LookupError:
        pass
    else:
        raise AssertionError("an exception of the change has to leave update()")
    _say("the value after a change that raised", b"one", store.get(key)[0])
    update(store, key, become(b"two"))
    update(store, key, become(None))
    _say("what update() removed", None, store.get(key)[0])
    update(store, key, become(None))
    _say("the old values that update() showed", [None, b"one", b"two", None], seen)


def _items(store: Store, prefix: str) -> None:
    names = ["b", "a", "a/1", "a/2", "aa", "A", "ä", "z\U0001f511", "日本"]
    for name in names:
        store.swap(prefix + name, None, name.encode(), 9)
    every = [(prefix + name, name.encode()) for name in sorted(names)]
    _say("items() of the whole, in the order of the keys", every, list(store.items(prefix)))
    below = [(prefix + name, name.encode()) for name in ("a/1", "a/2")]
    _say("items() below a prefix", below, list(store.items(prefix + "a/")))
    _say("items() of a prefix that none has", [], list(store.items(prefix + "none")))
    for name, _ in store.items(prefix):  # what it yields may be changed meanwhile
        store.swap(prefix + "a", b"a", None, 9)
        store.swap(name, name.removeprefix(prefix).encode(), None, 9)
    _say("items() after each was removed", [], list(store.items(prefix)))
    many = [f"{prefix}many/{number:04}" for number in range(600)]
    for name in many:
        store.swap(name, None, b"x", 9)
    _say("items() of many", many, [name for name, _ in store.items(prefix + "many/")])


def _several(store: Store, prefix: str) -> None:
    names = [f"{prefix}{number}" for number in range(600)]
    for name in names[1:]:
        store.swap(name, None, name.encode(), 9)
    store.swap(prefix + "empty", None, b"", 9)
    values: list[bytes | None] = [None, *(name.encode() for name in names[1:])]
    _say("get_all() of many, of which one is absent", values, get_all(store, names))
    asked = [names[2], prefix + "empty", names[1], names[2]]
    found = [values[2], b"", values[1], values[2]]
    _say("get_all() in an order of its own", found, get_all(store, asked))
    _say("get_all() of none", [], get_all(store, []))
    _refused("get_all() of a key too long", partial(get_all, store, [names[1], "k" * 481]))


def _keys_and_sizes(store: Store, prefix: str) -> None:
    longest = prefix + "k" * (480 - len(prefix))
    wide = "日" * 160
    for key in (longest, wide, prefix + " \t\r\n\0*?[", prefix + "\U0001f511"):
        store.swap(key, store.get(key)[0], b"here", 9)
        _say(f"get() of the odd key {key!r}", b"here", store.get(key)[0])
        store.swap(key, b"here", None, 9)
    largest = bytes(range(256)) * 256
    _say("swap() of a value of 64 KiB", True, store.swap(prefix + "v", None, largest, 9))
    _say("get() of a value of 64 KiB", largest, store.get(prefix + "v")[0])
    for key in (longest + "k", wide + "日", "\udcff"):
        _refused(f"get() of a key of {len(key)} characters", partial(store.get, key))
        _refused("swap() of it", partial(store.swap, key, None, b"", 9))
    _refused("swap() of a larger value", partial(store.swap, prefix + "w", None, largest + b"x", 9))
    _say("get() of a value that was refused", None, store.get(prefix + "w")[0])


def _refused(what: str, call: Callable[[], object]) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what} has to raise a ValueError")


def _reopening(store: Store, prefix: str) -> None:
    store.swap(prefix + "key", None, b"a", 9)
    store.close()
    store.close()
    store.get(prefix + "key")
    _say("swap() after close()", True, store.swap(prefix + "other", None, b"b", 9))


def _threads_lose_no_swap(store: Store, prefix: str) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            count_up(store, prefix + "swapped", SWAPS)
            for _ in range(SWAPS):
                update(store, prefix + "updated", one_more)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _say("what threads failed with", [], failures)
    for name in ("swapped", "updated"):
        _say(f"the count of {name} values", b"%d" % (THREADS * SWAPS), store.get(prefix + name)[0])


def _expiry(store: Store, prefix: str, clock: FakeClock | None) -> None:
    step = 1.0 if clock is None else 10.0

    def go_on(seconds: float) -> None:
        if clock is None:
            time.sleep(seconds)
        else:
            clock.advance(seconds)

    constant = b"a constant of the caller"
    for name in ("short", "renewed", "swapped", "kept", "constant"):
        store.swap(prefix + name, None, constant, step * 1.5)
    store.swap(prefix + "long", None, constant, 1000)
    before = store.get(prefix + "short")[1]
    go_on(step)
    passed = store.get(prefix + "short")[1] - before
    _say("whether the time of the store goes on", True, abs(passed - step) < step / 2)
    _say("get() shortly before the end", constant, store.get(prefix + "short")[0])
    update(store, prefix + "renewed", lambda old, now: (b"new", step * 1.5, None))
    update(store, prefix + "kept", lambda old, now: (old, step * 1.5, None))
    update(store, prefix + "constant", lambda old, now: (constant, step * 1.5, None))
    store.swap(prefix + "swapped", constant, constant, step * 1.5)
    go_on(step)
    _say("get() of an expired value", None, store.get(prefix + "short")[0])
    _say("get() of a value that an update renewed", b"new", store.get(prefix + "renewed")[0])
    _say(
        "get() of one that a swap for an equal value renewed",
        constant,
        store.get(prefix + "swapped")[0],
    )
    _say("get() of one that an update left as it was", None, store.get(prefix + "kept")[0])
    _say("get() of one renewed with an equal value", constant, store.get(prefix + "constant")[0])
    _say("get() of one that lives long", constant, store.get(prefix + "long")[0])
    live = [prefix + name for name in ("constant", "long", "renewed", "swapped")]
    expired, lives = prefix + "short", prefix + "long"
    _say("get_all() of an expired value", [None, constant], get_all(store, [expired, lives]))
    _say("items() without the expired", live, [name for name, _ in store.items(prefix)])
    _say("swap() of an expired value", False, store.swap(prefix + "short", constant, b"b", 9))
    seen = update(store, prefix + "short", lambda old, now: (b"again", 1000.0, old))
    _say("the old value that update() showed of an expired one", None, seen)
    _say("get() of a key set again", b"again", store.get(prefix + "short")[0])


def _seen_by_another_handle(make_store: MakeStore) -> None:
    one, other = make_store(), make_store()
    key = f"check/{uuid4().hex}"
    try:
        one.swap(key, None, b"a", 60)
        _say("get() through another handle", b"a", other.get(key)[0])
        one.close()
        _say("get() after the first handle was closed", b"a", other.get(key)[0])
        _say("swap() through the other handle", True, other.swap(key, b"a", b"b", 60))
        _say("get() through the first one, open again", b"b", one.get(key)[0])
    finally:
        one.close()
        other.close()


_CHECKS = (
    _get_and_swap,
    _update,
    _items,
    _several,
    _keys_and_sizes,
    _reopening,
    _threads_lose_no_swap,
)
