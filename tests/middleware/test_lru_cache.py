"""An LRU cache never exceeds its size, and evicts the least recently used values first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from wsgigate.middleware.stale import LruCache


def test_the_least_recently_used_value_is_evicted() -> None:
    cache: LruCache[str, int] = LruCache(30)
    for number, key in enumerate("abc"):
        cache.put(key, number, 10)
    assert cache.get("a") == 0
    cache.put("d", 3, 10)
    assert [cache.get(key) for key in "abcd"] == [0, None, 2, 3]
    assert (cache.used, len(cache)) == (30, 3)


def test_a_value_larger_than_the_cache_is_not_stored() -> None:
    cache: LruCache[str, int] = LruCache(30)
    cache.put("a", 0, 31)
    assert (cache.get("a"), cache.used) == (None, 0)


def test_a_new_value_replaces_the_old_one() -> None:
    cache: LruCache[str, int] = LruCache(30)
    cache.put("a", 0, 20)
    cache.put("a", 1, 15)
    assert (cache.get("a"), cache.used) == (1, 15)
    cache.drop("a")
    cache.drop("a")
    assert (cache.get("a"), cache.used) == (None, 0)


@given(some.lists(some.tuples(some.integers(0, 5), some.integers(1, 40), some.booleans())))
def test_the_values_never_exceed_the_size(steps: list[tuple[int, int, bool]]) -> None:
    cache: LruCache[int, int] = LruCache(100)
    for key, size, drop in steps:
        if drop:
            cache.drop(key)
        else:
            cache.put(key, size, size)
        kept = [cache.get(key) for key in range(6)]
        assert cache.used == sum(size for size in kept if size is not None) <= 100
