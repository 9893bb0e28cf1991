"""Quotas are never exceeded by concurrent threads and processes."""

import threading
from functools import partial

import pytest

from tests.store.test_conformance import Bare
from wsgigate.store import StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, check_exact


def test_threads_never_exceed_a_quota_of_a_memory_store():
    check_exact(MemoryStore, threads=8)


def test_threads_never_exceed_a_quota_of_a_store_with_three_methods():
    check_exact(lambda: Bare(MemoryStore()))


def test_threads_never_exceed_a_quota_of_an_lmdb_store(tmp_path):
    check_exact(partial(LmdbStore, tmp_path / "store"), threads=8)


def test_processes_never_exceed_a_quota_of_an_lmdb_store(tmp_path):
    check_exact(partial(LmdbStore, tmp_path / "store"), processes=4, threads=2)


class Unlocked(MemoryStore):
    """Lets another thread in between its reading and its writing."""

    def update(self, key, change):
        old, now = self.get(key)
        new, ttl, result = change(old, now)
        threading.Event().wait(0.0001)
        super().update(key, lambda _, now: (new, ttl, None))
        return result


class Unwritten(MemoryStore):
    """Loses one write in many."""

    writes = 0

    def update(self, key, change):
        self.writes += 1
        if self.writes % 50:
            return super().update(key, change)
        return change(*self.get(key))[2]


class Fast(MemoryStore):
    """Tells a time that goes faster than its values expire."""

    def update(self, key, change):
        def earlier(old, now):
            new, ttl, (verdicts, now) = change(old, now * 2 - START)
            return new, ttl, (verdicts, (now + START) / 2)

        return super().update(key, earlier)


START = MemoryStore().get("")[1]


class Ready(MemoryStore):
    """Has a ``take`` of its own, and gives back what was taken."""

    asked = 0

    def take(self, key, algorithms, cost):
        self.asked += 1
        answers = [one.take(None, self.get(key)[1], cost)[2] for one in algorithms]
        return tuple(answers), self.get(key)[1]


@pytest.mark.parametrize("broken", [Unlocked, Unwritten, Fast, Ready])
def test_the_suite_rejects_a_store_that_allows_too_many(broken):
    with pytest.raises(AssertionError, match=r"passed (instead of|in|,)"):
        check_exact(broken)


def test_the_suite_finds_a_store_that_fails():
    with pytest.raises(AssertionError, match="the store is down") as caught:
        check_exact(BrokenStore)
    assert isinstance(caught.value.__cause__, StoreError)


def test_the_suite_needs_several_threads_or_processes():
    with pytest.raises(ValueError, match="at least two"):
        check_exact(MemoryStore, threads=1)
