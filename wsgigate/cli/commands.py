"""The commands that read a gateway's file: run, check, routes, explain, schema and token."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from wsgigate.auth.jwk import SECRET_BYTES
from wsgigate.auth.jwt import mint
from wsgigate.cli.main import failed, server
from wsgigate.config.build import BuiltGateway, assemble, check_file
from wsgigate.config.build_routes import RouteEntry, leading_loggers
from wsgigate.config.checks import check_across
from wsgigate.config.errors import ConfigError, Errors
from wsgigate.config.load import load, read_file
from wsgigate.config.masked import changed
from wsgigate.config.middlewares import VERIFIERS, Middleware
from wsgigate.config.model import Config, GatewayTable
from wsgigate.config.model import schema as schema_of_file
from wsgigate.config.tables import Arguments, Table
from wsgigate.discovery import Instance
from wsgigate.http.caller import matching
from wsgigate.http.problem import Refusal
from wsgigate.http.target import BadTarget, any_target_of, kept_target_of
from wsgigate.proxy.bulkhead import ThreadShareRules
from wsgigate.proxy.request import NEVER, RequestMaker
from wsgigate.rules.routing import MethodNotAllowed
from wsgigate.server_check import Finding, findings
from wsgigate.units import parse_duration

__all__ = [
    "check",
    "counted",
    "explain",
    "request",
    "route_rows",
    "routes",
    "routes_table",
    "run",
    "schema",
    "token",
]

_OVERRIDES = ("bind", "workers", "threads")
"""Arguments of run that override keys of the file's [gateway] table."""


def run(arguments: argparse.Namespace) -> int:
    """Serve the gateway until a signal stops it."""
    try:
        serve = server(arguments.server, "run").serve
    except ValueError as error:
        return failed(error)
    try:
        if any(getattr(arguments, name) is not None for name in _OVERRIDES):
            _check_overrides(arguments, load(arguments.file))
    except (ConfigError, ValueError) as error:
        return failed(error)
    try:
        serve(
            arguments.file,
            bind=arguments.bind,
            workers=arguments.workers,
            threads=arguments.threads,
            log_level=arguments.log_level,
            reload=arguments.reload,
        )
    except (ConfigError, ValueError) as error:
        return failed(error)
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Report all errors and warnings of a file."""
    path: str = arguments.file
    try:
        parsed = read_file(path)
        try:
            built = check_file(parsed, path, asks=True, offline=arguments.offline)
        finally:
            for key, text in parsed.warnings:
                print(f"{path}: warning: {key}: {text}", file=sys.stderr)
    except ConfigError as error:
        return failed(error)
    services, count = len(built.gateway.pools), len(built.entries)
    built.gateway.close()
    try:
        found = _of_server(parsed.config, arguments.server)
    except ValueError as error:
        return failed(error)
    refused = arguments.server != "gunicorn" and parsed.config.gateway.self_check == "refuse"
    for finding in found:
        severity = finding.severity if refused else "warning"
        print(f"{path}: {severity}: {finding}", file=sys.stderr)
    if refused and any(finding.severity == "error" for finding in found):
        return 2
    print(f"{path}: ok: {counted(services, 'service')}, {counted(count, 'route')}")
    for line in _thread_shares(parsed.config):
        print(f"{path}: {line}")
    return 0


def routes(arguments: argparse.Namespace) -> int:
    """Print the routes as a table."""
    try:
        parsed = read_file(arguments.file)
        built = assemble(parsed.config, path=arguments.file, errors=parsed.errors)
    except ConfigError as error:
        return failed(error)
    for line in routes_table(built, fallback=parsed.config.gateway.fallback):
        print(line)
    outside = ", ".join(entry.use for entry in parsed.config.middleware)
    if outside:
        print(f"\nbefore all of them: {outside}")
    return 0


class RouteRow(NamedTuple):
    """A route, as the table of routes shows it."""

    methods: str
    host: str
    path: str
    middlewares: str
    to: str


def route_rows(built: BuiltGateway, *, fallback: str | None) -> list[RouteRow]:
    """Return the routes of a gateway.

    :param fallback: What serves the requests that no route matches.
    """
    rows = [
        RouteRow(",".join(own.methods), "any", own.path, "-", "the gateway itself")
        for own in built.own
    ]
    rows += [RouteRow(*_row(entry, built)) for entry in built.entries]
    if fallback:
        rows.append(RouteRow("any", "any", "all else", "-", fallback))
    return rows


def routes_table(built: BuiltGateway, *, fallback: str | None) -> Iterator[str]:
    """Yield the lines of the table of routes."""
    rows = [RouteRow("METHODS", "HOST", "PATH", "MIDDLEWARES", "TO")]
    rows += route_rows(built, fallback=fallback)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row.to]).rstrip()


def schema(_arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of the file."""
    print(json.dumps(schema_of_file(), indent=2))
    return 0


def _thread_shares(config: Config) -> Iterator[str]:
    """Yield lines on how the services share the threads of a worker."""
    threads, services = config.gateway.threads, config.services
    limits = {name: service.max_in_flight for name, service in services.items()}
    shared = sorted(name for name, most in limits.items() if most is None)
    if len(services) > 1 and shared:
        rules = ThreadShareRules(threads=threads, services=len(services))
        yield (
            f"{counted(threads, 'thread')} per worker, of which a service holds at most "
            f"{rules.most}: {', '.join(shared)}; further requests wait, and get a 503 only while "
            "the service is slow and no other thread is free"
        )
    for name, most in sorted(limits.items()):
        if most is not None:
            limit = f"at most {most} requests in flight per worker" if most else "no limit"
            yield f"services.{name}.max_in_flight: {limit}"


def _of_server(config: Config, name: str) -> list[Finding]:
    """Return the findings on the server that ``run`` would start, if it is installed.

    :raises ValueError: The server does not support a setting; the message names it.
    """
    try:
        planned = import_module(f"wsgigate.servers.{name}").planned
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name:
            raise
        return []
    return findings(planned(config))


def _check_overrides(arguments: argparse.Namespace, config: Config) -> None:
    """Check the configuration with the keys that *arguments* override.

    :raises ValueError: The configuration is invalid; the message names the argument.
    """
    given = {name: value for name in _OVERRIDES if (value := getattr(arguments, name)) is not None}
    overridden = changed(config, gateway=replace(config.gateway, **given))
    errors = Errors()
    keys = Table(GatewayTable).keys
    for name, value in given.items():
        keys[name].kind.read(value, f"gateway.{name}", errors)
    check_across(overridden, errors, [])
    for key, text in errors:
        name = key.removeprefix("gateway.")
        raise ValueError(f"--{name}: {text}" if name in given else f"{key}: {text}")


def _row(entry: RouteEntry, built: BuiltGateway) -> tuple[str, str, str, str, str]:
    table, route = entry.table, entry.route
    to = table.app or ""
    if table.service is not None:
        watcher = built.gateway.watcher
        source = watcher.sources.get(table.service) if watcher is not None else None
        instances = ", ".join(each.url for each in built.gateway.pools[table.service].instances)
        to = f"{table.service} -> {source or instances}"
    elif table.services:
        to = ", ".join(f"{share.service} ({share.weight:g})" for share in table.services)
    if table.app is None and (entry.strip_prefix or table.add_prefix):
        to += f" ({entry.strip_prefix or '/'} becomes {table.add_prefix or '/'})"
    if table.percent is not None:
        to += f", {table.percent:g} % of the requests"
    below = "" if table.exact else "/..." if route.path != "/" else "..."
    return (
        ",".join(table.methods) or "any",
        route.host or "any",
        route.path.rstrip("/") + below if not table.exact else route.path,
        ", ".join(each.use for each in table.middleware) or "-",
        to,
    )


def counted(count: int, what: str) -> str:
    """Return the number of things, such as ``2 routes``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# The command token: a signed token for testing.


class _Signing(NamedTuple):
    algorithm: str
    secret: str
    claims: dict[str, Any]


def token(arguments: argparse.Namespace) -> int:
    """Print the token, and nothing else."""
    try:
        signing = _signing(arguments)
        minted = mint(
            signing.secret,
            signing.algorithm,
            arguments.sub,
            parse_duration(arguments.expires),
            **{**signing.claims, **_claims(arguments.claim)},
        )
    except (ConfigError, ValueError) as error:
        return failed(error)
    print(minted)
    return 0


def _signing(arguments: argparse.Namespace) -> _Signing:
    if arguments.file is None:
        name: str = arguments.secret_env
        secret = os.environ.get(name, "")
        if not secret:
            raise ValueError(
                f"the environment variable {name} is not set or empty; "
                "set it to the secret, or give a FILE"
            )
        return _Signing("HS256", secret, {})
    return _of_file(load(arguments.file), arguments.file)


def _of_file(config: Config, path: str) -> _Signing:
    entries = [entry for entry in config.middlewares() if entry.use == "authenticator"]
    for options in _issuers(entries):
        algorithms = options.get("algorithms", ())
        algorithm = next((name for name in algorithms if name in SECRET_BYTES), None)
        if algorithm is None:
            continue
        claims = {"iss": options.get("issuer"), "aud": _first(options.get("audience"))}
        if "scopes" in options:
            claims["scope"] = " ".join(options["scopes"])
        claims = {key: value for key, value in claims.items() if value}
        required = options.get("required_claims")
        if isinstance(required, Mapping):
            claims |= {name: _first(value) for name, value in required.items()}
        return _Signing(algorithm, _secret(options, path), claims)
    raise ValueError(
        f"{path} has no authenticator with a secret (HS256, HS384 or HS512); only the issuer can "
        "sign tokens for an authenticator with public keys"
    )


def _issuers(entries: Sequence[Middleware]) -> Iterator[Arguments]:
    """Yield the options of each issuer of tokens."""
    for options in (entry.options for entry in entries):
        if options is not None:
            yield from options.get("issuers") or (options,)


def _secret(options: Arguments, path: str) -> str:
    secret: str | None = _first(options.get("secret"))
    if secret is None and "secret_file" in options:
        file = Path(path).resolve().parent / options["secret_file"]
        try:
            secret = file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    return secret or ""


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _claims(texts: Sequence[str]) -> dict[str, Any]:
    claims: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"--claim: expected NAME=VALUE, got {text!r}")
        try:
            claims[name] = json.loads(value)
        except ValueError:
            claims[name] = value
    return claims


# Explain: how a request would be handled, without sending one.


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
    for each in (*config.middleware, *(entry.table.middleware if entry else ())):
        if code := _required(each, environ):
            return code
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
    if entry.of:
        return f"{entry.use} ({', '.join(map(_named, entry.of))})"
    return entry.use


def _combined(entry: Middleware) -> str:
    """Return what the callers of an entry and of those that it combines need, as one text."""
    if not entry.of:
        texts = _needs(entry.options or {})
        return f"{entry.use} ({'; '.join(texts)})" if texts else entry.use
    several = [f"({_combined(each)})" if each.of else _combined(each) for each in entry.of]
    if (entry.options or {}).get("anonymous"):
        several.append("no credential")
    return (" and " if entry.use == "all-of" else " or ").join(several)


def _needs(needed: Arguments) -> list[str]:
    return [
        f"{called} {', '.join(needed[key])}" for key, called in _NEEDS.items() if needed.get(key)
    ]


def _required(entry: Middleware, environ: dict[str, Any]) -> int:
    """Print what the caller of a request needs; return 1 if no rule allows the request."""
    if entry.of:
        _line("requires", _combined(entry))
        return 0
    if entry.use != "authorizer" and entry.use not in VERIFIERS:
        return 0
    options = entry.options or {}
    rules = [rule for rule in options.get("rules", ()) if _is_for(rule, environ)]
    for needed in (options, *rules):
        texts = _needs(needed)
        if texts:
            _line("requires", "; ".join(texts) + ("" if needed is options else _name_of(needed)))
    passes = options.get("observe") or options.get("exempt")
    if options.get("rules") and not rules and not passes:
        return _refused(403, f"no rule of the authorizer allows {environ['REQUEST_METHOD']} here")
    return 0


_NEEDS = {
    "scopes": "scopes",
    "roles": "one of the roles",
    "groups": "one of the groups",
    "claims": "claims",
}


def _is_for(rule: Arguments, environ: dict[str, Any]) -> bool:
    paths, methods = rule.get("paths", ()), rule.get("methods", ())
    return not (paths or methods) or bool(matching(paths=paths, methods=methods)(environ))


def _name_of(rule: Arguments) -> str:
    return f"   (rule {rule['name']})" if rule.get("name") else "   (a rule)"


def _refused(status: int, reason: str) -> int:
    _line("refused", f"{status}: {reason}")
    return 1


def _line(what: str, value: str) -> None:
    print(f"{what:<12} {value}")
