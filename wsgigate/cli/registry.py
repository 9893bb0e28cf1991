"""The command registry: serve the service registry, as a gateway without routes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from wsgigate.cli.main import failed, server
from wsgigate.config.build import check_file
from wsgigate.config.checks import check_across
from wsgigate.config.errors import ConfigError, Errors, is_below
from wsgigate.config.load import ParsedFile
from wsgigate.config.model import Config
from wsgigate.config.tables import Table

__all__ = ["registry"]

NAME = "service-discovery"
VERSION = "1.0.0"

_FLAGS = {
    "gateway.bind": "--bind",
    "gateway.threads": "--threads",
    "gateway.workers": "--workers",
    "store.url": "--store",
    "registry.allowed_networks": "--allow",
    "registry.open": "--open",
    "registry.token": "REGISTRY_TOKEN",
    "registry.tokens": "--token",
}


def registry(arguments: argparse.Namespace) -> int:
    """Serve the registry until a signal stops it."""
    try:
        serve_config = server(arguments.server, "registry").serve_config
    except ValueError as error:
        return failed(error)
    try:
        config = config_of(arguments, os.environ)
    except ConfigError as error:
        for key, text in error.errors:
            print(f"wsgigate: {_flag(key)}: {text}", file=sys.stderr)
        return 2
    except ValueError as error:
        return failed(error)
    serve_config(config)
    return 0


def config_of(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """Return the configuration that *arguments* describe, after checking it.

    :raises ConfigError: The configuration is invalid.
    :raises ValueError: A token is missing, or arguments contradict each other.
    """
    token = environ.get("REGISTRY_TOKEN") or None
    tokens = _tokens(arguments.token, environ)
    if token is None and not tokens and not arguments.open:
        raise ValueError(
            "REGISTRY_TOKEN is required: the token for registration, at least 16 characters; or "
            "use --open to allow registration without a token from this machine"
        )
    workers = arguments.workers
    if arguments.store == "memory:":
        if workers not in (None, 1):
            raise ValueError(
                "--store: memory: is private to each worker; use --workers 1, or lmdb:"
            )
        workers = 1
    table: dict[str, Any] = {"prefix": "", "tokens": tokens, "open": arguments.open}
    if token is not None:
        table["token"] = token
    if arguments.allow:
        table["allowed_networks"] = list(arguments.allow)
    if arguments.door:
        table["doors"] = list(arguments.door)
    if arguments.query_tokens:
        table["query_tokens"] = True
    if arguments.closed_reads:
        table["open_reads"] = False
    gateway = {
        "name": NAME,
        "version": VERSION,
        "bind": arguments.bind,
        "threads": arguments.threads,
        **({} if workers is None else {"workers": workers}),
        **({} if arguments.log_level is None else {"log_level": arguments.log_level}),
    }
    errors = Errors()
    document = {"gateway": gateway, "store": {"url": arguments.store}, "registry": table}
    config = Table(Config).read(document, "", errors) or Config()
    check_across(config, errors, [])
    warnings: list[tuple[str, str]] = []
    check_file(ParsedFile(config, errors, warnings), "").gateway.close()
    for key, text in warnings:
        print(f"wsgigate: warning: {_flag(key)}: {text}", file=sys.stderr)
    return config


def _tokens(given: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for text in given:
        service, equals, name = text.partition("=")
        if not (service and equals and name):
            raise ValueError(f"--token: expected SERVICE=NAME, got {text!r}")
        if not environ.get(name):
            raise ValueError(f"--token: the environment variable {name} is not set or empty")
        tokens[service] = environ[name]
    return tokens


def _flag(key: str) -> str:
    """Return the argument that sets the *key* of a file."""
    return next((flag for name, flag in _FLAGS.items() if is_below(key, name)), key)
