"""``flask wsgigate``: the commands of a gateway's file for the gateway around a Flask app.

They are given the app: ``flask --app shop wsgigate routes``.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

import click
from flask import current_app
from flask.cli import AppGroup, with_appcontext

from wsgigate.cli.api_keys import change_keys
from wsgigate.cli.commands import counted, routes_table
from wsgigate.cli.main import KEYS, add_keys_arguments, failed
from wsgigate.config.build import BuiltGateway, assemble, check_file
from wsgigate.config.errors import ConfigError
from wsgigate.flask.settings import AppSettings, read_settings
from wsgigate.http.problem import Problem

__all__ = ["commands"]

commands = AppGroup("wsgigate", help="Show and check the gateway around the app.")

_UNSERVED = Problem(503)
"""In place of the app: a command serves no request."""


@commands.command()
@with_appcontext
def routes() -> None:
    """List the routes that the gateway forwards."""
    settings = _settings()
    built = _built(settings)
    built.gateway.close()
    for line in routes_table(built, fallback=current_app.import_name):
        click.echo(line)
    outside = ", ".join(entry.use for entry in settings.gateway.config.middleware)
    if outside:
        click.echo(f"\nbefore all of them: {outside}")


@commands.command()
@click.option("--offline", is_flag=True, help="Send nothing to other machines.")
@with_appcontext
def check(offline: bool) -> None:
    """Check the settings, the store, and the keys of issuers.

    Every error is reported with its key; the exit code is 0 without errors, else 2.
    """
    settings = _settings()
    parsed = settings.gateway
    try:
        built = check_file(parsed, settings.path, asks=True, offline=offline, fallback=_UNSERVED)
    except ConfigError as error:
        _fail(settings.renamed(error))
    finally:
        for key, text in parsed.warnings:
            click.echo(f"warning: {settings.key(key)}: {text}", err=True)
    services, count = len(built.gateway.pools), len(built.entries)
    built.gateway.close()
    click.echo(f"ok: {counted(services, 'service')}, {counted(count, 'route')}")


@commands.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@with_appcontext
def keys(arguments: tuple[str, ...]) -> None:
    """Create, list, revoke and rotate API keys; --help shows the arguments."""
    parser = argparse.ArgumentParser(prog="flask wsgigate keys", description=KEYS)
    add_keys_arguments(parser, file=False)
    parsed = parser.parse_args(arguments)
    settings = _settings()
    _built(settings).gateway.close()  # reports the errors by their keys
    sys.exit(change_keys(parsed, settings.gateway.config, settings.path))


def _settings() -> AppSettings:
    try:
        return read_settings(current_app)
    except ConfigError as error:
        _fail(error)


def _built(settings: AppSettings) -> BuiltGateway:
    parsed = settings.gateway
    try:
        return assemble(parsed.config, path=settings.path, errors=parsed.errors, fallback=_UNSERVED)
    except ConfigError as error:
        _fail(settings.renamed(error))


def _fail(error: ConfigError) -> NoReturn:
    sys.exit(failed(error))
