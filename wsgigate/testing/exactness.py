"""Whether never one too many passes, however many processes and threads ask a store at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias
from uuid import uuid4

from wsgigate.rules.algorithms import (
    Algorithm,
    CalendarWindow,
    FixedWindow,
    SlidingWindow,
    Together,
    TokenBucket,
)
from wsgigate.rules.calendar import span
from wsgigate.rules.quota import LONGEST, Quota, Verdict
from wsgigate.store import Store, update
from wsgigate.testing.processes import in_processes

__all__ = ["check_exact"]

MakeStore: TypeAlias = Callable[[], Store]
Answer: TypeAlias = tuple[tuple[Verdict, ...], float]

TRIES = 60
"""How often each thread asks."""
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
"""These come back while they are asked; nothing comes back of the others."""

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
"""What is asked, and at what cost in turn."""


class _Asked(NamedTuple):
    now: float
    cost: int
    allowed: bool


def check_exact(make_store: MakeStore, *, processes: int = 0, threads: int = 4) -> None:
    """Ask a store about quotas from all sides at once; one too many is an AssertionError.

    Quotas of which nothing comes back meanwhile have to be used up to the last; those that do come
    back must at no time let more pass than their algorithm allows, by the store's own time. A store
    is asked by its ``take`` if it has one, else by ``update``.

    :param make_store: Makes a store: one for all threads of a process. The suite closes each, and
        only touches keys of its own.
    :param processes: How many processes ask, each by a store of its own; then *make_store* is
        pickled for them. With none it is the threads of this one.
    :param threads: How many threads ask in each process.
    :raises ValueError: Fewer than two would ask at once.
    """
    if max(processes, 1) * threads < 2:
        raise ValueError("at least two have to ask at once")
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
        return  # it was New Year's Eve, and all had their quota again
    names = " and ".join(f"{one.name} of {one.quota}" for one in algorithms)
    passed = sum(each.cost for each in asked if each.allowed)
    if not LIMIT - max(costs) < passed <= LIMIT:
        raise AssertionError(f"{names}: {passed} passed instead of {LIMIT}")
    for verdict in _decide(store, key, algorithms, 0)[0]:
        if verdict.remaining != verdict.limit - passed:
            raise AssertionError(f"{names}: {passed} passed, and it tells of {verdict}")


def _check_never_too_many(algorithm: Algorithm, asked: Sequence[_Asked]) -> None:
    # in whole microseconds, as the algorithms count: halves up
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
                most += limit  # it may be in the midst of a window
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
    """Ask every question by all threads at once; return for each what became of it."""
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


def _decide(store: Store, key: str, algorithms: Sequence[Algorithm], cost: int) -> Answer:
    take = getattr(store, "take", None)
    if take is not None:
        answer: Answer = take(key, algorithms, cost)
        return answer

    def change(old: bytes | None, now: float) -> tuple[bytes | None, float, Answer]:
        if len(algorithms) > 1:
            new, ttl, verdicts = Together(algorithms).take(old, now, cost)
            return new, ttl, (verdicts, now)
        new, ttl, verdict = algorithms[0].take(old, now, cost)
        return new, ttl, ((verdict,), now)

    return update(store, key, change)
