"""Tests of :mod:`tests.support.objects`: what is kept is found, wherever it is."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.objects import bytes_kept, count_kept, hold_locks, kept, part, texts_kept


class Mark:
    """What is looked for."""


class Slots:
    __slots__ = ("_hidden",)

    def __init__(self, hidden: object) -> None:
        self._hidden = hidden

    def method(self) -> object:
        return self._hidden


def closure(mark: Mark) -> Callable[[], Mark]:
    return lambda: mark


def generator(mark: Mark) -> Iterator[Mark]:
    yield mark
    yield mark


def begun(mark: Mark) -> Iterator[Mark]:
    made = generator(mark)
    next(made)
    return made


def cached(mark: Mark) -> Callable[[object], object]:
    @lru_cache
    def answer(_: object) -> object:
        return mark

    answer("question")
    return answer


WAYS: dict[str, Callable[[Mark], object]] = {
    "itself": lambda mark: mark,
    "an attribute": lambda mark: SimpleNamespace(_hidden=mark),
    "a slot": Slots,
    "a bound method": lambda mark: Slots(mark).method,
    "a closure": closure,
    "a default": lambda mark: lambda found=mark: found,
    "a partial": lambda mark: partial(print, mark),
    "a begun generator": begun,
    "a cached result": cached,
    "a cached argument": lambda mark: (asked := lru_cache(id), asked(mark), asked)[-1],
    "a value": lambda mark: {"a": {1: mark}},
    "a key": lambda mark: {mark: "a"},
    "deep inside": lambda mark: [(deque([{frozenset([mark])}.pop()]),)],
    "a builtin method": lambda mark: [mark].append,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_kept_is_found(way: str) -> None:
    mark = Mark()
    root = WAYS[way](mark)
    assert part(Mark, root) is mark
    assert count_kept(Mark, root) == 1
    assert list(kept(root, but=[root])) == []


def test_strings_are_found_as_keys_and_values() -> None:
    asked: Any = lru_cache(len)
    asked("question")
    assert texts_kept({"key": ["value"]}, asked) >= {"key", "value", "question"}


def test_what_all_share_is_not_followed() -> None:
    thread = threading.Thread(target=Mark().__init__)
    assert count_kept(Mark, thread, Mark, pytest) == 0
    assert count_kept(Mark, WAYS) == 0, "globals of functions"
    with pytest.raises(AssertionError, match="it keeps no Mark"):
        part(Mark, thread)


def test_all_locks_are_held_until_the_end() -> None:
    condition, lock = threading.Condition(), threading.Lock()
    root = SimpleNamespace(one=condition, other=[lock])
    taken: list[bool] = []

    def take() -> None:
        taken.extend((condition.acquire(blocking=False), lock.acquire(blocking=False)))

    with hold_locks(root):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert taken == [False, False]
    assert not lock.locked()
    with pytest.raises(AssertionError, match="it has no lock"), hold_locks([]):
        pass


def test_bytes_are_counted_while_they_are_kept() -> None:
    shelf: list[bytes] = []
    assert bytes_kept(lambda: bytes(1_000_000)) < 100_000
    assert bytes_kept(lambda: shelf.append(bytes(1_000_000))) > 1_000_000
