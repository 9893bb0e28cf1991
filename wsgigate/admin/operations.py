"""Circuits as the gateway tells of them: how they stand, and a way to close one by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from wsgiref.types import WSGIApplication, WSGIEnvironment

from wsgigate.admin.endpoints import json_app
from wsgigate.auth.bearer import require_token
from wsgigate.auth.jwt import MAX_LENGTH
from wsgigate.coordination.circuit import CircuitStatus, Counts
from wsgigate.coordination.denylist import DenyList
from wsgigate.coordination.maintenance import GATEWAY, MaintenanceSwitch, Notice
from wsgigate.http.bodies import json_body, wrong
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.http.wsgi import PARAMS, REASON
from wsgigate.rules.circuit import Event
from wsgigate.rules.routing import Route
from wsgigate.store import StoreError
from wsgigate.units import iso_time, parse_duration

__all__ = [
    "HasCircuit",
    "circuit_routes",
    "circuit_statuses",
    "counted",
    "deny_route",
    "maintenance_routes",
    "maintenance_told",
    "notices_told",
]


# The endpoint that denies tokens before they end.

LARGEST_DENIAL = 2 * MAX_LENGTH
"""The largest body that is read, in bytes: a token and all else there is to say."""

_DENIAL_FIELDS = {"token": {"until"}, "jti": {"until"}, "sub": {"before", "until"}}


def deny_route(
    deny_list: DenyList,
    prefix: str,
    token: str | None,
    *,
    now: Callable[[], float] = time.time,
    refuse: Refuse = answer_with,
) -> Route[WSGIApplication]:
    """Return the route of ``POST /tokens/deny``.

    Its body is a JSON object with one of ``token``, ``jti`` and ``sub``; with ``until``, the Unix
    time at which the last of them ends, which a ``token`` says itself; and with ``before``, for a
    ``sub``, the Unix time before which they were issued, the present unless said.

    :param prefix: The path of the gateway's own endpoints.
    :param token: What the request must present; without one all are refused.
    :param now: Tells the Unix time.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: *token* can be guessed.
    """

    def deny(environ: WSGIEnvironment) -> object:
        try:
            kind, until = _denied(deny_list, json_body(environ, LARGEST_DENIAL), now)
        except Refusal as refusal:
            return refusal.problem
        except StoreError as error:
            environ[REASON] = f"the deny-list cannot be written: {error}"
            return Problem(
                503,
                "The deny-list cannot be written at the moment. What was asked may hold or not.",
                headers=(("Retry-After", "5"),),
            )
        return {"success": True, "message": "Denied.", "denied": kind, "until": until}

    app = json_app(deny, refuse=refuse)
    if token is None:
        app = refuse(Problem(403, "This gateway has no admin token, so nobody may change it."))
    else:
        app = require_token(app, token, refuse=refuse)
    return Route(
        f"{prefix}/tokens/deny",
        app,
        methods=("POST",),
        exact=True,
        listed=(),
        summary="Deny tokens before they end",
    )


def _denied(
    deny_list: DenyList, body: dict[str, Any], now: Callable[[], float]
) -> tuple[str, float]:
    """Do what *body* asks for; return what was denied, and until when."""
    kinds = [kind for kind in _DENIAL_FIELDS if kind in body]
    if len(kinds) != 1:
        raise wrong("token, jti, sub: exactly one of them says what is denied.")
    [kind] = kinds
    for field in body:
        if field != kind and field not in _DENIAL_FIELDS[kind]:
            raise wrong(f"{field[:64]!a}: there is no such field beside {kind}.", field[:64])
    named = body[kind]
    if not isinstance(named, str):
        raise wrong(f"{kind}: a text.", kind)
    if kind != "token" and "until" not in body:
        raise wrong("until: is missing, the Unix time at which the last of them ends.", "until")
    try:
        if kind == "token":
            until = deny_list.deny_token(named, body.get("until"))
        elif kind == "jti":
            until = deny_list.deny_jti(named, body["until"])
        else:
            until = deny_list.deny_subject(named, body.get("before", now()), body["until"])
    except ValueError as error:
        raise wrong(f"{error}.", str(error).partition(":")[0]) from None
    return kind, until


# What is out of service on purpose, as the gateway tells of it, and the switch.

LARGEST_MAINTENANCE = 4096
"""The largest body that is read, in bytes."""

_MAINTENANCE_FIELDS = ("on", "scope", "for", "message")


def maintenance_told(switch: MaintenanceSwitch) -> dict[str, dict[str, Any]]:
    """Return what is out of service, by scope: since when, until when and what is said.

    :raises StoreError: The store failed.
    """
    return notices_told(switch.status())


def notices_told(notices: Mapping[str, Notice]) -> dict[str, dict[str, Any]]:
    """Return *notices* as members of a JSON object, by scope."""
    return {
        scope: {
            "since": iso_time(since),
            "until": None if until is None else iso_time(until),
            "message": message,
        }
        for scope, (since, until, message) in notices.items()
    }


def maintenance_routes(
    switch: MaintenanceSwitch,
    scopes: Collection[str],
    prefix: str = "",
    *,
    token: str | None,
    refuse: Refuse = answer_with,
) -> list[Route[WSGIApplication]]:
    """Return the routes of ``/maintenance``: GET tells what is out of service, POST switches it.

    The body of a POST is a JSON object with ``on``, true or false; ``scope``, ``gateway`` unless
    said; and to switch it on ``for``, seconds or a text such as ``"30m"`` after which it ends by
    itself, and ``message``, a sentence for clients.

    :param scopes: What there is to be switched: ``gateway``, ``service:NAME``, ``route:NAME``.
    :param prefix: The path of the gateway's own endpoints.
    :param token: What both of them take; without one all are refused.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: *token* can be guessed.
    """
    unreadable = Problem(
        503,
        "What is out of service is not known at the moment. What was asked may hold or not.",
        headers=(("Retry-After", "5"),),
    )

    def told(environ: WSGIEnvironment) -> object:
        return {"success": True, "scopes": list(scopes), "maintenance": maintenance_told(switch)}

    def change(environ: WSGIEnvironment) -> object:
        _switch(switch, scopes, json_body(environ, LARGEST_MAINTENANCE))
        return {"success": True, "maintenance": maintenance_told(switch)}

    def tried(does: Callable[[WSGIEnvironment], object]) -> WSGIApplication:
        def answer(environ: WSGIEnvironment) -> object:
            try:
                return does(environ)
            except Refusal as refusal:
                return refusal.problem
            except StoreError as error:
                environ[REASON] = f"the store failed: {error}"
                return unreadable

        if token is None:
            return refuse(Problem(403, "This gateway has no admin token, so nobody may change it."))
        return require_token(json_app(answer, refuse=refuse), token, refuse=refuse)

    return [
        Route(
            f"{prefix}/maintenance",
            tried(does),
            methods=(method,),
            exact=True,
            name=f"{method} {prefix}/maintenance",
            listed=(),
            summary=summary,
        )
        for method, does, summary in (
            ("GET", told, "What is out of service"),
            ("POST", change, "Take out of service, and back"),
        )
    ]


def _switch(switch: MaintenanceSwitch, scopes: Collection[str], body: dict[str, Any]) -> None:
    for field in body:
        if field not in _MAINTENANCE_FIELDS:
            raise wrong(f"{field[:64]!a}: there is no such field.", field[:64])
    on, scope, lasts = body.get("on"), body.get("scope", GATEWAY), body.get("for")
    if not isinstance(on, bool):
        raise wrong("on: true or false.", "on")
    if not on and ("for" in body or "message" in body):
        raise wrong("for and message: only to switch it on.", "on")
    if not isinstance(scope, str) or (on and scope not in scopes):
        raise wrong("scope: one of those that GET tells.", "scope")
    try:
        if not on:
            switch.off(scope)
            return
        try:
            seconds = None if lasts is None else parse_duration(lasts)
        except ValueError as error:
            raise ValueError(f"for: {error}") from None
        switch.on(scope, lasts=seconds, message=body.get("message", ""))
    except ValueError as error:
        raise wrong(f"{error}.", str(error).partition(":")[0]) from None


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
