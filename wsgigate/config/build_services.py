"""Build the services of the file: pools, discovery, health checks, and the forwarders of routes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from wsgigate.client.adapter import Sessions, gateway_session
from wsgigate.client.destinations import PRIVATE, CombinedDestinations, Destinations
from wsgigate.client.dial import literal
from wsgigate.config.discover import (
    OPTIONS,
    Discover,
    discovery,
    is_own_registry,
    server_name,
    source_of,
)
from wsgigate.config.errors import Errors, at
from wsgigate.config.model import (
    BREAKER,
    RETRY,
    STICKY,
    Balance,
    Config,
    RouteTable,
    ServiceTable,
)
from wsgigate.config.tables import Arguments, ArgumentTable, arguments_for
from wsgigate.config.types import listen_addresses
from wsgigate.coordination.circuit import Circuit
from wsgigate.discovery import Instance, host_and_port
from wsgigate.discovery.health import HealthChecker
from wsgigate.discovery.sources import Source, zone_of
from wsgigate.discovery.watcher import InstanceCache, Watch, Watcher
from wsgigate.http.caller import key_of
from wsgigate.http.fields import FieldRules
from wsgigate.http.wsgi import Key
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.bulkhead import Bulkhead, Compartment, ThreadShareRules, ThreadShares
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.health_probe import Prober, TlsPolicy
from wsgigate.proxy.pool import Pool
from wsgigate.proxy.sticky import Stickiness
from wsgigate.proxy.websocket import Tunnels, WebSocketLimits
from wsgigate.registry import Registry
from wsgigate.rules.circuit import CircuitRules
from wsgigate.rules.health import HealthCheck
from wsgigate.rules.outlier import OutlierRules
from wsgigate.rules.pace import PaceRules
from wsgigate.rules.retry import HedgeRules, RetryBudget, RetryRules
from wsgigate.store import Store

if TYPE_CHECKING:
    from wsgigate.auth.internal_token import InternalTokens

__all__ = ["Services", "balance_of"]


def balance_of(balance: Balance | str | None) -> dict[str, Any]:
    """Return the load-balancing arguments of a :class:`Pool`.

    :raises ValueError: An option is invalid; the message names it.
    """
    if not isinstance(balance, Balance):
        balance = Balance() if balance is None else Balance(use=balance)
    arguments = arguments_for(Pool, balance)
    if balance.use == "consistent-hash":
        arguments["key"] = _key(balance.key or "address")
    elif balance.key is not None:
        raise ValueError('key: requires use = "consistent-hash"')
    return {"balance": balance.use, **arguments}


def _key(name: str) -> Key:
    try:
        return key_of(name)
    except ValueError as error:
        raise ValueError(f"key: {error}") from None


WEBSOCKETS = 512
"""The maximum number of WebSockets of a worker that starts a thread for each."""


class Services:
    """The services of a gateway.

    :param store: The store that the gateway's workers share.
    :param name: The gateway's name, the prefix of its keys in the store.
    :param via: The gateway's name in ``Via``.
    :param identity: Request fields with the caller's identity, and the claim of each.
    :param internal_tokens: Signs the tokens for services, if there are any.
    :param folder: The folder that relative file names refer to.
    :param errors: Collects the errors.
    :param registry: The gateway's own registry, if it has one.
    :param may_log: Returns whether this worker logs events that all workers observe.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        *,
        name: str,
        via: str,
        identity: Mapping[str, str],
        internal_tokens: InternalTokens | None = None,
        folder: Path,
        errors: Errors,
        registry: Registry | None = None,
        may_log: Callable[[], bool] = lambda: True,
    ) -> None:
        self._may_log = may_log
        self.pools: dict[str, Pool] = {}
        self.checks: dict[str, HealthCheck] = {}
        self.sessions: dict[str, Sessions] = {}
        self.circuits: list[Circuit] = []
        self.bulkheads: dict[str, Compartment] = {}
        self.watches: list[Watch] = []
        self._config = config
        self._store = store
        self._name = name
        gateway = config.gateway
        rules = ThreadShareRules(threads=gateway.threads, services=max(1, len(config.services)))
        self.tunnels = (
            Tunnels(rules.most, most_lent=WEBSOCKETS)
            if gateway.websockets is None
            else Tunnels(gateway.websockets)
        )
        # with one service no isolation is needed
        self._shares = ThreadShares(rules) if len(config.services) > 1 else None
        self._common: dict[str, dict[str, Any]] = {}
        self._tls_policies: dict[str, TlsPolicy] = {}
        self._own = listen_addresses(gateway.bind)
        self._gateway = {
            "via": via,
            "loop_field": gateway.loop_field,
            "identity": dict(identity),
            "internal_tokens": internal_tokens,
        }
        self._folder = folder
        self._zone = gateway.zone or zone_of(os.environ.get("WSGIGATE_ZONE"))
        self._errors = errors
        self._registry = registry
        for name, service in config.services.items():
            if not errors.under(at("services", name)):
                self._add(name, service, at("services", name))

    def _add(self, name: str, service: ServiceTable, path: str) -> None:
        catch = self._errors.catch
        named = service.host or ""
        if named and catch(at(path, "host"), lambda: host_and_port(named)) is None:
            named = ""
        instances = [
            Instance(item, host=named) if isinstance(item, str) else Instance(**item, host=named)
            for item in service.instances
        ]
        balance = catch(at(path, "balance"), lambda: balance_of(service.balance), keys=["key"])
        outlier = service.outlier
        if outlier is not None and balance is not None:
            balance["outlier"] = catch(at(path, "outlier"), lambda: OutlierRules(**outlier))
        sticky = service.sticky
        if sticky is not None and balance is not None:
            balance["sticky"] = catch(
                at(path, "sticky"),
                lambda: Stickiness(name, **STICKY.arguments(sticky)),
                keys=STICKY.keys,
            )
        if balance is not None:
            balance |= arguments_for(Pool, service)
        zone = "" if service.prefer_zone is False else self._zone
        pool = catch(
            at(path, "instances"), lambda: Pool(name, instances, zone=zone, **(balance or {}))
        )
        verify = catch(at(path, "tls"), lambda: self._verify(service), keys=["ca"])
        health = service.health
        if health is not None:
            host = "" if named else self._config.virtual_host(name)
            check = catch(
                at(path, "health"), lambda: _health_check(health, host), keys=_HEALTH_KEYS
            )
            if check is not None:
                self.checks[name] = check
        resilience = catch(at(path, "breaker"), lambda: self._resilience(name, service, path))
        if pool is None or verify is None or resilience is None:
            self.checks.pop(name, None)
            return
        rules = partial(PaceRules, **arguments_for(PaceRules, service))
        pace = catch(at(path, "min_response_rate"), rules) or PaceRules()
        discover_path = at(path, "discover")
        sessions = catch(
            discover_path, lambda: self._sessions(service, pool, verify, pace), keys=OPTIONS
        )
        if sessions is None:
            self.checks.pop(name, None)
        self.pools[name] = pool
        self.sessions[name] = sessions or Sessions()
        self._common[name] = {
            **arguments_for(Forwarder, service),
            "verify": verify,
            "sessions": self.sessions[name],
            "resilience": resilience,
        }

    def _sessions(
        self, service: ServiceTable, pool: Pool, verify: bool | str, pace: PaceRules
    ) -> Sessions:
        """Return the sessions of the service's instances; with a source, add its watch."""
        name = None if service.tls is None else service.tls.server_name
        named = urlsplit(f"//{service.host}").hostname if service.host else None
        if service.discover is None:
            if name is None and all(map(_has_ip_address, pool.instances)):
                name = named
            self._tls_policies[pool.service] = TlsPolicy(verify, name)
            return Sessions(partial(gateway_session, server_name=name, pace=pace))
        options = discovery(service.discover)
        source = source_of(options, pool.service, self._folder, self._own_registry)
        vouched = self._vouched(options)
        check = vouched.check
        name = name or server_name(options) or named
        self._tls_policies[pool.service] = TlsPolicy(verify, name, check)
        make = partial(gateway_session, check=check, server_name=name, pace=pace)
        sessions = Sessions(make)
        kept = InstanceCache(self._store, f"instances/{self._name}/{pool.service}", source.name)
        self.watches.append(
            Watch(
                pool,
                source,
                check=check,
                narrow=vouched.narrow,
                host=service.host or "",
                forget=sessions.forget,
                kept=kept,
                may_log=self._may_log,
            )
        )
        return sessions

    def _vouched(self, options: Discover) -> CombinedDestinations:
        """Return the destinations allowed for the instances of a service.

        The gateway's own registry has a list of allowed networks already; without another list for
        the service it applies alone, so that every instance that may register is reachable.
        """
        lists = []
        if options.allowed_networks is not None or not is_own_registry(options):
            lists.append(Destinations(options.allowed_networks or PRIVATE, self._own))
        if is_own_registry(options) and self._registry is not None:
            lists.append(self._registry.destinations)
        return CombinedDestinations(*lists)

    def _own_registry(self, service: str, tags: tuple[str, ...]) -> Source:
        if self._registry is None:
            raise ValueError(
                "this gateway has no [registry] table; add one, or name another registry, as in "
                '"registry:http://10.0.0.4:3004"'
            )
        from wsgigate.discovery.sources.registry import OwnRegistry

        return OwnRegistry(self._registry, service, tags=tags)

    def watcher(self) -> Watcher | None:
        """Return the watcher that updates the pools, not started; None without sources."""
        return Watcher(self.watches) if self.watches else None

    def _resilience(self, name: str, service: ServiceTable, path: str) -> Resilience:
        settings: dict[str, Any] = {}
        breaker, retry = service.breaker, service.retry
        if breaker is not None:
            settings["circuit"] = Circuit(
                name,
                CircuitRules(**_rules(BREAKER, breaker)),
                store=self._store,
                prefix=f"service-circuit/{self._name}/",
            )
            self.circuits.append(settings["circuit"])
            if "statuses" in breaker:
                settings["failures"] = breaker["statuses"]
        if retry is not None:
            rules = self._errors.catch(
                at(path, "retry"), lambda: RetryRules(**_rules(RETRY, retry))
            )
            budget = {"share": retry.get("budget"), "floor": retry.get("budget_floor")}
            given = {name: value for name, value in budget.items() if value is not None}
            settings |= {"retry": rules, "budget": RetryBudget(**given)}
        hedge = service.hedge
        if hedge is not None:
            settings["hedge"] = self._errors.catch(
                at(path, "hedge"), lambda: _hedge(service, hedge), keys=["after", "most"]
            )
        most = service.max_in_flight
        if self._shares is not None:
            settings["bulkhead"] = self.bulkheads[name] = self._shares.compartment(most)
        elif most:
            settings["bulkhead"] = self.bulkheads[name] = Bulkhead(most)
        return Resilience(**settings)

    def _verify(self, service: ServiceTable) -> bool | str:
        tls = service.tls
        if tls is None or tls.ca is None:
            return tls is None or tls.verify
        authorities = self._folder / tls.ca
        if not authorities.exists():
            raise ValueError(f"ca: file or folder {authorities} does not exist")
        return str(authorities)

    def checker(self) -> HealthChecker:
        """Return the health checker of the services, not started."""
        prober = Prober({name: self._tls_policies[name] for name in self.checks})
        prefix = f"health/{self._name}/"
        return HealthChecker(self.pools, self.checks, self._store, prober, prefix=prefix)

    def forwarder(self, route: RouteTable, strip_prefix: str, path: str) -> Forwarder | None:
        """Return the app that forwards the requests of *route*; None if it cannot be built.

        :param strip_prefix: The prefix to remove from the path.
        :param path: The route's key path.
        """
        pool = self.pools.get(route.service or "")
        if pool is None:
            return None
        request = self._changes(route.request_fields, at(path, "request_fields"))
        response = self._changes(route.response_fields, at(path, "response_fields"))
        settings = {
            **self._gateway,
            **self._common[pool.service],
            **arguments_for(Forwarder, route),
            "strip_prefix": strip_prefix,
            "hidden_cookies": self._cookies(),
            "request_fields": request,
            "response_fields": response,
            "websocket": self._websocket(route),
            "tunnels": self.tunnels,
        }
        return self._errors.catch(path, lambda: Forwarder(pool, **settings))

    def _cookies(self) -> list[str]:
        """Return the sticky cookies of all services: clients may send them to any service."""
        return [pool.sticky.cookie for pool in self.pools.values() if pool.sticky is not None]

    @staticmethod
    def _websocket(route: RouteTable) -> bool | WebSocketLimits:
        if isinstance(route.websocket, bool):
            return route.websocket
        return WebSocketLimits(**route.websocket)

    def _changes(self, changes: Arguments | None, path: str) -> FieldRules | None:
        if changes is None:
            return None
        return self._errors.catch(
            path,
            lambda: FieldRules(**changes),
            keys=["set", "add", "remove"],
        )


def _has_ip_address(instance: Instance) -> bool:
    """Return whether the instance's URL has an IP address, which certificates rarely contain."""
    return literal(urlsplit(instance.url).hostname or "", 0) is not None


def _hedge(service: ServiceTable, hedge: Arguments) -> HedgeRules:
    if service.sticky is not None:
        raise ValueError("cannot be combined with sticky")
    return HedgeRules(**hedge)


def _rules(table: ArgumentTable, values: Arguments) -> dict[str, Any]:
    """Return the values that are arguments of the class of *table*."""
    return {name: value for name, value in values.items() if name in table.parameters}


_HEALTH_KEYS = ("host", "fields", "method", "port", "scheme", "contains")
"""The keys that an error of a health check may begin with."""


def _health_check(values: Arguments, host: str) -> HealthCheck:
    """Return the health check of a service.

    :param host: The Host to send if *values* have none.
    :raises ValueError: An option is out of range; the message names it.
    """
    settings = {name: value for name, value in values.items() if name != "type"}
    if values.get("type") == "tcp":
        return HealthCheck(None, **settings)
    return HealthCheck(**({"host": host} | settings if host else settings))
