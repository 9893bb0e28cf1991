"""A value is spent once, by any worker, and for as long as its message is accepted."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.stores import WrappedStore
from wsgigate.coordination import spent
from wsgigate.coordination.spent import LONGEST, MOST_IN_BUCKET, SKEW, SpentOnce, with_mark
from wsgigate.store import Store, StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import BrokenStore, FakeClock

NOW = 1_764_547_200.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture(params=["memory", "lmdb", "without update"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Store:
    if request.param == "lmdb":
        return LmdbStore(tmp_path / "store", clock=clock)
    memory = MemoryStore(clock=clock)
    return memory if request.param == "memory" else WrappedStore(memory)


def test_a_value_is_spent_once(store: Store) -> None:
    once = SpentOnce(store, "nonce")
    assert once.spend("key-1", "abc", seconds=60)
    assert not once.spend("key-1", "abc", seconds=60)
    assert not SpentOnce(store, "nonce").spend("key-1", "abc", seconds=60)
    store.close()


@pytest.mark.parametrize(
    "other", [("key-2", "abc"), ("key-1", "abC"), ("key-1a", "bc"), ("key-1abc",), ("", "key-1abc")]
)
def test_another_value_is_another_value(other: tuple[str, ...], clock: FakeClock) -> None:
    once = SpentOnce(MemoryStore(clock=clock), "nonce")
    assert once.spend("key-1", "abc", seconds=60)
    assert once.spend(*other, seconds=60)


def test_a_value_of_one_kind_is_not_spent_as_another(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    assert SpentOnce(store, "nonce").spend("abc", seconds=60)
    assert SpentOnce(store, "jti").spend("abc", seconds=60)


def test_a_text_that_is_not_unicode_is_a_value(clock: FakeClock) -> None:
    once = SpentOnce(MemoryStore(clock=clock), "nonce")
    assert once.spend("\udcff", seconds=60)
    assert not once.spend("\udcff", seconds=60)


def test_a_value_stays_spent_for_its_seconds_and_the_difference_of_clocks(
    store: Store, clock: FakeClock
) -> None:
    once = SpentOnce(store, "nonce")
    assert once.spend("abc", seconds=60)
    clock.advance(60 + SKEW - 0.001)
    assert not once.spend("abc", seconds=60)
    clock.advance(1.001)
    assert once.spend("abc", seconds=60)
    assert not once.spend("abc", seconds=60)
    store.close()


def test_marks_that_expired_leave_the_store(store: Store, clock: FakeClock) -> None:
    once = SpentOnce(store, "nonce")
    for number in range(100):
        once.spend(str(number), seconds=60)
    clock.advance(LONGEST)
    assert list(store.items("spent/")) == []
    store.close()


def test_a_clock_that_is_set_back_makes_no_value_usable_again(clock: FakeClock) -> None:
    once = SpentOnce(MemoryStore(clock=clock), "nonce")
    assert once.spend("abc", seconds=60)
    clock.advance(-3600)
    assert not once.spend("abc", seconds=60)


def test_a_full_bucket_fails_and_forgets_no_live_mark(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spent, "BUCKETS", 1)
    store = MemoryStore(clock=clock)
    once = SpentOnce(store, "nonce")
    values = [str(number) for number in range(MOST_IN_BUCKET)]
    assert all(once.spend(value, seconds=60) for value in values)
    with pytest.raises(StoreError, match="more than 1024 values"):
        once.spend("one more", seconds=60)
    assert not any(once.spend(value, seconds=60) for value in values)
    ((_, bucket),) = store.items("spent/")
    assert len(bucket) < 17_000
    clock.advance(121)
    assert once.spend("one more", seconds=60)
    ((_, bucket),) = store.items("spent/")
    assert len(bucket) < 32, "the expired marks are gone"


def test_marks_that_expire_in_another_order_make_room(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spent, "BUCKETS", 1)
    once = SpentOnce(MemoryStore(clock=clock), "nonce")
    assert once.spend("long", seconds=3600)
    for number in range(MOST_IN_BUCKET - 1):
        once.spend(str(number), seconds=1)
    clock.advance(100)
    assert once.spend("next", seconds=1)
    assert not once.spend("long", seconds=1)


def test_the_number_of_keys_is_bounded(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    once = SpentOnce(store, "nonce")
    for number in range(10_000):
        once.spend(str(number), seconds=60)
    assert len(list(store.items(""))) <= spent.BUCKETS


def test_a_damaged_bucket_accepts_no_value() -> None:
    for damaged in (b"", b"\0\0", bytes(5), bytes(21)):
        assert with_mark(damaged, bytes(12), NOW, NOW + 60) is None


def test_the_store_fails() -> None:
    with pytest.raises(StoreError, match="the store is down"):
        SpentOnce(BrokenStore(), "nonce").spend("abc", seconds=60)


@pytest.mark.parametrize("seconds", [-1, LONGEST + 1, float("nan")])
def test_seconds_have_bounds(seconds: float, clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="seconds: 0 to 604800"):
        SpentOnce(MemoryStore(clock=clock), "nonce").spend("abc", seconds=seconds)


@pytest.mark.parametrize("kind", ["", "a/b", "NONCE", "n" * 33])
def test_a_kind_is_a_short_name(kind: str) -> None:
    with pytest.raises(ValueError, match="kind: lower case letters"):
        SpentOnce(MemoryStore(), kind)


marks = st.integers(0, 7).map(lambda number: bytes([number % 3] * 6 + [number] * 6))


@given(st.lists(st.tuples(marks, st.integers(0, 30), st.integers(0, 20)), max_size=60))
def test_a_bucket_is_a_dict_of_expiries(steps: list[tuple[bytes, int, int]]) -> None:
    bucket: bytes | None = None
    expiries: dict[bytes, float] = {}
    now = NOW
    for mark, seconds, pause in steps:
        now += pause
        new = with_mark(bucket, mark, now, now + seconds)
        assert (new is None) == (expiries.get(mark, 0) > now)
        if new is not None:
            bucket = new
            expiries[mark] = now + seconds
            assert struct.unpack_from(">I", new)[0] >= max(expiries.values())


@given(st.binary(max_size=80))
def test_any_bytes_are_a_bucket_or_refuse(bucket: bytes) -> None:
    new = with_mark(bucket, bytes(range(12)), NOW, NOW + 60)
    if new is not None:
        assert with_mark(new, bytes(range(12)), NOW, NOW + 60) is None


def test_one_of_many_threads_spends_a_value(store: Store) -> None:
    once = SpentOnce(store, "nonce")
    start = threading.Barrier(8)
    won: list[int] = []

    def spend() -> None:
        start.wait(20)
        for number in range(25):
            if once.spend(str(number), seconds=60):
                won.append(number)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(won) == list(range(25))
    store.close()


SPENDING = """
import json, sys
from wsgigate.coordination.spent import SpentOnce
from wsgigate.store.open import open_store
once = SpentOnce(open_store(sys.argv[1]), "nonce")
once.spend(sys.argv[2], seconds=60)
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([number for number in range(300) if once.spend(str(number), seconds=60)]))
"""


def spent_by_processes(url: str) -> list[int]:
    """Return the values that four processes have spent at the same time, each of 300."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDING, url, f"process {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        made = [json.loads(each.communicate(timeout=60)[0]) for each in processes]
        return [number for each in made for number in each]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_one_of_several_processes_spends_a_value(tmp_path: Path) -> None:
    assert sorted(spent_by_processes(f"lmdb:{tmp_path / 'store'}")) == list(range(300))
