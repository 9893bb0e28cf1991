"""What an operator reads of a running gateway, with a token: overview, routes, instances, workers.

Each document is made from what the worker has in memory, and from a few short reads where workers
share their reports: no request waits for an instance, and none holds a thread.
"""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, TypedDict, cast

from wsgigate.admin.api import AdminEndpoint, Group
from wsgigate.admin.endpoints import HasInstances, ServiceFacts, ejections_of
from wsgigate.admin.versions import package_version
from wsgigate.coordination.overrides import ACTIVE, Override
from wsgigate.coordination.worker_reports import Report
from wsgigate.http.json_app import JsonRequest
from wsgigate.http.problem import Problem
from wsgigate.telemetry.metrics import PROCESS, Totals
from wsgigate.telemetry.recent_errors import RecentError, matching_errors
from wsgigate.units import iso_time

__all__ = ["HealthStatuses", "ReadFacts", "RouteDocument", "SteeredPool", "read_group"]


# The documents.


class RouteDocument(TypedDict):
    """A route of the file."""

    name: str
    path: str
    host: Annotated[str, "Empty for any host."]
    methods: Annotated[list[str], "Empty for all methods."]
    exact: bool
    service: Annotated[str | None, "None if an app of the process answers."]
    middlewares: list[str]


class RouteList(TypedDict):
    """The routes of the file, and the middlewares of all requests."""

    routes: list[RouteDocument]
    middlewares: list[str]


Condition = Literal["ok", "warning", "error"]


class EjectionDocument(TypedDict):
    """An automatic ejection by outlier detection."""

    since: str
    until: str
    reason: str
    workers: Annotated[int, "The number of workers that eject the instance."]


class OperatorOverride(TypedDict):
    """What an operator has decided about an instance."""

    state: Literal["active", "drained", "ejected"]
    weight: int | None
    by: str


class InstanceDocument(TypedDict):
    """An instance of a service."""

    service: str
    url: str
    state: Annotated[Condition, "error: it gets no requests; warning: it soon may not."]
    reason: Annotated[str, "Why the state is not ok; empty if it is."]
    weight: Annotated[int, "Its configured weight."]
    share: Annotated[int, "Its weight at the moment; 0 if it gets no new requests."]
    tier: int
    zone: str
    source: Annotated[str, "What found it: static, or the source of its discovery."]
    health: Annotated[dict[str, Any], "The last check: healthy, lastCheck, error, status."]
    ejection: EjectionDocument | None
    override: OperatorOverride | None
    inFlight: Annotated[int | None, "Requests in flight, of all workers; None without metrics."]
    requests: Annotated[int | None, "Attempts since the start; None without metrics."]
    averageSeconds: Annotated[float | None, "Mean duration of attempts; None without any."]


class InstanceList(TypedDict):
    """The instances of all services."""

    instances: list[InstanceDocument]


class ServiceDetails(TypedDict):
    """A service, its instances, its routes and its circuit breaker."""

    name: str
    state: Condition
    reason: str
    instances: list[InstanceDocument]
    routes: list[str]
    discovery: dict[str, Any] | None
    circuitBreaker: dict[str, Any] | None
    maintenance: dict[str, Any] | None


class StateCounts(TypedDict):
    """How many of a kind are in which state."""

    total: int
    ok: int
    warning: int
    error: int


class GatewayState(TypedDict):
    """The gateway itself."""

    name: str
    version: Annotated[str, "gateway.version of the file."]
    started: str
    maintenance: bool


class ConfigState(TypedDict):
    """The configuration in force."""

    file: str
    hash: str
    loaded: Annotated[str, "When this worker's gateway was built from it."]
    mixed: Annotated[bool, "Whether workers serve different configurations, as during a reload."]


class LastMinute(TypedDict):
    """The requests of the last minute, of all workers."""

    rate: Annotated[float, "Requests per second."]
    errors: Annotated[float, "Responses with a status of 500 or higher, per second."]
    success: Annotated[float | None, "The share of the others; None without requests."]
    p50: Annotated[float | None, "Seconds that half of the requests took at most."]
    p95: float | None
    p99: float | None


class Overview(TypedDict):
    """The gateway at a glance."""

    state: Condition
    problems: Annotated[list[str], "What is not ok, one sentence each."]
    gateway: GatewayState
    versions: dict[str, str]
    config: ConfigState
    routes: StateCounts
    services: StateCounts
    instances: StateCounts
    middlewares: StateCounts
    circuitBreakers: StateCounts
    workers: int
    store: dict[str, Any]
    selfPreservation: Annotated[bool | None, "Whether the registry keeps silent instances."]
    lastMinute: Annotated[
        LastMinute | None, "The requests of the last minute; None without metrics or a sample."
    ]


class EffectiveConfiguration(TypedDict):
    """The configuration in force: its keys with their defaults, secrets masked."""

    file: str
    hash: str
    loaded: str
    configuration: dict[str, Any]


class WorkerDocument(TypedDict):
    """A worker process."""

    worker: str
    pid: int | None
    started: str | None
    version: str | None
    config: Annotated[str | None, "The hash of the configuration that it serves."]
    report: Annotated[dict[str, Any], "Its bulkheads and ejections."]


class WorkerList(TypedDict):
    """The workers."""

    workers: list[WorkerDocument]


class StoreState(TypedDict):
    """The store that workers share."""

    store: dict[str, Any]


class ErrorList(TypedDict):
    """Recent errors, newest first."""

    errors: list[RecentError]


class SupportDump(TypedDict):
    """All of it in one document, for a report of a bug. It has no secrets."""

    time: str
    overview: Overview
    routes: RouteList
    services: dict[str, ServiceDetails]
    workers: WorkerList
    configuration: EffectiveConfiguration
    circuitBreakers: dict[str, Any]
    maintenance: dict[str, Any]
    errors: list[RecentError]
    versions: dict[str, str]


# What they are made from.


class SteeredPool(HasInstances, Protocol):
    """The part of a pool that the endpoints use."""

    def overrides(self) -> Mapping[str, Override]:
        """Return what operators have decided, by URL."""


class HealthStatuses(Protocol):
    """The part of a health checker that the endpoints use."""

    def instances(self, service: str) -> Mapping[str, dict[str, Any]]:
        """Return the status of each instance of a service, by URL; empty without checks."""


@dataclass(frozen=True)
class ReadFacts:
    """The facts about a gateway that the documents are made from.

    :param name: The gateway's name.
    :param version: The gateway's version.
    :param file: The file that it was read from; empty without one.
    :param hash: The hash of the configuration.
    :param loaded: When the gateway was built, in Unix time.
    :param started: Returns when the gateway started, in Unix time.
    :param services: The services by name.
    :param pools: Their instances.
    :param routes: The routes.
    :param middlewares: The names of the middlewares of all requests.
    :param configuration: Returns the masked configuration.
    :param health: The health checker.
    :param store: Returns the status of the store.
    :param circuits: Returns the states of the circuits, by service.
    :param maintenance: Returns the notices by scope.
    :param workers: Returns the report of each worker.
    :param preserving: Returns whether the registry preserves instances; None without a registry.
    :param recent: Returns the figures of the last minute, if they are recorded.
    :param errors: Returns the recent errors, newest first, if they are recorded.
    :param totals: Returns the metrics of all workers, by name.
    """

    name: str
    version: str
    file: str
    hash: str
    loaded: float
    started: Callable[[], float]
    services: Mapping[str, ServiceFacts]
    pools: Mapping[str, SteeredPool]
    routes: Sequence[RouteDocument]
    middlewares: Sequence[str]
    configuration: Callable[[], dict[str, Any]]
    health: HealthStatuses
    store: Callable[[], dict[str, Any]]
    workers: Callable[[], Mapping[str, Report]]
    circuits: Callable[[], dict[str, dict[str, Any]]] = dict
    maintenance: Callable[[], Mapping[str, dict[str, Any]]] = dict
    preserving: Callable[[], bool] | None = None
    recent: Callable[[], dict[str, float | None] | None] | None = None
    errors: Callable[[], list[RecentError]] | None = None
    totals: Callable[[], Mapping[str, Totals]] = field(
        default=lambda: PROCESS.totals() if PROCESS.recording else {}
    )


def read_group(facts: ReadFacts, *, now: Callable[[], float]) -> Group:
    """Return the endpoints that read *facts*.

    :param now: Returns the Unix time.
    """
    reads = _Reads(facts, now)
    return Group(
        "reads",
        [
            AdminEndpoint("GET /overview", reads.overview, "The gateway at a glance", Overview),
            AdminEndpoint("GET /routes", reads.routes, "The routes of the file", RouteList),
            AdminEndpoint(
                "GET /services/{name}", reads.service, "A service in detail", ServiceDetails
            ),
            AdminEndpoint(
                "GET /instances",
                reads.instances,
                "The instances of all services, or of one",
                InstanceList,
                query={"service": "The name of a service."},
            ),
            AdminEndpoint(
                "GET /config",
                reads.config,
                "The configuration in force",
                EffectiveConfiguration,
                description="Secrets, values of header fields and values of variables are masked.",
            ),
            AdminEndpoint("GET /workers", reads.workers, "The worker processes", WorkerList),
            AdminEndpoint("GET /store", reads.store, "The store that workers share", StoreState),
            *(
                []
                if facts.errors is None
                else [
                    AdminEndpoint(
                        "GET /errors",
                        reads.errors,
                        "Recent errors of all workers, newest first",
                        ErrorList,
                        query={"request_id": "The request id of an error."},
                        description="At most 100. All requests with a status of 500 or higher are "
                        "kept, and of those that the gateway rejects one per second and worker.",
                    )
                ]
            ),
            AdminEndpoint(
                "GET /support-dump",
                reads.support_dump,
                "All of it in one document, for a report of a bug",
                SupportDump,
            ),
        ],
    )


_LIBRARIES = (
    *("werkzeug", "requests", "urllib3", "PyJWT", "cryptography", "gunicorn", "granian"),
    *("lmdb", "redis", "httptools", "h2", "Flask", "Django", "opentelemetry-sdk"),
)


def _worst(states: Iterable[Condition]) -> Condition:
    found = set(states)
    return "error" if "error" in found else "warning" if "warning" in found else "ok"


def _counts(states: Iterable[Condition]) -> StateCounts:
    counts = Counter(states)
    return {
        "total": counts.total(),
        "ok": counts["ok"],
        "warning": counts["warning"],
        "error": counts["error"],
    }


def instance_state(
    *,
    share: int,
    override: str,
    health: Mapping[str, Any],
    ejection: EjectionDocument | None,
) -> tuple[Condition, str]:
    """Return the state of an instance, and why it is not ok.

    What an operator has decided is a warning, not an error: it is meant.
    """
    if health.get("healthy") is False and "lastCheck" in health:
        return "error", f"health check: {health.get('error', 'failed')}"
    if ejection is not None:
        return "error", f"ejected: {ejection['reason']}"
    if override != ACTIVE:
        return "warning", f"{override} by an operator"
    if share == 0:
        return "warning", "draining: its weight is 0"
    if "error" in health and "lastCheck" in health:
        return "warning", f"health check: {health['error']}"
    return "ok", ""


def service_state(
    instances: Sequence[InstanceDocument], circuit: Mapping[str, Any] | None, off: bool
) -> tuple[Condition, str]:
    """Return the state of a service, and why it is not ok."""
    if circuit is not None and circuit["state"] == "OPEN":
        return "error", f"its circuit breaker is open: {circuit.get('reason', 'failures')}"
    if not instances:
        return "error", "it has no instances"
    if not any(each["share"] and each["state"] != "error" for each in instances):
        reasons = "; ".join(dict.fromkeys(each["reason"] for each in instances if each["reason"]))
        return "error", f"no instance takes requests: {reasons}"
    if off:
        return "warning", "it is in maintenance"
    if circuit is not None and circuit["state"] != "CLOSED":
        return "warning", f"its circuit breaker is {circuit['state'].lower()}"
    failing = [each for each in instances if each["state"] != "ok"]
    if failing:
        return "warning", f"{len(failing)} of {len(instances)} instances are not ok"
    return "ok", ""


class _Reads:
    def __init__(self, facts: ReadFacts, now: Callable[[], float]) -> None:
        self._facts = facts
        self._now = now

    # The endpoints.

    def overview(self, request: JsonRequest) -> Overview:
        return self._overview(self._services())

    def routes(self, request: JsonRequest) -> RouteList:
        return {"routes": list(self._facts.routes), "middlewares": list(self._facts.middlewares)}

    def service(self, request: JsonRequest, name: str) -> ServiceDetails | Problem:
        if name not in self._facts.services:
            return Problem(404, "Service not found!")
        return self._services([name])[name]

    def instances(self, request: JsonRequest) -> InstanceList | Problem:
        name = request.one("service")
        if name and name not in self._facts.services:
            return Problem(404, "Service not found!")
        found = self._services([name] if name else None)
        return {"instances": [each for one in found.values() for each in one["instances"]]}

    def config(self, request: JsonRequest) -> EffectiveConfiguration:
        facts = self._facts
        return {
            "file": facts.file,
            "hash": facts.hash,
            "loaded": iso_time(facts.loaded),
            "configuration": facts.configuration(),
        }

    def workers(self, request: JsonRequest) -> WorkerList:
        found: list[WorkerDocument] = []
        for name, report in self._facts.workers().items():
            about = report.get("about", {})
            started = about.get("started")
            found.append(
                {
                    "worker": name,
                    "pid": about.get("pid"),
                    "started": None if started is None else iso_time(started),
                    "version": about.get("version"),
                    "config": about.get("config"),
                    "report": {
                        "bulkheads": dict(report.get("bulkheads", {})),
                        "ejections": {
                            name: sorted(each) for name, each in report.get("ejections", {}).items()
                        },
                    },
                }
            )
        return {"workers": found}

    def store(self, request: JsonRequest) -> StoreState:
        return {"store": self._facts.store()}

    def errors(self, request: JsonRequest) -> ErrorList:
        found = [] if self._facts.errors is None else self._facts.errors()
        return {"errors": matching_errors(found, request.one("request_id"))}

    def support_dump(self, request: JsonRequest) -> SupportDump:
        facts, services = self._facts, self._services()
        return {
            "time": iso_time(self._now()),
            "overview": self._overview(services),
            "routes": self.routes(request),
            "services": services,
            "workers": self.workers(request),
            "configuration": self.config(request),
            "circuitBreakers": facts.circuits(),
            "maintenance": dict(facts.maintenance()),
            "errors": [] if facts.errors is None else facts.errors(),
            "versions": {
                "python": sys.version.split()[0],
                "implementation": platform.python_implementation(),
                "platform": platform.platform(),
                "wsgigate": package_version("wsgigate"),
                **{each: found for each in _LIBRARIES if (found := package_version(each))},
            },
        }

    # Their parts.

    def _last_minute(self) -> LastMinute | None:
        try:
            found = None if self._facts.recent is None else self._facts.recent()
        except OSError:  # the rest of the overview does not depend on the file
            return None
        return None if found is None else cast(LastMinute, found)

    def _overview(self, services: Mapping[str, ServiceDetails]) -> Overview:
        facts = self._facts
        circuits, workers, store = facts.circuits(), facts.workers(), facts.store()
        off = facts.maintenance()
        hashes = {each.get("about", {}).get("config") for each in workers.values()} - {None}
        preserving = None if facts.preserving is None else facts.preserving()
        problems = [
            f"Service {name!r}: {each['reason']}."
            for name, each in services.items()
            if each["state"] != "ok"
        ]
        states = [each["state"] for each in services.values()]
        for wrong, sentence in (
            ("error" in store, "The store fails: workers decide alone."),
            ("gateway" in off, "The gateway is in maintenance."),
            (bool(preserving), "The registry keeps silent instances: self-preservation."),
            (len(hashes) > 1, "Workers serve different configurations."),
        ):
            if wrong:
                problems.append(sentence)
                states.append("warning")
        instances = [each["state"] for one in services.values() for each in one["instances"]]
        return {
            "state": _worst(states),
            "problems": problems,
            "gateway": {
                "name": facts.name,
                "version": facts.version,
                "started": iso_time(facts.started()),
                "maintenance": "gateway" in off,
            },
            "versions": {
                "wsgigate": package_version("wsgigate"),
                "python": sys.version.split()[0],
            },
            "config": {
                "file": facts.file,
                "hash": facts.hash,
                "loaded": iso_time(facts.loaded),
                "mixed": len(hashes) > 1,
            },
            "routes": _counts(
                "ok" if each["service"] is None else services[each["service"]]["state"]
                for each in facts.routes
            ),
            "services": _counts(each["state"] for each in services.values()),
            "instances": _counts(instances),
            "middlewares": _counts(
                "ok"
                for each in (facts.middlewares, *(r["middlewares"] for r in facts.routes))
                for _ in each
            ),
            "circuitBreakers": _counts(_CIRCUIT[each["state"]] for each in circuits.values()),
            "workers": len(workers),
            "store": store,
            "selfPreservation": preserving,
            "lastMinute": self._last_minute(),
        }

    def _services(self, names: Iterable[str] | None = None) -> dict[str, ServiceDetails]:
        facts = self._facts
        reports = facts.workers()
        circuits, off, totals = facts.circuits(), facts.maintenance(), facts.totals()
        found: dict[str, ServiceDetails] = {}
        for name in facts.services if names is None else names:
            service = facts.services[name]
            ejections = ejections_of(name, reports.values())
            instances = self._instances(name, service, ejections, totals)
            notice, circuit = off.get(f"service:{name}"), circuits.get(name)
            state, reason = service_state(instances, circuit, notice is not None)
            found[name] = {
                "name": name,
                "state": state,
                "reason": reason,
                "instances": instances,
                "routes": list(service.routes),
                "discovery": service.discovery() if service.discovery else None,
                "circuitBreaker": circuit,
                "maintenance": notice,
            }
        return found

    def _instances(
        self,
        name: str,
        service: ServiceFacts,
        ejections: Mapping[str, Any],
        totals: Mapping[str, Totals],
    ) -> list[InstanceDocument]:
        checks = self._facts.health.instances(name)
        source = service.discovery()["source"] if service.discovery else "static"
        pool = self._facts.pools[name]
        shares, decided = pool.shares(), pool.overrides()
        found: list[InstanceDocument] = []
        for instance in pool.instances:
            url = instance.url
            override, ejection = decided.get(url), ejections.get(url)
            health = checks.get(url, {})
            share = shares.get(url, instance.weight)
            state, reason = instance_state(
                share=share,
                override=ACTIVE if override is None else override.state,
                health=health,
                ejection=ejection,
            )
            active = _cells(totals, "wsgigate_upstream_active_requests", name, url)
            seconds = _cells(totals, "http_client_request_duration_seconds", name, url)
            requests = None if seconds is None else int(sum(seconds[1:]))
            found.append(
                {
                    "service": name,
                    "url": url,
                    "state": state,
                    "reason": reason,
                    "weight": instance.weight,
                    "share": share,
                    "tier": instance.tier,
                    "zone": instance.zone,
                    "source": source,
                    "health": health,
                    "ejection": ejection,
                    "override": None
                    if override is None or override.automatic
                    else {
                        "state": override.state,  # type: ignore[typeddict-item]
                        "weight": override.weight,
                        "by": override.by,
                    },
                    "inFlight": None if active is None else int(active[0]),
                    "requests": requests,
                    "averageSeconds": round(seconds[0] / requests, 6)
                    if seconds is not None and requests
                    else None,
                }
            )
        return found


_CIRCUIT: Mapping[str, Condition] = {"CLOSED": "ok", "HALF_OPEN": "warning", "OPEN": "error"}


def _cells(
    totals: Mapping[str, Totals], name: str, service: str, instance: str
) -> list[float] | None:
    """Return the cells of the series of an instance, summed; None if nothing is recorded."""
    found = totals.get(name)
    if found is None:
        return None
    cells: list[float] = [0.0]
    for labels, values in found.series.items():
        if labels[:2] == (service, instance):
            cells += [0.0] * (len(values) - len(cells))
            cells = [one + other for one, other in zip(cells, values, strict=True)]
    return cells
