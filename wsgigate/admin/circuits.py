"""Circuits as the gateway tells of them: how they stand, and a way to close one by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from wsgiref.types import WSGIApplication, WSGIEnvironment

from wsgigate.admin.access import require_token
from wsgigate.admin.documents import json_app
from wsgigate.circuits import CircuitStatus
from wsgigate.discovery.status import iso_time
from wsgigate.problem import Problem, Refuse, answer_with
from wsgigate.rules.routing import Route
from wsgigate.wsgi import PARAMS

__all__ = ["HasCircuit", "circuit_routes", "circuit_statuses"]


class HasCircuit(Protocol):
    """What is wanted of a circuit."""

    @property
    def name(self) -> str:
        """What people call it: the service's name."""

    def status(self) -> CircuitStatus:
        """Return how it stands."""

    def reset(self) -> bool:
        """Close it; return whether the other workers will hear of it."""


def circuit_statuses(
    circuits: Sequence[HasCircuit], now: Callable[[], float] = time.time
) -> dict[str, dict[str, Any]]:
    """Return how *circuits* stand, by name: the ``circuitBreakers`` of ``/health``.

    The state is that of all workers, the counts are those of this one.

    :param now: Tells the Unix time.
    """
    told: dict[str, dict[str, Any]] = {}
    for circuit in circuits:
        state, failures, successes, since_failure, *_ = circuit.status()
        told[circuit.name] = {
            "serviceName": circuit.name,
            "state": state.value,
            "failureCount": failures,
            "successCount": successes,
            "lastFailureTime": None if since_failure is None else iso_time(now() - since_failure),
        }
    return told


def circuit_routes(
    circuits: Sequence[HasCircuit],
    prefix: str = "",
    *,
    token: str | None,
    now: Callable[[], float] = time.time,
    refuse: Refuse = answer_with,
) -> list[Route[WSGIApplication]]:
    """Return the routes that tell how *circuits* stand, and that close one.

    :param circuits: One for each name.
    :param prefix: The path they are below, such as ``/_gateway``.
    :param token: What closing one takes; without it, that is no route.
    :param now: Tells the Unix time.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: *token* is none, see :func:`.require_token`; two circuits share a name.
    """
    by_name = {circuit.name: circuit for circuit in circuits}
    if len(by_name) < len(circuits):
        raise ValueError("two circuits have the same name")

    def told(environ: WSGIEnvironment) -> object:
        return {"success": True, "circuitBreakers": circuit_statuses(circuits, now)}

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
