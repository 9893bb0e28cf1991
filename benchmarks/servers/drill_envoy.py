"""Envoy with what the drill's ``gateway.toml`` has: tries, ejection, checks, two choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.servers.envoy import TYPES, before

_SAFE = "5xx,reset,connect-failure,refused-stream"
"""What a GET is tried again after."""
_UNSENT = "connect-failure,reset-before-request"
"""What a POST is tried again after: nothing of it can have been processed."""

_NORMAL = {"priority": "DEFAULT", "max_connections": 1024, "max_requests": 1024}
_BUDGET = {"retry_budget": {"budget_percent": {"value": 20.0}, "min_retry_concurrency": 3}}

_CLUSTER = {
    "name": "items",
    "connect_timeout": "0.5s",
    "circuit_breakers": {"thresholds": [{**_NORMAL, **_BUDGET}]},
    "outlier_detection": {
        "consecutive_5xx": 5,
        "interval": "1s",
        "base_ejection_time": "5s",
        "max_ejection_time": "300s",
        "max_ejection_percent": 50,
        "enforcing_success_rate": 0,
        "successful_active_health_check_uneject_host": False,
    },
    "health_checks": [
        {
            "timeout": "0.5s",
            "interval": "1s",
            "no_traffic_interval": "1s",
            "unhealthy_threshold": 3,
            "healthy_threshold": 2,
            "http_health_check": {"path": "/health"},
        }
    ],
}


def config(port: int, instances: Sequence[int]) -> dict[str, Any]:
    """Return Envoy's configuration.

    :param port: Where it listens.
    :param instances: The ports of the instances behind it.
    """
    return before(port, instances, routes=[_route("POST"), _route("GET")], cluster=_CLUSTER)


def _route(method: str) -> dict[str, Any]:
    return {
        "match": {
            "prefix": "/items",
            "headers": [{"name": ":method", "string_match": {"exact": method}}],
        },
        "route": {
            "cluster": "items",
            "timeout": "3s",
            "retry_policy": {
                "retry_on": _UNSENT if method == "POST" else _SAFE,
                "num_retries": 2,
                "per_try_timeout": "0.5s",
                "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
                "retry_host_predicate": [
                    {
                        "name": "envoy.retry_host_predicates.previous_hosts",
                        "typed_config": {
                            "@type": f"{TYPES}.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                        },
                    }
                ],
                "host_selection_retry_max_attempts": 5,
            },
        },
    }
