"""The commands that read a gateway's file: run, check, routes, schema and token."""

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

from wsgigate.auth.jwt import SECRET_BYTES, mint
from wsgigate.cli.main import failed, server
from wsgigate.config.build import BuiltGateway, assemble, check_file
from wsgigate.config.build_routes import RouteEntry
from wsgigate.config.checks import check_across
from wsgigate.config.errors import ConfigError, Errors
from wsgigate.config.load import load, read_file
from wsgigate.config.model import Config, GatewayTable
from wsgigate.config.model import schema as schema_of_file
from wsgigate.config.tables import Arguments, Table
from wsgigate.proxy.bulkhead import ThreadShareRules
from wsgigate.server_check import Finding, findings
from wsgigate.units import parse_duration

__all__ = ["check", "routes", "run", "schema", "token"]

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
            built = check_file(parsed, path)
        finally:
            for key, text in parsed.warnings:
                print(f"{path}: warning: {key}: {text}", file=sys.stderr)
    except ConfigError as error:
        return failed(error)
    services, count = len(built.gateway.pools), len(built.entries)
    built.gateway.close()
    found = _of_server(parsed.config, arguments.server)
    refused = arguments.server != "gunicorn" and parsed.config.gateway.self_check == "refuse"
    for finding in found:
        severity = finding.severity if refused else "warning"
        print(f"{path}: {severity}: {finding}", file=sys.stderr)
    if refused and any(finding.severity == "error" for finding in found):
        return 2
    print(f"{path}: ok: {_counted(services, 'service')}, {_counted(count, 'route')}")
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
    rows = [("METHODS", "HOST", "PATH", "MIDDLEWARES", "TO")]
    rows += [("GET", "any", own.path, "-", "the gateway itself") for own in built.own]
    rows += [_row(entry, built) for entry in built.entries]
    fallback = parsed.config.gateway.fallback
    if fallback:
        rows.append(("any", "any", "all else", "-", fallback))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[4]]).rstrip())
    outside = ", ".join(entry.use for entry in parsed.config.middleware)
    if outside:
        print(f"\nbefore all of them: {outside}")
    return 0


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
            f"{_counted(threads, 'thread')} per worker, of which a service holds at most "
            f"{rules.most}: {', '.join(shared)}; further requests wait, and get a 503 only while "
            "the service is slow and no other thread is free"
        )
    for name, most in sorted(limits.items()):
        if most is not None:
            limit = f"at most {most} requests in flight per worker" if most else "no limit"
            yield f"services.{name}.max_in_flight: {limit}"


def _of_server(config: Config, name: str) -> list[Finding]:
    """Return the findings on the server that ``run`` would start, if it is installed."""
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
    overridden = replace(config, gateway=replace(config.gateway, **given))
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
    below = "" if table.exact else "/..." if route.path != "/" else "..."
    return (
        ",".join(table.methods) or "any",
        route.host or "any",
        route.path.rstrip("/") + below if not table.exact else route.path,
        ", ".join(each.use for each in table.middleware) or "-",
        to,
    )


def _counted(count: int, what: str) -> str:
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
    for options in (entry.options for entry in entries):
        if options is None:
            continue
        algorithm = next((name for name in options["algorithms"] if name in SECRET_BYTES), None)
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
    raise ValueError(f"{path} has no authenticator with a secret (HS256, HS384 or HS512)")


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
