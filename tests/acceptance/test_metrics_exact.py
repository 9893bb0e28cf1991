"""No count is lost while workers are recycled and killed, and the file of the counts never grows.

What the clients count is compared with what the gateway's metrics say, to the last request.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.servers import Served
from tests.support.waiting import until

SOURCE = """
import time
from wsgigate import Metrics

def answer(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.05)
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]

app = Metrics(answer, path="/metrics", public=True, folder={folder!r})
"""

WORKER = "wsgigate.servers.gunicorn_worker.GateWorker"

Serve = Callable[..., Served]


@pytest.fixture
def folder() -> Iterator[str]:
    made = tempfile.mkdtemp(dir="/dev/shm")
    yield os.path.join(made, "metrics")
    shutil.rmtree(made)


def get(served: Served, path: str) -> bytes | None:
    """Return the body of a response; None if the connection ended before it was complete."""
    try:
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
            client.sendall(
                b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode()
            )
            data = b"".join(iter(lambda: client.recv(65536), b""))
    except OSError:
        return None
    head, separator, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    complete = lengths and len(body) == int(lengths[0].split(b":")[1])
    return body if separator and complete else None


def metrics(served: Served) -> Counter[str]:
    """Return the sums over all labels by the name of the sample."""
    body = until(lambda: get(served, "/metrics")).decode()
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            found[sample.name] += int(sample.value)
    return found


def load(served: Served, path: str, requests: int, after: Callable[[int], None]) -> Counter[str]:
    """Send *requests* by 4 clients; *after* is called with the number of each answer so far."""
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                if counts["sent"] == requests:
                    return
                counts["sent"] += 1
            answered = get(served, path) == b"hello"
            with lock:
                counts["answered"] += answered
                after(counts["answered"])

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def space(folder: str) -> tuple[list[str], int, int]:
    """Return the files of the folder, and the length and the space of the counts."""
    found = os.stat(os.path.join(folder, "metrics"))
    return sorted(os.listdir(folder)), found.st_size, found.st_blocks


def test_fifty_recycled_workers_lose_no_count_and_the_file_does_not_grow(
    serve_app: Serve, folder: str
) -> None:
    arguments = ("-k", WORKER, "--preload", "--threads", "2", "--graceful-timeout", "20")
    served = serve_app(
        SOURCE.format(folder=folder), *arguments, "--workers", "3", "--max-requests", "10"
    )
    spaces: list[tuple[list[str], int, int]] = []
    sent = answered = 0
    while True:
        counts = load(served, "/", 150, lambda number: None)
        sent, answered = sent + counts["sent"], answered + counts["answered"]
        found = metrics(served)
        spaces.append(space(folder))
        if found["wsgigate_worker_starts_total"] >= 54:
            break
    assert answered == sent

    def settled() -> bool:
        return metrics(served)["http_server_request_duration_seconds_count"] >= sent

    until(settled)
    found = metrics(served)
    assert found["http_server_request_duration_seconds_count"] == sent
    assert found["wsgigate_requests_started_total"] == sent
    assert found["wsgigate_response_bytes_total"] == 5 * sent
    assert found["http_server_active_requests"] == 0
    assert found["wsgigate_requests_lost_total"] == 0
    files, length, used = space(folder)
    assert files == ["metrics", "metrics.lock"]
    assert {length} == {each for _, each, _ in spaces}
    # a slot for each worker that lived at once: two generations at most
    assert used * 512 < 2_000_000


def test_requests_of_killed_workers_are_lost_and_all_others_counted(
    serve_app: Serve, folder: str
) -> None:
    arguments = ("-k", WORKER, "--preload", "--threads", "2")
    served = serve_app(SOURCE.format(folder=folder), *arguments, "--workers", "3")
    killed: set[int] = set()

    def kill(answered: int) -> None:
        if answered >= 20 * (len(killed) + 1) and len(killed) < 8:
            for worker in served.workers():
                if worker not in killed:
                    killed.add(worker)
                    os.kill(worker, signal.SIGKILL)
                    return

    counts = load(served, "/slow", 240, kill)
    assert len(killed) == 8

    def at_rest() -> Counter[str] | None:
        found = metrics(served)
        return found if found["http_server_active_requests"] == 0 else None

    found: Counter[str] = until(at_rest)
    finished = found["http_server_request_duration_seconds_count"]
    lost = found["wsgigate_requests_lost_total"]
    assert found["wsgigate_requests_started_total"] == finished + lost
    assert lost <= 16  # two threads in each of eight workers
    # a worker may be killed between the last byte of a response and its count
    assert finished <= counts["sent"]
    assert counts["answered"] <= finished + lost
    assert found["wsgigate_worker_starts_total"] <= 11
    assert Path(folder, "metrics").stat().st_blocks * 512 < 2_000_000
