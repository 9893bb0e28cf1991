"""Conformance suites for stores: the store protocol, and exact quotas under concurrency."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, TypeAlias
from uuid import uuid4

from wsgigate.rules.algorithms import (
    Algorithm,
    CalendarWindow,
    CombinedAlgorithm,
    FixedWindow,
    SlidingWindow,
    TokenBucket,
)
from wsgigate.rules.quota import LONGEST, Quota, Verdict
from wsgigate.rules.windows import span
from wsgigate.store import Change, R, Store, StoreError, get_all, update
from wsgigate.testing.fakes import FakeClock

__all__ = [
    "BrokenStore",
    "check_exact",
    "check_store",
    "count_up",
    "in_processes",
    "one_more",
    "swap_in_processes",
]


# Concurrent processes.

PROCESSES, PROCESS_SWAPS = 2, 200


def one_more(old: bytes | None, now: float) -> tuple[bytes, float, None]:
    """Add one to the number *old*: a change for ``update``."""
    return b"%d" % (int(old or 0) + 1), 60.0, None


def count_up(store: Store, key: str, times: int) -> None:
    """Add *times* to the number under *key*, one by one."""
    for _ in range(times):
        while True:
            old, now = store.get(key)
            if store.swap(key, old, one_more(old, now)[0], 60):
                break


def _count_up(make_store: Callable[[], Store], key: str, begin: Callable[[], None]) -> None:
    store = make_store()
    store.get(key)
    begin()
    count_up(store, key, PROCESS_SWAPS)
    store.close()


def swap_in_processes(make_store: Callable[[], Store], key: str) -> int:
    """Let two processes count up the number under *key* concurrently; return the expected sum.

    :raises AssertionError: One of them failed; its traceback is on stderr.
    """
    in_processes([(_count_up, make_store, key)] * PROCESSES)
    return PROCESSES * PROCESS_SWAPS


_PROCESS = """
import os, pickle, sys
results = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
function, *arguments = pickle.load(sys.stdin.buffer)
def begin():
    results.write(b"ready\\n")
    results.flush()
    sys.stdin.buffer.read(1)
result = function(*arguments, begin)
results.write(b"done\\n")
pickle.dump(result, results)
results.close()
"""


def in_processes(tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call each ``(function, *arguments)`` in a separate process; return their results.

    Functions and arguments are pickled. Each function gets an additional argument, a barrier: it
    calls that when it is ready, and the call returns when all are. It may call it repeatedly, if
    all functions call it equally often.

    :raises AssertionError: One of them failed; its traceback is on stderr.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with ExitStack() as stack:
        processes = []
        for _ in tasks:
            # Not forked: a fork would copy locks that threads of this process hold.
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _PROCESS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process, task in zip(processes, tasks, strict=True):
            _write(process, pickle.dumps(task))
        # They begin together; otherwise one could end before the other begins.
        while {process.stdout.readline() for process in processes} == {b"ready\n"}:  # type: ignore[union-attr]
            for process in processes:
                _write(process, b"\n")
        for process in processes:
            process.stdin.close()  # type: ignore[union-attr]
        results = [process.stdout.read() for process in processes]  # type: ignore[union-attr]
        for process in processes:
            if process.wait(timeout=60):
                raise AssertionError(f"a process ended with {process.returncode}")
        return [pickle.loads(result) for result in results]  # noqa: S301 (it is our own)


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    process.stdin.write(data)  # type: ignore[union-attr]
    process.stdin.flush()  # type: ignore[union-attr]


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
        """Do nothing: the store was never open."""


def check_store(
    make_store: MakeStore, *, clock: FakeClock | None = None, shared: bool = False
) -> None:
    """Check that a store implements the store protocol.

    :param make_store: Returns a store: a new empty one, or a new handle on existing values. The
        suite closes each one, and uses only keys with a random prefix.
    :param clock: The clock of these stores, so that the suite need not wait for values to expire.
        Without one it waits for two seconds.
    :param shared: Whether these stores share their values, between processes, too. Then
        *make_store* is pickled for processes of the suite: ``partial(LmdbStore, path)`` can be, a
        lambda cannot.
    :raises AssertionError: A check fails.
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
            _say("the type of the time that update() passes", float, type(now))
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
    _say("get_all() in another order", found, get_all(store, asked))
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


# Exact quotas under concurrent requests of several processes and threads.

TakeResult: TypeAlias = tuple[tuple[Verdict, ...], float]

TRIES = 60
"""Requests of each thread."""

LIMIT = 100

_BUCKET = TokenBucket(Quota(LIMIT, LONGEST))

_FIXED = FixedWindow(Quota(LIMIT, LONGEST))

_SLIDING = SlidingWindow(Quota(LIMIT, LONGEST))

_CALENDAR = CalendarWindow(Quota(LIMIT, calendar="year"))

_WIDER = TokenBucket(Quota(2 * LIMIT, LONGEST))

_SHORT: tuple[Algorithm, ...] = (
    TokenBucket(Quota(7, 0.001)),
    FixedWindow(Quota(7, 0.001)),
    SlidingWindow(Quota(7, 0.001)),
)
"""Quotas that are refilled during the check; the others are not."""

_TOGETHER: tuple[tuple[Algorithm, ...], ...] = (
    (_BUCKET,),
    (_FIXED,),
    (_SLIDING,),
    (_CALENDAR,),
    (_WIDER, _FIXED),
    (_SLIDING, _WIDER, _CALENDAR),
)

_QUESTIONS: tuple[tuple[tuple[Algorithm, ...], tuple[int, ...]], ...] = (
    *((algorithms, (1,)) for algorithms in _TOGETHER),
    *((algorithms, (1, 3, 2)) for algorithms in _TOGETHER),
    *(((algorithm,), (1, 1, 2)) for algorithm in _SHORT),
)
"""The quotas of each part of the check, and the costs of its requests in turn."""


class _Asked(NamedTuple):
    now: float
    cost: int
    allowed: bool


def check_exact(make_store: MakeStore, *, processes: int = 0, threads: int = 4) -> None:
    """Check that concurrent requests through a store never exceed a quota.

    Quotas that are not refilled during the check must be used up exactly; the others must at no
    time allow more than their algorithm does, by the store's time. The check uses the store's
    ``take`` if it has one, else ``update``.

    :param make_store: Returns a store for all threads of a process. The suite closes each, and uses
        only keys with random names.
    :param processes: The number of processes, each with its own store; *make_store* is then
        pickled. With 0 only the threads of this process make requests.
    :param threads: The number of threads in each process.
    :raises ValueError: There would be fewer than two concurrent threads.
    :raises AssertionError: A quota was exceeded, or not used up.
    """
    if max(processes, 1) * threads < 2:
        raise ValueError("at least two concurrent threads are required")
    keys = [f"check/{uuid4().hex}" for _ in _QUESTIONS]
    store = make_store()
    try:
        if processes:
            answers = in_processes([(_in_process, make_store, threads, keys)] * processes)
        else:
            answers = [_in_threads(store, threads, keys)]
        for number, (algorithms, costs) in enumerate(_QUESTIONS):
            asked = [each for answer in answers for each in answer[number]]
            if algorithms[0] in _SHORT:
                _check_never_too_many(algorithms[0], asked)
            else:
                _check_used_up(store, keys[number], algorithms, costs, asked)
    finally:
        store.close()


def _check_used_up(
    store: Store,
    key: str,
    algorithms: Sequence[Algorithm],
    costs: Sequence[int],
    asked: Sequence[_Asked],
) -> None:
    if len({span("year", int(each.now)) for each in asked}) > 1:
        return  # a year ended during the check, and the calendar quota was reset
    names = " and ".join(f"{one.name} of {one.quota}" for one in algorithms)
    passed = sum(each.cost for each in asked if each.allowed)
    if not LIMIT - max(costs) < passed <= LIMIT:
        raise AssertionError(f"{names}: {passed} passed instead of {LIMIT}")
    for verdict in _decide(store, key, algorithms, 0)[0]:
        if verdict.remaining != verdict.limit - passed:
            raise AssertionError(f"{names}: {passed} passed, but the verdict is {verdict}")


def _check_never_too_many(algorithm: Algorithm, asked: Sequence[_Asked]) -> None:
    # In whole microseconds, halves rounded up, as the algorithms count.
    passed = sorted((int(each.now * 1e6 + 0.5), each.cost) for each in asked if each.allowed)
    limit, period = algorithm.quota.limit, algorithm.quota.micros
    if sum(cost for _, cost in passed) < limit - 1:
        raise AssertionError(f"{algorithm.name}: not even the limit passed")
    for first, (start, _) in enumerate(passed):
        total = 0
        for now, cost in passed[first:]:
            since = now - start
            total += cost
            most = limit * (1 + since // period)
            if algorithm.name == "token-bucket":
                most = limit * (since + period) // period
            elif algorithm.name == "fixed-window" and first:
                most += limit  # the span may begin in the middle of a window
            if total > most:
                raise AssertionError(f"{algorithm.name}: {total} passed in {since} us, not {most}")


def _in_process(
    make_store: MakeStore, threads: int, keys: Sequence[str], begin: Callable[[], None]
) -> list[list[_Asked]]:
    store = make_store()
    try:
        return _in_threads(store, threads, keys, begin)
    finally:
        store.close()


def _in_threads(
    store: Store, threads: int, keys: Sequence[str], begin: Callable[[], None] | None = None
) -> list[list[_Asked]]:
    """Make the requests of each part in all threads at once; return their results by part."""
    barrier = threading.Barrier(threads, begin)
    answers: list[list[_Asked]] = [[] for _ in keys]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for key, (algorithms, costs), asked in zip(keys, _QUESTIONS, answers, strict=True):
                barrier.wait()
                for number in range(TRIES):
                    cost = costs[number % len(costs)]
                    verdicts, now = _decide(store, key, algorithms, cost)
                    asked.append(_Asked(now, cost, all(verdict.allowed for verdict in verdicts)))
        except threading.BrokenBarrierError:
            pass  # another thread has failed
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise AssertionError(f"a thread failed with {failures[0]!r}") from failures[0]
    return answers


def _decide(store: Store, key: str, algorithms: Sequence[Algorithm], cost: int) -> TakeResult:
    take = getattr(store, "take", None)
    if take is not None:
        answer: TakeResult = take(key, algorithms, cost)
        return answer

    def change(old: bytes | None, now: float) -> tuple[bytes | None, float, TakeResult]:
        if len(algorithms) > 1:
            new, ttl, verdicts = CombinedAlgorithm(algorithms).take(old, now, cost)
            return new, ttl, (verdicts, now)
        new, ttl, verdict = algorithms[0].take(old, now, cost)
        return new, ttl, ((verdict,), now)

    return update(store, key, change)
