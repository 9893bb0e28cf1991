"""A gateway under granian: its settings, and what granian can not give it.

granian is the fastest server there is for a gateway; what gunicorn can give, and granian not:

- no request target as it was sent: an escaped slash can not be told from a plain one, so a route
  that keeps them (``encoded_slash = "keep"``) is refused here;
- ``X_User_Id`` is the same field as ``X-User-Id``. The gateway removes what a client must not say
  by environ key, so neither spelling survives; no other field must be trusted by its name;
- a chunked request body that was cut looks complete, so a body without a length is refused (411);
- before granian 2.8.9 a chunked response that the backend cut looks complete to the client, which
  the self-check warns of. One with a length is cut for the client, too, or a 502;
- no deadline for a request body: slow clients can hold its threads, unless a proxy in front reads
  bodies first;
- bytes outside of ASCII in a field's value: the field is empty.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from functools import partial
from importlib import metadata
from multiprocessing.util import Finalize
from pathlib import Path
from wsgiref.types import WSGIApplication

from granian import Granian
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels

from wsgigate import process
from wsgigate.config.build import build, outage_of
from wsgigate.config.certificate import certificate_files, check_certificate
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import load
from wsgigate.config.model import Config
from wsgigate.gateway import Gateway
from wsgigate.integrations.granian_boot import heeding, when_told_to_end
from wsgigate.integrations.granian_told import Told
from wsgigate.integrations.self_check import tell
from wsgigate.log_level import set_up
from wsgigate.rules.serving import ServerFacts, findings
from wsgigate.store import MisconfiguredStore

__all__ = ["application", "serve", "serve_config"]

HEAD_TIMEOUT = 10.0
LONGEST_HEAD = 65536

log = logging.getLogger("wsgigate")

_VERSION = tuple(map(int, re.findall(r"\d+", metadata.version("granian"))[:3]))


def application() -> WSGIApplication:
    """Return the gateway of the file that ``$WSGIGATE_CONFIG`` names, to be served by granian.

    For ``granian --interface wsgi --factory wsgigate.integrations.granian:application``.

    :raises SystemExit: No file is named.
    :raises ConfigError: It is broken.
    :raises ValueError: It asks for what granian can not give.
    """
    path = os.environ.get("WSGIGATE_CONFIG")
    if not path:
        raise SystemExit("wsgigate: WSGIGATE_CONFIG must name the gateway's file")
    with heeding():
        config = load(path)
        check(config)
        _self_check(config)
        return _started(build(config, path=path))


def check(config: Config) -> None:
    """See that granian can serve what *config* describes.

    :raises ValueError: It can not; says why.
    """
    for route in config.routes:
        if (route.encoded_slash or config.gateway.encoded_slash) == "keep":
            raise ValueError(
                f"the route {route.path!r} keeps encoded slashes, which granian does not tell "
                "from plain ones; run under gunicorn"
            )


def planned(config: Config) -> ServerFacts:
    """Return the facts of the server that would run the gateway of *config*."""
    http2 = (config.gateway.http2, True)
    return ServerFacts(server="granian", version=_VERSION, worker="", http2=http2)


def _self_check(config: Config) -> None:
    """Log what is wrong with granian for the gateway of *config*.

    :raises ValueError: That makes it unsafe, and ``gateway.self_check`` is ``refuse``.
    """
    found = findings(planned(config))
    if tell(found, config.gateway.self_check):
        errors = [str(each) for each in found if each.severity == "error"]
        raise ValueError("granian cannot serve this gateway: " + "; ".join(errors))


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

    SIGHUP has new workers read the file again; where it is broken they serve what it said at the
    start.

    :param bind: ``HOST:PORT`` or ``unix:PATH``, instead of the file's.
    :param workers: Processes, instead of the file's.
    :param threads: Threads a process, instead of the file's.
    :param log_level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``, instead of the
        file's.
    :param reload: Restart workers when the code or the file changes; needs ``granian[reload]``.
    :raises ConfigError: The file is broken.
    :raises ValueError: It asks for what granian can not give.
    """
    path = os.path.abspath(path)
    config = _told(load(path), bind, threads, workers, log_level)
    check(config)
    check_certificate(config, path)
    _look_at_store(config, path)
    _self_check(config)
    loaded = partial(_load, path, bind, threads, log_level, config)
    _server(config, path, reload).serve(target_loader=loaded, wrap_loader=False)


def _look_at_store(config: Config, path: str) -> None:
    gateway = build(config, path=path)
    try:
        outage = outage_of(gateway.store)
    except MisconfiguredStore as error:
        raise ConfigError(path, [("store.url", str(error))]) from error
    finally:
        gateway.close()
    if outage:
        log.warning("%s: warning: store.url: %s", path, outage)


def serve_config(config: Config) -> None:
    """Run the gateway of *config*, which is in no file, until a signal ends it.

    :raises ValueError: It asks for what granian can not give.
    """
    check(config)
    _self_check(config)
    _server(config, "", False).serve(target_loader=partial(_built, config), wrap_loader=False)


def _server(config: Config, path: str, reload: bool) -> Granian:
    gateway = config.gateway
    certificate, key = certificate_files(config, path) or (None, None)
    place = gateway.bind
    host, _, port = place.rpartition(":")
    return Granian(
        "wsgigate.integrations.granian:application",
        address=host.strip("[]") if not place.startswith("unix:") else "127.0.0.1",
        port=int(port) if port.isdigit() else 0,
        uds=Path(place.removeprefix("unix:")) if place.startswith("unix:") else None,
        interface=Interfaces.WSGI,
        workers=gateway.workers or process.processors(),
        log_level=LogLevels(gateway.log_level or "info"),
        blocking_threads=gateway.threads,
        backpressure=1024,
        http1_settings=HTTP1Settings(
            header_read_timeout=int(HEAD_TIMEOUT * 1000), max_buffer_size=LONGEST_HEAD
        ),
        http=HTTPModes.auto if gateway.http2 else HTTPModes.http1,
        ssl_cert=Path(certificate) if certificate else None,
        ssl_key=Path(key) if key else None,
        ssl_protocol_min=SSLProtocols.tls12,
        http2_settings=HTTP2Settings(max_headers_size=LONGEST_HEAD),
        websockets=False,
        respawn_failed_workers=True,
        workers_kill_timeout=30,
        reload=reload,
        reload_paths=[Path(path).parent] if reload else None,
    )


def _built(config: Config) -> WSGIApplication:
    with heeding():
        return _started(build(config))


def _load(
    path: str, bind: str | None, threads: int | None, log_level: str | None, before: Config
) -> WSGIApplication:
    """Return what a new worker serves: the file as it is now, or as it was *before*."""
    with heeding():
        try:
            config = _told(load(path), bind, threads, None, log_level)
            check(config)
            gateway = build(config, path=path)
        except (ConfigError, ValueError) as error:
            set_up(before.gateway.log_level)
            log.error("Reload rejected; the previous configuration stays active:\n%s", error)
            gateway = build(before, path=path)
        else:
            told = replace(config.gateway, workers=before.gateway.workers)
            if replace(config, gateway=told) != before:
                set_up(config.gateway.log_level)
                log.info("This worker serves a newer configuration, reloaded from %s", path)
        return _started(gateway)


def _started(gateway: Gateway) -> WSGIApplication:
    """Start *gateway* in this worker, and close it at the worker's end."""
    gateway.start()
    when_told_to_end(gateway.stopping)
    process.settle()
    Finalize(None, gateway.close, exitpriority=10)  # a worker's end runs these, not atexit's
    return Told(gateway, os.environ.items())


def _told(
    config: Config,
    bind: str | None,
    threads: int | None,
    workers: int | None = None,
    log_level: str | None = None,
) -> Config:
    """Return *config* with what was told beside the file."""
    gateway = config.gateway
    gateway = replace(
        gateway,
        bind=bind or gateway.bind,
        threads=threads or gateway.threads,
        workers=workers or gateway.workers,
        log_level=log_level or gateway.log_level,
    )
    return replace(config, gateway=gateway)
