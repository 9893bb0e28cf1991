"""The memory store: bounded, and fast when it is full."""

import os
import threading

import pytest

from tests.support.objects import count_kept
from wsgigate.store.memory import MemoryStore


def names(store):
    return [name for name, _ in store.items("")]


def test_a_full_store_evicts_the_value_nearest_to_its_expiry(clock):
    store = MemoryStore(max_items=3, clock=clock)
    for name, ttl in (("hour", 3600), ("minute", 60), ("day", 86400), ("week", 604800)):
        store.swap(name, None, b"", ttl)
    assert names(store) == ["day", "hour", "week"]


def test_a_full_store_evicts_expired_values_first(clock):
    store = MemoryStore(max_items=3, clock=clock)
    for name, ttl in (("soon", 20), ("gone", 10), ("late", 3600)):
        store.swap(name, None, b"", ttl)
    clock.advance(11)
    store.swap("new", None, b"", 3600)
    assert names(store) == ["late", "new", "soon"]


def test_a_renewed_value_is_evicted_by_its_new_expiry(clock):
    store = MemoryStore(max_items=2, clock=clock)
    store.swap("renewed", None, b"", 10)
    store.swap("other", None, b"", 60)
    store.swap("renewed", b"", b"", 3600)
    store.swap("new", None, b"", 600)
    assert names(store) == ["new", "renewed"]


def test_a_value_with_an_earlier_expiry_is_evicted_by_it(clock):
    store = MemoryStore(max_items=2, clock=clock)
    store.swap("shortened", None, b"", 3600)
    store.swap("other", None, b"", 600)
    store.swap("shortened", b"", b"", 10)
    store.swap("new", None, b"", 60)
    assert names(store) == ["new", "other"]


def test_a_flood_of_new_callers_does_not_evict_an_exhausted_quota(clock):
    store = MemoryStore(max_items=100, clock=clock)
    store.swap("hot", None, b"used up", 900)
    for number in range(10_000):
        store.swap(f"new/{number}", None, b"", 9)
    assert store.get("hot")[0] == b"used up"
    assert len(names(store)) == 100


def test_expired_values_do_not_accumulate(clock):
    store = MemoryStore(clock=clock)
    for number in range(5000):
        store.swap(f"key/{number}", None, b"", 10)
        clock.advance(1)
    assert count_kept(tuple, store) < 30 + 150


def test_renewed_and_removed_values_leave_no_queue_entries(clock):
    store = MemoryStore(clock=clock)
    for number in range(5000):
        store.swap("renewed", store.get("renewed")[0], b"%d" % number, 60.0 - number % 7)
        store.swap("removed", None, b"", 60)
        store.swap("removed", b"", None, 0)
        clock.advance(0.01)
    assert count_kept(tuple, store) < 150


def test_a_write_into_a_full_store_examines_few_values(clock):
    """Counted, not timed: how often items are compared when 20,000 live ones are in the way."""
    looks = 0

    class Counted(float):
        def __lt__(self, other):
            nonlocal looks
            looks += 1
            return float(self) < float(other)

    store = MemoryStore(max_items=20_000, clock=clock)
    for number in range(20_000):
        store.swap(f"old/{number}", None, b"", Counted(1000 + number))
    looks = 0
    for number in range(1000):
        store.swap(f"new/{number}", None, b"", Counted(50_000 + number))
    assert looks < 1000 * 64


def test_a_store_holds_at_least_one_value():
    with pytest.raises(ValueError, match="max_items is at least 1, got 0"):
        MemoryStore(max_items=0)


def test_a_child_forked_while_another_thread_writes_can_use_its_copy():
    store = MemoryStore()
    store.swap("key", None, b"before", 60)
    going = True

    def write():
        while going:
            store.update("busy", lambda old, now: (b"x" * (len(old or b"") % 50 + 1), 60.0, None))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                swapped = store.swap("key", b"before", b"after", 60)
                os._exit(0 if swapped and store.get("key")[0] == b"after" else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        going = False
        thread.join()
    assert store.get("key")[0] == b"before"
