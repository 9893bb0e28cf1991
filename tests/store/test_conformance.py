"""The conformance suite of stores, and the stores of the package."""

from functools import partial

import pytest

from wsgigate.store import Store, StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock, check_store


class Bare:
    """A store with the three methods of the protocol and nothing besides."""

    def __init__(self, inner):
        self.get, self.swap, self.items, self.close = (
            inner.get,
            inner.swap,
            inner.items,
            inner.close,
        )


def test_the_memory_store_conforms():
    clock = FakeClock()
    check_store(lambda: MemoryStore(clock=clock), clock=clock)


def test_the_lmdb_store_conforms_between_processes_too(tmp_path):
    clock = FakeClock()
    check_store(partial(LmdbStore, tmp_path / "store", clock=clock), clock=clock, shared=True)


def test_a_store_with_three_methods_conforms():
    clock = FakeClock()
    check_store(lambda: Bare(MemoryStore(clock=clock)), clock=clock)


def test_a_store_with_the_real_time_conforms(tmp_path):
    check_store(partial(LmdbStore, tmp_path / "store"))


class Forgetful(MemoryStore):
    def swap(self, key, old, new, ttl):
        return super().swap(key, self.get(key)[0], new, ttl)


class Unordered(MemoryStore):
    def items(self, prefix):
        return reversed(list(super().items(prefix)))


class Jumbled(MemoryStore):
    def get_all(self, keys):
        return [self.get(key)[0] for key in sorted(keys)]


class Immortal(MemoryStore):
    def swap(self, key, old, new, ttl):
        return super().swap(key, old, new, 1e6)


class Racy(MemoryStore):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.turn = 0

    def swap(self, key, old, new, ttl):
        self.turn += 1
        return self.turn % 100 == 99 or super().swap(key, old, new, ttl)


@pytest.mark.parametrize("broken", [Forgetful, Unordered, Jumbled, Immortal, Racy])
def test_the_suite_finds_a_store_that_does_not_conform(broken):
    clock = FakeClock()
    with pytest.raises(AssertionError):
        check_store(lambda: broken(clock=clock), clock=clock)


def test_the_suite_finds_a_store_that_its_processes_do_not_share():
    with pytest.raises(AssertionError, match="another handle"):
        check_store(MemoryStore, shared=True)


def test_a_broken_store_fails_at_every_call():
    store = BrokenStore()
    assert isinstance(store, Store)
    for call in (
        lambda: store.get("key"),
        lambda: store.swap("key", None, b"", 1),
        lambda: store.update("key", lambda old, now: (old, 1, None)),
        lambda: list(store.items("")),
    ):
        with pytest.raises(StoreError, match="down"):
            call()
    store.close()
