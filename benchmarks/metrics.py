"""What metrics cost: a request, and a scrape, beside prometheus-client's multiprocess mode.

    python benchmarks/metrics.py

Processor time, the best of several rounds, interleaved with the same without metrics.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.outcomes import Outcomes
from wsgigate.client.connections import ConnectionMeter
from wsgigate.middleware.metrics import Metrics
from wsgigate.proxy.meter import InstanceMeter
from wsgigate.telemetry.decisions import LimitDecisions
from wsgigate.telemetry.exposition import exposition
from wsgigate.telemetry.metrics import PROCESS, Family
from wsgigate.telemetry.slots import SlotFile, SlotStorage, open_slots

REQUESTS, ROUNDS, LABELS, WORKERS, RECYCLED = 20_000, 7, 200, 8, 50

THEIRS = """
import os, sys
from prometheus_client import Counter, Histogram, Gauge
requests = Histogram("a_seconds", "Time.", ["route"])
active = Gauge("a_active", "Active.", multiprocess_mode="livesum")
for number in range({labels}):
    requests.labels(str(number)).observe(0.2)
active.inc()
"""

THEIR_REQUESTS = """
import time
from prometheus_client import Counter, Histogram, Gauge
started, sent, received = (Counter(name, "n", ["route"]) for name in ("a", "b", "c"))
total, gateway = (Histogram(name, "h", ["route", "status"]) for name in ("d", "e"))
active = Gauge("f", "g", multiprocess_mode="livesum")
start, out = started.labels("x"), sent.labels("x")
one, other = total.labels("x", "200"), gateway.labels("x", "200")
best = 1.0
for _ in range({rounds}):
    began = time.process_time()
    for _ in range({requests}):
        start.inc()
        active.inc()
        one.observe(0.01)
        other.observe(0.01)
        out.inc(5)
        active.dec()
    best = min(best, (time.process_time() - began) / {requests})
print(best * 1e6)
"""

THEIR_SCRAPE = """
import os, time
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
best = 9.0
for _ in range(3):
    began = time.process_time()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    generate_latest(registry)
    best = min(best, time.process_time() - began)
print(best * 1e3, len(os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])))
"""


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    environ["wsgigate.route"] = environ["wsgigate.service"] = "orders"
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


def seconds_of(wrapped: WSGIApplication) -> float:
    """Return the processor time of a request."""
    base = {"REQUEST_METHOD": "GET", "PATH_INFO": "/orders"}

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        return lambda data: None

    began = time.process_time()
    for _ in range(REQUESTS):
        wrapped(base.copy(), start_response)
    return (time.process_time() - began) / REQUESTS


def seconds_of_decisions() -> float:
    """Return the processor time of what a limiter, an authenticator and an attempt count."""
    limit, attempts, connections = LimitDecisions("default"), *_meters()
    outcomes, environ = Outcomes("bearer"), dict[str, Any]()
    began = time.process_time()
    for _ in range(REQUESTS):
        limit.allowed.add()
        outcomes.accepted(environ)
        attempts.in_flight.set(1)
        connections.reused.add()
        attempts.attempted(0.01, 200)
        attempts.in_flight.set(0)
    return (time.process_time() - began) / REQUESTS


def _meters() -> tuple[InstanceMeter, ConnectionMeter]:
    return InstanceMeter("orders", "10.0.0.1:8000"), ConnectionMeter("orders")


def scrape(folder: str) -> tuple[float, int]:
    """Return the milliseconds of a scrape, and the bytes that the file takes."""
    family = Family("a_seconds", "histogram", "Time.", ("route",), (0.005, *range(1, 14)))
    held = [SlotStorage(folder, 2000) for _ in range(WORKERS)]
    for _ in range(RECYCLED):
        held.pop(0).close()
        held.append(SlotStorage(folder, 2000))
    for storage in held:
        for number in range(LABELS):
            start = storage.place(family, (str(number),))
            assert start is not None
            storage.cells[start + 5] += 1
    reader = SlotFile(folder)
    reader.totals()
    best = 9.0
    for _ in range(ROUNDS):
        began = time.process_time()
        text = exposition(reader.totals())
        best = min(best, time.process_time() - began)
    assert text.count(b"_bucket{") == LABELS * 15
    return best * 1e3, os.stat(reader.path).st_blocks * 512


def theirs(code: str, folder: str) -> str:
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as base:
        PROCESS.record(partial(open_slots, "", os.path.join(base, "metrics"), 2000))
        measured = Metrics(app)
        rounds = [(seconds_of(app), seconds_of(measured)) for _ in range(ROUNDS)]
        plain, counted = (min(each) * 1e6 for each in zip(*rounds, strict=True))
        print(f"a request: {counted - plain:.1f} us more ({plain:.1f} without metrics)")
        decided = min(seconds_of_decisions() for _ in range(ROUNDS)) * 1e6
        print(f"a limiter, an authenticator and an attempt: {decided:.1f} us")
        PROCESS.stop()
        taken, size = scrape(os.path.join(base, "scraped"))
        print(f"a scrape of {LABELS} histograms over {WORKERS} workers, {RECYCLED} recycled:")
        print(f"  {taken:.1f} ms, {size / 1024:.0f} KiB")
    with tempfile.TemporaryDirectory() as base:
        text = theirs(THEIR_REQUESTS.format(rounds=ROUNDS, requests=REQUESTS), base)
        print(f"prometheus-client's multiprocess mode: a request {float(text):.1f} us")
    with tempfile.TemporaryDirectory() as base:
        for count in (WORKERS, RECYCLED):
            for _ in range(count):
                theirs(THEIRS.format(labels=LABELS), base)
            taken_by, files = theirs(THEIR_SCRAPE, base).split()
            print(f"  a scrape after {count} more workers: {float(taken_by):.0f} ms, {files} files")


if __name__ == "__main__":
    main()
