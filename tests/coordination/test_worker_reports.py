"""Reports of all workers, which any worker can return."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.objects import texts_kept
from tests.support.stores import WrappedStore
from wsgigate.coordination.worker_reports import RENEW, TTL, StableTimes, WorkerReports
from wsgigate.store import Store, StoreError
from wsgigate.store.lmdb import LmdbStore
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock


class Named(WorkerReports):
    """The reports as if of another process."""

    name = ""

    @property
    def worker(self) -> str:
        return self.name


class Watched(WrappedStore):
    """A store that counts its writes, and fails while *down* is set."""

    down = False
    writes = 0

    def before(self, call: str, key: str) -> None:
        assert call != "items", "a store on the network would look through all of its keys"
        if self.down:
            raise StoreError("it is down")
        self.writes += call == "swap"


@pytest.fixture(params=["memory", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Watched]:
    made: Store = MemoryStore(clock=clock)
    if request.param == "lmdb":
        made = LmdbStore(tmp_path / "db", clock=clock)
    yield Watched(made)
    made.close()


def worker(store: Store, name: str, clock: FakeClock, body: dict[str, Any]) -> Named:
    made = Named(store, lambda: body, clock=clock, wall=lambda: 1_700_000_000 + clock())
    made.name = name
    return made


def test_each_worker_reports_all_workers(store: Watched, clock: FakeClock) -> None:
    bodies: list[dict[str, Any]] = [{"n": number} for number in range(3)]
    workers = [worker(store, f"m:{n}", clock, body) for n, body in enumerate(bodies)]
    for each in workers:
        each.step()
    everything = {"m:0": {"n": 0}, "m:1": {"n": 1}, "m:2": {"n": 2}}
    assert [each.all() for each in workers] == [everything] * 3
    bodies[1]["n"] = 9
    clock.advance(1)
    assert workers[1].all()["m:1"] == {"n": 9}
    assert workers[0].all()["m:1"] == {"n": 9}, "a worker that was asked has written it"


def test_a_worker_that_is_killed_is_forgotten_and_one_that_ends_at_once(
    store: Watched, clock: FakeClock
) -> None:
    one, other, ended = (worker(store, f"m:{n}", clock, {"n": n}) for n in range(3))
    for each in (one, other, ended):
        each.step()
    assert list(one.all()) == ["m:0", "m:1", "m:2"]
    ended.start()
    ended.stop()
    assert list(one.all()) == ["m:0", "m:1"]
    for _ in range(int(TTL) + 1):
        clock.advance(1)
        one.step()
    assert list(one.all()) == ["m:0"]
    assert json.loads(store.get("workers/list")[0] or b"") == ["m:0"]


def test_nothing_is_written_while_nothing_changes_but_the_lease(
    store: Watched, clock: FakeClock
) -> None:
    body = {"n": 0}
    one = worker(store, "m:0", clock, body)
    one.step()
    before = store.writes
    for _ in range(60):
        clock.advance(1)
        one.step()
    assert store.writes - before <= 60 / RENEW
    before = store.writes
    for body["n"] in range(100):
        one.all()
        clock.advance(0.01)
    assert store.writes - before <= 21


def test_while_the_store_fails_a_worker_reports_itself_and_logs_both_ends(
    store: Watched, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = (worker(store, f"m:{n}", clock, {"n": n}) for n in range(2))
    other.step()
    one.step()
    store.down = True
    clock.advance(6)
    one.step()
    began = one.failing_since
    assert began is not None
    clock.advance(6)
    assert one.all() == {"m:0": {"n": 0}}
    assert one.failing_since == began
    store.down = False
    clock.advance(1)
    one.step()
    assert one.failing_since is None
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("ERROR", "The store fails: it is down"),
        ("WARNING", "The store answers again, after 7 s"),
    ]


def test_a_quiet_reporter_does_not_log_failures_of_the_store(
    store: Watched, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store.down = True
    one = WorkerReports(store, dict, clock=clock, quiet=True)
    one.step()
    store.down = False
    clock.advance(1)
    one.step()
    assert not caplog.records


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"[]", b"7", b'{"a": 1}', b"\xff"])
def test_foreign_bytes_count_as_an_empty_record(
    store: Watched, clock: FakeClock, raw: bytes
) -> None:
    one = worker(store, "m:0", clock, {"n": 1})
    assert store.swap("workers/list", None, raw, 60)
    one.step()
    assert one.all() == {"m:0": {"n": 1}}
    assert store.swap("workers/of/m:1", None, raw, 60)
    listed, _ = store.get("workers/list")
    assert store.swap("workers/list", listed, b'["m:0", "m:1"]', 60)
    assert one.all().keys() <= {"m:0", "m:1"}


def test_a_report_is_bounded(store: Watched, clock: FakeClock) -> None:
    one = worker(store, "m:0", clock, {"long": "x" * 100_000})
    other = worker(store, "m:1", clock, {"n": 1})
    one.step()
    assert other.all() == {"m:0": {}, "m:1": {"n": 1}}


def test_a_worker_with_an_empty_report_writes_nothing(store: Watched, clock: FakeClock) -> None:
    body: dict[str, Any] = {}
    one = worker(store, "m:0", clock, body)
    for _ in range(30):
        one.step()
        clock.advance(1)
    assert store.writes == 0
    store.down = True
    clock.advance(RENEW)
    one.step()
    assert one.failing_since is not None
    store.down = False
    clock.advance(RENEW)
    other = worker(store, "m:1", clock, {})
    body["n"] = 1
    one.step()
    assert other.all()["m:0"] == {"n": 1}
    del body["n"]
    clock.advance(1)
    one.step()
    assert other.all()["m:0"] == {}


def test_each_step_calls_the_functions_in_beside(store: Watched, clock: FakeClock) -> None:
    done: list[int] = []
    one = WorkerReports(store, dict, beside=[lambda: done.append(1)], clock=clock)
    one.step()
    one.step()
    assert done == [1, 1]


def test_stable_times_ignore_differences_below_50_ms() -> None:
    steady = StableTimes()
    assert steady("a", 7.1234567) == 7.123
    assert [steady("a", 7.1 + n / 1000) for n in range(40)] == [7.123] * 40
    assert steady("a", 8.0) == 8.0
    for number in range(20_000):
        steady(str(number), number)
    assert len(texts_kept(steady)) <= 10_000
