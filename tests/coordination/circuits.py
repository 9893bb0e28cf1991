"""Workers that share a circuit, and calls through it."""

from __future__ import annotations

from typing import Any

from wsgigate.coordination.circuit import Circuit, Permit, Rejection
from wsgigate.rules.circuit import CircuitRules, Outcome
from wsgigate.testing import FakeClock

RULES = CircuitRules(consecutive_failures=3, open_for=5, probes=2, probe_timeout=10, jitter=0)


def worker(clock: FakeClock, store: Any = None, rules: CircuitRules = RULES) -> Circuit:
    return Circuit("orders", rules, store=store, clock=clock, random=lambda: 0.0)


def admitted(circuit: Circuit) -> Permit:
    permit = circuit.admit()
    assert isinstance(permit, Permit)
    return permit


def waits(circuit: Circuit) -> float:
    answer = circuit.admit()
    assert isinstance(answer, Rejection)
    return answer.retry_after


def call(circuit: Circuit, outcome: Outcome = Outcome.OK) -> None:
    admitted(circuit).done(outcome)


def break_it(circuit: Circuit) -> None:
    for _ in range(3):
        call(circuit, Outcome.FAILED)
