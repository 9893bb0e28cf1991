"""The gateway's own endpoints: its health, what it is, and which services it knows.

None of them changes anything. What they tell of health is what the worker read last, so that a
request costs the store nothing but a look at how full it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from wsgiref.types import WSGIApplication, WSGIEnvironment

from wsgigate.admin.documents import json_app
from wsgigate.admin.info import own_routes
from wsgigate.discovery import Instance
from wsgigate.discovery.status import iso_time, not_monitored
from wsgigate.problem import Problem, Refuse, answer_with
from wsgigate.rules.routing import Route
from wsgigate.wsgi import PARAMS

__all__ = ["Facts", "HasInstances", "ServiceFacts", "Statuses", "routes"]


class HasInstances(Protocol):
    """What is wanted of a pool: who is in it at the moment."""

    @property
    def instances(self) -> Iterable[Instance]:
        """The instances, in a stable order."""


class Statuses(Protocol):
    """What is wanted of a health checker."""

    def status(self, service: str) -> dict[str, Any]:
        """Return the status of one service."""

    def all(self) -> dict[str, dict[str, Any]]:
        """Return the status of every service that has been checked."""


@dataclass(frozen=True)
class ServiceFacts:
    """What is told of a service.

    :param pool: Knows its instances.
    :param routes: The paths it says it answers.
    :param ejected: Tells the URLs of the instances that this worker leaves out as they fail.
    :param bulkhead: Tells how many requests are under way in this worker, and may be; or nothing.
    :param discovery: Tells how the source of its instances stands, if it has one.
    """

    pool: HasInstances
    routes: Sequence[str] = ()
    ejected: Callable[[], Sequence[str]] = tuple
    bulkhead: Callable[[], Mapping[str, int]] = dict
    discovery: Callable[[], dict[str, Any]] | None = None


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
    started: Callable[[], float],
    now: Callable[[], float] = time.time,
    refuse: Refuse = answer_with,
) -> list[Route[WSGIApplication]]:
    """Return the routes of the gateway's own endpoints.

    :param prefix: The path they are below, such as ``/_gateway``.
    :param health: Tells how the services are; without one they are taken to be healthy.
    :param store: Tells of the store, which nothing is said of without.
    :param circuits: Tells how the services' circuits stand, which nothing is said of without.
    :param started: Tells since when this process serves, in Unix time.
    :param now: Tells the Unix time.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: *prefix* is no path.
    """
    if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
        raise ValueError(f'prefix is "" or a path such as "/_gateway", got {prefix!r}')
    endpoints = _Endpoints(facts, health, store, circuits, started, now)
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
        started: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._facts = facts
        self._health = health
        self._store = store
        self._circuits = circuits
        self._started = started
        self._now = now

    def health(self, environ: WSGIEnvironment) -> object:
        now = self._now()
        total = len(self._facts.services)
        # counted as each service's own status says, so one without a check counts as healthy
        healthy = sum(self._status(name)["healthy"] for name in self._facts.services)
        return {
            "gateway": {
                "name": self._facts.name,
                "version": self._facts.version,
                "status": "healthy",
                "timestamp": iso_time(now),
                "uptime": round(max(0.0, now - self._started()), 3),
            },
            "services": self._health.all() if self._health else {},
            "summary": {
                "healthy": healthy,
                "total": total,
                "healthPercentage": f"{100 * healthy / total if total else 0:.2f}",
            },
            **({"circuitBreakers": self._circuits()} if self._circuits else {}),
            **({"discovery": found} if (found := self._found()) else {}),
            **({"store": self._store()} if self._store else {}),
        }

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
        services = [self._service(name) for name in self._facts.services]
        return {"success": True, "services": services, "count": len(services)}

    def discover(self, environ: WSGIEnvironment) -> object:
        name = (environ.get(PARAMS) or {}).get("name", "")
        if name not in self._facts.services:
            return Problem(404, "Service not found!")
        return {"success": True, "service": self._service(name)}

    def _service(self, name: str) -> dict[str, Any]:
        service = self._facts.services[name]
        urls = [instance.url for instance in service.pool.instances]
        told: dict[str, Any] = {"name": name, "url": urls[0] if urls else None}
        if len(urls) > 1:
            told["instances"] = urls
        if service.discovery:
            told["discovery"] = service.discovery()
        ejected = service.ejected()
        if ejected:
            told["ejected"] = list(ejected)
        bulkhead = service.bulkhead()
        if bulkhead:
            told["bulkhead"] = dict(bulkhead)
        return {**told, "routes": list(service.routes), "status": self._status(name)}

    def _status(self, name: str) -> dict[str, Any]:
        return self._health.status(name) if self._health else not_monitored()
