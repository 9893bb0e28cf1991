"""Which slow clients a GateWorker cuts, for requests that wait for a thread."""

from __future__ import annotations

from typing import Any

from tests.servers.gate import Gate


class Waits:
    """A connection that a thread waits for."""

    def __init__(self) -> None:
        self.ended = False
        self.read = 0

    def cut(self) -> None:
        self.ended = True

    def progress(self) -> int:
        return self.read


def under_pressure(
    gate: Gate, waited: list[float], *, busy: int = 4, ready: bool = True
) -> list[Waits]:
    """Have threads wait for connections, each for so many seconds at the time 100."""
    gate.worker._at_work = set(range(busy))
    gate.worker.idle.any_ready = lambda: ready  # type: ignore[method-assign]
    connections: list[Any] = [Waits() for _ in waited]
    gate.worker._waits = {
        each: 100.0 - seconds for each, seconds in zip(connections, waited, strict=True)
    }
    return connections


def cut_of(gate: Gate, waited: list[float], **options: Any) -> list[bool]:
    """Return which of the connections end, where requests have waited for a second."""
    connections = under_pressure(gate, waited, **options)
    gate.worker._pressed_since = 99.0
    gate.worker._free_threads(100.0)
    return [each.ended for each in connections]


def test_slow_clients_end_only_where_requests_wait_for_their_threads(gate: Gate) -> None:
    longer = [4.0, 3.0, 2.0, 1.0]
    assert cut_of(gate, longer, busy=3) == [False] * 4
    assert cut_of(gate, longer, ready=False) == [False] * 4
    assert cut_of(gate, [4.0]) == [False]
    assert cut_of(gate, [0.1, 0.2, 0.29, 0.0]) == [False] * 4
    assert gate.log.lines == []
    assert cut_of(gate, longer) == [True, True, True, False]
    assert len(gate.log.lines) == 1


def test_slow_clients_that_come_in_their_place_have_less_time(gate: Gate) -> None:
    assert cut_of(gate, [0.2, 0.2]) == [False, False]
    assert cut_of(gate, [1.0, 0.2]) == [True, False]
    assert cut_of(gate, [0.2, 0.1]) == [True, False]
    gate.worker._cut_at -= 10
    assert cut_of(gate, []) == []
    assert cut_of(gate, [0.2, 0.2]) == [False, False]


def test_a_client_that_reads_slowly_is_not_silent(gate: Gate) -> None:
    reads, silent = under_pressure(gate, [0.1, 0.1])
    for step in range(20):
        reads.read += 1
        gate.worker._free_threads(100.0 + step / 10)
    assert (reads.ended, silent.ended) == (False, True)


def test_slow_clients_do_not_end_for_a_request_that_has_just_come(gate: Gate) -> None:
    connections = under_pressure(gate, [9.0, 9.0])
    gate.worker._free_threads(100.0)
    gate.worker._free_threads(100.2)
    assert [each.ended for each in connections] == [False, False]
    gate.worker._free_threads(100.4)
    assert [each.ended for each in connections] == [True, False]


def test_output_that_is_owed_is_no_request_that_waits(gate: Gate) -> None:
    gate.connect()
    [connection] = gate.worker.idle
    connection.flushing = True
    gate.worker.idle.add(connection, writable=True)
    assert not gate.worker.idle.any_ready()
    connection.flushing = False
    assert gate.worker.idle.any_ready()
