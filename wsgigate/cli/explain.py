"""The command explain: show how a request would be handled, without sending one."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from wsgigate.cli.main import failed
from wsgigate.config.build import BuiltGateway, assemble
from wsgigate.config.build_routes import RouteEntry, leading_loggers
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import read_file
from wsgigate.config.middlewares import Middleware
from wsgigate.config.model import Config
from wsgigate.discovery import Instance
from wsgigate.http.problem import Refusal
from wsgigate.http.target import BadTarget, any_target_of, kept_target_of
from wsgigate.proxy.request import NEVER, RequestMaker
from wsgigate.rules.routing import MethodNotAllowed

__all__ = ["explain"]


def explain(arguments: argparse.Namespace) -> int:
    """Print how a request would be handled; return 1 if it would be rejected."""
    try:
        parsed = read_file(arguments.file)
        built = assemble(parsed.config, path=arguments.file, errors=parsed.errors)
    except ConfigError as error:
        return failed(error)
    environ = request(arguments.method.upper(), arguments.url)
    return _explained(environ, built, parsed.config)


def request(method: str, url: str) -> dict[str, Any]:
    """Return the environ of a request for *url* as gunicorn would make it."""
    scheme, host, raw = "http", "localhost", url
    if not url.startswith("/"):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.netloc:
            scheme, host = parts.scheme, parts.netloc.rpartition("@")[2]
            raw = url.partition("://")[2][len(parts.netloc) :]
            raw = raw if raw.startswith("/") else "/" + raw
    path, _, query = raw.partition("#")[0].partition("?")
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": raw.partition("#")[0],
        "HTTP_HOST": host,
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": scheme,
    }


def _explained(environ: dict[str, Any], built: BuiltGateway, config: Config) -> int:
    method: str = environ["REQUEST_METHOD"]
    if method in NEVER:
        return _refused(405, f"{method} is never forwarded")
    try:
        found = built.dispatcher.find(environ)
        target = kept_target_of(environ) if found is not None else any_target_of(environ)
    except BadTarget as error:
        return _refused(400, str(error))
    _line("target", f"{method} {target.text}")
    _line("host", target.host)
    if not built.dispatcher.serves(target.host):
        return _refused(421, "the host is not in gateway.allowed_hosts")
    if isinstance(found, MethodNotAllowed):
        return _refused(405, f"the routes of this path allow {', '.join(found.allowed)}")
    loggers = leading_loggers(config.middleware)
    outside = [_named(config.middleware[index]) for index in sorted(loggers)]
    outside.append("client-address")
    if config.gateway.request_id and not any(e.use == "request-id" for e in config.middleware):
        outside.append("request-id")
    outside += [_named(e) for n, e in enumerate(config.middleware) if n not in loggers]
    if found is None:
        if config.gateway.fallback is None:
            return _refused(404, "no route matches")
        _line("route", "none matches")
        _line("middlewares", ", ".join(outside))
        _line("app", f"{config.gateway.fallback} (the fallback)")
        return 0
    at = built.dispatcher.routes.index(found.route) - len(built.own)
    entry = built.entries[at] if at >= 0 else None
    _line("route", found.route.name + (f"   ({entry.path})" if entry else ""))
    for name, value in found.params.items():
        _line("parameter", f"{name} = {value}")
    inside = [_named(each) for each in entry.table.middleware] if entry else []
    _line("middlewares", ", ".join([*outside, *inside]))
    if entry is None:
        _line("app", "the gateway itself")
        return 0
    if entry.table.app is not None:
        _line("app", str(entry.table.app))
        return 0
    weights = {share.service: share.weight for share in entry.table.services}
    for name in weights or [str(entry.table.service)]:
        share = f"   (weight {weights[name]:g})" if weights else ""
        if code := _forwarded(environ, entry, built, name, share):
            return code
    _shaped(entry, config)
    return 0


def _forwarded(
    environ: dict[str, Any], entry: RouteEntry, built: BuiltGateway, service: str, share: str
) -> int:
    _line("service", service + share)
    maker = RequestMaker(strip_prefix=entry.strip_prefix, add_prefix=entry.table.add_prefix or "")
    watcher = built.gateway.watcher
    instances: tuple[Instance, ...] = built.gateway.pools[service].instances
    if watcher is not None and service in watcher.sources:
        _line("found by", watcher.sources[service])
        instances = (
            Instance("http://instance"),
        )  # any instance: which ones there are is not known yet
    for instance in instances:
        try:
            request = maker.make(environ, kept_target_of(environ), instance)
        except Refusal as error:
            return _refused(error.problem.status, str(error))
        _line("upstream", f"{request.method} {request.url}")
    return 0


def _shaped(entry: RouteEntry, config: Config) -> None:
    """Print the fallbacks and the mirror of the request."""
    table = entry.table
    names = [share.service for share in table.services] or [table.service or ""]
    fallbacks = [config.services[name].fallback for name in names]
    for fallback in [table.fallback] if table.fallback else fallbacks:
        if fallback is not None:
            ways = {
                "stale": "earlier answers" if fallback.stale else None,
                "service": fallback.service,
                "app": fallback.app,
                "file": fallback.file,
                "body": None if fallback.body is None else "a fixed answer",
            }
            _line("fallback", ", then ".join(way for way in ways.values() if way))
    if table.mirror is not None:
        _line("mirror", table.mirror["service"])


def _named(entry: Middleware) -> str:
    options = entry.options or {}
    watched = "; only observed" if options.get("observe") else ""
    if entry.use == "limiter":
        quota = options["quota"]
        text = ", ".join(map(str, quota)) if isinstance(quota, tuple) else str(quota)
        for plan, quotas in options.get("plans", {}).items():
            several = quotas if isinstance(quotas, tuple) else (quotas,)
            text += f"; {plan}: {', '.join(map(str, several))}"
        return f"{entry.use} ({text}{watched})"
    if entry.use == "concurrency-limiter":
        return f"{entry.use} ({options['limit']} at a time{watched})"
    return entry.use


def _refused(status: int, reason: str) -> int:
    _line("refused", f"{status}: {reason}")
    return 1


def _line(what: str, value: str) -> None:
    print(f"{what:<12} {value}")
