"""API gateway and service registry as a stack of WSGI middlewares.

The public names are imported on first use: an application that uses one middleware imports neither
the proxy nor its dependencies.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgigate.config.build import load_gateway as load
    from wsgigate.coordination.denylist import DenyList
    from wsgigate.coordination.maintenance import MaintenanceSwitch
    from wsgigate.discovery import Instance
    from wsgigate.gateway import Gateway
    from wsgigate.http.fields import FieldRules
    from wsgigate.http.problem import Problem
    from wsgigate.http.request_log import RequestIdFilter
    from wsgigate.middleware.authenticator import Authenticator
    from wsgigate.middleware.body_limit import BodyLimit
    from wsgigate.middleware.breaker import Breaker
    from wsgigate.middleware.client_address import ClientAddress
    from wsgigate.middleware.concurrency import ConcurrencyLimiter
    from wsgigate.middleware.cors import Cors
    from wsgigate.middleware.fallback import Fallback
    from wsgigate.middleware.faults import FaultRules, Faults
    from wsgigate.middleware.guard import Guard
    from wsgigate.middleware.limiter import Limiter
    from wsgigate.middleware.logger import Logger
    from wsgigate.middleware.maintenance import Maintenance
    from wsgigate.middleware.mirror import Mirror
    from wsgigate.middleware.request_id import RequestId
    from wsgigate.middleware.shedder import Shedder, SheddingRules
    from wsgigate.middleware.splitter import Splitter
    from wsgigate.middleware.stale import StaleAnswers
    from wsgigate.proxy.dispatcher import Dispatcher
    from wsgigate.proxy.forwarder import Forwarder
    from wsgigate.proxy.pool import Bulkhead, Pool
    from wsgigate.proxy.resilience import Resilience
    from wsgigate.proxy.sticky import Stickiness
    from wsgigate.proxy.thread_shares import ThreadShares
    from wsgigate.proxy.websocket import WebSocketLimits
    from wsgigate.registration import Registration
    from wsgigate.rules.circuit import CircuitRules
    from wsgigate.rules.fallback import FallbackRules
    from wsgigate.rules.outlier import OutlierRules
    from wsgigate.rules.quota import Quota
    from wsgigate.rules.retry import HedgeRules, RetryRules
    from wsgigate.rules.routing import Route
    from wsgigate.rules.thread_shares import ThreadShareRules
    from wsgigate.store.open import open_store

__version__ = "0.1.0"

__all__ = [
    "Authenticator",
    "BodyLimit",
    "Breaker",
    "Bulkhead",
    "CircuitRules",
    "ClientAddress",
    "ConcurrencyLimiter",
    "Cors",
    "DenyList",
    "Dispatcher",
    "Fallback",
    "FallbackRules",
    "FaultRules",
    "Faults",
    "FieldRules",
    "Forwarder",
    "Gateway",
    "Guard",
    "HedgeRules",
    "Instance",
    "Limiter",
    "Logger",
    "Maintenance",
    "MaintenanceSwitch",
    "Mirror",
    "OutlierRules",
    "Pool",
    "Problem",
    "Quota",
    "Registration",
    "RequestId",
    "RequestIdFilter",
    "Resilience",
    "RetryRules",
    "Route",
    "Shedder",
    "SheddingRules",
    "Splitter",
    "StaleAnswers",
    "Stickiness",
    "ThreadShareRules",
    "ThreadShares",
    "WebSocketLimits",
    "load",
    "open_store",
]

_HOMES = {
    "Authenticator": "middleware.authenticator",
    "BodyLimit": "middleware.body_limit",
    "Breaker": "middleware.breaker",
    "Bulkhead": "proxy.pool",
    "CircuitRules": "rules.circuit",
    "ClientAddress": "middleware.client_address",
    "ConcurrencyLimiter": "middleware.concurrency",
    "Cors": "middleware.cors",
    "DenyList": "coordination.denylist",
    "Dispatcher": "proxy.dispatcher",
    "Fallback": "middleware.fallback",
    "FallbackRules": "rules.fallback",
    "FaultRules": "middleware.faults",
    "Faults": "middleware.faults",
    "FieldRules": "http.fields",
    "Forwarder": "proxy.forwarder",
    "Gateway": "gateway",
    "Guard": "middleware.guard",
    "HedgeRules": "rules.retry",
    "Instance": "discovery",
    "Limiter": "middleware.limiter",
    "Logger": "middleware.logger",
    "Maintenance": "middleware.maintenance",
    "MaintenanceSwitch": "coordination.maintenance",
    "Mirror": "middleware.mirror",
    "OutlierRules": "rules.outlier",
    "Pool": "proxy.pool",
    "Problem": "http.problem",
    "Quota": "rules.quota",
    "Registration": "registration",
    "RequestId": "middleware.request_id",
    "RequestIdFilter": "http.request_log",
    "Resilience": "proxy.resilience",
    "RetryRules": "rules.retry",
    "Route": "rules.routing",
    "Shedder": "middleware.shedder",
    "SheddingRules": "middleware.shedder",
    "Splitter": "middleware.splitter",
    "StaleAnswers": "middleware.stale",
    "Stickiness": "proxy.sticky",
    "ThreadShareRules": "rules.thread_shares",
    "ThreadShares": "proxy.thread_shares",
    "WebSocketLimits": "proxy.websocket",
    "load": "config.build:load_gateway",
    "open_store": "store.open",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'wsgigate' has no attribute {name!r}")
    module, _, there = home.partition(":")
    value: object = getattr(import_module(f"wsgigate.{module}"), there or name)
    globals()[name] = value
    return value
