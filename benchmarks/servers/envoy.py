"""Envoy with what wsgigate's full stack has: log, rate limit, JWT, outlier ejection, balance."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

TYPES = "type.googleapis.com/envoy.extensions"
_HTTP = f"{TYPES}.filters.http"

_LOG = {
    "name": "envoy.access_loggers.file",
    "typed_config": {
        "@type": f"{TYPES}.access_loggers.file.v3.FileAccessLog",
        "path": "/dev/null",
        "log_format": {
            "json_format": {
                "time": "%START_TIME%",
                "request_id": "%REQ(X-REQUEST-ID)%",
                "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                "method": "%REQ(:METHOD)%",
                "path": "%REQ(:PATH)%",
                "status": "%RESPONSE_CODE%",
                "bytes": "%BYTES_SENT%",
                "duration_ms": "%DURATION%",
                "service": "%UPSTREAM_CLUSTER%",
                "instance": "%UPSTREAM_HOST%",
            }
        },
    },
}

_LIMIT = {
    "name": "envoy.filters.http.local_ratelimit",
    "typed_config": {
        "@type": f"{_HTTP}.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "limit",
        "token_bucket": {
            "max_tokens": 4_000_000_000,
            "tokens_per_fill": 4_000_000_000,
            "fill_interval": "3600s",
        },
        "filter_enabled": {"default_value": {"numerator": 100}},
        "filter_enforced": {"default_value": {"numerator": 100}},
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
    },
}

_ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": f"{_HTTP}.router.v3.Router"},
}


def config(port: int, backends: Sequence[int], secret: str, issuer: str) -> dict[str, Any]:
    """Return Envoy's configuration.

    :param port: Where it listens.
    :param backends: The ports of the instances behind it.
    :param secret: What tokens are signed with, by HS256.
    :param issuer: Their ``iss``, by which Envoy finds the key.
    """
    return before(
        port,
        backends,
        routes=[{"match": {"prefix": "/api/orders"}, "route": {"cluster": "orders"}}],
        cluster={
            "name": "orders",
            "connect_timeout": "2s",
            "outlier_detection": {"consecutive_5xx": 5},
            "circuit_breakers": {"thresholds": [{"max_connections": 1024}]},
        },
        filters=[_LIMIT, _jwt(secret, issuer)],
        access_log=[_LOG],
    )


def before(
    port: int,
    instances: Sequence[int],
    *,
    routes: Sequence[Any],
    cluster: Mapping[str, Any],
    filters: Sequence[Any] = (),
    **manager: Any,
) -> dict[str, Any]:
    """Return the configuration of an Envoy before one cluster.

    :param port: Where it listens.
    :param instances: The ports of the cluster.
    :param filters: What stands before the router.
    :param manager: Further settings of its HttpConnectionManager.
    """
    name = "envoy.filters.network.http_connection_manager"
    typed = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "http_filters": [*filters, _ROUTER],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        **manager,
    }
    listener = {
        "address": _address(port),
        "filter_chains": [{"filters": [{"name": name, "typed_config": typed}]}],
    }
    endpoints = [{"endpoint": {"address": _address(one)}} for one in instances]
    whole = {
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": cluster["name"],
            "endpoints": [{"lb_endpoints": endpoints}],
        },
        **cluster,
    }
    return {"static_resources": {"listeners": [listener], "clusters": [whole]}}


def _jwt(secret: str, issuer: str) -> dict[str, Any]:
    key = base64.urlsafe_b64encode(secret.encode()).decode().rstrip("=")
    return {
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": f"{_HTTP}.jwt_authn.v3.JwtAuthentication",
            "providers": {
                "bench": {
                    "issuer": issuer,
                    "forward": True,
                    "local_jwks": {
                        "inline_string": f'{{"keys":[{{"kty":"oct","alg":"HS256","k":"{key}"}}]}}'
                    },
                    "jwt_cache_config": {"jwt_cache_size": 100},
                }
            },
            "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "bench"}}],
        },
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
