"""The LMDB store stays within its size, and recovers when it is full."""

import itertools
import os
from typing import Any

import lmdb
import pytest

from tests.support.objects import part
from wsgigate.store import StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.lmdb_environment import FULL_LOOKS, RETRY_EVERY, SWEEP_LOOKS, Environment


def count(old, now):
    number = int(old or 0) + 1
    return b"%d" % number, 60.0, number


def entries(folder):
    with lmdb.open(str(folder), readonly=True) as env, env.begin() as txn:
        return txn.stat()["entries"]


def test_the_file_stays_small_while_callers_come_and_go(folder, clock, store):
    for number in range(30_000):
        store.update(f"caller/{number}", lambda old, now: (bytes(100), 10.0, None))
        clock.advance(0.05)  # so 200 are alive at any time
    store.close()
    assert entries(folder) < 1000
    assert (folder / "data.mdb").stat().st_size == 1024 * 1024


def test_a_sweep_continues_where_that_of_another_worker_stopped(folder, clock):
    first = LmdbStore(folder, clock=clock)
    for number in range(2000):
        first.swap(f"caller/{number:05}", None, b"", 10)
    first.close()
    clock.advance(100)
    for _ in range(100):
        short_lived = LmdbStore(folder, clock=clock)
        for _ in range(33):
            short_lived.update("one", count)
        short_lived.close()
    assert entries(folder) < 100


def fill(store, prefix, size, ttl):
    """Add values until the store refuses; return how many it took, and what it says then."""
    for number in range(100_000):
        try:
            store.swap(f"{prefix}/{number}", None, bytes(size), ttl)
        except StoreError as error:
            return number, str(error)
    raise AssertionError("the store is never full")


@pytest.mark.parametrize("size", [16, 1000, 4000, 60_000])
def test_a_full_store_accepts_writes_after_a_sweep(folder, clock, size):
    store = LmdbStore(folder, map_size=1024 * 1024, clock=clock)
    stored, words = fill(store, "first", size, 10)
    assert words == (
        f"{folder}/data.mdb is full of values that have not expired; "
        "map_size is 1048576 bytes, raise it"
    )
    for _ in range(4):
        clock.advance(11)
        again, _ = fill(store, "again", size, 10)
        assert stored * 0.8 - 40 < again < stored * 1.2 + 40
    store.close()
    assert (folder / "data.mdb").stat().st_size < 6 * 1024 * 1024


def test_values_of_a_full_store_can_be_changed_and_removed(folder, clock):
    store = LmdbStore(folder, map_size=1024 * 1024, clock=clock)
    stored, _ = fill(store, "key", 1000, 3600)
    for number in range(stored):
        assert store.swap(f"key/{number}", bytes(1000), b"x" * 1000, 3600)
    for number in range(stored):
        assert store.swap(f"key/{number}", b"x" * 1000, None, 0)
    clock.advance(RETRY_EVERY)
    assert store.swap("new", None, b"", 3600)
    store.close()


def test_a_write_to_a_full_store_does_not_scan_all_values(folder, clock):
    store = LmdbStore(folder, map_size=4 * 1024 * 1024, clock=clock)
    stored, _ = fill(store, "live", 100, 3600)
    assert stored > 3 * FULL_LOOKS
    looks = []
    environment: Any = part(Environment, store)
    environment.sweep = lambda txn, now, looked: looks.append(looked)
    for _ in range(10):
        clock.advance(RETRY_EVERY)
        with pytest.raises(StoreError, match="full of values"):
            store.swap("more", None, b"", 3600)
    assert looks == [FULL_LOOKS] * 10
    store.close()


def change_for_ever(store):
    for number in itertools.count():
        store.update(f"live/{number % 5000}", lambda old, now: (os.urandom(50), 3600, None))


class Counting:
    """Counts what is done with a transaction of LMDB, and then does it."""

    def __init__(self, environment):
        self.transactions = self.sweeps = self.growths = 0
        begin, sweep, grow = environment.begin, environment.sweep, environment.grow

        def begun(*arguments):
            self.transactions += 1
            return begin(*arguments)

        def swept(*arguments):
            self.sweeps += 1
            sweep(*arguments)

        def grown(*arguments):
            self.growths += 1
            return grow(*arguments)

        environment.begin, environment.sweep, environment.grow = begun, swept, grown


@pytest.mark.parametrize("held", [False, True])
def test_each_new_caller_costs_a_full_store_one_lookup(folder, clock, pinned, held):
    """Requests from new addresses must not cost milliseconds each."""
    store = LmdbStore(folder, map_size=1024 * 1024, clock=clock)
    fill(store, "live", 100, 3600)
    if held:  # not even those that are there can be changed
        pinned()
        with pytest.raises(StoreError):
            change_for_ever(store)
    clock.advance(RETRY_EVERY)
    counted = Counting(part(Environment, store))
    refused = 0
    for number in range(1000):
        with pytest.raises(StoreError, match="is full of values"):
            store.swap(f"new/{number}", None, b"", 3600)
        refused += 1
    assert 1000 == refused <= counted.transactions <= 1001 + counted.sweeps
    assert counted.sweeps <= 8
    assert counted.growths <= 8
    before = counted.sweeps, counted.growths
    clock.advance(RETRY_EVERY)
    with pytest.raises(StoreError, match="is full of values"):
        store.swap("new", None, b"", 3600)
    assert before < (counted.sweeps, counted.growths), "it is tried again, as it may help by now"
    store.close()


def test_a_full_store_finds_few_expired_among_many_live_values(folder, clock):
    store = LmdbStore(folder, map_size=4 * 1024 * 1024, clock=clock)
    for number in range(200):
        store.swap(f"z/{number}", None, bytes(1000), 10)
    fill(store, "live", 100, 3600)
    clock.advance(11)
    failed = 0
    while failed < 20:
        try:
            store.swap("more", None, b"", 3600)
        except StoreError:
            failed += 1
            clock.advance(RETRY_EVERY)
        else:
            break
    assert 0 < failed < 20
    store.close()


def test_a_map_enlarged_by_another_process_is_used(output, folder):
    small = LmdbStore(folder, map_size=1024 * 1024)
    small.update("key", count)
    text = """
import sys
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.lmdb_environment import SWEEP_LOOKS
store = LmdbStore(sys.argv[1], map_size=32 * 1024 * 1024)
for number in range(500):
    store.swap(f"large/{number}", None, bytes(20000), 60)
"""
    output(text, folder)
    assert small.update("key", count) == 2
    assert len(list(small.items("large/"))) == 500
    small.close()


def test_a_removed_file_is_made_again_in_the_same_place(folder, clock, store):
    store.update("key", count)
    for path in folder.iterdir():
        path.unlink()
    clock.advance(1)
    for _ in range(2):
        store.update("key", count)
    store.close()
    assert LmdbStore(folder, clock=clock).get("key")[0] is not None


def test_expired_values_are_removed_by_writes_that_add_none(folder, clock, store):
    for number in range(500):
        store.swap(f"caller/{number}", None, b"", 10)
    store.swap("renewed", None, b"1", 1e6)
    clock.advance(11)
    for _ in range(500 // 64 + 2):
        clock.advance(1)
        store.update("renewed", lambda old, now: (b"again", 1e6, None))
    assert store.usage()["items"] == 1


def test_a_write_examines_a_bounded_number_of_values(folder, clock, store):
    for number in range(2000):
        store.swap(f"caller/{number}", None, b"", 10)
    clock.advance(11)
    before = store.usage()["items"]
    store.swap("new", None, b"", 10)
    assert before - SWEEP_LOOKS < store.usage()["items"] < before


def test_a_full_store_rejects_a_larger_value(folder, clock):
    store = LmdbStore(folder, map_size=1024 * 1024, clock=clock)
    stored, _ = fill(store, "key", 1000, 3600)
    with pytest.raises(StoreError, match="full of values"):
        store.swap("key/0", bytes(1000), bytes(1001), 3600)
    assert store.swap("key/0", bytes(1000), bytes(999), 3600)
    assert store.usage()["items"] == stored
    store.close()


def test_the_file_begins_small_and_doubles_up_to_its_bound(folder, clock):
    megabyte = 1024 * 1024
    store = LmdbStore(folder, map_size=5 * megabyte, clock=clock)
    lengths = set()
    for number in range(100_000):
        try:
            store.swap(f"key/{number}", None, bytes(4000), 3600)
        except StoreError:
            break
        finally:
            lengths.add((folder / "data.mdb").stat().st_size // megabyte)
    assert sorted(lengths) == [1, 2, 4, 8, 9]
    used = store.usage()
    assert used["limit"] == 5 * megabyte < used["used"] < 5.5 * megabyte
    store.close()


def test_reads_do_not_grow_the_file(folder, clock, store):
    for number in range(100):
        store.swap(f"caller/{number}", None, b"", 10)
    before = (folder / "data.mdb").read_bytes()
    for _ in range(100):
        clock.advance(1)
        for number in range(100):
            store.get(f"caller/{number}")
        list(store.items(""))
        store.usage()
    assert (folder / "data.mdb").read_bytes() == before


def test_a_file_that_grows_while_it_is_mapped_is_no_failure(folder, clock):
    """Another process fills the file, and makes it larger each time that this one looks."""
    store = LmdbStore(folder, map_size=64 * 1024 * 1024, clock=clock)
    store.swap("health/a", None, b"1", 3600)
    environment = part(Environment, store)
    begin, sizes = environment.begin, iter((2, 4, 8, 16))

    def begun(*arguments):
        if (size := next(sizes, None)) is None:
            return begin(*arguments)
        os.truncate(folder / "data.mdb", size * 1024 * 1024)
        raise lmdb.MapResizedError("mdb_txn_begin")

    environment.begin = begun
    assert store.update("health/a", lambda old, now: (b"2", 60.0, old)) == b"1"
    assert environment.size == 16 * 1024 * 1024
    sizes = iter((16, 16))  # it is not, and LMDB says so again
    with pytest.raises(StoreError, match="mdb_txn_begin"):
        store.update("health/a", lambda old, now: (b"3", 60.0, old))
    store.close()
