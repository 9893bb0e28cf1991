"""The gateway's own endpoints: its health, what it is, and which services it knows.

None of them changes anything. What they tell of health is what the worker read last; a request
costs the store a look at how full it is, and a few short reads where workers share their reports.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.coordination.maintenance import GATEWAY
from wsgigate.coordination.worker_reports import Report
from wsgigate.discovery import Instance
from wsgigate.discovery.health_results import not_monitored
from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.wsgi import PARAMS, REASON
from wsgigate.rules.routing import Route
from wsgigate.units import iso_time

__all__ = [
    "Facts",
    "HasInstances",
    "ServiceFacts",
    "Statuses",
    "describe_features",
    "describe_routes",
    "json_app",
    "own_routes",
    "routes",
]


# WSGI apps that answer with a JSON document.


def json_app(
    make: Callable[[WSGIEnvironment], object], *, refuse: Refuse = answer_with
) -> WSGIApplication:
    """Return the app that answers with what *make* returns: a document, or a :class:`Problem`.

    The document is always JSON and says that it is nothing else, so that no browser takes a name in
    it for a page. It is never kept: it tells of this moment.
    """

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        document = make(environ)
        if isinstance(document, Problem):
            environ.setdefault(REASON, document.detail)
            return refuse(document)(environ, start_response)
        body = json.dumps(document).encode("ascii")
        start_response(
            "200 OK",
            [
                ("Content-Type", "application/json; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
            ],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return app


# What a gateway says of itself, worked out from what it is made of.

E = TypeVar("E")

_MIDDLEWARES = (
    ("logger", "Request logging"),
    ("limiter", "Rate limiting"),
    ("authenticator", "Authentication"),
)


def own_routes(prefix: str = "") -> dict[str, str]:
    """Return the endpoints that a gateway has of its own, with what each is for."""
    return {
        f"GET {prefix}/health": "Gateway health check",
        f"GET {prefix}/info": "Gateway information",
        f"GET {prefix}/services": "List all services",
    }


def describe_routes(
    routes: Iterable[Route[E]], *, prefix: str = "", given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return what ``/info`` says of the routes: ``GET /orders/*`` and what it is for.

    :param routes: The routes. One that is listed nowhere is not told here either.
    :param prefix: The path the gateway's own endpoints are below; they come first.
    :param given: What to say instead of *routes*, in the operator's words.
    """
    told = own_routes(prefix)
    if given:
        return {**told, **given}
    for route in routes:
        for text in _texts(route):
            told.setdefault(text, route.summary or "Proxied service routes")
    return told


def _texts(route: Route[E]) -> Sequence[str]:
    if route.listed is not None:
        return route.listed
    path = route.host + (route.path if route.exact else route.path.rstrip("/") + "/*")
    return [f"{method} {path}" for method in route.methods or ("ANY",)]


def describe_features(
    middlewares: Collection[str],
    *,
    services: bool = True,
    health: bool = False,
    given: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return what ``/info`` says the gateway can do.

    :param middlewares: The names of the middlewares in use, around everything or around a route.
    :param services: Whether there are services to forward to.
    :param health: Whether any of them has a health check.
    :param given: What to say instead, in the operator's words.
    """
    if given:
        return tuple(given)
    told = [feature for name, feature in _MIDDLEWARES if name in middlewares]
    if services:
        told += ["Service discovery", "Load balancing"]
    if health:
        told.append("Health monitoring")
    return tuple(told)


class HasInstances(Protocol):
    """What is wanted of a pool: who is in it at the moment."""

    @property
    def instances(self) -> Iterable[Instance]:
        """The instances, in a stable order."""


class Statuses(Protocol):
    """What is wanted of a health checker."""

    def status(self, service: str) -> dict[str, Any]:
        """Return the status of one service."""


@dataclass(frozen=True)
class ServiceFacts:
    """What is told of a service.

    :param pool: Knows its instances.
    :param routes: The paths it says it answers.
    :param discovery: Tells how the source of its instances stands, if it has one.
    :param bulkhead: Whether to tell how full its bulkhead is before that has refused a request.
    """

    pool: HasInstances
    routes: Sequence[str] = ()
    discovery: Callable[[], dict[str, Any]] | None = None
    bulkhead: bool = False


@dataclass(frozen=True)
class Facts:
    """What is told of a gateway.

    :param port: The port it listens at, ``None`` when it has none, as with a Unix socket.
    :param services: By name, in the order in which they are told.
    :param info_routes: What each route is for, as ``GET /orders/*``: :func:`.describe_routes`.
    :param features: What it can do: :func:`.describe_features`.
    """

    name: str
    version: str
    port: int | None = None
    services: Mapping[str, ServiceFacts] = field(default_factory=dict)
    info_routes: Mapping[str, str] = field(default_factory=dict)
    features: Sequence[str] = ()


def routes(
    facts: Facts,
    prefix: str = "",
    *,
    health: Statuses | None = None,
    store: Callable[[], dict[str, Any]] | None = None,
    circuits: Callable[[], dict[str, Any]] | None = None,
    maintenance: Callable[[], Mapping[str, dict[str, Any]]] | None = None,
    workers: Callable[[], Mapping[str, Report]] | None = None,
    started: Callable[[], float],
    now: Callable[[], float] = time.time,
    refuse: Refuse = answer_with,
) -> list[Route[WSGIApplication]]:
    """Return the routes of the gateway's own endpoints.

    :param prefix: The path they are below, such as ``/_gateway``.
    :param health: Tells how the services are; without one they are taken to be healthy.
    :param store: Tells of the store, which nothing is said of without; it has an ``error`` while
        it fails, and the gateway's status is ``degraded`` then.
    :param circuits: Tells how the services' circuits stand, which nothing is said of without.
    :param maintenance: Tells by scope what is out of service, which nothing is said of without;
        the gateway's status is ``maintenance`` while all of it is.
    :param workers: Tells what each worker reports: its ``bulkheads`` and ``ejections`` are told
        in ``/services``, summed and by worker.
    :param started: Tells since when this process serves, in Unix time.
    :param now: Tells the Unix time.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: *prefix* is no path.
    """
    if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
        raise ValueError(f'prefix is "" or a path such as "/_gateway", got {prefix!r}')
    endpoints = _Endpoints(facts, health, store, circuits, maintenance, workers, started, now)
    own = {
        text: Route(
            text.removeprefix("GET "),
            json_app(make, refuse=refuse),
            methods=("GET",),
            exact=True,
            listed=(text,),
            summary=summary,
        )
        for (text, summary), make in zip(
            own_routes(prefix).items(),
            (endpoints.health, endpoints.info, endpoints.services),
            strict=True,
        )
    }
    discover = Route(
        f"{prefix}/discover/{{name}}",
        json_app(endpoints.discover, refuse=refuse),
        methods=("GET",),
        exact=True,
        listed=(),
        summary="One service",
    )
    return [*own.values(), discover]


class _Endpoints:
    def __init__(
        self,
        facts: Facts,
        health: Statuses | None,
        store: Callable[[], dict[str, Any]] | None,
        circuits: Callable[[], dict[str, Any]] | None,
        maintenance: Callable[[], Mapping[str, dict[str, Any]]] | None,
        workers: Callable[[], Mapping[str, Report]] | None,
        started: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._facts = facts
        self._health = health
        self._store = store
        self._circuits = circuits
        self._maintenance = maintenance
        self._workers = workers
        self._started = started
        self._now = now

    def health(self, environ: WSGIEnvironment) -> object:
        now = self._now()
        off = self._off()
        services = {name: self._status(name, off) for name in self._facts.services}
        total = len(services)
        healthy = sum(status["healthy"] for status in services.values())
        store = self._store() if self._store else {}
        status = "degraded" if "error" in store else "healthy"
        if GATEWAY in off:
            status = "maintenance"
        return {
            "gateway": {
                "name": self._facts.name,
                "version": self._facts.version,
                "status": status,
                "timestamp": iso_time(now),
                "uptime": round(max(0.0, now - self._started()), 3),
            },
            "services": services,
            "summary": {
                "healthy": healthy,
                "total": total,
                "healthPercentage": f"{100 * healthy / total if total else 0:.2f}",
            },
            **({"circuitBreakers": self._circuits()} if self._circuits else {}),
            **({"discovery": found} if (found := self._found()) else {}),
            **({"store": store} if store else {}),
            **({"maintenance": off} if self._maintenance else {}),
        }

    def _off(self) -> dict[str, dict[str, Any]]:
        """Return what is out of service, by scope."""
        return dict(self._maintenance()) if self._maintenance else {}

    def _found(self) -> dict[str, Any]:
        services = self._facts.services.items()
        return {name: facts.discovery() for name, facts in services if facts.discovery}

    def info(self, environ: WSGIEnvironment) -> object:
        facts = self._facts
        return {
            "gateway": {"name": facts.name, "version": facts.version, "port": facts.port},
            "services": list(facts.services),
            "routes": dict(facts.info_routes),
            "features": list(facts.features),
        }

    def services(self, environ: WSGIEnvironment) -> object:
        off, reports = self._off(), self._reports()
        services = [self._service(name, off, reports) for name in self._facts.services]
        told = {"success": True, "services": services, "count": len(services)}
        if reports:
            told["workers"] = {worker: _told(report) for worker, report in reports.items()}
        return told

    def _reports(self) -> Mapping[str, Report]:
        return self._workers() if self._workers else {}

    def discover(self, environ: WSGIEnvironment) -> object:
        name = (environ.get(PARAMS) or {}).get("name", "")
        if name not in self._facts.services:
            return Problem(404, "Service not found!")
        return {"success": True, "service": self._service(name, self._off(), self._reports())}

    def _service(
        self, name: str, off: Mapping[str, dict[str, Any]], reports: Mapping[str, Report]
    ) -> dict[str, Any]:
        service = self._facts.services[name]
        urls = [instance.url for instance in service.pool.instances]
        told: dict[str, Any] = {"name": name, "url": urls[0] if urls else None}
        if len(urls) > 1:
            told["instances"] = urls
        if service.discovery:
            told["discovery"] = service.discovery()
        ejections = _ejections(name, reports.values())
        if ejections:
            told["ejected"] = list(ejections)
            told["ejections"] = ejections
        bulkhead = _bulkhead(name, reports.values())
        if bulkhead and (service.bulkhead or bulkhead.get("refused")):
            told["bulkhead"] = bulkhead
        return {**told, "routes": list(service.routes), "status": self._status(name, off)}

    def _status(self, name: str, off: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Return the status of a service: by its health checks, if it has instances at all."""
        service = self._facts.services[name]
        instances = [*service.pool.instances]
        if not instances:
            found = service.discovery() if service.discovery else {}
            why = found.get("error")
            told = {"healthy": False, "error": f"No instances: {why}" if why else "No instances"}
        elif not any(instance.weight for instance in instances):
            told = {"healthy": False, "error": "All instances are draining"}
        else:
            told = self._health.status(name) if self._health else not_monitored()
        notice = off.get(f"service:{name}")
        return told if notice is None else {**told, "maintenance": notice}


def _bulkhead(name: str, reports: Iterable[Report]) -> dict[str, int]:
    """Return the sums over all workers of what they tell of the bulkhead of a service."""
    sums: dict[str, int] = {}
    for report in reports:
        for key, count in report.get("bulkheads", {}).get(name, {}).items():
            sums[key] = sums.get(key, 0) + count
    return sums


def _ejections(name: str, reports: Iterable[Report]) -> dict[str, dict[str, Any]]:
    """Return the instances of a service that a worker leaves out: since when, until when, why.

    ``workers`` is how many of them do: each judges by the responses that it has seen itself.
    """
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        for url, (since, until, why) in report.get("ejections", {}).get(name, {}).items():
            known = found.setdefault(url, {"since": since, "until": 0, "workers": 0})
            known["since"] = min(known["since"], since)
            if until >= known["until"]:
                known |= {"until": until, "reason": why}
            known["workers"] += 1
    return {
        url: {**known, "since": iso_time(known["since"]), "until": iso_time(known["until"])}
        for url, known in sorted(found.items())
    }


def _told(report: Report) -> dict[str, Any]:
    """Return what ``/services`` says of one worker."""
    return {
        "bulkheads": dict(report.get("bulkheads", {})),
        "ejected": {name: sorted(each) for name, each in report.get("ejections", {}).items()},
    }
