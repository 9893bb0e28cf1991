"""Test helpers for gateways, middlewares and stores: no fixed ports, no sleeps, no containers.

The names below are imported at their first use (:mod:`wsgigate.lazy`): each run of pytest imports
this package for its plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsgigate import lazy

_SOURCE = lazy.source(globals())

if TYPE_CHECKING or _SOURCE is None:
    from wsgigate.testing.backend import Backend as Backend
    from wsgigate.testing.backend import Received as Received
    from wsgigate.testing.backend import cut as cut
    from wsgigate.testing.backend import reply as reply
    from wsgigate.testing.fakes import FakeClock as FakeClock
    from wsgigate.testing.fakes import Script as Script
    from wsgigate.testing.limits import limits_off as limits_off
    from wsgigate.testing.limits import reset as reset
    from wsgigate.testing.middleware import check_middleware as check_middleware
    from wsgigate.testing.proxy import check_proxy as check_proxy
    from wsgigate.testing.store import BrokenStore as BrokenStore
    from wsgigate.testing.store import check_exact as check_exact
    from wsgigate.testing.store import check_store as check_store
else:
    __getattr__, __dir__ = lazy.attach(globals(), _SOURCE)
