"""What a gateway says of itself, worked out from what it is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from wsgigate.rules.routing import Route

__all__ = ["describe_features", "describe_routes", "own_routes"]

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
