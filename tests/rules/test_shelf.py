"""A shelf never holds more than it may, and lets go first of what was used least lately."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from wsgigate.rules.caching import Shelf


def test_what_was_used_last_stays() -> None:
    shelf: Shelf[str, int] = Shelf(30)
    for number, key in enumerate("abc"):
        shelf.put(key, number, 10)
    assert shelf.get("a") == 0
    shelf.put("d", 3, 10)
    assert [shelf.get(key) for key in "abcd"] == [0, None, 2, 3]
    assert (shelf.used, len(shelf)) == (30, 3)


def test_what_is_too_large_is_not_kept() -> None:
    shelf: Shelf[str, int] = Shelf(30)
    shelf.put("a", 0, 31)
    assert (shelf.get("a"), shelf.used) == (None, 0)


def test_a_new_value_takes_the_place_of_the_old_one() -> None:
    shelf: Shelf[str, int] = Shelf(30)
    shelf.put("a", 0, 20)
    shelf.put("a", 1, 15)
    assert (shelf.get("a"), shelf.used) == (1, 15)
    shelf.drop("a")
    shelf.drop("a")
    assert (shelf.get("a"), shelf.used) == (None, 0)


@given(some.lists(some.tuples(some.integers(0, 5), some.integers(1, 40), some.booleans())))
def test_it_never_holds_more_than_it_may(steps: list[tuple[int, int, bool]]) -> None:
    shelf: Shelf[int, int] = Shelf(100)
    for key, size, drop in steps:
        if drop:
            shelf.drop(key)
        else:
            shelf.put(key, size, size)
        kept = [shelf.get(key) for key in range(6)]
        assert shelf.used == sum(size for size in kept if size is not None) <= 100
