"""The gateway: a WSGI application, and the background tasks that run beside it in each process.

Theory of operation. A gateway may be built in one process and serve in others that are forked from
it. Threads do not survive a fork, so building one starts nothing; each process that serves starts
its own tasks. Three rules must hold:

- ``_started`` records whether this process has started its tasks; a fork unsets it. Every request
  reads it, which covers every kind of server.
- It is set only when the start is complete: requests that arrive during the start wait for the
  lock, as without it they would find no instances.
- It is set even if the start fails, so that a failing start is not repeated by every request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.jwks import KeySources
from wsgigate.coordination.worker_reports import WorkerReports
from wsgigate.discovery.health import HealthChecker
from wsgigate.discovery.watcher import Watcher
from wsgigate.proxy.pool import Pool
from wsgigate.registry import Registry
from wsgigate.rules.routing import Route
from wsgigate.runtime import fork, logs
from wsgigate.store import Store
from wsgigate.telemetry.history import History
from wsgigate.telemetry.metrics import PROCESS

__all__ = ["Gateway"]


class Gateway:
    """A WSGI application made of a stack of middlewares, with its background tasks.

    The background tasks (service discovery, health checks, the registry's expiry, the keys of
    issuers, the worker's reports) start once in every process that serves: the server's worker
    calls :meth:`start`, or else the first request does. A process that was forked from one that
    serves starts its own.

    :param app: The outermost app of the stack.
    :param name: The gateway's name.
    :param version: The gateway's version.
    :param store: The store that its workers share.
    :param pools: The instance pools of its services, by service name.
    :param health: The health checker, if there are health checks.
    :param registry: The service registry, if the gateway has one.
    :param watcher: The watcher of the services' sources, if there are any.
    :param key_sources: The keys of the issuers of tokens, if there are any.
    :param reports: The reports of the workers, if the gateway has endpoints that read them.
    :param history: The samples of the last hour, if the gateway has endpoints that read them.
    :param routes: The routes, for listing.
    :param self_check: What to do under a server that makes the gateway unsafe.
    :param log_level: The log level, if neither the server nor the application sets one.
    :param log_json: Whether the log is JSON, if neither of them sets a handler.
    :param first: Called with the first request of a process in which :meth:`start` was not called
        before; returns an app that replaces *app*, or None.
    :param starting: Functions to call when the tasks of a process start, after its fork.
    :param stopping: Functions to call when the process begins to stop: each ends what would outlast
        the requests in flight, such as WebSockets.
    :param closing: Functions to call when the gateway is closed: each releases what a middleware
        opened.
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
        key_sources: KeySources | None = None,
        reports: WorkerReports | None = None,
        history: History | None = None,
        routes: Sequence[Route[WSGIApplication]] = (),
        self_check: Literal["refuse", "warn"] = "refuse",
        log_level: str | None = None,
        log_json: bool = False,
        first: Callable[[WSGIEnvironment], WSGIApplication | None] | None = None,
        starting: Iterable[Callable[[], object]] = (),
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
        self.key_sources = key_sources
        self.reports = reports
        self.history = history
        self.routes = tuple(routes)
        self.self_check = self_check
        self.log_level = log_level
        self.log_json = log_json
        self.reloads: Any = None
        """What reloads its file, a ``ServerReload``; set by the server whose worker this is."""
        self._first = first
        self._starting = tuple(starting)
        self._stopping = tuple(stopping)
        self._closing = tuple(closing)
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Start the tasks again at the first request: threads do not survive a fork."""
        self._lock = threading.Lock()
        self._started = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self._started:
            self.start()
            if self._first is not None:
                self.app = self._first(environ) or self.app
        return self.app(environ, start_response)

    def start(self) -> None:
        """Start the background tasks in this process, unless they run already."""
        fork.notice_fork()  # first: a thread of the parent may hold the lock
        with self._lock:
            if self._started:
                return
            try:
                logs.set_up(self.log_level, as_json=self.log_json)
                PROCESS.start()
                if self.key_sources is not None:
                    self.key_sources.start()
                if self.watcher is not None:
                    self.watcher.start()
                if self.health is not None:
                    self.health.start()
                    self.health.refresh()  # the results of other workers, from the store
                if self.registry is not None:
                    self.registry.start()
                if self.reports is not None:
                    self.reports.start()
                if self.history is not None:
                    self.history.start()
                for start in self._starting:
                    start()
            finally:
                self._started = True  # last: a request during the start waits for the instances too

    def stopping(self) -> None:
        """Begin to end long-lived work while requests in flight are finished; does not block."""
        for stop in self._stopping:
            stop()

    def close(self) -> None:
        """Stop the background tasks of this process and release its resources."""
        self.stopping()  # a task that waits for a change would be waited for
        with self._lock:
            running, self._started = self._started, False
        if running and self.history is not None:
            self.history.stop()
        if running and self.reports is not None:
            self.reports.stop()
        if self.key_sources is not None:  # a token may have started it without start()
            self.key_sources.stop()
        if running and self.health is not None:
            self.health.stop()
        if running and self.registry is not None:
            self.registry.stop()
        if running and self.watcher is not None:
            self.watcher.stop()
        for release in self._closing:
            release()
        self.store.close()
