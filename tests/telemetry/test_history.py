"""The samples of the last hour: who takes them, what is in them, and what charts get."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wsgigate.telemetry.history import (
    GATEWAY,
    INTERVAL,
    SAMPLES,
    CountedTotals,
    FileRing,
    Growth,
    History,
    MemoryRing,
    Ring,
    Sample,
    difference,
    document,
    quantile,
    totals_of,
)
from wsgigate.telemetry.metrics import Counter, Gauge, Histogram, Recorder, Totals

BOUNDS = (0.1, 0.2, 0.4)


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [
        ((0, 0, 0, 0), 0.5, None),
        ((10, 0, 0, 0), 0.5, 0.05),
        ((10, 0, 0, 0), 1.0, 0.1),
        ((0, 10, 0, 0), 0.5, 0.15),
        ((0, 0, 4, 0), 0.25, 0.25),
        ((5, 5, 0, 0), 0.5, 0.1),
        ((5, 5, 0, 0), 0.75, 0.15),
        ((90, 0, 10, 0), 0.95, 0.3),
        ((0, 0, 0, 7), 0.5, 0.4),  # above the last bound
        ((99, 0, 0, 1), 0.99, 0.1),
        ((99, 0, 0, 1), 0.995, 0.4),
        ((1, 0, 0, 0), 0.0, 0.0),
    ],
)
def test_a_percentile_is_interpolated_within_its_bucket(
    counts: tuple[float, ...], share: float, value: float | None
) -> None:
    assert quantile(BOUNDS, counts, share) == (None if value is None else pytest.approx(value))


class Traffic:
    """Instruments as a gateway has them."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.server = Histogram(
            "http_server_request_duration_seconds",
            "Requests.",
            ("http_request_method", "http_route", "http_response_status_code", "service"),
            buckets=BOUNDS,
            recorder=self.recorder,
        )
        self.client = Histogram(
            "http_client_request_duration_seconds",
            "Attempts.",
            ("service", "instance", "http_response_status_code", "error_type"),
            buckets=BOUNDS,
            recorder=self.recorder,
        )
        self.active = Gauge(
            "http_server_active_requests", "In flight.", ("method",), recorder=self.recorder
        )
        self.decisions = Counter(
            "wsgigate_limiter_decisions",
            "Decisions.",
            ("policy", "decision"),
            recorder=self.recorder,
        )
        self.recorder.record()

    def totals(self) -> dict[str, Totals]:
        return self.recorder.totals()

    def request(self, route: str = "orders", status: str = "200", seconds: float = 0.05) -> None:
        self.server.labels("GET", route, status, "svc").observe(seconds)


def test_requests_are_counted_for_the_gateway_and_for_their_route() -> None:
    traffic = Traffic()
    traffic.request("orders")
    traffic.request("orders", "503", 0.3)
    traffic.request("users", "404")
    series = totals_of(traffic.totals()).series
    assert series[GATEWAY].requests == 3
    assert series[GATEWAY].errors == 1
    assert series["route:orders"].buckets == (1, 0, 1, 0)
    assert series["route:users"].errors == 0


def test_attempts_are_counted_for_their_service_and_instance() -> None:
    traffic = Traffic()
    attempts = traffic.client
    attempts.labels("svc", "http://a:1", "200", "").observe(0.05)
    attempts.labels("svc", "http://b:1", "", "connect").observe(0.15)
    series = totals_of(traffic.totals()).series
    assert series["service:svc"].requests == 2
    assert series["service:svc"].errors == 1
    assert series["instance:svc http://a:1"].errors == 0
    assert series["instance:svc http://b:1"].errors == 1


def counts(requests: float, errors: float = 0.0, **decisions: float) -> CountedTotals:
    growth = Growth(errors, requests * 0.05, (requests, 0.0, 0.0, 0.0))
    return CountedTotals({GATEWAY: growth}, {"server": BOUNDS}, {"default": decisions})


def test_a_difference_has_what_has_grown_and_nothing_else() -> None:
    grown = difference(counts(10, allowed=8.0), counts(15, 2, allowed=8.0, rejected=3.0))
    assert grown.series[GATEWAY].buckets == (5, 0, 0, 0)
    assert grown.series[GATEWAY].errors == 2
    assert grown.decisions == {"default": {"allowed": 0, "rejected": 3}}
    assert not difference(counts(10, allowed=1.0), counts(10, allowed=1.0)).series
    assert not difference(counts(10, allowed=1.0), counts(10, allowed=1.0)).decisions


def test_totals_that_began_anew_have_grown_from_zero() -> None:
    grown = difference(counts(100, allowed=90.0), counts(4, allowed=3.0))
    assert grown.series[GATEWAY].requests == 4
    assert grown.decisions == {"default": {"allowed": 3}}


@pytest.fixture(params=["file", "memory"])
def ring(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Ring]:
    """Return what opens the ring that all workers of a test share."""
    memory = MemoryRing()
    if request.param == "memory":
        return lambda: memory
    return lambda: FileRing(tmp_path / "history")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_one_worker_takes_each_sample(ring: Callable[[], Ring]) -> None:
    traffic, clock = Traffic(), Clock()
    first, second = (History(ring, traffic.totals, clock=clock) for _ in range(2))
    first.step()
    second.step()
    for _ in range(3):
        traffic.request()
        clock.now += INTERVAL
        assert first.step() == INTERVAL
        assert 0 < second.step() <= INTERVAL + 1
    samples = second.since(0)
    assert [sample.counts.series[GATEWAY].requests for sample in samples] == [1, 1, 1]
    assert [sample.seconds for sample in samples] == [INTERVAL] * 3


def test_another_worker_continues_where_a_killed_one_ended(ring: Callable[[], Ring]) -> None:
    traffic, clock = Traffic(), Clock()
    killed, heir = (History(ring, traffic.totals, clock=clock) for _ in range(2))
    killed.step()
    traffic.request()
    clock.now += INTERVAL
    killed.step()
    traffic.request()
    traffic.request()
    clock.now += INTERVAL
    pause = heir.step()
    assert 0 < pause < 1  # the worker that took the last sample goes first
    clock.now += pause
    assert heir.step() == INTERVAL
    assert [each.counts.series[GATEWAY].requests for each in heir.since(0)] == [1, 2]
    assert heir.since(0)[-1].seconds == pytest.approx(INTERVAL + pause, abs=0.01)


def test_a_clock_that_is_set_back_stops_no_samples(ring: Callable[[], Ring]) -> None:
    traffic, clock = Traffic(), Clock()
    history = History(ring, traffic.totals, clock=clock)
    history.step()
    clock.now -= 3600
    assert history.step() == INTERVAL
    traffic.request()
    clock.now += INTERVAL
    history.step()
    assert [each.counts.series[GATEWAY].requests for each in history.since(0)] == [1]


def test_the_ring_is_bounded_and_has_the_newest_samples(ring: Callable[[], Ring]) -> None:
    opened = ring()
    with opened.alone():
        for number in range(SAMPLES + 5):
            opened.append(1.0 + number, b"%d" % number, b"")
    assert opened.since(0)[0] == b"5"
    assert opened.since(0)[-1] == b"%d" % (SAMPLES + 4)
    assert opened.since(SAMPLES + 3.5) == [b"%d" % (SAMPLES + 3), b"%d" % (SAMPLES + 4)]


def test_a_sample_that_is_too_large_loses_the_series_with_the_fewest_requests(
    tmp_path: Path,
) -> None:
    traffic, clock = Traffic(), Clock()
    history = History(lambda: FileRing(tmp_path / "history"), traffic.totals, clock=clock)
    history.step()
    for number in range(400):
        traffic.request(f"{number:03}-{'x' * 60}")
    traffic.request("busy")
    traffic.request("busy")
    clock.now += INTERVAL
    history.step()
    [sample] = history.since(0)
    assert sample.counts.series[GATEWAY].requests == 402
    assert sample.counts.series["route:busy"].requests == 2
    assert len(sample.counts.series) < 400


def test_a_slot_that_is_half_written_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "history"
    ring = FileRing(file)
    with ring.alone():
        ring.append(1.0, b'{"first": 1}', b"")
        ring.append(2.0, b'{"second": 2}', b"")
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b"second", b"sec\0nd"))
    assert FileRing(file).since(0) == [b'{"first": 1}']


def test_a_file_of_another_release_is_used_anew(tmp_path: Path) -> None:
    file = tmp_path / "history"
    file.write_bytes(b"wsgihis0" + bytes(100))
    ring = FileRing(file)
    assert ring.last() == 0
    assert ring.since(0) == []
    assert ring.baseline() == (0.0, b"")
    with ring.alone():
        ring.append(1.0, b"{}", b"base")
    assert ring.since(0) == [b"{}"]
    assert ring.baseline() == (1.0, b"base")


def test_the_file_is_for_its_user_only_and_no_link_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "history"
    with FileRing(file).alone() as alone:
        assert alone
        with FileRing(file).alone() as second:
            assert not second
    assert file.stat().st_mode & 0o777 == 0o600
    os.symlink(file, tmp_path / "link")
    with pytest.raises(OSError, match="link"), FileRing(tmp_path / "link").alone():
        pass


def sample(
    time: float, requests: float, seconds: float = INTERVAL, state: str = "closed"
) -> Sample:
    return Sample(
        time, seconds, counts(requests, requests / 4, allowed=requests), {"svc": state}, 2
    )


def test_a_document_has_columns_for_charts_and_the_figures_of_the_last_minute() -> None:
    samples = [sample(95, 4), sample(100, 8), sample(105, 40, state="open")]
    made = document(samples, 95, [GATEWAY, "route:none"])
    json.dumps(made, allow_nan=False)
    assert made["times"] == [100, 105]
    assert made["series"][GATEWAY]["rate"] == [1.6, 8]
    assert made["series"][GATEWAY]["errors"] == [0.4, 2]
    assert made["series"][GATEWAY]["success"] == [0.75, 0.75]
    assert made["series"][GATEWAY]["p50"] == [0.05, 0.05]
    assert made["series"]["route:none"]["rate"] == [0, 0]
    assert made["series"]["route:none"]["p99"] == [None, None]
    assert made["circuits"] == {"svc": ["closed", "open"]}
    assert made["inFlight"] == [2, 2]
    recent = made["recent"]
    assert recent["seconds"] == 15
    assert recent["series"][GATEWAY]["rate"] == pytest.approx(52 / 15, abs=0.001)
    assert recent["decisions"] == {"default": {"allowed": pytest.approx(52 / 15, abs=0.001)}}


def test_a_time_without_samples_is_a_gap() -> None:
    made = document([sample(100, 5), sample(200, 20, seconds=100)], 0, [GATEWAY])
    assert made["times"] == [100, 150, 200]
    assert made["series"][GATEWAY]["rate"] == [1, None, 0.2]
    assert made["circuits"] == {"svc": ["closed", None, "closed"]}


def test_a_document_without_samples_is_empty() -> None:
    made = document([], 0, [GATEWAY])
    assert made["times"] == []
    assert made["series"][GATEWAY]["rate"] == []
    assert made["recent"]["series"] == {}


def test_a_new_history_has_no_sample_and_the_first_one_has_no_past(
    ring: Callable[[], Ring],
) -> None:
    traffic, clock = Traffic(), Clock()
    for _ in range(1000):
        traffic.request()  # before the history began
    history = History(ring, traffic.totals, clock=clock, states=lambda: {"svc": "open"})
    assert history.document(0, [GATEWAY])["times"] == []
    history.step()
    assert history.document(0, [GATEWAY])["times"] == []
    traffic.request()
    clock.now += INTERVAL
    history.step()
    made = history.document(0, [GATEWAY])
    assert made["series"][GATEWAY]["rate"] == [0.2]
    assert made["circuits"] == {"svc": ["open"]}
    assert history.document(clock.now, [GATEWAY])["times"] == []
    assert history.document(clock.now, [])["recent"]["series"][GATEWAY]["rate"] == 0.2


def test_the_last_minute_has_the_figures_of_all_requests(ring: Callable[[], Ring]) -> None:
    traffic, clock = Traffic(), Clock()
    history = History(ring, traffic.totals, clock=clock)
    assert history.last_minute() is None
    history.step()
    for requests in (0, 10):
        for _ in range(requests):
            traffic.request()
        clock.now += INTERVAL
        history.step()
        found = history.last_minute()
        assert found is not None
        assert found["rate"] == requests / (2 * INTERVAL)
        assert found["success"] == (1.0 if requests else None)
    clock.now += 61
    assert history.last_minute() is None
