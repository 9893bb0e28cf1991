"""A gateway put together: the stack that answers, and what runs beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.coordination.worker_reports import WorkerReports
from wsgigate.discovery.health import HealthChecker
from wsgigate.discovery.watcher import Watcher
from wsgigate.proxy.pool import Pool
from wsgigate.registry import Registry
from wsgigate.rules.routing import Route
from wsgigate.runtime import fork
from wsgigate.runtime import log_level as logs
from wsgigate.store import Store

__all__ = ["Gateway"]


class Gateway:
    """A WSGI application made of a stack of middlewares, and the health checks beside it.

    What runs beside it is started once in every process that serves: by the first request, or
    earlier by whoever knows that the process is going to.

    :param app: The outermost app of the stack.
    :param name: The gateway's name.
    :param version: Its version, as its operators count.
    :param store: What its workers share.
    :param pools: Its services' instances, by service name.
    :param health: Checks them, unless nothing is to be checked.
    :param registry: Where services register, if they do.
    :param watcher: Finds them, unless all are named.
    :param reports: What this worker says of itself to the others, if anyone asks for it.
    :param routes: The routes, for those who list and explain them.
    :param self_check: What is done under a server that makes it unsafe.
    :param log_level: The level of what is logged, where the server and the application set none.
    :param first: Asked at the first request, in a process that was not started before it: what
        answers instead of *app*, if anything.
    :param stopping: Called when the process begins to stop: what would outlast its requests ends.
    :param closing: Called when the gateway is closed: releases what its middlewares opened.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        name: str,
        store: Store,
        pools: Mapping[str, Pool],
        version: str = "0.0.0",
        health: HealthChecker | None = None,
        registry: Registry | None = None,
        watcher: Watcher | None = None,
        reports: WorkerReports | None = None,
        routes: Sequence[Route[WSGIApplication]] = (),
        self_check: Literal["refuse", "warn"] = "refuse",
        log_level: str | None = None,
        first: Callable[[WSGIEnvironment], WSGIApplication | None] | None = None,
        stopping: Iterable[Callable[[], object]] = (),
        closing: Iterable[Callable[[], object]] = (),
    ) -> None:
        self.app = app
        self.name = name
        self.version = version
        self.store = store
        self.pools = pools
        self.health = health
        self.registry = registry
        self.watcher = watcher
        self.reports = reports
        self.routes = tuple(routes)
        self.self_check = self_check
        self.log_level = log_level
        self._first = first
        self._stopping = tuple(stopping)
        self._closing = tuple(closing)
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")
        self._started_in = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._started_in != fork.pid:
            self.start()
            if self._first is not None:
                self.app = self._first(environ) or self.app
        return self.app(environ, start_response)

    def start(self) -> None:
        """Start what runs beside the app, in this process, unless it does already."""
        with self._lock:
            if self._started_in == fork.pid:
                return
            try:
                logs.set_up(self.log_level)
                if self.watcher is not None:
                    self.watcher.start()
                if self.health is not None:
                    self.health.start()
                    self.health.refresh()  # what other workers have found out already
                if self.registry is not None:
                    self.registry.start()
                if self.reports is not None:
                    self.reports.start()
            finally:
                self._started_in = fork.pid  # only now: who comes meanwhile needs instances too

    def stopping(self) -> None:
        """Have what lasts for long end soon, while requests are finished; does not wait."""
        for stop in self._stopping:
            stop()

    def close(self) -> None:
        """Stop what runs in this process and release what it holds open."""
        with self._lock:
            running, self._started_in = self._started_in == fork.pid, 0
        if running and self.reports is not None:
            self.reports.stop()
        if running and self.health is not None:
            self.health.stop()
        if running and self.registry is not None:
            self.registry.stop()
        if running and self.watcher is not None:
            self.watcher.stop()
        for release in self._closing:
            release()
        self.store.close()
