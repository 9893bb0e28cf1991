"""A gateway under gunicorn: its settings, and a reload that no broken file turns into an outage.

The master reads the file and keeps the last one that was good; workers are forked from it and build
what it kept. A reload (SIGHUP) reads the file again: a good one is what the new workers build, a
broken one is told to the log and the old one goes on. Whether a file is good is found out by a
process of its own, so that the master never imports what the file names and new workers see new
code.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any, NamedTuple

import gunicorn
from gunicorn.app.base import BaseApplication
from gunicorn.config import Config as Settings

from wsgigate.config.build import build, certificate_files
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load
from wsgigate.config.model import Config
from wsgigate.config.model import Gateway as Table
from wsgigate.gateway import Gateway
from wsgigate.runtime import fork
from wsgigate.runtime.log_level import adopt
from wsgigate.server_check import ServerFacts, facts_of_gunicorn

__all__ = ["application", "planned", "serve", "serve_config", "settings"]


WAITING = 1000
"""Connections of a worker beside those that its threads serve."""

log = logging.getLogger("gunicorn.error")


class _Good(NamedTuple):
    path: str
    config: Config


_good: _Good | None = None

_started = time.time()


def settings(
    path: str | None = None, *, bind: str | None = None, threads: int | None = None
) -> dict[str, Any]:
    """Return gunicorn's settings for the gateway that the file at *path* describes.

    Called by the master at its start and at every reload. What is set here, and why:

    - ``http_parser`` pins gunicorn's own strict parser; ``auto`` would take any other that happens
      to be installed.
    - ``forwarded_allow_ips`` and ``forwarder_headers`` are empty: who may speak for a client is the
      gateway's ``trusted_proxies`` to say, and ``SCRIPT_NAME`` nobody's.
    - ``header_map = "refuse"``: ``X_User_Id`` would be read as ``X-User-Id``.
    - ``certfile``, ``keyfile`` and ``http_protocols`` are set where the file has ``gateway.tls``.
    - ``worker_connections`` grow with the threads: gunicorn's 1000 would be less than many threads.
    - ``loglevel`` is the file's ``gateway.log_level``; the gateway's own records follow it.
    - ``pre_request`` makes one field of several ``Cookie`` fields, which gunicorn would join with a
      comma: that is part of a cookie's value.

    :param path: The file; ``$WSGIGATE_CONFIG`` when ``None``.
    :param bind: ``HOST:PORT`` or ``unix:PATH``, instead of the file's.
    :param threads: Threads a process, instead of the file's.
    :raises SystemExit: At the first start the file is missing or broken; told on stderr.
    """
    path = _path(path)
    return _settings(_read(path, bind, threads), path)


def planned(config: Config) -> ServerFacts:
    """Return the facts of the server that would run the gateway of *config*."""
    from wsgigate.servers.gunicorn_worker import TESTED

    cfg = Settings()
    for name, value in _settings(config).items():
        cfg.set(name, value)
    worker = "gthread" if cfg.worker_class_str == "gthread" else "GateWorker"
    return facts_of_gunicorn(cfg, worker=worker, tested=TESTED)


def _settings(config: Config, path: str = "") -> dict[str, Any]:
    gateway = config.gateway
    files = certificate_files(config, path)
    # of ten thousand instances the heartbeats of ten seconds are as many
    served = 10_000 if config.registry is None else 1_000_000
    return {
        **({"certfile": files[0], "keyfile": files[1]} if files else {}),
        "http_protocols": "h2,h1" if gateway.http2 else "h1",
        "bind": gateway.bind,
        "workers": gateway.workers or fork.processors(),
        "threads": gateway.threads,
        "worker_connections": gateway.threads + WAITING,
        "worker_class": _worker_class(gateway),
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
        "max_requests": served,
        "max_requests_jitter": served // 10,
        "preload_app": False,
        "control_socket_disable": True,
        "accesslog": None,
        "loglevel": gateway.log_level or "info",
        "pre_request": _one_cookie_field,
        "post_worker_init": _worker_started,
        "worker_exit": _worker_stopped,
    }


def _worker_class(gateway: Table) -> str | type:
    from wsgigate.servers.gunicorn_worker import TESTED, GateWorker

    if TESTED[0] <= gunicorn.version_info[:2] < TESTED[1]:
        worker = GateWorker.having(
            head_timeout=gateway.head_timeout,
            idle_timeout=gateway.idle_timeout,
        )
        return f"{worker.__module__}.GateWorker" if worker is GateWorker else worker
    log.warning(
        "gunicorn %s is not one that GateWorker was tested with: its plain gthread worker serves, "
        "which slow clients can hold; put a buffering proxy in front",
        gunicorn.__version__,
    )
    return "gthread"


def application() -> Gateway:
    """Return the gateway of the last good file; what a worker loads."""
    if _good is None:
        return build(load(_path(None)), path=_path(None))
    return build(_good.config, path=_good.path, started=_started)


def serve(
    path: str,
    *,
    bind: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    log_level: str | None = None,
    reload: bool = False,
) -> None:
    """Run the gateway that the file at *path* describes, until a signal ends it.

    :param bind: ``HOST:PORT`` or ``unix:PATH``, instead of the file's.
    :param workers: Processes, instead of the file's.
    :param threads: Threads a process, instead of the file's.
    :param log_level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``, instead of the
        file's.
    :param reload: Restart workers when the file or the code they loaded changes; for development.
    :raises SystemExit: The server has ended, or could not start.
    """
    given = {"workers": workers, "threads": threads, "loglevel": log_level}
    chosen = {name: value for name, value in given.items() if value is not None}
    _Server(path, bind, chosen, reload).run()


def serve_config(config: Config) -> None:
    """Run the gateway of *config*, which is in no file, until a signal ends it.

    :raises SystemExit: The server has ended, or could not start.
    """
    global _good
    _good = _Good("", config)
    _Server("", None, {}, reload=False).run()


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, path: str, bind: str | None, given: dict[str, Any], reload: bool) -> None:
        self._path = path
        self._bind = bind
        self._given = given
        self._reload = reload
        super().__init__()

    def load_config(self) -> None:
        if _good is not None and not _good.path:
            chosen = _settings(_good.config)
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
    """Return the file's configuration when it is good, else the last one that was."""
    global _good
    try:
        config = load(path)
        gateway = config.gateway
        gateway = replace(gateway, bind=bind or gateway.bind, threads=threads or gateway.threads)
        config = replace(config, gateway=gateway)
        failure, outage = _check(path)
    except ConfigError as error:
        failure, outage = str(error), ""
    if not failure:
        if _good is not None:
            log.info("Configuration reloaded from %s", path)
        _good = _Good(path, config)
        if outage:
            log.warning("%s", outage)
        return config
    if _good is None:
        print(failure, file=sys.stderr)
        raise SystemExit(2)
    log.error("Reload rejected; the previous configuration stays active:\n%s", failure)
    return _good.config


def _check(path: str) -> tuple[str, str]:
    """Return what is wrong with the gateway that the file describes, and with its store for now.

    Each is empty when nothing is. The second does not keep it from serving.
    """
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "wsgigate", "check", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}: cannot be checked: {error}", ""
    told = done.stderr.strip()
    if done.returncode:
        return told or f"check: exit {done.returncode}", ""
    of_store = f"{path}: warning: store.url: "
    return "", next((line for line in told.splitlines() if line.startswith(of_store)), "")


def _one_cookie_field(_worker: Any, request: Any) -> None:
    """Join the Cookie fields of a request as RFC 9113 section 8.2.3 says."""
    cookies = [value for name, value in request.headers if name == "COOKIE"]
    if len(cookies) > 1:
        others = [field for field in request.headers if field[0] != "COOKIE"]
        request.headers = [*others, ("COOKIE", "; ".join(cookies))]


def _worker_started(worker: Any) -> None:
    adopt(log.handlers, worker.cfg.loglevel)
    gateway = worker.wsgi
    if isinstance(gateway, Gateway):
        gateway.start()
        fork.settle()


def _worker_stopped(_server: Any, worker: Any) -> None:
    gateway = getattr(worker, "wsgi", None)
    if isinstance(gateway, Gateway):
        gateway.close()
