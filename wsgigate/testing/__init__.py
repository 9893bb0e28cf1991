"""What tests of gateways, middlewares and stores need: no ports, no sleeps, no containers."""

from wsgigate.testing.backend import Backend, Received, cut, reply
from wsgigate.testing.clock import FakeClock, Script
from wsgigate.testing.contract import check_middleware
from wsgigate.testing.exactness import check_exact
from wsgigate.testing.proxy_safety import check_proxy
from wsgigate.testing.store import BrokenStore, check_store

__all__ = [
    "Backend",
    "BrokenStore",
    "FakeClock",
    "Received",
    "Script",
    "check_exact",
    "check_middleware",
    "check_proxy",
    "check_store",
    "cut",
    "reply",
]
