"""The ``[registry]`` table of the file, and the registry and its routes built from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from wsgiref.types import WSGIApplication

from wsgigate.admin.dashboard import RegisteredInstance, RegisteredList
from wsgigate.auth.bearer import Access
from wsgigate.client.destinations import PRIVATE, Destinations
from wsgigate.config.errors import Errors
from wsgigate.config.tables import ListOf, MapOf, argument, arguments_for, setting, table
from wsgigate.config.types import (
    Enumeration,
    HiddenText,
    ParsedText,
    Text,
    listen_addresses,
)
from wsgigate.proxy.health_probe import Prober, TlsPolicy
from wsgigate.registry import Registry
from wsgigate.registry.api import RegistryApi
from wsgigate.registry.app import WaitSlots
from wsgigate.registry.checks import UNVERIFIED, VERIFIED
from wsgigate.registry.compat.consul import ConsulApi
from wsgigate.registry.compat.eureka import EurekaApi
from wsgigate.rules.registry import LeaseRules
from wsgigate.rules.routing import Route
from wsgigate.store import Store

__all__ = [
    "COMPAT_APIS",
    "RegistryTable",
    "compat_routes",
    "registered_in",
    "registry_of",
    "registry_routes",
]


# The compatibility APIs of the registry, by their names in the file.

COMPAT_APIS = ("eureka", "consul")
"""The compatibility APIs that ``doors`` may name."""


def compat_routes(
    names: Iterable[str],
    registry: Registry,
    access: Access,
    places: WaitSlots,
    *,
    query_tokens: bool = False,
) -> list[Route[WSGIApplication]]:
    """Return the routes of the compatibility APIs *names*, at the paths that their clients use.

    :param places: The slots for requests that wait for a change, shared by all APIs.
    :param query_tokens: Whether Consul clients may present the token in the query.
    """
    routes: list[Route[WSGIApplication]] = []
    for name in dict.fromkeys(names):
        if name == "eureka":
            app: WSGIApplication = EurekaApi(registry, access)
            routes.append(Route("/eureka", app, listed=(), summary="The registry, as Eureka"))
        else:
            app = ConsulApi(registry, access, waiting=places, query_tokens=query_tokens)
            routes.append(Route("/v1", app, listed=(), summary="The registry, as Consul"))
    return routes


WAITING_SHARE = 4
"""One in this number of threads may wait for a change."""


def _network(text: str) -> str:
    return Destinations([text]).allowed_networks[0]


@table
class RegistryTable:
    """The service registry, for self-registering services."""

    prefix: str = setting(
        "The path prefix of the registry's API.",
        Text('"" or a path such as "/_registry"', pattern=r"|(?:/[A-Za-z0-9._~-]+)+"),
        default="/_registry",
    )
    token: str | None = setting(
        "The bearer token for requests that register or change any service.",
        HiddenText(),
        default=None,
        repr=False,
    )
    tokens: Mapping[str, str] = setting(
        "Tokens for single services, by service name: each may register and change that service "
        "only.",
        MapOf(HiddenText(), key=r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", called="a service's name"),
        default_factory=dict,
        repr=False,
    )
    open: bool = setting(
        "Allow registration without a token. Only where the gateway listens on loopback, and "
        "only for requests to localhost, 127.0.0.1 and the like.",
        default=False,
    )
    open_reads: bool = setting(
        "Allow reads without a token; false requires one of the tokens.",
        default=True,
    )
    allowed_networks: tuple[str, ...] = setting(
        "The networks that instances may be in. Default: loopback and private addresses.",
        ListOf(
            ParsedText(_network, 'an address or a network such as "10.0.0.0/8"', reason=True),
            least=1,
        ),
        default=PRIVATE,
    )
    doors: tuple[str, ...] = setting(
        "Compatibility APIs for unmodified clients: Eureka at /eureka, Consul at /v1.",
        ListOf(Enumeration(*COMPAT_APIS)),
        default=(),
    )
    query_tokens: bool = setting(
        "Accept the token of Consul clients in the query (?token=), where proxies and browser "
        "histories record it.",
        default=False,
    )
    heartbeat: float | None = argument(LeaseRules, default=None)
    unhealthy_after: float | None = argument(LeaseRules, default=None)
    remove_after: float | None = argument(LeaseRules, default=None)
    preserve: float | None = argument(LeaseRules, default=None)
    most_services: int | None = argument(Registry, default=None)
    most_instances: int | None = argument(Registry, default=None)
    most_of_one: int | None = argument(Registry, default=None)


def registry_of(settings: RegistryTable | None, store: Store, *, name: str, bind: str) -> Registry:
    """Return the registry of the gateway *name*, not started.

    :param settings: The table of the file. Default: an empty table.
    :param bind: The address the gateway listens on, which no instance may have.
    :raises ValueError: The settings contradict each other; the message names them.
    """
    settings = settings or RegistryTable()
    destinations = Destinations(settings.allowed_networks, listen_addresses(bind))
    prober = None
    if (
        "consul" in settings.doors
    ):  # Consul clients may register checks, which the registry carries out
        verified = TlsPolicy(allowed=destinations.check)
        prober = Prober({VERIFIED: verified, UNVERIFIED: verified._replace(verify=False)})
    return Registry(
        store,
        rules=LeaseRules(**arguments_for(LeaseRules, settings)),
        destinations=destinations,
        **arguments_for(Registry, settings),
        prefix=f"registry/{name}/",
        prober=prober,
    )


def registry_routes(
    settings: RegistryTable,
    registry: Registry,
    errors: Errors,
    *,
    threads: int,
    name: str,
    version: str,
    started: float,
) -> list[tuple[str, Route[WSGIApplication]]]:
    """Return the routes of the registry's API and of its compatibility APIs.

    Each route comes with the key of the file that configures it. Empty when they cannot be built.

    :param threads: The number of threads per process; a quarter of them may wait for changes.
    """
    access = errors.catch(
        "registry.token",
        partial(
            Access,
            settings.token,
            settings.tokens,
            open_reads=settings.open_reads,
            open_writes=settings.open,
        ),
    )
    if access is None or errors.under("registry.prefix"):
        return []
    places = WaitSlots(threads // WAITING_SHARE)
    api = RegistryApi(
        registry,
        access,
        prefix=settings.prefix,
        name=name,
        version=version,
        waiting=places,
        started=started,
    )
    own = Route[WSGIApplication](
        settings.prefix or "/", api, listed=api.listing, summary="The registry"
    )
    doors = compat_routes(
        settings.doors, registry, access, places, query_tokens=settings.query_tokens
    )
    return [("registry.prefix", own), *(("registry.doors", door) for door in doors)]


def registered_in(registry: Registry, now: Callable[[], float] = time.time) -> RegisteredList:
    """Return the instances of *registry*, and how many of them renew.

    :param now: Returns the Unix time.
    :raises StoreError: The store failed, and this worker has read nothing before.
    """
    rules, unix = registry.rules, now()
    found: list[RegisteredInstance] = []
    renewing, preserving = 0, False
    for service, listing in sorted(registry.listings().items()):
        preserving = preserving or listing.preserving
        for entry in listing.instances:
            silence = max(0.0, listing.now - entry.silent_since)
            renewing += silence <= entry.unhealthy_after(rules)
            host = f"[{entry.host}]" if ":" in entry.host else entry.host
            found.append(
                {
                    "service": service,
                    "id": entry.instance_id,
                    "url": f"{entry.scheme}://{host}:{entry.port}",
                    "status": entry.status.value,
                    "version": entry.version,
                    "zone": entry.zone,
                    # to the second: the difference of two clocks must not change the document
                    "renewed": round(unix - max(0.0, listing.now - entry.last_heartbeat)),
                }
            )
    return {
        "instances": found,
        "total": len(found),
        "renewing": renewing,
        "threshold": round(1 - rules.preserve, 4),
        "preserving": preserving,
    }
