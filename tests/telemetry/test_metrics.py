"""Counters, gauges and histograms of one process, without the storage that workers share."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterable

import pytest

from wsgigate.telemetry.metrics import (
    OTHER,
    Counter,
    Exemplar,
    Gauge,
    Histogram,
    ObservableGauge,
    Reading,
    Recorder,
)


@pytest.fixture
def recorder() -> Recorder:
    made = Recorder(max_series=10)
    made.record()
    return made


def series_of(recorder: Recorder, name: str) -> dict[tuple[str, ...], list[float]]:
    return recorder.totals()[name].series


def test_nothing_is_recorded_until_the_process_records():
    recorder = Recorder()
    counter = Counter("a_requests", "Requests.", ("route",), recorder=recorder)
    series = counter.labels("x")
    series.add()
    recorder.record()
    series.add(2)
    assert series_of(recorder, "a_requests") == {("x",): [2.0]}


def test_a_counter_adds_up_by_its_labels(recorder: Recorder):
    counter = Counter("a_requests", "Requests.", ("route", "status"), recorder=recorder)
    counter.labels("x", "200").add()
    counter.labels("x", "200").add(2)
    counter.labels("x", "500").add()
    assert counter.labels("x", "200") is counter.labels("x", "200")
    assert series_of(recorder, "a_requests") == {("x", "200"): [3.0], ("x", "500"): [1.0]}


def test_a_gauge_is_set_and_moved(recorder: Recorder):
    gauge = Gauge("a_queue", "Waiting.", recorder=recorder)
    gauge.set(5)
    gauge.add(-2)
    assert series_of(recorder, "a_queue") == {(): [3.0]}


def test_a_histogram_counts_each_value_in_one_bucket(recorder: Recorder):
    histogram = Histogram("a_seconds", "Time.", buckets=(0.1, 1), recorder=recorder)
    for value in (0.05, 0.1, 0.5, 3):
        histogram.observe(value)
    assert series_of(recorder, "a_seconds") == {(): [3.65, 2.0, 1.0, 1.0]}


def test_a_histogram_keeps_the_newest_exemplar_of_a_bucket(recorder: Recorder):
    histogram = Histogram("a_seconds", "Time.", buckets=(0.1, 1), recorder=recorder)
    for time in (1.0, 2.0):
        histogram.observe(0.5, Exemplar(0.5, time, "ab" * 16))
    totals = recorder.totals()["a_seconds"]
    assert totals.exemplars == {(): {1: Exemplar(0.5, 2.0, "ab" * 16)}}


@pytest.mark.parametrize("value", [b"x", 1, None, ()])
def test_a_label_value_of_another_type_becomes_text(recorder: Recorder, value: object):
    counter = Counter("a_requests", "Requests.", ("path",), recorder=recorder)
    series = counter.labels(value)  # type: ignore[arg-type]
    series.add()
    assert counter.labels(value) is series  # type: ignore[arg-type]
    assert series_of(recorder, "a_requests") == {(str(value),): [1.0]}


def test_more_label_values_than_the_bound_become_one_series(recorder: Recorder):
    counter = Counter("a_requests", "Requests.", ("path", "status"), recorder=recorder)
    for number in range(100):
        counter.labels(f"/{number}", "200").add()
    series = series_of(recorder, "a_requests")
    assert len(series) <= 10
    assert series[OTHER, OTHER] == [101.0 - len(series)]
    assert sum(value for (value,) in series.values()) == 100


def test_a_family_cannot_use_up_the_series_of_the_others(recorder: Recorder):
    greedy = Counter("a_requests", "Requests.", ("path",), recorder=recorder)
    for number in range(100):
        greedy.labels(str(number)).add()
    other = Counter("b_requests", "Requests.", ("path",), recorder=recorder)
    other.labels("x").add()
    assert series_of(recorder, "b_requests") == {("x",): [1.0]}


def test_a_label_value_is_cut(recorder: Recorder):
    counter = Counter("a_requests", "Requests.", ("path",), recorder=recorder)
    counter.labels("x" * 1000).add()
    ((value,),) = series_of(recorder, "a_requests")
    assert len(value) == 128


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_label_values_is_an_error(recorder: Recorder, count: int):
    counter = Counter("a_requests", "Requests.", ("path", "status"), recorder=recorder)
    with pytest.raises(ValueError, match="a_requests has the labels"):
        counter.labels(*["x"] * count)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        *(("A_requests", ()), ("a_requests_total", ()), ("a-b", ()), ("", ()), ("a_bucket", ())),
        *(("a", ("le",)), ("a", ("B",)), ("a", ("",))),
    ],
)
def test_an_invalid_name_is_an_error(recorder: Recorder, name: str, labels: tuple[str, ...]):
    with pytest.raises(ValueError, match="lower case"):
        Counter(name, "Requests.", labels, recorder=recorder)


def test_a_name_is_declared_once(recorder: Recorder):
    Counter("a_requests", "Requests.", recorder=recorder)
    with pytest.raises(ValueError, match="exists already"):
        Gauge("a_requests", "Requests.", recorder=recorder)


@pytest.mark.parametrize("buckets", [(), (1, 1), (2, 1), (1, float("inf")), tuple(range(61))])
def test_invalid_buckets_are_an_error(recorder: Recorder, buckets: tuple[float, ...]):
    with pytest.raises(ValueError, match="buckets"):
        Histogram("a_seconds", "Time.", buckets=buckets, recorder=recorder)


SIZE = ObservableGauge("test_metrics_size", "Size.", ("name",))


class Sizes:
    def __init__(self, value: float) -> None:
        self.value = value

    def collect(self) -> Iterable[Reading]:
        if not self.value:
            raise RuntimeError("the store is away")
        yield SIZE.reading(1 / self.value, "a")


def test_a_collector_is_read_while_it_is_alive(recorder: Recorder):
    sizes = Sizes(0.5)
    recorder.collect_from(sizes)
    assert series_of(recorder, "test_metrics_size") == {("a",): [2.0]}
    del sizes
    gc.collect()
    assert "test_metrics_size" not in recorder.totals()


def test_a_collector_that_fails_hides_nothing_else(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
):
    failing = Sizes(0)
    recorder.collect_from(failing)
    Counter("a_requests", "Requests.", recorder=recorder).add()
    for _ in range(2):
        assert "a_requests" in recorder.totals()
    assert caplog.messages == ["metrics of Sizes are missing: the store is away"]


def test_threads_lose_no_count(recorder: Recorder):
    counter = Counter("a_requests", "Requests.", recorder=recorder)
    histogram = Histogram("a_seconds", "Time.", recorder=recorder)

    def work() -> None:
        for _ in range(2000):
            counter.add()
            histogram.observe(0.2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert series_of(recorder, "a_requests") == {(): [8000.0]}
    assert sum(series_of(recorder, "a_seconds")[()][1:]) == 8000


def test_a_child_forgets_what_its_parent_counted(recorder: Recorder):
    counter = Counter("a_requests", "Requests.", recorder=recorder)
    counter.add(3)
    recorder.after_fork()
    counter.add()
    assert series_of(recorder, "a_requests") == {(): [1.0]}


def test_a_removed_series_is_gone_and_its_handles_count_nothing(recorder: Recorder):
    seconds = Histogram("a_seconds", "Time.", ("service", "instance"), recorder=recorder)
    counter = Counter("a_requests", "Requests.", recorder=recorder)
    old, other = seconds.labels("orders", "a"), seconds.labels("orders", "b")
    for series in (old, other):
        series.observe(0.5)
    seconds.remove("orders", "a")
    old.observe(0.5)
    counter.add()
    assert series_of(recorder, "a_seconds").keys() == {("orders", "b")}
    assert series_of(recorder, "a_requests") == {(): [1.0]}
    seconds.labels("orders", "a").observe(0.25)
    assert series_of(recorder, "a_seconds")["orders", "a"][0] == 0.25


def test_instances_that_come_and_go_do_not_use_up_the_bound(recorder: Recorder):
    seconds = Histogram("a_seconds", "Time.", ("instance", "status"), recorder=recorder)
    for number in range(5000):
        seconds.labels(f"10.0.{number // 256}.{number % 256}", "200").observe(0.1)
        if number:
            seconds.remove(f"10.0.{(number - 1) // 256}.{(number - 1) % 256}")
    assert series_of(recorder, "a_seconds").keys() == {("10.0.19.135", "200")}
    assert len(recorder.storage.cells) < 200


def test_handles_of_a_process_that_records_nothing_are_not_kept():
    recorder = Recorder(max_series=10)
    counter = Counter("a_requests", "Requests.", ("route",), recorder=recorder)
    kept = counter.labels("kept")
    for number in range(100):
        counter.labels(str(number)).add()
    gc.collect()
    recorder.record()
    kept.add()
    counter.labels("new").add()
    assert series_of(recorder, "a_requests") == {("kept",): [1.0], ("new",): [1.0]}


def test_the_total_bound_holds_over_all_instruments(recorder: Recorder):
    counters = [
        Counter(f"a{number}_requests", "Requests.", ("route",), recorder=recorder)
        for number in range(5)
    ]
    for counter in counters:
        for route in range(100):
            counter.labels(str(route)).add()
    sums = [sum(cell for (cell,) in series_of(recorder, c.family.name).values()) for c in counters]
    assert sums == [100.0] * 5
