"""Endpoints for operations: deny tokens, switch maintenance mode, list and reset circuits.

Each function returns the endpoints of one subject as a :class:`.Group`; a request that changes
something requires the admin token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Protocol, TypedDict

from wsgigate.admin.access import Role
from wsgigate.admin.api import AdminEndpoint, Group, match_of, with_tag
from wsgigate.auth.jwt import MAX_LENGTH
from wsgigate.coordination.circuit import CircuitStatus, Counts, Forced
from wsgigate.coordination.denylist import DeniedEntry, DenyList
from wsgigate.coordination.maintenance import GATEWAY, MaintenanceSwitch, Notice
from wsgigate.http.bodies import wrong
from wsgigate.http.json_app import ErrorResponses, JsonRequest
from wsgigate.http.problem import Problem, Refusal
from wsgigate.rules.circuit import FORCES, Event
from wsgigate.store import StoreError
from wsgigate.telemetry.audit import Actor, audited, requester
from wsgigate.units import iso_time, parse_duration

__all__ = [
    "HasCircuit",
    "checked_members",
    "circuit_counts",
    "circuit_group",
    "circuit_statuses",
    "deny_group",
    "duration_of",
    "force_audited",
    "maintenance_document",
    "maintenance_group",
    "notices_document",
    "store_errors",
    "switch_audited",
]


def store_errors(detail: str, reason: str) -> ErrorResponses:
    """Return the response to a failure of the store: *detail* for the client, *reason* to log."""
    problem = Problem(503, detail, headers=(("Retry-After", "5"),))
    return {StoreError: lambda error: Refusal(problem, f"{reason}: {error}")}


class Done(TypedDict):
    """A change that was made."""

    success: bool
    message: str


def checked_members(body: Mapping[str, Any], known: Collection[str]) -> None:
    """Check that a body has no other members than *known*.

    :raises Refusal: It has; the message names one.
    """
    for field in body:
        if field not in known:
            raise wrong(f"{field[:64]!a}: unknown field; known are {', '.join(known)}.", field[:64])


def duration_of(body: Mapping[str, Any]) -> float | None:
    """Return the member ``for`` of a body in seconds; None without one.

    :raises Refusal: It is no duration.
    """
    lasts = body.get("for")
    try:
        return None if lasts is None else parse_duration(lasts)
    except ValueError as error:
        raise wrong(f"for: {error}.", "for") from None


# Token denial.

LARGEST_DENIAL = 2 * MAX_LENGTH
"""The maximum size of the body, in bytes: a token and the other fields."""

_DENIAL_FIELDS = {"token": {"until"}, "jti": {"until"}, "sub": {"before", "until"}}


class Denial(TypedDict):
    """Exactly one of ``token``, ``jti`` and ``sub``, and how long it is denied."""

    token: NotRequired[Annotated[str, "A token."]]
    jti: NotRequired[Annotated[str, "The jti of a token."]]
    sub: NotRequired[Annotated[str, "The sub of all tokens of a caller."]]
    until: NotRequired[
        Annotated[
            float,
            "The Unix time at which the last of the tokens expires. Default for token: its own "
            "expiry.",
        ]
    ]
    before: NotRequired[
        Annotated[
            float,
            "With sub: only tokens issued before this Unix time are denied. Default: now.",
        ]
    ]


class Denied(TypedDict):
    """A denial that was made."""

    success: bool
    message: str
    denied: str
    until: float


MOST_DENIALS = 1000
"""The maximum number of denials in one response."""


class DeniedTokens(TypedDict):
    """One denial."""

    id: Annotated[str, "The kind, a colon, and the SHA-256 hash of what is denied."]
    kind: Literal["token", "jti", "sub"]
    until: Annotated[str | None, "When the last of the tokens expires."]
    before: Annotated[str | None, "With sub: tokens issued before this time are denied."]


class Denials(TypedDict):
    """The denials that are in force."""

    denied: list[DeniedTokens]
    complete: Annotated[bool, "Whether these are all denials."]


def _denial(entry: DeniedEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "kind": entry.kind,
        "until": None if entry.until > _LATEST else iso_time(entry.until),
        "before": None if entry.before is None else iso_time(min(entry.before, _LATEST)),
    }


_LATEST = 253_402_300_799.0  # the end of the year 9999, which ISO 8601 can express


def deny_group(deny_list: DenyList, *, now: Callable[[], float] = time.time) -> Group:
    """Return the endpoints that deny tokens, list the denials, and remove one.

    The body is a JSON object with one of ``token``, ``jti`` and ``sub``; ``until``, the Unix time
    at which the last of the tokens expires (default for ``token``: its own expiry); and, for
    ``sub``, ``before``: only tokens issued before this Unix time are denied (default: now).

    :param deny_list: The list to add to.
    :param now: Returns the Unix time.
    """

    def deny(request: JsonRequest) -> object:
        kind, until = _denied(deny_list, request, now)
        return {"success": True, "message": "Denied.", "denied": kind, "until": until}

    def listed(request: JsonRequest) -> object:
        found = deny_list.denials(MOST_DENIALS + 1)
        return {
            "denied": [_denial(each) for each in found[:MOST_DENIALS]],
            "complete": len(found) <= MOST_DENIALS,
        }

    def allow(request: JsonRequest, id: str) -> object:
        try:
            with audited("token.allow", id, by=requester(request.environ)) as change:
                removed = deny_list.allow(id)
                if removed is None:
                    raise Refusal.of(404, "There is no such denial.")
                change.before = _denial(removed)
        except ValueError as error:
            raise wrong(f"{error}.", "id") from None
        return {"success": True, "message": "The denial was removed."}

    return Group(
        "tokens",
        [
            AdminEndpoint(
                line="GET /tokens/denied",
                answer=listed,
                summary="The denials of tokens",
                description="The store has hashes of what is denied only.",
                response=Denials,
            ),
            AdminEndpoint(
                line="DELETE /tokens/denied/{id}",
                answer=allow,
                summary="Remove a denial of tokens",
                response=Done,
                current=lambda request, id: listed(request),
            ),
            AdminEndpoint(
                line="POST /tokens/deny",
                answer=deny,
                summary="Deny tokens before they expire",
                body=Denial,
                response=Denied,
                yields=False,
            ),
        ],
        errors=store_errors(
            "The deny list cannot be written at the moment. "
            "The denial may or may not have taken effect.",
            "the deny list cannot be written",
        ),
        largest=LARGEST_DENIAL,
    )


def _denied(
    deny_list: DenyList, request: JsonRequest, now: Callable[[], float]
) -> tuple[str, float]:
    """Add the denial in the body to the list; return its kind, and until when it lasts."""
    body = request.json()
    kinds = [kind for kind in _DENIAL_FIELDS if kind in body]
    if len(kinds) != 1:
        raise wrong("exactly one of token, jti and sub is required.")
    [kind] = kinds
    for field in body:
        if field != kind and field not in _DENIAL_FIELDS[kind]:
            raise wrong(f"{field[:64]!a}: not allowed together with {kind}.", field[:64])
    named = body[kind]
    if not isinstance(named, str):
        raise wrong(f"{kind}: must be a string.", kind)
    if kind != "token" and "until" not in body:
        raise wrong(
            "until: is required: the Unix time at which the last of the tokens expires.", "until"
        )
    # A token is a credential, so the log names it as that only.
    target = kind if kind == "token" else f"{kind} {named}"
    try:
        with audited("token.deny", target, by=requester(request.environ)) as change:
            if kind == "token":
                until = deny_list.deny_token(named, body.get("until"))
            elif kind == "jti":
                until = deny_list.deny_jti(named, body["until"])
            else:
                until = deny_list.deny_subject(named, body.get("before", now()), body["until"])
            change.after = {"until": iso_time(until)}
    except ValueError as error:
        raise wrong(f"{error}.", str(error).partition(":")[0]) from None
    return kind, until


# Maintenance mode.

LARGEST_MAINTENANCE = 4096
"""The maximum size of the body, in bytes."""

_MAINTENANCE_FIELDS = ("on", "scope", "for", "message")


def maintenance_document(switch: MaintenanceSwitch) -> dict[str, dict[str, Any]]:
    """Return the maintenance notices by scope, as JSON members: since, until and message.

    :raises StoreError: The store failed.
    """
    return notices_document(switch.status())


def notices_document(notices: Mapping[str, Notice]) -> dict[str, dict[str, Any]]:
    """Return *notices* by scope, as JSON members."""
    return {
        scope: {
            "since": iso_time(since),
            "until": None if until is None else iso_time(until),
            "message": message,
        }
        for scope, (since, until, message) in notices.items()
    }


class MaintenanceNotice(TypedDict):
    """Why and how long a scope is out of service."""

    since: str
    until: str | None
    message: str


class MaintenanceState(TypedDict):
    """What is out of service, by scope."""

    success: bool
    scopes: NotRequired[Annotated[list[str], "The scopes that can be switched."]]
    maintenance: dict[str, MaintenanceNotice]


MaintenanceChange = TypedDict(
    "MaintenanceChange",
    {
        "on": Annotated[bool, "Whether the scope goes out of service."],
        "scope": NotRequired[Annotated[str, "Default: gateway."]],
        "for": NotRequired[
            Annotated[float | str, 'How long, in seconds or as "30m". Default: until switched.']
        ],
        "message": NotRequired[Annotated[str, "A sentence for clients."]],
    },
)


def maintenance_group(switch: MaintenanceSwitch, scopes: Collection[str]) -> Group:
    """Return the endpoints of ``/maintenance``: GET lists the notices, POST switches a scope.

    The body of a POST is a JSON object with ``on``, true or false; ``scope`` (default:
    ``gateway``); and with ``on``, optionally, ``for``, the duration in seconds or as a text such as
    ``"30m"``, and ``message``, a sentence for clients.

    :param scopes: The scopes: ``gateway``, ``service:NAME``, ``route:NAME``.
    """

    def show(request: JsonRequest) -> object:
        return {
            "success": True,
            "scopes": list(scopes),
            "maintenance": maintenance_document(switch),
        }

    def change(request: JsonRequest) -> object:
        _switch(switch, scopes, request)
        return {"success": True, "maintenance": maintenance_document(switch)}

    return Group(
        "maintenance",
        [
            AdminEndpoint(
                line="GET /maintenance",
                answer=show,
                summary="What is out of service",
                response=MaintenanceState,
                yields=False,
            ),
            AdminEndpoint(
                line="POST /maintenance",
                answer=change,
                summary="Take a scope out of service, or back",
                body=MaintenanceChange,
                response=MaintenanceState,
                yields=False,
            ),
        ],
        errors=store_errors(
            "The maintenance state is unknown at the moment. "
            "A change may or may not have taken effect.",
            "the store failed",
        ),
        largest=LARGEST_MAINTENANCE,
    )


def _switch(switch: MaintenanceSwitch, scopes: Collection[str], request: JsonRequest) -> None:
    body = request.json()
    for field in body:
        if field not in _MAINTENANCE_FIELDS:
            raise wrong(
                f"{field[:64]!a}: unknown field; known are {', '.join(_MAINTENANCE_FIELDS)}.",
                field[:64],
            )
    on, scope, lasts = body.get("on"), body.get("scope", GATEWAY), body.get("for")
    if not isinstance(on, bool):
        raise wrong("on: must be true or false.", "on")
    if not on and ("for" in body or "message" in body):
        raise wrong('for and message: allowed with "on": true only.', "on")
    if not isinstance(scope, str) or (on and scope not in scopes):
        raise wrong("scope: must be one of the scopes that GET lists.", "scope")
    try:
        try:
            seconds = None if lasts is None else parse_duration(lasts)
        except ValueError as error:
            raise ValueError(f"for: {error}") from None
        switch_audited(
            switch,
            scope,
            on=on,
            lasts=seconds,
            message=body.get("message", ""),
            by=requester(request.environ),
        )
    except ValueError as error:
        raise wrong(f"{error}.", str(error).partition(":")[0]) from None


def switch_audited(
    switch: MaintenanceSwitch,
    scope: str,
    *,
    on: bool,
    lasts: float | None = None,
    message: str = "",
    by: Actor,
) -> None:
    """Switch maintenance of *scope* on or off, with a record in the audit log.

    :param lasts: Seconds after which it ends; None for no end.
    :param by: Who switches it.
    :raises ValueError: An argument is invalid; the message names it.
    :raises StoreError: The store failed.
    """
    with audited(f"maintenance.{'on' if on else 'off'}", scope, by=by) as change:
        change.before = maintenance_document(switch).get(scope)
        if on:
            switch.on(scope, lasts=lasts, message=message)
        else:
            switch.off(scope)
        change.after = maintenance_document(switch).get(scope)


_DAY = 86_400.0


class HasCircuit(Protocol):
    """The part of a circuit that the endpoints use."""

    @property
    def name(self) -> str:
        """The circuit's name: that of the service."""

    def status(self, *, fresh: bool = ...) -> CircuitStatus:
        """Return its status; with *fresh*, the one that all workers share at the moment."""

    def counts(self) -> Counts:
        """Return what this worker has counted."""

    def reset(self) -> bool:
        """Close it; return whether the other workers will learn of it."""

    def force(
        self, state: str, *, lasts: float | None = ..., generation: int | None = ...
    ) -> Forced:
        """Force it open or closed, or release it."""


class CircuitCounts(NamedTuple):
    """The counts of one worker for a circuit, as in its report.

    :ivar generation: The generation of the verdict that the worker knew.
    :ivar failures: Failed calls since the last successful one.
    :ivar successes: Successful calls in total.
    :ivar last: When the last call failed, in Unix time; ``None`` without one.
    """

    generation: int
    failures: int
    successes: int
    last: float | None


def circuit_counts(
    circuits: Sequence[HasCircuit],
    now: Callable[[], float] = time.time,
    steady: Callable[[str, float], float] = lambda _, moment: moment,
) -> dict[str, CircuitCounts]:
    """Return this worker's counts of *circuits*, by name.

    :param now: Returns the Unix time.
    :param steady: Given a name and a time, returns the time it returned before if the two differ
        only by the difference of two clocks: see :class:`.StableTimes`.
    """
    found = {}
    for circuit in circuits:
        generation, failures, successes, since = circuit.counts()
        last = None if since is None else steady(circuit.name, now() - since)
        found[circuit.name] = CircuitCounts(generation, failures, successes, last)
    return found


def circuit_statuses(
    circuits: Sequence[HasCircuit],
    now: Callable[[], float] = time.time,
    workers: Iterable[Mapping[str, Sequence[Any]]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the states of *circuits* by name: the ``circuitBreakers`` of ``/health``.

    The state is that of all workers, and the counts are summed over them. A circuit that has
    changed its state also has ``since``, the ``reason``, and, unless it is closed, ``until``.

    :param now: Returns the Unix time.
    :param workers: The counts of each worker, see :func:`circuit_counts`. Default: those
        of this worker.
    """
    statuses: dict[str, dict[str, Any]] = {}
    if workers is None:
        workers = [circuit_counts(circuits, now)]
    reports = [*workers]
    for circuit in circuits:
        status = circuit.status(fresh=True)
        counts = [
            CircuitCounts(*report[circuit.name]) for report in reports if circuit.name in report
        ]
        if status.why == Event.RESET.value:
            # the report of a worker that has not seen the reset yet has the counts before it
            heard = (each.generation >= status.generation for each in counts)
            counts = [
                each if knows else each._replace(failures=0, last=None)
                for each, knows in zip(counts, heard, strict=True)
            ]
        last = max((each.last for each in counts if each.last is not None), default=None)
        statuses[circuit.name] = {
            "serviceName": circuit.name,
            "state": status.state.value,
            "failureCount": sum(each.failures for each in counts),
            "successCount": sum(each.successes for each in counts),
            "lastFailureTime": None if last is None else iso_time(last),
        }
        if status.since is not None:
            unix = now()
            # with a store on Unix time, all workers report the same time to the millisecond
            ahead = status.moment - unix
            ahead = 0.0 if abs(ahead) < _DAY else ahead
            statuses[circuit.name] |= {
                "since": iso_time(status.since - ahead),
                "reason": status.why,
                "until": None if status.until is None else iso_time(status.until - ahead),
            }
        if status.forced:
            statuses[circuit.name]["forced"] = True
    return statuses


class WorkerCircuit(TypedDict):
    """What one worker has counted for a circuit breaker."""

    failureCount: int
    successCount: int
    lastFailureTime: str | None


class CircuitState(TypedDict):
    """The state of a circuit breaker, of all workers."""

    serviceName: str
    state: str
    failureCount: Annotated[int, "Failed calls since the last successful one, of all workers."]
    successCount: int
    lastFailureTime: str | None
    since: NotRequired[str]
    reason: NotRequired[str]
    until: NotRequired[str | None]
    forced: NotRequired[Annotated[bool, "Whether an operator has forced this state."]]


class CircuitChange(TypedDict):
    """The last change of a circuit breaker; a change makes another tag of it."""

    service: str
    state: Literal["CLOSED", "OPEN", "HALF_OPEN"]
    forced: Annotated[bool, "Whether an operator has forced this state."]
    reason: str
    until: Annotated[str | None, "When the state ends; null if only on command, or by failures."]
    generation: Annotated[int, "The number of changes."]
    appliesTo: Annotated[str, "all workers; this worker, while the store is unavailable."]


CircuitForce = TypedDict(
    "CircuitForce",
    {
        "state": Annotated[Literal["open", "closed", "auto"], "auto: it decides by itself."],
        "for": NotRequired[
            Annotated[float | str, 'How long, in seconds or as "30m". Default: no end.']
        ],
    },
)


class CircuitStates(TypedDict):
    """The circuit breakers by service, and what each worker has counted."""

    success: bool
    circuitBreakers: dict[str, CircuitState]
    workers: NotRequired[dict[str, dict[str, WorkerCircuit]]]


def circuit_group(
    circuits: Sequence[HasCircuit],
    *,
    now: Callable[[], float] = time.time,
    workers: Callable[[], Mapping[str, Mapping[str, Sequence[Any]]]] | None = None,
) -> Group:
    """Return the endpoints that list the states of *circuits*, and that reset one.

    :param circuits: The circuits, with unique names.
    :param now: Returns the Unix time.
    :param workers: Returns the counts by worker. Default: those of this worker only.
    :raises ValueError: Two circuits share a name.
    """
    by_name = {circuit.name: circuit for circuit in circuits}
    if len(by_name) < len(circuits):
        raise ValueError("two circuits have the same name")

    def show(request: JsonRequest) -> object:
        if workers is None:
            return {"success": True, "circuitBreakers": circuit_statuses(circuits, now)}
        reports = workers()
        return {
            "success": True,
            "circuitBreakers": circuit_statuses(circuits, now, reports.values()),
            "workers": {
                worker: {name: _counts(each) for name, each in report.items()}
                for worker, report in reports.items()
            },
        }

    def show_one(request: JsonRequest, name: str) -> object:
        circuit = by_name.get(name)
        if circuit is None:
            return Problem(404, "Circuit breaker not found!")
        return _last_change(circuit.name, circuit.status(fresh=True), now)

    def force(request: JsonRequest, name: str) -> object:
        circuit = by_name.get(name)
        if circuit is None:
            return Problem(404, "Circuit breaker not found!")
        body, generation, matches = request.json(), None, match_of(request)
        checked_members(body, ("state", "for"))
        state = body.get("state")
        if not isinstance(state, str) or state not in FORCES:
            raise wrong(f"state: must be one of {', '.join(FORCES)}.", "state")
        if matches is not None:
            status = circuit.status(fresh=True)
            if not matches(_last_change(name, status, now)):
                return Problem(412, "The resource has changed since it was read.")
            generation = status.generation
        try:
            forced = force_audited(
                circuit,
                state,
                lasts=duration_of(body),
                generation=generation,
                by=requester(request.environ),
            )
        except ValueError as error:
            raise wrong(f"{error}.", str(error).partition(":")[0]) from None
        if not forced.changed:
            return Problem(412, "The resource has changed since it was read.")
        if not forced.shared:
            return Problem(
                503,
                "The circuit breaker was changed in this worker only.",
                extensions={"error": "Store unavailable"},
                headers=(("Retry-After", "5"),),
            )
        return with_tag(_last_change(name, circuit.status(), now))

    def reset(request: JsonRequest, name: str) -> object:
        circuit = by_name.get(name)
        if circuit is None:
            return Problem(404, "Circuit breaker not found!")
        with audited("circuit.reset", name, by=requester(request.environ)) as change:
            change.before = circuit.status(fresh=True).state.value
            shared = circuit.reset()
            change.after = "closed"
            if not shared:
                change.failed = "the store is unavailable: reset in this worker only"
        if not shared:
            return Problem(
                503,
                "The circuit breaker was reset in this worker only.",
                extensions={"error": "Store unavailable"},
                headers=(("Retry-After", "5"),),
            )
        return {"success": True, "message": f"Circuit breaker reset for {name}"}

    return Group(
        "circuit breakers",
        [
            AdminEndpoint(
                line="GET /circuit-breakers",
                answer=show,
                summary="Circuit breaker states",
                response=CircuitStates,
                role=Role.PUBLIC,
                yields=False,
            ),
            AdminEndpoint(
                line="GET /circuit-breakers/{name}",
                answer=show_one,
                summary="The last change of a circuit breaker",
                response=CircuitChange,
            ),
            AdminEndpoint(
                line="PUT /circuit-breakers/{name}",
                answer=force,
                summary="Force a circuit breaker open or closed, or release it",
                description="Every worker applies it within a second, and it survives restarts. "
                "One that is forced closed counts failures, and stays closed.",
                body=CircuitForce,
                response=CircuitChange,
            ),
            AdminEndpoint(
                line="POST /circuit-breakers/{name}/reset",
                answer=reset,
                summary="Close a circuit breaker",
                response=Done,
                current=lambda request, name: show(request),
                yields=False,
            ),
        ],
    )


def force_audited(
    circuit: HasCircuit,
    state: str,
    *,
    lasts: float | None = None,
    generation: int | None = None,
    by: Actor,
) -> Forced:
    """Force a circuit open or closed, or release it, with a record in the audit log.

    The arguments are those of :meth:`.Circuit.force`.
    """
    with audited(f"circuit.{state}", circuit.name, by=by) as change:
        change.before = circuit.status(fresh=True).state.value
        forced = circuit.force(state, lasts=lasts, generation=generation)
        change.after = circuit.status().state.value
        if not forced.changed:
            change.failed = "the circuit has changed meanwhile"
        elif not forced.shared:
            change.failed = "the store is unavailable: changed in this worker only"
    return forced


def _last_change(name: str, status: CircuitStatus, now: Callable[[], float]) -> dict[str, Any]:
    ahead = status.moment - now()
    ahead = 0.0 if abs(ahead) < _DAY else ahead
    return {
        "service": name,
        "state": status.state.value,
        "forced": status.forced,
        "reason": status.why,
        "until": None if status.until is None else iso_time(status.until - ahead),
        "generation": status.generation,
        "appliesTo": "all workers" if status.shared else "this worker",
    }


def _counts(report: Sequence[Any]) -> dict[str, Any]:
    each = CircuitCounts(*report)
    return {
        "failureCount": each.failures,
        "successCount": each.successes,
        "lastFailureTime": None if each.last is None else iso_time(each.last),
    }
