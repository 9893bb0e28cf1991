"""Test helpers for gateways, middlewares and stores: no fixed ports, no sleeps, no containers.

The names below are imported at their first use: each run of pytest imports this package for its
plugin.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgigate.testing.backend import Backend, Received, cut, reply
    from wsgigate.testing.clock import FakeClock, Script
    from wsgigate.testing.limits import limits_off, reset
    from wsgigate.testing.middleware import check_middleware
    from wsgigate.testing.proxy import check_proxy
    from wsgigate.testing.store import BrokenStore, check_exact, check_store

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
    "limits_off",
    "reply",
    "reset",
]

_HOMES = {
    "Backend": "backend",
    "BrokenStore": "store",
    "FakeClock": "clock",
    "Received": "backend",
    "Script": "clock",
    "check_exact": "store",
    "check_middleware": "middleware",
    "check_proxy": "proxy",
    "check_store": "store",
    "cut": "backend",
    "limits_off": "limits",
    "reply": "backend",
    "reset": "limits",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'wsgigate.testing' has no attribute {name!r}")
    value: object = getattr(import_module(f"wsgigate.testing.{home}"), name)
    globals()[name] = value
    return value
