"""The gateway's own endpoints, as the ``[admin]`` table wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from wsgiref.types import WSGIApplication

from wsgigate.admin.access import require_token
from wsgigate.admin.circuits import circuit_routes, circuit_statuses
from wsgigate.admin.denial import deny_route
from wsgigate.admin.endpoints import Facts, ServiceFacts, routes
from wsgigate.admin.info import describe_features, describe_routes
from wsgigate.admin.maintenance import maintenance_routes
from wsgigate.config.ends import scopes_of
from wsgigate.config.errors import Errors
from wsgigate.config.model import Config
from wsgigate.config.options import AuthenticatorOptions
from wsgigate.config.services import Services
from wsgigate.denylist import DenyList
from wsgigate.discovery.health import HealthChecker
from wsgigate.maintenance import MaintenanceSwitch
from wsgigate.problem import Problem
from wsgigate.rules.routing import Route
from wsgigate.store import Store, StoreError, usage

__all__ = ["own_routes"]


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
    started: float,
) -> list[Route[WSGIApplication]]:
    """Return the routes of the gateway's own endpoints; none without an ``[admin]`` table.

    :param others: The routes of the file, which ``/info`` tells.
    :param errors: Where it is told what can not be made.
    :param deny_list: The tokens that are denied, for the authenticators that ask.
    :param switch: What is out of service, where anything can be.
    :param store: How full it is, ``/health`` tells.
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
                pool.ejected,
                services.bulkhead_of(name),
                found.get(name),
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
    kind = config.store.url.partition(":")[0]  # no more of it: it may have a password
    made = errors.tried(
        "admin.prefix",
        lambda: routes(
            facts,
            admin.prefix,
            health=health,
            store=lambda: _store_told(kind, store),
            circuits=(lambda: circuit_statuses(circuits)) if circuits else None,
            started=lambda: started,
        ),
    )
    own = made or []
    if circuits and own and not errors.under("admin.token"):
        own += circuit_routes(circuits, admin.prefix, token=token)
    denies = any(
        isinstance(entry.options, AuthenticatorOptions) and entry.options.deny_list
        for entry in entries
    )
    if denies and own and not errors.under("admin.token"):
        own.append(deny_route(deny_list, admin.prefix, token))
    if config.maintenance is not None and own and not errors.under("admin.token"):
        own += maintenance_routes(switch, scopes_of(config), admin.prefix, token=token)
    return own


def _store_told(kind: str, store: Store) -> dict[str, Any]:
    try:
        return {"kind": kind, **usage(store)}
    except StoreError:  # it names files and hosts, which are the log's to tell
        return {"kind": kind, "error": "Store unavailable"}


def _port(bind: str) -> int | None:
    return None if bind.startswith("unix:") else int(bind.rpartition(":")[2])
