"""A gateway under gunicorn: its settings, and reloading its configuration.

Theory of operation
-------------------

A reload must never turn a broken file into an outage.

- The master reads the file and keeps the last valid configuration in memory (``last_valid``).
  Workers are forked from the master and build the gateway from that copy, not from the file: so a
  worker that is replaced after a crash, while the file is broken or half-edited, still starts, and
  all workers of one generation serve the same configuration.
- A reload (SIGHUP) reads the file again. If it is valid, it replaces ``last_valid``, and the new
  workers build it. Otherwise the error is logged, and the previous configuration stays active. Only
  at the first start does an invalid file end the process.
- A file is validated in a separate process (``wsgigate check``), which also imports what the file
  names and checks the store. The master itself must never import the application's modules: workers
  would inherit them by the fork, and a reload would go on running old code.
- An unavailable store is a warning, not an error: the gateway serves without it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import gunicorn
from gunicorn.app.base import BaseApplication
from gunicorn.config import Config as Settings
from gunicorn.glogging import Logger as GunicornLogger

from wsgigate.config.build import build, certificate_files, client_authorities
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load
from wsgigate.config.masked import changed, config_hash
from wsgigate.config.model import Config
from wsgigate.config.summary import start_line
from wsgigate.gateway import Gateway
from wsgigate.http.fields import one_cookie_field
from wsgigate.runtime import drain, fork
from wsgigate.runtime.logs import JsonFormatter, adopt
from wsgigate.server_check import (
    ServerFacts,
    changed_keys,
    facts_of_gunicorn,
    findings,
    log_findings,
)
from wsgigate.servers.reloading import ServerReload, validate_file

__all__ = ["application", "drains", "planned", "serve", "serve_config", "settings"]


WAITING = 1000
"""Idle connections of a worker, besides those that its threads serve."""

log = logging.getLogger("gunicorn.error")


class JsonLog(GunicornLogger):  # type: ignore[misc]
    """gunicorn's log with one JSON object per line; the workers' own records use its handlers."""

    def setup(self, cfg: Any) -> None:
        """Set up the handlers, at the start and at each reload."""
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(JsonFormatter())


class _Good(NamedTuple):
    path: str
    config: Config


last_valid: _Good | None = None
"""The last valid configuration of this process; ``None`` before the first."""

_started = time.time()


def settings(
    path: str | None = None, *, bind: str | None = None, threads: int | None = None
) -> dict[str, Any]:
    """Return gunicorn's settings for the gateway that the file at *path* describes.

    The master calls this at its start and at every reload. Reasons for the settings:

    - ``http_parser`` pins gunicorn's own strict parser; ``auto`` would use another one where it is
      installed.
    - ``forwarded_allow_ips`` and ``forwarder_headers`` are empty: forwarding fields are trusted by
      the gateway's ``trusted_proxies`` only, and ``SCRIPT_NAME`` is accepted from no client.
    - ``header_map = "refuse"``: ``X_User_Id`` would be read as ``X-User-Id``.
    - ``certfile``, ``keyfile`` and ``http_protocols`` are set where the file has ``gateway.tls``,
      ``ca_certs`` and ``cert_reqs`` where that has ``client_ca``.
    - ``worker_connections`` grows with the threads: gunicorn's default of 1000 may be less than the
      number of threads.
    - ``loglevel`` is the file's ``gateway.log_level``; the gateway's loggers use the same level.
    - ``logger_class`` writes JSON where the file has ``logging.format = "json"``.
    - ``pre_request`` joins several ``Cookie`` fields with a semicolon where gunicorn's own worker
      serves; it would join them with a comma, which can be part of a cookie's value.

    :param path: The file. Default: ``$WSGIGATE_CONFIG``.
    :param bind: ``HOST:PORT`` or ``unix:PATH``; overrides the file's.
    :param threads: Threads per process; overrides the file's.
    :raises SystemExit: At the first start the file is missing or invalid; stderr has the errors.
    """
    path = _path(path)
    return _settings(_read(path, bind, threads), path, log_keys=True)


def planned(config: Config) -> ServerFacts:
    """Return the facts of the gunicorn server that would run the gateway of *config*."""
    from wsgigate.servers.gunicorn_boot import TESTED

    cfg = Settings()
    for name, value in _settings(config).items():
        cfg.set(name, value)
    worker = "gthread" if cfg.worker_class_str == "gthread" else "GateWorker"
    return facts_of_gunicorn(
        cfg, worker=worker, tested=TESTED, changed=changed_keys(config.gateway)
    )


def _client_certificates(config: Config, path: str) -> dict[str, Any]:
    """Return gunicorn's settings for client certificates; none without ``client_ca``."""
    file, tls = client_authorities(config, path), config.gateway.tls
    if file is None or tls is None:
        return {}
    required = tls.client_cert == "required"
    return {
        "ca_certs": file,
        "cert_reqs": ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL,
    }


def _settings(config: Config, path: str = "", *, log_keys: bool = False) -> dict[str, Any]:
    """Return gunicorn's settings.

    :param log_keys: Log the keys of the file that the worker class does not apply.
    """
    gateway = config.gateway
    files = certificate_files(config, path)
    worker = _worker_class(config)
    if log_keys and worker == "gthread":
        keys = changed_keys(gateway)
        facts = ServerFacts(server="gunicorn", started_by="gthread", changed=keys)
        log_findings(findings(facts), "warn", log)
    # A registry with 10,000 instances gets 10,000 heartbeats each ten seconds.
    served = 10_000 if config.registry is None else 1_000_000
    return {
        **({"certfile": files[0], "keyfile": files[1]} if files else {}),
        **_client_certificates(config, path),
        "http_protocols": "h2,h1" if gateway.http2 else "h1",
        "bind": [gateway.bind, *([config.metrics_bind] if config.metrics_bind else [])],
        "workers": gateway.workers or fork.processors(),
        "threads": gateway.threads,
        "worker_connections": gateway.threads + WAITING,
        "worker_class": worker,
        "proc_name": gateway.name,
        "http_parser": "python",
        "forwarded_allow_ips": "",
        "forwarder_headers": "",
        "header_map": "refuse",
        "limit_request_line": 8190,
        "limit_request_fields": 100,
        "limit_request_field_size": 8190,
        "keepalive": math.ceil(gateway.keep_alive),
        "timeout": 60,
        "graceful_timeout": 30,
        "when_ready": _ready_hook(gateway.drain_delay),
        "max_requests": served,
        "max_requests_jitter": served // 10,
        "preload_app": False,
        "control_socket_disable": True,
        "accesslog": None,
        "loglevel": gateway.log_level or "info",
        **({"logger_class": JsonLog} if config.logs_json else {}),
        **({"pre_request": _join_cookies} if worker == "gthread" else {}),
        "post_worker_init": _worker_started,
        "worker_exit": _worker_stopped,
    }


def _worker_class(config: Config) -> str | type:
    gateway = config.gateway
    from wsgigate.servers.gunicorn_boot import TESTED
    from wsgigate.servers.gunicorn_worker import GateWorker

    if TESTED[0] <= gunicorn.version_info[:2] < TESTED[1]:
        worker = GateWorker.having(
            head_timeout=gateway.head_timeout,
            idle_timeout=gateway.idle_timeout,
            max_connections_per_client=gateway.max_connections_per_client,
            trusted_proxies=gateway.trusted_proxies if gateway.max_connections_per_client else None,
            metrics_bind=config.metrics_bind,
        )
        return f"{worker.__module__}.GateWorker" if worker is GateWorker else worker
    log.warning(
        "GateWorker does not support gunicorn %s: using gunicorn's gthread worker, which slow "
        "clients can block; install gunicorn>=27,<28 or put a buffering proxy in front",
        gunicorn.__version__,
    )
    return "gthread"


def application() -> Gateway:
    """Return the gateway of the last valid configuration; each worker loads this."""
    if last_valid is None:
        return build(load(_path(None)), path=_path(None))
    return build(last_valid.config, path=last_valid.path, started=_started)


def serve(
    path: str,
    *,
    bind: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    log_level: str | None = None,
    reload: bool = False,
) -> None:
    """Run the gateway that the file at *path* describes, until a signal stops it.

    :param bind: ``HOST:PORT`` or ``unix:PATH``; overrides the file's.
    :param workers: Worker processes; overrides the file's.
    :param threads: Threads per process; overrides the file's.
    :param log_level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``; overrides the
        file's.
    :param reload: Restart workers when the file or the code they loaded changes; for development.
    :raises SystemExit: The server has stopped, or could not start.
    """
    given = {"workers": workers, "threads": threads, "loglevel": log_level}
    chosen = {name: value for name, value in given.items() if value is not None}
    _GunicornServer(path, bind, chosen, reload).run()


def serve_config(config: Config) -> None:
    """Run the gateway of *config*, which has no file, until a signal stops it.

    :raises SystemExit: The server has stopped, or could not start.
    """
    global last_valid
    last_valid = _Good("", config)
    _GunicornServer("", None, {}, reload=False).run()


class _GunicornServer(BaseApplication):  # type: ignore[misc]
    def __init__(self, path: str, bind: str | None, given: dict[str, Any], reload: bool) -> None:
        self._path = path
        self._bind = bind
        self._given = given
        self._reload = reload
        super().__init__()

    def load_config(self) -> None:
        if last_valid is not None and not last_valid.path:
            chosen = _settings(last_valid.config, log_keys=True)
        else:
            threads = self._given.get("threads")
            chosen = settings(self._path, bind=self._bind, threads=threads) | self._given
        chosen["worker_connections"] = chosen["threads"] + WAITING
        if self._reload:
            chosen |= {"reload": True, "reload_extra_files": [self._path]}
        for name, value in chosen.items():
            self.cfg.set(name, value)

    def load(self) -> Gateway:
        return application()


def _path(path: str | None) -> str:
    path = path or os.environ.get("WSGIGATE_CONFIG")
    if not path:
        raise SystemExit("wsgigate: WSGIGATE_CONFIG must name the gateway's file")
    return os.path.abspath(path)


def _read(path: str, bind: str | None, threads: int | None = None) -> Config:
    """Return the file's configuration if it is valid, else the last valid one."""
    global last_valid
    try:
        config = load(path)
        gateway = config.gateway
        gateway = replace(gateway, bind=bind or gateway.bind, threads=threads or gateway.threads)
        config = changed(config, gateway=gateway)
        failure, outage = validate_file(path)
    except ConfigError as error:
        failure, outage = str(error), ""
    if not failure:
        if last_valid is not None:
            before, after = config_hash(last_valid.config), config_hash(config)
            changes = "unchanged" if before == after else f"{before} -> {after}"
            log.info("Configuration reloaded from %s: hash %s", path, changes)
        last_valid = _Good(path, config)
        if outage:
            log.warning("%s", outage)
        return config
    if last_valid is None:
        print(failure, file=sys.stderr)
        raise SystemExit(2)
    log.error("Reload rejected; the previous configuration stays active:\n%s", failure)
    return last_valid.config


def _join_cookies(_worker: Any, request: Any) -> None:
    request.headers = one_cookie_field(request.headers)


def _stop_later(seconds: float) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True  # a second signal must not wait for it
    timer.start()


def drains(
    delay: float, *, stop_later: Callable[[float], object] = _stop_later
) -> Callable[[Any], None]:
    """Return the hook that lets the first SIGTERM of the master fail /readyz before it stops.

    The master forks its workers after the hook. Meanwhile its loop goes on as ever, so a worker
    that dies is replaced; the second SIGTERM, of the timer or of an operator, stops the server. So
    do SIGINT and SIGQUIT at once.

    :param delay: Seconds between the two.
    :param stop_later: Sends SIGTERM to this process after so many seconds.
    """

    def when_ready(server: Any) -> None:
        drain.SERVER.prepare()
        stop = server.handle_term

        def handle_term() -> None:
            first = not drain.SERVER
            drain.SERVER.set()
            if not first or not delay:
                stop()
                return
            log.info("Not ready any more; stopping in %g s", delay)
            stop_later(delay)

        server.handle_term = handle_term

    return when_ready


def _ready_hook(delay: float) -> Callable[[Any], None]:
    """Return the hook that logs the start, once, in the master, and prepares :func:`drains`."""
    prepare = drains(delay)

    def when_ready(server: Any) -> None:
        _log_start(server)
        prepare(server)

    return when_ready


def _log_start(arbiter: Any) -> None:
    if last_valid is not None:
        name = f"gunicorn {gunicorn.__version__} ({arbiter.worker_class.__name__})"
        workers = int(arbiter.cfg.workers)
        path, config = last_valid
        log.info("%s", start_line(config, path, server=name, workers=workers))


def _worker_started(worker: Any) -> None:
    adopt(log.handlers, worker.cfg.loglevel)
    gateway = worker.wsgi
    if isinstance(gateway, Gateway):
        if last_valid is not None and last_valid.path:
            gateway.reloads = ServerReload(last_valid.path, partial(_master_of, worker))
        gateway.start()
        fork.settle()


def _master_of(worker: Any) -> int:
    """Return the process id of the worker's master; 0 if it has ended."""
    return worker.ppid if os.getppid() == worker.ppid else 0


def _worker_stopped(_server: Any, worker: Any) -> None:
    gateway = getattr(worker, "wsgi", None)
    if isinstance(gateway, Gateway):
        gateway.close()
