"""What operators change about instances: the stored value, and workers that share it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import reduce
from typing import Any

import pytest

from wsgigate.coordination.overrides import (
    ACTIVE,
    AUTOMATIC,
    DRAINED,
    EJECTED,
    LONGEST,
    MOST,
    RESTORING,
    Override,
    OverrideChanged,
    Overrides,
    changed,
    in_force,
    read,
)
from wsgigate.store import StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock

ONE, OTHER = "http://10.0.0.4:8000", "http://10.0.0.5:8000"


def table(raw: bytes | None, now: float) -> dict[str, tuple[str, int | None]]:
    entries = in_force(read(raw)[1], now).get("orders", {})
    return {url: (each.state, each.weight) for url, each in entries.items() if not each.automatic}


# now, what is changed, and the overrides that are in force afterwards
STORIES: dict[str, list[tuple[float, dict[str, Any], dict[str, tuple[str, int | None]]]]] = {
    "drained, and active again": [
        (0, {"url": ONE, "state": DRAINED}, {ONE: (DRAINED, None)}),
        (1e9, {"url": OTHER, "state": EJECTED}, {ONE: (DRAINED, None), OTHER: (EJECTED, None)}),
        (1e9, {"url": ONE, "state": ACTIVE}, {OTHER: (EJECTED, None)}),
    ],
    "another weight, which drained keeps": [
        (0, {"url": ONE, "state": ACTIVE, "weight": 5}, {ONE: (ACTIVE, 5)}),
        (1, {"url": ONE, "state": DRAINED, "weight": 5}, {ONE: (DRAINED, 5)}),
        (2, {"url": ONE, "state": ACTIVE}, {}),
    ],
    "for a time, after which it is removed": [
        (0, {"url": ONE, "state": DRAINED, "lasts": 10}, {ONE: (DRAINED, None)}),
        (9, {"url": OTHER, "state": EJECTED}, {ONE: (DRAINED, None), OTHER: (EJECTED, None)}),
        (10, {"url": OTHER, "state": DRAINED}, {OTHER: (DRAINED, None)}),
    ],
    "again, with a new time": [
        (0, {"url": ONE, "state": DRAINED, "lasts": 10}, {ONE: (DRAINED, None)}),
        (5, {"url": ONE, "state": DRAINED}, {ONE: (DRAINED, None)}),
        (99, {"url": OTHER, "state": DRAINED}, {ONE: (DRAINED, None), OTHER: (DRAINED, None)}),
    ],
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_each_sequence_of_changes_leads_to_its_overrides(
    story: list[tuple[float, dict[str, Any], dict[str, tuple[str, int | None]]]],
) -> None:
    raw: bytes | None = None
    for number, (now, change, expected) in enumerate(story, 1):
        raw, made, done = changed(raw, "orders", now=now, by="admin", **change)
        assert done
        assert (made.change, made.since, made.by) == (number, now, "admin")
        assert table(raw, now) == expected, change


def test_active_is_stored_for_a_minute_so_that_every_worker_sees_it() -> None:
    raw, made, _ = changed(None, "orders", ONE, 100.0, state=ACTIVE)
    assert made.automatic
    assert ONE in in_force(read(raw)[1], 100 + RESTORING - 1)["orders"]
    assert in_force(read(raw)[1], 100 + RESTORING) == {}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"state": "up"}, "state: one of active, drained, ejected, not 'up'"),
        (
            {"state": ACTIVE, "weight": 0},
            "weight: a whole number from 1 to 65535, not 0; the state",
        ),
        ({"state": ACTIVE, "weight": True}, "weight: a whole number"),
        ({"state": ACTIVE, "weight": 65536}, "weight: a whole number"),
        ({"state": DRAINED, "lasts": 0}, "for: more than 0 seconds and at most ten years"),
        ({"state": DRAINED, "lasts": LONGEST + 1}, "for: more than 0 seconds"),
        ({"state": DRAINED, "lasts": float("nan")}, "for: more than 0 seconds"),
        ({"state": ACTIVE, "lasts": 5}, "for: active without a weight has no end"),
        ({"state": DRAINED, "by": "a\nb"}, "by: a text of one line"),
    ],
)
def test_invalid_arguments_are_named(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        changed(None, "orders", ONE, 0.0, **arguments)


def test_the_number_is_bounded_and_ended_ones_make_room() -> None:
    raw: bytes | None = None
    for at in range(MOST):
        raw, _, _ = changed(raw, "orders", f"http://h{at}", 0.0, state=DRAINED, lasts=10)
    with pytest.raises(ValueError, match=f"at most {MOST} changed instances"):
        changed(raw, "orders", ONE, 9.0, state=DRAINED)
    raw, _, _ = changed(raw, "orders", ONE, 10.0, state=DRAINED)
    assert table(raw, 10.0) == {ONE: (DRAINED, None)}


def test_long_names_are_bounded_by_their_bytes_and_can_be_made_active() -> None:
    def drained(raw: bytes | None, at: int) -> bytes | None:
        return changed(raw, "orders", f"http://{'h' * 200}{at}", 0.0, state=DRAINED)[0]

    raw = reduce(drained, range(200), None)
    with pytest.raises(ValueError, match="60000 bytes in all"):
        reduce(drained, range(200, MOST), raw)
    raw, _, _ = changed(raw, "orders", f"http://{'h' * 200}0", 0.0, state=ACTIVE)
    assert raw is not None
    assert len(raw) < 64 * 1024


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"[1]", b'{"a": 1}', b'[1,{"a":{"b":["up",null,0,null,"",1]}}]', b"[1,[2]]"],
)
def test_malformed_values_have_no_overrides(raw: bytes) -> None:
    assert read(raw) == (0, {})


class Recorded:
    """A pool that records what it is given."""

    def __init__(self) -> None:
        self.overrides: dict[str, tuple[str, int | None]] = {}
        self.restored: list[str] = []
        self.times = 0

    def override(self, overrides: Mapping[str, Override], restored: Collection[str] = ()) -> None:
        self.times += 1
        self.restored += restored
        self.overrides = {
            url: (each.state, each.weight) for url, each in overrides.items() if not each.automatic
        }


class Failing(MemoryStore):
    broken = False

    def get(self, key: str) -> tuple[bytes | None, float]:
        if self.broken:
            raise StoreError("out of order")
        return super().get(key)


class Worker:
    def __init__(self, store: Any, clock: FakeClock) -> None:
        self.orders, self.users = Recorded(), Recorded()
        pools = {"orders": self.orders, "users": self.users}
        self.overrides = Overrides(store, pools, clock=clock)

    def drain(self, url: str = ONE, **options: Any) -> None:
        self.overrides.set("orders", url, DRAINED, **options)


@pytest.fixture
def store(clock: FakeClock) -> Failing:
    return Failing(clock=lambda: clock() + 1_000_000)


@pytest.fixture
def workers(store: Failing, clock: FakeClock) -> tuple[Worker, Worker]:
    return Worker(store, clock), Worker(store, clock)


def test_a_change_is_in_force_here_at_once_and_elsewhere_after_a_look(
    workers: tuple[Worker, Worker],
) -> None:
    one, other = workers
    one.drain()
    assert one.orders.overrides == {ONE: (DRAINED, None)}
    assert other.orders.overrides == {}
    other.overrides.look()
    assert other.orders.overrides == {ONE: (DRAINED, None)}
    assert (one.users.overrides, other.users.overrides) == ({}, {})


def test_a_look_that_finds_no_change_touches_no_pool(workers: tuple[Worker, Worker]) -> None:
    one, other = workers
    one.drain()
    for _ in range(5):
        other.overrides.look()
    assert other.orders.times == 1


def test_a_worker_that_starts_knows_the_overrides_after_its_first_look(
    workers: tuple[Worker, Worker], store: Failing, clock: FakeClock
) -> None:
    workers[0].drain()
    clock.advance(86_400 * 30)
    successor = Worker(store, clock)
    successor.overrides.look()
    assert successor.orders.overrides == {ONE: (DRAINED, None)}
    assert successor.overrides.of("orders")[ONE].state == DRAINED


def test_an_override_ends_by_itself_also_while_the_store_fails(
    workers: tuple[Worker, Worker], store: Failing, clock: FakeClock
) -> None:
    one, other = workers
    one.drain(lasts=10)
    one.drain(OTHER)
    other.overrides.look()
    store.broken = True
    clock.advance(9.9)
    other.overrides.look()
    assert other.orders.overrides == {ONE: (DRAINED, None), OTHER: (DRAINED, None)}
    clock.advance(0.1)
    other.overrides.look()
    assert other.orders.overrides == {OTHER: (DRAINED, None)}
    assert list(other.overrides.of("orders")) == [OTHER]
    store.broken = False
    other.overrides.look()
    assert other.orders.overrides == {OTHER: (DRAINED, None)}


def test_active_ends_automatic_ejections_once_in_every_worker(
    workers: tuple[Worker, Worker],
) -> None:
    one, other = workers
    one.drain()
    other.overrides.look()
    one.overrides.set("orders", ONE, ACTIVE)
    one.drain(OTHER)
    for _ in range(3):
        one.overrides.look()
        other.overrides.look()
    assert (one.orders.restored, other.orders.restored) == ([ONE], [ONE])


def test_a_store_that_was_wiped_has_no_overrides(
    workers: tuple[Worker, Worker], store: Failing
) -> None:
    one, other = workers
    one.drain()
    other.overrides.look()
    [(key, raw)] = store.items("overrides/")
    store.swap(key, raw, None, 0)
    other.overrides.look()
    assert other.orders.overrides == {}
    one.drain(OTHER)
    one.overrides.look()
    assert one.orders.overrides == {OTHER: (DRAINED, None)}


def test_of_two_operators_the_second_learns_that_the_first_was_faster(
    workers: tuple[Worker, Worker],
) -> None:
    one, other = workers

    def untouched(override: Override) -> bool:
        return override == AUTOMATIC

    one.overrides.set("orders", ONE, DRAINED, matches=untouched)
    with pytest.raises(OverrideChanged) as caught:
        other.overrides.set("orders", ONE, EJECTED, matches=untouched)
    assert caught.value.override.state == DRAINED
    other.overrides.set("orders", OTHER, EJECTED, matches=untouched)
    one.overrides.look()
    assert one.orders.overrides == {ONE: (DRAINED, None), OTHER: (EJECTED, None)}


def test_a_read_that_began_before_a_change_does_not_undo_it(clock: FakeClock) -> None:
    class Slow(MemoryStore):
        meanwhile: Any = None

        def get(self, key: str) -> tuple[bytes | None, float]:
            found = super().get(key)
            if self.meanwhile is not None:
                action, self.meanwhile = self.meanwhile, None
                action()
            return found

    store = Slow()
    worker = Worker(store, clock)
    store.meanwhile = worker.drain
    worker.overrides.look()
    assert worker.orders.overrides == {ONE: (DRAINED, None)}


def test_both_writers_of_a_contended_value_succeed(clock: FakeClock) -> None:
    """A store without an update of its own: compare and swap, in a loop."""

    class Swapping:
        def __init__(self) -> None:
            self.inner = MemoryStore()
            self.meanwhile: Any = None

        def get(self, key: str) -> tuple[bytes | None, float]:
            return self.inner.get(key)

        def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
            if self.meanwhile is not None:
                action, self.meanwhile = self.meanwhile, None
                action()
            return self.inner.swap(key, old, new, ttl)

        def items(self, prefix: str) -> Any:
            return self.inner.items(prefix)

        def close(self) -> None:
            self.inner.close()

    store = Swapping()
    one, other = Worker(store, clock), Worker(store, clock)
    store.meanwhile = lambda: other.drain(OTHER)
    one.drain()
    assert one.orders.overrides == {ONE: (DRAINED, None), OTHER: (DRAINED, None)}


def test_overrides_survive_the_processes_that_made_them(tmp_path: Any, clock: FakeClock) -> None:
    first = LmdbStore(str(tmp_path / "store"))
    Worker(first, clock).drain()
    first.close()
    again = LmdbStore(str(tmp_path / "store"))
    successor = Worker(again, clock)
    successor.overrides.look()
    again.close()
    assert successor.orders.overrides == {ONE: (DRAINED, None)}


def test_a_store_in_memory_is_not_shared(clock: FakeClock, tmp_path: Any) -> None:
    lmdb = LmdbStore(str(tmp_path / "store"))
    assert Overrides(lmdb, {}).shared
    assert not Overrides(MemoryStore(), {}).shared


def test_the_value_is_small(store: Failing, clock: FakeClock) -> None:
    Worker(store, clock).drain(by="admin")
    [(_, raw)] = store.items("overrides/")
    assert json.loads(raw)[0] == 1
    assert len(raw) < 120


def test_one_worker_logs_each_change_with_its_end(
    store: Failing, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = Worker(store, clock), Worker(store, clock)
    quiet = Overrides(store, {}, clock=clock, may_log=lambda: False)
    with caplog.at_level("INFO", logger="wsgigate.overrides"):
        one.drain(lasts=60)
        for look in (other.overrides.look, other.overrides.look, quiet.look):
            look()
        one.overrides.set("orders", OTHER, ACTIVE, weight=3)
        other.overrides.look()
        clock.advance(60)
        other.overrides.look()
        one.overrides.set("orders", ONE, ACTIVE)
        other.overrides.look()
    assert caplog.messages == [
        f"Instance {ONE} of 'orders' is drained for 60 s by an operator",
        f"Instance {OTHER} of 'orders' has another weight by an operator (weight 3)",
        f"Instance {ONE} of 'orders' is active again: no operator's change applies",
    ]
