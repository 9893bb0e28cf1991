"""The file in which all workers count: its slots, its bounds, and what a killed worker leaves."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.test import Client

from tests.support.interpreter import run_alone
from tests.support.metrics import measuring
from wsgigate.http.problem import Problem
from wsgigate.middleware.metrics import Metrics
from wsgigate.telemetry.metrics import (
    BUCKETS,
    PROCESS,
    STARTS,
    WORKERS,
    Counter,
    Exemplar,
    Family,
    Gauge,
    Histogram,
    InFlight,
    ProcessStorage,
    Recorder,
)
from wsgigate.telemetry.slots import (
    REUSE,
    SlotFile,
    SlotStorage,
    Unusable,
    metrics_folder,
    open_slots,
    rebucketed,
)

REQUESTS = Family("a_requests", "counter", "Requests.", ("route",))
SECONDS = Family("a_seconds", "histogram", "Time.", ("route",), (0.1, 1.0))
QUEUE = Family("a_queue", "gauge", "Waiting.", ())
STARTED = Family("a_started", "counter", "Started.", ())
FLOW = InFlight(
    Family("a_active", "gauge", "Active.", ()),
    Family("a_lost", "counter", "Lost.", ()),
    "a_started",
    ("a_seconds",),
)


@pytest.fixture
def folder() -> Iterator[str]:
    made = tempfile.mkdtemp(dir="/dev/shm")
    yield os.path.join(made, "metrics")
    shutil.rmtree(made)


def add(storage: SlotStorage, family: Family, labels: tuple[str, ...], *amounts: float) -> None:
    start = storage.place(family, labels)
    assert start is not None
    for index, amount in enumerate(amounts):
        storage.cells[start + index] += amount


def test_all_workers_are_added_up(folder: str) -> None:
    first, second = SlotStorage(folder, 100), SlotStorage(folder, 100)
    add(first, REQUESTS, ("x",), 3)
    add(second, REQUESTS, ("x",), 4)
    add(second, REQUESTS, ("y",), 1)
    add(first, SECONDS, ("x",), 0.5, 0, 1, 0)
    for storage in (first, second, SlotFile(folder)):
        found = storage.totals()
        assert found["a_requests"].series == {("x",): [7.0], ("y",): [1.0]}
        assert found["a_seconds"].series == {("x",): [0.5, 0.0, 1.0, 0.0]}
        assert found[WORKERS.name].series == {(): [2.0]}
    first.close()
    second.close()


def test_a_successor_continues_the_counts_in_a_file_of_the_same_size(folder: str) -> None:
    size = 0
    for _ in range(20):
        storage = SlotStorage(folder, 100)
        add(storage, REQUESTS, ("x",), 1)
        found = os.stat(storage.path)
        assert size in (0, found.st_blocks)
        size = found.st_blocks
        storage.close()
    reader = SlotFile(folder)
    assert reader.totals()["a_requests"].series == {("x",): [20.0]}
    assert reader.totals()[STARTS.name].series == {(): [20.0]}
    assert reader.totals()[WORKERS.name].series == {(): [0.0]}
    reader.close()


def test_gauges_of_a_worker_that_has_ended_do_not_count(folder: str) -> None:
    first, second = SlotStorage(folder, 100), SlotStorage(folder, 100)
    add(first, QUEUE, (), 5)
    add(second, QUEUE, (), 2)
    first.close()
    assert second.totals()["a_queue"].series == {(): [2.0]}
    first = SlotStorage(folder, 100)
    first.recover([])
    assert second.totals()["a_queue"].series == {(): [2.0]}
    first.close()
    second.close()


@pytest.mark.parametrize("recoveries", [0, 1, 2])
def test_requests_of_a_killed_worker_are_lost_and_not_in_flight(
    folder: str, recoveries: int
) -> None:
    other, worker = SlotStorage(folder, 100), SlotStorage(folder, 100)
    add(worker, STARTED, (), 5)
    add(worker, SECONDS, ("x",), 1.0, 2, 0, 1)
    found = other.totals([FLOW])
    assert (found["a_active"].series, found["a_lost"].series) == ({(): [2.0]}, {(): [0.0]})
    worker.close()
    for _ in range(recoveries):
        worker = SlotStorage(folder, 100)
        worker.recover([FLOW])
        add(worker, STARTED, (), 1)
        found = other.totals([FLOW])
        assert found["a_active"].series == {(): [1.0]}
        add(worker, SECONDS, ("x",), 1.0, 1, 0, 0)
        worker.close()
    found = other.totals([FLOW])
    assert (found["a_active"].series, found["a_lost"].series) == ({(): [0.0]}, {(): [2.0]})
    other.close()


def test_a_killed_process_leaves_its_counts_and_its_slot(folder: str) -> None:
    code = f"""
import os, signal
from tests.telemetry.test_slots import REQUESTS, add
from wsgigate.telemetry.slots import SlotStorage
storage = SlotStorage({folder!r}, 100)
child = os.fork()
if child == 0:
    storage.close()
    own = SlotStorage({folder!r}, 100)
    add(own, REQUESTS, ("x",), 5)
    assert own.slot == 1, own.slot
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
add(storage, REQUESTS, ("x",), 2)
assert storage.totals()["a_requests"].series == {{("x",): [7.0]}}
assert storage.alive() == [0]
os._exit(0)
"""
    run_alone(code)
    storage = SlotStorage(folder, 100)
    assert storage.slot == 0
    assert storage.totals()["a_requests"].series == {("x",): [7.0]}
    storage.close()


def test_events_of_all_workers_are_read_newest_first(folder: str) -> None:
    first, second = SlotStorage(folder, 100), SlotStorage(folder, 100)
    for number in range(200):
        (first if number % 2 else second).put_event(b"event %d" % number + bytes(2000), number)
    found = first.events(3)
    assert [when for when, _ in found] == [199.0, 198.0, 197.0]
    assert [data[:9] for _, data in found] == [b"event 199", b"event 198", b"event 197"]
    assert len(first.events(1000)) == 128
    first.close()
    second.close()


def test_the_newest_exemplar_of_a_bucket_is_read(folder: str) -> None:
    first, second = SlotStorage(folder, 100), SlotStorage(folder, 100)
    for storage, when in ((first, 2.0), (second, 1.0)):
        start = storage.place(SECONDS, ("x",))
        assert start is not None
        storage.exemplar(start, 1, Exemplar(0.5, when, "ab" * 16))
    totals = second.totals(exemplars=True)["a_seconds"]
    assert totals.exemplars == {("x",): {1: Exemplar(0.5, 2.0, "ab" * 16)}}
    assert second.totals()["a_seconds"].exemplars == {}
    first.close()
    second.close()


def test_a_dropped_series_is_hidden_and_continues_when_it_is_back(folder: str) -> None:
    storage, other = SlotStorage(folder, 100), SlotStorage(folder, 100)
    add(storage, REQUESTS, ("x",), 3)
    storage.drop(REQUESTS, ("x",))
    assert "a_requests" not in other.totals()
    add(other, REQUESTS, ("x",), 1)
    assert storage.totals()["a_requests"].series == {("x",): [4.0]}
    storage.close()
    other.close()


def test_the_cells_of_dropped_series_are_used_again_when_there_is_no_room(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = SlotStorage(folder, 100)
    count = 0
    while storage.place(REQUESTS, (str(count),)) is not None:
        count += 1
    assert count == 356
    add(storage, REQUESTS, ("7",), 3)
    storage.drop(REQUESTS, ("7",))
    assert storage.place(REQUESTS, ("new",)) is None
    now = time.time() + REUSE
    monkeypatch.setattr("wsgigate.telemetry.slots.time.time", lambda: now)
    add(storage, REQUESTS, ("new",), 1)
    series = storage.totals()["a_requests"].series
    assert series["new",] == [1.0]
    assert ("7",) not in series
    storage.close()


@pytest.mark.parametrize(
    "damage", [b"nonsense", b"wsgimetr" + struct.pack("=I", 99), b"", b"wsgimetr" + bytes(8)]
)
def test_a_damaged_file_is_kept_aside_with_one_warning(
    folder: str, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    storage = SlotStorage(folder, 100)
    add(storage, REQUESTS, ("x",), 3)
    path = Path(storage.path)
    storage.close()
    data = bytearray(path.read_bytes()[:5000])
    data[: len(damage)] = damage
    path.write_bytes(data)
    for _ in range(2):
        storage = SlotStorage(folder, 100)
        assert "a_requests" not in storage.totals()
        storage.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"Metrics start anew: {path} is ")
    assert (path.parent / "metrics.old").exists()


def test_a_damaged_record_is_noticed(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    storage = SlotStorage(folder, 100)
    add(storage, REQUESTS, ("x",), 3)
    with open(storage.path, "r+b") as file:
        file.seek(storage.layout.series_at)
        file.write(b"\xff" * 100)
    storage.close()
    with pytest.raises(Unusable, match="damaged"):
        SlotFile(folder)
    SlotStorage(folder, 100).close()
    assert "Metrics start anew" in caplog.text


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    for name, reason in (("open", "open to other users"), ("link", "symbolic link")):
        with pytest.raises(Unusable, match=reason):
            SlotStorage(str(tmp_path / name), 100)


@pytest.mark.parametrize("name", ["metrics", "metrics.lock"])
def test_a_symbolic_link_is_not_followed(folder: str, tmp_path: Path, name: str) -> None:
    os.mkdir(folder, 0o700)
    (tmp_path / "target").write_text("precious")
    (Path(folder) / name).symlink_to(tmp_path / "target")
    with pytest.raises(Unusable, match="not a regular file"):
        SlotStorage(folder, 100)
    assert (tmp_path / "target").read_text() == "precious"


def test_without_space_the_counts_stay_in_the_process(
    folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    storage = open_slots("", folder, 100)
    assert isinstance(storage, ProcessStorage)
    assert "No space left on device" in caplog.text


def test_a_file_that_is_deleted_is_made_again_with_what_this_worker_has_counted(
    folder: str,
) -> None:
    recorder = Recorder()
    requests = Counter("a_requests", "Requests.", recorder=recorder)
    Gauge("a_queue", "Waiting.", recorder=recorder).set(1)
    recorder.record(lambda: open_slots("", folder, 100))
    recorder.start()
    requests.add(3)
    os.unlink(os.path.join(folder, "metrics"))
    os.unlink(os.path.join(folder, "metrics.lock"))
    recorder.look()
    requests.add(1)
    reader = SlotFile(folder)
    assert reader.totals()["a_requests"].series == {(): [4.0]}
    reader.close()
    recorder.stop()


def test_what_was_counted_before_the_start_moves_into_the_slot(folder: str) -> None:
    recorder = Recorder()
    seconds = Histogram("a_seconds", "Time.", recorder=recorder)
    recorder.record(lambda: open_slots("", folder, 100))
    seconds.observe(0.02)
    recorder.start()
    seconds.observe(20)
    assert sum(recorder.totals()["a_seconds"].series[()][1:]) == 2
    assert recorder.totals()["a_seconds"].family.bounds == BUCKETS
    recorder.stop()


def test_the_private_folder_is_one_for_each_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (f"test {number} of {os.getpid()}" for number in range(2))  # in a shared place
    first, second = metrics_folder(one), metrics_folder(two)
    assert first == metrics_folder(one) != second
    for folder in (first, second):
        assert os.stat(folder).st_mode & 0o777 == 0o700
        os.rmdir(folder)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((0.1, 1.0, 10.0), [6.0, 1.0, 2.0, 0.0, 3.0]),
        ((0.5, 1.0), [6.0, 1.0, 2.0, 3.0]),
        ((0.05,), [6.0, 0.0, 6.0]),
    ],
)
def test_other_buckets_get_what_they_are_sure_to_contain(
    wanted: tuple[float, ...], expected: list[float]
) -> None:
    assert rebucketed((0.1, 1.0), [6.0, 1.0, 2.0, 3.0], wanted) == expected


def test_a_file_that_is_damaged_in_use_makes_a_scrape_fail_and_no_request(folder: str) -> None:
    with measuring():
        PROCESS.stop()
        PROCESS.record(lambda: open_slots("", folder, 100))
        client = Client(Metrics(Problem(404), path="/metrics", public=True))
        assert client.get("/metrics").status_code == 200
        with open(os.path.join(folder, "metrics"), "r+b") as file:
            file.seek(64)
            file.write(b"\xfe" * 24)
        assert client.get("/").status_code == 404
        assert client.get("/metrics").status_code == 503
