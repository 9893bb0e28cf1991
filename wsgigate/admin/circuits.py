"""Circuits as the gateway tells of them: how they stand, and a way to close one by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from wsgiref.types import WSGIApplication, WSGIEnvironment

from wsgigate.admin.access import require_token
from wsgigate.admin.documents import json_app
from wsgigate.circuits import CircuitStatus, Counts
from wsgigate.discovery.status import iso_time
from wsgigate.problem import Problem, Refuse, answer_with
from wsgigate.rules.circuit import Event
from wsgigate.rules.routing import Route
from wsgigate.wsgi import PARAMS

__all__ = ["HasCircuit", "circuit_routes", "circuit_statuses", "counted"]


_DAY = 86_400.0


class HasCircuit(Protocol):
    """What is wanted of a circuit."""

    @property
    def name(self) -> str:
        """What people call it: the service's name."""

    def status(self, *, fresh: bool = ...) -> CircuitStatus:
        """Return how it stands; by what all workers agree on at the moment if *fresh*."""

    def counts(self) -> Counts:
        """Return what this worker has counted."""

    def reset(self) -> bool:
        """Close it; return whether the other workers will hear of it."""


class Counted(NamedTuple):
    """What one worker has counted of a circuit, as its report has it.

    :ivar generation: Of the verdict that it knew.
    :ivar failures: Calls that have failed since the last one that was answered.
    :ivar successes: Calls that were answered, all in all.
    :ivar last: When the last one failed, in Unix time; ``None`` when it has seen none.
    """

    generation: int
    failures: int
    successes: int
    last: float | None


def counted(
    circuits: Sequence[HasCircuit],
    now: Callable[[], float] = time.time,
    steady: Callable[[str, float], float] = lambda _, moment: moment,
) -> dict[str, Counted]:
    """Return what this worker has counted of *circuits*, by name.

    :param now: Tells the Unix time.
    :param steady: Given a name and a moment, returns the moment as it was returned before, where
        it differs by no more than two clocks do: see :class:`.Steady`.
    """
    found = {}
    for circuit in circuits:
        generation, failures, successes, since = circuit.counts()
        last = None if since is None else steady(circuit.name, now() - since)
        found[circuit.name] = Counted(generation, failures, successes, last)
    return found


def circuit_statuses(
    circuits: Sequence[HasCircuit],
    now: Callable[[], float] = time.time,
    workers: Iterable[Mapping[str, Sequence[Any]]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return how *circuits* stand, by name: the ``circuitBreakers`` of ``/health``.

    The state is that of all workers, and the counts are summed over them. A circuit that has
    changed its state also tells ``since`` when, the ``reason``, and, unless it is closed,
    ``until`` when it stays so.

    :param now: Tells the Unix time.
    :param workers: What each worker has counted, as :func:`counted` returns it; this one alone
        by default.
    """
    told: dict[str, dict[str, Any]] = {}
    if workers is None:
        workers = [counted(circuits, now)]
    reports = [*workers]
    for circuit in circuits:
        status = circuit.status(fresh=True)
        counts = [Counted(*report[circuit.name]) for report in reports if circuit.name in report]
        if status.why == Event.RESET.value:
            # a worker that has not heard of the reset yet still tells what was before
            heard = (each.generation >= status.generation for each in counts)
            counts = [
                each if knows else each._replace(failures=0, last=None)
                for each, knows in zip(counts, heard, strict=True)
            ]
        last = max((each.last for each in counts if each.last is not None), default=None)
        told[circuit.name] = {
            "serviceName": circuit.name,
            "state": status.state.value,
            "failureCount": sum(each.failures for each in counts),
            "successCount": sum(each.successes for each in counts),
            "lastFailureTime": None if last is None else iso_time(last),
        }
        if status.since is not None:
            unix = now()
            # a store whose time is the Unix time tells all workers the same to the millisecond
            ahead = status.moment - unix
            ahead = 0.0 if abs(ahead) < _DAY else ahead
            told[circuit.name] |= {
                "since": iso_time(status.since - ahead),
                "reason": status.why,
                "until": None if status.until is None else iso_time(status.until - ahead),
            }
    return told


def circuit_routes(
    circuits: Sequence[HasCircuit],
    prefix: str = "",
    *,
    token: str | None,
    now: Callable[[], float] = time.time,
    workers: Callable[[], Mapping[str, Mapping[str, Sequence[Any]]]] | None = None,
    refuse: Refuse = answer_with,
) -> list[Route[WSGIApplication]]:
    """Return the routes that tell how *circuits* stand, and that close one.

    :param circuits: One for each name.
    :param prefix: The path they are below, such as ``/_gateway``.
    :param token: What closing one takes; without it, that is no route.
    :param now: Tells the Unix time.
    :param workers: Tells by worker what each has counted; this one alone by default.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: *token* is none, see :func:`.require_token`; two circuits share a name.
    """
    by_name = {circuit.name: circuit for circuit in circuits}
    if len(by_name) < len(circuits):
        raise ValueError("two circuits have the same name")

    def told(environ: WSGIEnvironment) -> object:
        if workers is None:
            return {"success": True, "circuitBreakers": circuit_statuses(circuits, now)}
        reports = workers()
        return {
            "success": True,
            "circuitBreakers": circuit_statuses(circuits, now, reports.values()),
            "workers": {
                worker: {name: _told(each) for name, each in report.items()}
                for worker, report in reports.items()
            },
        }

    def reset(environ: WSGIEnvironment) -> object:
        name = (environ.get(PARAMS) or {}).get("name", "")
        circuit = by_name.get(name)
        if circuit is None:
            return Problem(404, "Circuit breaker not found!")
        if not circuit.reset():
            return Problem(
                503,
                "The circuit breaker was reset in this worker alone.",
                extensions={"error": "Store unavailable"},
                headers=(("Retry-After", "5"),),
            )
        return {"success": True, "message": f"Circuit breaker reset for {name}"}

    path = f"{prefix}/circuit-breakers"
    routes: list[Route[WSGIApplication]] = [
        Route(
            path,
            json_app(told, refuse=refuse),
            methods=("GET",),
            exact=True,
            listed=(),
            summary="Circuit breaker states",
        )
    ]
    if token is not None:
        routes.append(
            Route(
                f"{path}/{{name}}/reset",
                require_token(json_app(reset, refuse=refuse), token, refuse=refuse),
                methods=("POST",),
                exact=True,
                listed=(),
                summary="Close a circuit breaker",
            )
        )
    return routes


def _told(report: Sequence[Any]) -> dict[str, Any]:
    each = Counted(*report)
    return {
        "failureCount": each.failures,
        "successCount": each.successes,
        "lastFailureTime": None if each.last is None else iso_time(each.last),
    }
