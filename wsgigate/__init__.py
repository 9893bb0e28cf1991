"""API gateway and service registry as a stack of WSGI middlewares.

The names below are loaded when they are first asked for: whoever takes one middleware loads neither
the proxy nor what it stands on.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgigate.config.build import load_gateway as load
    from wsgigate.denylist import DenyList
    from wsgigate.discovery import Instance
    from wsgigate.discovery.registration import Registration
    from wsgigate.fields import FieldRules
    from wsgigate.gateway import Gateway
    from wsgigate.maintenance import MaintenanceSwitch
    from wsgigate.middleware.authenticator import Authenticator
    from wsgigate.middleware.body_limit import BodyLimit
    from wsgigate.middleware.breaker import Breaker
    from wsgigate.middleware.client_address import ClientAddress
    from wsgigate.middleware.concurrency import ConcurrencyLimiter
    from wsgigate.middleware.cors import Cors
    from wsgigate.middleware.fallback import Fallback
    from wsgigate.middleware.faults import Faults
    from wsgigate.middleware.guard import Guard
    from wsgigate.middleware.limiter import Limiter
    from wsgigate.middleware.logger import Logger
    from wsgigate.middleware.maintenance import Maintenance
    from wsgigate.middleware.mirror import Mirror
    from wsgigate.middleware.request_id import RequestId
    from wsgigate.middleware.shedder import Shedder
    from wsgigate.middleware.splitter import Splitter
    from wsgigate.middleware.stale import StaleAnswers
    from wsgigate.problem import Problem
    from wsgigate.proxy.bulkhead import Bulkhead
    from wsgigate.proxy.dispatcher import Dispatcher
    from wsgigate.proxy.forwarder import Forwarder
    from wsgigate.proxy.pool import Pool
    from wsgigate.proxy.service import Resilience
    from wsgigate.proxy.stickiness import Stickiness
    from wsgigate.proxy.thread_shares import ThreadShares
    from wsgigate.proxy.upgrade import WebSocketLimits
    from wsgigate.request_log import RequestIdFilter
    from wsgigate.rules.circuit_rules import CircuitRules
    from wsgigate.rules.fallback import FallbackRules
    from wsgigate.rules.faults import FaultRules
    from wsgigate.rules.hedge import HedgeRules
    from wsgigate.rules.outlier import OutlierRules
    from wsgigate.rules.quota import Quota
    from wsgigate.rules.retry import RetryRules
    from wsgigate.rules.routing import Route
    from wsgigate.rules.shedding import SheddingRules
    from wsgigate.rules.thread_shares import ThreadShareRules
    from wsgigate.store import open_store

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
    "Bulkhead": "proxy.bulkhead",
    "CircuitRules": "rules.circuit_rules",
    "ClientAddress": "middleware.client_address",
    "ConcurrencyLimiter": "middleware.concurrency",
    "Cors": "middleware.cors",
    "DenyList": "denylist",
    "Dispatcher": "proxy.dispatcher",
    "Fallback": "middleware.fallback",
    "FallbackRules": "rules.fallback",
    "FaultRules": "rules.faults",
    "Faults": "middleware.faults",
    "FieldRules": "fields",
    "Forwarder": "proxy.forwarder",
    "Gateway": "gateway",
    "Guard": "middleware.guard",
    "HedgeRules": "rules.hedge",
    "Instance": "discovery",
    "Limiter": "middleware.limiter",
    "Logger": "middleware.logger",
    "Maintenance": "middleware.maintenance",
    "MaintenanceSwitch": "maintenance",
    "Mirror": "middleware.mirror",
    "OutlierRules": "rules.outlier",
    "Pool": "proxy.pool",
    "Problem": "problem",
    "Quota": "rules.quota",
    "Registration": "discovery.registration",
    "RequestId": "middleware.request_id",
    "RequestIdFilter": "request_log",
    "Resilience": "proxy.service",
    "RetryRules": "rules.retry",
    "Route": "rules.routing",
    "Shedder": "middleware.shedder",
    "SheddingRules": "rules.shedding",
    "Splitter": "middleware.splitter",
    "StaleAnswers": "middleware.stale",
    "Stickiness": "proxy.stickiness",
    "ThreadShareRules": "rules.thread_shares",
    "ThreadShares": "proxy.thread_shares",
    "WebSocketLimits": "proxy.upgrade",
    "load": "config.build:load_gateway",
    "open_store": "store",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'wsgigate' has no attribute {name!r}")
    module, _, there = home.partition(":")
    value: object = getattr(import_module(f"wsgigate.{module}"), there or name)
    globals()[name] = value
    return value
