"""A circuit used by several threads and processes at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.coordination.circuits import RULES, admitted, break_it, call, waits, worker
from tests.support.logs import silence
from tests.support.objects import part
from wsgigate.coordination.circuit import Circuit, Permit, Rejection, SharedVerdict
from wsgigate.rules.circuit import CircuitRules, Outcome, State
from wsgigate.store import Change
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock

R = TypeVar("R")

_silent = silence("wsgigate.circuits")


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=lambda: clock() + 86_400 * 365)  # not the workers' own clock


class Overtaken(MemoryStore):
    """A store whose answers are on their way while another thread of the worker does something."""

    meanwhile: list[Callable[[], object]]

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.meanwhile = []

    def get(self, key: str) -> tuple[bytes | None, float]:
        found = super().get(key)
        if self.meanwhile:
            self.meanwhile.pop()()
        return found

    def update(self, key: str, change: Change[R]) -> R:
        result = super().update(key, change)
        if self.meanwhile:
            self.meanwhile.pop()()
        return result


def test_a_read_that_began_before_a_change_is_discarded(clock: FakeClock) -> None:
    store = Overtaken(clock)
    circuit = worker(clock, store)
    circuit.reset()
    clock.advance(0.5)
    permits = [admitted(circuit) for _ in range(3)]
    clock.advance(0.5)
    store.meanwhile = [lambda: [permit.done(Outcome.FAILED) for permit in permits]]
    circuit.admit()
    assert circuit.status().state is State.OPEN
    assert waits(circuit) == 5


def test_a_change_that_comes_late_does_not_undo_the_one_after_it(clock: FakeClock) -> None:
    store = Overtaken(clock)
    circuit = worker(clock, store)
    break_it(circuit)
    clock.advance(5)
    circuit.status()
    store.meanwhile = [circuit.reset]
    circuit.admit()
    assert circuit.status().state is State.CLOSED


def test_a_call_that_ends_after_a_change_does_not_count_in_the_new_state(clock: FakeClock) -> None:
    circuit = worker(clock)
    old = [admitted(circuit) for _ in range(4)]
    break_it(circuit)
    circuit.reset()
    for permit in old[:3]:
        permit.done(Outcome.FAILED)
    old[3].done(Outcome.OK)
    assert circuit.status()[:4] == (State.CLOSED, 0, 0, None)
    call(circuit, Outcome.FAILED)
    call(circuit, Outcome.FAILED)
    assert circuit.status().state is State.CLOSED
    call(circuit, Outcome.FAILED)
    assert circuit.status().state is State.OPEN


class Late:
    """A lock that is had only when another thread has done something."""

    def __init__(self, lock: Any, meanwhile: Callable[[], object]) -> None:
        self._lock, self._meanwhile = lock, [meanwhile]

    def __enter__(self) -> None:
        if self._meanwhile:
            self._meanwhile.pop()()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_call_that_ends_during_a_change_of_state_does_not_count(clock: FakeClock) -> None:
    circuit = worker(clock)
    permit = admitted(circuit)
    shared: Any = part(SharedVerdict, circuit)
    shared.lock = Late(shared.lock, lambda: (break_it(circuit), circuit.reset()))
    permit.done(Outcome.FAILED)
    assert circuit.status()[:4] == (State.CLOSED, 0, 0, None)


def test_failures_that_opened_a_circuit_do_not_count_after_it_closed(clock: FakeClock) -> None:
    rules = CircuitRules(minimum_calls=4, open_for=1, probes=1, jitter=0)
    circuit = worker(clock, rules=rules)
    for _ in range(4):
        call(circuit, Outcome.FAILED)
    clock.advance(1)
    call(circuit)
    call(circuit, Outcome.FAILED)
    assert circuit.status().state is State.CLOSED


def test_threads_of_one_worker_share_the_probes(clock: FakeClock, store: MemoryStore) -> None:
    for round_ in range(30):
        circuit = Circuit(f"orders {round_}", RULES, store=store, clock=clock, random=lambda: 0.0)
        break_it(circuit)
        clock.advance(5)
        answers: list[Permit | Rejection] = []
        gate = threading.Barrier(6)

        def ask(
            circuit: Circuit = circuit,
            answers: list[Permit | Rejection] = answers,
            gate: threading.Barrier = gate,
        ) -> None:
            gate.wait()
            answers.append(circuit.admit())

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(isinstance(answer, Permit) for answer in answers) == 2


PROBING = """
import json, sys, threading
from wsgigate.coordination.circuit import Circuit, Permit
from wsgigate.rules.circuit import CircuitRules
from wsgigate.store.lmdb import LmdbStore

store = LmdbStore(sys.argv[1])
rules = CircuitRules(open_for=0.001, probes=5, probe_timeout=3600, jitter=0)
circuit = Circuit("orders", rules, store=store)
circuit.status()
print("ready", flush=True)
sys.stdin.readline()
permits = []
def ask():
    for _ in range(50):
        answer = circuit.admit()
        if isinstance(answer, Permit):
            permits.append(answer)
threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(len(permits)), flush=True)
"""


def test_processes_with_many_threads_send_at_most_the_configured_probes(tmp_path: Path) -> None:
    from wsgigate.store.lmdb import LmdbStore

    store = LmdbStore(tmp_path / "store")
    rules = CircuitRules(open_for=0.001, probes=5, probe_timeout=3600, jitter=0)
    opened = Circuit("orders", rules, store=store)
    for _ in range(5):
        call(opened, Outcome.UNREACHABLE)
    store.close()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROBING, str(tmp_path / "store")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        made = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sum(made) == 5
