"""Long polling: waiting threads share the reads, and a change in this process ends the wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import pytest

from tests.support.objects import hold_locks, texts_kept
from tests.support.waiting import until
from wsgigate.registry import Registry
from wsgigate.registry.listing import LongPoll
from wsgigate.rules.registry import Registered
from wsgigate.store import StoreError
from wsgigate.store.memory import MemoryStore

ONE = Registered("users", "u-1", "10.0.0.1", 3001)


class Looks:
    """What is looked at; notes how often."""

    def __init__(self) -> None:
        self.versions: dict[str | None, int] = {}
        self.count = 0
        self.failing = False
        self.looked = threading.Event()

    def __call__(self, service: str | None) -> int:
        self.count += 1
        self.looked.set()
        if self.failing:
            raise StoreError("the store is down")
        return self.versions.get(service, 0)


class Waits(Protocol):
    """What can be waited at: a :class:`LongPoll`, or a registry."""

    def wait(self, service: str | None, version: int, timeout: float) -> int: ...


def waiting(waiting: Waits, service: str | None, version: int, timeout: float = 20.0) -> Waiter:
    waiter = Waiter(waiting, service, version, timeout)
    waiter.start()
    return waiter


class Waiter(threading.Thread):
    def __init__(self, waiting: Waits, service: str | None, version: int, timeout: float) -> None:
        super().__init__()
        self.arguments = (service, version, timeout)
        self.waiting = waiting
        self.found = -1

    def run(self) -> None:
        self.found = self.waiting.wait(*self.arguments)

    def ended(self) -> int:
        self.join(30)
        assert not self.is_alive()
        return self.found


def test_a_different_version_is_returned_at_once() -> None:
    looks = Looks()
    looks.versions["users"] = 5
    assert LongPoll(looks).wait("users", 4, 20) == 5
    assert LongPoll(looks).wait("users", 0, 0) == 5


def test_the_same_version_is_returned_after_the_timeout() -> None:
    looks = Looks()
    assert LongPoll(looks, every=0.001).wait("users", 0, 0.3) == 0
    assert looks.count > 1
    assert LongPoll(looks).wait("users", 0, 0) == 0


def test_a_change_by_another_process_is_seen_at_the_next_read() -> None:
    looks = Looks()
    waiter = waiting(LongPoll(looks, every=0.01), "users", 0)
    looks.looked.wait(30)
    looks.versions["users"] = 1
    assert waiter.ended() == 1


def test_a_change_by_this_process_ends_the_wait_at_once() -> None:
    looks = Looks()
    several = LongPoll(looks, every=1000)
    waiters = [waiting(several, service, 0) for service in ("users", "users", None)]
    until(lambda: several.waiting == 3)
    looks.versions = {"users": 1, None: 2}
    several.notify("users")
    assert [waiter.ended() for waiter in waiters] == [1, 1, 2]
    assert several.waiting == 0
    assert "users" not in texts_kept(several, but=[looks]), "versions are forgotten"


def test_waiting_threads_share_the_reads_of_the_store() -> None:
    looks = Looks()
    several = LongPoll(looks, every=1000)
    waiters = [waiting(several, "users", 0) for _ in range(20)]
    until(lambda: several.waiting == 20)
    assert looks.count == 1
    several.stop()
    assert [waiter.ended() for waiter in waiters] == [0] * 20
    assert looks.count == 1


def test_the_version_counts_as_unchanged_while_the_store_fails() -> None:
    looks = Looks()
    looks.failing = True
    assert LongPoll(looks, every=0.001).wait("users", 7, 0.01) == 7


def test_stop_ends_all_waits() -> None:
    several = LongPoll(Looks())
    several.stop()
    assert several.wait("users", 0, 1000) == 0


def test_a_forked_process_has_waits_of_its_own(
    in_child: Callable[[Callable[[], bool]], bool],
) -> None:
    looks = Looks()
    several = LongPoll(looks)
    with hold_locks(several, but=[looks]):
        assert in_child(lambda: several.wait("users", 0, 0) == 0)


@pytest.mark.parametrize(
    ("timeout", "moments"), [(1e9, [0.0, 24.99, 24.99, 25.0]), (-5.0, [0.0, 0.0, 0.0])]
)
def test_a_registry_limits_the_duration_of_a_wait(timeout: float, moments: list[float]) -> None:
    times = iter(moments)
    registry = Registry(MemoryStore(), clock=lambda: next(times))
    assert registry.wait("users", 0, timeout) == 0
    assert list(times) == []


def test_a_registration_ends_the_wait_of_a_request() -> None:
    store = MemoryStore()
    here, there = Registry(store), Registry(store)
    waiters = [waiting(each, "users", 0) for each in (here, there)]
    here.register(ONE)
    assert [waiter.ended() for waiter in waiters] == [here.version("users")] * 2
