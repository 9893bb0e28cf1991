"""What the gateway's own endpoints report about its file and its workers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from wsgigate.admin.reads import RouteDocument
from wsgigate.admin.versions import package_version
from wsgigate.config.masked import config_hash
from wsgigate.config.middlewares import Middleware
from wsgigate.config.model import Config, RouteTable
from wsgigate.runtime import fork

__all__ = ["WorkerIdentity", "middleware_names", "route_documents"]


class WorkerIdentity:
    """What a worker says of itself in its report: its process, and what it serves.

    :param config: The configuration that it serves.
    """

    def __init__(self, config: Config) -> None:
        self._hash = config_hash(config)
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Note when this process began."""
        self._began = time.time()

    def report(self) -> dict[str, Any]:
        """Return the members of the report."""
        return {
            "pid": fork.pid,
            "started": round(self._began, 3),
            "version": package_version("wsgigate"),
            "config": self._hash,
        }


def middleware_names(entries: Sequence[Middleware]) -> list[str]:
    """Return the names of middlewares, outermost first."""
    return [entry.use for entry in entries]


def route_documents(config: Config) -> list[RouteDocument]:
    """Return the routes of the file, one for each path."""
    return [
        {
            "name": table.name or path,
            "path": path,
            "host": table.host,
            "methods": list(table.methods),
            "exact": bool(table.exact),
            "service": _service(table),
            "middlewares": middleware_names(table.middleware),
        }
        for table in config.routes
        for path in (table.paths or (table.path or "",))
    ]


def _service(table: RouteTable) -> str | None:
    if table.service is not None:
        return table.service
    weights = {share.service: share.weight for share in table.services}
    return max(weights, key=lambda name: weights[name]) if weights else None
