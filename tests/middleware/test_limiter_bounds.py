"""A flood of callers does not exceed the size of a store."""

from __future__ import annotations

import re

import pytest

from tests.middleware.limits import hello, statuses
from tests.support.objects import texts_kept
from wsgigate.middleware.limiter import Limiter
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock


@pytest.fixture
def clock():
    return FakeClock(1_750_000_000.0)


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


def flood(app, callers):
    """Have that many callers ask once each."""
    environ = {"REQUEST_METHOD": "GET"}
    for number in range(callers):
        environ["REMOTE_ADDR"] = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        app(environ.copy(), lambda status, headers: None)


HOT = {"REMOTE_ADDR": "192.0.2.9"}


def test_a_flood_of_callers_fills_no_more_memory_than_the_store_may_have():
    store = MemoryStore(max_items=1200)
    app = Limiter(hello, "2 per hour", store=store)
    assert statuses(app, 3, **HOT) == [200, 200, 429]
    flood(app, 12_000)
    assert len(list(store.items(""))) <= 1200
    callers = [
        text for text in texts_kept(app, but=[store]) if re.fullmatch(r"10\.0\.[\d.]+", text)
    ]
    assert 0 < len(callers) <= 1024
    assert statuses(app, 1, **HOT) == [429], "who is nearest to its limit is not forgotten first"


def size(folder):
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def test_a_flood_of_callers_takes_little_disk_for_each(tmp_path):
    store = LmdbStore(tmp_path / "store", map_size=128 * 1024 * 1024)
    app = Limiter(hello, "2 per hour", store=store)
    callers = 20_000
    flood(app, callers)
    assert app.store_errors == 0
    told = store.usage()
    assert told["items"] == callers
    assert told["used"] <= 200 * callers
    assert size(tmp_path / "store") <= 5 * told["used"]  # it doubles, and has space beforehand
    store.close()


def test_a_flood_of_callers_fills_no_more_disk_than_the_store_may_have(tmp_path, caplog):
    store = LmdbStore(tmp_path / "store", map_size=1024 * 1024)
    app = Limiter(hello, "2 per hour", store=store)
    assert statuses(app, 3, **HOT) == [200, 200, 429]
    flood(app, 9_000)
    assert app.store_errors > 0, "or it never was full"
    assert size(tmp_path / "store") <= 8 * 1024 * 1024  # a store may take some beforehand
    assert statuses(app, 1, **HOT) == [429], "and who was counted is counted on"
    store.close()
