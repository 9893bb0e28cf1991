"""What the lesson's gateway answers: status and JSON, member by member.

A type stands for any value of it, a pattern for any text that it matches. The gateway listens on
the port *base*, the services on the ones behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["BAD_TOKEN", "LESSON", "TIME", "difference"]

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
WELL = {"healthy": True, "lastCheck": TIME, "responseTime": object, "status": 200}
ROUTES = {
    "user-service": ["/users", "/register", "/login", "/profile", "/logout"],
    "product-service": ["/products", "/categories", "/search"],
    "order-service": ["/orders"],
}
NO_TOKEN = {"success": False, "message": "Access token required!"}
BAD_TOKEN = {"success": False, "message": "Invalid or expired token!"}
NO_ROUTE = {
    "success": False,
    "message": "Route not found!",
    "availableRoutes": [
        "GET /health",
        "GET /info",
        "GET /services",
        "POST /auth/register",
        "POST /auth/login",
        "GET /api/products",
        "GET /api/orders (auth required)",
        "GET /api/users (auth required)",
    ],
}


def described(base: int, name: str) -> dict[str, object]:
    """Return what the lesson's gateway says of a service."""
    url = f"http://127.0.0.1:{base + 1 + list(ROUTES).index(name)}"
    return {"name": name, "url": url, "routes": ROUTES[name], "status": WELL}


def closed(name: str) -> dict[str, object]:
    """Return what the lesson's gateway says of the circuit of a service that has not failed."""
    return {
        "serviceName": name,
        "state": "CLOSED",
        "failureCount": 0,
        "successCount": int,
        "lastFailureTime": None,
    }


LESSON: dict[str, tuple[int, Callable[[int], object]]] = {
    "GET /health": (
        200,
        lambda base: {
            "gateway": {
                "name": "api-gateway",
                "version": "1.0.0",
                "status": "healthy",
                "timestamp": TIME,
                "uptime": float,
            },
            "services": dict.fromkeys(ROUTES, WELL),
            "summary": {"healthy": 3, "total": 3, "healthPercentage": "100.00"},
            "circuitBreakers": {name: closed(name) for name in ROUTES},
        },
    ),
    "GET /info": (
        200,
        lambda base: {
            "gateway": {"name": "api-gateway", "version": "1.0.0", "port": base},
            "services": list(ROUTES),
            "routes": {
                "GET /health": "Gateway health check",
                "GET /info": "Gateway information",
                "GET /services": "List all services",
                "POST /auth/*": "Authentication routes",
                "GET /api/*": "Proxied service routes",
            },
            "features": [
                "Request logging",
                "Rate limiting",
                "Authentication",
                "Service discovery",
                "Load balancing",
                "Health monitoring",
            ],
        },
    ),
    "GET /services": (
        200,
        lambda base: {
            "success": True,
            "services": [described(base, name) for name in ROUTES],
            "count": 3,
        },
    ),
    "GET /discover/user-service": (
        200,
        lambda base: {"success": True, "service": described(base, "user-service")},
    ),
    "GET /discover/nothing": (404, lambda _: {"success": False, "message": "Service not found!"}),
    "GET /circuit-breakers": (
        200,
        lambda _: {"success": True, "circuitBreakers": {name: closed(name) for name in ROUTES}},
    ),
    "GET /nothing": (404, lambda _: NO_ROUTE),
    "POST /nothing": (404, lambda _: NO_ROUTE),
    "GET /api": (404, lambda _: NO_ROUTE),
    "GET /api/users": (401, lambda _: NO_TOKEN),
    "GET /api/users/7": (401, lambda _: NO_TOKEN),
    "GET /api/orders": (401, lambda _: NO_TOKEN),
    "POST /api/orders": (401, lambda _: NO_TOKEN),
}


def difference(found: object, expected: object, path: str = "") -> str:
    """Return where *found* is not what the lesson shows; only the whole may have more members."""
    if isinstance(expected, dict) and isinstance(found, dict):
        rows = [
            difference(found.get(key, "(missing)"), value, f"{path}.{key}")
            for key, value in expected.items()
        ]
        rows += [f"{path}.{key} is more" for key in found if path and key not in expected]
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        rows = [difference(one, other, f"{path}[{place}]") for place, (one, other) in pairs]
    elif isinstance(expected, re.Pattern):
        rows = [] if expected.fullmatch(str(found)) else [f"{path} is {found!r}, not a time"]
    elif isinstance(expected, type):
        rows = [] if isinstance(found, expected) else [f"{path} is {found!r}"]
    else:
        rows = [] if found == expected else [f"{path} is {found!r}, not {expected!r}"]
    return "\n".join(filter(None, rows))
