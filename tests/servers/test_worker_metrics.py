"""What the metrics have of a worker: its threads, its connections, and what it rejects itself."""

from __future__ import annotations

from tests.servers.gate import GET, Gate, Make
from tests.support.metrics import Measured
from tests.support.waiting import until
from wsgigate.servers.gunicorn_worker import GateWorker


def test_the_gauges_have_the_threads_and_the_connections(gate: Gate, measured: Measured) -> None:
    gate.ask()
    gate.connect()
    gate.worker.expire(1.0)
    assert measured.series("wsgigate_worker_threads") == {("idle",): 4.0}
    assert measured.series("wsgigate_worker_connections") == {("idle",): 2.0}
    gate.worker.at_work |= {1, 2, 3, 4}  # as many threads as it has
    waiting = gate.connect()
    waiting.sendall(GET)
    until(gate.worker.idle.any_ready)
    gate.worker.expire(2.0)
    assert measured.series("wsgigate_worker_threads") == {("busy",): 4.0}
    assert measured.value("wsgigate_worker_queue") == 1
    gate.worker.at_work.clear()
    gate.worker.expire(3.0)
    assert measured.value("wsgigate_worker_queue") == 0


def test_a_connection_beyond_the_limit_of_an_address_is_counted(
    make: Make, measured: Measured
) -> None:
    gate = make(kind=GateWorker.having(max_connections_per_client=1))
    for _ in range(3):
        gate.connect()
    assert measured.series("wsgigate_worker_connections_rejected") == {("client",): 2.0}


def test_a_connection_that_makes_room_is_counted(gate: Gate, measured: Measured) -> None:
    gate.connect()
    gate.worker.make_room()
    gate.worker.make_room()  # there is no other
    assert measured.series("wsgigate_worker_connections_rejected") == {("oldest",): 1.0}


def test_a_request_that_the_server_rejects_is_counted_by_status(
    gate: Gate, measured: Measured
) -> None:
    assert gate.ask(b"GET /\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert gate.ask(b"GET / HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n").startswith(
        b"HTTP/1.1 431 "
    )
    assert gate.ask().endswith(b"ok")
    assert measured.series("wsgigate_worker_requests_rejected") == {("400",): 1.0, ("431",): 1.0}


def test_an_app_that_fails_is_no_rejection_of_the_server(make: Make, measured: Measured) -> None:
    def failing(environ: object, start_response: object) -> list[bytes]:
        raise RuntimeError("failed")

    assert make(failing).ask().startswith(b"HTTP/1.1 500 ")
    assert not measured.series("wsgigate_worker_requests_rejected")
