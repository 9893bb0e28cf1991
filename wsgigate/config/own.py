"""The gateway's own endpoints, as the ``[admin]`` table wants them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any
from wsgiref.types import WSGIApplication

from wsgigate.admin.access import require_token
from wsgigate.admin.circuits import circuit_routes, circuit_statuses, counted
from wsgigate.admin.denial import deny_route
from wsgigate.admin.endpoints import Facts, ServiceFacts, routes
from wsgigate.admin.info import describe_features, describe_routes
from wsgigate.admin.maintenance import maintenance_routes, notices_told
from wsgigate.config.ends import scopes_of
from wsgigate.config.errors import Errors
from wsgigate.config.model import Config
from wsgigate.config.options import AuthenticatorOptions
from wsgigate.config.services import Services
from wsgigate.denylist import DenyList
from wsgigate.discovery.health import HealthChecker
from wsgigate.discovery.status import iso_time
from wsgigate.maintenance import MaintenanceSwitch
from wsgigate.problem import Problem
from wsgigate.rules.routing import Route
from wsgigate.store import Store, StoreError, usage
from wsgigate.worker_reports import Steady, WorkerReports

__all__ = ["own_routes", "worker_report"]


def own_routes(
    config: Config,
    services: Services,
    health: HealthChecker,
    others: Sequence[Route[WSGIApplication]],
    errors: Errors,
    deny_list: DenyList,
    switch: MaintenanceSwitch,
    *,
    store: Store,
    workers: WorkerReports,
    started: float,
) -> list[Route[WSGIApplication]]:
    """Return the routes of the gateway's own endpoints; none without an ``[admin]`` table.

    :param others: The routes of the file, which ``/info`` tells.
    :param errors: Where it is told what can not be made.
    :param deny_list: The tokens that are denied, for the authenticators that ask.
    :param switch: What is out of service, where anything can be.
    :param store: How full it is, ``/health`` tells.
    :param workers: What each worker says of itself, made with :func:`worker_report`.
    :param started: Since when the gateway serves, in seconds since 1970.
    """
    admin, gateway = config.admin, config.gateway
    if admin is None or errors.under("admin.prefix"):
        return []
    token = admin.token
    if token is not None:
        errors.tried("admin.token", lambda: require_token(Problem(404), token))
    entries = [*config.middleware, *(entry for each in config.routes for entry in each.middleware)]
    found = {watch.service: watch.told for watch in services.watches}
    facts = Facts(
        gateway.name,
        gateway.version,
        _port(gateway.bind),
        {
            name: ServiceFacts(
                pool,
                config.services[name].routes,
                found.get(name),
                bool(config.services[name].max_in_flight),
            )
            for name, pool in services.pools.items()
        },
        describe_routes(others, prefix=admin.prefix, given=admin.routes),
        describe_features(
            {entry.use for entry in entries},
            services=bool(config.services),
            health=bool(services.checks),
            given=admin.features,
        ),
    )
    circuits = services.circuits

    def counts() -> dict[str, dict[str, Any]]:
        return {worker: each.get("circuits", {}) for worker, each in workers.all().items()}

    kind = config.store.url.partition(":")[0]  # no more of it: it may have a password
    made = errors.tried(
        "admin.prefix",
        lambda: routes(
            facts,
            admin.prefix,
            health=health,
            store=lambda: _store_told(kind, store, workers),
            circuits=(lambda: circuit_statuses(circuits, workers=counts().values()))
            if circuits
            else None,
            maintenance=None
            if config.maintenance is None
            else lambda: notices_told(switch.known()),
            workers=workers.all,
            started=lambda: started,
        ),
    )
    own = made or []
    if circuits and own and not errors.under("admin.token"):
        own += circuit_routes(circuits, admin.prefix, token=token, workers=counts)
    denies = any(
        isinstance(entry.options, AuthenticatorOptions) and entry.options.deny_list
        for entry in entries
    )
    if denies and own and not errors.under("admin.token"):
        own.append(deny_route(deny_list, admin.prefix, token))
    if config.maintenance is not None and own and not errors.under("admin.token"):
        own += maintenance_routes(switch, scopes_of(config), admin.prefix, token=token)
    return own


def worker_report(
    services: Services, steady: Steady, now: Callable[[], float] = time.time
) -> dict[str, Any]:
    """Return what this worker alone knows of its services, for all workers to tell."""
    ejections = {name: pool.ejections() for name, pool in services.pools.items()}
    moment = now()
    told = {
        "circuits": counted(services.circuits, now, steady),
        "bulkheads": {name: each.status() for name, each in services.bulkheads.items()},
        "ejections": {
            name: {
                url: [
                    steady(f"{name} since {url}", moment - since),
                    steady(f"{name} until {url}", moment + left),
                    why,
                ]
                for url, (since, left, why) in each.items()
            }
            for name, each in ejections.items()
            if each
        },
    }
    return {what: value for what, value in told.items() if value}


def _store_told(kind: str, store: Store, workers: WorkerReports) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": kind}
    try:
        store.get("health")  # a store on the network has no usage to be asked for
        told |= usage(store)
        if workers.failing_since is None:
            return told
    except StoreError:  # it names files and hosts, which are the log's to tell
        pass
    since = workers.failing_since
    told["error"] = "Store unavailable"
    return told if since is None else {**told, "since": iso_time(since)}


def _port(bind: str) -> int | None:
    return None if bind.startswith("unix:") else int(bind.rpartition(":")[2])
