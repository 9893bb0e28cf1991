"""The gateway's own endpoints: health, information about the gateway, and its services.

All of them are read-only. The health results are those that the worker read last; a request costs a
read of the store's usage, and a few short reads where workers share their reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NotRequired, Protocol, TypedDict, TypeVar

from wsgigate.admin.access import Role
from wsgigate.admin.api import AdminEndpoint, Group
from wsgigate.coordination.maintenance import GATEWAY
from wsgigate.coordination.worker_reports import Report
from wsgigate.discovery import Instance
from wsgigate.discovery.health_results import not_monitored
from wsgigate.http.json_app import JsonRequest
from wsgigate.http.problem import Problem
from wsgigate.rules.routing import Route
from wsgigate.units import iso_time

__all__ = [
    "Facts",
    "HasInstances",
    "ServiceFacts",
    "Statuses",
    "describe_features",
    "describe_routes",
    "ejections_of",
    "status_group",
]


# The contents of ``/info``.

E = TypeVar("E")

_MIDDLEWARES = (
    ("logger", "Request logging"),
    ("limiter", "Rate limiting"),
    ("authenticator", "Authentication"),
    ("api-key", "API keys"),
    ("basic", "HTTP Basic"),
    ("client-certificate", "Client certificates"),
    ("webhook", "Webhooks"),
    ("forward-auth", "Forward authentication"),
    ("introspection", "Token introspection"),
    ("authorizer", "Authorization"),
)


def describe_routes(
    routes: Iterable[Route[E]], *, prefix: str = "", given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the routes for ``/info``: ``GET /orders/*`` and its description.

    :param routes: The routes; one with an empty ``listed`` is omitted.
    :param prefix: The path prefix of the gateway's own endpoints, which come first.
    :param given: The operator's own list, used instead of *routes*.
    """
    described = {
        each.line.replace(" ", f" {prefix}", 1): each.summary for each in _TABLE if each.listed
    }
    if given:
        return {**described, **given}
    for route in routes:
        for text in _texts(route):
            described.setdefault(text, route.summary or "Proxied service routes")
    return described


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
    """Return the features for ``/info``.

    :param middlewares: The names of the middlewares in use, gateway-wide or of a route.
    :param services: Whether there are services.
    :param health: Whether any of them has a health check.
    :param given: The operator's own list, used instead.
    """
    if given:
        return tuple(given)
    features = [feature for name, feature in _MIDDLEWARES if name in middlewares]
    if services:
        features += ["Service discovery", "Load balancing"]
    if health:
        features.append("Health monitoring")
    return tuple(features)


class HasInstances(Protocol):
    """The part of a pool that the endpoints use: its current instances, and their shares."""

    @property
    def instances(self) -> Iterable[Instance]:
        """The instances, in a stable order."""

    def shares(self) -> Mapping[str, int]:
        """Return the share of the requests of each instance; 0 if it gets no new ones."""


class Statuses(Protocol):
    """The part of a health checker that the endpoints use."""

    def status(self, service: str) -> dict[str, Any]:
        """Return the status of one service."""


@dataclass(frozen=True)
class ServiceFacts:
    """The facts about a service that the endpoints report.

    :param pool: Its instances.
    :param routes: Its paths, from the file.
    :param discovery: Returns the status of its source, if it has one.
    :param bulkhead: Whether to report its bulkhead before it has rejected a request.
    """

    pool: HasInstances
    routes: Sequence[str] = ()
    discovery: Callable[[], dict[str, Any]] | None = None
    bulkhead: bool = False


@dataclass(frozen=True)
class Facts:
    """The facts about a gateway that the endpoints report.

    :param port: The port it listens on, ``None`` for a Unix socket.
    :param services: The services by name, in the order of the reports.
    :param info_routes: The routes of ``/info``: :func:`.describe_routes`.
    :param features: The features of ``/info``: :func:`.describe_features`.
    """

    name: str
    version: str
    port: int | None = None
    services: Mapping[str, ServiceFacts] = field(default_factory=dict)
    info_routes: Mapping[str, str] = field(default_factory=dict)
    features: Sequence[str] = ()


def status_group(
    facts: Facts,
    *,
    health: Statuses | None = None,
    store: Callable[[], dict[str, Any]] | None = None,
    circuits: Callable[[], dict[str, Any]] | None = None,
    maintenance: Callable[[], Mapping[str, dict[str, Any]]] | None = None,
    workers: Callable[[], Mapping[str, Report]] | None = None,
    issuers: Callable[[], Mapping[str, dict[str, Any]]] | None = None,
    endpoints: Callable[[], Mapping[str, dict[str, Any]]] | None = None,
    started: Callable[[], float],
    now: Callable[[], float] = time.time,
) -> Group:
    """Return the endpoints that anyone may read: health, information, services.

    :param health: The health checker. Without one, services are reported as healthy.
    :param store: Returns the status of the store, if it is reported; with an ``error`` in it
        the gateway's status is ``degraded``.
    :param circuits: Returns the states of the services' circuits, if they are reported.
    :param maintenance: Returns the maintenance notices by scope, if they are reported; the
        gateway's status is ``maintenance`` while the scope ``gateway`` is out of service.
    :param workers: Returns the report of each worker: ``/services`` has their ``bulkheads`` and
        ``ejections``, summed and by worker.
    :param issuers: Returns the status of the keys of each issuer of tokens, by its name.
    :param endpoints: Returns the status of each endpoint that middlewares ask about requests, by
        its URL.
    :param started: Returns when the gateway started, in Unix time.
    :param now: Returns the Unix time.
    """
    answers = _Endpoints(
        facts, health, store, circuits, maintenance, workers, issuers, endpoints, started, now
    )
    table = [replace(each, answer=partial(each.answer, answers)) for each in _TABLE]
    return Group("status", table)


@dataclass(frozen=True)
class _Endpoints:
    facts: Facts
    checker: Statuses | None
    store: Callable[[], dict[str, Any]] | None
    circuits: Callable[[], dict[str, Any]] | None
    maintenance: Callable[[], Mapping[str, dict[str, Any]]] | None
    workers: Callable[[], Mapping[str, Report]] | None
    issuers: Callable[[], Mapping[str, dict[str, Any]]] | None
    endpoints: Callable[[], Mapping[str, dict[str, Any]]] | None
    started: Callable[[], float]
    now: Callable[[], float]

    def health(self, request: JsonRequest) -> object:
        now = self.now()
        off = self._off()
        services = {name: self._status(name, off) for name in self.facts.services}
        total = len(services)
        healthy = sum(status["healthy"] for status in services.values())
        store = self.store() if self.store else {}
        status = "degraded" if "error" in store else "healthy"
        if GATEWAY in off:
            status = "maintenance"
        return {
            "gateway": {
                "name": self.facts.name,
                "version": self.facts.version,
                "status": status,
                "timestamp": iso_time(now),
                "uptime": round(max(0.0, now - self.started()), 3),
            },
            "services": services,
            "summary": {
                "healthy": healthy,
                "total": total,
                "healthPercentage": f"{100 * healthy / total if total else 0:.2f}",
            },
            **({"circuitBreakers": self.circuits()} if self.circuits else {}),
            **({"discovery": found} if (found := self._found()) else {}),
            **({"issuers": issuers} if (issuers := self._issuers()) else {}),
            **({"endpoints": asked} if (asked := self._asked()) else {}),
            **({"store": store} if store else {}),
            **({"maintenance": off} if self.maintenance else {}),
        }

    def _off(self) -> dict[str, dict[str, Any]]:
        """Return the maintenance notices by scope."""
        return dict(self.maintenance()) if self.maintenance else {}

    def _found(self) -> dict[str, Any]:
        services = self.facts.services.items()
        return {name: facts.discovery() for name, facts in services if facts.discovery}

    def _issuers(self) -> dict[str, dict[str, Any]]:
        """Return the status of the keys of each issuer of tokens."""
        return dict(self.issuers()) if self.issuers else {}

    def _asked(self) -> dict[str, dict[str, Any]]:
        """Return the status of each endpoint that middlewares ask about requests."""
        return dict(self.endpoints()) if self.endpoints else {}

    def info(self, request: JsonRequest) -> object:
        facts = self.facts
        return {
            "gateway": {"name": facts.name, "version": facts.version, "port": facts.port},
            "services": list(facts.services),
            "routes": dict(facts.info_routes),
            "features": list(facts.features),
        }

    def services(self, request: JsonRequest) -> object:
        off, reports = self._off(), self._reports()
        services = [self._service(name, off, reports) for name in self.facts.services]
        document = {"success": True, "services": services, "count": len(services)}
        if reports:
            document["workers"] = {name: _worker(report) for name, report in reports.items()}
        return document

    def _reports(self) -> Mapping[str, Report]:
        return self.workers() if self.workers else {}

    def discover(self, request: JsonRequest, name: str) -> object:
        if name not in self.facts.services:
            return Problem(404, "Service not found!")
        return {"success": True, "service": self._service(name, self._off(), self._reports())}

    def _service(
        self, name: str, off: Mapping[str, dict[str, Any]], reports: Mapping[str, Report]
    ) -> dict[str, Any]:
        service = self.facts.services[name]
        urls = [instance.url for instance in service.pool.instances]
        document: dict[str, Any] = {"name": name, "url": urls[0] if urls else None}
        if len(urls) > 1:
            document["instances"] = urls
        if service.discovery:
            document["discovery"] = service.discovery()
        ejections = ejections_of(name, reports.values())
        if ejections:
            document["ejected"] = list(ejections)
            document["ejections"] = ejections
        bulkhead = _bulkhead(name, reports.values())
        if bulkhead and (service.bulkhead or bulkhead.get("refused")):
            document["bulkhead"] = bulkhead
        return {**document, "routes": list(service.routes), "status": self._status(name, off)}

    def _status(self, name: str, off: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Return the status of a service: unhealthy without instances, else by health checks."""
        service = self.facts.services[name]
        instances = [*service.pool.instances]
        if not instances:
            found = service.discovery() if service.discovery else {}
            why = found.get("error")
            status = {"healthy": False, "error": f"No instances: {why}" if why else "No instances"}
        elif not any(service.pool.shares().values()):
            status = {"healthy": False, "error": "All instances are draining"}
        else:
            status = self.checker.status(name) if self.checker else not_monitored()
        notice = off.get(f"service:{name}")
        return status if notice is None else {**status, "maintenance": notice}


class HealthDocument(TypedDict):
    """The health of the gateway and of its services."""

    gateway: dict[str, Any]
    services: dict[str, Any]
    summary: dict[str, Any]
    circuitBreakers: NotRequired[dict[str, Any]]
    discovery: NotRequired[dict[str, Any]]
    issuers: NotRequired[dict[str, Any]]
    endpoints: NotRequired[dict[str, Any]]
    store: NotRequired[dict[str, Any]]
    maintenance: NotRequired[dict[str, Any]]


class Information(TypedDict):
    """The gateway, its services, routes and features."""

    gateway: dict[str, Any]
    services: list[str]
    routes: dict[str, str]
    features: list[str]


class ServiceDocument(TypedDict):
    """A service: its address, or its instances, and its status."""

    name: str
    url: str | None
    routes: list[str]
    status: dict[str, Any]
    instances: NotRequired[list[str]]
    discovery: NotRequired[dict[str, Any]]
    ejected: NotRequired[list[str]]
    ejections: NotRequired[dict[str, dict[str, Any]]]
    bulkhead: NotRequired[dict[str, int]]


class ServiceList(TypedDict):
    """All services."""

    success: bool
    services: list[ServiceDocument]
    count: int
    workers: NotRequired[dict[str, dict[str, Any]]]


class DiscoveredService(TypedDict):
    """One service."""

    success: bool
    service: ServiceDocument


_public = partial(AdminEndpoint, role=Role.PUBLIC, yields=False)

_TABLE = (
    _public("GET /health", _Endpoints.health, "Gateway health check", HealthDocument, listed=True),
    _public("GET /info", _Endpoints.info, "Gateway information", Information, listed=True),
    _public("GET /services", _Endpoints.services, "List all services", ServiceList, listed=True),
    _public("GET /discover/{name}", _Endpoints.discover, "One service", DiscoveredService),
)


def _bulkhead(name: str, reports: Iterable[Report]) -> dict[str, int]:
    """Return the counts of a service's bulkhead, summed over all workers."""
    sums: dict[str, int] = {}
    for report in reports:
        for key, count in report.get("bulkheads", {}).get(name, {}).items():
            sums[key] = sums.get(key, 0) + count
    return sums


def ejections_of(name: str, reports: Iterable[Report]) -> dict[str, dict[str, Any]]:
    """Return the instances of a service that any worker ejects, with since, until and reason.

    ``workers`` is the number of workers that do: each judges by the responses it received.
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


def _worker(report: Report) -> dict[str, Any]:
    """Return the entry of one worker in ``/services``."""
    return {
        "bulkheads": dict(report.get("bulkheads", {})),
        "ejected": {name: sorted(each) for name, each in report.get("ejections", {}).items()},
    }
