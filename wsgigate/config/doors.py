"""The doors of the registry, by the names that the file has for them."""

from __future__ import annotations

from collections.abc import Iterable
from wsgiref.types import WSGIApplication

from wsgigate.discovery.doors.consul import Consul
from wsgigate.discovery.doors.eureka import Eureka
from wsgigate.discovery.registry import Registry
from wsgigate.discovery.registry_access import Access
from wsgigate.discovery.registry_wait import Places
from wsgigate.rules.routing import Route

__all__ = ["DOORS", "door_routes"]

DOORS = ("eureka", "consul")
"""The doors that there are."""


def door_routes(
    names: Iterable[str],
    registry: Registry,
    access: Access,
    places: Places,
    *,
    query_tokens: bool = False,
) -> list[Route[WSGIApplication]]:
    """Return the routes of the doors *names*, where their clients look for them.

    :param places: How many requests may wait for a change, through any of them.
    :param query_tokens: Whether Consul's clients may present the token in the query.
    """
    routes: list[Route[WSGIApplication]] = []
    for name in dict.fromkeys(names):
        if name == "eureka":
            app: WSGIApplication = Eureka(registry, access)
            routes.append(Route("/eureka", app, listed=(), summary="The registry, as Eureka"))
        else:
            app = Consul(registry, access, waiting=places, query_tokens=query_tokens)
            routes.append(Route("/v1", app, listed=(), summary="The registry, as Consul"))
    return routes
